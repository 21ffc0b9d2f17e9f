"""The file of a SQLite store: whether it can be used, what is in it, how it is opened, read and written."""

import asyncio
import contextlib
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..log import logger

_BUSY_SECONDS = 0.25  # a write waits so long for another process's
_MAX_POSTPONED = 500  # writes that nobody waits for: they are made together, in a few ms
_QUIET_SECONDS = 60

_OLDEST_SQLITE = (3, 35)  # RETURNING
_APPLICATION_ID = 0x7370696E  # "spin"
_VERSION = 1
_READER_BUSY_SECONDS = 0.01  # a read waits for nobody but one who mends the file after a crash, on the event loop

# `expires` says when a pin lapses, `used` which one goes first when there is no room and none has. Triggers count
# the pins: COUNT(*) would read the whole table. Rows are small, so they live in the index of their key: WITHOUT ROWID.
_BY_EXPIRY = "CREATE INDEX IF NOT EXISTS pins_by_expiry ON pins (expires)"
_NOTE = "CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY CHECK (id = 1), content BLOB NOT NULL)"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS pins"
    " (key BLOB PRIMARY KEY, pin BLOB NOT NULL, used REAL NOT NULL, expires REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS pins_by_use ON pins (used)",
    _BY_EXPIRY,
    "CREATE TABLE IF NOT EXISTS claims"
    " (key BLOB PRIMARY KEY, token BLOB NOT NULL, expires REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS claims_by_expiry ON claims (expires)",
    "CREATE TABLE IF NOT EXISTS pin_count (number INTEGER NOT NULL)",
    "INSERT INTO pin_count SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM pin_count)",
    "CREATE TRIGGER IF NOT EXISTS pin_added AFTER INSERT ON pins BEGIN UPDATE pin_count SET number = number + 1; END",
    "CREATE TRIGGER IF NOT EXISTS pin_removed AFTER DELETE ON pins BEGIN UPDATE pin_count SET number = number - 1; END",
    _NOTE,
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)
# One statement, so it sees one state of a file that another process is making.
_IDENTIFY = """
SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version),
    EXISTS (SELECT 1 FROM sqlite_master)
"""

_creating = threading.Lock()

T = TypeVar("T")


class SQLiteFile:
    """Opened at the first use: one connection to read with, one to write with. For one event loop at a time.

    Reads are made on the event loop: WAL lets them go on beside a write. Writes are made on a thread, one after the
    other; it is there that the file is opened and closed.

    What is open must not be carried over a fork: SQLite in the child takes the locks of its parent for its own, and
    works on a file that others may replace meanwhile. It can't be closed there either. So it raises in the child.
    """

    def __init__(self, path: Path) -> None:
        _check(path)
        self.path = path
        self.failures = 0
        """How many postponed writes failed."""
        self._told_again = 0.0
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self._postponed: dict[bytes, tuple[str, tuple[object, ...]]] = {}
        self._is_flush_queued = False
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._thread = ThreadPoolExecutor(1, "session-pin-sqlite")  # it begins with the first job
        self._reading = threading.Lock()  # held while the reader is used, replaced or closed, for microseconds

    async def read(self, statement: str, parameters: tuple[object, ...]) -> Any:
        """Return the one row that *statement* finds, or None."""
        while True:
            self._look_for_a_fork()
            with self._reading:
                if self._reader is not None:
                    return self._reader.execute(statement, parameters).fetchone()
            await self.write(_nothing)  # opening takes longer than reading, so it is done on the thread

    async def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Call *job* with the writer, on its thread, and return what it returns.

        It is one transaction: while another process writes it is called again, and in the end raises.
        """
        return await asyncio.wrap_future(self._call(partial(self._on_writer, job)))

    async def look(self, statement: str, parameters: tuple[object, ...]) -> list[Any]:
        """Return the rows that *statement* finds, which may take a while: on a thread, with a connection of its own."""
        await self.write(_nothing)  # there may be no file yet
        return await asyncio.to_thread(_look, self.path, statement, parameters)

    def postpone(self, key: bytes, statement: str, parameters: tuple[object, ...]) -> None:
        """Write soon, unless a write for *key* is postponed already, or too many are; nobody is told how it went."""
        if key not in self._postponed and len(self._postponed) < _MAX_POSTPONED:
            self._postponed[key] = statement, parameters
            if not self._is_flush_queued:
                self._is_flush_queued = True
                self._call(self._flush)

    async def aclose(self) -> None:
        """Write what is queued and close the file. It opens again when it is used."""
        await asyncio.shield(asyncio.wrap_future(self._call(self._close)))

    def _call(self, function: Callable[[], T]) -> "Future[T]":
        self._look_for_a_fork()
        return self._thread.submit(function)

    def _look_for_a_fork(self) -> None:
        if self._process != os.getpid():
            if self._writer is not None:
                raise RuntimeError(f"{self.path} was open when this process was forked, and can't be used in it")
            self._begin()

    def _on_writer(self, job: Callable[[sqlite3.Connection], T]) -> T:
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                return job(self._writer or self._open())
            except sqlite3.OperationalError as error:
                is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # the rest of the code says why
                if not is_busy or time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(0.0005, 0.002))  # noqa: S311 - not in step with the others

    def _open(self) -> sqlite3.Connection:
        self._writer, reader = _open_file(self.path)
        with self._reading:
            self._reader = reader
        return self._writer

    def _flush(self) -> None:
        self._is_flush_queued = False  # what is postponed from now on is for another one
        postponed = list(self._postponed.items())
        try:
            self._on_writer(partial(_execute, [write for _, write in postponed]))
        except Exception:
            self._tell(len(postponed))
        for key, _ in postponed:
            self._postponed.pop(key, None)

    def _tell(self, failures: int) -> None:
        self.failures += failures
        now = time.monotonic()
        if now >= self._told_again:
            self._told_again = now + _QUIET_SECONDS
            logger.warning("uses of pins can't be written to %s (%d so far)", self.path, self.failures, exc_info=True)

    def _close(self) -> None:
        with self._reading:
            reader, self._reader = self._reader, None
            if reader is not None:
                reader.close()
        if self._writer is not None:
            self._writer.close()  # after the reader: the last connection of all processes makes one file of the three
            self._writer = None


def _look(path: Path, statement: str, parameters: tuple[object, ...]) -> list[Any]:
    with contextlib.closing(_connect(path, "rw", _READER_BUSY_SECONDS)) as connection:
        return connection.execute(statement, parameters).fetchall()


def _nothing(writer: sqlite3.Connection) -> None:
    """Only open the file."""


def _execute(writes: list[tuple[str, tuple[object, ...]]], writer: sqlite3.Connection) -> None:
    with writer:
        writer.execute("BEGIN IMMEDIATE")
        for statement, parameters in writes:
            writer.execute(statement, parameters)


def _check(path: Path) -> None:
    """Raise ValueError for what keeps *path* from being used, as far as it shows without writing."""
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise ValueError(f"SQLite {sqlite3.sqlite_version} is too old, expected 3.35 or newer")
    if not sqlite3.threadsafety:
        raise ValueError("this SQLite is built without support for threads")
    directory = path.parent
    if not os.path.isdir(directory):
        raise ValueError(f"there is no directory {directory}")
    if not _allowed(directory, os.W_OK | os.X_OK):  # SQLite makes two more files beside it
        raise ValueError(f"the directory {directory} is not writable")
    if not os.path.exists(path):
        return
    if not os.path.isfile(path):
        raise ValueError(f"{path} is not a file")
    if not _allowed(path, os.R_OK | os.W_OK):
        raise ValueError(f"{path} is read-only, or not readable")
    try:
        # By SQLite, not by reading the header: to close a file by other means drops the locks that this process has.
        with contextlib.closing(_connect(path, "ro", _READER_BUSY_SECONDS)) as connection:
            _is_ours(connection, path)
    except sqlite3.OperationalError:
        pass  # it is locked, or has to be mended: the first use will tell
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path}: {error}") from error


def _open_file(path: Path) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """Return a connection to write with and one to read with; the file is made if there is none.

    The writer does not wait for other processes: it raises, and the caller tries again. Left to itself SQLite sleeps
    longer at each attempt, and where many write some never get their turn.
    """
    _create(path)
    writer = _connect(path, "rw", 0)
    try:
        if not _is_ours(writer, path):
            with writer:
                writer.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA:  # another process may have been faster
                    writer.execute(statement)
        for statement in (_BY_EXPIRY, _NOTE):  # the first files had none
            writer.execute(statement)
        writer.execute("PRAGMA journal_mode = WAL")  # reads go on beside a write; it is kept in the file
        # A power cut may take the last writes, which are then decided again; the file stays whole. FULL would wait for
        # the disk at each write.
        writer.execute("PRAGMA synchronous = NORMAL")
        return writer, _connect(path, "rw", _READER_BUSY_SECONDS)  # to read is to write too, into -shm
    except BaseException:
        writer.close()
        raise


def _allowed(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _connect(path: Path, mode: str, busy_seconds: float) -> sqlite3.Connection:
    # Threads share a connection, under a lock. No isolation level: transactions begin where it says BEGIN.
    return sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, timeout=busy_seconds, isolation_level=None, check_same_thread=False
    )


def _create(path: Path) -> None:
    """Make an empty file that nobody else may read; SQLite gives -wal and -shm the same permissions."""
    # Of two stores in a process none may open the file before the other closed it: closing drops its locks.
    with _creating, contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))


def _is_ours(connection: sqlite3.Connection, path: Path) -> bool:
    """Tell whether our tables are there, or nothing yet; raises ValueError for anything else."""
    [(application_id, version, has_tables)] = connection.execute(_IDENTIFY)
    if application_id == _APPLICATION_ID:
        if version > _VERSION:
            raise ValueError(f"{path} is of a newer version of asgi-session-pin: {version}, expected {_VERSION}")
        return True
    if application_id or version or has_tables:
        raise ValueError(f"{path} is another program's database")
    return False
