"""What is the memory store's own."""

from asgi_driver import Clock
from asgi_session_pin import MemoryStore, Pin

A = Pin("a", 1.0)


async def test_the_least_recently_used_pin_goes_first() -> None:
    store = MemoryStore(max_entries=2)
    await store.add(b"1", A)
    await store.add(b"2", A)
    await store.get(b"1")
    await store.add(b"3", A)
    assert [await store.get(key) for key in (b"1", b"2", b"3")] == [A, None, A]


async def test_a_pin_lapses_at_the_very_end_of_its_time() -> None:
    clock = Clock()
    store = MemoryStore(ttl_seconds=10, sliding=False, timer=clock)
    await store.add(b"1", A)
    await clock.wait(9.9)
    assert await store.get(b"1") == A
    await clock.wait(0.1)
    assert await store.get(b"1") is None


async def test_closing_forgets_all_pins() -> None:
    store = MemoryStore()
    await store.add(b"1", A)
    await store.aclose()
    assert await store.get(b"1") is None
    assert await store.add(b"1", A) == A
