"""get_session_pin: routers inside of the app that state their decision; and forget."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_driver import CHAT, DECISION, JSON_TYPE, SESSION, Gateway, call, http_scope, read_body, respond
from asgi_session_pin import Config, MemoryStore, Pin, Routing, SessionPin, SessionPinMiddleware, Store, get_session_pin


class InProcessRouter:
    """An app that routes for itself, states its decision, and answers without naming any model."""

    def __init__(self, *models: str, status: int = 200, route: str | None = None, late: bool = False) -> None:
        self.models = list(models)
        self.status = status
        self.route = route
        self.late = late
        self.seen: list[tuple[str, str | None, bool] | None] = []
        self.used: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        pin = get_session_pin(scope)
        self.seen.append((pin.session_id, pin.model, pin.pinned) if pin else None)
        model = pin.model if pin and pin.model else self.models.pop(0)
        self.used.append(model)
        if pin and not self.late:
            pin.record(model, route=self.route)
        await send({"type": "http.response.start", "status": self.status, "headers": [JSON_TYPE]})
        if pin and self.late:
            pin.record(model, route=self.route)
        await send({"type": "http.response.body", "body": b'{"model":', "more_body": True})
        await send({"type": "http.response.body", "body": b'"named"}'})


@pytest.mark.parametrize("late", [False, True])
async def test_a_stated_decision_beats_what_the_response_says(late: bool) -> None:
    router = InProcessRouter("a", "b", late=late)
    app = SessionPinMiddleware(router)
    answers = [await call(app, {"model": "auto"}, SESSION) for _ in range(2)]
    assert router.used == ["a", "a"]
    assert router.seen == [("session-1", None, False), ("session-1", "a", True)]
    assert answers[0].headers.get("x-session-model") == (None if late else "a")
    assert answers[1].headers["x-session-model"] == "a"


async def test_a_stated_decision_makes_no_pin_unless_it_is_served() -> None:
    router = InProcessRouter("a", "b", status=503)
    app = SessionPinMiddleware(router)
    for _ in range(2):
        assert (await call(app, {"model": "auto"}, SESSION)).pin_status == "miss"
    assert router.used == ["a", "b"]


async def test_what_is_stated_when_the_response_has_settled_it_is_too_late() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        pin = get_session_pin(scope)
        await respond(send, b'{"model":"named"}')
        if pin:
            pin.record("late")

    middleware = SessionPinMiddleware(app)
    for _ in range(2):
        answer = await call(middleware, {"model": "auto"}, SESSION)
    assert answer.headers["x-session-model"] == "named"


@pytest.mark.parametrize("name", ["none", "two words", "", "x" * 257, "auto", None])
async def test_a_stated_name_that_is_no_decision_is_left_out(name: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = SessionPinMiddleware(InProcessRouter(name), config=Config(routing=Routing(router_models=("auto",))))
    await call(app, {"model": "auto"}, SESSION)
    assert (await call(app, {"model": "auto"}, SESSION)).headers["x-session-model"] == "named"
    assert "no decision" in caplog.text


async def test_a_stated_route_is_remembered_for_decision_endpoints() -> None:
    app = SessionPinMiddleware(InProcessRouter("a", route="code"))
    await call(app, {"model": "auto"}, SESSION)
    answer = await call(app, {"model": "auto"}, SESSION, path=DECISION)
    assert answer.json == {"model": "a", "route": "code", "session_id": "session-1", "pinned": True}


@pytest.mark.parametrize("route", ["\ud800", 5, object()])
async def test_a_route_that_cannot_be_written_is_left_out_and_the_model_kept(route: Any) -> None:
    app = SessionPinMiddleware(InProcessRouter("a", route=route))
    await call(app, {"model": "auto"}, SESSION)
    answer = await call(app, {"model": "auto"}, SESSION, path=DECISION)
    assert answer.json == {"model": "a", "session_id": "session-1", "pinned": True}


async def test_a_decision_endpoint_may_state_its_decision_and_is_remembered_as_it_answered() -> None:
    app = SessionPinMiddleware(InProcessRouter("a"))
    first = await call(app, {"model": "auto"}, SESSION, path=DECISION)
    assert first.json == {"model": "named", "session_id": "session-1", "pinned": False}
    second = await call(app, {"model": "auto"}, SESSION, path=DECISION)
    assert second.json == {"model": "named", "session_id": "session-1", "pinned": True}
    assert second.headers["x-session-model"] == "a"


@pytest.mark.parametrize(
    "headers",
    [[], [SESSION, (b"x-session-pin", b"off")], [(b"x-session-id", b"")], [SESSION, (b"content-encoding", b"gzip")]],
)
async def test_there_is_no_pin_where_nothing_is_pinned(headers: list[tuple[bytes, bytes]]) -> None:
    router = InProcessRouter("a")
    await call(SessionPinMiddleware(router), {"model": "auto"}, *headers)
    assert router.seen == [None]


def test_a_scope_that_never_met_the_middleware_has_no_pin() -> None:
    assert get_session_pin({"type": "http"}) is None


async def test_fastapi_requests_and_dependencies_that_read_the_body_see_the_pin() -> None:
    app = FastAPI()
    app.add_middleware(SessionPinMiddleware)
    pins: list[SessionPin | None] = []

    async def asked(request: Request) -> str:
        return str((await request.json())["model"])

    @app.post(CHAT)
    async def chat(request: Request, asked: str = Depends(asked)) -> dict[str, str]:
        pin = get_session_pin(request)
        pins.append(pin)
        assert pin is not None
        if not pin.pinned:
            pin.record("a")
        return {"model": asked}

    assert (await call(app, {"model": "auto"}, SESSION)).json == {"model": "auto"}
    assert (await call(app, {"model": "auto"}, SESSION)).json == {"model": "a"}
    assert [(pin.session_id, pin.model, pin.pinned) for pin in pins if pin] == [
        ("session-1", "a", False),
        ("session-1", "a", True),
    ]


class Passing(BaseHTTPMiddleware):
    """Middleware of the other kind, that runs the app in a task of its own."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


class Reading(BaseHTTPMiddleware):
    """Middleware of the other kind, that reads the body first."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        await request.body()
        return await call_next(request)


async def choose(request: Request) -> Response:
    """Routes `auto` to a new model each time, streams when asked to."""
    body = await request.json()
    request.app.state.turn = getattr(request.app.state, "turn", 0) + 1
    model = body["model"] if body["model"] != "auto" else f"model-{request.app.state.turn}"
    if body.get("stream"):
        events = (f'data: {{"model":"{model}","n":{n}}}\n\n' for n in range(50))
        return StreamingResponse(events, media_type="text/event-stream")
    return JSONResponse({"model": model, "text": "x" * 2000})


STACKS = {
    "alone": [Middleware(SessionPinMiddleware)],
    "below BaseHTTPMiddleware": [Middleware(Passing), Middleware(SessionPinMiddleware)],
    "above BaseHTTPMiddleware": [Middleware(SessionPinMiddleware), Middleware(Passing)],
    "between body readers": [Middleware(Reading), Middleware(SessionPinMiddleware), Middleware(Reading)],
    "inside gzip": [Middleware(GZipMiddleware), Middleware(SessionPinMiddleware)],
    "outside gzip": [Middleware(SessionPinMiddleware), Middleware(GZipMiddleware)],
    "twice": [Middleware(SessionPinMiddleware), Middleware(SessionPinMiddleware)],
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stack", STACKS)
async def test_a_session_stays_on_its_model_wherever_the_middleware_stands(stack: str, stream: bool) -> None:
    app = Starlette(routes=[Route(CHAT, choose, methods=["POST"])], middleware=STACKS[stack])
    request = {"model": "auto", "stream": stream}
    accept = (b"accept-encoding", b"gzip")
    answers = [await call(app, request, SESSION, accept) for _ in range(3)]
    assert [answer.pin_status for answer in answers] == ["miss", "hit", "hit"]
    assert [answer.headers.get("x-session-model") for answer in answers[1:]] == ["model-1"] * 2
    if not stream:  # streams are compressed by some versions of Starlette, and not by others
        assert ("content-encoding" in answers[0].headers) is ("gzip" in stack)


async def test_the_inner_of_two_instances_passes_everything_through() -> None:
    for headers in ([], [SESSION], [SESSION, (b"x-session-pin", b"off")], [(b"x-session-id", b"\0")]):
        inner_store, gateway = MemoryStore(), Gateway("a")
        inner = SessionPinMiddleware(gateway, store=inner_store, config={"sessions": {"sources": ["header:host"]}})
        answer = await call(SessionPinMiddleware(inner), {"model": "auto"}, *headers)
        assert answer.headers.get("x-session-pin-status") != "hit"
        assert len(inner_store) == 0
        assert gateway.asked == ["auto"]


async def test_background_tasks_run_after_the_answer_and_the_pin_is_there_before() -> None:
    order: list[str] = []

    class Noting(MemoryStore):
        async def add(self, key: bytes, pin: Pin) -> Pin:
            order.append("pinned")
            return await super().add(key, pin)

    async def later() -> None:
        await asyncio.sleep(0)
        order.append("task")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        await JSONResponse({"model": "a"}, background=BackgroundTask(later))(scope, receive, send)

    await call(SessionPinMiddleware(app, store=Noting()), {"model": "auto"}, SESSION)
    assert order == ["pinned", "task"]


# Ids from elsewhere


def from_cookie(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"cookie":
            return str(value.decode().removeprefix("agent="))
    return None


async def statuses(app: ASGIApp, *requests: Any) -> list[str | None]:
    return [(await call(app, content, *headers)).pin_status for content, *headers in requests]


async def test_a_callable_finds_the_id_instead_of_the_sources() -> None:
    app = SessionPinMiddleware(
        Gateway("a", "b", "c"), session_id=from_cookie, config={"sessions": {"sources": ["body:user"]}}
    )
    auto = {"model": "auto", "user": "u"}
    cookie = (b"cookie", b"agent=1")
    assert await statuses(app, [auto, cookie], [auto, cookie], [auto, SESSION]) == ["miss", "hit", None]
    assert await statuses(app, [auto, (b"cookie", b"agent=")]) == ["ignored; reason=invalid-session-id"]


async def test_a_callable_that_fails_leaves_the_request_without_a_session(caplog: pytest.LogCaptureFixture) -> None:
    def broken(scope: Scope) -> str | None:
        raise KeyError("claim")

    def wrong(scope: Scope) -> Any:
        return 17

    for find_id in (broken, wrong):
        caplog.clear()
        app = SessionPinMiddleware(Gateway("a"), session_id=find_id)
        answer = await call(app, {"model": "auto"}, SESSION)
        assert (answer.pin_status, answer.json["model"]) == (None, "a")
        assert "the session_id callable failed" in caplog.text


async def test_forget_gives_a_session_up() -> None:
    gateway = Gateway("a", "b", "c")
    app = SessionPinMiddleware(gateway)
    credential = (b"authorization", b"Bearer k")
    await call(app, {"model": "auto"}, SESSION, credential)
    await call(app, {"model": "auto"}, SESSION)
    assert await app.forget("session-1", headers={"Authorization": "Bearer k", "Accept": "*/*"}, model="auto")
    assert not await app.forget("session-1", headers={"Authorization": "Bearer k"}, model="auto")
    assert not await app.forget("another")
    assert (await call(app, {"model": "auto"}, SESSION)).pin_status == "hit"
    assert (await call(app, {"model": "auto"}, SESSION, credential)).pin_status == "miss"


@pytest.mark.parametrize("session_id", [b"caf\xc3\xa9", b"\xff\xfe"])
async def test_an_id_of_any_bytes_goes_through_text_and_back(session_id: bytes) -> None:
    router = InProcessRouter("a", "b")
    app = SessionPinMiddleware(router)
    await call(app, {"model": "auto"}, (b"x-session-id", session_id))
    assert router.seen[0] is not None
    await app.forget(router.seen[0][0], model="auto")
    assert (await call(app, {"model": "auto"}, (b"x-session-id", session_id))).pin_status == "miss"


async def answers_later(scope: Scope) -> str | None:
    return "id"


async def answers_bit_by_bit(scope: Scope) -> AsyncIterator[str]:
    yield "id"


class AnswersLater:
    async def __call__(self, event: object) -> None:
        """As a coroutine, which nobody awaits."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"session_id": "x-agent-id"},
            "session_id: found text, expected a function, one that returns .*sessions.sourc",
        ),
        ({"session_id": answers_later}, "session_id: found the async function answers_later, which nobody awaits"),
        ({"session_id": partial(answers_later)}, "session_id: found the async function partial, which nobody awaits"),
        ({"session_id": answers_bit_by_bit}, "session_id: found the async function answers_bit_by_bit, which nobody"),
        ({"listeners": iter([AnswersLater()])}, "listeners: found the async function AnswersLater, which nobody"),
        ({"listeners": [print, answers_later]}, "listeners: found the async function answers_later, which nobody"),
        ({"listeners": ["print"]}, "listeners: found text, expected a function, one that is called with a PinEvent"),
        ({"listeners": print}, r"listeners: found a function, expected a list of functions: listeners=\[function\]"),
        ({"listeners": None}, "listeners: found nothing, expected a list"),
        (
            {"store": "redis://:hunter2@host"},
            "store: found text, expected an object with get, add, .*store.url: config=",
        ),
        ({"store": Store(url="sqlite:///pins.db")}, "store: found a Store, expected an object .*store.url: config="),
        ({"store": {"url": "sqlite:///pins.db"}}, "store: found a mapping, expected an object .*store.url: config="),
        ({"store": MemoryStore}, "store: found the class MemoryStore, expected a store that is made of it"),
    ],
)
def test_an_argument_that_could_never_work_is_refused_at_once(arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        SessionPinMiddleware(Gateway(), **arguments)
    assert "hunter2" not in str(caught.value)


async def test_a_request_without_any_header_can_have_a_session() -> None:
    for arguments in ({"session_id": lambda scope: "1"}, {"config": {"sessions": {"sources": ["body:user"]}}}):
        app = SessionPinMiddleware(Gateway("a"), **arguments)
        answer = await call(app, {"model": "auto", "user": "1"}, scope=http_scope())
        assert answer.pin_status == "miss"
