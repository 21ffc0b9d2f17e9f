"""One request's way through: read what it asks for, find its pin or lead, call the app, judge what it answers."""

import asyncio
import copy
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.types import Message, Receive, Scope

from .answer import Answer
from .config.settings import FINGERPRINT, RESPONSES
from .ending import ends_by
from .exchange import Exchange
from .guard import Guard
from .log import logger, names_of
from .outcome import compare, put_pin, recall, record_choice, renew, replace
from .pin import Pin
from .request.body import RequestBody
from .request.scope import PINNED, copy_of_state, decoded_headers, pinned_headers, put_state, why_unreadable
from .request.session import asked_model, asks_for_response, asks_for_stream
from .response.decision import DecisionEditor, Edit, ask_for_identity, reply, tell_choice, tell_pin
from .response.restore import Restorer
from .wire.headers import Headers, is_identity
from .wire.json import Members, decode_members, put_model


async def handle_observed(exchange: Exchange) -> None:
    """Do as `handle`, and tell the listeners."""
    if exchange.runtime.listeners:
        exchange.began = exchange.runtime.timer()
    if exchange.runtime.config.admin.tokens:
        exchange.count_tokens()
    try:
        await handle(exchange)
    finally:
        if exchange.session_id is not None:
            (exchange.again or exchange).tell_listeners()


async def handle(exchange: Exchange) -> None:
    """Take the request through the app, or answer it from the pin."""
    try:
        request = await _read(exchange)
        if request is None:  # it is not one that is pinned, and has passed
            return None
        members, content = request
        pin, is_absent = _find(exchange)
        if pin is None:
            pin = await find_or_lead(exchange, members, hold=exchange.hold, is_absent=is_absent)
        if exchange.decides:
            return await _decide(exchange, pin)
        answer: Answer | Guard
        if pin is None:
            exchange.learns = True
            inner, answer = exchange.open_scope(exchange.headers), _routed(exchange)
        else:
            inner, answer = _pin_to(exchange, pin, members, content), _under(exchange, pin)
        del request, content, members  # they may be large, and the answer take minutes
        if await _attempt(exchange, inner, answer):
            assert pin is not None
            assert isinstance(answer, Guard)
            await _replace(exchange, pin, answer)
    finally:
        if exchange.body is not None and exchange.body.share is not None:
            exchange.body.share.give_back()
        exchange.close_scope()


def _find(exchange: Exchange) -> tuple[Pin | None, bool]:
    """Look for the pin where that can't fail; tell whether there is none, if it is not found."""
    runtime = exchange.runtime
    found = None if runtime.find is None else runtime.find(exchange.key)
    exchange.called = runtime.timer()
    if isinstance(found, Pin):
        may_end = exchange.resets or runtime.health.has_refused or runtime.steering.retired
        if not (may_end and exchange.may_end(found)):
            return found, False
    return None, found is None and runtime.find is not None


def _under(exchange: Exchange, pin: Pin) -> Answer | Guard:
    """Return what stands before the pinned model's answer: where it fails, the request is routed."""
    if exchange.asked == pin.model:  # there is no other request to send
        return Answer(exchange)
    if not exchange.runtime.sessions.by_model:
        _warn_of_an_overridden_model(exchange, pin)
    answer = Answer(exchange, partial(compare, exchange) if recall(exchange, pin) else None)
    return Guard(answer, answer.send, copy_of_state(exchange.scope))


async def _replace(exchange: Exchange, pin: Pin, guard: Guard) -> None:
    """Route the request in place of the failure that is held, or let that go out."""
    if guard.calls_for_routing():
        await _reroute(exchange, pin, guard)
    else:
        await _let_out(exchange, guard, guard.let_go())


async def _read(exchange: Exchange) -> tuple[Members, bytes] | None:
    """Read what a request asks for, and its body; None: it is not to be pinned, and was passed on."""
    runtime = exchange.runtime
    if exchange.unusual or not exchange.session_id or runtime.steering.is_paused:
        passing = _pass_unread(exchange)
        if passing is not None:
            await passing
            return None
    body = exchange.body = RequestBody(exchange.receive)
    content = body.take(await exchange.receive(), runtime.max_request_bytes)
    if content is None or exchange.coding:
        content = await _read_on(exchange, body, content)
        if content is None:
            return None
    try:
        members = decode_members(content)
    except ValueError:
        await _ignore(exchange, b"body-not-json", body.receive)
        return None
    if exchange.endpoint.path == RESPONSES and not asks_for_response(members):
        exchange.session_id = None  # nor is it told to listeners
        await _pass_untold(exchange, body.receive)
        return None
    if exchange.session_id is None:
        exchange.session_id = runtime.sessions.find_id(exchange.picked, members)
        exchange.source = runtime.sessions.find_source(exchange.picked, members)
        if exchange.session_id is None:
            exchange.session_id = runtime.sessions.fingerprint(exchange.picked, members)
            exchange.source = FINGERPRINT if exchange.session_id else None
        if not exchange.session_id:
            await _ignore(exchange, b"invalid-session-id", body.receive)
            return None
    exchange.asked = asked = asked_model(members)
    if runtime.is_routed is not None and not runtime.is_routed(asked):
        await _ignore(exchange, b"model-not-routed", body.receive)
        return None
    exchange.key = runtime.sessions.key(exchange.session_id, exchange.picked, asked)
    exchange.streams = asks_for_stream(members)
    if runtime.config.restore_model and isinstance(asked, str) and not exchange.decides:
        _restore_model(exchange, asked)
    if exchange.coding:
        body.put(content)
        exchange.headers = decoded_headers(exchange.headers, len(content))
    return members, content


async def _read_on(exchange: Exchange, body: RequestBody, content: bytes | None) -> bytes | None:
    """Read a body that is not whole yet, or encoded; None: it can't be used, and was passed on as it came."""
    runtime = exchange.runtime
    share = exchange.open_share()
    if content is None and body.why_unread is None:
        reader = asyncio.current_task()
        assert reader is not None
        pass_on = partial(_ignore, exchange, b"body-too-slow", body.receive)
        timer = asyncio.get_running_loop().call_later(runtime.config.limits.body_seconds, body.give_up, reader, pass_on)
        try:
            content = await body.read_on(runtime.max_request_bytes, share)
        finally:
            timer.cancel()
    if content is not None and exchange.coding:
        content = await body.decode(exchange.coding, runtime.max_request_bytes, share)
    if content is None and body.overdue is None:
        assert body.why_unread is not None
        await _ignore(exchange, body.why_unread, body.receive)
    return content


def _restore_model(exchange: Exchange, asked: str) -> None:
    """Have the answer name the model that the client asked for, behind all that looks at it."""
    exchange.server_send = exchange.server_send or exchange.send
    exchange.send = Restorer(exchange.send, asked, exchange.streams, exchange.runtime.rules.max_bytes).send


def _routed(exchange: Exchange) -> Answer:
    return Answer(exchange, partial(record_choice, exchange))


async def _attempt(exchange: Exchange, inner: Scope, answer: Answer | Guard) -> bool:
    """Call the app once; tell whether its answer is held back. What it raises comes out, unless that is."""
    body = exchange.body
    assert body is not None
    raised: type[BaseException] | None = None
    try:
        await exchange.runtime.app(inner, body.receive, answer.send)
    except BaseException as error:
        if not (isinstance(error, Exception) and answer.holds_back(error)):
            raised = type(error)
            raise
    finally:
        if not answer.is_settled:
            await answer.done(raised)
        is_held = answer.is_held
        if not is_held:
            exchange.show_scope()
    runtime = exchange.runtime
    if not is_held and runtime.timer() - exchange.called >= runtime.renew_after:
        await renew(exchange)
    return is_held


async def _reroute(exchange: Exchange, pin: Pin, first: Guard) -> None:
    """Send the request to the app once more, as it came; the failure goes out if that does no better."""
    health, known, verdict, body = exchange.runtime.health, exchange.health, first.verdict, exchange.body
    assert known is not None
    assert verdict is not None
    assert body is not None
    first_state = copy_of_state(exchange.scope)
    put_state(exchange.scope, first.state)  # a call that is replaced leaves nothing there
    again = exchange.again = copy.copy(exchange)
    again.status = b"reroute"
    again.body = body.again()
    again.learns = verdict.blames_the_name or health.is_last_failure(known)
    again.model = None if again.learns else pin.model
    again.pin = None  # this answer is no use of it
    again.replaces = pin, verdict
    answer = Answer(again, partial(replace, again))
    second = Guard(answer, answer.send, {}, first)
    try:
        is_held = await _attempt(again, again.open_scope(exchange.headers), second)
    finally:
        again.close_scope()
    if not is_held:
        return None
    exchange.again = None
    if not again.client_left:
        health.rest(known)
    put_state(exchange.scope, first_state)
    if second.error is not None:
        logger.warning("a pinned model failed, and so did its request as it came: %s", names_of(second.error))
    return await _let_out(exchange, first, first.flush())


async def _let_out(exchange: Exchange, guard: Guard, sending: Awaitable[None]) -> None:
    """Send what was held, and raise what the app raised."""
    try:
        await sending
        if guard.error is not None:
            raise guard.error
    finally:
        exchange.show_scope()


async def find_or_lead(
    exchange: Exchange, members: Members, *, hold: Callable[[], bool], is_absent: bool = False
) -> Pin | None:
    """Return the pin in force for a request; None: it leads, if others may wait for its choice.

    *hold* has its body count among those that are held, and tells whether there is room for it to wait; with
    *is_absent* it is known that there is no pin now.
    """
    slot = exchange.place()
    exchange.runtime.steering.watch()
    slot.hold, slot.resets = hold, exchange.resets
    pin = await exchange.runtime.pins.find_or_lead(slot, partial(ends_by, exchange, members), is_absent=is_absent)
    slot.hold = bool  # *hold* may have the request, which has the slot
    exchange.called = exchange.runtime.timer()
    return pin


def _pin_to(exchange: Exchange, pin: Pin, members: Members, original: bytes) -> Scope:
    """Put the pinned model into the request; return the scope for it."""
    exchange.use(pin)
    content = put_model(members, pin.model)
    assert exchange.body is not None
    exchange.body.put(content)
    exchange.body.original = original if exchange.asked != pin.model else b""  # else there is no other request to send
    return exchange.open_scope(pinned_headers(exchange.headers, exchange.picked, len(content), pin.model.encode()))


def _pass_unread(exchange: Exchange) -> Awaitable[None] | None:
    """Pass a request on whose headers speak against looking at its body."""
    runtime, picked = exchange.runtime, exchange.picked
    if exchange.session_id is None and not runtime.sessions.reads_bodies:
        return _pass_untold(exchange, exchange.receive)
    control = picked.get(b"x-session-pin", b"").strip().lower()
    if control == b"off":
        return _pass_on(exchange, b"off", None, exchange.receive)
    if runtime.steering.is_paused:
        runtime.steering.watch()
        return _pass_on(exchange, b"off", b"paused", exchange.receive)
    if exchange.session_id == b"":
        return _ignore(exchange, b"invalid-session-id", exchange.receive)
    exchange.resets = control == b"reset"
    coding = picked.get(b"content-encoding", b"")
    exchange.coding = b"" if is_identity(coding) else coding
    unreadable = why_unreadable(picked, runtime.max_request_bytes)
    return None if unreadable is None else _ignore(exchange, unreadable, exchange.receive)


def _ignore(exchange: Exchange, reason: bytes, receive: Receive) -> Awaitable[None]:
    return _pass_on(exchange, b"ignored", reason, receive)


def _pass_on(exchange: Exchange, status: bytes, reason: bytes | None, receive: Receive) -> Awaitable[None]:
    if exchange.session_id is None:  # a source in the body comes first, and the body tells nothing
        exchange.session_id = exchange.runtime.sessions.find_id(exchange.picked, {})
        if exchange.session_id is None:
            return _pass_untold(exchange, receive)
    exchange.status = status
    exchange.reason = reason
    return _call(exchange, exchange.headers, receive, Answer(exchange))


def _pass_untold(exchange: Exchange, receive: Receive) -> Awaitable[None]:
    return _call(exchange, exchange.headers, receive, Answer(exchange, tells=False))


async def _call(exchange: Exchange, headers: Headers, receive: Receive, answer: Answer | DecisionEditor) -> None:
    inner = exchange.open_scope(headers)
    try:
        await exchange.runtime.app(inner, receive, answer.send)
    finally:
        exchange.show_scope()


async def _decide(exchange: Exchange, pin: Pin | None) -> None:
    """Answer for a decision endpoint, or have the app do it, which is to say now and then whom it serves."""
    assert exchange.session_id is not None
    headers = ask_for_identity(exchange.headers)
    if pin is None:
        exchange.learns = True
        edit: Edit = partial(tell_choice, exchange.session_id)
        return await _ask_for_decision(exchange, headers, _routed(exchange), edit)
    exchange.use(pin)
    content = exchange.runtime.remembered.find(exchange.key, pin)
    if content is None:
        headers += PINNED, (b"x-session-model", pin.model.encode())
        return await _ask_for_decision(exchange, headers, Answer(exchange), partial(_tell_pin, exchange, pin))
    return await _repeat_decision(exchange, reply(pin, content, exchange.session_id, exchange.headers))


async def _ask_for_decision(exchange: Exchange, headers: Headers, answer: Answer, edit: Edit) -> None:
    assert exchange.body is not None

    def send(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start" and not editor.is_edited:
            exchange.status = b"miss"
        return answer.send(message)

    editor = DecisionEditor(send, edit, exchange.runtime.config.limits.max_inspected_response_bytes)
    try:
        await _call(exchange, headers, exchange.body.receive, editor)
        await editor.flush()
    finally:
        await answer.done()


def _tell_pin(exchange: Exchange, pin: Pin, members: Members) -> bytes | None:
    assert exchange.session_id is not None
    decided = put_pin(exchange, pin, members)
    return None if decided is None else tell_pin(exchange.session_id, decided)


async def _repeat_decision(exchange: Exchange, content: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    answer = Answer(exchange)
    await answer.send({"type": "http.response.start", "status": 200, "headers": headers})
    await answer.send({"type": "http.response.body", "body": content, "more_body": False})


def _warn_of_an_overridden_model(exchange: Exchange, pin: Pin) -> None:
    if isinstance(exchange.asked, str) and exchange.runtime.is_routed is None:
        exchange.runtime.warn.once(
            "overridden",
            'sessions.pin_per is "session": the pin %r replaces the model %r that a client named; with the '
            "router's own names in routing.router_models other models pass untouched",
            pin.model,
            exchange.asked,
        )
