"""Attributes of the current span."""

import json

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from starlette.types import Message, Receive, Scope, Send

from asgi_driver import SESSION, Gateway, call
from asgi_session_pin import PinEvent, SessionPinMiddleware

AUTO = {"model": "auto"}


def provider(exporter: InMemorySpanExporter, **options: object) -> TracerProvider:
    made = TracerProvider(**options)  # type: ignore[arg-type]
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


async def test_the_span_that_a_request_is_in_tells_of_its_pin() -> None:
    exporter = InMemorySpanExporter()
    app = SessionPinMiddleware(Gateway("a"))
    tracer = provider(exporter).get_tracer("server")
    for _ in range(2):
        with tracer.start_as_current_span("POST"):
            await call(app, AUTO, SESSION)
    with tracer.start_as_current_span("POST"):
        await call(app, b"{", SESSION)
    found = [dict(span.attributes or {}) for span in exporter.get_finished_spans()]
    keys = [attributes.pop("session_pin.key", None) for attributes in found]
    assert found == [
        {"gen_ai.request.model": "auto", "gen_ai.response.model": "a", "session_pin.status": "miss"},
        {"gen_ai.request.model": "auto", "gen_ai.response.model": "a", "session_pin.status": "hit"},
        {"session_pin.status": "ignored", "session_pin.reason": "body-not-json"},
    ]
    assert keys[0] == keys[1]
    assert len(str(keys[0])) == 32
    assert keys[2] is None


async def test_a_span_that_does_not_record_gets_nothing_and_costs_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    app = SessionPinMiddleware(Gateway("a"))

    def fail(event: PinEvent) -> None:
        raise AssertionError

    monkeypatch.setattr("asgi_session_pin.operate.tracing.set_attributes", fail)
    with provider(exporter, sampler=ALWAYS_OFF).get_tracer("server").start_as_current_span("POST"):
        assert (await call(app, AUTO, SESSION)).pin_status == "miss"
    assert (await call(app, AUTO, SESSION)).pin_status == "hit"
    assert exporter.get_finished_spans() == ()


async def test_a_listener_is_told_where_no_span_records() -> None:
    events: list[PinEvent] = []
    app = SessionPinMiddleware(Gateway("a"), listeners=[events.append])
    await call(app, AUTO, SESSION)
    assert len(events) == 1
    assert not trace.get_current_span().is_recording()


async def test_a_request_without_a_session_leaves_its_span_alone() -> None:
    exporter = InMemorySpanExporter()
    app = SessionPinMiddleware(Gateway("a"))
    with provider(exporter).get_tracer("server").start_as_current_span("POST"):
        await call(app, AUTO)
    assert [dict(span.attributes or {}) for span in exporter.get_finished_spans()] == [{}]


async def test_the_span_of_a_websocket_tells_of_its_last_response() -> None:
    exporter = InMemorySpanExporter()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        event = {"type": "response.completed", "response": {"model": "a"}}
        await send({"type": "websocket.send", "text": json.dumps(event)})

    async def receive() -> Message:
        return {"type": "websocket.receive", "text": json.dumps({"type": "response.create", "input": "hi", **AUTO})}

    async def send(message: Message) -> None:
        pass

    scope = {"type": "websocket", "path": "/v1/responses", "headers": [SESSION]}
    with provider(exporter).get_tracer("server").start_as_current_span("GET"):
        await SessionPinMiddleware(app)(scope, receive, send)
    (span,) = exporter.get_finished_spans()
    assert (span.attributes or {})["session_pin.status"] == "miss"
    assert (span.attributes or {})["gen_ai.response.model"] == "a"
