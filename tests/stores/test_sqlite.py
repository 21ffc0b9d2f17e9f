"""What is the SQLite store's own: what it keeps, and what goes."""

import asyncio
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_driver import Clock
from asgi_session_pin import Lapsed, MemoryStore, Pin
from asgi_session_pin.stores.sqlite import SQLiteStore
from sqlite_files import KEY, OTHER_KEY, A, B, all_is_written, count, files, last_use, opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pins.db"


async def test_nothing_is_made_before_the_first_use(path: Path) -> None:
    store = SQLiteStore(path)
    await store.aclose()
    assert files(path) == []
    assert repr(store) == f"SQLiteStore({str(path)!r})"


async def test_the_file_is_for_its_owner_alone(path: Path) -> None:
    mask = os.umask(0)
    try:
        store = SQLiteStore(path)
        await store.add(KEY, A)
    finally:
        os.umask(mask)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files(path)}
    assert modes == {"pins.db": 0o600, "pins.db-wal": 0o600, "pins.db-shm": 0o600}
    await store.aclose()
    assert files(path) == [path]


async def test_only_keys_pins_tokens_and_times_are_kept(path: Path) -> None:
    store = SQLiteStore(path, ttl_seconds=10, clock=Clock())
    await store.add(KEY, B)
    assert await store.claim(KEY, b"token", 5) is True
    with opened(path) as connection:
        assert list(connection.execute("SELECT * FROM pins")) == [(KEY, B.encode(), 1000.0, 1010.0)]
        assert list(connection.execute("SELECT * FROM claims")) == [(KEY, b"token", 1005.0)]
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert names == {"pins", "claims", "pin_count", "note"}
    await store.aclose()


async def test_a_use_is_written_after_a_tenth_of_the_time(path: Path) -> None:
    clock = Clock()
    store = SQLiteStore(path, ttl_seconds=10, clock=clock)
    await store.add(KEY, A)
    await clock.wait(0.9)
    await store.get(KEY)
    await all_is_written(store)
    assert last_use(path) == 1000
    await clock.wait(0.1)
    await store.get(KEY)
    await all_is_written(store)
    assert last_use(path) == 1001
    await store.aclose()


@pytest.mark.parametrize("sliding", [True, False])
async def test_the_least_recently_used_pins_go_first(path: Path, sliding: bool) -> None:
    clock = Clock()
    store = SQLiteStore(path, ttl_seconds=10, sliding=sliding, max_entries=3, clock=clock)
    for key in (b"1", b"2", b"3"):
        await store.add(key, A)
        await clock.wait(1)
    await store.get(b"1")
    await store.add(b"4", A)
    assert [await store.get(key) for key in (b"1", b"2", b"3", b"4")] == [A, None, A, A]
    await store.aclose()


async def test_what_has_lapsed_goes_before_what_was_used_less_recently(path: Path) -> None:
    clock = Clock()
    store = SQLiteStore(path, ttl_seconds=10, sliding=False, max_entries=2, clock=clock)
    await store.add(b"1", A)
    await clock.wait(5)
    await store.add(b"2", A)
    await clock.wait(4)
    await store.get(b"1")
    await all_is_written(store)
    await clock.wait(1)
    await store.add(b"3", A)
    assert [await store.get(key) for key in (b"1", b"2", b"3")] == [None, A, A]
    await store.aclose()


async def test_a_file_of_the_first_version_gets_its_index(path: Path) -> None:
    store = SQLiteStore(path)
    await store.add(KEY, A)
    await store.aclose()
    with opened(path) as connection:
        connection.execute("DROP INDEX pins_by_expiry")
    assert await store.get(KEY) == A
    with opened(path) as connection:
        assert "pins_by_expiry" in {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    await store.aclose()


async def test_the_newest_pin_stays_when_the_clock_went_back(path: Path) -> None:
    clock = Clock()
    store = SQLiteStore(path, max_entries=1, clock=clock)
    await store.add(b"1", A)
    await clock.wait(-100)
    await store.add(b"2", A)
    assert [await store.get(key) for key in (b"1", b"2")] == [None, A]
    await store.aclose()


async def test_what_piled_up_leaves_little_by_little(path: Path) -> None:
    clock = Clock()
    many = SQLiteStore(path, ttl_seconds=10, tool_loop_seconds=5, max_entries=100, clock=clock)
    for number in range(100):
        await many.add(str(number).encode(), A)
    few = SQLiteStore(path, ttl_seconds=10, tool_loop_seconds=5, max_entries=75, clock=clock)
    await few.add(b"one more", A)
    assert count(path) == 81
    await few.add(b"another", A)
    assert count(path) == 75
    await clock.wait(10)
    await few.add(b"later", A)
    assert count(path) == 75, "what has lapsed is kept for a tool loop"
    await clock.wait(5)
    await few.add(b"much later", A)
    assert count(path) == 56
    await many.aclose()
    await few.aclose()


async def test_pins_of_a_longer_time_to_live_are_left_alone(path: Path) -> None:
    clock = Clock()
    longer, shorter = (SQLiteStore(path, ttl_seconds=seconds, clock=clock) for seconds in (100, 10))
    await longer.add(KEY, A)
    await clock.wait(50)
    await shorter.add(OTHER_KEY, A)
    assert await longer.get(KEY) == A
    await longer.aclose()
    await shorter.aclose()


async def test_claims_that_were_never_given_back_leave(path: Path) -> None:
    clock = Clock()
    store = SQLiteStore(path, clock=clock)
    for number in range(30):
        await store.claim(str(number).encode(), b"token", 5)
    await clock.wait(5)
    await store.claim(KEY, b"token", 5)
    with opened(path) as connection:
        assert list(connection.execute("SELECT COUNT(*) FROM claims")) == [(11,)]
    await store.aclose()


Operation = tuple[str, int]
operations = st.lists(st.tuples(st.sampled_from(["get", "add", "discard", "wait"]), st.integers(0, 5)), max_size=40)


@given(operations, st.booleans())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_keeps_what_the_memory_store_keeps(path: Path, operations: list[Operation], sliding: bool) -> None:
    async def compare() -> None:
        clock = Clock()
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            bounds: dict[str, Any] = {"ttl_seconds": 10, "tool_loop_seconds": 15, "max_entries": 4}
            sqlite = SQLiteStore(Path(directory, "pins.db"), sliding=sliding, clock=clock, **bounds)
            memory = MemoryStore(sliding=sliding, timer=clock, **bounds)
            for operation, number in operations:
                await clock.wait(4 * number if operation == "wait" else 1)  # a tenth: all uses are written
                key, pin = bytes([number]), Pin(f"model-{clock.now}", 1.0)
                found = await sqlite.get(key)
                assert found == await memory.get(key)
                if operation == "add":
                    assert await sqlite.add(key, pin) == await memory.add(key, pin)
                elif operation == "discard":
                    gone = (found.value if isinstance(found, Lapsed) else found) or pin
                    assert await sqlite.discard(key, gone) == await memory.discard(key, gone)
                await all_is_written(sqlite)
            await sqlite.aclose()

    asyncio.run(compare())
