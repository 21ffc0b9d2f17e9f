"""The Redis store when something fails: connections, servers, limits, callers that give up."""

import asyncio
import gc
import multiprocessing
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions
from redis.asyncio import Sentinel

from asgi_session_pin import Lapsed, Pin
from asgi_session_pin.stores.redis import RedisStore
from delaying_proxy import delaying_proxy
from redis_servers import LEAVES_CONNECTIONS, RedisServer, redis_server
from servers import free_port

KEYS = [number.to_bytes(16, "big") for number in range(500)]
KEY = KEYS[0]
A = Pin("model-a", 1.0)
B = Pin("model-b", 2.0)

pytestmark = LEAVES_CONNECTIONS


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[RedisStore]:
    async with aclosing(RedisStore(server.url)) as store:
        yield store


async def fill(store: RedisStore) -> dict[bytes, Pin]:
    """Give each key a pin of its own."""
    pins = {key: Pin(f"model-{number}", float(number)) for number, key in enumerate(KEYS)}
    await asyncio.gather(*(store.add(key, pin) for key, pin in pins.items()))
    return pins


async def read(store: RedisStore) -> dict[bytes, Pin | Lapsed[Pin] | None]:
    """Ask for all keys at once."""
    return dict(zip(KEYS, await asyncio.gather(*map(store.get, KEYS)), strict=True))


async def test_five_hundred_calls_at_once_share_a_bounded_number_of_connections(
    server: RedisServer, store: RedisStore
) -> None:
    assert await fill(store) == await read(store)
    assert int(server.call("INFO", "stats")["total_connections_received"]) < 60  # the test's own among them
    async with aclosing(RedisStore(f"{server.url}?max_connections=1")) as narrow:
        assert len(set((await read(narrow)).values())) == len(KEYS)


async def test_a_restarted_server_is_used_again(server: RedisServer, store: RedisStore) -> None:
    await fill(store)
    server.kill()
    for call in (store.get(KEY), store.add(KEY, A), store.claim(KEY, b"token", 1)):
        with pytest.raises(exceptions.ConnectionError):
            await call
    server.start()
    assert set((await read(store)).values()) == {None}
    assert await store.add(KEY, A) == A
    assert await store.get(KEY) == A


async def test_connections_that_were_killed_are_replaced_silently(server: RedisServer, store: RedisStore) -> None:
    pins = await fill(store)
    server.call("CLIENT", "KILL", "TYPE", "normal")
    assert await read(store) == pins
    server.call("CLIENT", "KILL", "TYPE", "normal")
    assert await store.discard(KEY, pins[KEY]) is True


async def test_connections_that_the_server_closes_when_idle_are_replaced_silently(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--timeout", "1") as server:
        async with aclosing(RedisStore(server.url)) as store:
            pins = await fill(store)
            await asyncio.to_thread(server.wait_for, "'connected_clients': 1,", "INFO", "clients")
            assert await read(store) == pins


async def test_a_connection_that_dies_while_it_is_used_costs_no_call(server: RedisServer) -> None:
    with delaying_proxy(server.port) as proxy:
        async with aclosing(RedisStore(f"redis://127.0.0.1:{proxy.port}")) as store:
            await store.add(KEY, A)
            assert await store.get(KEY) == A
            server.call("CONFIG", "RESETSTAT")
            proxy.seconds = 3600
            call = asyncio.create_task(store.get(KEY))
            await asyncio.to_thread(server.wait_for, "cmdstat_getex", "INFO", "commandstats")
            proxy.seconds = 0
            proxy.cut()
            assert await call == A


async def test_calls_that_were_cancelled_leave_no_answers_to_others(server: RedisServer, store: RedisStore) -> None:
    pins = await fill(store)
    for _ in range(3):
        server.freeze()
        calls = [asyncio.wait_for(store.get(key), 0.05) for key in KEYS[:50]]
        assert all(isinstance(answer, TimeoutError) for answer in await asyncio.gather(*calls, return_exceptions=True))
        server.thaw()
        assert await read(store) == pins


async def test_calls_that_are_cancelled_at_any_moment_leave_all_connections_in_use(
    server: RedisServer, store: RedisStore
) -> None:
    pins = await fill(store)
    for moment in range(60):  # while they connect, and later
        async with aclosing(RedisStore(f"{server.url}?max_connections=4")) as narrow:
            calls = [asyncio.create_task(narrow.get(key)) for key in KEYS[:20]]
            for _ in range(moment):
                await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert answers[1::2] == [pins[key] for key in KEYS[1:20:2]]
            assert await asyncio.gather(*map(narrow.get, KEYS[:20])) == [pins[key] for key in KEYS[:20]]


async def test_the_url_can_bound_each_answer(server: RedisServer) -> None:
    async with aclosing(RedisStore(f"{server.url}?socket_timeout=0.02")) as store:
        await store.add(KEY, A)
        server.freeze()
        with pytest.raises(exceptions.TimeoutError):
            await store.get(KEY)
        server.thaw()
        assert await store.get(KEY) == A


async def test_a_full_server_takes_no_pins_but_gives_them(server: RedisServer, store: RedisStore) -> None:
    await store.add(KEY, A)
    server.call("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(exceptions.OutOfMemoryError):
        await store.add(KEYS[1], B)
    assert await store.get(KEY) == A
    assert await store.discard(KEY, A) is True


async def test_a_replica_says_that_it_is_one(server: RedisServer, store: RedisStore) -> None:
    await store.add(KEY, A)
    server.call("REPLICAOF", "127.0.0.1", free_port())
    for call in (store.get(KEY), store.add(KEYS[1], B), store.discard(KEY, A)):
        with pytest.raises(exceptions.ReadOnlyError):
            await call
    server.call("REPLICAOF", "NO", "ONE")
    assert await store.get(KEY) == A


async def test_a_connection_to_a_former_master_is_given_up(server: RedisServer, tmp_path: Path) -> None:
    with redis_server(tmp_path) as successor, delaying_proxy(server.port) as proxy:
        async with aclosing(RedisStore(f"redis://127.0.0.1:{proxy.port}")) as store:
            await store.add(KEY, A)
            server.call("REPLICAOF", "127.0.0.1", successor.port)
            proxy.target_port = successor.port  # as a name or a load balancer does
            assert await store.add(KEY, B) == B
            assert successor.call("DBSIZE") == 1


async def test_sentinel_leads_to_the_new_master(server: RedisServer, tmp_path: Path) -> None:
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(f"sentinel monitor pins 127.0.0.1 {server.port} 1\n")
    with redis_server(tmp_path, "--replicaof", "127.0.0.1", str(server.port)) as replica:
        replica.wait_for("'master_link_status': 'up'", "INFO", "replication")
        with redis_server(tmp_path, str(configuration), "--sentinel") as sentinel:
            sentinel.wait_for("'master-link-status', 'ok'", "SENTINEL", "REPLICAS", "pins")
            manager: Any = Sentinel([("127.0.0.1", sentinel.port)])  # type: ignore[no-untyped-call]
            async with manager.master_for("pins") as client:
                store = RedisStore(client)
                assert await store.add(KEY, A) == A
                replica.wait_for("1", "DBSIZE")
                sentinel.call("SENTINEL", "FAILOVER", "pins")
                sentinel.wait_for(f"'port', '{replica.port}'", "SENTINEL", "MASTER", "pins")
                server.kill()
                with suppress(exceptions.ConnectionError):  # redis-py asks Sentinel again for the next call
                    await store.get(KEY)
                assert await store.add(KEYS[1], B) == B
                assert await store.get(KEY) == A
            for known in manager.sentinels:
                await known.aclose()


async def test_a_wrong_password_is_raised_and_not_shown(tmp_path: Path) -> None:
    with redis_server(tmp_path, password="hunter2") as server:
        async with aclosing(RedisStore(server.url)) as store:
            assert await store.add(KEY, A) == A
        for credentials in ("", ":hunter3@", "ann:hunter3@"):
            async with aclosing(RedisStore(f"redis://{credentials}127.0.0.1:{server.port}")) as store:
                with pytest.raises(exceptions.AuthenticationError) as caught:
                    await store.get(KEY)
                assert "hunter" not in str(caught.value)


async def test_a_missing_permission_is_raised(server: RedisServer) -> None:
    server.call("ACL", "SETUSER", "ann", "on", ">hunter2", "~other:*", "+get")
    async with aclosing(RedisStore(f"redis://ann:hunter2@127.0.0.1:{server.port}")) as store:
        for call in (store.get(KEY), store.add(KEY, A)):
            with pytest.raises(exceptions.NoPermissionError):
                await call


def test_it_serves_one_event_loop_after_another_closed_or_not(server: RedisServer) -> None:
    store = RedisStore(server.url)

    async def use() -> None:
        assert len(set((await read(store)).values())) == len(KEYS)

    async def use_and_close() -> None:
        async with aclosing(store):
            await use()

    asyncio.run(fill(store))
    asyncio.run(use())
    asyncio.run(store.aclose())  # there is nothing to close in this one
    asyncio.run(use_and_close())
    asyncio.run(use_and_close())
    gc.collect()
    server.wait_for("'connected_clients': 1,", "INFO", "clients")


def add_from_another_process(url: str, number: int) -> bytes:
    async def add() -> bytes:
        async with aclosing(RedisStore(url)) as store:
            return (await store.add(KEY, Pin(f"model-{number}", 1.0))).encode()

    return asyncio.run(add())


def test_processes_agree_on_the_first_pin(server: RedisServer) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        pins = set(pool.map(add_from_another_process, [server.url] * 10, range(10)))
    assert len(pins) == 1
