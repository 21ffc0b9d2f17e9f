"""The kinds of stores that the contract is run over."""

from pathlib import Path
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis, RedisCluster

from asgi_driver import Clock
from asgi_session_pin import MemoryStore, PinStore
from asgi_session_pin.stores.redis import RedisStore
from asgi_session_pin.stores.sqlite import SQLiteStore
from asgi_session_pin.testing import StoreCase
from directory_store import DirectoryStore

TTL, TOOL_LOOP = 10.0, 40.0
TIMES: dict[str, Any] = {"ttl_seconds": TTL, "tool_loop_seconds": TOOL_LOOP}


def memory_case() -> StoreCase:
    clock = Clock()

    def open_store(sliding: bool = True) -> PinStore:
        return MemoryStore(sliding=sliding, timer=clock, **TIMES)

    return StoreCase(open_store, clock.wait, TTL, TOOL_LOOP)


def directory_case(path: Path) -> StoreCase:
    clock = Clock()

    def open_store(sliding: bool = True) -> PinStore:
        return DirectoryStore(path / "pins", sliding=sliding, clock=clock, **TIMES)

    return StoreCase(open_store, clock.wait, TTL, TOOL_LOOP)


def redis_case(client: Redis | RedisCluster, client_or_url: Redis | RedisCluster | str) -> StoreCase:
    prefix, clock = f"{uuid4()}:", Clock()

    def open_store(sliding: bool = True) -> PinStore:
        return RedisStore(client_or_url, sliding=sliding, prefix=prefix, timer=clock, **TIMES)

    async def wait(seconds: float) -> None:
        await clock.wait(seconds)
        async for name in client.scan_iter(f"{prefix}*"):  # what has less than that left is deleted
            left = await client.pttl(name)
            if left >= 0:  # a note has no end
                await client.pexpire(name, left - round(seconds * 1000))

    return StoreCase(open_store, wait, TTL, TOOL_LOOP)


def sqlite_case(path: Path) -> StoreCase:
    clock = Clock()
    stores: list[SQLiteStore] = []

    def open_store(sliding: bool = True) -> PinStore:
        stores.append(SQLiteStore(path / "pins.db", sliding=sliding, clock=clock, **TIMES))
        return stores[-1]

    async def wait(seconds: float) -> None:
        for store in stores:
            await store.release(b"", b"")  # nothing, but uses that are not written yet are written before
        await clock.wait(seconds)

    return StoreCase(open_store, wait, TTL, TOOL_LOOP)
