"""Many calls of Redis at once: they go together, and each gets what is its own."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import cast

import pytest
from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from asgi_session_pin import Lapsed, Pin
from asgi_session_pin.stores._redis_batches import Batches, Command
from asgi_session_pin.stores.redis import RedisStore
from delaying_proxy import delaying_proxy
from redis_servers import RedisServer, redis_server

PINS = {number.to_bytes(16, "big"): Pin(f"model-{number}", float(number)) for number in range(100)}
KEYS = list(PINS)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[RedisStore]:
    async with aclosing(RedisStore(server.url)) as store:
        await asyncio.gather(*(store.add(key, pin) for key, pin in PINS.items()))
        yield store


async def read(store: RedisStore) -> dict[bytes, Pin | Lapsed[Pin] | None]:
    return dict(zip(KEYS, await asyncio.gather(*map(store.get, KEYS)), strict=True))


async def test_a_hundred_calls_at_once_need_few_connections(server: RedisServer, store: RedisStore) -> None:
    for _ in range(10):
        assert await read(store) == PINS
    connections = int(server.call("INFO", "clients")["connected_clients"]) - 1  # the test's own
    assert connections <= 8


async def test_a_call_that_fails_fails_alone(server: RedisServer, store: RedisStore) -> None:
    server.call("SET", f"session-pin:1:{{{KEYS[70].hex()}}}", "no pin")
    server.call("ACL", "SETUSER", "default", "resetkeys", "~session-pin:1:{0*9}", "~session-pin:1:{0*6}")
    calls = [store.get(key) for key in KEYS]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for key, answer in zip(KEYS, answers, strict=True):
        if key == KEYS[70]:
            assert answer is None
        elif key.hex()[-1] in "69":
            assert answer == PINS[key]
        else:
            assert isinstance(answer, exceptions.NoPermissionError)


async def test_calls_that_leave_do_not_take_the_others_along(server: RedisServer, store: RedisStore) -> None:
    server.freeze()
    calls = [asyncio.create_task(store.get(key)) for key in KEYS]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    server.thaw()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[1::2] == list(PINS.values())[1::2]
    assert {type(answer) for answer in answers[::2]} == {asyncio.CancelledError}


async def test_what_nobody_waits_for_any_more_is_broken_off(server: RedisServer, store: RedisStore) -> None:
    before = asyncio.all_tasks()
    for pauses in range(10):  # before the batch is sent, and after
        server.freeze()
        calls = [asyncio.create_task(store.get(key)) for key in KEYS]
        for _ in range(pauses):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        async with asyncio.timeout(5):
            while asyncio.all_tasks() != before:  # noqa: ASYNC110
                await asyncio.sleep(0)
        server.thaw()
        assert await read(store) == PINS


async def test_where_the_server_is_gone_every_call_is_told(server: RedisServer, store: RedisStore) -> None:
    server.kill()
    answers = await asyncio.gather(*map(store.get, KEYS), return_exceptions=True)
    assert {type(answer) for answer in answers} == {exceptions.ConnectionError}
    assert {str(answer) for answer in answers} == {server.url}
    server.start()
    assert set((await read(store)).values()) == {None}


async def test_a_batch_that_reaches_a_replica_is_sent_to_the_new_master(server: RedisServer, tmp_path: Path) -> None:
    with redis_server(tmp_path) as successor, delaying_proxy(server.port) as proxy:
        async with aclosing(RedisStore(f"redis://127.0.0.1:{proxy.port}/0")) as store:
            assert set((await read(store)).values()) == {None}
            server.call("REPLICAOF", "127.0.0.1", successor.port)
            proxy.target_port = successor.port  # as a name or a load balancer does
            assert await asyncio.gather(*(store.add(key, pin) for key, pin in PINS.items())) == list(PINS.values())
            assert successor.call("DBSIZE") == len(PINS)


async def test_a_single_connection_will_do(server: RedisServer, store: RedisStore) -> None:
    async with aclosing(RedisStore(f"{server.url}?max_connections=1")) as narrow:
        for _ in range(3):
            assert await read(narrow) == PINS
            assert await narrow.get(KEYS[0]) == PINS[KEYS[0]]


async def test_what_is_left_before_there_is_a_connection_for_it_is_never_sent(
    server: RedisServer, store: RedisStore
) -> None:
    async with aclosing(RedisStore(f"{server.url}?max_connections=1")) as narrow:
        await narrow.get(KEYS[0])
        server.freeze()
        calls = []
        for key in KEYS[:3]:  # the first one has the connection, the others wait for it
            calls.append(asyncio.create_task(narrow.get(key)))
            await asyncio.sleep(0)
        for call in reversed(calls):
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        server.thaw()
        before = server.calls_of("getex")
        assert await narrow.get(KEYS[0]) == PINS[KEYS[0]]
        assert server.calls_of("getex") - before <= 2  # one of them was sent before


class Connection:
    """One that answers with what it is sent, when it is told to."""

    is_connected = True

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.commands: list[Command] = []

    def pack_commands(self, commands: Sequence[Command]) -> bytes:
        self.commands += commands
        return b""

    async def send_packed_command(self, command: bytes) -> None:
        await self.may_answer.wait()

    async def read_response(self) -> object:
        return self.commands.pop(0)[0]


async def test_calls_that_all_leave_before_their_batch_has_begun_leave_its_connection_to_others() -> None:
    connection = Connection()
    batches = Batches(lambda: cast(AbstractConnection, connection), 1)
    first = asyncio.create_task(batches.execute("first"))
    second = asyncio.create_task(batches.execute("second"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    connection.may_answer.set()  # now there is a connection for the second one,
    second.cancel()  # which leaves in the same round of the loop
    assert await first == "first"
    with pytest.raises(asyncio.CancelledError):
        await second
    async with asyncio.timeout(5):
        assert await batches.execute("third") == "third"
