"""A SQLite file that is used by threads, event loops and forked processes."""

import asyncio
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..log import logger
from ._sqlite_setup import check, open_file

_BUSY_SECONDS = 0.25  # a write waits so long for another process's
_MAX_POSTPONED = 500  # writes that nobody waits for: they are made together, in a few ms
_QUIET_SECONDS = 60

T = TypeVar("T")


class SQLiteFile:
    """Opened at the first use, by each process for itself: one connection to read with, one to write with.

    Reads are made where they are asked for: WAL lets them go on beside a write. Writes are made on a thread, one after
    the other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failures = 0
        """How many postponed writes failed."""
        self._told_again = 0.0
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self._executor = _new_executor()
        self._writing = threading.RLock()
        """Held while the writer is used; before `_lock`, if both are."""
        self._lock = threading.RLock()
        """Held while the reader or the executor is used, for microseconds."""
        self._postponed: dict[bytes, tuple[str, tuple[object, ...]]] = {}
        self._is_flush_queued = False
        with _forking:
            check(path)
            _files.add(self)

    async def read(self, statement: str, parameters: tuple[object, ...]) -> Any:
        """Return the one row that *statement* finds, or None."""
        while True:
            with self._lock:
                if self._reader is not None:
                    return self._reader.execute(statement, parameters).fetchone()
            await self.write(_nothing)  # opening takes longer than reading, so it is done on the thread

    async def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Call *job* with the writer, on its thread, and return what it returns.

        It is one transaction: while another process writes it is called again, and in the end raises.
        """
        return await asyncio.wrap_future(self._call(partial(self._on_writer, job)))

    def postpone(self, key: bytes, statement: str, parameters: tuple[object, ...]) -> None:
        """Write soon, unless a write for *key* is postponed already, or too many are; nobody is told how it went."""
        if key not in self._postponed and len(self._postponed) < _MAX_POSTPONED:
            self._postponed[key] = statement, parameters
            if not self._is_flush_queued:
                self._is_flush_queued = True
                self._call(self._flush)

    async def aclose(self) -> None:
        """Write what is queued and close the file. It opens again when it is used."""
        with self._lock:
            executor, self._executor = self._executor, _new_executor()
            closed = executor.submit(self._finish)
            executor.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closed))

    def _call(self, function: Callable[[], T]) -> "Future[T]":
        with self._lock:
            return self._executor.submit(function)

    def _on_writer(self, job: Callable[[sqlite3.Connection], T]) -> T:
        with self._writing:
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
        self._writer, reader = open_file(self.path)
        with self._lock:
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

    def _finish(self) -> None:
        with self._writing:
            self._close()

    def _close(self) -> None:
        with self._lock:
            reader, self._reader = self._reader, None
            if reader is not None:
                reader.close()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()  # after the reader: the last connection of all processes makes one file of the three

    def before_fork(self) -> None:
        """Have nothing open and no thread at work, and let nobody go on until `after_fork`."""
        self._writing.acquire()
        self._lock.acquire()
        if self._postponed:
            self._flush()
        self._close()
        self._executor.shutdown(wait=False)  # in the parent its thread still does what is queued
        self._executor = _new_executor()

    def after_fork(self) -> None:
        """Let everybody go on, in the parent and in the child."""
        self._lock.release()
        self._writing.release()


def _new_executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "session-pin-sqlite")  # its thread begins with the first job


def _nothing(writer: sqlite3.Connection) -> None:
    """Only open the file."""


def _execute(writes: list[tuple[str, tuple[object, ...]]], writer: sqlite3.Connection) -> None:
    with writer:
        writer.execute("BEGIN IMMEDIATE")
        for statement, parameters in writes:
            writer.execute(statement, parameters)


# A connection must not be carried over a fork, not even to be closed there: the child would work on the parent's locks.
# Nor may a fork copy SQLite while another thread is in it, whose locks would then be held in the child for ever.
_files: "weakref.WeakSet[SQLiteFile]" = weakref.WeakSet()
_forking = threading.RLock()


def _before_fork() -> None:
    _forking.acquire()
    for file in _files:
        file.before_fork()


def _after_fork() -> None:
    for file in _files:
        file.after_fork()
    _forking.release()


_register = getattr(os, "register_at_fork", lambda **hooks: None)  # Windows has no fork
_register(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
