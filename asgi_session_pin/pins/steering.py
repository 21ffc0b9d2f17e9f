"""What operators say of all pins, in all processes: which models are retired, and whether pinning is paused."""

import asyncio
import math
import time
from collections.abc import Callable
from functools import partial

import msgspec

from ..log import Warnings
from ..stores import MemoryStore, OperableStore, PinStore

READ_SECONDS = 0.5  # between two looks at the note: all processes follow within a second
_PATIENCE_SECONDS = 2.0  # with the store, for which no request waits
_MOST_TRIES = 20  # to change a note that others change too
MOST_RETIRED = 1_000


class Note(msgspec.Struct, frozen=True, omit_defaults=True):
    """What operators said.

    - `generation`: of two notes the one with the higher number was said later: when it was, in milliseconds of the wall
      clock, but more than the one before it.
    - `retired`: names of models, sorted.
    - `is_paused`: whether no pin is read or written.
    """

    generation: int = 0
    retired: tuple[str, ...] = ()
    is_paused: bool = False


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Note).decode
_FAILED = "the operators' note in the pin store can't be read; what it said last holds"


class Steering:
    """Follows the note in *store*, and changes it.

    It is read in the background, never on a request's way: `watch` begins with it, `start` before any request. In an
    outage, and where the store has lost it or has an older one, what it said last holds. For one event loop at a time.
    *timer* tells seconds that only go forward, *now* those of the wall clock.
    """

    def __init__(
        self,
        store: PinStore,
        warn: Warnings,
        timer: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store if isinstance(store, OperableStore) else None
        self._is_local = type(store) is MemoryStore
        self._warn = warn
        self._timer = timer
        self._now = now
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next_look: asyncio.TimerHandle | None = None
        self._reading: asyncio.Task[None] | None = None
        self._note = Note()
        self._has_read = type(store) is MemoryStore  # there is no note
        self.is_paused = False
        """Whether no pin is read or written."""
        self.retired: dict[str, float] = {}
        """Names of models, and since when they are retired, on the timer: pins on them are decided afresh."""

    def watch(self) -> None:
        """Read the note now and then, from now on."""
        if self._store is None or self._is_local:
            return
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._begin(loop)

    async def start(self) -> None:
        """Do as `watch`, and wait until the note was read: no request of a new process is to miss it.

        Where the store does not answer in time, it is read later.
        """
        self.watch()
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=_PATIENCE_SECONDS)

    def close(self) -> None:
        """Read it no more."""
        if self._loop is not None and self._loop is asyncio.get_running_loop():
            for pending in (self._next_look, self._reading):
                if pending is not None:
                    pending.cancel()
        self._loop = None

    def was_retired(self, model: str, at: float) -> bool:
        """Tell whether a model was retired already at a time on the timer.

        What was under way then is pinned to it nevertheless, until a switch is safe: its next request may be one of a
        tool loop.
        """
        return at >= self.retired.get(model, math.inf)

    async def read(self) -> None:
        """Look at the note. Raises what the store raises."""
        assert self._store is not None
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await self._look(self._store)

    async def retire(self, model: str, is_retired: bool) -> None:
        """Retire a model, or take it back. Raises ValueError if there are too many, else what the store raises."""

        def change(note: Note) -> Note:
            names = set(note.retired) | {model} if is_retired else set(note.retired) - {model}
            if len(names) > MOST_RETIRED:
                raise ValueError(f"there are {MOST_RETIRED} retired models already")
            return Note(self._next(note), tuple(sorted(names)), note.is_paused)

        await self._change(change)

    async def pause(self, is_paused: bool) -> None:
        """Pause pinning, or go on. Raises what the store raises."""
        await self._change(lambda note: Note(self._next(note), note.retired, is_paused))

    async def _change(self, change: Callable[[Note], Note]) -> None:
        store = self._store
        assert store is not None
        async with asyncio.timeout(_PATIENCE_SECONDS):
            for _ in range(_MOST_TRIES):
                content = await self._look(store)
                note = change(self._note)
                if await store.replace_note(content, _encode(note)):
                    return self._follow(note)
        raise TimeoutError

    def _next(self, note: Note) -> int:
        return max(note.generation + 1, int(self._now() * 1000))

    async def _look(self, store: OperableStore) -> bytes | None:
        """Follow the note, and return it as it is kept."""
        content = await store.read_note()
        note = Note() if content is None else _decode(content)
        if note.generation >= self._note.generation:
            self._follow(note)
        else:  # the store has lost what was said last; or it was said since this was read, and is there
            await store.replace_note(content, _encode(self._note))
        self._has_read = True
        return content

    def _follow(self, note: Note) -> None:
        # What is there at the first look was said before.
        since = self._timer() if self._has_read else -math.inf
        self._note = note
        self.is_paused = note.is_paused
        self.retired = {name: self.retired.get(name, since) for name in note.retired}

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is self._loop:
            self._reading = loop.create_task(self._read_again(loop))

    async def _read_again(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            await self.read()
        except Exception:
            self._warn.failed(_FAILED)
        self._next_look = loop.call_later(READ_SECONDS, partial(self._begin, loop))
