"""The kinds of stores that the contract is run over."""

from pathlib import Path
from uuid import uuid4

from redis.asyncio import Redis, RedisCluster

from asgi_driver import Clock
from asgi_session_pin import MemoryStore, PinStore
from asgi_session_pin.stores.redis import RedisStore
from asgi_session_pin.stores.sqlite import SQLiteStore
from asgi_session_pin.testing import StoreCase
from directory_store import DirectoryStore

TTL = 10.0


def memory_case() -> StoreCase:
    clock = Clock()

    def open_store(sliding: bool = True) -> PinStore:
        return MemoryStore(ttl_seconds=TTL, sliding=sliding, timer=clock)

    return StoreCase(open_store, clock.wait, TTL)


def directory_case(path: Path) -> StoreCase:
    clock = Clock()

    def open_store(sliding: bool = True) -> PinStore:
        return DirectoryStore(path / "pins", ttl_seconds=TTL, sliding=sliding, clock=clock)

    return StoreCase(open_store, clock.wait, TTL)


def redis_case(client: Redis | RedisCluster, client_or_url: Redis | RedisCluster | str) -> StoreCase:
    prefix = f"{uuid4()}:"

    def open_store(sliding: bool = True) -> PinStore:
        return RedisStore(client_or_url, ttl_seconds=TTL, sliding=sliding, prefix=prefix)

    async def wait(seconds: float) -> None:
        async for name in client.scan_iter(f"{prefix}*"):  # what has less than that left is deleted
            await client.pexpire(name, await client.pttl(name) - round(seconds * 1000))

    return StoreCase(open_store, wait, TTL)


def sqlite_case(path: Path) -> StoreCase:
    clock = Clock()
    stores: list[SQLiteStore] = []

    def open_store(sliding: bool = True) -> PinStore:
        stores.append(SQLiteStore(path / "pins.db", ttl_seconds=TTL, sliding=sliding, clock=clock))
        return stores[-1]

    async def wait(seconds: float) -> None:
        for store in stores:
            await store.release(b"", b"")  # nothing, but uses that are not written yet are written before
        await clock.wait(seconds)

    return StoreCase(open_store, wait, TTL)
