"""An answer that is held back for a moment, up to 64 KiB and a second, until it is known what to do with it."""

import asyncio
import sys
from abc import abstractmethod
from collections.abc import Awaitable

from starlette.types import Message

from .answer import Answer
from .wire.messages import body_of

HELD_BYTES = 65_536
HELD_TICKS = 2  # half a second to a second


class HeldAnswer(Answer):
    """What can be held: a whole error, and the start of a stream up to its first chunk."""

    held: list[Message] | None = None
    held_bytes: int = 0
    ticks: int = 0
    is_error: bool = False
    releasing: asyncio.Task[None] | None = None  # the time is up

    def send(self, message: Message) -> Awaitable[None]:
        """The app's `send`."""
        if self.releasing is not None:
            return self._send_behind(self.releasing, message)
        return super().send(message) if self.held is None else self._hold_on(self.held, message)

    def hold(self, start: Message, *, is_error: bool) -> Awaitable[None]:
        """Hold the start of a response."""
        self.held = [start]
        self.is_error = is_error
        self.watch()
        return nothing()

    @abstractmethod
    def begins_with_error(self, start: Message, message: Message) -> bool:
        """Tell whether a stream begins with an error, by its first chunk; if so all of it is held."""

    @abstractmethod
    async def conclude(self) -> None:
        """Settle what becomes of an error that is whole."""

    @abstractmethod
    async def let_go(self) -> None:
        """Send what is held though nothing is known of it yet: it is too large, or takes too long."""

    async def release(self) -> None:
        """Send what is held, as it came."""
        held, self.held = self.held or (), None
        if self.is_error:
            self.close()
        for message in held:
            if message["type"] == "http.response.start":
                await self.tell(message, message["headers"])
            elif self.reader is not None and self.reader.finished:
                await self.settle(self.reader, message)
            elif self.ends and not message.get("more_body"):
                await self.end(message)
            else:
                await self.server_send(message)
        self.settled = self.reader is None and not self.ends

    def on_tick(self) -> None:
        """Hold nothing any longer, if this is the second time."""
        if self.held is None:
            return super().on_tick()
        self.ticks += 1
        if self.ticks == HELD_TICKS:
            self.releasing = asyncio.get_running_loop().create_task(self.let_go())
        return None

    async def leave(self) -> None:
        """Leave nothing behind."""
        self.close()
        if self.releasing is None:
            return
        error = sys.exception()
        if isinstance(error, asyncio.CancelledError):
            self.releasing.cancel()
        try:
            await asyncio.wait([self.releasing])
        finally:
            self.releasing.cancel()
        if not self.releasing.cancelled() and self.releasing.exception() is not None and error is None:
            await self.releasing

    async def _hold_on(self, held: list[Message], message: Message) -> None:
        if message["type"] != "http.response.body":
            held.append(message)
            return await self.let_go()
        message = {**message, "body": body_of(message)}
        held.append(message)
        if not self.is_error:
            self.is_error = self.begins_with_error(held[0], message)
            if not self.is_error:
                return await self.release()
        self.held_bytes += len(message["body"])
        if self.held_bytes > HELD_BYTES:
            await self.let_go()
        elif not message.get("more_body"):
            await self.conclude()
        return None

    async def _send_behind(self, releasing: asyncio.Task[None], message: Message) -> None:
        await asyncio.shield(releasing)
        self.releasing = None
        await self.send(message)


async def nothing() -> None:
    """Send nothing."""
