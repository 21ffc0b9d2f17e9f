"""A websocket on one of our endpoints: each response that its client asks for is pinned, as a request of its own is."""

import asyncio
import copy
import sys
from collections.abc import Awaitable
from functools import partial
from typing import Any

import msgspec
from starlette.types import Message

from .answer import LATE, Look, listed, passed_through
from .exchange import Exchange
from .guard import GONE_SECONDS
from .handle import find_or_lead
from .log import Opaque
from .outcome import compare, count_failure, is_proven, prove, recall, record_choice, refuse, renew
from .request.scope import SCOPE_KEY
from .request.session import asked_model, asks_for_response
from .response.errors import Error
from .response.judge import Verdict, implied_status, judge
from .response.output import FAILED_EVENTS, Seen, look_at_event
from .response.reader import STREAM_BYTES, Reader, open_event_reader
from .response.restore import restored
from .response.rules import RESPONSE_HEADERS
from .wire.headers import without
from .wire.json import FALSE, Members, decode_members, find_string, put_model

MAX_OPEN = 64  # answers of a socket that are under way; of more, the oldest is not looked at any longer

_ENDS = FAILED_EVENTS | {"response.completed", "response.incomplete", "response.cancelled"}


class _Event(msgspec.Struct):
    """What every event says of itself; *stream_id* where a socket has several responses at a time."""

    type: str = ""
    stream_id: Any = None
    status: Any = None  # of an error
    status_code: Any = None

    def status_of(self, error: Error) -> int:
        """Return the status that an error has, or stands for."""
        told = (status for status in (self.status, self.status_code) if type(status) is int)
        return next(told, implied_status(error))


_decode_event = msgspec.json.Decoder(_Event).decode


def _read_event(text: str) -> _Event:
    """Return what a message of the app says of itself; nothing if it is no event."""
    try:
        return _decode_event(text)
    except (ValueError, RecursionError):
        return _Event()


class SocketAnswer(Opaque):
    """The answer to one `response.create`, whose events pass."""

    exchange: Exchange
    stream_id: str | None
    look: Look | None = None  # at what names the model
    reader: Reader | None = None
    is_judged: bool = False
    has_output: bool = False
    size: int = 0  # bytes that were looked at for the model

    def wants(self, event: _Event) -> bool:
        """Tell whether an event is to be looked at: of most, no more than their type."""
        return self.reader is not None or (self.is_judged and not self.has_output) or event.type in _ENDS

    async def see(self, event: _Event, data: bytes) -> None:
        """Look at an event before it goes on."""
        if self.reader is not None:
            self.reader.read_event(None, data)
            self.size += len(data)
            if not self.reader.finished and (self.size > STREAM_BYTES or event.type in _ENDS):
                self.reader.finish({})
            await self._settle(self.reader)
        if self.is_judged:
            shown = look_at_event(None, data)
            if isinstance(shown, Error):
                await self._fail(shown, event.status_of(shown))
            elif shown is Seen.OUTPUT and not self.has_output:
                self.has_output = True
                prove(self.exchange, is_over=False)
        if event.type in _ENDS:
            await self._finish()

    async def _settle(self, reader: Reader) -> None:
        """Draw the conclusion before the event goes on that allows it."""
        exchange = self.exchange
        if reader.finished or (exchange.is_stated and exchange.learns):
            assert self.look is not None
            await self.look(reader)
            if reader.finished:
                self.reader = None

    async def _fail(self, error: Error, status: int) -> None:
        """Count what the client gets to see as a failure: it can't be routed, the socket is the app's."""
        exchange = self.exchange
        pin, exchange.pin = exchange.pin, None
        if pin is None:
            return
        runtime, known = exchange.runtime, exchange.health
        has_served = self.has_output or known is None or is_proven(exchange, pin)
        verdict = judge(status, error, pin.model, is_proven=has_served)
        exchange.verdict = verdict.value
        if verdict is Verdict.CLIENT or (known is not None and runtime.health.rests(known)):
            return
        if known is None or not verdict.blames_the_name:
            exchange.pin = pin
            await count_failure(exchange)
        elif runtime.config.failover.on_refused == "reroute":  # as the next one will be
            if verdict is Verdict.REFUSED:
                await refuse(exchange, pin, verdict)
            else:  # no routed answer has shown that it is the name and not the request
                await runtime.pins.unpin(exchange.place(), pin, "refused")

    async def break_off(self, *, is_failure: bool) -> None:
        """Leave nothing behind: no event comes any longer. *is_failure*: the client did not leave."""
        exchange = self.exchange
        seconds = exchange.runtime.timer() - exchange.called
        is_failure = is_failure or (not self.has_output and seconds >= GONE_SECONDS)
        if is_failure and self.is_judged and exchange.pin is not None:
            exchange.verdict = LATE if self.has_output else Verdict.UNAVAILABLE.value
            await count_failure(exchange)
        await self._finish()

    async def _finish(self) -> None:
        exchange = self.exchange
        runtime = exchange.runtime
        if exchange.has_turn:
            runtime.pins.pass_turn(exchange.place())
        if exchange.pin is not None and exchange.health is not None and self.has_output:
            exchange.health.failures = 0
        await renew(exchange)
        exchange.tell_listeners()


class PinnedSocket:
    """Stands between the app and the server's websocket. *exchange*: what is known of the upgrade."""

    def __init__(self, exchange: Exchange) -> None:
        self._upgrade = exchange
        self._answers: list[SocketAnswer] = []
        self._reset: set[bytes] = set()  # keys whose pin the client had forgotten
        self._pinning: tuple[Message, asyncio.Task[str | None]] | None = None  # which the app is still to get
        self._client_left = False
        self._asks_else = False  # the client has sent what is no request for a response since the last one began
        self._restores = exchange.runtime.config.restore_model
        control = exchange.picked.get(b"x-session-pin", b"").strip().lower()
        exchange.resets = control == b"reset"
        self._status: bytes | None = b"websocket"
        self._pins = False
        if exchange.decides or (exchange.session_id is None and not exchange.runtime.sessions.reads_bodies):
            self._status = None
        elif control == b"off":
            self._status = exchange.status = b"off"
        elif exchange.session_id == b"":
            exchange.status, exchange.reason = b"ignored", b"invalid-session-id"
            self._status = b"ignored; reason=invalid-session-id"
        else:
            self._pins = True

    async def run(self) -> None:
        """Have the app serve the socket."""
        exchange = self._upgrade
        inner = exchange.open_scope(exchange.headers)
        try:
            await exchange.runtime.app(inner, self._receive, self._send)
        except Exception as error:
            self._client_left = self._client_left or passed_through(error, exchange.send)
            raise
        finally:
            exchange.show_scope()
            exchange.close_scope()
            is_left = self._client_left or isinstance(sys.exception(), asyncio.CancelledError)
            if self._pinning is not None:
                self._pinning[1].cancel()
                await asyncio.gather(self._pinning[1], return_exceptions=True)
            await self._break_off(is_failure=not is_left)
            if self._status is not None and not self._pins:
                exchange.tell_listeners()

    # From the client

    async def _receive(self) -> Message:
        if self._pinning is None:
            message = await self._upgrade.receive()
            if message["type"] == "websocket.disconnect":
                self._client_left = True
            if not (self._pins and message.get("text")):
                return message
            self._pinning = message, asyncio.create_task(self._pin(message["text"]))
        message, pinning = self._pinning
        text = await asyncio.shield(pinning)  # the app may wait for a message for some time only
        self._pinning = None
        if self._answers:
            self._upgrade.runtime.pins.enter(self._answers[-1].exchange.place())
        return message if text is None else {**message, "text": text}

    async def _pin(self, text: str) -> str | None:
        """Return a message with the pinned model in it; None: it passes as it is."""
        runtime = self._upgrade.runtime
        try:
            content = text.encode()
            members = decode_members(content) if len(content) <= runtime.max_request_bytes else {}
        except ValueError:
            return None
        if find_string(members, ("type",)) != "response.create" or not asks_for_response(members):
            self._asks_else = True
            return None
        exchange = self._open(members)
        if exchange is None:
            return None
        if len(self._answers) == MAX_OPEN:
            await self._answers.pop(0).break_off(is_failure=False)
        share = exchange.open_share()
        try:
            pin = await find_or_lead(exchange, members, hold=partial(share.take, len(content)))
        finally:
            share.give_back()
        if exchange.resets:
            self._reset.add(exchange.key)
        answer = SocketAnswer(exchange, find_string(members, ("stream_id",)))
        is_warm_up = members.get("generate") == FALSE
        if pin is not None:
            exchange.use(pin)
            answer.is_judged = exchange.asked != pin.model and not is_warm_up  # as for HTTP: there is no other name
            if answer.is_judged and recall(exchange, pin):
                answer.look = partial(compare, exchange)
        elif is_warm_up:  # its answer names no choice
            runtime.pins.pass_turn(exchange.place())
        else:
            answer.is_judged = exchange.learns = True
            answer.look = partial(record_choice, exchange)
        if answer.look is not None:
            answer.reader = open_event_reader(runtime.rules, exchange.asked)
        assert self._upgrade.inner is not None
        self._upgrade.inner[SCOPE_KEY] = exchange
        self._answers.append(answer)
        return None if pin is None else put_model(members, pin.model).decode()

    def _open(self, members: Members) -> Exchange | None:
        """Return what is known of a request for a response; None if it is not one that is pinned."""
        upgrade = self._upgrade
        runtime, session_id = upgrade.runtime, upgrade.session_id
        if session_id is None:
            session_id = runtime.sessions.find_id(upgrade.picked, members)
        if session_id is None:
            return None
        exchange = copy.copy(upgrade)
        exchange.close_scope()
        exchange.session_id = session_id
        exchange.source = runtime.sessions.find_source(upgrade.picked, members)
        exchange.asked = asked = asked_model(members)
        if runtime.steering.is_paused:
            runtime.steering.watch()
            exchange.reason = b"paused"
        elif not session_id:
            exchange.reason = b"invalid-session-id"
        elif runtime.is_routed is not None and not runtime.is_routed(asked):
            exchange.reason = b"model-not-routed"
        if exchange.reason is not None:
            exchange.status = b"off" if exchange.reason == b"paused" else b"ignored"
            exchange.tell_listeners()
            return None
        exchange.key = key = runtime.sessions.key(session_id, upgrade.picked, asked)
        exchange.place().is_multiplexed = True
        exchange.resets = upgrade.resets and key not in self._reset and len(self._reset) < MAX_OPEN
        return exchange

    # From the app

    def _send(self, message: Message) -> Awaitable[None]:
        kind = message["type"]
        if kind == "websocket.send":
            if self._answers and message.get("text"):
                event = _read_event(message["text"])
                if event.type == "error" and event.stream_id is None and (self._asks_else or len(self._answers) > 1):
                    return self._let_go_and_send(message)
                self._asks_else = self._asks_else and event.type != "response.created"
                answer = self._answer_of(event)
                if answer is not None and (answer.wants(event) or self._restores):
                    return self._see_and_send(answer, event, message)
        elif kind in ("websocket.accept", "websocket.http.response.start"):
            self._upgrade.show_scope()
            if self._status is not None and self._upgrade.runtime.config.response_headers:
                told = (b"x-session-pin-status", self._status)
                message = {**message, "headers": [*without(listed(message), RESPONSE_HEADERS), told]}
        elif kind == "websocket.close":
            return self._break_off_and_send(message)
        return self._upgrade.send(message)

    def _answer_of(self, event: _Event) -> SocketAnswer | None:
        """Return the answer that an event belongs to: that of its stream, else the oldest."""
        if not event.type.startswith("response.") and event.type != "error":
            return None
        answers = self._answers
        return next((each for each in answers if each.stream_id == event.stream_id), answers[0])

    async def _see_and_send(self, answer: SocketAnswer, event: _Event, message: Message) -> None:
        is_open = answer in self._answers  # not behind its end, or beyond the bound
        if is_open and event.type in _ENDS:
            self._answers.remove(answer)
        data, asked = message["text"].encode(), answer.exchange.asked
        if is_open and answer.wants(event):
            await answer.see(event, data)
        if self._restores and isinstance(asked, str):
            message = {**message, "text": restored(data, asked).decode()}
        await self._upgrade.send(message)

    async def _let_go_and_send(self, message: Message) -> None:
        """Send an error that may be of any answer, or of another message of the client: nothing is learned of them."""
        await self._break_off(is_failure=False)
        await self._upgrade.send(message)

    async def _break_off_and_send(self, message: Message) -> None:
        await self._break_off(is_failure=not self._client_left)
        await self._upgrade.send(message)

    async def _break_off(self, *, is_failure: bool) -> None:
        while self._answers:
            await self._answers.pop().break_off(is_failure=is_failure)
