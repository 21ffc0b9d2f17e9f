"""The statements of docs/placement.md."""

import gzip
import json
from typing import Any

import pytest
from asgi_lifespan import LifespanManager
from fastapi import Depends, FastAPI, HTTPException
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
    SimpleUser,
    requires,
)
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_driver import CHAT, DECISION, JSON_TYPE, SESSION, Answer, Gateway, Header, call, http_scope
from asgi_session_pin import MemoryStore, SessionPinMiddleware

PINNING = Middleware(SessionPinMiddleware)
CORS = Middleware(
    CORSMiddleware,
    allow_origins=["https://chat.example"],
    allow_methods=["POST"],
    allow_headers=["authorization", "content-type", "x-session-id", "x-session-pin"],
    expose_headers=["x-session-pinned", "x-session-model", "x-session-pin-status"],
)
ORIGIN: Header = (b"origin", b"https://chat.example")
AUTO = {"model": "auto"}


async def choose(request: Request) -> Response:
    """Answers under another model each time it is asked for `auto`."""
    asked = (await request.json())["model"]
    turn = request.app.state.turn = getattr(request.app.state, "turn", 0) + 1
    return JSONResponse({"model": f"model-{turn}" if asked == "auto" else asked, "text": "x" * 1000})


def stack(*middleware: Middleware, routes: Any = None) -> Starlette:
    endpoints = [Route(path, choose, methods=["POST"]) for path in (CHAT, DECISION)]
    return Starlette(routes=routes or endpoints, middleware=middleware)


class Keys(AuthenticationBackend):
    """Knows keys that can be revoked."""

    def __init__(self, *keys: str) -> None:
        self.keys = set(keys)

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser]:
        key = conn.headers.get("authorization", "").removeprefix("Bearer ")
        if key not in self.keys:
            raise AuthenticationError("revoked")
        return AuthCredentials(["known"]), SimpleUser(key)


def authentication(backend: Keys) -> Middleware:
    return Middleware(
        AuthenticationMiddleware,
        backend=backend,
        on_error=lambda conn, error: JSONResponse({"error": str(error)}, status_code=401),
    )


KEY: Header = (b"authorization", b"Bearer key-1")


async def status_after_revoking(path: str, *order: str) -> int:
    backend = Keys("key-1")
    parts = {"authentication": authentication(backend), "pinning": PINNING}
    app = stack(*(parts[name] for name in order))
    assert (await call(app, AUTO, SESSION, KEY, path=path)).pin_status == "miss"
    backend.keys.clear()
    return int((await call(app, AUTO, SESSION, KEY, path=path)).start["status"])


async def test_inside_authentication_a_revoked_key_gets_its_401() -> None:
    assert await status_after_revoking(DECISION, "authentication", "pinning") == 401


async def test_outside_authentication_a_remembered_decision_outlives_its_key() -> None:
    assert await status_after_revoking(DECISION, "pinning", "authentication") == 200


class Anonymous(Keys):
    """Knows who comes with a key, and lets anybody else pass as nobody."""

    async def authenticate(self, conn: HTTPConnection) -> Any:
        try:
            return await super().authenticate(conn)
        except AuthenticationError:
            return None


@requires("known", status_code=403)
async def choose_for_known(request: Request) -> Response:
    return await choose(request)


def guarded_by_requires(backend: Keys) -> ASGIApp:
    routes = [Route(path, choose_for_known, methods=["POST"]) for path in (CHAT, DECISION)]
    return stack(Middleware(AuthenticationMiddleware, backend=backend), PINNING, routes=routes)


def guarded_by_depends(backend: Keys) -> ASGIApp:
    async def check(request: Request) -> None:
        try:
            await Keys.authenticate(backend, request)
        except AuthenticationError as error:
            raise HTTPException(status_code=403) from error

    app = FastAPI(dependencies=[Depends(check)])
    app.add_middleware(SessionPinMiddleware)
    for path in (CHAT, DECISION):
        app.post(path)(answer_fastapi)
    return app


async def answer_fastapi(body: dict[str, Any]) -> dict[str, Any]:
    return {"model": "a"}


@pytest.mark.parametrize("guard", [guarded_by_requires, guarded_by_depends])
async def test_what_refuses_inside_of_the_app_does_not_guard_a_remembered_decision(guard: Any) -> None:
    backend = Anonymous("key-1")
    app = guard(backend)
    for path in (CHAT, DECISION):
        assert (await call(app, AUTO, SESSION, KEY, JSON_TYPE, path=path)).start["status"] == 200
    backend.keys.clear()
    assert (await call(app, AUTO, SESSION, KEY, JSON_TYPE, path=CHAT)).start["status"] == 403
    assert (await call(app, AUTO, SESSION, KEY, JSON_TYPE, path=DECISION)).start["status"] == 200


async def test_a_decision_endpoint_that_is_ignored_is_always_the_apps() -> None:
    gateway = Gateway("a", "b", "c")
    endpoints = [{"path": "*/routing/v1/chat/completions", "kind": "ignore"}, {"path": "*/chat/completions"}]
    app = SessionPinMiddleware(gateway, config={"endpoints": endpoints})
    assert [(await call(app, AUTO, SESSION, path=DECISION)).pin_status for _ in range(2)] == [None, None]
    assert (await call(app, AUTO, SESSION)).pin_status == "miss"


async def test_completions_meet_authentication_on_either_side() -> None:
    assert await status_after_revoking(CHAT, "pinning", "authentication") == 401
    assert await status_after_revoking(CHAT, "authentication", "pinning") == 401


async def test_a_preflight_allows_the_session_headers() -> None:
    preflight: list[Header] = [
        ORIGIN,
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", b"x-session-id,x-session-pin"),
    ]
    for order in ((CORS, PINNING), (PINNING, CORS)):
        answer = await call(stack(*order), b"", *preflight, method="OPTIONS")
        assert answer.start["status"] == 200
        assert {"x-session-id", "x-session-pin"} <= set(answer.headers["access-control-allow-headers"].split(", "))
        assert answer.pin_status is None


async def test_cors_outside_exposes_our_headers_on_every_answer() -> None:
    app = stack(CORS, PINNING)
    for path, status in ((CHAT, "miss"), (CHAT, "hit"), (DECISION, "hit")):
        answer = await call(app, AUTO, SESSION, ORIGIN, path=path)
        assert answer.pin_status == status
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert exposed == ["x-session-pinned", "x-session-model", "x-session-pin-status"]


async def test_outside_cors_an_answer_from_the_pin_has_no_cors_headers() -> None:
    app = stack(PINNING, CORS)
    first, second = [await call(app, AUTO, SESSION, ORIGIN, path=DECISION) for _ in range(2)]
    assert "access-control-allow-origin" in first.headers
    assert second.pin_status == "hit"
    assert "access-control-allow-origin" not in second.headers


async def hits_through(*order: Middleware) -> bytes:
    app = stack(*order)
    accept: Header = (b"accept-encoding", b"gzip")
    answers = [await call(app, AUTO, SESSION, accept) for _ in range(2)]
    assert [answer.pin_status for answer in answers] == ["miss", "hit"]
    assert [answer.headers["content-encoding"] for answer in answers] == ["gzip"] * 2
    return gzip.decompress(answers[1].body)


async def test_compression_outside_leaves_plain_answers_to_look_at() -> None:
    assert json.loads(await hits_through(Middleware(GZipMiddleware), PINNING))["model"] == "model-1"


async def test_compression_inside_is_looked_through() -> None:
    assert json.loads(await hits_through(PINNING, Middleware(GZipMiddleware)))["model"] == "model-1"


async def test_a_decision_is_not_compressed_inside() -> None:
    app = stack(PINNING, Middleware(GZipMiddleware))
    answer = await call(app, AUTO, SESSION, (b"accept-encoding", b"gzip"), path=DECISION)
    assert "content-encoding" not in answer.headers
    assert answer.json["pinned"] is False


async def test_a_compressed_request_reaches_the_app_decoded() -> None:
    packed, encoding = gzip.compress(json.dumps(AUTO).encode()), (b"content-encoding", b"gzip")
    gateway = Gateway("a")
    app = SessionPinMiddleware(gateway)
    assert [(await call(app, packed, SESSION, encoding)).pin_status for _ in range(2)] == ["miss", "hit"]
    assert gateway.asked == ["auto", "a"]
    assert not any(encoding in scope["headers"] for scope in gateway.scopes)


class Seeing:
    """Notes the model in the body and in the header of each request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.seen: list[tuple[str, str | None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        told = dict(scope["headers"]).get(b"x-session-model")
        self.seen.append((json.loads(message["body"])["model"], told.decode() if told else None))

        async def receive_again() -> Any:
            return message

        await self.app(scope, receive_again, send)


async def test_inside_sees_the_pinned_model_outside_the_asked_one() -> None:
    inside = Seeing(Gateway("a"))
    outside = Seeing(SessionPinMiddleware(inside))
    for _ in range(2):
        await call(outside, AUTO, SESSION)
    assert inside.seen == [("auto", None), ("a", "a")]
    assert outside.seen == [("auto", None), ("auto", None)]


async def test_what_the_app_adds_to_its_scope_is_seen_outside() -> None:
    seen: list[object] = []

    class Looking(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            response = await call_next(request)
            seen.append(request.scope.get("endpoint"))  # when the response starts
            return response

    app = Looking(SessionPinMiddleware(stack()))
    for _ in range(2):
        scope = http_scope(SESSION)
        await call(app, AUTO, scope=scope)
        assert scope["endpoint"] is choose
        assert scope["headers"] == [SESSION]
        assert "asgi_session_pin" not in scope
    assert seen == [choose, choose]


CHAT_INSIDE = [Route("/chat/completions", choose, methods=["POST"])]


async def test_on_the_parent_it_covers_mounted_apps() -> None:
    routes = [Mount("/tenant/v1", Starlette(routes=CHAT_INSIDE))]
    endpoints = {"endpoints": [{"path": "/tenant/v1/chat/completions"}]}
    for config in ({}, endpoints):
        app = stack(Middleware(SessionPinMiddleware, config=config), routes=routes)
        path = "/tenant/v1/chat/completions"
        assert [(await call(app, AUTO, SESSION, path=path)).pin_status for _ in range(2)] == ["miss", "hit"]


async def test_inside_a_mount_it_covers_that_app_alone() -> None:
    endpoints = {"endpoints": [{"path": "/pinned/chat/completions"}]}
    for config in ({}, endpoints):
        pinned = SessionPinMiddleware(Starlette(routes=CHAT_INSIDE), config=config)
        app = stack(routes=[Mount("/pinned", pinned), Mount("/other", Starlette(routes=CHAT_INSIDE))])
        statuses = [
            (await call(app, AUTO, SESSION, path=f"/{where}/chat/completions")).pin_status
            for where in ("pinned", "pinned", "other")
        ]
        assert statuses == ["miss", "hit", None]


async def test_inside_a_mount_the_store_is_closed_by_aclose() -> None:
    store = MemoryStore()
    pinned = SessionPinMiddleware(Starlette(routes=CHAT_INSIDE), store=store)
    app = stack(routes=[Mount("/v1", pinned)])
    async with LifespanManager(app):
        await call(app, AUTO, SESSION)
    assert len(store) == 1
    await pinned.aclose()
    assert len(store) == 0


async def ask_two_workers(first: SessionPinMiddleware, second: SessionPinMiddleware) -> list[str]:
    return [(await call(worker, AUTO, SESSION)).json["model"] for worker in (first, second, first, second)]


async def test_two_workers_on_memory_decide_for_themselves() -> None:
    gateway = Gateway("a", "b")
    workers = SessionPinMiddleware(gateway), SessionPinMiddleware(gateway)
    assert await ask_two_workers(*workers) == ["a", "b", "a", "b"]


async def test_workers_with_a_shared_store_agree() -> None:
    gateway, store = Gateway("a", "b"), MemoryStore()
    workers = SessionPinMiddleware(gateway, store=store), SessionPinMiddleware(gateway, store=store)
    assert await ask_two_workers(*workers) == ["a"] * 4


@pytest.mark.parametrize("added_first", [True, False])
async def test_the_middleware_added_last_is_the_outermost(added_first: bool) -> None:
    app = stack()
    if added_first:
        app.add_middleware(SessionPinMiddleware)
    app.add_middleware(Reject)
    if not added_first:
        app.add_middleware(SessionPinMiddleware)
    answer = await call(app, AUTO, SESSION)
    assert (answer.pin_status is None) is added_first


class Reject:
    """Refuses everything."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({}, status_code=401)(scope, receive, send)


async def test_a_call_with_a_copied_scope_is_pinned_without_the_mark() -> None:
    gateway = Gateway("a", "b", "c")

    async def agent(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/agent":
            return await gateway(scope, receive, send)
        for _ in range(2):
            copy = {key: value for key, value in scope.items() if key != "asgi_session_pin"}
            answers.append(await call(app, AUTO, scope={**copy, "path": CHAT, "headers": [SESSION]}))
        return await JSONResponse({})(scope, receive, send)

    answers: list[Answer] = []
    app = SessionPinMiddleware(agent, config={"endpoints": [{"path": "/agent"}, {"path": "*/chat/completions"}]})
    await call(app, AUTO, SESSION, path="/agent")
    assert [answer.pin_status for answer in answers] == ["miss", "hit"]
