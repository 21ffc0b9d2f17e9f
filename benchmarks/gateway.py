"""What `asgi-session-pin serve` costs beside other reverse proxies, and the time to the first chunk through it.

    python benchmarks/gateway.py [--seconds 3] [--connections 1 16 64] [--requests 200]

All proxies pass the same requests (1 KB) to the same upstream, which says prepared answers: one of 1 KB, or a stream of
100 events. The bare ones do nothing else: an ASGI app over aiohttp on the server that `serve` runs on, Starlette over
httpx on the same, and nginx where it is installed. Where granian is, `create_gateway` is on it, too. The table has
requests per second, the share of the bare aiohttp proxy's, and the processor's time that the proxy took for each: on a
machine with other work that tells more. `hit` is with a session that has its pin.

Below it are milliseconds to the first byte of a stream, directly and through `serve` with one worker and with two:
where the sockets of several workers hold small writes back (Nagle's algorithm), they take 40 ms more than one.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_session_pin.gateway import create_gateway
from asgi_session_pin.gateway.server_protocol import ServerProtocol

EVENT = b'data: {"model": "large", "choices": [{"delta": {"content": "x"}}]}\n\n'
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
TEXT = b'{"model": "large", "choices": [{"message": {"content": "%s"}}]}' % (b"x" * 950)
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(TEXT) + TEXT
BODY = b'{"model": "auto", "messages": [{"role": "user", "content": "%s"}]}' % (b"x" * 930)
TIMED = b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n"

KINDS = {"plain": "/v1/chat/completions", "100 events": "/stream/v1/chat/completions"}


def request(path: str, more: bytes = b"") -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" % path.encode()
    return head + more + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


class Upstream(asyncio.Protocol):
    """Answers each request, which comes in few pieces, without looking at it closely."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if not end or len(body) < length or (b"\r\ntransfer-encoding:" in lower and not body.endswith(END)):
            return
        self._received = b""
        if b" /stream HTTP" in head:
            self._transport.write(STREAM_HEAD)
            self._transport.write(CHUNK)
            asyncio.get_running_loop().call_later(0.001, self._transport.write, CHUNK + END)
        elif b" /stream" in head:
            self._transport.write(STREAM_HEAD)
            self._say(100)
        else:
            self._transport.write(PLAIN)

    def _say(self, left: int) -> None:
        """Events one by one, each in a turn of its own, as tokens come."""
        if self._transport.is_closing():
            return
        self._transport.write(CHUNK if left else END)
        if left:
            asyncio.get_running_loop().call_soon(self._say, left - 1)


async def serve_upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def bare_aiohttp(upstream: str) -> ASGIApp:
    """The least that a proxy over aiohttp can be."""
    session: Any = None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal session
        if session is None:
            session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = [(name.decode(), value.decode()) for name, value in scope["headers"] if name != b"host"]
        url = upstream + scope["path"]
        async with session.request(scope["method"], url, headers=headers, data=body, allow_redirects=False) as answer:
            raw = [header for header in answer.raw_headers if header[0].lower() != b"transfer-encoding"]
            await send({"type": "http.response.start", "status": answer.status, "headers": raw})
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def starlette_httpx(upstream: str) -> ASGIApp:
    client = httpx.AsyncClient(base_url=upstream, limits=httpx.Limits(max_connections=None), timeout=None)

    async def forward(request: Request) -> StreamingResponse:
        headers = [header for header in request.headers.raw if header[0] != b"host"]
        asked = client.build_request(request.method, request.url.path, headers=headers, content=await request.body())
        answer = await client.send(asked, stream=True)
        kept = {name: value for name, value in answer.headers.items() if name != "transfer-encoding"}
        return StreamingResponse(
            answer.aiter_raw(), answer.status_code, headers=kept, background=BackgroundTask(answer.aclose)
        )

    return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])])


NGINX = """\
daemon off; worker_processes 1; error_log /dev/null; pid {folder}/pid;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  upstream u {{ server {upstream}; keepalive 256; }}
  server {{ listen 127.0.0.1:{port}; keepalive_requests 1000000; location / {{
    proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }}
}}
"""


def make_gateway() -> ASGIApp:
    """Return the gateway, as granian's worker makes it."""
    return create_gateway(os.environ["UPSTREAM"])


def run_granian(upstream: str, port: int) -> None:
    os.environ["UPSTREAM"] = upstream
    server = importlib.import_module("granian.server").Server
    quiet: Any = {"log_level": "error", "log_access": False}
    server("gateway:make_gateway", port=port, interface="asgi", factory=True, **quiet).serve()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(port: int, *command: str) -> Iterator[int]:
    """Run a command that listens on *port*, and yield its process id."""
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield process.pid
        finally:
            process.terminate()


def role(name: str, port: int, upstream: str = "") -> tuple[str, ...]:
    return (sys.executable, __file__, "--role", name, "--port", str(port), "--upstream", upstream)


def gateway(port: int, upstream: str, workers: int = 1) -> tuple[str, ...]:
    options = ("--log-level", "error", "--upstream", upstream, "--workers", str(workers), "--port", str(port))
    return (sys.executable, "-m", "asgi_session_pin", "serve", *options)


def nginx(port: int, upstream: str, folder: str) -> tuple[str, ...]:
    file = Path(folder) / "nginx.conf"
    file.write_text(NGINX.format(folder=folder, upstream=upstream.removeprefix("http://"), port=port))
    return ("nginx", "-c", str(file), "-p", folder)


def processor_seconds(pid: int) -> float:
    """Return what a process and those that it started took."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(processor_seconds(int(child)) for child in children)


class Client(asyncio.Protocol):
    """Asks again as soon as it is answered."""

    def __init__(self, asked: bytes, is_whole: Callable[[bytes], bool]) -> None:
        self._asked = asked
        self._is_whole = is_whole
        self._tail = b""
        self.answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._asked)

    def data_received(self, data: bytes) -> None:
        assert self._tail or data.startswith(b"HTTP/1.1 200 "), data[:200]
        self._tail = (self._tail + data)[-16:]
        if self._is_whole(self._tail):
            self._tail = b""
            self.answers += 1
            self.transport.write(self._asked)


async def rate(port: int, asked: bytes, kind: str, connections: int, seconds: float) -> float:
    """Return answers per second."""
    end = TEXT[-16:] if kind == "plain" else END
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: Client(asked, lambda tail: tail.endswith(end)), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.sleep(seconds / 4)
    before, began = sum(client.answers for client in clients), time.perf_counter()
    await asyncio.sleep(seconds)
    count = sum(client.answers for client in clients) - before
    took = time.perf_counter() - began
    for client in clients:
        client.transport.abort()
    return count / took


async def times(port: int, requests: int) -> list[float]:
    """Return milliseconds to the first byte of the body, for one request after the other on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    measured = []
    for _ in range(requests):
        started = time.perf_counter()
        writer.write(TIMED)
        await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"data: ")
        measured.append((time.perf_counter() - started) * 1e3)
        await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    return measured


def compare(upstream: str, arguments: argparse.Namespace) -> None:
    session = b"X-Session-Id: s\r\n"
    with contextlib.ExitStack() as stack:
        contenders: dict[str, tuple[int, int, bytes]] = {}
        for name in ("aiohttp", "starlette-httpx"):
            port = free_port()
            contenders[name] = (port, stack.enter_context(running(port, *role(name, port, upstream))), b"")
        port = free_port()
        pid = stack.enter_context(running(port, *gateway(port, upstream)))
        contenders["serve"], contenders["serve, hit"] = (port, pid, b""), (port, pid, session)
        if importlib.util.find_spec("granian"):
            port = free_port()
            pid = stack.enter_context(running(port, *role("granian", port, upstream)))
            contenders["granian"], contenders["granian, hit"] = (port, pid, b""), (port, pid, session)
        if shutil.which("nginx"):
            port, folder = free_port(), stack.enter_context(tempfile.TemporaryDirectory())
            contenders["nginx"] = (port, stack.enter_context(running(port, *nginx(port, upstream, folder))), b"")
        print(f"\n{'':<32}{'requests/s':>11}{'of aiohttp':>11}{'us each':>9}")
        for kind, path in KINDS.items():
            for connections in arguments.connections:
                shares: list[float] = []
                for name, (port, pid, more) in contenders.items():
                    began = processor_seconds(pid)
                    asked = request(path, more)
                    reached = asyncio.run(rate(port, asked, kind, connections, arguments.seconds))
                    cost = (processor_seconds(pid) - began) / (reached * arguments.seconds * 1.25)
                    shares.append(reached)
                    title = f"{kind}, {connections}: {name}"
                    print(f"{title:<32}{reached:11.0f}{reached / shares[0]:11.2f}{cost * 1e6:9.0f}", flush=True)


def show(name: str, port: int, requests: int) -> None:
    measured = asyncio.run(times(port, requests))
    print(f"{name:<32}{statistics.median(measured):11.1f}{statistics.quantiles(measured, n=20)[-1]:11.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--requests", type=int, default=200)
    for hidden in ("--role", "--upstream"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "upstream":
        return asyncio.run(serve_upstream(arguments.port))
    if arguments.role == "granian":
        return run_granian(arguments.upstream, arguments.port)
    if arguments.role:
        app = {"aiohttp": bare_aiohttp, "starlette-httpx": starlette_httpx}[arguments.role](arguments.upstream)
        quiet: Any = {"log_level": "error", "access_log": False, "lifespan": "off"}
        return uvicorn.run(app, port=arguments.port, http=ServerProtocol, **quiet)
    versions = ", ".join(f"{name} {version(name)}" for name in ("aiohttp", "uvicorn", "uvloop", "httptools", "httpx"))
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {versions}")
    port = free_port()
    upstream = f"http://127.0.0.1:{port}"
    with running(port, *role("upstream", port)):
        compare(upstream, arguments)
        print(f"\n{'ms to the first chunk':<32}{'median':>11}{'p95':>11}")
        show("directly", port, arguments.requests)
        for workers in (1, 2):
            worker_port = free_port()
            with running(worker_port, *gateway(worker_port, upstream, workers)):
                show(f"serve --workers {workers}", worker_port, arguments.requests)
    return None


if __name__ == "__main__":
    main()
