"""What operators get below a path of their own, and what nobody else does."""

import asyncio
import builtins
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_driver import SESSION, Answer, Clock, Gateway, Header, call, http_scope
from asgi_session_pin import Config, Lapsed, MemoryStore, Pin, SessionPinMiddleware
from asgi_session_pin.config import Admin
from asgi_session_pin.gateway import create_gateway
from asgi_session_pin.operate.admin import MOST_READERS, SECURITY_HEADERS, create_admin
from asgi_session_pin.operate.event_stream import MOST_WAITING
from behaviour_document import Section, case

TOKEN = "0123456789abcdef"
BEARER: Header = (b"authorization", f"Bearer {TOKEN}".encode())
AUTO = {"model": "auto"}


def pinned(app: ASGIApp | None = None, *, token: str | None = TOKEN, **options: Any) -> SessionPinMiddleware:
    return SessionPinMiddleware(app or Gateway("a"), config=Config(admin=Admin(token=token)), **options)


async def ask(app: ASGIApp, path: str, *headers: Header, method: str = "GET", content: Any = b"") -> Answer:
    return await call(app, content, *headers, path=path, method=method)


async def status_of(app: ASGIApp, path: str, *headers: Header, method: str = "GET") -> int:
    return int((await ask(app, path, *headers, method=method)).start["status"])


# Who may


@case(Section.OPERATORS, "`healthz`", "200, for anybody")
async def test_health_needs_no_token() -> None:
    for token in (TOKEN, None):
        answer = await ask(create_admin(pinned(token=token)), "/healthz")
        assert (answer.start["status"], answer.body) == (200, b"ok\n")


CLOSED = ("/metrics", "/api/events")


@case(Section.OPERATORS, "no token, another one, or twice one", "401")
@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", f"Bearer {TOKEN[:-1]}".encode())],
        [(b"authorization", f"Bearer {TOKEN}x".encode())],
        [(b"authorization", f"Bearer {TOKEN.upper()}".encode())],
        [(b"authorization", f"Basic {TOKEN}".encode())],
        [(b"authorization", TOKEN.encode())],
        [(b"authorization", b"Bearer \xff\xfe")],
        [BEARER, (b"authorization", b"Bearer other")],
        [BEARER, BEARER],
        [(b"x-api-key", TOKEN.encode())],
        [(b"cookie", f"token={TOKEN}".encode())],
    ],
)
async def test_without_the_token_nothing_is_told(path: str, headers: list[Header]) -> None:
    answer = await ask(create_admin(pinned()), path, *headers)
    assert answer.start["status"] == 401
    assert answer.json["error"]["code"] == "unauthorized"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in str(answer.messages)


async def test_the_token_opens() -> None:
    app = create_admin(pinned())
    assert await status_of(app, "/metrics", BEARER) == 200
    assert await status_of(app, "/metrics", (b"authorization", f"bearer  {TOKEN} ".encode())) == 200
    assert await status_of(app, f"/metrics?token={TOKEN}") == 404  # it is not looked for in a URL


@case(Section.OPERATORS, "`admin.token` is not set", "404, but for `healthz` and `readyz`")
@pytest.mark.parametrize("path", CLOSED)
async def test_without_a_token_in_the_settings_there_is_nothing(path: str) -> None:
    app = create_admin(pinned(token=None))
    for headers in ([], [BEARER], [(b"authorization", b"Bearer ")]):
        assert await status_of(app, path, *headers) == 404


@case(Section.OPERATORS, "any other path below `admin.path`", "404, and never the upstream's")
@pytest.mark.parametrize(
    "path",
    [
        "//",
        "//metrics",
        "/metrics/",
        "/./metrics",
        "/x/../metrics",
        "/Metrics",
        "/metrics\n",
        "/metrics\0",
        "/api",
        "/api/",
        "/api//events",
        "/api/events/x",
        "/..",
        "/healthz/../metrics",
        "/healthz/",
    ],
)
async def test_other_paths_are_nothing(path: str) -> None:
    gateway = create_gateway("http://127.0.0.1:9", Config(admin=Admin(token=TOKEN)))
    for app, prefix in ((create_admin(pinned()), ""), (gateway, "/-/session-pin")):
        answer = await ask(app, prefix + path, BEARER)
        assert answer.start["status"] == 404
        assert answer.json["error"]["code"] == "not_found"
    await gateway.aclose()


async def test_a_path_beside_is_the_upstreams() -> None:
    gateway = create_gateway("http://127.0.0.1:9", Config(admin=Admin(token=TOKEN)))
    for path in ("/-/session-pins", "//-/session-pin/metrics", "/x/-/session-pin/metrics", "/-/session-pi"):
        assert await status_of(gateway, path, BEARER) == 502
    await gateway.aclose()


async def test_the_path_is_found_through_a_mount_and_behind_a_root_path() -> None:
    gateway = create_gateway("http://127.0.0.1:9", Config(admin=Admin(token=TOKEN)))
    mounted = Starlette(routes=[Mount("/llm", gateway), Mount("/ops", create_admin(pinned()))])
    assert await status_of(mounted, "/llm/-/session-pin/metrics", BEARER) == 200
    assert await status_of(mounted, "/llm/-/session-pin/metrics") == 401
    assert await status_of(mounted, "/ops/metrics", BEARER) == 200
    assert await status_of(mounted, "/ops/other", BEARER) == 404
    for root in ("/llm", "/llm/"):
        scope = {**http_scope(BEARER, path="/llm/-/session-pin/metrics", method="GET"), "root_path": root}
        assert (await call(gateway, b"", scope=scope)).start["status"] == 200
    await gateway.aclose()


@case(Section.OPERATORS, "another method", "405, with those that there are")
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
async def test_other_methods_are_refused(method: str) -> None:
    app = create_admin(pinned())
    answer = await ask(app, "/metrics", BEARER, method=method)
    assert (answer.start["status"], answer.headers["allow"]) == (405, "GET")
    assert await status_of(app, "/healthz", method=method) == 405
    assert await status_of(app, "/metrics", method=method) == 401


async def test_no_page_of_another_origin_is_let_in() -> None:
    app = create_admin(pinned())
    origin = (b"origin", b"https://elsewhere.example")
    preflight = (b"access-control-request-headers", b"authorization")
    for answer in (await ask(app, "/metrics", origin, preflight, method="OPTIONS"), await ask(app, "/metrics", origin)):
        assert answer.start["status"] in (401, 405)
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "set-cookie" not in (await ask(app, "/metrics", BEARER)).headers


async def test_every_answer_has_the_headers_that_keep_browsers_out() -> None:
    app = create_admin(pinned())
    for path, headers in [("/healthz", []), ("/metrics", [BEARER]), ("/metrics", []), ("/other", [])]:
        answer = await ask(app, path, *headers)
        assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS


async def test_a_websocket_is_closed_and_lifespan_has_nothing_to_do() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    gateway = create_gateway("http://127.0.0.1:9")
    await gateway({"type": "websocket", "path": "/-/session-pin/api/events"}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]
    await create_admin(pinned())({"type": "lifespan"}, receive, send)
    assert len(sent) == 1


async def test_what_fails_is_told_without_a_word_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: object) -> bytes:
        raise RuntimeError("a secret")

    monkeypatch.setattr("asgi_session_pin.operate.metrics.Metrics.text", fail)
    answer = await ask(create_admin(pinned()), "/metrics", BEARER)
    assert (answer.start["status"], answer.json["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.body.decode()
    assert "an operator's request failed" in caplog.text


# Readiness


@case(Section.OPERATORS, "`readyz`, and the pin store does not answer", "200, and the text says so: requests go on")
async def test_readiness_tells_of_the_store_and_asks_it_once_a_second(clock: Clock) -> None:
    class Store(MemoryStore):
        calls = 0
        is_down = False

        async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
            self.calls += 1
            if self.is_down:
                raise OSError("down")
            return await super().get(key)

    store = Store()
    app = create_admin(pinned(store=store, clock=clock))
    assert [(await ask(app, "/readyz")).body for _ in range(3)] == [b"ok\n"] * 3
    assert store.calls == 1
    store.is_down = True
    clock.now += 1
    answer = await ask(app, "/readyz")
    assert (answer.start["status"], answer.body) == (200, b"ok, but the pin store does not answer\n")


async def test_readiness_tells_of_an_upstream_that_is_out() -> None:
    async def is_ready() -> bool:
        return False

    answer = await ask(create_admin(pinned(), is_upstream_ready=is_ready), "/readyz")
    assert (answer.start["status"], answer.body) == (503, b"the upstream does not answer\n")


# Metrics


@case(Section.OPERATORS, "`metrics`", "the figures for Prometheus; 501 where `prometheus_client` is not installed")
async def test_metrics_are_those_of_the_middleware() -> None:
    app = pinned()
    admin = create_admin(app)
    for _ in range(3):
        await call(app, AUTO, SESSION)
    answer = await ask(admin, "/metrics", BEARER)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    line = 'session_pin_requests_total{endpoint="*/chat/completions",reason="",status="hit"} 2.0'
    assert line in answer.body.decode().splitlines()
    assert "session-1" not in answer.body.decode()


async def test_metrics_that_are_not_wanted_are_not_there() -> None:
    app = SessionPinMiddleware(Gateway("a"), config=Config(admin=Admin(token=TOKEN, metrics=False)))
    admin = create_admin(app)
    assert await status_of(admin, "/metrics", BEARER) == 404
    assert [*app.runtime.listeners, *app.runtime.counters] == []


async def test_metrics_without_prometheus_client_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if name == "metrics" and level:
            raise ImportError
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", missing)
    answer = await ask(create_admin(pinned()), "/metrics", BEARER)
    assert (answer.start["status"], answer.json["error"]["code"]) == (501, "not_installed")
    assert "asgi-session-pin[metrics]" in answer.json["error"]["message"]


# Events


class Reader:
    """Reads events until it is told to leave."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.start: Message = {}
        self.text = b""
        self.is_slow = False
        self.leaving = asyncio.Event()
        self._may_go_on = asyncio.Event()
        self._news = asyncio.Event()

    async def __aenter__(self) -> "Reader":
        self._asked = False
        scope = http_scope(BEARER, path="/api/events", method="GET")
        self.task = asyncio.ensure_future(self.app(scope, self._receive, self._send))
        await self.until(lambda: bool(self.text))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leaving.set()
        self._may_go_on.set()
        await asyncio.wait_for(self.task, 5)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not holds():
                self._news.clear()
                await self._news.wait()

    def go_on(self) -> None:
        self.is_slow = False
        self._may_go_on.set()

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.leaving.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
        else:
            self.text += message["body"]
        self._news.set()
        if self.is_slow:
            await self._may_go_on.wait()

    def events(self) -> list[Any]:
        parts = [part for part in self.text.decode().split("\n\n") if part.startswith("data: ")]
        return [json.loads(part.removeprefix("data: ")) for part in parts]


@case(Section.OPERATORS, "`api/events`", "each request with a session as it is over, as server-sent events")
async def test_events_come_as_they_happen() -> None:
    app = pinned()
    async with Reader(create_admin(app)) as reader:
        for _ in range(2):
            await call(app, AUTO, SESSION, (b"authorization", b"Bearer secret-key"))
        await reader.until(lambda: len(reader.events()) == 2)
        first, second = reader.events()
        assert (first["status"], first["changes"], second["status"], second["model"]) == ("miss", ["made"], "hit", "a")
        assert len(first["key"]) == 32
        assert b"session-1" not in reader.text
        assert b"secret-key" not in reader.text
        assert dict(reader.start["headers"])[b"content-type"].startswith(b"text/event-stream")
        assert b"content-length" not in dict(reader.start["headers"])
        assert dict(reader.start["headers"])[b"x-session-pin-worker"] == b"%d" % os.getpid()
    assert app.runtime.listeners == []


@case(Section.OPERATORS, "a reader of events is slow", "it loses some, and is told how many; nobody waits for it")
async def test_a_slow_reader_loses_events_and_is_told_how_many() -> None:
    app = pinned()
    async with Reader(create_admin(app)) as reader:
        reader.is_slow = True
        for _ in range(MOST_WAITING + 50):
            await call(app, AUTO, SESSION)
        reader.go_on()
        await reader.until(lambda: b"event: lost" in reader.text)
        [lost] = [part for part in reader.text.decode().split("\n\n") if part.startswith("event: lost")]
        number = json.loads(lost.partition("data: ")[2])["lost"]
        await reader.until(lambda: len(reader.events()) == MOST_WAITING + 50 - number)
        assert 0 < number <= 50


async def test_readers_are_bounded_in_number() -> None:
    admin = create_admin(pinned())
    readers = [Reader(admin) for _ in range(MOST_READERS)]
    for reader in readers:
        await reader.__aenter__()
    answer = await ask(admin, "/api/events", BEARER)
    assert (answer.start["status"], answer.json["error"]["code"]) == (503, "too_many_readers")
    for reader in readers:
        await reader.__aexit__()
    async with Reader(admin) as reader:
        assert reader.start["status"] == 200


async def test_a_quiet_stream_shows_that_it_lives_and_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_session_pin.operate.event_stream._QUIET_SECONDS", 0.01)
    monkeypatch.setattr("asgi_session_pin.operate.event_stream._LONGEST_SECONDS", 0.2)
    async with Reader(create_admin(pinned())) as reader:
        await reader.until(lambda: reader.text.count(b":\n\n") > 2)
        await asyncio.wait_for(asyncio.shield(reader.task), 5)


@case(Section.OPERATORS, "a reader of events stalls", "its connection is closed after five minutes, which makes room")
async def test_a_reader_that_stalls_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_session_pin.operate.event_stream._LONGEST_SECONDS", 0.2)
    monkeypatch.setattr("asgi_session_pin.operate.event_stream._LAST_SECONDS", 0.01)
    app = pinned()
    reader = Reader(create_admin(app))
    await reader.__aenter__()
    reader.is_slow = True
    await call(app, AUTO, SESSION)
    await asyncio.wait([reader.task], timeout=5)
    assert app.runtime.listeners == []
    with pytest.raises(TimeoutError):
        reader.task.result()


async def test_a_reader_whose_connection_breaks_is_forgotten() -> None:
    app = pinned()
    admin = create_admin(app)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        await admin(http_scope(BEARER, path="/api/events", method="GET"), receive, send)
    assert app.runtime.listeners == []


# As an app


async def test_an_unused_admin_makes_no_events() -> None:
    app = SessionPinMiddleware(Gateway("a"), config=Config(admin=Admin(token=TOKEN, metrics=False)))
    create_admin(app)
    assert [*app.runtime.listeners, *app.runtime.counters] == []


async def test_what_was_counted_is_written_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[object] = []
    monkeypatch.setattr("asgi_session_pin.operate.metrics.Metrics.flush", lambda self: flushed.append(self))
    for token in (TOKEN, None):
        gateway = create_gateway("http://127.0.0.1:9", Config(admin=Admin(token=token)))
        await gateway.aclose()
    assert len(flushed) == 1


async def test_the_operators_paths_are_not_those_of_sessions() -> None:
    async def upstream(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    gateway = create_gateway("http://127.0.0.1:9", Config(admin=Admin(path="/v1", token=TOKEN)))
    answer = await call(gateway, AUTO, SESSION, path="/v1/chat/completions")
    assert answer.start["status"] == 404
    await gateway.aclose()
