"""Bodies that come as bytearrays or memoryviews, which Starlette's streams and some servers give: as good as bytes."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from asgi_driver import (
    CHAT,
    DECISION,
    JSON_TYPE,
    SESSION,
    SSE_TYPE,
    Gateway,
    Header,
    asked_model,
    call,
    http_scope,
    read_body,
    receive_from,
)
from asgi_session_pin import SessionPinMiddleware
from behaviour_document import Section, case

Kind = Callable[[bytearray], Any]
KINDS: dict[str, Kind] = {
    "bytearray": lambda buffer: buffer,
    "memoryview": memoryview,
    "memoryview of two dimensions": lambda buffer: memoryview(buffer).cast("B", (max(1, len(buffer)), 1)),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


class Service:
    """Routes `auto` to `model-0`, `model-1` and so on; answers in chunks of one kind, whose buffers it clears."""

    def __init__(self, kind: Kind, serve: "Serve") -> None:
        self.kind = kind
        self.serve = serve
        self.models = [f"model-{number}" for number in range(9)]
        self.asked: list[Any] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        self.asked.append(asked)
        status, media_type, chunks = self.serve(asked, self.models.pop(0) if asked == "auto" else asked)
        await send({"type": "http.response.start", "status": status, "headers": [media_type]})
        for number, chunk in enumerate(chunks, 1):
            buffer = bytearray(chunk)
            await send({"type": "http.response.body", "body": self.kind(buffer), "more_body": number < len(chunks)})
            buffer[:] = bytes(len(buffer))


Serve = Callable[[str, str], tuple[int, Header, list[bytes]]]


def in_json(asked: str, model: str) -> tuple[int, Header, list[bytes]]:
    return 200, JSON_TYPE, [b'{"model":"%s"}' % model.encode()]


def in_json_by_pieces(asked: str, model: str) -> tuple[int, Header, list[bytes]]:
    return 200, JSON_TYPE, [b'{"mod', b'el":"%s"' % model.encode(), b"}"]


def in_events(asked: str, model: str) -> tuple[int, Header, list[bytes]]:
    return 200, SSE_TYPE, [b'data: {"model":"%s"}\n\n' % model.encode(), b"data: [DO", b"NE]\n\n"]


def refusing_its_own_names(asked: str, model: str) -> tuple[int, Header, list[bytes]]:
    error = b'{"error":{"code":"model_not_found"}}'
    return in_json(asked, model) if asked == "auto" else (400, JSON_TYPE, [error[:9], error[9:]])


def beginning_with_an_error(asked: str, model: str) -> tuple[int, Header, list[bytes]]:
    error = b'data: {"error":{"message":"overloaded"}}\n\n'
    return in_events(asked, model) if asked == "auto" else (200, SSE_TYPE, [error, b"data: [DONE]\n\n"])


async def course_of(service: Service, path: str) -> list[Any]:
    """What becomes of five requests of a session."""
    app = SessionPinMiddleware(service)
    answers = [await call(app, {"model": "auto"}, SESSION, path=path) for _ in range(5)]
    return [service.asked, *[(answer.pin_status, answer.body) for answer in answers]]


@case(Section.RESPONSE, "chunks that are bytearrays or memoryviews", "as bytes")
@each_kind
@pytest.mark.parametrize(
    "serve", [in_json, in_json_by_pieces, in_events, refusing_its_own_names, beginning_with_an_error]
)
@pytest.mark.parametrize("path", [CHAT, DECISION])
async def test_a_response_in_buffers_has_the_course_of_one_in_bytes(kind: Kind, serve: Serve, path: str) -> None:
    assert await course_of(Service(kind, serve), path) == await course_of(Service(bytes, serve), path)


async def test_the_course_of_a_response_in_bytes_is_that_of_a_pin() -> None:
    course = await course_of(Service(bytes, in_events), CHAT)
    assert course[0] == ["auto", *["model-0"] * 4]
    assert [status for status, _ in course[1:]] == ["miss", "hit", "hit", "hit", "hit"]


async def test_starlettes_stream_of_memoryviews_is_pinned() -> None:
    asked: list[str] = []

    async def chat(request: Request) -> StreamingResponse:
        asked.append((await request.json())["model"])
        chunks = [b'data: {"model":"big"}\n\n', b"data: [DONE]\n\n"]
        return StreamingResponse(iter([memoryview(chunk) for chunk in chunks]), media_type="text/event-stream")

    app = SessionPinMiddleware(Starlette(routes=[Route(CHAT, chat, methods=["POST"])]))
    statuses = [(await call(app, {"model": "auto"}, SESSION)).pin_status for _ in range(4)]
    assert statuses == ["miss", "hit", "hit", "hit"]
    assert asked == ["auto", "big", "big", "big"]


@each_kind
@pytest.mark.parametrize("cuts", [1, 3])
async def test_a_request_in_buffers_is_read_and_comes_to_the_app_in_bytes(kind: Kind, cuts: int) -> None:
    content = json.dumps({"model": "auto", "text": "x" * 100}).encode()
    received: list[Any] = []
    gateway = Gateway("first", "second")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_and_note() -> Message:
            message = await receive()
            received.append(message["body"])
            return message

        await gateway(scope, receive_and_note, send)

    async def send(message: Message) -> None: ...

    middleware = SessionPinMiddleware(app)
    for _ in range(2):
        size = len(content) // cuts + 1
        chunks = [bytearray(content[start : start + size]) for start in range(0, len(content), size)]
        messages: list[Message] = [
            {"type": "http.request", "body": kind(chunk), "more_body": chunk is not chunks[-1]} for chunk in chunks
        ]
        await middleware(http_scope(SESSION), receive_from(messages), send)
    assert gateway.asked == ["auto", "first"]
    assert gateway.bodies[0] == content
    assert {type(body) for body in received} == {bytes}
