"""One request's way through: read what it asks for, look for its pin, wait for a decision or call the app."""

from collections.abc import Awaitable

from starlette.types import Receive

from .answer import Answer
from .exchange import Exchange
from .failover import PinnedAnswer
from .pins.claims import claim
from .pins.table import Pin
from .pins.turns import Turn
from .request.body import InnerScope, RequestBody, inner_scope, pinned_headers, why_unreadable
from .request.session import asked_model
from .response.decision import DecisionEditor, ask_for_identity, reply
from .wire.json import Members, decode_members, put_model

Call = tuple[InnerScope, Answer]


async def handle_observed(exchange: Exchange) -> None:
    """Do as `handle`, and tell the listeners."""
    try:
        await handle(exchange)
    finally:
        if exchange.session_id is not None:
            exchange.tell_listeners()


async def handle(exchange: Exchange) -> None:
    """Take the request through the app, or answer it from the pin."""
    pinning, picked = exchange.pinning, exchange.picked
    if exchange.unusual or not exchange.session_id:
        passing = _pass_unread(exchange)
        if passing is not None:
            return await passing
    body = RequestBody(exchange.server_receive)
    content = await body.read(pinning.max_request_bytes)
    if content is None:
        return await _ignore(exchange, b"client-disconnected" if body.cut_off else b"body-too-large", body.receive)
    try:
        members = decode_members(content)
    except ValueError:
        return await _ignore(exchange, b"body-not-json", body.receive)
    session_id = exchange.session_id
    if session_id is None:
        session_id = exchange.session_id = pinning.sessions.find_id(picked, members)
        if not session_id:
            return await _ignore(exchange, b"invalid-session-id", body.receive)
    asked = asked_model(members)
    if pinning.is_routed is not None and not pinning.is_routed(asked):
        return await _ignore(exchange, b"model-not-routed", body.receive)
    exchange.key = pinning.sessions.key(session_id, picked, asked)
    exchange.asked = asked

    decisions = pinning.turns.decisions
    pin = await exchange.look_up() if pinning.find is None else pinning.find(exchange.key)
    exchange.used = pinning.timer()
    if pin is not None and (exchange.resets or pinning.health.refused) and _is_over(exchange, pin):
        await exchange.give_up(pin, exchange.until())
        pin = None
    if pin is not None:
        exchange.status = b"hit"
    else:
        exchange.turn = pinning.turns.take(exchange.key)
        if exchange.turn is None and not exchange.resets:
            pin = await _wait(exchange, len(content))
        elif exchange.turn is not None and pinning.turns.decisions != decisions and not pinning.table.can_claim:
            pin = await _look_again(exchange)
        if exchange.turn is not None and pinning.table.can_claim and not pinning.table.has_claim(exchange.key):
            pin = await claim(exchange, len(content))
    if exchange.decides:
        return await (_decide(exchange, body) if pin is None else _reply(exchange, pin))
    inner, answer = _route(exchange) if pin is None else _use(exchange, pin, members, body, content)
    del content, members  # they may be large, and the answer take minutes
    try:
        await pinning.app(inner, body.receive, answer.send)
        if not answer.settled or pinning.timer() - exchange.used >= pinning.renew_after:
            await answer.returned()
    except Exception as error:
        if not await answer.makes_up_for(error):
            raise
    finally:
        if answer.watched or exchange.turn is not None or not answer.settled:
            await answer.leave()
    return None


def _pass_unread(exchange: Exchange) -> Awaitable[None] | None:
    """Pass a request on whose headers speak against looking at its body."""
    if exchange.session_id is None and not exchange.pinning.sessions.reads_bodies:
        return exchange.call_app(exchange.headers, exchange.server_receive, exchange.server_send)
    control = exchange.picked.get(b"x-session-pin", b"").strip().lower()
    if control == b"off":
        return _pass_on(exchange, b"off", None, exchange.server_receive)
    if exchange.session_id == b"":
        return _ignore(exchange, b"invalid-session-id", exchange.server_receive)
    exchange.resets = control == b"reset"
    unreadable = why_unreadable(exchange.picked, exchange.pinning.max_request_bytes)
    return None if unreadable is None else _ignore(exchange, unreadable, exchange.server_receive)


def _ignore(exchange: Exchange, reason: bytes, receive: Receive) -> Awaitable[None]:
    return _pass_on(exchange, b"ignored", reason, receive)


def _pass_on(exchange: Exchange, status: bytes, reason: bytes | None, receive: Receive) -> Awaitable[None]:
    if exchange.session_id is None:  # a source in the body comes first, and the body tells nothing
        exchange.session_id = exchange.pinning.sessions.find_id(exchange.picked, {})
        if exchange.session_id is None:
            return exchange.call_app(exchange.headers, receive, exchange.server_send)
    exchange.status = status
    exchange.reason = reason
    return exchange.call_app(exchange.headers, receive, Answer(exchange, exchange.server_send).send)


def _is_over(exchange: Exchange, pin: Pin) -> bool:
    """Tell whether a pin is to be given up: by the client, or by what another session found out about its model."""
    health = exchange.pinning.health
    return exchange.resets or (pin.model not in health.served and health.is_refused(exchange.credential, pin.model))


async def _look_again(exchange: Exchange) -> Pin | None:
    """Look the pin up with the turn in hand: there was a decision while the store was asked, maybe this one."""
    pinning = exchange.pinning
    try:
        pin = await exchange.look_up()
    except BaseException:
        exchange.pass_turn()
        raise
    if pin is not None:
        exchange.status = b"hit"
        exchange.turn = None
        pinning.turns.decided(exchange.key, pin)
    return pin


async def _wait(exchange: Exchange, size: int) -> Pin | None:
    """Wait for the decision that another request is getting, or for the turn to get it."""
    pinning = exchange.pinning
    outcome = await pinning.turns.wait(exchange.key, size)
    started, exchange.used = exchange.used, pinning.timer()
    exchange.waited_seconds = exchange.used - started
    if isinstance(outcome, Turn):
        exchange.turn = outcome
        return None
    if outcome is not None:
        exchange.status = b"wait"
    return outcome


def _use(exchange: Exchange, pin: Pin, members: Members, body: RequestBody, original: bytes) -> Call:
    pinning = exchange.pinning
    exchange.pin = pin
    exchange.model = pin.model
    content = put_model(members, pin.model)
    body.messages = [{"type": "http.request", "body": content, "more_body": False}]
    headers = pinned_headers(exchange.headers, exchange.picked, len(content), pin.model.encode())
    inner = inner_scope(exchange.scope, headers, exchange)
    if exchange.asked == pin.model:  # there is nothing else to send
        return inner, Answer(exchange, exchange.server_send)
    if not pinning.sessions.by_model:
        pinning.warn.overridden(exchange.asked, pin.model)
    before = dict(exchange.scope)
    if "state" in before and type(before["state"]) is dict:
        before["state"] = before["state"].copy()
    return inner, PinnedAnswer(
        exchange, exchange.server_send, pin=pin, original=original, body=body, before=before, inner=inner
    )


def _route(exchange: Exchange) -> Call:
    exchange.learns = True
    inner = inner_scope(exchange.scope, exchange.headers, exchange)
    return inner, Answer(exchange, exchange.server_send, exchange.learn)


async def _decide(exchange: Exchange, body: RequestBody) -> None:
    exchange.learns = True
    answer = Answer(exchange, exchange.server_send, exchange.learn)
    assert exchange.session_id is not None
    limit = exchange.pinning.config.limits.max_inspected_response_bytes
    editor = DecisionEditor(answer.send, exchange.session_id, limit)
    try:
        await exchange.call_app(ask_for_identity(exchange.headers), body.receive, editor.send)
        await editor.release()
    finally:
        await answer.leave()


async def _reply(exchange: Exchange, pin: Pin) -> None:
    exchange.model = pin.model
    assert exchange.session_id is not None
    content = reply(pin, exchange.session_id, exchange.headers)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    answer = Answer(exchange, exchange.server_send)
    await answer.send({"type": "http.response.start", "status": 200, "headers": headers})
    await answer.send({"type": "http.response.body", "body": content, "more_body": False})
