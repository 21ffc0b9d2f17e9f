"""One event for each request with a session."""

import asyncio

import pytest
from starlette.types import Send

from asgi_driver import SESSION, Gateway, answer_json, call, respond
from asgi_session_pin import MemoryStore, Pin, PinEvent, SessionPinMiddleware


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
