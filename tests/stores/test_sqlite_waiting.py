"""A SQLite store whose writes have to wait, whose calls are cancelled, which is closed."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from asgi_driver import Clock, until
from asgi_session_pin.stores.sqlite import SQLiteStore
from sqlite_files import KEY, OTHER_KEY, A, B, count, files, locked, opened

BOUND = 0.25 + 1  # a write waits so long for another process's, on a busy machine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pins.db"


async def test_reads_go_on_while_another_process_writes(path: Path) -> None:
    store = SQLiteStore(path)
    await store.add(KEY, A)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.add(OTHER_KEY, A),
        lambda: store.discard(KEY, A),
        lambda: store.claim(KEY, b"token", 5),
    ]
    with locked(path):
        for call in calls:
            started = time.monotonic()
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                await call()
            assert time.monotonic() - started < BOUND
        waiting = asyncio.ensure_future(store.add(OTHER_KEY, A))
        await asyncio.sleep(0)
        assert await store.get(KEY) == A
        assert not waiting.done()
    assert await waiting == A
    await store.aclose()


async def test_uses_that_cannot_be_written_are_counted_and_told_once(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_session_pin.stores._sqlite_file._MAX_POSTPONED", 2)
    clock = Clock()
    store = SQLiteStore(path, ttl_seconds=10, clock=clock)
    for key in (b"1", b"2", b"3"):
        await store.add(key, A)
    await clock.wait(5)
    with locked(path):
        waiting = asyncio.ensure_future(store.add(KEY, A))
        await asyncio.sleep(0)  # uses are queued behind it
        for key in (b"1", b"1", b"2", b"3"):  # the same is not queued twice, and a third one not at all
            assert await store.get(key) == A
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await waiting
        await until(lambda: store.failed_renewals == 2)
        await until(lambda: not store._file._postponed)
        await store.get(b"3")
        await until(lambda: store.failed_renewals == 3)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.getMessage()
    await until(lambda: not store._file._postponed)
    await store.get(KEY)
    await store.get(b"1")  # later uses are written
    await store.aclose()
    with opened(path) as connection:
        assert list(connection.execute("SELECT used FROM pins WHERE key = ?", (b"1",))) == [(1005.0,)]


async def test_calls_that_are_cancelled_while_they_are_queued_do_nothing(path: Path) -> None:
    store = SQLiteStore(path)
    await store.add(KEY, A)
    with locked(path):
        calls: list[Awaitable[object]] = [
            store.claim(KEY, b"token", 60),
            store.claim(OTHER_KEY, b"token", 60),
            store.add(OTHER_KEY, A),
            store.discard(KEY, A),
        ]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0.01)  # the first is at work, the others wait for it
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
    await store.release(KEY, b"token")  # the first was at work and may have been given: who asked gives it back
    assert await store.claim(KEY, b"other token", 60) is True
    assert await store.claim(OTHER_KEY, b"other token", 60) is True
    assert await store.get(OTHER_KEY) is None
    assert await store.get(KEY) == A
    await store.aclose()


async def test_closing_waits_for_what_is_queued(path: Path) -> None:
    clock = Clock()
    store = SQLiteStore(path, ttl_seconds=10, clock=clock)
    await store.add(KEY, A)
    await clock.wait(5)
    await store.get(KEY)
    added = [asyncio.ensure_future(store.add(str(number).encode(), A)) for number in range(50)]
    await asyncio.sleep(0)
    await store.aclose()
    assert files(path) == [path]
    assert await asyncio.gather(*added) == [A] * 50
    assert count(path) == 51
    with opened(path) as connection:
        assert list(connection.execute("SELECT used FROM pins WHERE key = ?", (KEY,))) == [(1005.0,)]


async def test_a_closed_store_opens_again(path: Path) -> None:
    store = SQLiteStore(path)
    await store.add(KEY, A)
    await store.aclose()
    assert await store.get(KEY) == A
    await asyncio.gather(store.aclose(), store.aclose(), store.aclose())
    assert await store.add(KEY, B) == A
    await store.aclose()


def test_it_serves_one_event_loop_after_another_closed_or_not(path: Path) -> None:
    store = SQLiteStore(path)
    assert asyncio.run(store.add(KEY, A)) == A
    assert asyncio.run(store.get(KEY)) == A
    asyncio.run(store.aclose())
    assert asyncio.run(store.get(KEY)) == A
    asyncio.run(store.aclose())
    assert files(path) == [path]


async def test_reads_go_on_while_the_file_is_closed_and_opened(path: Path) -> None:
    store = SQLiteStore(path)
    await store.add(KEY, A)
    closings = [asyncio.ensure_future(store.aclose()) for _ in range(20)]
    while not all(closing.done() for closing in closings):
        assert await store.get(KEY) == A
        await asyncio.sleep(0)
    await store.aclose()
    assert files(path) == [path]
