"""Which requests are ours, all ways of adding the middleware, and its life."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from asgi_lifespan import LifespanManager
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_driver import CHAT, SESSION, Gateway, Header, answer_json, call, http_scope, receive_from
from asgi_session_pin import Config, ConfigError, Endpoint, MemoryStore, Pin, Routing, SessionPinMiddleware, get_pinning
from behaviour_document import Section, case


class ClosingStore(MemoryStore):
    """A store that counts how often it was closed."""

    closed = 0

    async def aclose(self) -> None:
        self.closed += 1
        await super().aclose()


async def in_turn(request: Request) -> JSONResponse:
    """An endpoint that routes `auto` to another model at each request."""
    body = await request.json()
    request.app.state.turn = getattr(request.app.state, "turn", 0) + 1
    return JSONResponse({"model": body["model"] if body["model"] != "auto" else f"model-{request.app.state.turn}"})


def added_to_fastapi() -> ASGIApp:
    app = FastAPI()
    app.add_middleware(SessionPinMiddleware)
    app.add_route(CHAT, in_turn, methods=["POST"])
    return app


def given_to_starlette() -> ASGIApp:
    config = {"routing": {"session_ttl_seconds": 60}}
    middleware = [Middleware(SessionPinMiddleware, config=config)]
    return Starlette(routes=[Route(CHAT, in_turn, methods=["POST"])], middleware=middleware)


def wrapped_plainly() -> ASGIApp:
    return SessionPinMiddleware(Starlette(routes=[Route(CHAT, in_turn, methods=["POST"])]), store=MemoryStore())


def inside_a_mount() -> ASGIApp:
    inner = Starlette(routes=[Route("/chat/completions", in_turn, methods=["POST"])])
    return Starlette(routes=[Mount("/v1", SessionPinMiddleware(inner))])


@pytest.mark.parametrize("build", [added_to_fastapi, given_to_starlette, wrapped_plainly])
async def test_the_middleware_of_an_app_that_has_started_can_be_asked_to_forget(build: Any) -> None:
    app = build()
    async with LifespanManager(app):
        first = (await call(app, {"model": "auto"}, SESSION)).json["model"]
        assert await get_pinning(app).forget(SESSION[1].decode(), model="auto")
        assert (await call(app, {"model": "auto"}, SESSION)).json["model"] != first


def test_an_app_without_the_middleware_or_that_has_not_started_is_told() -> None:
    class Circle:
        def __init__(self) -> None:
            self.app = self

    for app in (Starlette(), added_to_fastapi(), Circle()):
        with pytest.raises(LookupError, match="found no SessionPinMiddleware"):
            get_pinning(app)


@pytest.mark.parametrize("build", [added_to_fastapi, given_to_starlette, wrapped_plainly, inside_a_mount])
async def test_every_way_of_adding_it_pins_a_session(build: Any) -> None:
    app = build()
    assert [(await call(app, {"model": "auto"})).json["model"] for _ in range(2)] == ["model-1", "model-2"]
    answers = [await call(app, {"model": "auto"}, SESSION) for _ in range(3)]
    assert [answer.json["model"] for answer in answers] == ["model-3"] * 3
    assert [answer.pin_status for answer in answers] == ["miss", "hit", "hit"]


def test_the_constructor_needs_no_event_loop_and_takes_every_form_of_configuration(tmp_path: Path) -> None:
    path = tmp_path / "session_pin.yaml"
    path.write_text("routing: {session_ttl_seconds: 5}")
    forms: list[Any] = [None, Config(), Config(routing=Routing(session_ttl_seconds=5)), {}, path, str(path)]
    for config in forms:
        SessionPinMiddleware(Gateway(), config=config)


def test_a_bad_configuration_fails_in_the_constructor(tmp_path: Path) -> None:
    path = tmp_path / "session_pin.yaml"
    path.write_text("routing: {session_ttl_seconds: 0}")
    forms: list[Any] = [path, {"routing": {"session_ttl_seconds": 0}}, Config(routing=Routing(session_ttl_seconds=0))]
    for config in forms:
        with pytest.raises(ConfigError, match=r"routing\.session_ttl_seconds: found 0(\.0)?, expected a number of sec"):
            SessionPinMiddleware(Gateway(), config=config)


@pytest.mark.parametrize(
    "scope",
    [
        {"type": "websocket", "path": "/v1/realtime", "headers": [SESSION]},
        {"type": "websocket", "path": "/v1/responses", "headers": []},
        {"type": "something-new"},
        http_scope(SESSION, method="GET"),
        http_scope(SESSION, path="/v1/embeddings"),
        http_scope(SESSION, path="/openai/deployments/gpt-4o/chat/completions"),
        http_scope(SESSION, path="/v1/chat/completions/1"),
    ],
)
async def test_other_scopes_methods_and_paths_get_the_very_objects_of_the_server(scope: dict[str, Any]) -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((scope, receive, send))

    async def send(message: Message) -> None:
        raise AssertionError

    receive = receive_from([])
    await SessionPinMiddleware(app)(scope, receive, send)
    assert [id(item) for item in seen] == [id(scope), id(receive), id(send)]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/openai/v1/chat/completions/", "/v1/messages", "/responses"])
async def test_an_endpoint_is_found_under_any_prefix_and_with_one_trailing_slash(path: str) -> None:
    answer = await call(SessionPinMiddleware(Gateway("a")), {"model": "auto", "input": "hello"}, SESSION, path=path)
    assert answer.pin_status == "miss"


async def test_two_trailing_slashes_are_another_path() -> None:
    answer = await call(SessionPinMiddleware(Gateway("a")), {"model": "auto"}, SESSION, path="/v1/chat/completions//")
    assert answer.pin_status is None


async def test_the_first_endpoint_that_matches_counts() -> None:
    endpoints = (Endpoint(path="/a/*", kind="ignore"), Endpoint(path="*"))
    app = SessionPinMiddleware(Gateway("x", "y"), config=Config(endpoints=endpoints))
    assert (await call(app, {"model": "auto"}, SESSION, path="/a/b")).pin_status is None
    assert (await call(app, {"model": "auto"}, SESSION, path="/b/c")).pin_status == "miss"


@case(
    Section.SESSION,
    "no session header",
    "nothing of ours; the app gets the server's own objects (while it runs, the scope holds a mark of ours)",
)
async def test_a_request_without_a_session_gets_the_very_objects_of_the_server() -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((scope, receive, send))

    async def send(message: Message) -> None:
        raise AssertionError

    scope, receive = http_scope((b"authorization", b"Bearer x")), receive_from([])
    await SessionPinMiddleware(app)(scope, receive, send)
    assert [id(item) for item in seen] == [id(scope), id(receive), id(send)]


@case(
    Section.SESSION,
    "forged `X-Session-Pinned`, `X-Session-Model`",
    "they never reach the app, on our endpoints (elsewhere nothing is looked at)",
)
@pytest.mark.parametrize("name", [b"x-session-pin", b"x-session-pinned", b"x-session-model", b"X-Session-Model"])
@pytest.mark.parametrize("session", [[], [SESSION]])
async def test_control_headers_of_the_client_never_reach_the_app(name: bytes, session: list[Header]) -> None:
    gateway = Gateway("a")
    headers = [(b"host", b"test"), *session, (b"accept", b"*/*")]
    await call(SessionPinMiddleware(gateway), {"model": "auto"}, scope=http_scope(*headers, (name, b"forged")))
    assert gateway.scopes[0]["headers"] == headers


async def test_what_the_app_adds_to_its_scope_is_there_for_outer_middleware() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = scope["headers"]
        await answer_json(send, "a")
        if (b"x-session-pinned", b"true") in scope["headers"]:
            raise RuntimeError("broken")

    middleware = SessionPinMiddleware(app)
    await call(middleware, {"model": "auto"}, SESSION)
    scope = http_scope(SESSION)
    with pytest.raises(RuntimeError, match="broken"):
        await call(middleware, {"model": "auto"}, scope=scope)
    assert (b"x-session-pinned", b"true") in scope["route"]
    assert scope["headers"] == [SESSION]


@pytest.mark.parametrize("kind", [tuple, iter])
async def test_headers_may_come_as_any_iterable(kind: Any) -> None:
    gateway = Gateway("a", "b")
    app = SessionPinMiddleware(gateway)
    for _ in range(2):
        await call(app, {"model": "auto"}, scope={**http_scope(), "headers": kind([SESSION])})
    assert gateway.asked == ["auto", "a"]


async def test_a_scope_without_headers_has_no_session() -> None:
    scope = http_scope()
    del scope["headers"]
    answer = await call(SessionPinMiddleware(Gateway("a")), {"model": "auto"}, scope=scope)
    assert answer.pin_status is None


async def test_the_store_is_closed_when_the_lifespan_ends() -> None:
    store = ClosingStore()
    await store.add(b"key", Pin("a", 0.0))
    ended: list[int] = []
    app = Starlette()
    app.router.lifespan_context = lambda app: Ending(ended, store)
    async with LifespanManager(SessionPinMiddleware(app, store=store)):
        assert store.closed == 0
    assert ended == [0], "the app's own shutdown may still use the store"
    assert store.closed == 1
    assert await store.get(b"key") is None


class Ending:
    """A lifespan context that notes how often the store was closed when it ends."""

    def __init__(self, ended: list[int], store: ClosingStore) -> None:
        self.ended, self.store = ended, store

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *exception: object) -> None:
        self.ended.append(self.store.closed)


async def test_a_store_that_fails_to_close_does_not_disturb_the_shutdown(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryStore):
        async def aclose(self) -> None:
            raise OSError("gone")

    async with LifespanManager(SessionPinMiddleware(Starlette(), store=Broken())):
        pass
    assert "the pin store could not be closed" in caplog.text


async def test_aclose_closes_the_store_where_no_lifespan_arrives() -> None:
    store = ClosingStore()
    await SessionPinMiddleware(Gateway(), store=store).aclose()
    assert store.closed == 1


def test_one_instance_serves_one_event_loop_after_another() -> None:
    gateway = Gateway("a", "b")
    app = SessionPinMiddleware(gateway)
    for _ in range(2):
        asyncio.run(answer_of(app))
    assert gateway.asked == ["auto", "a"]


async def answer_of(app: ASGIApp) -> None:
    await call(app, {"model": "auto"}, SESSION)


async def test_it_works_where_opentelemetry_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import asgi_session_pin.operate

    monkeypatch.delattr(asgi_session_pin.operate, "tracing", raising=False)
    monkeypatch.setitem(sys.modules, "asgi_session_pin.operate.tracing", None)
    app = SessionPinMiddleware(Gateway("a"))
    assert [(await call(app, {"model": "auto"}, SESSION)).pin_status for _ in range(2)] == ["miss", "hit"]
