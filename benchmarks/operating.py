"""What operators' listings and figures cost: a page of pins, and metrics on the way of a hit.

    python benchmarks/operating.py [--pins 1000000] [--rounds 40]

A page of 100 pins is listed over memory, SQLite and a Redis of its own with so many pins, from places all over the
table: how long it takes, and for how long the event loop is held at a time by it, in processor time. Before that a hit
with metrics, and with an operators' app that is not used, against one without, in turns.
"""

import argparse
import asyncio
import gc
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Coroutine, Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import msgspec
import redis
from overhead import CHAT, FRESH, SESSIONS, answer_json, request_body, seconds_per_request
from starlette.types import ASGIApp, Message

from asgi_session_pin import Config, MemoryStore, Pin, PinStore, SessionPinMiddleware
from asgi_session_pin.config import Admin
from asgi_session_pin.operate.admin import create_admin
from asgi_session_pin.stores.redis import RedisStore
from asgi_session_pin.stores.sqlite import SQLiteStore
from redis_servers import redis_server

TOKEN = "a-token-of-the-operator"
TTL = 86_400.0
LOADING = 10_000  # pins that are written at a time


class Timed:
    """Runs a coroutine, and takes note of the longest of its steps: for so long it holds the event loop."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.longest = 0.0
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        result: Any = None
        while True:
            started = time.thread_time()
            try:
                waited_for = self._coroutine.send(result)
            except StopIteration as end:
                return end.value
            finally:
                self.longest = max(self.longest, time.thread_time() - started)
            result = yield waited_for


async def ask(admin: ASGIApp, path: str, query: str) -> tuple[Any, float, float]:
    """Return the JSON of an answer, how long it took, and the longest hold of the event loop."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "http_version": "1.1"}
    headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
    request: Any = admin({**scope, "headers": headers}, receive, send)
    started = time.perf_counter()
    timed = Timed(request)
    await timed
    took = time.perf_counter() - started
    assert sent[0]["status"] == 200, sent
    return msgspec.json.decode(sent[1]["body"]), took, timed.longest


async def show_listing(kind: str, store: PinStore, rounds: int) -> None:
    admin = create_admin(SessionPinMiddleware(answer_json, config=Config(admin=Admin(token=TOKEN)), store=store))
    await ask(admin, "/api/pins", "limit=100")
    gc.collect()
    gc.freeze()  # a collection of a million pins is not the listing's
    took, held, place, longest = [], [], "", 0.0
    for _ in range(rounds):
        page, seconds, longest = await ask(admin, "/api/pins", f"limit=100&after={place}")
        place = page["next"] or ""
        took.append(seconds)
        held.append(longest)
    shown = f"{statistics.median(took) * 1e3:9.2f}{max(took) * 1e3:9.2f}"
    print(f"{kind:<8}{shown}{statistics.median(held) * 1e3:11.2f}{max(held) * 1e3:9.2f}", flush=True)
    await store.aclose()


def pins(number: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and encoded pins."""
    data = [Pin(f"model-{each}", time.time()).encode() for each in range(20)]
    for each in range(number):
        yield (each * 0x9E3779B97F4A7C15 % 2**128).to_bytes(16, "big"), data[each % 20]


async def in_memory(number: int) -> PinStore:
    store = MemoryStore(max_entries=number, ttl_seconds=TTL)
    for key, data in pins(number):
        await store.add(key, Pin.decode(data))
    return store


async def in_sqlite(path: Path, number: int) -> PinStore:
    store = SQLiteStore(path, max_entries=number, ttl_seconds=TTL)
    await store.count()
    with closing(sqlite3.connect(path)) as connection, connection:
        now = time.time()
        rows = ((key, data, now, now + TTL) for key, data in pins(number))
        connection.executemany("INSERT INTO pins VALUES (?, ?, ?, ?)", rows)
    return store


async def in_redis(url: str, number: int) -> PinStore:
    with redis.Redis.from_url(url) as client:
        pipeline = client.pipeline(transaction=False)
        for place, (key, data) in enumerate(pins(number)):
            pipeline.set(b"session-pin:1:{%b}" % key.hex().encode(), data, px=int(TTL * 1000) + 3_600_000)
            if place % LOADING == LOADING - 1 or place == number - 1:
                pipeline.execute()
    return RedisStore(url, ttl_seconds=TTL)


async def show_hit(rounds: int) -> None:
    """Print what a hit takes more with each, in turns with one that has none of it."""
    admins = {"nothing": None, "an unused admin": Admin(token=TOKEN, metrics=False), "metrics": Admin(token=TOKEN)}
    apps: dict[str, SessionPinMiddleware] = {}
    ids = [next(FRESH) for _ in range(SESSIONS)]
    body = request_body(1_000)
    for name, admin in admins.items():
        apps[name] = app = SessionPinMiddleware(answer_json, config=Config(admin=admin or Admin()))
        if admin is not None:
            create_admin(app)
        await seconds_per_request(app, 2000, body, CHAT, ids)
    times: dict[str, list[float]] = {name: [] for name in apps}
    for _ in range(rounds):
        for name, app in apps.items():
            times[name].append(await seconds_per_request(app, 1000, body, CHAT, ids))
            await asyncio.sleep(0)
    bare = statistics.median(times["nothing"])
    print(f"\na hit, 1 KB: {bare * 1e6:.2f} µs in process")
    for name in list(apps)[1:]:
        added = statistics.median(one - other for one, other in zip(times[name], times["nothing"], strict=True))
        print(f"  with {name:<16}{added * 1e6:+.2f} µs, {added / bare:+.1%}")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pins", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    await show_hit(5 * arguments.rounds)
    print(f"\na page of 100 of {arguments.pins:,} pins, in ms")
    print(f"{'':<8}{'median':>9}{'worst':>9}{'loop held':>11}{'worst':>9}")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        await show_listing("SQLite", await in_sqlite(Path(name) / "pins.db", arguments.pins), arguments.rounds)
        url = stack.enter_context(redis_server(Path(name))).url
        await show_listing("Redis", await in_redis(url, arguments.pins), arguments.rounds)
    await show_listing("memory", await in_memory(arguments.pins), arguments.rounds)


if __name__ == "__main__":
    asyncio.run(main())
