"""Scripts of what an app does with a request and what its client does meanwhile, and the two that play them.

A script is read from bytes, in which a 0 is the simplest choice: so Hypothesis makes failures small.
"""

import asyncio
import gzip
import itertools
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_driver import JSON_TYPE, SSE_TYPE, Header

ChoiceT = TypeVar("ChoiceT")


class Shows(Enum):
    """What the client of a model could tell at the end of a piece of an answer."""

    NOTHING = "nothing"
    PRELUDE = "prelude"
    OUTPUT = "output"
    ERROR = "error"


class Routed(Enum):
    """Whether a failure calls for the request to be routed in its place."""

    ALWAYS = "always"
    UNPROVEN = "while the name has never served"
    NEVER = "never"


Piece = tuple[str, Shows]


class Shape(NamedTuple):
    """What an answer looks like: *pieces* gives its body for a model."""

    name: str
    pieces: Callable[[str], list[Piece]]
    status: int = 200
    kind: Header = JSON_TYPE
    routed: Routed = Routed.ALWAYS


def _plain(content: str, shows: Shows = Shows.ERROR) -> Callable[[str], list[Piece]]:
    return lambda model: [(content.replace("MODEL", model), shows)]


def _stream(*pieces: Piece) -> Callable[[str], list[Piece]]:
    return lambda model: [(content.replace("MODEL", model) + "\n\n", shows) for content, shows in pieces]


_PLAIN_ANSWER = '{"id": "1", "model": "MODEL", "choices": [{"message": {"content": "an error, they said"}}]}'
_ERROR = '{"error": {"message": "overloaded", "type": "server_error", "code": null}}'
_NO_SUCH_MODEL = '{"error": {"message": "no such model", "code": "model_not_found"}}'
_TOO_LONG = '{"error": {"message": "too long", "code": "context_length_exceeded"}}'
_HTML: Header = (b"content-type", b"text/html")
_PAGE = "<html><body>Bad Gateway</body></html>"

_ROLE = ('data: {"model": "MODEL", "choices": [{"delta": {"role": "assistant", "content": ""}}]}', Shows.PRELUDE)
_WORDS = ('data: {"model": "MODEL", "choices": [{"delta": {"content": "failed"}}]}', Shows.OUTPUT)
_DONE = ("data: [DONE]", Shows.NOTHING)
_COMMENT = (": keep-alive", Shows.NOTHING)
_MESSAGE = ('event: message_start\ndata: {"type": "message_start", "message": {"model": "MODEL"}}', Shows.PRELUDE)
_PING = ('event: ping\ndata: {"type": "ping"}', Shows.NOTHING)
_DELTA = ('event: content_block_delta\ndata: {"type": "content_block_delta", "delta": {"text": "x"}}', Shows.OUTPUT)
_CREATED = ('data: {"type": "response.created", "response": {"model": "MODEL"}}', Shows.PRELUDE)
_TEXT = ('data: {"type": "response.output_text.delta", "delta": "x"}', Shows.OUTPUT)
_FAILED = ('data: {"type": "response.failed", "response": {"error": {"code": "server_error"}}}', Shows.ERROR)
_ERROR_EVENT = ('event: error\ndata: {"type": "error", "error": {"type": "overloaded_error"}}', Shows.ERROR)
_ERROR_DATA = (f"data: {_ERROR}", Shows.ERROR)

SERVED = [
    Shape("plain", _plain(_PLAIN_ANSWER, Shows.OUTPUT)),
    Shape("a chat's stream", _stream(_ROLE, _WORDS, _WORDS, _DONE), kind=SSE_TYPE),
    Shape("a message's stream", _stream(_MESSAGE, _PING, _DELTA, _DELTA), kind=SSE_TYPE),
    Shape("a response's stream", _stream(_COMMENT, _CREATED, _TEXT, _TEXT), kind=SSE_TYPE),
    Shape("plain without a name", _plain('{"choices": []}', Shows.OUTPUT)),
    Shape("text", lambda model: [(letter, Shows.OUTPUT) for letter in "hello"], kind=(b"content-type", b"text/csv")),
]
OTHERS = [
    Shape("a stream that is a prelude alone", _stream(_ROLE, _DONE), kind=SSE_TYPE),
    Shape("a stream that fails late", _stream(_ROLE, _WORDS, _ERROR_DATA), kind=SSE_TYPE),
    Shape("too long", _plain(_TOO_LONG), 400, routed=Routed.NEVER),
    Shape("too long, with status 200", _plain(_TOO_LONG), routed=Routed.NEVER),
    Shape("too large", _plain('{"detail": "too large"}'), 413, routed=Routed.NEVER),
    Shape("a conflict", _plain(_ERROR), 409, routed=Routed.NEVER),
    Shape("a 422", _plain('{"detail": "not so"}'), 422, routed=Routed.UNPROVEN),
    Shape("a 405", _plain(_ERROR), 405, routed=Routed.UNPROVEN),
]
FAILED = [
    Shape("a 503", _plain(_ERROR), 503),
    Shape("a page with status 502", _plain(_PAGE), 502, _HTML),
    Shape("a 500 of text", _plain("Internal Server Error"), 500, (b"content-type", b"text/plain")),
    Shape("a 429", _plain('{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}'), 429),
    Shape("a 529", _plain('{"type": "error", "error": {"type": "overloaded_error"}}'), 529),
    Shape("a 408", _plain(""), 408),
    Shape("a 401", _plain('{"error": {"message": "no"}}'), 401),
    Shape("a 402", _plain('{"error": {"message": "pay"}}'), 402),
    Shape("a 403", _plain('{"error": {"message": "no"}}'), 403),
    Shape("a 404", _plain('{"detail": "Not Found"}'), 404),
    Shape("a model that is not found", _plain(_NO_SUCH_MODEL), 404),
    Shape("a model that is no valid one", _plain('{"error": {"message": "no", "param": "model"}}'), 400),
    Shape("an error", _plain(_ERROR)),
    Shape("a list of errors", _plain('[{"error": {"code": 503, "status": "UNAVAILABLE"}}]')),
    Shape("an error by its type", _plain('{"type": "error", "message": "overloaded"}')),
    Shape("an error by its base_resp", _plain('{"base_resp": {"status_code": 1002, "status_msg": "limit"}}')),
    Shape("an error by its end", _plain('{"model": "MODEL", "choices": [{"finish_reason": "error"}]}')),
    Shape("a refusal with status 200", _plain(_NO_SUCH_MODEL)),
    Shape("no body", _plain("", Shows.NOTHING)),
    Shape("a page", _plain(_PAGE), kind=_HTML),
    Shape("an event of an error", _stream(_ERROR_EVENT), kind=SSE_TYPE),
    Shape("a stream of an error", _stream(_COMMENT, _ERROR_DATA, _DONE), kind=SSE_TYPE),
    Shape("a chat that fails", _stream(_ROLE, _ERROR_DATA), kind=SSE_TYPE),
    Shape("a message that fails", _stream(_MESSAGE, _PING, _ERROR_EVENT), kind=SSE_TYPE),
    Shape("a response that fails", _stream(_CREATED, _FAILED), kind=SSE_TYPE),
    Shape("comments", _stream(_COMMENT, _COMMENT), kind=SSE_TYPE),
    Shape("pings", _stream(_PING, _PING), kind=SSE_TYPE),
    Shape("an end", _stream(_DONE), kind=SSE_TYPE),
    Shape("a stream of nothing", _stream(), kind=SSE_TYPE),
]

# Seconds that an app takes. No sum of a few is near to the second for which an answer is held.
STALLS = [0.0] * 12 + [0.01, 0.3, 0.93, 1.6]
FILLING = 70_000  # bytes, more than are held


class Broken(Exception):
    """What an app raises."""


class Step(NamedTuple):
    """A stall of so many seconds, then a message; where there is none, the app raises."""

    stall: float
    message: Message | None
    shows: tuple[Shows, ...] = ()  # at the end of this message


class Script(NamedTuple):
    """What an app does in one call."""

    shape: Shape
    steps: list[Step]
    reads: bool = True  # the request's body, before it answers
    listens: bool = False  # at last, until it is told that the client has left
    works_on: float = 0.0  # seconds, when it has answered
    reuses_its_buffer: bool = False

    def __repr__(self) -> str:
        steps = [
            f"{step.stall or ''} {'raises' if step.message is None else step.message.get('body', b'start')[:40]!r}"
            for step in self.steps
        ]
        ways = "".join(name for name in ("reads", "listens", "reuses_its_buffer") if getattr(self, name))
        return f"<{self.shape.name}: {'; '.join(steps)}; {ways}, works on for {self.works_on} s>"


class Choices:
    """Reads choices from bytes; when they are over, each choice is the simplest one."""

    def __init__(self, source: bytes) -> None:
        self._source = source
        self._at = 0

    def take(self, size: int) -> bytes:
        self._at += size
        return self._source[self._at - size : self._at]

    def number(self, below: int) -> int:
        return int.from_bytes(self.take(1)) % below

    def one_of(self, options: Sequence[ChoiceT]) -> ChoiceT:
        return options[self.number(len(options))]

    def rarely(self, one_in: int = 8) -> bool:
        return self.number(one_in) == one_in - 1


SIZE = 24  # bytes that a script is read from


def read_script(source: bytes, model: str, *, is_pinned: bool) -> Script:
    """Read what an app does under the name of *model*; pins fail more often."""
    choices = Choices(source)
    shape = choices.one_of(choices.one_of([SERVED, FAILED, OTHERS, FAILED if is_pinned else SERVED]))
    steps = _read_steps(choices, shape, model)
    ending = choices.one_of(["whole"] * 6 + ["raises", "returns"])
    if ending != "whole":
        steps = steps[: choices.number(len(steps) + 1)]
    if ending == "raises":
        steps.append(Step(choices.one_of(STALLS), None))
    return Script(
        shape,
        steps,
        reads=not choices.rarely(),
        listens=ending == "whole" and choices.rarely(),
        works_on=choices.one_of(STALLS),
        reuses_its_buffer=choices.rarely(),
    )


def _read_steps(choices: Choices, shape: Shape, model: str) -> list[Step]:
    pieces = shape.pieces(model)
    streams = shape.kind == SSE_TYPE
    if streams and choices.rarely(16):
        pieces.insert(0, (":" + " " * FILLING + "\n\n", Shows.NOTHING))
    headers = [shape.kind, (b"x-request-id", b"7"), (b"x-request-id", b"8")]
    if choices.rarely():
        headers.append((b"X-Session-Model", b"forged"))
    ends = list(itertools.accumulate(len(content) for content, _ in pieces))
    shows = [shown for _, shown in pieces]
    body = "".join(content for content, _ in pieces).encode()
    if shape.kind in (JSON_TYPE, _HTML) and choices.rarely():
        body = gzip.compress(body, 1, mtime=0)
        ends = [len(body)]
        headers.append((b"content-encoding", b"gzip"))
    if not streams and choices.number(2):
        headers.append((b"content-length", b"%d" % len(body)))
    cuts = {int.from_bytes(choices.take(2)) % (len(body) + streams) for _ in range(choices.number(4)) if body}
    steps = [Step(choices.one_of(STALLS), {"type": "http.response.start", "status": shape.status, "headers": headers})]
    begin = 0
    for cut in [*sorted(cuts), len(body)]:
        shown = tuple(shown for end, shown in zip(ends, shows, strict=True) if begin < end <= cut)
        chunk: Message = {"type": "http.response.body", "body": body[begin:cut], "more_body": True}
        steps.append(Step(choices.one_of(STALLS), chunk, shown))
        begin = cut
    chunk["more_body"] = False
    return steps


class Sent(NamedTuple):
    at: float
    message: Message
    shows: tuple[Shows, ...]


class Call:
    """What one call of the app was like, as the app saw it."""

    def __init__(self, script: Script, model: str | None, began: float) -> None:
        self.script = script
        self.model = model  # that it is pinned to
        self.began = began
        self.ended: float | None = None
        self.body: bytes | None = None
        self.sent: list[Sent] = []
        self.error: BaseException | None = None

    def __repr__(self) -> str:
        return f"\n  {self.began}-{self.ended} pinned to {self.model}: {self.script} {self.error!r}"

    @property
    def messages(self) -> list[Message]:
        return [sent.message for sent in self.sent]

    @property
    def is_whole(self) -> bool:
        return is_whole(self.messages)

    async def play(self, receive: Receive, send: Send) -> None:
        """Do as the script says."""
        time = asyncio.get_running_loop().time
        script = self.script
        try:
            if script.reads and not await self._read(receive):
                return
            for stall, message, shows in script.steps:
                if stall:
                    await asyncio.sleep(stall)
                if message is None:
                    raise Broken(script.shape.name)
                self.sent.append(Sent(time(), message, shows))
                await (send_in_a_buffer if script.reuses_its_buffer else send_plainly)(send, message)
            while script.listens and (await receive())["type"] != "http.disconnect":
                pass
            if script.works_on:
                await asyncio.sleep(script.works_on)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended = time()

    async def _read(self, receive: Receive) -> bool:
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            body += bytes(message.get("body", b""))
            more = message.get("more_body", False)
        self.body = body
        return True


async def send_plainly(send: Send, message: Message) -> None:
    await send(message)


async def send_in_a_buffer(send: Send, message: Message) -> None:
    buffer = bytearray(message.get("body", b""))
    await send({**message, "body": memoryview(buffer)} if "body" in message else message)
    buffer[:] = b"#" * len(buffer)


def is_whole(messages: list[Message]) -> bool:
    return bool(messages) and messages[-1]["type"] == "http.response.body" and not messages[-1].get("more_body")


class Client(NamedTuple):
    """What a client does, and the server on its side."""

    streams: bool = False  # it asks for a stream
    begins: float = 0.0
    leaves: float | None = None  # so many seconds after it began
    send_fails: bool = False  # the server tells an app that goes on sending to who left
    takes: float = 0.0  # seconds for each message
    chunks: int = 1
    stays_for_its_body: bool = True  # else it leaves before the last chunk


def read_client(choices: Choices) -> Client:
    return Client(
        streams=bool(choices.number(2)),
        begins=choices.one_of([0.0, 0.0, 0.0, 0.0, 0.01, 0.3, 0.93]),
        leaves=choices.one_of([None] * 12 + [0.0, 0.02, 0.5, 1.2]),
        send_fails=bool(choices.number(2)),
        takes=choices.one_of([0.0] * 14 + [0.02, 0.7]),
        chunks=1 + choices.number(3),
        stays_for_its_body=not choices.rarely(32),
    )


class Request:
    """One request: what the app does with it, *pinned* and *routed*, and all that happened."""

    def __init__(self, session: int, number: int, client: Client, pinned: bytes, routed: bytes) -> None:
        self.session = session
        self.number = number
        self.client = client
        self.pinned = pinned
        self.routed = routed
        self.content = b'{"model" : "auto",  "n": 1e0, "m": %d, "stream": %s}' % (
            number,
            b"true" if client.streams else b"false",
        )
        self.calls: list[Call] = []
        self.got: list[Message] = []
        self.size = 0  # of what it got until it ended, in messages
        self.has_left = False
        self.began = self.ended = -1.0
        self.error: BaseException | None = None
        self._over = asyncio.Event()  # it is answered, or the client has left

    def __repr__(self) -> str:
        return f"\n {self.began}-{self.ended} {self.session}/{self.number} {self.client} {self.calls} {self.error!r}"

    async def ask(self, app: ASGIApp) -> None:
        """Send it to the app as a server does, and keep what comes."""
        loop = asyncio.get_running_loop()
        if self.client.begins:
            await asyncio.sleep(self.client.begins)
        self.began = loop.time()
        leaving = None if self.client.leaves is None else loop.call_later(self.client.leaves, self._leave)
        left = self._chunks()

        async def receive() -> Message:
            if left:
                return left.pop(0)
            if not self.client.stays_for_its_body:
                self._leave()
            await self._over.wait()
            return {"type": "http.disconnect"}

        try:
            await app(self._scope(), receive, self._send)
        except Exception as error:
            self.error = error
        finally:
            self.ended = loop.time()
            self.size = len(self.got)
            if leaving is not None:
                leaving.cancel()

    def _leave(self) -> None:
        self.has_left = self.has_left or not self._over.is_set()
        self._over.set()

    async def _send(self, message: Message) -> None:
        if self.has_left:
            if self.client.send_fails:
                raise OSError("the client has left")
            return
        # A server writes at once; the app may use its buffer for something else.
        self.got.append({**message, "body": bytes(message["body"])} if "body" in message else message)
        if is_whole(self.got):
            self._over.set()
        if self.client.takes:
            await asyncio.sleep(self.client.takes)

    def _scope(self) -> Scope:
        headers = [
            (b"x-session-id", b"session-%d" % self.session),
            (b"content-length", b"%d" % len(self.content)),
            (b"x-number", b"%d" % self.number),
        ]
        return {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "state": {}}

    def _chunks(self) -> list[Message]:
        size = len(self.content) // self.client.chunks + 1
        parts = [self.content[begin : begin + size] for begin in range(0, len(self.content), size)]
        if not self.client.stays_for_its_body:
            parts[-1:] = []
        chunks: list[Message] = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        if self.client.stays_for_its_body:
            chunks[-1]["more_body"] = False
        return chunks
