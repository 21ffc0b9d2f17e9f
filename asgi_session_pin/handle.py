"""One request's way through: read what it asks for, find its pin or lead, call the app, judge what it answers."""

import copy
from collections.abc import Awaitable
from functools import partial

from starlette.types import Receive, Scope

from .answer import PASSING, Answer, Stage
from .exchange import Exchange
from .guard import Guard
from .log import logger, names_of
from .outcome import compare, record_choice, replace
from .pin import Pin
from .request.body import RequestBody
from .request.scope import inner_scope, part_state, pinned_headers, share, why_unreadable
from .request.session import asked_model, asks_for_stream
from .response.decision import DecisionEditor, ask_for_identity, reply
from .wire.headers import Headers
from .wire.json import Members, decode_members, put_model

HELD = (Stage.HOLDING, Stage.FAILING, Stage.DROPPED)


async def handle_observed(exchange: Exchange) -> None:
    """Do as `handle`, and tell the listeners."""
    try:
        await handle(exchange)
    finally:
        if exchange.session_id is not None:
            (exchange.again or exchange).tell_listeners()


async def handle(exchange: Exchange) -> None:
    """Take the request through the app, or answer it from the pin."""
    runtime = exchange.runtime
    if exchange.unusual or not exchange.session_id:
        passing = _pass_unread(exchange)
        if passing is not None:
            return await passing
    body = exchange.body = RequestBody(exchange.receive)
    content = await body.read(runtime.max_request_bytes)
    if content is None:
        return await _ignore(exchange, b"client-disconnected" if body.cut_off else b"body-too-large", body.receive)
    try:
        members = decode_members(content)
    except ValueError:
        return await _ignore(exchange, b"body-not-json", body.receive)
    session_id = exchange.session_id
    if session_id is None:
        session_id = exchange.session_id = runtime.sessions.find_id(exchange.picked, members)
        if not session_id:
            return await _ignore(exchange, b"invalid-session-id", body.receive)
    exchange.asked = asked = asked_model(members)
    if runtime.is_routed is not None and not runtime.is_routed(asked):
        return await _ignore(exchange, b"model-not-routed", body.receive)
    exchange.key = runtime.sessions.key(session_id, exchange.picked, asked)
    exchange.streams = asks_for_stream(members)

    pin = None if runtime.find is None else runtime.find(exchange.key)
    exchange.used = runtime.timer()
    if pin is None or ((exchange.resets or runtime.health.has_refused) and exchange.is_void(pin)):
        pin = await _find_or_lead(exchange, len(content), is_absent=pin is None and runtime.find is not None)
    if exchange.decides:
        return await (_ask_for_decision(exchange, body) if pin is None else _reply(exchange, pin))
    if pin is None:
        del content, members  # they may be large, and the answer take minutes
        exchange.learns = True
        return await _attempt(exchange, inner_scope(exchange.scope, exchange.headers, exchange), _routed(exchange))
    exchange.use(pin)
    inner = _pin_to(exchange, body, pin, members, content)
    del content, members
    if asked == pin.model:  # there is no other request to send
        return await _attempt(exchange, inner, Answer(exchange))
    if not runtime.sessions.by_model:
        _warn_of_an_overridden_model(exchange, pin)
    part_state(inner)
    guard = _guarded(exchange, pin)
    await _attempt(exchange, inner, guard)
    if guard.stage in HELD:
        routes = guard.calls_for_routing()
        await (_reroute(exchange, pin, guard) if routes else _let_out(exchange, guard.let_go()))
    return None


def _routed(exchange: Exchange) -> Answer:
    return Answer(exchange, partial(record_choice, exchange))


def _guarded(exchange: Exchange, pin: Pin) -> Guard:
    health = exchange.runtime.health
    known = exchange.health = health.of(exchange.key, pin)
    is_due = not known.is_proven or (known.first is not None and not known.is_compared) or next(health.samples)
    answer = Answer(exchange, partial(compare, exchange) if is_due else None, watches=False)
    return Guard(answer, answer.send)


async def _attempt(exchange: Exchange, inner: Scope, answer: Answer | Guard) -> None:
    """Call the app once. What it raises comes out, unless the answer keeps it back."""
    runtime, body = exchange.runtime, exchange.body
    assert body is not None
    exchange.inner = inner
    try:
        await runtime.app(inner, body.receive, answer.send)
    except Exception as error:
        if not answer.keeps(error):
            raise
    finally:
        if answer.stage is not PASSING:
            await answer.done()
        if answer.stage not in HELD:
            share(inner, exchange.scope)
    if exchange.pin is not None and answer.stage not in HELD:
        seconds = runtime.timer() - exchange.used
        if seconds >= runtime.renew_after:
            await runtime.pins.renew(exchange.place(), exchange.pin, seconds)


async def _reroute(exchange: Exchange, pin: Pin, first: Guard) -> None:
    """Send the request to the app once more, as it came; the failure goes out if that does no better."""
    health, known, verdict, body = exchange.runtime.health, exchange.health, first.verdict, exchange.body
    assert known is not None
    assert verdict is not None
    assert body is not None
    again = exchange.again = copy.copy(exchange)
    again.status = b"reroute"
    again.body = body.again()
    again.learns = verdict.blames_the_name or health.is_last_failure(known)
    again.model = None if again.learns else pin.model
    again.pin = None  # this answer is no use of it
    answer = Answer(again, partial(replace, again, pin, verdict))
    second = Guard(answer, answer.send, first)
    inner = inner_scope(exchange.scope, exchange.headers, again)
    part_state(inner)
    await _attempt(again, inner, second)
    if second.stage is Stage.HOLDING:  # neither success nor failure
        return await _let_out(again, second.flush())
    if second.stage not in (Stage.WAITING, Stage.FAILING, Stage.DROPPED):
        if first.error is not None:
            logger.warning("a pinned model failed and its request was routed; the app raised %s", names_of(first.error))
        return None
    exchange.again = None
    health.rest(known)
    if second.error is not None:
        logger.warning("a pinned model failed, and so did its request as it came: %s", names_of(second.error))
    return None if second.stage is Stage.DROPPED else await _let_out(exchange, first.flush())


async def _let_out(exchange: Exchange, sending: Awaitable[None]) -> None:
    assert exchange.inner is not None
    try:
        await sending
    finally:
        share(exchange.inner, exchange.scope)


async def _find_or_lead(exchange: Exchange, size: int, *, is_absent: bool) -> Pin | None:
    slot = exchange.place()
    slot.size, slot.is_void, slot.resets = size, exchange.is_void, exchange.resets
    pin = await exchange.runtime.pins.find_or_lead(slot, is_absent=is_absent)
    exchange.used = exchange.runtime.timer()
    return pin


def _pin_to(exchange: Exchange, body: RequestBody, pin: Pin, members: Members, original: bytes) -> Scope:
    """Put the pinned model into the request; return the scope for it."""
    content = put_model(members, pin.model)
    body.put(content)
    body.original = original
    headers = pinned_headers(exchange.headers, exchange.picked, len(content), pin.model.encode())
    return inner_scope(exchange.scope, headers, exchange)


def _pass_unread(exchange: Exchange) -> Awaitable[None] | None:
    """Pass a request on whose headers speak against looking at its body."""
    runtime, picked = exchange.runtime, exchange.picked
    if exchange.session_id is None and not runtime.sessions.reads_bodies:
        return _pass_untold(exchange, exchange.receive)
    control = picked.get(b"x-session-pin", b"").strip().lower()
    if control == b"off":
        return _pass_on(exchange, b"off", None, exchange.receive)
    if exchange.session_id == b"":
        return _ignore(exchange, b"invalid-session-id", exchange.receive)
    exchange.resets = control == b"reset"
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


async def _call(exchange: Exchange, headers: Headers, receive: Receive, answer: Answer) -> None:
    inner = exchange.inner = inner_scope(exchange.scope, headers, exchange)
    try:
        await exchange.runtime.app(inner, receive, answer.send)
    finally:
        share(inner, exchange.scope)


async def _ask_for_decision(exchange: Exchange, body: RequestBody) -> None:
    exchange.learns = True
    answer = _routed(exchange)
    assert exchange.session_id is not None
    limit = exchange.runtime.config.limits.max_inspected_response_bytes
    editor = DecisionEditor(answer.send, exchange.session_id, limit)
    inner = exchange.inner = inner_scope(exchange.scope, ask_for_identity(exchange.headers), exchange)
    try:
        await exchange.runtime.app(inner, body.receive, editor.send)
        await editor.flush()
    finally:
        await answer.done()
        share(inner, exchange.scope)


async def _reply(exchange: Exchange, pin: Pin) -> None:
    exchange.use(pin)
    assert exchange.session_id is not None
    content = reply(pin, exchange.session_id, exchange.headers)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    answer = Answer(exchange)
    await answer.send({"type": "http.response.start", "status": 200, "headers": headers})
    await answer.send({"type": "http.response.body", "body": content, "more_body": False})


def _warn_of_an_overridden_model(exchange: Exchange, pin: Pin) -> None:
    if isinstance(exchange.asked, str) and exchange.runtime.is_routed is None:
        exchange.runtime.warn.once(
            "overridden",
            'sessions.partition_by lacks "model": the pin %r replaces the model %r that a client named; with the '
            "router's own names in routing.router_models other models pass untouched",
            pin.model,
            exchange.asked,
        )
