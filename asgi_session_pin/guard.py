"""Keeps a pinned answer back until it is judged, so that a failure can be replaced before the client sees any of it."""

import asyncio
from collections.abc import Awaitable
from contextvars import Context
from typing import Any

from msgspec import field
from starlette.types import Message, Send

from .answer import DROPPED, FAILING, FLUSHING, HOLDING, LATE, LOOKING, PASSING, WAITING, Answer, Stage, listed
from .log import Opaque, logger, names_of
from .outcome import count_failure, is_proven, prove
from .response.errors import Error, read_error
from .response.judge import Verdict, implied_status, judge
from .response.output import HELD_BYTES, OUTPUT, Output, Seen, is_plain_output, open_output
from .response.pieces import STREAMED
from .wire.compression import decode_whole
from .wire.messages import body_of

GONE_SECONDS = 30.0  # a client that leaves sooner may have changed its mind


_HELD = (WAITING, HOLDING, FAILING, DROPPED)


class Guard(Opaque):
    """Stands between the app and an `Answer` under a pin; `Stage` has the way through it.

    Held are at most 64 KiB, for at most a second; a failure that is routed, until the second answer's first output.
    In the answer to a request that is routed in place of a failure, *first* is that failure, which goes out if this
    answer is no better.
    """

    answer: Answer
    onward: Send  # the answer's, or the server's once the answer has nothing more to do
    state: dict[str, Any]  # what the scope's `state` had before the call
    first: "Guard | None" = None
    stage: Stage = WAITING
    held: list[Message] = field(default_factory=list)
    size: int = 0  # of the held bodies, in bytes
    output: Output | None = None  # looks for output; None until that can't be told at a glance
    fault: Error | None = None  # what a 2xx answer says that is an error
    verdict: Verdict | None = None  # of a failure
    error: Exception | None = None  # what the app raised, instead of an answer
    is_flushing: bool = False
    flushed: asyncio.Future[None] | None = None  # for those that wait until what was held is out
    timed_out: asyncio.Task[None] | None = None  # lets go of what is held

    def send(self, message: Message) -> Awaitable[None]:
        """The app's `send`."""
        stage = self.stage
        if stage is PASSING:
            return self.onward(message)
        if stage is WAITING:
            return self._start(message) if message["type"] == "http.response.start" else self.onward(message)
        if stage is HOLDING or (stage is FAILING and self.first is None):
            return self._hold(message)
        if stage is FLUSHING:
            return self._send_behind(message)
        return self._look_on(message) if stage is LOOKING else self._drop(message)

    def holds_back(self, error: Exception) -> bool:
        """Take what the app raised, if its answer is held back; tell whether that is so."""
        if self.stage is DROPPED:
            self.error = error
            return True
        if self.stage is LOOKING and self.first is None and not self.answer.is_clients_leaving(error):
            self.answer.failure = LATE
        if self.answer.exchange.client_left or self.stage not in (WAITING, HOLDING, FAILING):
            return self.answer.holds_back(error)
        self._break_off()
        self.error = error
        return True

    @property
    def is_held(self) -> bool:
        """Whether nothing of it has gone out."""
        return self.stage in _HELD

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing left to do when the app is done."""
        return self.stage is PASSING and self.timed_out is None and self.answer.is_settled

    async def done(self, raised: type[BaseException] | None = None) -> None:
        """Leave nothing behind: the app is done. *raised* is what comes out of its call."""
        exchange = self.answer.exchange
        exchange.runtime.hold_timer.forget(self)
        if self.timed_out is not None:
            if self.stage in (HOLDING, FAILING):  # it has not begun
                self.timed_out.cancel()
            await _end(self.timed_out, raised)
        is_abandoned = exchange.client_left or raised is not None  # nobody waits for the answer any longer
        if self.first is None and is_abandoned and self._has_waited_long():
            self.answer.failure = Verdict.UNAVAILABLE.value
        if self.stage in (WAITING, HOLDING) and not is_abandoned:
            self._break_off()
        await self.answer.done()

    def _break_off(self) -> None:
        """Take note that the app is done, and its answer, of which nothing went out, is not."""
        self.stage = FAILING
        self.verdict = self.verdict or self._found(Verdict.UNAVAILABLE)

    def calls_for_routing(self) -> bool:
        """Tell whether what is held is a failure in whose place the request is to be routed."""
        if self.answer.exchange.client_left or self.stage is not FAILING:
            return False
        if self.verdict is None:  # the app returned before its answer was whole
            self.verdict = self._judge_held()
        return self._is_routable(self.verdict)

    async def let_go(self) -> None:
        """Let what is held go on: it is too large or too slow, or routing is not called for."""
        self.answer.exchange.runtime.hold_timer.forget(self)
        if self.stage is HOLDING:
            self.output = self.output or self._open_output()
            await self._flush()
            self.stage = LOOKING
        elif self.stage is FAILING and self.first is not None:
            self.stage = DROPPED
            self._tell_to_end()
            await self.first.flush()  # what it raised is nothing to this app; it comes out at the end
        elif self.stage is FAILING:
            await self._flush(counts=self._counts(self.verdict or self._judge_held()))
            self.stage = PASSING

    async def flush(self) -> None:
        """Let what is held go out as it is."""
        await self._flush()
        self.stage = PASSING

    def time_is_up(self, context: Context) -> None:
        """Let go of what is held, in the context of its own request."""
        self.timed_out = asyncio.get_running_loop().create_task(self.let_go(), context=context)

    # What is held

    def _start(self, message: Message) -> Awaitable[None]:
        headers = message.get("headers")
        if type(headers) is not list:
            message = {**message, "headers": listed(message)}
        self.held.append(message)
        self.stage = HOLDING if message["status"] // 100 == 2 else FAILING
        self.answer.exchange.runtime.hold_timer.add(self)
        return nothing()

    def _hold(self, message: Message) -> Awaitable[None]:
        """Hold a message, until it shows what becomes of those that are held."""
        if message["type"] != "http.response.body":  # trailers, or a file: the body tells nothing more
            self.held.append(message)
            is_whole = self.stage is FAILING and self.verdict is not None
            return nothing() if is_whole else self.let_go()
        chunk, more = body_of(message), message.get("more_body", False)
        self.held.append({**message, "body": chunk})  # apps use messages and buffers again
        self.size += len(chunk)
        if self.stage is HOLDING:
            seen = self._look(chunk, more)
            if seen is OUTPUT:
                self.stage = FLUSHING  # at once: the app may call again before it awaits this
                return self._flush(gives_output=True)
            if seen is Seen.ERROR or (seen is Seen.NOTHING and not more and self.held[0]["status"] == 200):
                self.stage = FAILING
                self.verdict = self._judge_fault()
            elif not more:
                return self.flush()  # a prelude alone: neither success nor failure
        elif not more and self.verdict is None:
            self.verdict = self._judge_held()
        if self.size > HELD_BYTES or (self.verdict is not None and not self._is_routable(self.verdict)):
            return self.let_go()
        return self._keep_back(more or self.stage is HOLDING)

    def _drop(self, message: Message) -> Awaitable[None]:
        return self._keep_back(message["type"] != "http.response.body" or message.get("more_body", False))

    def _keep_back(self, more: bool) -> Awaitable[None]:
        """Send nothing; once a failure is whole, the app is told to end."""
        if not more:
            self._tell_to_end()
        return nothing()

    def _tell_to_end(self) -> None:
        body = self.answer.exchange.body
        assert body is not None
        body.is_kept_back = True

    def _look(self, chunk: bytes, more: bool) -> Seen:
        output = self.output
        if output is None:
            if not more and len(chunk) <= HELD_BYTES and is_plain_output(chunk):  # as most answers are
                return OUTPUT
            output = self.output = self._open_output()
        seen = output.feed(chunk, more)
        self.fault = output.error
        return seen

    def _open_output(self) -> Output:
        exchange = self.answer.exchange
        return open_output(exchange.runtime.rules.headers.pick(self.held[0]["headers"]), streams=exchange.streams)

    # What goes out

    def _look_on(self, message: Message) -> Awaitable[None]:
        """Look for output as the answer goes on."""
        if message["type"] != "http.response.body":
            return self.onward(message)
        chunk, more = body_of(message), message.get("more_body", False)
        seen = self._look(chunk, more)
        if seen is OUTPUT:
            return self._send_output(message)
        if seen is Seen.ERROR or not more:
            self.stage = PASSING
            if seen is not Seen.PRELUDE and self.first is None:
                self.answer.failure = None if self._judge_fault() is Verdict.CLIENT else LATE
        return self.onward(message)

    async def _send_output(self, message: Message) -> None:
        await self.onward(message)
        self._succeed((message,))

    def _succeed(self, last: tuple[Message, ...]) -> None:
        """Take note that it gives output; *last* are the messages that showed it."""
        self.stage = PASSING
        output, answer = self.output, self.answer
        is_stream = output is not None and output.framing in STREAMED
        if self.first is None:
            prove(answer.exchange, is_over=not is_stream)
        if self.first is None and output is not None and is_stream:
            answer.gave_output = True
            answer.watch(output.framing, last)
        if output is not None:  # else it was whole
            self.onward = answer.straight_on()

    def forget(self) -> None:
        """Let go of a failure that another answer has replaced."""
        if self.error is not None:
            logger.warning("a pinned model failed and its request was routed; the app raised %s", names_of(self.error))
        self.error = None
        self.held = []

    async def _flush(self, *, gives_output: bool = False, counts: bool = False) -> None:
        """Send what is held: an answer that *gives_output*, or a failure, which may be one that *counts*."""
        exchange = self.answer.exchange
        exchange.runtime.hold_timer.forget(self)
        self.stage = FLUSHING  # before anything is awaited: what comes now goes behind it
        self.is_flushing = True
        if self.first is not None:
            self.first.forget()
        assert exchange.body is not None
        exchange.body.original = b""  # it may be large, and the answer take minutes
        shown = tuple(self.held) if gives_output else ()
        try:
            if counts:
                await count_failure(exchange)
            while self.held:
                await self.answer.send(self.held[0])
                del self.held[0]
        finally:
            self.is_flushing = False
            if self.flushed is not None:
                self.flushed.set_result(None)
                self.flushed = None
        if gives_output:
            self._succeed(shown)

    async def _send_behind(self, message: Message) -> None:
        """Send what comes while other messages go out, or when that was broken off."""
        while self.is_flushing:
            if self.flushed is None:
                self.flushed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self.flushed)
        if self.stage is FLUSHING:
            await self.flush()
        await self.send(message)

    # What it means

    def _judge_held(self) -> Verdict:
        """Judge an answer that is not 2xx."""
        start, *rest = self.held
        exchange = self.answer.exchange
        picked = exchange.runtime.rules.headers.pick(start["headers"])
        content = decode_whole(b"".join(map(body_of, rest)), picked.get(b"content-encoding", b""), HELD_BYTES)
        return self._judge(start["status"], read_error(content))

    def _judge_fault(self) -> Verdict:
        """Judge a 2xx answer that is an error, or nothing at all."""
        error = self.fault or Error()
        return self._judge(implied_status(error), error)

    def _judge(self, status: int, error: Error) -> Verdict:
        exchange = self.answer.exchange
        if exchange.pin is None:
            return Verdict.UNAVAILABLE
        return self._found(judge(status, error, exchange.pin.model, is_proven=is_proven(exchange, exchange.pin)))

    def _found(self, verdict: Verdict) -> Verdict:
        """Take note of what the answer under the pin says of it."""
        if self.first is None:
            self.answer.exchange.verdict = verdict.value
        return verdict

    def _is_routable(self, verdict: Verdict) -> bool:
        """Tell whether such a failure calls for routing; in the answer of a router for the first one instead."""
        exchange = self.answer.exchange
        if self.first is not None or exchange.health is None:
            return self.first is not None
        if verdict is Verdict.CLIENT or exchange.runtime.health.rests(exchange.health):
            return False
        failover = exchange.runtime.config.failover
        return (failover.on_unavailable if verdict is Verdict.UNAVAILABLE else failover.on_refused) == "reroute"

    def _counts(self, verdict: Verdict) -> bool:
        """Tell whether such a failure counts that goes out."""
        exchange = self.answer.exchange
        if verdict is Verdict.CLIENT or exchange.health is None or exchange.runtime.health.rests(exchange.health):
            return False
        return not verdict.blames_the_name or self._is_routable(verdict)

    def _has_waited_long(self) -> bool:
        """Tell whether there was no output in all the time that a client waits."""
        exchange = self.answer.exchange
        seconds = exchange.runtime.timer() - exchange.called
        return self.stage in (WAITING, HOLDING, LOOKING) and seconds >= GONE_SECONDS


async def _end(task: asyncio.Task[None], raised: type[BaseException] | None) -> None:
    """Wait for a task; raise what it raised, but for what is *raised* already."""
    if raised is not None and issubclass(raised, asyncio.CancelledError):
        task.cancel()
    try:
        await asyncio.wait([task])
    finally:
        task.cancel()
    if not task.cancelled() and task.exception() is not None and raised is None:
        await task


async def nothing() -> None:
    """Send nothing."""
