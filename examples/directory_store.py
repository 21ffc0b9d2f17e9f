"""A store of your own, complete: pins as files in a directory that the workers of a host share.

    app.add_middleware(SessionPinMiddleware, store=DirectoryStore("/var/tmp/pins", ttl_seconds=600))

Every operation holds one lock over the directory, which makes it atomic. What a real one lacks here is a bound on the
number of files; `sqlite:///pins.db` does this job better.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from asgi_session_pin import Lapsed, Pin


class DirectoryStore:
    """One file for each pin; the time at which it lapses is the file's modification time."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        ttl_seconds: float,
        sliding: bool = True,
        tool_loop_seconds: float = 3600,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = Path(path)
        self._ttl = ttl_seconds
        self._sliding = sliding
        self._kept = tool_loop_seconds
        self._clock = clock

    async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
        """Return the pin of *key*, which is a use of it; or the one that has lapsed, or None."""
        with self._locked():
            pin, left = self._pin(key)
            if pin is not None and left <= 0:
                return Lapsed(pin, -left)
            if pin is not None and self._sliding:
                self._lapse(key.hex(), self._ttl)
            return pin

    async def add(self, key: bytes, pin: Pin) -> Pin:
        """Keep *pin* unless there is one that holds; return the pin in force."""
        with self._locked():
            held, left = self._pin(key)
            if held is not None and left > 0:
                return held
            self._write(key.hex(), pin.encode(), self._ttl)
            return pin

    async def discard(self, key: bytes, pin: Pin) -> bool:
        """Give up *pin*, lapsed or not, if it still is there."""
        return self._remove(key.hex(), pin.encode())

    async def claim(self, key: bytes, token: bytes, seconds: float) -> bool:
        """Take the right to decide for *key*."""
        name = f"{key.hex()}.claim"
        with self._locked():
            held, left = self._read(name)
            if left > 0 and held != token:
                return False
            self._write(name, token, seconds)
            return True

    async def release(self, key: bytes, token: bytes) -> None:
        """Give a claim back."""
        self._remove(f"{key.hex()}.claim", token)

    async def aclose(self) -> None:
        """There is nothing to free."""

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.mkdir(parents=True, exist_ok=True)
        with open(self._path / "lock", "wb") as lock:  # closing it gives it back
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _pin(self, key: bytes) -> tuple[Pin | None, float]:
        """Return the pin, and how many seconds it has left: less than 0 if it has lapsed."""
        data, left = self._read(key.hex())
        try:
            return (None if data is None or left < -self._kept else Pin.decode(data)), left
        except ValueError:  # another program's, or another version's: it must not stand in a session's way
            (self._path / key.hex()).unlink()
            return None, 0

    def _read(self, name: str) -> tuple[bytes | None, float]:
        path = self._path / name
        try:
            return path.read_bytes(), path.stat().st_mtime - self._clock()
        except FileNotFoundError:
            return None, 0

    def _write(self, name: str, data: bytes, seconds: float) -> None:
        (self._path / name).write_bytes(data)
        self._lapse(name, seconds)

    def _lapse(self, name: str, seconds: float) -> None:
        lapses = self._clock() + seconds
        os.utime(self._path / name, (lapses, lapses))

    def _remove(self, name: str, data: bytes) -> bool:
        with self._locked():
            found = self._read(name)[0] == data
            if found:
                (self._path / name).unlink()
            return found
