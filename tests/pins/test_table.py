"""The pin table's own rules."""

import pytest

from asgi_driver import Clock
from asgi_session_pin import MemoryStore, Pin
from asgi_session_pin.pins.table import PinTable
from asgi_session_pin.stores import ResilientStore
from asgi_session_pin.stores.local_copy import LocalCopy
from asgi_session_pin.stores.resilient import StoreUnavailable
from behaviour_document import Section, case


@case(Section.PIN, "older than `session_max_age_seconds`", "decided afresh, used or not")
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


class Out(MemoryStore):
    """A store that does not answer."""

    async def get(self, key: bytes) -> Pin | None:
        raise OSError("down")

    async def add(self, key: bytes, pin: Pin) -> Pin:
        raise OSError("down")


async def test_a_pin_over_its_maximum_age_is_not_recalled_and_makes_room_for_another() -> None:
    clock = Clock()
    copy = LocalCopy(timer=clock, now=clock)
    table = PinTable(Out(), ResilientStore(Out(), copy, timeout_seconds=1, timer=clock), max_age_seconds=10, now=clock)
    for model in ("a", "b"):
        with pytest.raises(StoreUnavailable):
            await table.record(b"key", Pin(model, clock.now))
        assert table.recall(b"key") == Pin(model, clock.now)
        await clock.wait(11)
        assert table.recall(b"key") is None


async def test_a_pin_that_is_forgotten_while_the_store_is_out_is_forgotten_here_and_told_later() -> None:
    copy = LocalCopy()
    copy.keep(b"key", Pin("a", 1.0))
    table = PinTable(Out(), ResilientStore(Out(), copy, timeout_seconds=1))
    with pytest.raises(StoreUnavailable):
        await table.forget(b"key")
    assert table.recall(b"key") is None
    assert copy.untold() == [b"key"]


async def test_a_table_that_fails_itself_is_the_callers_affair() -> None:
    with pytest.raises(OSError, match="down"):
        await PinTable(Out()).forget(b"key")
