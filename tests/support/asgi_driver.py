"""A hand-made server side: calls an ASGI app with one request and keeps what it sends, in order."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Header = tuple[bytes, bytes]

CHAT = "/v1/chat/completions"
DECISION = "/routing/v1/chat/completions"
SESSION: Header = (b"x-session-id", b"session-1")
JSON_TYPE: Header = (b"content-type", b"application/json")
SSE_TYPE: Header = (b"content-type", b"text/event-stream")


class Answer:
    """What the app sent."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    @property
    def start(self) -> Message:
        return next(message for message in self.messages if message["type"] == "http.response.start")

    @property
    def headers(self) -> dict[str, str]:
        headers = [(name.decode(), value.decode()) for name, value in self.start["headers"]]
        assert len(dict(headers)) == len(headers), "a header was sent twice"
        return dict(headers)

    @property
    def pin_status(self) -> str | None:
        return self.headers.get("x-session-pin-status")

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages if message["type"].endswith(".body"))

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def http_scope(*headers: Header, path: str = CHAT, method: str = "POST") -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": list(headers),
        "state": {},
    }


def receive_from(messages: Iterable[Message], answered: asyncio.Event | None = None) -> Receive:
    """A server's receive: the messages, then a client that stays until it is *answered*, or leaves at once."""
    left = list(messages)

    async def receive() -> Message:
        if left:
            return left.pop(0)
        if answered is not None:
            await answered.wait()
        return {"type": "http.disconnect"}

    return receive


def body_messages(*chunks: bytes) -> list[Message]:
    last = len(chunks) - 1
    return [{"type": "http.request", "body": chunk, "more_body": i < last} for i, chunk in enumerate(chunks)]


async def call(
    app: ASGIApp,
    content: Any,
    *headers: Header,
    path: str = CHAT,
    method: str = "POST",
    scope: MutableMapping[str, Any] | None = None,
) -> Answer:
    """Send *content* (bytes as they are, chunks of a list, anything else as JSON) and return the answer."""
    chunks = content if isinstance(content, list) else [content]
    chunks = [chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode() for chunk in chunks]
    if scope is None:
        length = b"%d" % sum(map(len, chunks))
        scope = http_scope((b"host", b"test"), (b"content-length", length), *headers, path=path, method=method)
    answer = Answer()
    answered = asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            assert not answer.messages, "a response was started twice"
        # A server writes at once; the app may use its buffer for something else.
        answer.messages.append({**message, "body": bytes(message["body"])} if "body" in message else message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            answered.set()

    await app(scope, receive_from(body_messages(*chunks), answered), send)
    return answer


async def read_body(receive: Receive) -> bytes:
    chunks = []
    while True:
        message = await receive()
        assert message["type"] == "http.request", message
        chunks.append(bytes(message.get("body", b"")))
        if not message.get("more_body"):
            return b"".join(chunks)


async def respond(send: Send, *chunks: bytes, status: int = 200, headers: Iterable[Header] = (JSON_TYPE,)) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    for i, chunk in enumerate(chunks):
        await send({"type": "http.response.body", "body": chunk, "more_body": i < len(chunks) - 1})


Serve = Callable[[Send, str], Awaitable[None]]
"""Answers for a model."""


class Gateway:
    """An LLM gateway: routes `auto` to the next of *models*, the last one for ever, and takes any other name.

    It answers by *answer*; what it routes by *route*, and other names by *serve*, if these are given.
    """

    def __init__(
        self, *models: str, answer: Serve | None = None, serve: Serve | None = None, route: Serve | None = None
    ) -> None:
        self.models = list(models)
        self.serve = serve or answer or answer_json
        self.route = route or answer or answer_json
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []

    @property
    def asked(self) -> list[Any]:
        """The model of each request that arrived here."""
        return [asked_model(body) for body in self.bodies]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append({**scope, "headers": list(scope["headers"])})
        self.bodies.append(await read_body(receive))
        asked = asked_model(self.bodies[-1])
        if asked in ("auto", None):
            return await self.route(send, self.models.pop(0) if len(self.models) > 1 else self.models[0])
        return await self.serve(send, asked)


def asked_model(body: bytes) -> Any:
    """Return what *body* names as its model, None also where it is nothing that could."""
    try:
        content = json.loads(body.decode(errors="replace"), parse_int=str)
    except (ValueError, RecursionError):
        return None
    return content.get("model") if isinstance(content, dict) else None


async def answer_json(send: Send, model: str) -> None:
    await respond(send, json.dumps({"id": "1", "model": model}).encode())


async def answer_stream(send: Send, model: str) -> None:
    events = [b"data: " + json.dumps({"model": model, "n": n}).encode() + b"\n\n" for n in range(3)]
    await respond(send, *events, b"data: [DONE]\n\n", headers=[SSE_TYPE])


class Clock:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def wait(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.now += seconds


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
