"""The file of a SQLite store: what is in it, whether it can be used, how it is made and opened."""

import contextlib
import os
import sqlite3
import threading
from pathlib import Path

_OLDEST_SQLITE = (3, 35)  # RETURNING
_APPLICATION_ID = 0x7370696E  # "spin"
_VERSION = 1
_READER_BUSY_SECONDS = 0.01  # a read waits for nobody but one who mends the file after a crash, on the event loop

# `expires` says when a pin lapses, `used` who goes first when there is no room. Triggers count the pins: COUNT(*) would
# read the whole table. Rows are small, so they live in the index of their key: WITHOUT ROWID.
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS pins"
    " (key BLOB PRIMARY KEY, pin BLOB NOT NULL, used REAL NOT NULL, expires REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS pins_by_use ON pins (used)",
    "CREATE TABLE IF NOT EXISTS claims"
    " (key BLOB PRIMARY KEY, token BLOB NOT NULL, expires REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS claims_by_expiry ON claims (expires)",
    "CREATE TABLE IF NOT EXISTS pin_count (number INTEGER NOT NULL)",
    "INSERT INTO pin_count SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM pin_count)",
    "CREATE TRIGGER IF NOT EXISTS pin_added AFTER INSERT ON pins BEGIN UPDATE pin_count SET number = number + 1; END",
    "CREATE TRIGGER IF NOT EXISTS pin_removed AFTER DELETE ON pins BEGIN UPDATE pin_count SET number = number - 1; END",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)
# One statement, so it sees one state of a file that another process is making.
_IDENTIFY = """
SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version),
    EXISTS (SELECT 1 FROM sqlite_master)
"""

_creating = threading.Lock()


def check(path: Path) -> None:
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


def open_file(path: Path) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """Return a connection to write with and one to read with; the file is made if there is none.

    The first one does not wait for other processes: it raises, and the caller tries again. Left to itself SQLite sleeps
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
