"""What every store has to do, run over each of them."""

from collections.abc import Callable

import pytest

from asgi_session_pin import MemoryStore, Pin, PinStore

TTL = 10.0


class Clock:
    """A timer that is turned by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Open = Callable[..., PinStore]


@pytest.fixture(params=["memory"])
def open_store(clock: Clock) -> Open:
    def open_memory(sliding: bool = True) -> PinStore:
        return MemoryStore(ttl_seconds=TTL, sliding=sliding, timer=clock)

    return open_memory


A = Pin("model-a", 1.0)
B = Pin("model-b", 2.0, b'{"model":"model-b"}')


async def test_a_key_without_pin_gives_none(open_store: Open) -> None:
    assert await open_store().get(b"key") is None


async def test_a_pin_comes_back_as_it_was(open_store: Open) -> None:
    store = open_store()
    assert await store.add(b"key", B) == B
    assert await store.get(b"key") == B
    assert await store.get(b"other") is None


async def test_the_first_writer_wins_and_the_second_learns_it(open_store: Open) -> None:
    store = open_store()
    assert await store.add(b"key", A) == A
    assert await store.add(b"key", B) == A
    assert await store.get(b"key") == A


async def test_a_pin_lapses_when_its_time_is_over(open_store: Open, clock: Clock) -> None:
    store = open_store()
    await store.add(b"key", A)
    clock.now += TTL
    assert await store.get(b"key") is None
    assert await store.get(b"key") is None


async def test_a_lapsed_pin_makes_room_for_another(open_store: Open, clock: Clock) -> None:
    store = open_store()
    await store.add(b"key", A)
    clock.now += TTL
    assert await store.add(b"key", B) == B
    assert await store.get(b"key") == B


async def test_each_use_renews_a_sliding_time(open_store: Open, clock: Clock) -> None:
    store = open_store()
    await store.add(b"key", A)
    for _ in range(5):
        clock.now += TTL - 1
        assert await store.get(b"key") == A


async def test_a_fixed_time_is_counted_from_the_decision(open_store: Open, clock: Clock) -> None:
    store = open_store(sliding=False)
    await store.add(b"key", A)
    clock.now += TTL - 1
    assert await store.get(b"key") == A
    clock.now += 1
    assert await store.get(b"key") is None


async def test_discard_gives_up_the_pin_it_names(open_store: Open) -> None:
    store = open_store()
    await store.add(b"key", A)
    assert await store.discard(b"key", Pin("model-a", 1.0)) is True
    assert await store.get(b"key") is None


@pytest.mark.parametrize("other", [B, Pin("model-a", 1.5), Pin("model-a", 1.0, b"{}")])
async def test_discard_leaves_any_other_pin(open_store: Open, other: Pin) -> None:
    store = open_store()
    await store.add(b"key", A)
    assert await store.discard(b"key", other) is False
    assert await store.get(b"key") == A


async def test_discard_of_nothing_is_false(open_store: Open) -> None:
    assert await open_store().discard(b"key", A) is False


async def test_a_store_may_be_closed_twice(open_store: Open) -> None:
    store = open_store()
    await store.add(b"key", A)
    await store.aclose()
    await store.aclose()
