"""One event for each request with a session."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from starlette.types import Send

from asgi_driver import SESSION, SSE_TYPE, Clock, Gateway, answer_json, answer_stream, call, respond
from asgi_session_pin import MemoryStore, Pin, PinEvent, SessionPinMiddleware, StoreCall
from asgi_session_pin.events import Cause

AUTO = {"model": "auto"}
DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "operating.md"


def observed(app: Any, **settings: Any) -> tuple[SessionPinMiddleware, list[PinEvent]]:
    events: list[PinEvent] = []
    return SessionPinMiddleware(app, listeners=[events.append], **settings), events


async def test_each_request_with_a_session_is_told_to_every_listener() -> None:
    first: list[PinEvent] = []
    second: list[PinEvent] = []
    app = SessionPinMiddleware(Gateway(*"abcdef"), listeners=[first.append, second.append])
    await call(app, {"model": "auto"}, SESSION)
    await call(app, {"model": "auto"}, SESSION)
    await call(app, {"model": "auto"}, SESSION, (b"x-session-pin", b"off"))
    await call(app, b"{", (b"x-session-id", b"2"))
    await call(app, {"model": "auto"})
    await call(app, {"model": "auto"}, SESSION, path="/elsewhere")
    assert first == second
    endpoint = "*/chat/completions"
    assert [(e.status, e.reason, e.endpoint, e.model) for e in first] == [
        ("miss", None, endpoint, "a"),
        ("hit", None, endpoint, "a"),
        ("off", None, endpoint, None),
        ("ignored", "body-not-json", endpoint, None),
    ]
    assert first[0].key == first[1].key
    assert first[0].key is not None
    assert len(first[0].key) == 32
    assert [event.key for event in first[2:]] == [None, None]
    assert "session-1" not in repr(first)


async def test_the_time_in_the_store_and_its_failures_are_told() -> None:
    class Failing(MemoryStore):
        async def get(self, key: bytes) -> Pin | None:
            raise OSError("down")

    events: list[PinEvent] = []
    app = SessionPinMiddleware(Gateway("a"), store=Failing(), listeners=[events.append])
    await call(app, {"model": "auto"}, SESSION)
    assert (events[0].status, events[0].reason, events[0].model) == ("miss", "store-unavailable", "a")
    assert 0 < events[0].store_seconds < 10


async def test_the_time_of_a_reset_counts_too() -> None:
    class Slow(MemoryStore):
        async def discard(self, key: bytes, pin: Pin) -> bool:
            await asyncio.sleep(0.02)
            return await super().discard(key, pin)

    events: list[PinEvent] = []
    app = SessionPinMiddleware(Gateway("a", "b"), store=Slow(), listeners=(listener for listener in [events.append]))
    await call(app, {"model": "auto"}, SESSION)
    await call(app, {"model": "auto"}, SESSION, (b"x-session-pin", b"reset"))
    assert events[1].store_seconds > 0.02


async def test_a_listener_that_raises_is_logged_and_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: PinEvent) -> None:
        raise RuntimeError("no metrics today")

    events: list[PinEvent] = []
    app = SessionPinMiddleware(Gateway("a"), listeners=[broken, events.append])
    assert (await call(app, {"model": "auto"}, SESSION)).json["model"] == "a"
    assert len(events) == 1
    assert "a listener failed" in caplog.text
    assert "no metrics today" in caplog.text


async def test_an_event_comes_also_when_the_app_raises() -> None:
    async def fail(send: Send, model: str) -> None:
        raise RuntimeError("broken")

    events: list[PinEvent] = []
    app = SessionPinMiddleware(Gateway("a", answer=fail), listeners=[events.append])
    with pytest.raises(RuntimeError, match="broken"):
        await call(app, {"model": "auto"}, SESSION)
    assert [(event.status, event.model) for event in events] == [("miss", None)]


async def test_events_come_when_the_answer_is_whole() -> None:
    order: list[str] = []

    async def slow(send: Send, model: str) -> None:
        await answer_json(send, model)
        order.append("answered")

    app = SessionPinMiddleware(Gateway("a", answer=slow), listeners=[lambda event: order.append(event.status)])
    await call(app, {"model": "auto"}, SESSION)
    assert order == ["answered", "miss"]


async def test_an_id_found_in_the_body_is_told_and_its_absence_is_not() -> None:
    events: list[PinEvent] = []

    async def named(send: Send, model: str) -> None:
        await respond(send, b'{"model":"a"}')

    config = {"sessions": {"sources": ["body:user"]}}
    app = SessionPinMiddleware(Gateway("a", "b", answer=named), listeners=[events.append], config=config)
    await call(app, {"model": "auto", "user": "u"})
    await call(app, {"model": "auto"})
    assert [event.status for event in events] == ["miss"]


async def test_an_event_tells_what_was_asked_for_and_where_the_id_came_from() -> None:
    config = {"sessions": {"sources": ["preset:coding-agents", "body:user"]}}
    app, events = observed(Gateway("a"), config=config)
    await call(app, {"model": "auto"}, SESSION)
    await call(app, {"model": "auto"}, (b"session_id", b"1"))
    await call(app, {"model": "x" * 300, "user": "u"})
    await call(app, {"user": "u"}, SESSION)
    assert [(event.source, event.asked) for event in events] == [
        ("header:x-session-id", "auto"),
        ("header:session_id", "auto"),
        ("body:user", None),
        ("header:x-session-id", None),
    ]


async def test_an_id_of_a_callable_is_told_as_such() -> None:
    app, events = observed(Gateway("a"), session_id=lambda scope: "1")
    await call(app, AUTO)
    assert [event.source for event in events] == ["callable"]


async def test_an_event_tells_whether_the_model_came_from_the_pin() -> None:
    app, events = observed(Gateway("a"))
    for control in (b"", b"", b"off", b"reset"):
        await call(app, AUTO, SESSION, (b"x-session-pin", control))
    assert [(event.status, event.pinned) for event in events] == [
        ("miss", False),
        ("hit", True),
        ("off", False),
        ("miss", False),
    ]


async def test_an_event_tells_how_the_pin_changed() -> None:
    app, events = observed(Gateway("a", "b"))
    await call(app, AUTO, SESSION)
    await call(app, AUTO, SESSION)
    await call(app, AUTO, SESSION, (b"x-session-pin", b"reset"))
    assert [event.changes for event in events] == [("made",), (), ("reset", "made")]


async def test_a_pin_that_is_too_old_has_lapsed() -> None:
    config = {"routing": {"session_max_age_seconds": 0.001}}
    app, events = observed(Gateway("a"), config=config)
    await call(app, AUTO, SESSION)
    await asyncio.sleep(0.002)
    await call(app, AUTO, SESSION)
    assert [event.changes for event in events] == [("made",), ("lapsed", "made")]


async def test_a_name_that_an_operator_retired_is_told_as_unusable() -> None:
    app, events = observed(Gateway("old"))
    await app.runtime.steering.retire("old", True)
    await call(app, AUTO, SESSION)
    assert [(event.unpinned, event.changes) for event in events] == [("unusable-model", ())]


async def test_a_choice_that_another_process_was_faster_with_made_no_pin() -> None:
    class Faster(MemoryStore):
        async def add(self, key: bytes, pin: Pin) -> Pin:
            return await super().add(key, Pin("faster", pin.created))

    app, events = observed(Gateway("a"), store=Faster())
    await call(app, AUTO, SESSION)
    assert [(event.model, event.changes) for event in events] == [("faster", ())]


async def refuse(send: Send, model: str) -> None:
    await respond(send, b'{"error":{"code":"model_not_found"}}', status=404)


async def be_out(send: Send, model: str) -> None:
    await respond(send, b"{}", status=503)


async def blame_the_request(send: Send, model: str) -> None:
    await respond(send, b'{"error":{"code":"context_length_exceeded"}}', status=400)


async def break_off(send: Send, model: str) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [SSE_TYPE]})
    await send({"type": "http.response.body", "body": b'data: {"model":"a","n":1}\n\n', "more_body": True})
    raise RuntimeError("cut off")


@pytest.mark.parametrize(
    ("serve", "status", "verdict", "changes"),
    [
        (answer_json, "hit", None, ()),
        (refuse, "reroute", "refused", ("refused", "made")),
        (be_out, "reroute", "unavailable", ()),
        (blame_the_request, "hit", "client", ()),
        (break_off, "hit", "late", ()),
    ],
)
async def test_an_event_tells_why_the_pinned_model_did_not_serve(
    serve: Callable[[Send, str], Any], status: str, verdict: str | None, changes: tuple[str, ...]
) -> None:
    gateway = Gateway("a", "b")
    app, events = observed(gateway)
    await call(app, AUTO, SESSION)
    await call(app, AUTO, SESSION)
    gateway.serve = serve
    if serve is break_off:
        with pytest.raises(RuntimeError, match="cut off"):
            await call(app, {**AUTO, "stream": True}, SESSION)
    else:
        await call(app, AUTO, SESSION)
    assert [(e.status, e.verdict, e.changes) for e in events[2:]] == [(status, verdict, changes)]


async def test_a_name_that_never_served_and_one_that_is_closed_are_told_apart() -> None:
    async def forbid(send: Send, model: str) -> None:
        await respond(send, b"{}", status=403)

    gateway = Gateway("a", "b")
    app, events = observed(gateway)
    await call(app, AUTO, SESSION)
    gateway.serve = forbid
    await call(app, AUTO, SESSION)
    gateway.serve = answer_json
    await call(app, AUTO, SESSION)
    gateway.serve = forbid
    await call(app, AUTO, SESSION)
    assert [event.verdict for event in events] == [None, "unproven", None, "no-access"]


async def test_the_last_failure_in_a_row_is_told_as_the_pins_end(clock: Clock) -> None:
    gateway = Gateway("a", "b", serve=be_out)
    app, events = observed(gateway, config={"failover": {"give_up_after": 2}}, clock=clock)
    for _ in range(3):
        await call(app, AUTO, SESSION)
        clock.now += 1
    assert [(event.status, event.changes) for event in events] == [
        ("miss", ("made",)),
        ("reroute", ()),
        ("reroute", ("outage", "made")),
    ]


async def test_a_pin_that_was_misunderstood_is_told_as_refused() -> None:
    async def answer_otherwise(send: Send, model: str) -> None:
        await answer_json(send, "else")

    app, events = observed(Gateway("a", serve=answer_otherwise))
    await call(app, AUTO, SESSION)
    await call(app, AUTO, SESSION)
    assert [(event.drift, event.changes) for event in events] == [(False, ("made",)), (True, ("refused",))]


async def test_the_first_byte_counts_from_the_requests_start(clock: Clock) -> None:
    async def think(send: Send, model: str) -> None:
        clock.now += 3
        await answer_stream(send, model)
        clock.now += 5

    app, events = observed(Gateway("a", answer=think), clock=clock)
    await call(app, AUTO, SESSION)
    await call(app, AUTO, SESSION)
    assert [event.first_byte_seconds for event in events] == [3, 3]


async def test_an_answer_that_never_came_has_no_first_byte() -> None:
    async def fail(send: Send, model: str) -> None:
        raise RuntimeError("broken")

    app, events = observed(Gateway("a", answer=fail))
    with pytest.raises(RuntimeError, match="broken"):
        await call(app, AUTO, SESSION)
    assert events[0].first_byte_seconds is None


async def test_calls_of_the_store_are_told_with_those_that_failed() -> None:
    class Halting(MemoryStore):
        async def add(self, key: bytes, pin: Pin) -> Pin:
            raise OSError("down")

    app, events = observed(Gateway("a"), store=Halting())
    await call(app, AUTO, SESSION)
    calls = [(each.operation, each.failed) for each in events[0].store_calls]
    assert calls == [("get", False), ("add", True)]
    assert all(0 < each.seconds < 10 for each in events[0].store_calls)
    assert events[0].store_seconds == sum(each.seconds for each in events[0].store_calls)


async def test_events_hold_no_id_and_no_credential() -> None:
    app, events = observed(Gateway("a"))
    await call(app, AUTO, SESSION, (b"authorization", b"Bearer secret-key"))
    text = json.dumps(msgspec.to_builtins(events))
    assert "session-1" not in text
    assert "secret-key" not in text


def test_the_document_has_every_field_and_word_of_an_event() -> None:
    told = set(re.findall(r"`([\w-]+)`", DOCUMENT.read_text()))
    words = [*get_args(Cause), "client", "refused", "unproven", "no-access", "unavailable", "late"]
    assert [
        name for name in (*PinEvent.__struct_fields__, *StoreCall.__struct_fields__, *words) if name not in told
    ] == []
