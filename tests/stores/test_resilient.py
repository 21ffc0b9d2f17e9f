"""A shared store on its bad days: slow, out, lost what it knew, full."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from asgi_driver import Clock, until
from asgi_session_pin import Lapsed, MemoryStore, Pin, PinStore
from asgi_session_pin.stores import ResilientStore
from asgi_session_pin.stores._breakers import FAILURES_TO_REST, FIRST_REST_SECONDS, LONGEST_REST_SECONDS
from asgi_session_pin.stores.local_copy import LocalCopy
from asgi_session_pin.stores.resilient import StoreUnavailable
from asgi_session_pin.testing import CHECKS, LAPSED_CHECKS, SHARED_CHECKS, Check, StoreCase
from behaviour_document import Section, case
from cases import directory_case

A, B, C = Pin("a", 1.0), Pin("b", 2.0), Pin("c", 3.0)
K, L, M = b"k" * 16, b"l" * 16, b"m" * 16
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

    async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
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

    async def claim(self, key: bytes, token: bytes, seconds: float) -> bool:
        await self._answer()
        return self.claims.setdefault(key, token) == token

    async def release(self, key: bytes, token: bytes) -> None:
        await self._answer()
        if self.claims.get(key) == token:
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
    return ResilientStore(server, LocalCopy(timer=clock, now=clock), timeout_seconds=timeout, timer=clock)


async def fails(asking: Awaitable[object]) -> None:
    with pytest.raises(StoreUnavailable):
        await asking


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("check", CHECKS + LAPSED_CHECKS + SHARED_CHECKS, ids=lambda check: check.__name__)
async def test_a_resilient_store_keeps_the_contract_of_its_store(check: Check, tmp_path: Path) -> None:
    case = directory_case(tmp_path)

    def open_resilient(sliding: bool = True) -> PinStore:
        return ResilientStore(case.open(sliding), LocalCopy(), timeout_seconds=60)

    await check(StoreCase(open_resilient, case.wait, case.ttl_seconds, case.tool_loop_seconds))


CALLS: dict[str, Callable[[ResilientStore], Awaitable[object]]] = {
    "get": lambda store: store.get(K),
    "add": lambda store: store.add(K, A),
    "discard": lambda store: store.discard(K, A),
    "claim": lambda store: store.claim(K, 5),
}


async def take_out(server: Server, *stores: ResilientStore) -> None:
    """Let a server be out, and its users see it."""
    server.is_out = True
    for store in stores:
        for _ in range(FAILURES_TO_REST):
            await fails(store.get(b"any"))


async def bring_back(server: Server, clock: Clock, *stores: ResilientStore) -> None:
    """Let a server be there again, and its users find out."""
    server.is_out = server.hangs = False
    await clock.wait(LONGEST_REST_SECONDS)
    for store in stores:
        await fails(store.get(b"any"))  # nobody waits for the trial that this starts
    await settle()


@pytest.mark.parametrize("call", CALLS)
async def test_a_store_that_hangs_is_given_up_and_not_asked_again_after_some_calls(
    server: Server, clock: Clock, call: str
) -> None:
    store = replica(server, clock)
    server.hangs = True
    for _ in range(FAILURES_TO_REST):
        await fails(CALLS[call](store))
    for other in CALLS.values():
        await fails(other(store))
    assert server.asked == FAILURES_TO_REST


async def test_failures_count_in_a_row_so_one_bad_key_is_not_the_store(clock: Clock) -> None:
    class Broken(Server):
        async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
            if key == K:
                raise OSError("this shard is down")
            return await super().get(key)

    broken = Broken()
    store = replica(broken, clock)
    for _ in range(5 * FAILURES_TO_REST):
        await fails(store.get(K))
        assert await store.get(L) is None


class Sharded(Server):
    """A store of several shards, named by the first byte of a key; those of *out* are out."""

    def __init__(self) -> None:
        super().__init__()
        self.out: set[bytes] = set()

    def shard_of(self, key: bytes) -> bytes:
        return key[:1]

    async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
        if key[:1] in self.out:
            self.asked += 1
            raise OSError("this shard is down")
        return await super().get(key)


async def test_a_shard_that_is_out_is_left_alone_by_itself(clock: Clock) -> None:
    sharded = Sharded()
    store = replica(sharded, clock)
    assert await store.add(K, A) == A
    assert await store.add(L, B) == B
    sharded.out = {K[:1]}
    for _ in range(FAILURES_TO_REST):
        await fails(store.get(K))
    asked = sharded.asked
    for number in range(10):
        await fails(store.get(K[:1] + bytes([number]) * 15))  # the same shard
        assert store.recall(K) == A
        assert await store.get(L) == B
        assert await store.add(M, C) == C
    assert sharded.asked == asked + 20, "no call for the shard that is out"
    sharded.out = set()
    await clock.wait(FIRST_REST_SECONDS)
    await fails(store.get(K))  # nobody waits for the trial that this starts
    await settle()
    assert await store.get(K) == A


async def test_shards_rest_each_for_its_own_time(clock: Clock) -> None:
    sharded = Sharded()
    store = replica(sharded, clock)
    sharded.out = {K[:1], L[:1]}
    for _ in range(FAILURES_TO_REST):
        await fails(store.get(K))
    await clock.wait(FIRST_REST_SECONDS / 2)
    for _ in range(FAILURES_TO_REST):
        await fails(store.get(L))
    sharded.out = set()
    await clock.wait(FIRST_REST_SECONDS / 2)
    for key in (K, L):
        await fails(store.get(key))
    await settle()
    assert await store.get(K) is None
    await fails(store.get(L))


async def test_what_is_left_of_a_requests_time_says_little_of_the_store(server: Server, clock: Clock) -> None:
    store = replica(server, clock, timeout=3600)
    server.hangs = True
    for _ in range(5 * FAILURES_TO_REST):
        for asking in (store.get(K, clock() + 0.001), store.discard(K, A, clock()), store.claim(K, 5, clock() - 1)):
            await fails(asking)
    server.hangs = False
    assert await store.get(L) is None


async def test_calls_that_fail_together_wait_at_the_same_time(server: Server, clock: Clock) -> None:
    store = replica(server, clock)
    server.hangs = True
    results = await asyncio.gather(*(store.get(K) for _ in range(50)), return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnavailable}
    await bring_back(server, clock, store)
    assert await store.get(K) is None


async def test_a_store_that_is_out_is_tried_less_and_less_often_while_nobody_waits(
    server: Server, clock: Clock
) -> None:
    store = replica(server, clock)
    await take_out(server, store)
    pauses = []
    for _ in range(4):
        asked, started = server.asked, clock.now
        while server.asked == asked:
            await clock.wait(0.5)
            await asyncio.gather(*(fails(store.get(K)) for _ in range(10)))
            await settle()
        assert server.asked == asked + 1, "one of ten"
        pauses.append(clock.now - started)
    assert pauses == [FIRST_REST_SECONDS, 2 * FIRST_REST_SECONDS, 4 * FIRST_REST_SECONDS, LONGEST_REST_SECONDS]
    await bring_back(server, clock, store)
    assert await store.get(K) is None
    await take_out(server, store)
    server.is_out = False
    await clock.wait(FIRST_REST_SECONDS)
    await fails(store.get(K))
    await settle()
    assert await store.get(K) is None


class Panic(BaseException):
    """What native code raises."""


@pytest.mark.parametrize("error", [asyncio.CancelledError, Panic, OSError])
async def test_whatever_a_store_raises_is_a_failure(clock: Clock, error: type[BaseException]) -> None:
    class Raising(Server):
        async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
            raise error

    await fails(replica(Raising(), clock).get(K))


NO_PINS: list[Any] = [
    "a secret of another program",
    5,
    Pin("two words", 1.0),
    Pin("a\r\nx: y", 1.0),
    Pin("", 1.0),
    Pin(cast(Any, b"a"), 1.0),
    Pin("a", cast(Any, None)),
    Pin("a", float("nan")),
    Pin("a", 1.0, cast(Any, {})),
    Pin("a", 1.0, None, cast(Any, {})),
]


@pytest.mark.parametrize("value", NO_PINS)
async def test_what_is_no_pin_is_a_miss_that_is_deleted_and_told_once(
    server: Server, clock: Clock, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = replica(server, clock)
    for key in (K, L):
        await server.store.add(key, value)
        assert await store.get(key) is None
        assert await server.store.get(key) is None
    await server.store.add(K, value)
    assert await store.add(K, A) == A
    assert await server.store.get(K) == A
    assert caplog.messages == ["the store Server gave what is no pin; such values are deleted"]
    assert "secret" not in caplog.text


async def test_what_is_no_pin_and_cannot_be_deleted_takes_the_store_from_nobody(clock: Clock) -> None:
    class Stubborn(Server):
        async def discard(self, key: bytes, pin: Pin) -> bool:
            return pin.encode() == b""

    server = Stubborn()
    await server.store.add(K, cast(Any, 5))
    await server.store.add(L, A)
    store = replica(server, clock)
    for _ in range(2 * FAILURES_TO_REST):
        assert await store.get(K) is None
    await fails(store.add(K, A))
    assert store.recall(K) == A
    assert await store.get(L) == A


async def test_a_store_that_keeps_giving_what_is_no_pin_leaves_the_session_to_this_process(clock: Clock) -> None:
    class Strange(Server):
        async def add(self, key: bytes, pin: Pin) -> Pin:
            return cast(Pin, 5)

        async def discard(self, key: bytes, pin: Pin) -> bool:
            return False

    store = replica(Strange(), clock)
    await fails(store.add(K, A))
    assert store.recall(K) == A


async def test_an_interrupt_and_a_cancellation_go_through(server: Server, clock: Clock) -> None:
    class Interrupted(Server):
        async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await replica(Interrupted(), clock).get(K)
    server.hangs = True
    asking = asyncio.create_task(replica(server, clock, timeout=3600).get(K))
    await until(lambda: server.asked == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancellation_that_the_stores_client_swallows_goes_through(fails: bool, clock: Clock) -> None:
    class Swallowing(Server):
        async def claim(self, key: bytes, token: bytes, seconds: float) -> bool:
            with contextlib.suppress(asyncio.CancelledError):
                await self._answer()
            if fails:
                raise OSError("down")
            return True

    server = Swallowing()
    server.hangs = True
    claiming = asyncio.create_task(replica(server, clock, timeout=3600).claim(K, 1))
    await until(lambda: server.asked == 1)
    claiming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await claiming


def test_a_look_that_goes_on_after_its_cancellation_is_over_with_it(clock: Clock) -> None:
    class Swallowing(Server):
        async def get(self, key: bytes) -> Pin | None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            return None

    async def ask() -> None:
        asking = asyncio.create_task(replica(Swallowing(), clock, timeout=3600).get(K))
        await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(ask())


async def test_a_write_that_is_refused_leaves_the_reads(server: Server, clock: Clock) -> None:
    store = replica(server, clock)
    await store.add(K, A)
    server.is_full = True
    for _ in range(2 * FAILURES_TO_REST):
        await fails(store.add(L, B))
        assert await store.get(K) == A
        await fails(store.get(L))  # it is offered, and refused again
        assert store.recall(L) == B
    server.is_full = False
    assert await store.get(L) == B
    assert await server.store.get(L) == B


async def test_what_was_seen_is_known_while_the_store_is_out(server: Server, clock: Clock) -> None:
    store = replica(server, clock)
    await server.store.add(K, A)
    assert await store.get(K) == A
    assert await store.get(L) is None
    await take_out(server, store)
    await fails(store.get(K))
    assert store.recall(K) == A
    assert store.recall(L) is None


async def test_while_the_store_answers_it_alone_counts(server: Server, clock: Clock) -> None:
    one, other = replica(server, clock), replica(server, clock)
    await one.add(K, A)
    assert await other.get(K) == A
    assert await other.discard(K, A)
    assert await one.get(K) is None, "nobody brings back what another replica gave up"
    assert one.recall(K) is None
    await other.add(K, B)
    assert await one.get(K) == B
    assert one.recall(K) == B


async def test_a_decision_that_could_not_be_told_is_told_when_its_session_goes_on(server: Server, clock: Clock) -> None:
    one, other = replica(server, clock), replica(server, clock)
    await take_out(server, one)
    await fails(one.add(K, A))
    await fails(one.add(K, B))
    assert one.recall(K) == A
    await bring_back(server, clock, one)  # by another session's request
    assert await one.get(K) == A
    assert await other.get(K) == A


async def test_of_decisions_made_apart_the_first_one_told_wins_everywhere(server: Server, clock: Clock) -> None:
    one, other = replica(server, clock), replica(server, clock)
    await take_out(server, one, other)
    await fails(one.add(K, A))
    await fails(other.add(K, B))
    assert (one.recall(K), other.recall(K)) == (A, B)
    await bring_back(server, clock, one, other)
    assert [await replica.get(K) for replica in (other, one)] == [B, B]
    assert one.recall(K) == B


async def test_a_store_that_restarts_empty_learns_again_what_is_in_use(server: Server, clock: Clock) -> None:
    one, other = replica(server, clock), replica(server, clock)
    await one.add(K, A)
    assert await other.get(K) == A
    await take_out(server, one)
    server.store = MemoryStore()
    await bring_back(server, clock, one)
    assert await one.get(K) == A
    assert await other.get(K) == A
    assert await other.discard(K, A)
    assert await one.get(K) is None, "this miss is no loss"


@case(
    Section.SHARED_STORE,
    "a pin is given up while it is out",
    "stays given up in its process, and everywhere from the session's next request there",
)
async def test_pins_that_were_given_up_while_the_store_was_out_stay_so(server: Server, clock: Clock) -> None:
    one = replica(server, clock)
    for key in (K, L, M):
        await one.add(key, A)
    await take_out(server, one)
    for key in (K, L):
        await fails(one.discard(key, A))
    one.void(M)
    decided = Pin("new", clock.now)
    await fails(one.add(K, decided))
    await fails(one.discard(K, decided))  # a second time
    later = Pin("newer", clock.now)
    await fails(one.add(K, later))
    assert one.recall(L) is None
    await bring_back(server, clock, one)
    for key in (K, L, M):
        await one.get(key)
    assert [await server.store.get(key) for key in (K, L, M)] == [later, None, None]


async def test_a_decision_after_a_pin_was_given_up_in_vain_wins_over_that_pin(server: Server, clock: Clock) -> None:
    one = replica(server, clock)
    await one.add(K, A)
    one.void(K)
    decided = Pin("new", clock.now)
    assert await one.add(K, decided) == decided
    assert await server.store.get(K) == decided


class LateAnswer(Server):
    """Gives up a pin, and then hangs."""

    async def discard(self, key: bytes, pin: Pin) -> bool:
        held = await self.store.discard(key, pin)
        await self._answer()
        return held


@case(
    Section.SHARED_STORE,
    "its answer to giving a pin up is late, and another one is made meanwhile",
    "the other one stays, whoever made it",
)
@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("by_operator", [True, False])
async def test_a_pin_that_was_made_while_another_was_given_up_in_vain_stays(
    clock: Clock, here: bool, by_operator: bool
) -> None:
    server = LateAnswer()
    one, other = replica(server, clock), replica(server, clock)
    await one.add(K, A)
    server.hangs = True
    giving_up = asyncio.create_task(one.discard(K, A))
    await until(lambda: server.asked == 2)
    server.hangs = False
    made = Pin("new", clock.now, by_operator=by_operator)
    assert await (one if here else other).add(K, made) == made
    await clock.wait(1)
    await fails(giving_up)
    assert one.recall(K) == (made if here else None)
    assert [await store.get(K) for store in (one, other)] == [made, made]


async def test_a_decision_here_that_is_younger_than_what_was_given_up_in_vain_takes_its_place(
    server: Server, clock: Clock
) -> None:
    store = replica(server, clock)
    await server.store.add(K, A)
    await take_out(server, store)
    decided = Pin("new", clock.now)
    await fails(store.add(K, decided))
    await fails(store.discard(K, A))
    assert store.recall(K) == decided
    await bring_back(server, clock, store)
    assert await store.get(K) == await server.store.get(K) == decided


async def test_a_decision_that_lapsed_meanwhile_is_told_when_it_goes_on(server: Server, clock: Clock) -> None:
    store = replica(server, clock)
    await take_out(server, store)
    await fails(store.add(K, A))
    await clock.wait(700)
    await bring_back(server, clock, store)
    assert await store.get(K) == Lapsed(A, 105)
    assert await server.store.get(K) is None
    assert await store.add(K, A) == A
    assert await server.store.get(K) == await store.get(K) == A


async def test_a_decision_takes_the_place_of_a_pin_that_lapsed_in_the_store(server: Server, clock: Clock) -> None:
    server.store = MemoryStore(timer=clock)
    store = replica(server, clock)
    await store.add(K, A)
    await clock.wait(700)
    await take_out(server, store)
    assert store.recall(K) == Lapsed(A, 100)
    await fails(store.add(K, B))
    assert store.recall(K) == B
    await bring_back(server, clock, store)
    assert await store.get(K) == await server.store.get(K) == B


async def test_a_lapsed_pin_that_was_given_up_meanwhile_does_not_come_back(server: Server, clock: Clock) -> None:
    clock.now = 1000.0
    server.store = MemoryStore(timer=clock)
    store = replica(server, clock)
    await store.add(K, A)
    await take_out(server, store)
    await fails(store.discard(K, A))
    await clock.wait(700)
    await bring_back(server, clock, store)
    assert isinstance(await server.store.get(K), Lapsed)
    assert await store.get(K) is None
    assert await server.store.get(K) is None


async def test_what_lapsed_in_the_store_has_lapsed_in_the_copy(server: Server, clock: Clock) -> None:
    server.store = MemoryStore(timer=clock)
    await server.add(K, A)
    await clock.wait(650)
    store = replica(server, clock)
    assert await store.get(K) == Lapsed(A, 50)
    await take_out(server, store)
    assert store.recall(K) == Lapsed(A, 50)


async def test_a_claim_is_given_back_once_while_nobody_waits(server: Server, clock: Clock) -> None:
    one, other = replica(server, clock), replica(server, clock)
    assert await one.claim(K, 5) is True
    assert await other.claim(K, 5) is False
    assert await one.claim(K, 5) is True, "it still has it"
    other.release(K)  # it has none
    one.release(K)
    one.release(K)  # there is nothing left to give back
    asked = server.asked
    await settle()
    assert server.asked == asked + 1
    assert await other.claim(K, 5) is True


async def test_a_claim_that_cannot_be_given_back_is_left_to_lapse(server: Server, clock: Clock) -> None:
    store = replica(server, clock)
    assert await store.claim(K, 5) is True
    server.is_out = True
    store.release(K)
    await settle()
    assert K in server.claims
    server.is_out = False
    assert await store.claim(K, 5) is False, "it is another one's now"


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_a_claim_that_is_released_while_it_is_asked_for_is_not_taken(clock: Clock, is_cancelled: bool) -> None:
    class Late(Server):
        """Gives claims after it got what was sent later."""

        async def claim(self, key: bytes, token: bytes, seconds: float) -> bool:
            if not arrived.is_set():
                self.claims[key] = token
                await arrived.wait()
                self.claims[key] = token
            return await super().claim(key, token, seconds)

    server, arrived = Late(), asyncio.Event()
    store = replica(server, clock, timeout=3600)
    claiming = asyncio.create_task(store.claim(K, 5))
    await until(lambda: K in server.claims)
    store.release(K)
    await until(lambda: not server.claims)
    arrived.set()
    assert await store.claim(K, 5) is True  # it is asked for anew
    if is_cancelled:
        claiming.cancel()
        await asyncio.wait([claiming])
    else:
        assert await claiming is False
    await settle()
    assert await store.claim(K, 5) is True


async def test_closing_ends_what_goes_on_beside_and_closes_the_store(server: Server, clock: Clock) -> None:
    store = replica(server, clock, timeout=3600)
    await store.add(L, B)
    await take_out(server, store)
    server.is_out, server.hangs = False, True
    await clock.wait(LONGEST_REST_SECONDS)
    await fails(store.get(K))
    await settle()
    before = len(asyncio.all_tasks())
    await store.aclose()
    await settle()
    assert len(asyncio.all_tasks()) == before - 1
    assert len(server.store) == 0


def test_it_serves_one_event_loop_after_another(server: Server, clock: Clock) -> None:
    store = replica(server, clock, timeout=3600)

    async def leave_a_trial_and_a_release() -> None:
        assert await store.claim(K, 5)
        await take_out(server, store)
        server.is_out, server.hangs = False, True
        await clock.wait(FIRST_REST_SECONDS)
        await fails(store.get(K))
        store.release(K)
        await settle()

    async def go_on() -> None:
        server.hangs = False
        await clock.wait(3600)
        await fails(store.get(K))
        await settle()
        assert await store.add(K, A) == A
        assert await store.get(K) == A
        await store.aclose()

    # The first one is left as by a fork: nothing in it goes on, and nothing ends.
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_a_trial_and_a_release())
    asyncio.run(go_on())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(settle())
    loop.close()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
