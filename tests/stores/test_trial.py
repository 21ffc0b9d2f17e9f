"""Whether a store can be used now."""

import asyncio

from asgi_session_pin import MemoryStore, Pin
from asgi_session_pin.stores import try_store
from asgi_session_pin.stores.redis import RedisStore
from redis_servers import RedisServer


async def test_a_store_that_works_has_nothing_left_of_it(shared_redis: RedisServer) -> None:
    memory = MemoryStore()
    assert await try_store(memory) is None
    assert len(memory) == 0
    store = RedisStore(shared_redis.url, prefix="trial:")
    assert await try_store(store) is None
    assert shared_redis.call("KEYS", "trial:*") == []
    await store.aclose()


async def test_the_method_that_fails_is_named_and_exceptions_are_by_their_names() -> None:
    class Full(MemoryStore):
        async def add(self, key: bytes, pin: Pin) -> Pin:
            try:
                raise OSError("hunter2")
            except OSError as error:
                raise ValueError("hunter2") from error

    assert await try_store(Full()) == "add: ValueError from OSError"


async def test_a_store_that_keeps_nothing_is_told() -> None:
    class Forgetful(MemoryStore):
        async def add(self, key: bytes, pin: Pin) -> Pin:
            return pin

    assert await try_store(Forgetful()) == "discard: nothing is kept"


async def test_a_store_that_hangs_is_waited_for_no_longer_than_so_many_seconds() -> None:
    class Hanging(MemoryStore):
        async def discard(self, key: bytes, pin: Pin) -> bool:
            await asyncio.Event().wait()
            return True

    assert await try_store(Hanging(), seconds=0.01) == "discard: TimeoutError from CancelledError"


async def test_a_missing_permission_is_found_before_a_request_needs_it(shared_redis: RedisServer) -> None:
    rules = ["on", ">hunter2", "~session-pin:*", "+getex", "+get", "+set", "+del", "+pttl"]
    shared_redis.call("ACL", "SETUSER", "bob", *rules)
    store = RedisStore(f"redis://bob:hunter2@127.0.0.1:{shared_redis.port}")
    assert await try_store(store) == "get: NoPermissionError"
    shared_redis.call("ACL", "SETUSER", "bob", "+eval", "+evalsha")
    assert await try_store(store) is None
    await store.aclose()
