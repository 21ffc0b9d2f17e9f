"""The contract of stores as checks to run over a store of your own, with any test runner.

    from asgi_session_pin.testing import CHECKS, StoreCase

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_the_contract(check):
        await check(StoreCase(open=MyStore, wait=asyncio.sleep, ttl_seconds=1))

Each check is given fresh, empty data. `LAPSED_CHECKS` are for stores that keep lapsed pins for a tool loop,
`SHARED_CHECKS` for stores that several processes share,
`OPERATOR_CHECKS` for those that operators can list, `CLAIM_CHECKS` for those of them that have `claim` and
`release`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .pin import NamedModel, Pin
from .stores.base import ClaimingStore, Entry, Lapsed, OperableStore, PinStore

__all__ = ["CHECKS", "CLAIM_CHECKS", "LAPSED_CHECKS", "OPERATOR_CHECKS", "SHARED_CHECKS", "StoreCase"]


@dataclass(frozen=True)
class StoreCase:
    """A kind of store that is checked.

    - `open`: called as `open(sliding=True)`, returns a store. All stores that it returns within one check have the same
      pins, if the kind is shared.
    - `wait`: lets so many seconds pass, by sleeping or by turning a clock.
    - `ttl_seconds`: the time to live that `open` gives.
    - `tool_loop_seconds`: for how long lapsed pins are kept beyond it.
    """

    open: Callable[..., PinStore]
    wait: Callable[[float], Awaitable[None]]
    ttl_seconds: float
    tool_loop_seconds: float = 0


KEY = bytes(range(16))
OTHER_KEY = bytes(range(1, 17))
TOKEN, OTHER_TOKEN = b"t" * 16, b"o" * 16
A = Pin("model-a", 1.0)
B = Pin("model-b", 2.25, b'{"model":"model-b"}', NamedModel("b-2024-08-06", "model-b", "body:model", "json"))


async def a_key_without_pin_gives_none(case: StoreCase) -> None:
    store = case.open()
    assert await store.get(KEY) is None
    await store.aclose()


async def a_pin_comes_back_as_it_was(case: StoreCase) -> None:
    store = case.open()
    assert await store.add(KEY, B) == B
    assert await store.get(KEY) == B
    assert await store.get(OTHER_KEY) is None
    await store.aclose()


async def the_first_writer_wins_and_the_second_learns_it(case: StoreCase) -> None:
    store = case.open()
    assert await store.add(KEY, A) == A
    assert await store.add(KEY, B) == A
    assert await store.get(KEY) == A
    await store.aclose()


async def of_parallel_writers_all_learn_the_same_pin(case: StoreCase) -> None:
    store = case.open()
    winners = await asyncio.gather(*(store.add(KEY, Pin(f"model-{number}", 1.0)) for number in range(20)))
    assert set(winners) == {await store.get(KEY)}
    await store.aclose()


async def a_pin_lapses_when_its_time_is_over(case: StoreCase) -> None:
    store = case.open()
    await store.add(KEY, A)
    await case.wait(case.ttl_seconds * 1.2)
    assert not isinstance(await store.get(KEY), Pin)
    assert not isinstance(await store.get(KEY), Pin)
    await store.aclose()


async def a_lapsed_pin_makes_room_for_another(case: StoreCase) -> None:
    store = case.open()
    await store.add(KEY, A)
    await case.wait(case.ttl_seconds * 1.2)
    assert await store.add(KEY, B) == B
    assert await store.get(KEY) == B
    await store.aclose()


async def each_use_renews_a_sliding_time(case: StoreCase) -> None:
    store = case.open()
    await store.add(KEY, A)
    for _ in range(3):
        await case.wait(case.ttl_seconds * 0.6)
        assert await store.get(KEY) == A
    await store.aclose()


async def a_fixed_time_is_counted_from_the_decision(case: StoreCase) -> None:
    store = case.open(sliding=False)
    await store.add(KEY, A)
    await case.wait(case.ttl_seconds * 0.6)
    assert await store.get(KEY) == A
    await case.wait(case.ttl_seconds * 0.6)
    assert not isinstance(await store.get(KEY), Pin)
    await store.aclose()


async def discard_gives_up_the_pin_it_names(case: StoreCase) -> None:
    store = case.open()
    await store.add(KEY, B)
    await store.add(OTHER_KEY, B)
    assert await store.discard(KEY, Pin(B.model, B.created, B.decision, B.answered)) is True
    assert await store.get(KEY) is None
    assert await store.get(OTHER_KEY) == B
    await store.aclose()


async def discard_leaves_any_other_pin(case: StoreCase) -> None:
    store = case.open()
    await store.add(KEY, A)
    for other in (B, Pin(A.model, A.created + 0.5), Pin(A.model, A.created, b"{}")):
        assert await store.discard(KEY, other) is False
    assert await store.get(KEY) == A
    await store.aclose()


async def discard_of_nothing_is_false(case: StoreCase) -> None:
    store = case.open()
    assert await store.discard(KEY, A) is False
    await store.aclose()


async def a_store_may_be_closed_twice_and_unused(case: StoreCase) -> None:
    store = case.open()
    await store.add(KEY, A)
    await store.aclose()
    await store.aclose()
    await case.open().aclose()


async def a_lapsed_pin_is_told_with_the_time_since_then(case: StoreCase) -> None:
    store = case.open()
    await store.add(KEY, B)
    await case.wait(case.ttl_seconds * 1.2)
    first = await store.get(KEY)
    await case.wait(case.tool_loop_seconds * 0.5)
    second = await store.get(KEY)  # the first look was no use of it
    assert isinstance(first, Lapsed)
    assert isinstance(second, Lapsed)
    assert first.value == second.value == B
    assert 0 < first.overdue_seconds < case.ttl_seconds * 0.5
    waited = second.overdue_seconds - first.overdue_seconds
    assert abs(waited - case.tool_loop_seconds * 0.5) < case.ttl_seconds * 0.5
    await case.wait(case.tool_loop_seconds * 0.5)
    assert await store.get(KEY) is None
    await store.aclose()


async def a_lapsed_pin_goes_on_when_it_is_added_again(case: StoreCase) -> None:
    for sliding in (True, False):
        store = case.open(sliding=sliding)
        await store.add(KEY, A)
        await case.wait(case.ttl_seconds * 1.2)
        assert await store.add(KEY, A) == A
        assert await store.get(KEY) == A
        await case.wait(case.ttl_seconds * 0.6)
        assert await store.get(KEY) == A
        assert await store.discard(KEY, A) is True
        await store.aclose()


async def of_parallel_writers_over_a_lapsed_pin_all_learn_the_same_pin(case: StoreCase) -> None:
    store = case.open()
    await store.add(KEY, A)
    await case.wait(case.ttl_seconds * 1.2)
    winners = await asyncio.gather(*(store.add(KEY, Pin(f"model-{number}", 1.0)) for number in range(20)))
    assert set(winners) == {await store.get(KEY)}
    assert A not in winners
    await store.aclose()


async def discard_gives_up_a_pin_that_lapsed(case: StoreCase) -> None:
    store = case.open()
    await store.add(KEY, A)
    await case.wait(case.ttl_seconds * 1.2)
    assert await store.discard(KEY, B) is False
    assert await store.discard(KEY, A) is True
    assert await store.get(KEY) is None
    await store.aclose()


async def two_stores_on_the_same_data_agree(case: StoreCase) -> None:
    one, other = case.open(), case.open()
    assert await one.add(KEY, A) == A
    assert await other.add(KEY, B) == A
    assert await other.get(KEY) == A
    assert await other.discard(KEY, A) is True
    assert await one.get(KEY) is None
    assert await one.discard(KEY, A) is False
    await one.aclose()
    await other.aclose()


async def pins_outlive_the_store_that_wrote_them(case: StoreCase) -> None:
    first = case.open()
    await first.add(KEY, B)
    await first.aclose()
    second = case.open()
    assert await second.get(KEY) == B
    await second.aclose()


async def of_parallel_claims_one_is_given(case: StoreCase) -> None:
    one, other = _claiming(case), _claiming(case)
    claims = [store.claim(KEY, bytes([number]), 60) for number, store in enumerate([one, other] * 5)]
    assert sum(await asyncio.gather(*claims)) == 1
    assert await other.claim(OTHER_KEY, TOKEN, 60) is True
    await one.aclose()
    await other.aclose()


async def a_claim_that_is_given_back_can_be_taken_by_others(case: StoreCase) -> None:
    one, other = _claiming(case), _claiming(case)
    assert await one.claim(KEY, TOKEN, 60) is True
    assert await other.claim(KEY, OTHER_TOKEN, 60) is False
    await one.release(KEY, TOKEN)
    assert await other.claim(KEY, OTHER_TOKEN, 60) is True
    await one.release(KEY, TOKEN)  # it is another one's now
    assert await one.claim(KEY, TOKEN, 60) is False
    await one.aclose()
    await other.aclose()


async def who_has_a_claim_may_take_it_again(case: StoreCase) -> None:
    one, other = _claiming(case), _claiming(case)
    assert await one.claim(KEY, TOKEN, 60) is True
    assert await one.claim(KEY, TOKEN, 60) is True  # the first answer may have been lost on its way
    assert await other.claim(KEY, OTHER_TOKEN, 60) is False
    await one.aclose()
    await other.aclose()


async def a_claim_ends_by_itself(case: StoreCase) -> None:
    one, other = _claiming(case), _claiming(case)
    assert await one.claim(KEY, TOKEN, case.ttl_seconds) is True
    await case.wait(case.ttl_seconds * 1.2)
    assert await other.claim(KEY, OTHER_TOKEN, 60) is True
    await one.release(KEY, TOKEN)
    assert await one.claim(KEY, TOKEN, 60) is False
    await one.aclose()
    await other.aclose()


async def claims_and_pins_leave_each_other_alone(case: StoreCase) -> None:
    store = _claiming(case)
    assert await store.claim(KEY, TOKEN, 60) is True
    assert await store.get(KEY) is None
    assert await store.add(KEY, A) == A
    assert await store.claim(KEY, OTHER_TOKEN, 60) is False
    await store.release(KEY, TOKEN)
    assert await store.get(KEY) == A
    assert await store.claim(KEY, OTHER_TOKEN, 60) is True
    assert await store.discard(KEY, A) is True
    assert await store.claim(KEY, TOKEN, 60) is False
    await store.aclose()


async def operators_see_the_pins_that_hold(case: StoreCase) -> None:
    store = _operable(case)
    for number in range(25):
        await store.add(bytes([number]) * 16, A)
    assert sorted(entry.key[0] for entry in await _list(store, 10)) == list(range(25))
    assert {entry.pin for entry in await _list(store, 1000)} == {A}
    assert await store.count() == 25
    await store.discard(bytes(16), A)
    assert sorted(entry.key[0] for entry in await _list(store, 10)) == list(range(1, 25))
    assert await store.count() == 24
    await store.aclose()


async def operators_see_how_long_a_pin_was_idle_and_renew_nothing(case: StoreCase) -> None:
    store = _operable(case)
    await store.add(KEY, B)
    await case.wait(case.ttl_seconds * 0.6)
    for entry in [await store.peek(KEY), *await _list(store, 10)]:
        assert entry is not None
        assert (entry.key, entry.pin) == (KEY, B)
        assert 0.5 < entry.idle_seconds / case.ttl_seconds < 0.7
    await case.wait(case.ttl_seconds * 0.6)
    assert await store.peek(KEY) is None
    assert await _list(store, 10) == []
    assert await store.count() == 0
    assert await store.peek(OTHER_KEY) is None
    await store.aclose()


async def a_note_is_replaced_by_who_knows_it(case: StoreCase) -> None:
    store = _operable(case)
    assert await store.read_note() is None
    assert await store.replace_note(b"other", b"one") is False
    assert await store.replace_note(None, b"one") is True
    assert await store.replace_note(None, b"two") is False
    assert await store.replace_note(b"one", b"two") is True
    await case.wait(case.ttl_seconds * 100)
    assert await store.read_note() == b"two"
    assert await _list(store, 10) == []
    await store.aclose()


async def _list(store: OperableStore, limit: int) -> list[Entry]:
    found, after = await store.scan(None, limit)
    while after is not None:
        entries, after = await store.scan(after, limit)
        found = found + entries
    return found


def _operable(case: StoreCase) -> OperableStore:
    store = case.open()
    assert isinstance(store, OperableStore)
    return store


def _claiming(case: StoreCase) -> ClaimingStore:
    store = case.open()
    assert isinstance(store, ClaimingStore), f"{store!r} lacks claim or release"
    return store


Check = Callable[[StoreCase], Awaitable[None]]

CHECKS: tuple[Check, ...] = (
    a_key_without_pin_gives_none,
    a_pin_comes_back_as_it_was,
    the_first_writer_wins_and_the_second_learns_it,
    of_parallel_writers_all_learn_the_same_pin,
    a_pin_lapses_when_its_time_is_over,
    a_lapsed_pin_makes_room_for_another,
    each_use_renews_a_sliding_time,
    a_fixed_time_is_counted_from_the_decision,
    discard_gives_up_the_pin_it_names,
    discard_leaves_any_other_pin,
    discard_of_nothing_is_false,
    a_store_may_be_closed_twice_and_unused,
)
"""What every store has to do."""

LAPSED_CHECKS: tuple[Check, ...] = (
    a_lapsed_pin_is_told_with_the_time_since_then,
    a_lapsed_pin_goes_on_when_it_is_added_again,
    of_parallel_writers_over_a_lapsed_pin_all_learn_the_same_pin,
    discard_gives_up_a_pin_that_lapsed,
)
"""What a store has to do that keeps lapsed pins for a tool loop."""

SHARED_CHECKS: tuple[Check, ...] = (two_stores_on_the_same_data_agree, pins_outlive_the_store_that_wrote_them)
"""What a store has to do that several processes share."""

CLAIM_CHECKS: tuple[Check, ...] = (
    of_parallel_claims_one_is_given,
    a_claim_that_is_given_back_can_be_taken_by_others,
    who_has_a_claim_may_take_it_again,
    a_claim_ends_by_itself,
    claims_and_pins_leave_each_other_alone,
)
"""What a store has to do that also gives claims."""
OPERATOR_CHECKS: list[Check] = [
    operators_see_the_pins_that_hold,
    operators_see_how_long_a_pin_was_idle_and_renew_nothing,
    a_note_is_replaced_by_who_knows_it,
]
