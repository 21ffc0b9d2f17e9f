"""SQLite files seen from beside the store."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from asgi_session_pin import Pin
from asgi_session_pin.pin import NamedModel
from asgi_session_pin.stores.sqlite import SQLiteStore

KEY = bytes(range(16))
OTHER_KEY = bytes(range(1, 17))
A = Pin("model-a", 1.0)
B = Pin("model-b", 2.25, b'{"model":"model-b"}', NamedModel("b-2024-08-06", "model-b", "body:model", "json"))


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Look into the file beside the store."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Keep everybody else from writing."""
    with opened(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("ROLLBACK")


def files(path: Path) -> list[Path]:
    return list(path.parent.iterdir())


async def all_is_written(store: SQLiteStore) -> None:
    """Wait for the uses that are queued: writes are made one after the other."""
    await store.release(b"", b"")


def last_use(path: Path) -> float:
    with opened(path) as connection:
        [(used,)] = connection.execute("SELECT used FROM pins")
        return float(used)


def count(path: Path) -> int:
    with opened(path) as connection:
        [(found, counted)] = connection.execute("SELECT (SELECT COUNT(*) FROM pins), number FROM pin_count")
        assert found == counted
        return int(found)
