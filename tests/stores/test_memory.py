"""What is the memory store's own."""

import pytest

from asgi_driver import Clock
from asgi_session_pin import Lapsed, MemoryStore, Pin
from behaviour_document import Section, case

A, B = Pin("a", 1.0), Pin("b", 1.0)


@case(Section.PIN, "the table is full", "the least recently used pin goes")
async def test_the_least_recently_used_pin_goes_first() -> None:
    store = MemoryStore(max_entries=2)
    await store.add(b"1", A)
    await store.add(b"2", A)
    await store.get(b"1")
    await store.add(b"3", A)
    assert [await store.get(key) for key in (b"1", b"2", b"3")] == [A, None, A]


@case(Section.PIN, "not used for `session_ttl_seconds`", "decided afresh")
async def test_a_pin_lapses_at_the_very_end_of_its_time() -> None:
    clock = Clock()
    store = MemoryStore(ttl_seconds=10, sliding=False, tool_loop_seconds=0, timer=clock)
    await store.add(b"1", A)
    await clock.wait(9.9)
    assert await store.get(b"1") == A
    await clock.wait(0.1)
    assert await store.get(b"1") is None


@pytest.mark.parametrize("sliding", [True, False])
async def test_what_has_lapsed_goes_first(sliding: bool) -> None:
    clock = Clock()
    store = MemoryStore(ttl_seconds=10, sliding=sliding, max_entries=3, timer=clock)
    for key in (b"1", b"2", b"3"):
        await store.add(key, A)
        await clock.wait(4)
    await store.get(b"3")
    await store.get(b"2")
    lapsed = [key for key in (b"1", b"2", b"3") if isinstance(await store.get(key), Lapsed)]
    assert lapsed == [b"1"], "a look at it is no use"
    await store.add(b"4", A)
    assert [await store.get(key) for key in (b"1", b"2", b"3", b"4")] == [None, A, A, A]
    await store.get(b"2")
    await store.add(b"5", A)
    assert [await store.get(key) for key in (b"2", b"3", b"4", b"5")] == [A, None, A, A]


async def test_a_fixed_time_lets_what_lapsed_go_before_what_was_used_less_recently() -> None:
    clock = Clock()
    store = MemoryStore(ttl_seconds=10, sliding=False, max_entries=2, timer=clock)
    await store.add(b"1", A)
    await clock.wait(5)
    await store.add(b"2", A)
    await clock.wait(4)
    await store.get(b"1")
    await clock.wait(1)
    await store.add(b"3", A)
    assert [await store.get(key) for key in (b"1", b"2", b"3")] == [None, A, A]
    await store.aclose()
    await store.add(b"1", A)
    assert [await store.get(key) for key in (b"1", b"2", b"3")] == [A, None, None]


async def test_only_a_look_counts_as_a_use() -> None:
    clock = Clock()
    store = MemoryStore(ttl_seconds=10, max_entries=2, timer=clock)
    await store.add(b"1", A)
    await store.add(b"2", A)
    await clock.wait(9)
    assert await store.add(b"1", B) == A
    assert await store.discard(b"1", B) is False
    assert await store.get(b"2") == A
    await clock.wait(1)
    assert [await store.get(key) for key in (b"1", b"2")] == [Lapsed(A, 0), A]


async def test_the_table_is_bounded_whatever_has_lapsed() -> None:
    clock = Clock()
    store = MemoryStore(ttl_seconds=10, max_entries=3, timer=clock)
    for number in range(10):
        await store.add(bytes([number]), A)
        await clock.wait(5)
    assert len(store) == 3


def test_a_table_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^max_entries: found 0, expected at least 1$"):
        MemoryStore(max_entries=0)


async def test_closing_forgets_all_pins() -> None:
    store = MemoryStore()
    await store.add(b"1", A)
    await store.aclose()
    assert await store.get(b"1") is None
    assert await store.add(b"1", A) == A
