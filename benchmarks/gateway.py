"""Time to the first chunk of a stream through `asgi-session-pin serve`, with one worker and with two.

    python benchmarks/gateway.py [--requests 200]

The upstream sends its first event right after its headers, over keep-alive connections. The table shows milliseconds
from the request to the first byte of the body, directly and through the gateway. Where the sockets of several workers
hold small writes back (Nagle's algorithm), they take 40 ms more than one.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import uvicorn
from starlette.types import Receive, Scope, Send

EVENT = b'data: {"model": "large", "choices": [{"delta": {"content": "x"}}]}\n\n'
REQUEST = b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": EVENT, "more_body": True})
    await asyncio.sleep(0.001)
    await send({"type": "http.response.body", "body": EVENT})


@contextlib.contextmanager
def server(*command: str) -> Iterator[int]:
    """Run a command with a free port behind it, and yield the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with subprocess.Popen([sys.executable, *command, str(port)]) as process:
        try:
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()


async def times(port: int, requests: int) -> list[float]:
    """Return milliseconds to the first byte of the body, for one request after the other on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    measured = []
    for _ in range(requests):
        started = time.perf_counter()
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"data: ")
        measured.append((time.perf_counter() - started) * 1e3)
        await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--upstream", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.upstream:
        return uvicorn.run(stream, port=arguments.upstream, log_level="error", access_log=False, lifespan="off")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {arguments.requests} requests each")
    print(f"{'ms to the first chunk':<24}{'median':>8}{'p95':>8}")
    with server(__file__, "--upstream") as upstream:
        gateway = ("-m", "asgi_session_pin", "serve", "--log-level", "error", "--upstream")
        show("directly", upstream, arguments.requests)
        for workers in (1, 2):
            with server(*gateway, f"http://127.0.0.1:{upstream}", "--workers", str(workers), "--port") as port:
                show(f"serve --workers {workers}", port, arguments.requests)
    return None


def show(name: str, port: int, requests: int) -> None:
    measured = asyncio.run(times(port, requests))
    print(f"{name:<24}{statistics.median(measured):8.1f}{statistics.quantiles(measured, n=20)[-1]:8.1f}", flush=True)


if __name__ == "__main__":
    main()
