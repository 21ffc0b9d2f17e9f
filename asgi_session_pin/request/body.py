"""The request's body on its way to the app: read within its limit, then replayed."""

from msgspec import field
from starlette.types import Message, Receive

from ..log import Opaque
from ..wire.messages import body_of


class RequestBody(Opaque):
    """Reads the body ahead of the app, and is the app's `receive` afterwards.

    What was read is replayed, then the server's own `receive` is asked again: it alone knows when the client leaves
    (answering `http.disconnect` for it would cut streams short, answering nothing new would make apps spin).
    """

    server_receive: Receive
    messages: list[Message] = field(default_factory=list)
    original: bytes = b""  # what the client sent, as long as it may be sent to the app once more
    cut_off: bool = False  # the client left before the body was whole
    gone: bool = False  # the app was told that the client left
    is_kept_back: bool = False  # the app's answer is whole and does not go out: the app is told to end

    async def read(self, limit: int) -> bytes | None:
        """Return the whole body, or None if it is over *limit* bytes or the client left before it was whole."""
        message = await self.server_receive()
        if message["type"] != "http.request":
            self.messages.append(message)
            self.cut_off = True
            return None
        content = body_of(message)
        self.messages.append(message if message.get("body") is content else {**message, "body": content})
        if not message.get("more_body"):
            return content if len(content) <= limit else None
        return await self._read_on(bytearray(content), limit)

    async def _read_on(self, content: bytearray, limit: int) -> bytes | None:
        # One buffer, not a list of messages: a client could send its bytes one by one, and empty messages without end.
        more = True
        while more and len(content) <= limit:
            message = await self.server_receive()
            if message["type"] != "http.request":
                self.cut_off = True
                self.messages = [{"type": "http.request", "body": bytes(content), "more_body": True}, message]
                return None
            content += body_of(message)
            more = message.get("more_body", False)
        whole = bytes(content)
        self.messages = [{"type": "http.request", "body": whole, "more_body": more}]
        return whole if len(whole) <= limit else None

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
            return self.messages.pop(0)
        if self.is_kept_back:
            return {"type": "http.disconnect"}
        message = await self.server_receive()
        self.gone = message["type"] == "http.disconnect"
        return message
