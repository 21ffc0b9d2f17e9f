"""The request's body on its way to the app: read within its bounds, then replayed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import field
from starlette.types import Message, Receive

from ..log import Opaque
from ..wire.compression import decode_in_slices, open_decoder
from ..wire.messages import body_of
from .buffers import Share


class RequestBody(Opaque):
    """Reads the body ahead of the app, and is the app's `receive` afterwards.

    What was read is replayed, then the server's own `receive` is asked again: it alone knows when the client leaves
    (answering `http.disconnect` for it would cut streams short, answering nothing new would make apps spin).
    """

    server_receive: Receive
    messages: list[Message] = field(default_factory=list)
    original: bytes = b""  # what the client sent, as long as it may be sent to the app once more
    why_unread: bytes | None = None  # why it can't be looked at as a whole
    share: Share | None = None  # of what is held before the app, where that is counted
    part: bytearray = field(default_factory=bytearray)  # what has come of a body in several messages
    overdue: "Overdue | None" = None  # where it took too long, and the app has it
    gone: bool = False  # the app was told that the client left
    is_kept_back: bool = False  # the app's answer is whole and does not go out: the app is told to end

    def take(self, message: Message, limit: int) -> bytes | None:
        """Return the body if it is whole in the server's first *message*, and not over *limit* bytes.

        Otherwise `why_unread` says why it can't be used, or it does not, and more is to come: see `read_on`.
        """
        if message["type"] != "http.request":
            self.messages.append(message)
            self.why_unread = b"client-disconnected"
            return None
        content = body_of(message)
        if message.get("more_body"):
            self.part += content
            return None
        self.messages.append(message if message.get("body") is content else {**message, "body": content})
        if len(content) <= limit:
            return content
        self.why_unread = b"body-too-large"
        return None

    async def read_on(self, limit: int, share: Share) -> bytes | None:
        """Return the body that comes in several messages; None: `why_unread` says why it can't be used."""
        # One buffer, not a list of messages: a client could send its bytes one by one, and empty messages without end.
        self.share = share
        more, why_unread = True, self._count(len(self.part), limit, share)
        while more and why_unread is None:
            message = await self._receive_in_time()
            if message is None:
                return None
            if message["type"] != "http.request":
                self._end_part(True, b"client-disconnected")
                self.messages.append(message)
                return None
            chunk, more = body_of(message), message.get("more_body", False)
            self.part += chunk
            why_unread = self._count(len(chunk), limit, share)
        self._end_part(more, why_unread)
        return None if why_unread else body_of(self.messages[0])

    def give_up(self, reader: asyncio.Task[Any], pass_on: Callable[[], Awaitable[None]]) -> None:
        """Pass on what has come, by a task of its own, while *reader* goes on to wait for the next message.

        A server may lose a message for which nobody waits any longer.
        """
        self._end_part(True, b"body-too-slow")
        self.overdue = Overdue(asyncio.ensure_future(pass_on()), reader, reader.cancelling())
        self.overdue.call.add_done_callback(self.overdue.end_reading)

    async def _receive_in_time(self) -> Message | None:
        """Return the server's next message; None if the body was given up, and the app is done with it."""
        try:
            message = await self.server_receive()
        except BaseException as error:
            if self.overdue is None or await self.overdue.is_cancelled(error):
                raise
        else:
            if self.overdue is None:
                return message
            self.messages.append(message)
        self.overdue.came.set()
        await self.overdue.call
        return None

    def _count(self, size: int, limit: int, share: Share) -> bytes | None:
        """Count so many bytes more as held; return why the body can't be, or None."""
        if len(self.part) > limit:
            return b"body-too-large"
        return None if share.take(size) else b"no-room"

    def _end_part(self, more: bool, why_unread: bytes | None) -> None:
        """Give the app what has come as one message."""
        self.messages.append({"type": "http.request", "body": bytes(self.part), "more_body": more})
        self.part.clear()
        self.why_unread = why_unread

    def hold(self, share: Share) -> bool:
        """Have a body that was read at once count as held; tell whether there is room for it."""
        if not share.take(len(body_of(self.messages[0]))):
            return False
        self.share = share
        return True

    async def decode(self, coding: bytes, limit: int, share: Share) -> bytes | None:
        """Return what the body decodes to; None: `why_unread` says why it can't be. The app gets it as it came.

        Others have their turn after each slice of the work: a few bytes may decode to as much as *limit*.
        """
        self.share = share
        decoder = open_decoder(coding)
        assert decoder is not None
        decoded: list[bytes] = []
        try:
            for piece in decode_in_slices(decoder, body_of(self.messages[0])):
                if decoded:
                    await asyncio.sleep(0)
                decoded.append(piece)
                limit -= len(piece)
                if limit < 0:
                    raise ValueError("decodes to too much")
                if not share.take(len(piece)):
                    self.why_unread = b"no-room"
                    return None
        except Exception:  # whatever a decoder does
            self.why_unread = b"body-encoded"
            return None
        if len(decoded) > 1:
            await asyncio.sleep(0)
        return b"".join(decoded)

    def put(self, content: bytes) -> None:
        """Give the app *content* in place of what was read."""
        self.messages = [{"type": "http.request", "body": content, "more_body": False}]

    def again(self) -> "RequestBody":
        """Return the body for another call of the app, as the client sent it."""
        body = RequestBody(self.server_receive)
        body.put(self.original)
        self.original = b""
        return body

    async def receive(self) -> Message:
        """Return the next message of the body, then whatever the server has."""
        if self.messages:
            message = self.messages.pop(0)
            if self.share is not None:
                self.share.give_back()
            return message
        if self.is_kept_back:
            return {"type": "http.disconnect"}
        if self.overdue is not None and not self.overdue.came.is_set():
            await self.overdue.came.wait()
            return await self.receive()
        message = await self.server_receive()
        self.gone = message["type"] == "http.disconnect"
        return message


class Overdue(Opaque):
    """A body that took too long: the app's call, while the request's task still waits for the next message."""

    call: asyncio.Future[None]
    reader: asyncio.Task[Any]  # the request's
    cancelling: int  # how often that had been cancelled
    came: asyncio.Event = field(default_factory=asyncio.Event)  # that message, or an exception

    def end_reading(self, call: asyncio.Future[None]) -> None:
        """Have the request end: the app is done."""
        if not self.came.is_set():
            self.reader.cancel()

    async def is_cancelled(self, error: BaseException) -> bool:
        """Tell whether the server cancels the request, which *error* has ended the waiting of; end the call then."""
        if not isinstance(error, asyncio.CancelledError):
            return False  # the app gets it too, when it asks for the next message
        if self.call.done() and self.reader.uncancel() <= self.cancelling:
            return False
        self.came.set()  # else its end would cancel the request once more
        self.call.cancel()
        await asyncio.gather(self.call, return_exceptions=True)
        return True
