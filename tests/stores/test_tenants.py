"""The bound of one tenant's pins in the memory store."""

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_driver import SESSION, Clock, Gateway, Header, call
from asgi_session_pin import Config, ConfigError, Limits, MemoryStore, Pin, Routing, SessionPinMiddleware
from asgi_session_pin.pin import TENANT_BYTES
from asgi_session_pin.stores._tenants import OwnedEntry, TenantLRU
from behaviour_document import Section, case

A, B = Pin("a", 1.0), Pin("b", 2.0)
AUTO = {"model": "auto"}


def key(tenant: int, number: int) -> bytes:
    return b"%06d" % tenant + b"%010d" % number


def credential(name: str) -> Header:
    return (b"authorization", b"Bearer " + name.encode())


def session(number: int) -> Header:
    return (b"x-session-id", b"session-%d" % number)


@case(
    Section.PIN,
    "one credential has `max_pins_per_credential` pins in the in-process table",
    "its own least recently used pin goes, and none of another's",
)
async def test_a_tenants_own_least_recently_used_pin_goes_first() -> None:
    limits, gateway = Limits(max_pins_per_credential=2), Gateway("a")
    app = SessionPinMiddleware(gateway, config=Config(limits=limits, routing=Routing(session_max_entries=6)))
    await call(app, AUTO, SESSION, credential("other"))
    for number in (1, 2):
        await call(app, AUTO, session(number), credential("one"))
    await call(app, AUTO, session(1), credential("one"))
    for number in (3, 4, 5, 6, 7, 1):
        await call(app, AUTO, session(number), credential("one"))
        await call(app, AUTO, session(1), credential("one"))
    statuses = [(await call(app, AUTO, session(number), credential("one"))).pin_status for number in (1, 2)]
    assert statuses == ["hit", "miss"]
    assert (await call(app, AUTO, SESSION, credential("other"))).pin_status == "hit"
    assert await app.forget("session-1", headers={"authorization": "Bearer other"}, model="auto")


async def test_any_number_of_one_tenants_pins_pushes_out_none_of_anothers() -> None:
    store = MemoryStore(max_entries=1000, max_per_tenant=100)
    for number in range(100):
        await store.add(key(1, number), A)
    for number in range(20_000):
        await store.add(key(2, number), A)
    assert len(store) == 200
    assert all([await store.get(key(1, number)) == A for number in range(100)])
    assert all([await store.get(key(2, number)) == A for number in range(19_900, 20_000)])


async def test_where_the_table_is_full_the_least_recently_used_pin_goes_whosever_it_is() -> None:
    store = MemoryStore(max_entries=3, max_per_tenant=2)
    for tenant, number in ((1, 1), (1, 2), (2, 1), (2, 2)):
        await store.add(key(tenant, number), A)
    assert [await store.get(key(1, number)) for number in (1, 2)] == [None, A]
    for number in (3, 4):
        await store.add(key(1, number), A)
    assert [await store.get(key(1, number)) for number in (2, 3, 4)] == [None, A, A]
    assert len(store) == 3


@given(
    steps=st.lists(st.tuples(st.sampled_from(["add", "get", "discard", "wait"]), st.integers(1, 3), st.integers(1, 4))),
    most=st.integers(1, 3),
    sliding=st.booleans(),
)
async def test_whatever_is_done_each_tenant_has_its_last_used_pins(
    steps: list[tuple[str, int, int]], most: int, sliding: bool
) -> None:
    clock = Clock()
    store = MemoryStore(
        ttl_seconds=10, sliding=sliding, max_entries=12, max_per_tenant=most, tool_loop_seconds=0, timer=clock
    )
    model: dict[int, OrderedDict[int, float]] = {tenant: OrderedDict() for tenant in (1, 2, 3)}  # and when they lapse
    for what, tenant, number in steps:
        known, name = model[tenant], key(tenant, number)
        holds = known.get(number, 0) > clock.now
        if what == "wait":
            await clock.wait(number)
        elif what == "discard":
            assert await store.discard(name, A) is (number in known)
            known.pop(number, None)
        elif what == "get":
            assert (await store.get(name) == A) is holds
            if not holds:
                known.pop(number, None)
            elif sliding:
                known[number] = clock.now + 10
            if holds:
                known.move_to_end(number)
        else:
            await store.add(name, A)
            if not holds:
                if number not in known and len(known) == most:
                    known.popitem(last=False)
                known[number] = clock.now + 10
                known.move_to_end(number)
        assert len(store) == sum(map(len, model.values()))
    await store.aclose()
    assert len(store) == 0
    assert await store.add(key(1, 1), B) == B


@pytest.mark.parametrize("url", ["sqlite:///pins.db", "redis://127.0.0.1:1/0"])
def test_a_shared_store_can_not_tell_whose_a_pin_is(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SessionPinMiddleware(Gateway("a"), config={"store": {"url": url}, "limits": {"max_pins_per_credential": 5}})
    assert caught.value.faults == (
        "limits.max_pins_per_credential: found 5, expected null: only memory:// knows whose a pin is",
    )


async def test_a_keys_beginning_tells_its_credential_alone() -> None:
    class Recording(MemoryStore):
        async def add(self, key: bytes, pin: Pin) -> Pin:
            keys.append(key)
            return await super().add(key, pin)

    keys: list[bytes] = []
    limits = Limits(max_pins_per_credential=2)
    app = SessionPinMiddleware(Gateway("a"), config=Config(limits=limits), store=Recording())
    for number, name in ((1, "one"), (2, "one"), (1, "two")):
        await call(app, AUTO, session(number), credential(name))
    await call(app, AUTO, session(1))
    assert [len(key) for key in keys] == [16] * 4
    assert len(set(keys)) == 4
    tenants = [key[:TENANT_BYTES] for key in keys]
    assert tenants[0] == tenants[1]
    assert len(set(tenants)) == 3


def test_an_entry_that_is_put_again_counts_once() -> None:
    table = TenantLRU[str](10)
    key = bytes(16)
    for value in ("a", "b"):
        table[key] = OwnedEntry(value, 1.0)
    assert table[key].value == "b"
    assert table.surplus(bytes(15) + b"x", 2) is None
    assert table.surplus(bytes(15) + b"x", 1) == key
