"""What an answer means for the pin of its session: a choice is recorded, a failure counted, a name refused."""

import contextlib
from collections.abc import Iterable

from msgspec import Raw
from starlette.types import Message

from .events import Cause
from .exchange import Exchange
from .pin import Pin
from .response.decision import remember
from .response.errors import find_error
from .response.judge import Verdict, implied_status, judge
from .response.output import late_error
from .response.pieces import Framing
from .response.reader import Reader
from .response.rules import is_same_model, read_source
from .wire.headers import JSON
from .wire.json import Members, decode_members, encode_json, put_string
from .wire.messages import body_of


async def record_choice(exchange: Exchange, reader: Reader) -> None:
    """Record what a routed answer chooses, or let others lead."""
    pins = exchange.runtime.pins
    if not exchange.learns:  # it was stated, and is recorded; what the answer names is what later ones compare with
        found, pin = reader.found, exchange.pin
        if pin is not None and found is not None and found.model not in (None, exchange.asked):
            exchange.runtime.health.of(exchange.key, pin).first = found
        return
    exchange.learns = False
    slot = exchange.place()
    pin = _chosen(exchange, reader)
    exchange.unpinned = _why_unpinned(exchange, reader) if pin is None else None
    if pin is None and (reader.failed or exchange.runtime.rules.decides_nothing(reader.headers)):
        return pins.pass_turn(slot)
    if pin is None:
        return pins.unnamed(slot)
    kept = await pins.record(slot, pin)
    exchange.pin = pin if kept == pin else None  # another answer's pin is none of this one's
    if exchange.decides and kept == pin:
        exchange.runtime.remembered.keep(exchange.key, pin, pin.decision)
    exchange.model = kept.model
    exchange.called = exchange.runtime.timer()
    return None


def _chosen(exchange: Exchange, reader: Reader) -> Pin | None:
    """Return a pin on the model that was stated or that the response names."""
    runtime, found = exchange.runtime, reader.found
    decision: bytes | None = None
    if exchange.stated is not None and not (reader.failed and exchange.decides):
        model, decision = exchange.stated
    elif reader.failed or runtime.rules.decides_nothing(reader.headers):
        return None
    elif found is None or found.model is None:
        _warn_of_no_choice(exchange, reader)
        return None
    else:
        model = found.model
        if model == exchange.asked and runtime.rules.hides_choices(reader.headers):
            _warn_of_hidden_choices(exchange)
        elif found.name == exchange.asked and runtime.is_routed is None and not exchange.decides:
            _tell_of_an_echo(exchange)
    if runtime.steering.was_retired(model, exchange.called):
        return None
    if runtime.health.has_refused and runtime.health.is_refused(exchange.credential, model):
        return None
    now = runtime.pins.now()
    if exchange.decides:
        return Pin(model, now, remember(reader.members))
    return Pin(model, now, decision, None if found is None or found.model in (None, exchange.asked) else found)


def _why_unpinned(exchange: Exchange, reader: Reader) -> str:
    """Return why an answer chooses no model, as `PinEvent.unpinned` has it."""
    if reader.failed:
        return "error"
    rules = exchange.runtime.rules
    if rules.decides_nothing(reader.headers):
        return "fallback" if rules.is_fallback(reader.headers) else "unless"
    if reader.found is None:
        return "no-model" if reader.unread is None else "unread"
    model = reader.found.model
    is_usable = model is not None and not exchange.runtime.steering.was_retired(model, exchange.called)
    return "refused-model" if is_usable else "unusable-model"


def put_pin(exchange: Exchange, pin: Pin, members: Members) -> Members | None:
    """Return a decision object of the app with the model of *pin*, and remember it; None if it is an error."""
    if find_error(members) is not None:
        return None
    asked = exchange.asked if isinstance(exchange.asked, str) else None
    found = exchange.runtime.rules.find_model({}, members, asked, JSON)
    if found is not None and found.model != pin.model:
        members = decode_members(put_string(encode_json(members), read_source(found.source)[2], pin.model))
    members["model"] = Raw(encode_json(pin.model))
    exchange.runtime.remembered.keep(exchange.key, pin, remember(members))
    return members


def recall(exchange: Exchange, pin: Pin) -> bool:
    """Get what is known of a pin that is used; tell whether the answer is to be compared with that."""
    health = exchange.runtime.health
    known = exchange.health = health.of(exchange.key, pin)
    return not known.is_proven or (known.first is not None and not known.is_compared) or next(health.samples)


async def compare(exchange: Exchange, reader: Reader) -> None:
    """Compare what an answer under the pin names with what the answer that made the pin named.

    Only like is compared with like: the same source, and the same kind of response.
    """
    runtime, known, pin, found = exchange.runtime, exchange.health, exchange.pin, reader.found
    exchange.is_fallback = runtime.rules.is_fallback(reader.headers)  # it says nothing of the name
    if reader.failed or exchange.is_fallback or found is None or found.model is None or known is None or pin is None:
        return
    first = known.first
    if first is None or first.model is None or (found.source, found.kind) != (first.source, first.kind):
        return
    exchange.has_drifted = not (found.model == pin.model or is_same_model(found.model, first.model))
    is_first = not known.is_compared
    if is_first and runtime.health.compared(known, exchange.has_drifted):
        _warn_of_an_unheeded_pin(exchange)
    if exchange.has_drifted and is_first:
        runtime.warn.once(
            ("misunderstood", pin.model),
            "the gateway was asked for the model %r, which it had named itself, and answered as %r, so the pin was "
            "given up; decisions.aliases maps the names of responses to names that the gateway takes",
            pin.model,
            found.name,
        )
        await _give_up(exchange, pin, "refused")
    elif exchange.has_drifted:
        message = "requests that are pinned to the model %r are also answered as %r"
        runtime.warn.once(("drifted", pin.model, found.name[:256]), message, pin.model, found.name)


def prove(exchange: Exchange, *, is_over: bool) -> None:
    """Take note that the pinned model gave output; *is_over* tells that it can't fail any more."""
    known = exchange.health
    if known is None or exchange.has_drifted or exchange.is_fallback:
        return
    if is_over:
        known.failures = 0
    if not known.is_proven or exchange.runtime.health.has_refused:
        known.is_proven = True
        exchange.runtime.health.prove(exchange.credential, known.model)


def is_proven(exchange: Exchange, pin: Pin) -> bool:
    """Tell whether the pin's name has served under a pin, for this credential."""
    known = exchange.health
    return (known is not None and known.is_proven) or exchange.runtime.health.is_proven(exchange.credential, pin.model)


async def replace(exchange: Exchange, reader: Reader) -> None:
    """Draw the conclusion, once, where the router's choice gives output and the pinned model did not."""
    if exchange.replaces is None:  # it was drawn from what the app's own router stated
        return await record_choice(exchange, reader)
    if reader.failed:
        return None
    (pin, verdict), exchange.replaces = exchange.replaces, None
    if verdict.blames_the_name:
        await refuse(exchange, pin, verdict)
    elif reader.found is None or reader.found.model != pin.model or not is_proven(exchange, pin):
        exchange.learns = await _count_failure(exchange, pin) and exchange.learns
    else:
        exchange.learns = False  # the model is back by now
    return await record_choice(exchange, reader) if exchange.learns else None


async def refuse(exchange: Exchange, pin: Pin, verdict: Verdict) -> None:
    """Give a pin up whose name the gateway does not take, or may not."""
    runtime = exchange.runtime
    if verdict is Verdict.REFUSED:
        runtime.health.refuse(exchange.credential, pin.model)
        _warn_of_a_refused_name(exchange, pin)
    elif runtime.health.doubt(exchange.credential, pin.model):
        _warn_of_a_refused_name(exchange, pin)
    await runtime.pins.unpin(exchange.place(), pin, "refused")


async def count_failure(exchange: Exchange) -> None:
    """Count a failure of the pin that went out, so that the answer was no use of the pin."""
    pin, exchange.pin = exchange.pin, None
    assert pin is not None
    await _count_failure(exchange, pin)


async def _count_failure(exchange: Exchange, pin: Pin) -> bool:
    """Count a failure; the last one in a row gives the pin up; tell whether that was it."""
    health = exchange.runtime.health
    is_last = health.fail(health.of(exchange.key, pin), exchange.called)
    if is_last:
        exchange.runtime.warn.once(
            ("given up", pin.model),
            "the model %r failed failover.give_up_after times in a row in a session, whose pin was given up",
            pin.model,
        )
        await _give_up(exchange, pin, "outage")
    return is_last


async def _give_up(exchange: Exchange, pin: Pin, cause: Cause) -> None:
    """Give a pin up; where its name has never served, no other is made of it for a while."""
    if not is_proven(exchange, pin):
        exchange.runtime.health.refuse(exchange.credential, pin.model)
    exchange.pin = None
    await exchange.runtime.pins.unpin(exchange.place(), pin, cause)


async def renew(exchange: Exchange) -> None:
    """Count the pin's idle time from the end of an answer under it, if that took long."""
    runtime = exchange.runtime
    if exchange.pin is not None:
        seconds = runtime.timer() - exchange.called
        if seconds >= runtime.renew_after:
            await runtime.pins.renew(exchange.place(), exchange.pin, seconds)


def showed_late_failure(exchange: Exchange, last: Iterable[Message], framing: Framing) -> bool:
    """Tell whether the last messages of a stream that gave output are a failure after all."""
    error = None
    with contextlib.suppress(ValueError):  # a buffer that the app has released
        error = late_error([body_of(message) for message in last], framing)
    if error is None or exchange.pin is None:
        return False
    return judge(implied_status(error), error, exchange.pin.model, is_proven=True) is not Verdict.CLIENT


def _warn_of_no_choice(exchange: Exchange, reader: Reader) -> None:
    warn = exchange.runtime.warn
    sources = ", ".join(exchange.runtime.config.decisions.sources)
    if reader.found is not None:
        exchange.warn_of_an_unusable_name(reader.found.name)
    elif reader.unread is not None:
        message = "a response can't be looked at for its model, because of its %s, so nothing is pinned"
        warn.once(("unread", reader.unread), message, reader.unread)
    else:
        message = "a response names no model where decisions.sources look for it (%s), so nothing is pinned"
        warn.once("unnamed", message, sources)


def _warn_of_a_refused_name(exchange: Exchange, pin: Pin) -> None:
    exchange.runtime.warn.once(
        ("refused", pin.model),
        "the gateway refuses the model %r, which it named itself; its requests are routed again, without a pin for it; "
        "decisions.aliases maps the names of responses to names that the gateway takes",
        pin.model,
    )


def _warn_of_hidden_choices(exchange: Exchange) -> None:
    exchange.runtime.warn.once(
        "hidden",
        "LiteLLM hides the model that it chose: the pin is the name that was asked for, which pins nothing; "
        'add "header:x-litellm-model-name" to the front of decisions.sources, and decisions.aliases from its '
        "values back to the names of your model groups",
    )


def _tell_of_an_echo(exchange: Exchange) -> None:
    exchange.runtime.warn.notice(
        "echo",
        "an answer names the very model that was asked for, %r, so its pin changes nothing: right for a model's own "
        "name; if a router decides for it, its answers have to name the choice (decisions.sources)",
        exchange.asked,
    )


def _warn_of_an_unheeded_pin(exchange: Exchange) -> None:
    exchange.runtime.warn.once(
        "unheeded",
        "several sessions in a row were answered by another model than their pin at once: the router does not heed the "
        "model that a request names; a router inside of the app has to look at get_session_pin(request).pinned",
    )
