"""Requests per second of a uvicorn server on loopback, with and without the middleware.

    python benchmarks/throughput.py [--rounds 7] [--seconds 2]

Each candidate is a server process of its own, pinned to one core; the load comes from this process on another one, over
a few keep-alive connections. Candidates take turns, and the table shows medians: requests per second, their share of
the bare app's, and CPU time of the server per request. With uvloop and httptools installed uvicorn takes them.
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from overhead import CHAT, CREDENTIAL, Naive, Noop, answer_json, fresh_ids, request_body
from starlette.types import ASGIApp

from asgi_session_pin import SessionPinMiddleware

CANDIDATES = {"bare": lambda app: app, "no-op": Noop, "ours": SessionPinMiddleware, "naive": Naive}
CONNECTIONS = 8
SESSIONS = 50
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def build(name: str) -> ASGIApp:
    app: ASGIApp = CANDIDATES[name](answer_json)
    return app


def serve(name: str, port: int) -> None:
    import uvicorn

    os.sched_setaffinity(0, {0})
    uvicorn.run(build(name), port=port, log_level="error", access_log=False, lifespan="off")


@contextlib.contextmanager
def server(name: str) -> Iterator[tuple[int, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with subprocess.Popen([sys.executable, __file__, "--serve", name, str(port)]) as process:
        try:
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                time.sleep(0.05)
            yield process.pid, port
        finally:
            process.terminate()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def raw_request(body: bytes, session_id: bytes | None) -> bytes:
    lines = [
        b"POST %s HTTP/1.1" % CHAT.encode(),
        b"host: localhost",
        b"accept: application/json",
        b"accept-encoding: gzip, deflate",
        b"content-type: application/json",
        b"user-agent: bench",
        b": ".join(CREDENTIAL),
        b"content-length: %d" % len(body),
        *((b"x-stainless-%s: v" % name) for name in (b"lang", b"os", b"arch", b"runtime", b"async")),
    ]
    if session_id is not None:
        lines.append(b"x-session-id: " + session_id)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def load(port: int, requests: list[bytes], seconds: float) -> int:
    """Send *requests* in turn over every connection, one after the other's answer, and return how many were served."""
    deadline = time.perf_counter() + seconds

    async def one_connection(offset: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        served = 0
        while time.perf_counter() < deadline:
            writer.write(requests[(offset + served * CONNECTIONS) % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            served += 1
        writer.close()
        return served

    async def stay_awake() -> None:
        # A client that sleeps has to be woken by the server, which would pay for it the more the slower it is itself.
        while time.perf_counter() < deadline:  # noqa: ASYNC110 - waiting is what it prevents
            await asyncio.sleep(0)

    *counts, _ = await asyncio.gather(*map(one_connection, range(CONNECTIONS)), stay_awake())
    return sum(count for count in counts if count is not None)


def measure(kind: str, rounds: int, seconds: float) -> None:
    body = request_body(1_000)
    fresh = fresh_ids()
    warm = [next(fresh) for _ in range(SESSIONS)]
    rates: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(server(name)) for name in CANDIDATES}
        for round_number in range(-1, rounds):
            for name, (pid, port) in servers.items():
                ids: list[bytes | None] = [None]
                if kind != "no header":
                    ids = [*warm] if kind == "hit" else [next(fresh) for _ in range(100_000)]
                requests = [raw_request(body, session_id) for session_id in ids]
                if kind == "hit" and round_number < 0:
                    asyncio.run(load(port, requests, 1))
                cpu, started = cpu_seconds(pid), time.perf_counter()
                served = asyncio.run(load(port, requests, seconds))
                if round_number >= 0:
                    rates.setdefault(name, []).append(served / (time.perf_counter() - started))
                    costs.setdefault(name, []).append((cpu_seconds(pid) - cpu) / served * 1e6)
    columns = []
    for name in CANDIDATES:
        rate, cost = statistics.median(rates[name]), statistics.median(costs[name])
        columns.append(f"{rate:8.0f} {rate / statistics.median(rates['bare']):4.0%} {cost:5.0f} µs")
    print(f"{kind:<11}" + " |".join(columns), flush=True)


def installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "PORT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve[0], int(arguments.serve[1]))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    packages = ", ".join(map(installed, ("uvicorn", "uvloop", "httptools")))
    print(f"Python {platform.python_version()}, {packages}; {CONNECTIONS} connections, 1 KB bodies\n")
    print(f"{'req/s':<11}" + " |".join(f"{name:>22}" for name in CANDIDATES))
    for kind in ("no header", "hit", "miss"):
        measure(kind, arguments.rounds, arguments.seconds)
    return None


if __name__ == "__main__":
    main()
