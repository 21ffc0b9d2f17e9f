"""The pin table's own rules."""

from asgi_session_pin import MemoryStore, Pin
from asgi_session_pin.pins import PinTable


async def test_a_pin_over_its_maximum_age_is_given_up_used_or_not() -> None:
    now = 1_000.0
    table = PinTable(MemoryStore(), max_age_seconds=60, now=lambda: now)
    pin = await table.record(b"key", Pin("a", table.now()))
    assert pin.created == 1_000.0
    now = 1_060.0
    assert await table.look_up(b"key") == pin
    now = 1_060.5
    assert await table.look_up(b"key") is None
    assert (await table.record(b"key", Pin("b", table.now()))).model == "b"


async def test_a_pin_without_maximum_age_stays() -> None:
    now = 0.0
    table = PinTable(MemoryStore(timer=lambda: 0.0), now=lambda: now)
    pin = await table.record(b"key", Pin("a", table.now(), b"{}"))
    now = 1e9
    assert await table.look_up(b"key") == pin
    assert pin.decision == b"{}"


async def test_forget_gives_up_only_its_own_key() -> None:
    table = PinTable(MemoryStore())
    await table.record(b"key", Pin("a", table.now()))
    await table.record(b"other", Pin("b", table.now()))
    assert await table.forget(b"key") is True
    assert await table.forget(b"never there") is False
    assert await table.look_up(b"key") is None
    assert await table.look_up(b"other") is not None
