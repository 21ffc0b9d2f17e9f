"""The answer to one request on its way to the client: it gets our headers and is looked at for the router's choice."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from functools import lru_cache
from traceback import walk_tb

from starlette.types import Message, Send

from .config.settings import FINGERPRINT
from .exchange import Exchange
from .log import Opaque
from .outcome import count_failure, showed_late_failure
from .request.scope import PINNED
from .response.output import LATE_BYTES
from .response.pieces import STREAMED, Framing
from .response.reader import Reader, open_plain_reader, open_reader
from .response.rules import HEEDED_HEADERS, RESPONSE_HEADERS
from .wire.headers import Headers, header_name, without
from .wire.messages import body_of

JSON_TYPE = (b"content-type", b"application/json")
PLAIN = {b"content-type", b"content-length"}
NOT_PINNED = (b"x-session-pinned", b"false")
LATE = "late"  # what is said of a failure after output had gone out
LAST_MESSAGES = 32  # of a stream: an error, what ends the stream, and comments; wherever these are cut

Look = Callable[[Reader], Awaitable[None]]
"""What follows from a look at a 2xx answer, before the message goes on that ended it.

Where the app's own router has stated its choice it is called twice: when the answer starts, for the choice, and when
the answer has named a model, for what later ones are compared with.
"""


class Stage(Enum):
    """Where an answer is. An `Answer` takes the upper way; a `Guard` before it the lower one, until it passes it on.

             2xx, its model is to be read             found, or the end
    WAITING ──────────────────────────────▶ READING ────────────────────▶ WATCHING (a stream), PASSING
     │ │ └─ no 2xx, while others wait ────▶ ENDING ── the last message ─▶ PASSING
     │ └─── nothing to look for ────────────────────────────────────────▶ PASSING
     │
     │    2xx                               output, or the end of a prelude
     ├────────────▶ HOLDING ──────────────────────▶ FLUSHING ───────────▶ PASSING
     │               │   └─ over 64 KiB, a second ─▶ FLUSHING ─▶ LOOKING ─ output, an error, the end ─▶ PASSING
     │               │ an error, or the app ends
     └─ no 2xx, ───▶ FAILING ─ the app is done ─▶ the caller routes the request, or flushes
        or the app       │ └─ over 64 KiB, a second, nothing to route for ─▶ FLUSHING ─▶ PASSING
        ends             └─ the second answer, after a second: the first one goes out ─▶ DROPPED
    """

    WAITING = "waiting"  # nothing of it has come
    READING = "reading"  # it goes on, and is looked at for its model
    ENDING = "ending"  # it goes on; at its last message the next request leads
    HOLDING = "holding"  # it is held back until it shows output
    FAILING = "failing"  # it is a failure, held back until the app is done
    FLUSHING = "flushing"  # what was held goes out; what comes now goes behind it
    LOOKING = "looking"  # it goes on without having shown output
    DROPPED = "dropped"  # another answer goes out instead
    WATCHING = "watching"  # it goes on; its last messages are kept, to see whether it failed after all
    PASSING = "passing"  # it goes on


# In CPython 3.11 a member is looked up ten times as fast by a name of its own.
WAITING, READING, ENDING, HOLDING, FAILING, FLUSHING, LOOKING, DROPPED, WATCHING, PASSING = Stage


@lru_cache(maxsize=1024)
def response_headers(status: bytes, by_fingerprint: bool, reason: bytes | None, model: str | None) -> Headers:
    """Return the headers that tell the client of its pin; they are shared, so never to be changed."""
    told = status + b"; source=fingerprint" * by_fingerprint + (b"" if reason is None else b"; reason=" + reason)
    headers = [PINNED if status in (b"hit", b"wait") else NOT_PINNED, (b"x-session-pin-status", told)]
    return headers if model is None else [*headers, (b"x-session-model", model.encode())]


def end_of(message: Message) -> Message:
    """Return a large message without what no one looks at for a late failure."""
    return {**message, "body": bytes(message["body"][-LATE_BYTES:])}


class Answer(Opaque):
    """Stands between the app's `send` and the server's.

    `send` is a plain function that gives an awaitable: once there is nothing more to do, a message costs one check.
    """

    exchange: Exchange
    look: Look | None = None
    tells: bool = True  # whether the client gets our headers
    stage: Stage = WAITING
    reader: Reader | None = None
    last: deque[Message] | None = None  # of a stream
    framing: Framing = Framing.NONE
    failure: str | None = None  # of which a part, or nothing, has gone out: `PinEvent.verdict` has the words
    gave_output: bool = False  # under a pin, as a stream: it may fail still

    def send(self, message: Message) -> Awaitable[None]:
        """The app's `send`."""
        stage = self.stage
        if stage is WATCHING and self.last is not None:
            self.last.append(message if len(message.get("body", b"")) <= LATE_BYTES else end_of(message))
            return self.exchange.send(message)
        if stage is PASSING:
            return self.exchange.send(message)
        if message["type"] == "http.response.start":
            return self._start(message)
        if message["type"] == "http.response.body":
            if self.reader is not None:
                return self._read(self.reader, message)
            if stage is ENDING and not message.get("more_body"):
                self.stage = PASSING
                self.exchange.runtime.pins.pass_turn(self.exchange.place())
        return self.exchange.send(message)

    def watch(self, framing: Framing, last: Iterable[Message]) -> None:
        """Keep the last messages of a stream from now on, after these."""
        if self.last is None:
            self.last = deque(maxlen=LAST_MESSAGES)
        self.framing = framing
        self.last.extend(
            message if len(message.get("body", b"")) <= LATE_BYTES else end_of(message) for message in last
        )
        if self.stage is PASSING:
            self.stage = WATCHING

    def straight_on(self) -> Send:
        """Return what sends the messages to come, with as little as possible for each."""
        last, send = self.last, self.exchange.send
        if self.stage is PASSING:
            return send
        if self.stage is not WATCHING or last is None:
            return self.send
        keep = last.append

        def keep_and_send(message: Message) -> Awaitable[None]:
            keep(message if len(message.get("body", b"")) <= LATE_BYTES else end_of(message))
            return send(message)

        return keep_and_send

    def holds_back(self, error: Exception) -> bool:
        """Take note of what the app raised. Nothing is kept back: it comes out."""
        if self.last and self.last[-1].get("more_body") and not self.is_clients_leaving(error):
            self.failure = LATE  # behind a whole stream it would say nothing of the model
        return False

    def is_clients_leaving(self, error: Exception) -> bool:
        """Tell whether the app raised since the client has left: it was told so, or the server's `send` raised."""
        return self.exchange.client_left or passed_through(error, self.exchange.server_send or self.exchange.send)

    @property
    def is_held(self) -> bool:
        """Whether nothing of it has gone out since it is kept back."""
        return False

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing left to do when the app is done."""
        return self.stage is PASSING and self.last is None and self.failure is None

    async def done(self, raised: type[BaseException] | None = None) -> None:
        """Leave nothing behind: the app is done."""
        exchange = self.exchange
        if exchange.pin is not None:
            failure = self.failure
            if failure is None and self.last is not None and showed_late_failure(exchange, self.last, self.framing):
                failure = LATE
            if failure is not None:
                exchange.verdict = failure
                await count_failure(exchange)
            elif self.gave_output and exchange.health is not None:
                exchange.health.failures = 0
        if exchange.has_turn:
            exchange.runtime.pins.pass_turn(exchange.place())

    def _start(self, message: Message) -> Awaitable[None]:
        exchange = self.exchange
        headers = listed(message)
        if message["status"] // 100 != 2:
            self.stage = ENDING if exchange.has_turn else PASSING
            exchange.pin = None  # it is no use of it
            exchange.unpinned = "status"
        elif self.look is None:
            self.stage = PASSING
        else:
            rules = exchange.runtime.rules
            if not exchange.streams and JSON_TYPE in headers and rules.plain.covers(map(header_name, headers)):
                self.reader = reader = open_plain_reader(rules, headers, exchange.asked)
                is_clean = True
            else:
                picked = rules.headers.pick(headers)
                is_clean = RESPONSE_HEADERS.isdisjoint(picked)
                self.reader = reader = open_reader(
                    rules, picked, exchange.asked, streams=exchange.streams, whole=exchange.decides
                )
                if picked.keys() <= PLAIN:
                    rules.plain.learn(headers)
            self.stage = READING
            if reader.finished or exchange.is_stated:
                return self._settle(reader, {**message, "headers": headers})
            return self._tell(message, headers, is_clean)
        return self._tell(message, headers)

    def _read(self, reader: Reader, message: Message) -> Awaitable[None]:
        reader.feed(body_of(message), message.get("more_body", False))
        if reader.finished or (self.exchange.is_stated and self.exchange.learns):
            return self._settle(reader, message)
        return self.exchange.send(message)

    async def _settle(self, reader: Reader, message: Message) -> None:
        """Draw the conclusion before the message goes on that allows it."""
        assert self.look is not None
        await self.look(reader)
        if reader.finished:
            self.reader = None
            self.stage = PASSING
            if reader.framing in STREAMED:
                self.watch(reader.framing, [message])
        if message["type"] == "http.response.start":
            return await self._tell(message, message["headers"])
        return await self.exchange.send(message)

    def _tell(self, message: Message, headers: Headers, is_clean: bool = False) -> Awaitable[None]:
        """Send the start of the response with our headers, and none of these names from anybody else."""
        exchange = self.exchange
        runtime = exchange.runtime
        exchange.show_scope()
        if exchange.began is not None:
            exchange.first_byte_seconds = runtime.timer() - exchange.began
        if not (self.tells and runtime.config.response_headers):
            return exchange.send({**message, "headers": headers})
        if not is_clean and not runtime.nothing_to_heed.covers(map(header_name, headers)):
            exchange.is_fallback = runtime.rules.is_fallback(runtime.rules.headers.pick(headers))
            headers = without(headers, RESPONSE_HEADERS)
            if not exchange.is_fallback:
                runtime.nothing_to_heed.learn(without(headers, HEEDED_HEADERS))
        by_fingerprint = exchange.source == FINGERPRINT
        told = response_headers(exchange.status, by_fingerprint, exchange.reason_now(), exchange.model)
        return exchange.send({**message, "headers": headers + told})


def listed(message: Message) -> Headers:
    """Return the headers of a response as a list: apps also give iterators, which can be read once."""
    headers: Headers = message.get("headers", [])
    return headers if type(headers) is list else list(headers)


def passed_through(error: BaseException | None, send: Send) -> bool:
    """Tell whether an exception, or one that it came from, was raised in the server's *send*."""
    code = getattr(send, "__code__", None)  # a method has its function's
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if any(frame.f_code is code for frame, _ in walk_tb(error.__traceback__)):
            return True
        error = error.__cause__ or error.__context__
    return False
