"""Files that a SQLite store can't use, at its start and later."""

import asyncio
import logging
import os
import resource
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from asgi_session_pin import Pin
from asgi_session_pin.stores.sqlite import SQLiteStore
from sqlite_files import all_is_written, count

KEY = bytes(range(16))
A = Pin("model-a", 1.0)
BIG = Pin("model-a", 1.0, b"x" * 8192)
NOBODY = 65534
BOUND = 0.25 + 1  # a write waits so long for another process, on a busy machine


@pytest.fixture
def path() -> Iterator[Path]:
    """A file in a directory that other users may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(os.path.realpath(directory), "pins.db")


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Be somebody whom file permissions bind."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(was)


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


async def make(path: Path) -> None:
    store = SQLiteStore(path)
    await store.add(KEY, A)
    await store.aclose()


async def add_many(store: SQLiteStore) -> None:
    for number in range(40):
        await store.add(str(number).encode(), BIG)


def damage(path: Path) -> None:
    """Leave the first 100 bytes, which are the header."""
    execute(path, *(f"CREATE TABLE t{number} (a)" for number in range(100)))
    path.write_bytes(path.read_bytes()[:100].ljust(path.stat().st_size, b"\xff"))


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.mkdir(), "is not a file"),
    (lambda path: os.mkfifo(path), "is not a file"),
    (lambda path: path.write_bytes(b"pins: none\n" * 1000), "file is not a database"),
    (damage, "malformed"),
    (lambda path: execute(path, "CREATE TABLE pins (key)"), "another program's database"),
    (lambda path: execute(path, "PRAGMA application_id = 1"), "another program's database"),
    (lambda path: execute(path, "PRAGMA user_version = 1"), "another program's database"),
    (lambda path: execute(path, f"PRAGMA application_id = {0x7370696E}", "PRAGMA user_version = 2"), "newer version"),
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS)
def test_a_file_that_is_not_ours_is_refused_and_left_alone(
    path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(path)
    was = path.read_bytes() if path.is_file() else None
    with pytest.raises(ValueError, match=message):
        SQLiteStore(path)
    assert (path.read_bytes() if path.is_file() else None) == was


@pytest.mark.parametrize(("spoil", "message"), FAULTS[2:])
async def test_a_file_that_goes_bad_later_raises_when_it_is_used(
    path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    store = SQLiteStore(path)
    spoil(path)
    for call in (store.get(KEY), store.add(KEY, A), store.claim(KEY, b"token", 1)):
        with pytest.raises((ValueError, sqlite3.DatabaseError), match=message):
            await call
    os.unlink(path)
    assert await store.add(KEY, A) == A
    await store.aclose()


def test_an_empty_file_is_taken(path: Path) -> None:
    path.touch()
    asyncio.run(make(path))
    SQLiteStore(path)


def test_names_with_the_signs_of_addresses_are_names(path: Path) -> None:
    strange = path.parent / "a?mode=memory&b#c%20d é.db"
    asyncio.run(make(strange))
    assert list(path.parent.iterdir()) == [strange]
    SQLiteStore(strange)


def test_a_link_leads_to_its_file(path: Path) -> None:
    (path.parent / "there").mkdir()
    path.symlink_to(path.parent / "there" / "real.db")
    asyncio.run(make(path))
    assert [file.name for file in (path.parent / "there").iterdir()] == ["real.db"]


def test_a_directory_has_to_be_there_and_writable(path: Path) -> None:
    with pytest.raises(ValueError, match="there is no directory"):
        SQLiteStore(path.parent / "nowhere" / "pins.db")
    path.parent.chmod(0o555)
    with ordinary_user(), pytest.raises(ValueError, match=r"directory .* is not writable"):
        SQLiteStore(path)
    path.parent.chmod(0o755)


def test_a_file_has_to_be_writable(path: Path) -> None:
    asyncio.run(make(path))
    path.chmod(0o444)
    path.parent.chmod(0o777)
    with ordinary_user(), pytest.raises(ValueError, match="is read-only"):
        SQLiteStore(path)


async def test_a_directory_that_goes_away_raises_when_it_is_used(path: Path) -> None:
    (path.parent / "pins").mkdir()
    store = SQLiteStore(path.parent / "pins" / "pins.db")
    (path.parent / "pins").rmdir()
    with pytest.raises(OSError, match="No such file"):
        await store.get(KEY)
    await store.aclose()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("sqlite_version_info", (3, 34, 1), "too old, expected 3.35"), ("threadsafety", 0, "without support for threads")],
)
def test_a_library_that_lacks_something_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object, message: str
) -> None:
    monkeypatch.setattr(sqlite3, name, value)
    with pytest.raises(ValueError, match=message):
        SQLiteStore(path)


async def test_a_file_that_is_locked_at_the_start_raises_when_it_is_used(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE theirs (a)")
        other.execute("BEGIN EXCLUSIVE")
        store = SQLiteStore(path)
        started = time.monotonic()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await store.get(KEY)
        assert time.monotonic() - started < BOUND


@pytest.mark.parametrize("seconds", [0.1, None])
async def test_the_first_opening_waits_a_little_for_another_process(path: Path, seconds: float | None) -> None:
    await make(path)
    execute(path, "PRAGMA journal_mode = DELETE")  # as it is for a moment when it is made
    store = SQLiteStore(path)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        if seconds is None:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                await store.get(KEY)
            other.execute("ROLLBACK")
        else:
            threading.Timer(seconds, other.execute, ["ROLLBACK"]).start()
        assert await store.get(KEY) == A
    await store.aclose()


async def test_a_database_that_is_full_raises_and_goes_on_when_there_is_room(path: Path) -> None:
    store = SQLiteStore(path)
    await store.add(KEY, A)
    await store._file.write(lambda writer: writer.execute("PRAGMA max_page_count = 20").fetchall())
    with pytest.raises(sqlite3.OperationalError, match="full"):
        await add_many(store)
    assert await store.get(KEY) == A
    assert await store.discard(b"0", BIG) is True
    assert await store.add(b"another", BIG) == BIG
    await store.aclose()


async def test_a_disk_that_takes_no_more_raises_and_goes_on_when_there_is_room(path: Path) -> None:
    store = SQLiteStore(path)
    await store.add(KEY, A)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(sqlite3.OperationalError, match="disk"):
            await add_many(store)
        assert await store.get(KEY) == A
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert await store.add(b"another", BIG) == BIG
    await store.aclose()
    with closing(sqlite3.connect(path)) as connection:
        assert list(connection.execute("PRAGMA integrity_check")) == [("ok",)]


NO_PINS = [
    "pin = x''",
    "pin = x'c1'",
    "pin = CAST('a secret of another program' AS BLOB)",
    "pin = x'82a56d6f64656c01'",
    f"pin = x'{A.encode().replace(b'model-a', b'model a').hex()}'",  # can't be sent
    "pin = 'a secret of another program'",
    "pin = CAST(pin AS TEXT)",
    "pin = 1000000000000",
    "pin = 0.5",
    "used = 'a secret of another program'",
    "used = CAST(x'ff' AS TEXT)",
    "expires = 'a secret of another program'",
    "expires = x'ff'",
]


@pytest.mark.parametrize("spoiled", NO_PINS)
async def test_a_row_that_holds_no_pin_stands_in_nobodys_way(
    path: Path, spoiled: str, caplog: pytest.LogCaptureFixture
) -> None:
    await make(path)
    spoiling = f"UPDATE pins SET {spoiled}"
    store = SQLiteStore(path)
    execute(path, spoiling)
    assert await store.get(KEY) is None
    await all_is_written(store)
    assert count(path) == 0
    await store.add(KEY, A)
    execute(path, spoiling)
    assert await store.add(KEY, BIG) == BIG
    assert await store.get(KEY) == BIG
    assert await store.discard(KEY, BIG) is True
    messages = {record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING}
    assert messages == {f"a row of {store!r} holds what is no pin of this version; such rows are deleted"}
    assert "secret" not in caplog.text
    await store.aclose()


async def test_a_claim_whose_end_is_no_time_is_over(path: Path) -> None:
    store = SQLiteStore(path)
    assert await store.claim(KEY, b"token", 60) is True
    assert await store.claim(KEY, b"other token", 60) is False
    execute(path, "UPDATE claims SET expires = 'never'")
    assert await store.claim(KEY, b"other token", 60) is True
    await store.aclose()
