"""An answer that is held back for a moment, up to 64 KiB and a second, until it is known what to do with it."""

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable

import msgspec
from starlette.types import Message

from .answer import Answer

HELD_BYTES = 65_536
HELD_SECONDS = 1.0


class HeldAnswer(Answer):
    """What can be held: a whole error, and the start of a stream up to its first chunk."""

    held: list[Message] = msgspec.field(default_factory=list)
    held_bytes: int = 0
    is_error: bool = False
    releasing: asyncio.Task[None] | None = None  # the time is up

    def send(self, message: Message) -> Awaitable[None]:
        """The app's `send`."""
        if self.releasing is not None:
            return self._send_behind(self.releasing, message)
        return self._hold_on(message) if self.held else super().send(message)

    def hold(self, start: Message, *, is_error: bool) -> Awaitable[None]:
        """Hold the start of a response."""
        self.held.append(start)
        self.is_error = is_error
        self.call_later(HELD_SECONDS)
        return nothing()

    @abstractmethod
    def begins_with_error(self, message: Message) -> bool:
        """Tell whether a stream begins with an error, by its first chunk; if so all of it is held."""

    @abstractmethod
    async def conclude(self) -> None:
        """Settle what becomes of an error that is whole."""

    async def release(self) -> None:
        """Send what is held, as it came."""
        held, self.held = self.held, []
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

    def on_time(self) -> None:
        """Hold nothing any longer."""
        if self.held:
            self.timer = None
            self.releasing = asyncio.get_running_loop().create_task(self.release())
        else:
            super().on_time()

    async def leave(self) -> None:
        """Leave nothing behind."""
        self.close()
        if self.releasing is not None:
            await self.releasing

    async def _hold_on(self, message: Message) -> None:
        self.held.append(message)
        if message["type"] != "http.response.body":
            return await self.release()
        if not self.is_error:
            self.is_error = self.begins_with_error(message)
            if not self.is_error:
                return await self.release()
        self.held_bytes += len(message.get("body", b""))
        if self.held_bytes > HELD_BYTES:
            await self.release()
        elif not message.get("more_body"):
            await self.conclude()
        return None

    async def _send_behind(self, releasing: asyncio.Task[None], message: Message) -> None:
        await releasing
        self.releasing = None
        await self.send(message)


async def nothing() -> None:
    """Send nothing."""
