"""A shared store on its bad days: slow, out, lost what it knew, full."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from asgi_driver import Clock, until
from asgi_session_pin import MemoryStore, Pin, PinStore
from asgi_session_pin.stores import ResilientStore
from asgi_session_pin.stores.resilient import FIRST_REST_SECONDS, LONGEST_REST_SECONDS, StoreUnavailable
from asgi_session_pin.testing import CHECKS, CLAIM_CHECKS, SHARED_CHECKS, Check, StoreCase
from cases import directory_case

A, B, C = Pin("a", 1.0), Pin("b", 2.0), Pin("c", 3.0)
K, L = b"k" * 16, b"l" * 16
TIMEOUT = 0.02


class Server:
    """A shared store that can be out, hang, or refuse to be written to."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.asked = 0
        self.is_out = False
        self.hangs = False
        self.is_full = False
        self.claims: dict[bytes, bytes] = {}

    async def get(self, key: bytes) -> Pin | None:
        await self._answer()
        return await self.store.get(key)

    async def add(self, key: bytes, pin: Pin) -> Pin:
        await self._answer()
        if self.is_full:
            raise OSError("full")
        return await self.store.add(key, pin)

    async def discard(self, key: bytes, pin: Pin) -> bool:
        await self._answer()
        return await self.store.discard(key, pin)

    async def claim(self, key: bytes, seconds: float) -> bytes | None:
        await self._answer()
        return None if key in self.claims else self.claims.setdefault(key, b"token")

    async def release(self, key: bytes, token: bytes) -> None:
        await self._answer()
        del self.claims[key]

    async def aclose(self) -> None:
        await self.store.aclose()

    async def _answer(self) -> None:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.is_out:
            raise OSError("down")


def replica(server: PinStore, clock: Clock, timeout: float = TIMEOUT) -> ResilientStore:
    return ResilientStore(server, MemoryStore(timer=clock), timeout_seconds=timeout, timer=clock)


async def fails(asking: Awaitable[object]) -> None:
    with pytest.raises(StoreUnavailable):
        await asking


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("check", CHECKS + SHARED_CHECKS + CLAIM_CHECKS, ids=lambda check: check.__name__)
async def test_a_resilient_store_keeps_the_contract_of_its_store(check: Check, tmp_path: Path) -> None:
    case = directory_case(tmp_path)

    def open_resilient(sliding: bool = True) -> PinStore:
        return ResilientStore(case.open(sliding), MemoryStore(), timeout_seconds=60)

    await check(StoreCase(open_resilient, case.wait, case.ttl_seconds))


CALLS: dict[str, Callable[[ResilientStore], Awaitable[object]]] = {
    "get": lambda store: store.get(K),
    "add": lambda store: store.add(K, A),
    "discard": lambda store: store.discard(K, A),
    "claim": lambda store: store.claim(K, 5),
    "release": lambda store: store.release(K, b"token"),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_that_hangs_is_given_up_and_the_store_is_not_asked_again(
    server: Server, clock: Clock, call: str
) -> None:
    store = replica(server, clock)
    server.hangs = True
    await fails(CALLS[call](store))
    for other in CALLS.values():
        await fails(other(store))
    assert server.asked == 1


async def test_each_call_has_the_seconds_that_it_is_given(server: Server, clock: Clock) -> None:
    store = replica(server, clock, timeout=3600)
    server.hangs = True
    await fails(store.get(K, 0.01))
    for asking in (store.discard(K, A, 0.01), store.claim(K, 5, 0.01)):
        clock.now += LONGEST_REST_SECONDS
        await fails(asking)
    assert server.asked == 3


async def test_calls_that_fail_together_are_one_failure(server: Server, clock: Clock) -> None:
    store = replica(server, clock)
    server.hangs = True
    results = await asyncio.gather(*(store.get(K) for _ in range(50)), return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnavailable}
    server.hangs = False
    await clock.wait(FIRST_REST_SECONDS)
    assert await store.get(K) is None


async def test_a_store_that_is_out_is_asked_again_by_one_call_and_less_and_less_often(
    server: Server, clock: Clock
) -> None:
    store = replica(server, clock)
    server.is_out = True
    await fails(store.get(K))
    pauses = []
    for _ in range(4):
        asked, started = server.asked, clock.now
        while server.asked == asked:
            await clock.wait(0.5)
            await asyncio.gather(*(fails(store.get(K)) for _ in range(10)))
        assert server.asked == asked + 1, "one of ten"
        pauses.append(clock.now - started)
    assert pauses == [FIRST_REST_SECONDS, 2 * FIRST_REST_SECONDS, 4 * FIRST_REST_SECONDS, LONGEST_REST_SECONDS]
    server.is_out = False
    await clock.wait(LONGEST_REST_SECONDS)
    assert await store.get(K) is None
    assert await store.get(K) is None
    server.is_out = True
    await fails(store.get(K))
    server.is_out = False
    await clock.wait(FIRST_REST_SECONDS)
    assert await store.get(K) is None


async def test_a_call_that_is_cancelled_says_nothing_and_leaves_room_for_the_next(server: Server, clock: Clock) -> None:
    store = replica(server, clock, timeout=3600)
    server.is_out = True
    await fails(store.get(K))
    server.is_out, server.hangs = False, True
    await clock.wait(FIRST_REST_SECONDS)
    trial = asyncio.create_task(store.get(K))
    await until(lambda: server.asked == 2)
    trial.cancel()
    await asyncio.wait([trial])
    server.hangs = False
    assert await store.get(K) is None


async def test_a_write_that_is_refused_leaves_the_reads(server: Server, clock: Clock) -> None:
    store = replica(server, clock)
    await store.add(K, A)
    server.is_full = True
    await fails(store.add(L, B))
    assert await store.get(K) == A
    assert await store.recall(L) == B
    await fails(store.get(L))  # it is offered, and refused again
    assert await store.recall(L) == B
    server.is_full = False
    assert await store.get(L) == B
    assert await server.store.get(L) == B


async def test_what_was_seen_is_known_while_the_store_is_out(server: Server, clock: Clock) -> None:
    store = replica(server, clock)
    await server.store.add(K, A)
    assert await store.get(K) == A
    assert await store.get(L) is None
    server.is_out = True
    await fails(store.get(K))
    assert await store.recall(K) == A
    assert await store.recall(L) is None


async def test_while_the_store_answers_it_alone_counts(server: Server, clock: Clock) -> None:
    one, other = replica(server, clock), replica(server, clock)
    await one.add(K, A)
    assert await other.get(K) == A
    assert await other.discard(K, A)
    assert await one.get(K) is None, "nobody brings back what another replica gave up"
    assert await one.recall(K) is None
    await other.add(K, B)
    assert await one.get(K) == B
    assert await one.recall(K) == B


async def test_a_decision_that_could_not_be_told_is_told_when_the_store_is_back(server: Server, clock: Clock) -> None:
    one, other = replica(server, clock), replica(server, clock)
    server.is_out = True
    await fails(one.add(K, A))
    await fails(one.get(L))
    server.is_out = False
    await clock.wait(FIRST_REST_SECONDS)
    assert await one.get(L) is None  # another session's request finds out
    await settle()
    assert await other.get(K) == A


async def test_of_decisions_made_apart_the_first_one_told_wins_everywhere(server: Server, clock: Clock) -> None:
    one, other = replica(server, clock), replica(server, clock)
    server.is_out = True
    await fails(one.add(K, A))
    await fails(other.add(K, B))
    assert (await one.recall(K), await other.recall(K)) == (A, B)
    server.is_out = False
    await clock.wait(LONGEST_REST_SECONDS)
    assert await other.get(K) == B
    assert await one.get(K) == B
    assert await one.recall(K) == B


async def test_a_store_that_restarts_empty_learns_again_what_is_in_use(server: Server, clock: Clock) -> None:
    one, other = replica(server, clock), replica(server, clock)
    await one.add(K, A)
    assert await other.get(K) == A
    server.is_out = True
    await fails(one.get(K))
    server.is_out, server.store = False, MemoryStore()
    await clock.wait(FIRST_REST_SECONDS)
    assert await one.get(K) == A
    assert await other.get(K) == A
    assert await one.discard(K, A)
    assert await one.get(K) is None, "this miss is no loss"


async def test_a_pin_that_was_given_up_while_the_store_was_out_stays_so(server: Server, clock: Clock) -> None:
    one = replica(server, clock)
    await one.add(K, A)
    await one.add(L, A)
    server.is_out = True
    await fails(one.discard(K, A))
    await fails(one.discard(L, A))
    assert await one.recall(K) is None
    await fails(one.add(K, B))
    server.is_out = False
    await clock.wait(FIRST_REST_SECONDS)
    assert await one.get(K) == B
    await settle()
    assert await server.store.get(K) == B
    assert await server.store.get(L) is None


async def test_telling_stops_when_the_store_is_out_again_and_goes_on_later(server: Server, clock: Clock) -> None:
    store = replica(server, clock)
    server.is_out = True
    for key in (K, L):
        await fails(store.add(key, A))
    server.is_out, server.is_full = False, True
    await clock.wait(FIRST_REST_SECONDS)
    assert await store.get(b"other") is None
    await settle()
    server.is_full = False
    assert await server.store.get(K) is None
    await store.add(b"other", B)
    await settle()
    assert [await server.store.get(key) for key in (K, L)] == [A, A]


async def test_a_decision_that_lapsed_meanwhile_is_not_told(server: Server, clock: Clock) -> None:
    store = replica(server, clock)
    server.is_out = True
    await fails(store.add(K, A))
    server.is_out = False
    await clock.wait(3600)
    assert await store.get(L) is None
    await settle()
    assert await server.store.get(K) is None


async def test_closing_ends_the_telling_and_closes_the_store(server: Server, clock: Clock) -> None:
    store = replica(server, clock, timeout=3600)
    server.is_out = True
    await fails(store.add(K, A))
    server.is_out = False
    assert await store.add(L, B) == B
    server.hangs = True
    await settle()
    before = len(asyncio.all_tasks())
    await store.aclose()
    await settle()
    assert len(asyncio.all_tasks()) == before - 1
    assert len(server.store) == 0


def test_a_store_may_be_closed_in_another_event_loop(server: Server, clock: Clock) -> None:
    store = replica(server, clock, timeout=3600)

    async def leave_telling() -> None:
        server.is_out = True
        await fails(store.add(K, A))
        server.is_out = False
        await store.add(L, B)

    asyncio.run(leave_telling())
    asyncio.run(store.aclose())


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
