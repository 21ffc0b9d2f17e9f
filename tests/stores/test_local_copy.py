"""What one process knows of a shared store's pins."""

from asgi_driver import Clock
from asgi_session_pin import Pin
from asgi_session_pin.stores.local_copy import LocalCopy

A, B = Pin("a", 1000.0), Pin("b", 1000.0)


def known_model(copy: LocalCopy, key: bytes) -> str | None:
    known, overdue = copy.find(key)
    return None if known is None or known.pin is None or overdue is not None else known.pin.model


async def test_the_least_recently_used_goes_first() -> None:
    copy = LocalCopy(max_entries=2)
    copy.decide(b"1", A)
    copy.decide(b"2", A)
    assert known_model(copy, b"1") == "a"
    copy.keep(b"3", A)
    assert [known_model(copy, key) for key in (b"1", b"2", b"3")] == ["a", None, "a"]


async def test_a_sliding_time_is_counted_from_the_last_use_here() -> None:
    clock = Clock()
    copy = LocalCopy(ttl_seconds=10, timer=clock, now=clock)
    copy.keep(b"1", A)
    for _ in range(3):
        await clock.wait(9)
        assert known_model(copy, b"1") == "a"
    await clock.wait(10)
    assert known_model(copy, b"1") is None


async def test_a_decision_takes_the_place_of_one_that_lapsed() -> None:
    clock = Clock()
    copy = LocalCopy(ttl_seconds=10, timer=clock, now=clock)
    copy.decide(b"1", A)
    await clock.wait(10)
    copy.decide(b"1", B)
    assert known_model(copy, b"1") == "b"


async def test_a_fixed_time_is_counted_from_the_decision_wherever_it_was_made() -> None:
    clock = Clock()
    copy = LocalCopy(ttl_seconds=10, sliding=False, timer=clock, now=clock)
    await clock.wait(8)
    copy.keep(b"1", A)
    assert known_model(copy, b"1") == "a"
    await clock.wait(2)
    assert known_model(copy, b"1") is None


async def test_the_first_decision_stays_until_it_is_given_up() -> None:
    copy = LocalCopy()
    copy.decide(b"1", A)
    copy.decide(b"1", B)
    assert known_model(copy, b"1") == "a"
    copy.drop(b"1", B)
    assert known_model(copy, b"1") == "a"
    copy.void(b"1")
    assert known_model(copy, b"1") is None
    copy.decide(b"1", B)
    assert known_model(copy, b"1") == "b"
    copy.drop(b"1", B)
    assert copy.find(b"1") == (None, None)
    copy.drop(b"1", B)
