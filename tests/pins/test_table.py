"""The pin table's own rules."""

from typing import Any

import pytest

from asgi_driver import Clock
from asgi_session_pin import Config, Lapsed, MemoryStore, Pin, PinStore, Routing
from asgi_session_pin.events import Cause
from asgi_session_pin.pins.slot import Slot
from asgi_session_pin.pins.table import PinTable
from asgi_session_pin.stores import ResilientStore
from asgi_session_pin.stores.local_copy import LocalCopy
from asgi_session_pin.stores.resilient import StoreUnavailable

failures: list[str] = []


def make_table(store: PinStore, shared: ResilientStore | None = None, **clocks: Any) -> PinTable:
    config = Config(routing=Routing(decision_wait_seconds=0))
    return PinTable(store, shared, config, on_failure=lambda: failures.append("failed"), **clocks)


def unless_lapsed(pin: Pin, overdue: float | None) -> Cause | None:
    return None if overdue is None else "lapsed"


async def find(table: PinTable, key: bytes = b"key") -> Pin | None:
    return await table.find_or_lead(Slot(key), unless_lapsed)


async def record(table: PinTable, pin: Pin, key: bytes = b"key") -> Pin:
    return await table.record(Slot(key), pin)


async def test_the_first_choice_stays_in_force() -> None:
    table = make_table(MemoryStore())
    first = await record(table, Pin("a", 1.0))
    assert await record(table, Pin("b", 2.0)) == first


async def test_a_void_pin_is_given_up() -> None:
    table = make_table(MemoryStore())
    await record(table, Pin("a", 1.0))
    assert await table.find_or_lead(Slot(b"key"), lambda pin, overdue: "refused") is None
    assert await find(table) is None


async def test_a_lapsed_pin_that_holds_goes_on_and_one_that_does_not_stays_lapsed() -> None:
    clock = Clock()
    store = MemoryStore(ttl_seconds=10, timer=clock)
    table = make_table(store, timer=clock)
    pin = await record(table, Pin("a", 1.0))
    await clock.wait(15)
    assert await find(table) is None
    assert await store.get(b"key") == Lapsed(pin, 5)
    assert await table.find_or_lead(Slot(b"key"), lambda pin, overdue: None if overdue == 5 else "lapsed") == pin
    assert await store.get(b"key") == pin


async def test_forget_gives_up_only_its_own_key() -> None:
    table = make_table(MemoryStore())
    await record(table, Pin("a", table.now()))
    await record(table, Pin("b", table.now()), b"other")
    assert await table.forget(b"key") is True
    assert await table.forget(b"never there") is False
    assert await find(table) is None
    assert await find(table, b"other") is not None


class Out(MemoryStore):
    """A store that does not answer."""

    async def get(self, key: bytes) -> Pin | None:
        raise OSError("down")

    async def add(self, key: bytes, pin: Pin) -> Pin:
        raise OSError("down")


async def test_a_pin_that_does_not_hold_is_not_recalled_and_makes_room_for_another() -> None:
    clock = Clock()
    copy = LocalCopy(timer=clock, now=clock)
    shared = ResilientStore(Out(), copy, timeout_seconds=1, timer=clock)
    table = make_table(Out(), shared, timer=clock, now=clock)
    for model in ("a", "b"):
        slot = Slot(b"key")
        assert await table.record(slot, Pin(model, clock.now)) == Pin(model, clock.now)
        assert slot.failed
        assert await find(table) == Pin(model, clock.now)
        await clock.wait(1)
        assert await table.find_or_lead(Slot(b"key"), lambda pin, overdue: "retired") is None
        assert await find(table) is None


async def test_a_lapsed_pin_is_recalled_and_goes_on_here() -> None:
    clock = Clock()
    copy = LocalCopy(ttl_seconds=10, timer=clock, now=clock)
    copy.keep(b"key", Pin("a", 1.0))
    table = make_table(Out(), ResilientStore(Out(), copy, timeout_seconds=1, timer=clock), timer=clock)
    await clock.wait(15)
    slot = Slot(b"key")
    assert await table.find_or_lead(slot, lambda pin, overdue: None if overdue == 5 else "lapsed") == Pin("a", 1.0)
    assert slot.failed
    assert await find(table) == Pin("a", 1.0)


async def test_a_pin_that_is_forgotten_while_the_store_is_out_is_forgotten_here_and_told_later() -> None:
    copy = LocalCopy()
    copy.keep(b"key", Pin("a", 1.0))
    table = make_table(Out(), ResilientStore(Out(), copy, timeout_seconds=1))
    with pytest.raises(StoreUnavailable):
        await table.forget(b"key")
    assert await find(table) is None
    known, _ = copy.find(b"key")
    assert known is not None
    assert copy.is_in_doubt(known)


async def test_what_is_decided_while_a_pin_is_forgotten_in_vain_stays() -> None:
    class Late(MemoryStore):
        async def discard(self, key: bytes, pin: Pin) -> bool:
            await super().discard(key, pin)
            await self.add(key, Pin("new", clock.now))
            clock.now += 1
            raise OSError("down")

    clock, store = Clock(), Late()
    shared = ResilientStore(store, LocalCopy(timer=clock, now=clock), timeout_seconds=1, timer=clock)
    table = make_table(store, shared, timer=clock, now=clock)
    await record(table, Pin("a", clock.now - 1))
    with pytest.raises(StoreUnavailable):
        await table.forget(b"key")
    found = await find(table)
    assert found is not None
    assert found.model == "new"


async def test_a_failure_of_the_store_is_raised_by_forget_alone() -> None:
    table = make_table(Out())
    with pytest.raises(OSError, match="down"):
        await table.forget(b"key")
    slot = Slot(b"key")
    failures.clear()
    assert await table.find_or_lead(slot, unless_lapsed) is None
    assert (slot.failed, failures) == (True, ["failed"])
