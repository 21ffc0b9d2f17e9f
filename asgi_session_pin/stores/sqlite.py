"""Pins in a SQLite file, for the processes of one host."""

import os
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..log import logger
from ..pin import Pin
from ._sqlite_file import SQLiteFile
from .base import Entry, Lapsed, Page

# A column's type binds nobody who writes to the file, and text may not even be UTF-8.
_IS_SOUND = "typeof(pin) = 'blob' AND typeof(used) = 'real' AND typeof(expires) = 'real'"
_GET = f"SELECT iif({_IS_SOUND}, pin, NULL), CAST(used AS REAL), CAST(expires AS REAL) FROM pins WHERE key = ?"  # noqa: S608
_HOLDS = f"expires > :now AND {_IS_SOUND}"
_ADD = f"""
INSERT INTO pins VALUES (:key, :pin, :now, :expires) ON CONFLICT DO UPDATE SET
    pin = iif({_HOLDS}, pin, excluded.pin),
    used = iif({_HOLDS}, used, excluded.used),
    expires = iif({_HOLDS}, expires, excluded.expires)
RETURNING pin
"""  # noqa: S608
_RENEW = "UPDATE pins SET used = ?, expires = ? WHERE key = ? AND used = ?"  # if nobody else did
_DISCARD = "DELETE FROM pins WHERE key = ? AND pin = ?"
_DELETE = f"DELETE FROM pins WHERE key = ? AND (pin = ? OR NOT ({_IS_SOUND}))"  # noqa: S608
_CLAIM = """
INSERT INTO claims VALUES (:key, :token, :expires) ON CONFLICT DO UPDATE SET
    token = excluded.token, expires = excluded.expires
WHERE claims.expires <= :now OR claims.token = excluded.token OR typeof(claims.expires) <> 'real'
"""
_RELEASE = "DELETE FROM claims WHERE key = ? AND token = ?"

# Pins that lapsed are kept for a tool loop, until there is no room: then they are the first to go.
_REMOVE_LAPSED = """
DELETE FROM pins WHERE key IN (SELECT key FROM pins WHERE expires <= :kept_since ORDER BY expires LIMIT :batch)
"""
_EXCESS = "(SELECT max(0, min(:batch, number - :max_entries)) FROM pin_count)"
_REMOVE_EXCESS_LAPSED = f"""
DELETE FROM pins WHERE key IN (SELECT key FROM pins WHERE expires <= :now ORDER BY expires LIMIT {_EXCESS})
"""  # noqa: S608
_REMOVE_EXCESS = f"""
DELETE FROM pins WHERE key IN (SELECT key FROM pins WHERE key <> :key ORDER BY used LIMIT {_EXCESS})
"""  # noqa: S608
_REMOVE_CLAIMS = """
DELETE FROM claims WHERE key IN (SELECT key FROM claims WHERE expires <= :now ORDER BY expires LIMIT :batch)
"""

_SCAN = f"SELECT key, pin, used FROM pins WHERE key > ? AND expires > ? AND {_IS_SOUND} ORDER BY key LIMIT ?"  # noqa: S608
_COUNT = "SELECT count(*) FROM pins WHERE expires > ?"
_READ_NOTE = "SELECT content FROM note"
_FIRST_NOTE = "INSERT INTO note VALUES (1, ?) ON CONFLICT DO NOTHING"
_REPLACE_NOTE = "UPDATE note SET content = ? WHERE content = ?"

_BATCH = 20  # rows that a write removes at most by each of these, so that none takes long, whatever has piled up
_RENEWED_PART = 0.1  # of the time to live: a use is written if the last written one is so long ago


class SQLiteStore:
    """At most *max_entries* pins in the file *path*, the least recently used goes first.

    A pin lapses *ttl_seconds* after its last use, or after its decision if *sliding* is False, and is kept for
    *tool_loop_seconds* more. A use is written if a tenth of its time went by since the last one that was, so a pin may
    lapse, or give way, as much earlier.

    - The processes of one host share the file. It can't be on a network filesystem: WAL needs memory that all of them
      share.
    - The file is made at the first use, for its owner alone, with `-wal` and `-shm` beside it. What is wrong with it
      raises ValueError here if it shows already, else that or `sqlite3.Error` where it is found. Delete the file only
      while nobody has it open. It does not shrink; its room is used again.
    - Reads are made on the event loop, in microseconds, and wait for no write. Writes are made on a thread; they wait
      for another process's up to 0.25 seconds.
    - A store is for one event loop at a time. A closed one opens again when it is used.
    - Fork before the first use, as preforking servers do, or after `aclose`. A store that is open at a fork goes on in
      the parent, and raises RuntimeError in the child.
    - Only keys, pins, tokens of claims and times are kept. *clock* is the wall clock, which all processes share.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        ttl_seconds: float = 600,
        sliding: bool = True,
        tool_loop_seconds: float = 3600,
        max_entries: int = 10_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ttl = ttl_seconds
        self._sliding = sliding
        self._kept = tool_loop_seconds
        self._max_entries = max_entries
        self._clock = clock
        self._file = SQLiteFile(Path(os.path.realpath(path)))
        self._told = False

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self._file.path)!r})"

    @property
    def failed_renewals(self) -> int:
        """How many uses of pins could not be written; it is logged once a minute."""
        return self._file.failures

    async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
        """Return the pin of *key*, or None; see `PinStore.get`."""
        row = await self._file.read(_GET, (key,))
        if row is None:
            return None
        data, used, expires = row
        pin = self._decode(data)
        if pin is None:  # nobody waits for the delete: `add` does without
            self._file.postpone(key, _DELETE, (key, data))
            return None
        now = self._clock()
        if expires <= now:
            return Lapsed(pin, now - expires) if now - expires < self._kept else None
        if now - used >= self._ttl * _RENEWED_PART:
            if self._sliding:
                expires = now + self._ttl
            self._file.postpone(key, _RENEW, (now, expires, key, used))
        return pin

    async def add(self, key: bytes, pin: Pin) -> Pin:
        """Keep *pin* unless there is one that holds; see `PinStore.add`."""
        return await self._file.write(partial(self._add, key, pin))

    async def discard(self, key: bytes, pin: Pin) -> bool:
        """Give up *pin* if it still is there; see `PinStore.discard`."""
        return await self._file.write(partial(_change, _DISCARD, (key, pin.encode())))

    async def claim(self, key: bytes, token: bytes, seconds: float) -> bool:
        """Take the right to decide for *key*; see `ClaimingStore.claim`."""
        return await self._file.write(partial(self._claim, key, token, seconds))

    async def release(self, key: bytes, token: bytes) -> None:
        """Give a claim back; see `ClaimingStore.release`."""
        await self._file.write(partial(_change, _RELEASE, (key, token)))

    async def peek(self, key: bytes) -> Entry | None:
        """Return the pin of *key*, if it holds; see `OperableStore.peek`."""
        row = await self._file.read(_GET, (key,))
        if row is None or row[2] <= self._clock():
            return None
        return self._entry(key, row[0], row[1])

    async def scan(self, after: str | None, limit: int) -> Page:
        """Return some pins, in the order of their keys; see `OperableStore.scan`."""
        rows = await self._file.look(_SCAN, (bytes.fromhex(after or ""), self._clock(), limit))
        entries = [entry for row in rows if (entry := self._entry(*row)) is not None]
        return Page(entries, rows[-1][0].hex() if len(rows) == limit else None)

    async def count(self) -> int:
        """Return how many pins hold; see `OperableStore.count`."""
        [(number,)] = await self._file.look(_COUNT, (self._clock(),))
        return int(number)

    async def read_note(self) -> bytes | None:
        """Return the note; see `OperableStore.read_note`."""
        row = await self._file.read(_READ_NOTE, ())
        return None if row is None else bytes(row[0])

    async def replace_note(self, old: bytes | None, new: bytes) -> bool:
        """Replace the note if it is *old*; see `OperableStore.replace_note`."""
        if old is None:
            return await self._file.write(partial(_change, _FIRST_NOTE, (new,)))
        return await self._file.write(partial(_change, _REPLACE_NOTE, (new, old)))

    def _entry(self, key: bytes, data: bytes | None, used: float) -> Entry | None:
        pin = self._decode(data)
        return None if pin is None else Entry(key, pin, max(0.0, self._clock() - used))

    async def aclose(self) -> None:
        """Write what is queued and close the file."""
        await self._file.aclose()

    def _decode(self, data: bytes | None) -> Pin | None:
        """Return the pin; None for what is no pin, which must not stand in a session's way and is to be deleted."""
        try:
            if data is not None:
                return Pin.decode(data)
        except ValueError:
            pass
        if not self._told:
            self._told = True
            logger.warning("a row of %r holds what is no pin of this version; such rows are deleted", self)
        return None

    def _add(self, key: bytes, pin: Pin, writer: sqlite3.Connection) -> Pin:
        now = self._clock()
        values = {
            "key": key,
            "pin": pin.encode(),
            "now": now,
            "expires": now + self._ttl,
            "kept_since": now - self._kept,
            "max_entries": self._max_entries,
            "batch": _BATCH,
        }
        with writer:
            writer.execute("BEGIN IMMEDIATE")
            [(data,)] = writer.execute(_ADD, values)
            in_force = self._decode(data)
            if in_force is None:
                writer.execute(_DELETE, (key, data))
                writer.execute(_ADD, values).fetchone()
            writer.execute(_REMOVE_LAPSED, values)
            writer.execute(_REMOVE_EXCESS_LAPSED, values)
            writer.execute(_REMOVE_EXCESS, values)
        return in_force or pin

    def _claim(self, key: bytes, token: bytes, seconds: float, writer: sqlite3.Connection) -> bool:
        now = self._clock()
        values = {"key": key, "token": token, "now": now, "expires": now + seconds, "batch": _BATCH}
        with writer:
            writer.execute("BEGIN IMMEDIATE")
            writer.execute(_REMOVE_CLAIMS, values)
            return writer.execute(_CLAIM, values).rowcount == 1


def _change(statement: str, parameters: tuple[object, ...], writer: sqlite3.Connection) -> bool:
    return writer.execute(statement, parameters).rowcount == 1
