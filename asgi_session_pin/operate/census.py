"""Figures that take long to count: how many pins there are, and on which models."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import perf_counter
from typing import Generic, TypeVar

FiguresT = TypeVar("FiguresT")

_AGAIN_SECONDS = 15.0  # after a count, or so many times what it took
_AGAIN_SHARE = 50
_LONGEST_SECONDS = 600.0


class Census(Generic[FiguresT]):
    """Has *count* called now and then, in the background, while somebody asks for the *figures*.

    Whoever asks waits for a count that is under way, for *patience_seconds* at most. Where one fails, what was counted
    before is told. *timer* tells seconds that only go forward. For one event loop at a time.
    """

    def __init__(
        self,
        count: Callable[[], Awaitable[FiguresT]],
        figures: FiguresT,
        timer: Callable[[], float],
        *,
        patience_seconds: float,
    ) -> None:
        self._count = count
        self._figures = figures
        self._timer = timer
        self._patience = patience_seconds
        self._again = 0.0
        self._task: asyncio.Task[None] | None = None

    async def figures(self) -> FiguresT:
        """Return what was counted last."""
        task = self._task
        if task is not None and (task.done() or task.get_loop() is not asyncio.get_running_loop()):
            task = self._task = None
        if task is None and self._timer() >= self._again:
            task = self._task = asyncio.create_task(self._run())
        if task is not None:
            await asyncio.wait([task], timeout=self._patience)
        return self._figures

    def close(self) -> None:
        """Count no more."""
        if self._task is not None and not self._task.done():
            self._task.cancel()

    async def _run(self) -> None:
        started = perf_counter()
        try:
            with suppress(Exception):  # the store may be out
                async with asyncio.timeout(_LONGEST_SECONDS):
                    self._figures = await self._count()
        finally:
            self._again = self._timer() + max(_AGAIN_SECONDS, _AGAIN_SHARE * (perf_counter() - started))
