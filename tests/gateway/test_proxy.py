"""The reverse proxy, between a real client and a real upstream."""

import asyncio
import gzip
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send

from asgi_driver import body_messages, http_scope, receive_from
from asgi_session_pin import Config, ConfigError, Gateway
from asgi_session_pin.gateway.forwarding import has_body, target
from asgi_session_pin.gateway.proxy import ReverseProxy, create_gateway
from asgi_session_pin.gateway.server_protocol import ServerProtocol
from behaviour_document import Section, case
from servers import free_port, serve_app, wait_until

AS_IT_IS: dict[str, Any] = {"server_header": False, "date_header": False, "proxy_headers": False}


@pytest.fixture(autouse=True, params=[ServerProtocol, "h11"], ids=["httptools", "h11"])
def _http(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve by either parser: by that of `serve`, and by that which uvicorn takes where it is alone."""
    monkeypatch.setitem(AS_IT_IS, "http", request.param)


@contextmanager
def gateway(upstream: str, **settings: Any) -> Iterator[httpx.Client]:
    app = create_gateway(upstream, Config(gateway=Gateway(**settings)))
    with serve_app(app, **AS_IT_IS) as url, httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
        yield client


def raw(client: httpx.Client, method: str, path: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return the status, the headers but those of the connection, and the bytes of the body as they come."""
    with client.stream(method, path, headers={"accept-encoding": "gzip, br, zstd"}) as response:
        body = b"".join(response.iter_raw())
    kept = [pair for pair in response.headers.raw if pair[0].lower() not in (b"connection", b"transfer-encoding")]
    return response.status_code, kept, body


CODED = {"gzip": gzip.compress(b"x" * 5000), "br": b"not really br", "zstd": b"nor zstd"}


async def coded(request: Request) -> Response:
    coding = request.path_params["coding"]
    return Response(CODED[coding], headers={"content-encoding": coding, "content-type": "text/plain"})


async def streamed(request: Request) -> Response:
    async def events() -> AsyncIterator[bytes]:
        for number in range(20):
            yield b"data: %d\n\n" % number

    return StreamingResponse(events(), media_type="text/event-stream", headers={"X-Mixed-Case": "kept"})


async def repeated(request: Request) -> Response:
    response = JSONResponse({"error": "nothing"}, 418)
    response.raw_headers += [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"date", b"today"), (b"server", b"us")]
    response.raw_headers += [(b"connection", b"x-hop"), (b"x-hop", b"of the connection"), (b"keep-alive", b"timeout=1")]
    return response


async def plain(request: Request) -> Response:
    return JSONResponse({"method": request.method})


async def empty(request: Request) -> Response:
    return Response(status_code=request.path_params["status"], headers={"etag": '"1"'})


async def redirect(request: Request) -> Response:
    return Response(status_code=307, headers={"location": "/plain"})


UPSTREAM = Starlette(
    routes=[
        Route("/plain", plain, methods=["GET", "HEAD", "POST", "DELETE", "PATCH"]),
        Route("/coded/{coding}", coded),
        Route("/streamed", streamed),
        Route("/repeated", repeated),
        Route("/empty/{status:int}", empty),
        Route("/redirect", redirect),
    ]
)


@case(
    Section.GATEWAY,
    "any response: plain, streamed, compressed, HEAD, 204, 304, an error, a redirect",
    "the bytes and the headers of a direct call, but for those of the connection",
)
def test_what_comes_back_is_what_a_direct_call_gets() -> None:
    cases = [("GET", "/plain"), ("HEAD", "/plain"), ("DELETE", "/plain"), ("POST", "/plain"), ("GET", "/none")]
    cases += [("GET", f"/coded/{coding}") for coding in CODED]
    cases += [("GET", "/streamed"), ("GET", "/empty/204"), ("GET", "/empty/304"), ("GET", "/redirect")]
    with serve_app(UPSTREAM, **AS_IT_IS) as url, gateway(url) as proxied, httpx.Client(base_url=url) as direct:
        for method, path in cases:
            assert raw(proxied, method, path) == raw(direct, method, path), (method, path)
        status, headers, body = raw(proxied, "GET", "/repeated")
        assert (status, body) == (418, b'{"error":"nothing"}')
        assert [value for name, value in headers if name == b"set-cookie"] == [b"a=1", b"b=2"]
        assert [value for name, value in headers if name in (b"date", b"server")] == [b"today", b"us"]
        assert not {name for name, _ in headers} & {b"x-hop", b"keep-alive"}


@contextmanager
def socket_upstream(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """An upstream that keeps the head of each request and lets *answer* do the rest."""
    heads: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                head = connection.recv(65_536)
                heads.append(head)
                if head:
                    answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heads
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def answer_ok(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
    while connection.recv(65_536):
        pass  # closed with a body unread, the connection would be reset and the answer lost


@case(
    Section.GATEWAY,
    "any request",
    "reaches the upstream with the same target and headers, in their order, and `X-Forwarded-For`, `-Proto`, `-Host`",
)
def test_what_the_upstream_gets_is_what_the_client_sent() -> None:
    path = b"/a%2Fb//c/../d;e?x=%20&y=a+b&z=%zz"
    with socket_upstream(answer_ok) as (upstream, heads), gateway(f"{upstream}/base/") as client:
        address = (client.base_url.host, client.base_url.port or 80)
        for lines in (
            b"POST %s HTTP/1.1\r\nHost: front:1\r\nX-Odd: 1\r\nx-odd: 2\r\nCookie: c=1\r\nConnection: x-hop, close\r\n"
            b"X-Hop: 1\r\nTE: trailers\r\nContent-Length: 2\r\nX-Forwarded-For: 10.0.0.1\r\n\r\nhi" % path,
            b"DELETE / HTTP/1.1\r\nHost: front\r\nConnection: close\r\n\r\n",
        ):
            with socket.create_connection(address) as connection:
                connection.sendall(lines)
                assert connection.makefile("rb").read().endswith(b"ok")
    first, second = (head.split(b"\r\n\r\n")[0].split(b"\r\n") for head in heads)
    assert first[0] == b"POST /base" + path + b" HTTP/1.1"
    host = b"host: " + upstream.removeprefix("http://").encode()
    assert [line.lower() for line in first[1:]] == [
        host,
        b"x-odd: 1",
        b"x-odd: 2",
        b"cookie: c=1",
        b"content-length: 2",
        b"x-forwarded-for: 127.0.0.1",
        b"x-forwarded-proto: http",
        b"x-forwarded-host: front:1",
    ]
    assert [line.lower() for line in second[1:]] == [
        host,
        b"x-forwarded-for: 127.0.0.1",
        b"x-forwarded-proto: http",
        b"x-forwarded-host: front",
    ]


# An upstream that fails


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    details = response.json()["error"]
    assert set(details) == {"message", "type", "param", "code"}
    return response.status_code, details["type"], details["code"]


@case(
    Section.GATEWAY,
    "the upstream refuses, or breaks off before its first byte",
    "502 in OpenAI's shape; only a connect is tried once more",
)
@case(Section.GATEWAY, "no answer within `gateway.read_timeout_seconds` (none by default)", "504")
def test_an_upstream_that_refuses_is_a_502_and_one_that_is_silent_a_504() -> None:
    with gateway(f"http://127.0.0.1:{free_port()}") as client:
        assert error_of(client.post("/v1/chat/completions", json={})) == (502, "upstream_error", "upstream_unavailable")

    def close_at_once(connection: socket.socket) -> None:
        pass

    def be_silent(connection: socket.socket) -> None:
        connection.recv(1)

    with socket_upstream(close_at_once) as (upstream, heads), gateway(upstream) as client:
        assert error_of(client.get("/")) == (502, "upstream_error", "upstream_unavailable")
        assert len(heads) == 1, "what was sent once is not sent again"
    with socket_upstream(be_silent) as (upstream, _), gateway(upstream, read_timeout_seconds=0.1) as client:
        assert error_of(client.get("/")) == (504, "upstream_error", "upstream_timeout")


SAYINGS = {
    "a status line": b"private-words\r\n\r\n",
    "a header": b"HTTP/1.1 200 OK\r\nset-cookie: private-words\x00\r\ncontent-length: 0\r\n\r\n",
    "a chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nprivate-words\r\n",
}


@case(
    Section.GATEWAY,
    "the upstream sends what is no HTTP",
    "one of these; the log names exceptions, never what was sent",
)
@pytest.mark.parametrize("place", SAYINGS)
def test_what_the_upstream_sent_in_place_of_http_is_in_no_log(
    place: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    answering = socket_upstream(lambda connection: connection.sendall(SAYINGS[place]))
    with answering as (upstream, _), gateway(upstream) as client, suppress(httpx.RemoteProtocolError):
        client.get("/")
    told = caplog.text + capsys.readouterr().err  # ours, and the server's
    assert "from HttpProcessingError" in told
    assert "private-words" not in told


async def test_a_request_that_cannot_be_forwarded_is_a_400() -> None:
    async def send(message: Message) -> None:
        sent.append(message)

    sent: list[Message] = []
    with socket_upstream(answer_ok) as (upstream, _):
        proxy = ReverseProxy(upstream)
        scope = http_scope((b"bad name", b"1"), path="/") | {"client": None}
        await proxy(scope, receive_from(body_messages(b""), asyncio.Event()), send)
        await proxy.aclose()
    assert sent[0]["status"] == 400


@case(Section.GATEWAY, "the upstream breaks off later", "the connection is cut")
def test_an_upstream_that_breaks_off_cuts_the_connection() -> None:
    def break_off(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")

    with (
        socket_upstream(break_off) as (upstream, _),
        gateway(upstream) as client,
        client.stream("GET", "/") as response,
    ):
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            response.read()


def test_an_upstream_that_closes_idle_connections_later_than_the_gateway_is_never_a_502() -> None:
    async def ask(url: str, pause: float) -> list[int]:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            codes = []
            for _ in range(3):
                codes.append((await client.post("/plain", json={})).status_code)
                await asyncio.sleep(pause)
            return codes

    async def ask_all(url: str) -> list[list[int]]:
        return await asyncio.gather(*(ask(url, 0.2 + number / 50) for number in range(25)))

    with serve_app(UPSTREAM, timeout_keep_alive=2) as upstream:
        app = create_gateway(upstream, Config(gateway=Gateway(keepalive_seconds=0.4)))
        with serve_app(app, **AS_IT_IS) as url:
            assert asyncio.run(ask_all(url)) == [[200] * 3] * 25


@case(Section.GATEWAY, "the client leaves, while it sends, waits or reads", "the request to the upstream ends at once")
def test_clients_that_leave_are_seen_by_the_upstream_at_once_and_leave_nothing_behind() -> None:
    left: list[float] = []
    streaming = 0
    all_are_here = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal streaming
        if scope["type"] == "lifespan":
            return await _live(receive, send)
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        streaming += 1
        if streaming == 200:
            all_are_here.set()
        try:
            for _ in range(20):
                await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
                if (await _within(receive, 0.1)) == "http.disconnect":
                    left.append(time.monotonic())
                    return
            await send({"type": "http.response.body"})
        finally:
            streaming -= 1

    async def ask(client: httpx.AsyncClient, leaves: bool) -> int:
        events = 0
        async with client.stream("POST", "/v1/chat/completions", json={"model": "auto"}) as response:
            async for line in response.aiter_lines():
                events += line.startswith("data")
                if leaves and all_are_here.is_set():
                    break
        return events

    async def ask_all(url: str) -> list[int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30, trust_env=False) as client:
            return await asyncio.gather(*(ask(client, number % 2 == 0) for number in range(200)))

    loops: list[asyncio.AbstractEventLoop] = []

    def remembering(inner: Any) -> Any:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            loops.append(asyncio.get_running_loop())
            await inner(scope, receive, send)

        return wrapped

    with serve_app(app, **AS_IT_IS) as upstream, serve_app(remembering(create_gateway(upstream)), **AS_IT_IS) as url:
        events = asyncio.run(ask_all(url))
        assert [count for number, count in enumerate(events) if number % 2] == [20] * 100
        time.sleep(1)
        assert len(left) == 100
        assert streaming == 0
        tasks = [str(task.get_coro()) for task in asyncio.all_tasks(loops[0])]
        assert [task for task in tasks if "_wait_for_disconnect" in task or "run_asgi" in task] == []


async def _live(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def _within(receive: Receive, seconds: float) -> str | None:
    try:
        message = await asyncio.wait_for(receive(), seconds)
    except TimeoutError:
        return None
    return str(message["type"])


def test_a_client_that_leaves_while_it_sends_closes_the_request_to_the_upstream() -> None:
    ended = threading.Event()

    def wait_for_end(connection: socket.socket) -> None:
        while connection.recv(65_536):
            pass
        ended.set()

    with socket_upstream(wait_for_end) as (upstream, _), gateway(upstream) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
            time.sleep(0.1)
        assert ended.wait(5)


def test_an_upstream_that_answers_before_the_body_is_whole_is_heard() -> None:
    def answer_early(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        while connection.recv(65_536):
            pass

    with socket_upstream(answer_early) as (upstream, _), gateway(upstream) as client:
        assert client.post("/", content=b"x" * 5_000_000).status_code == 413


async def _leave(upstream: str, request: bytes, heads: list[bytes], ended: threading.Event) -> None:
    """Send *request* through the proxy and leave; the upstream has to see it at once."""
    app = create_gateway(upstream)
    with serve_app(app, **AS_IT_IS) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        _, writer = await asyncio.open_connection(*address)
        writer.write(request)
        await asyncio.to_thread(wait_until, lambda: bool(heads))
        assert not ended.is_set()
        writer.close()
        assert await asyncio.to_thread(ended.wait, 5)


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
    ],
)
async def test_a_client_that_leaves_while_it_waits_closes_the_request_to_the_upstream(request_text: bytes) -> None:
    ended = threading.Event()

    def be_silent(connection: socket.socket) -> None:
        while connection.recv(65_536):
            pass
        ended.set()

    with socket_upstream(be_silent) as (upstream, heads):
        await _leave(upstream, request_text, heads, ended)


async def test_what_runs_outside_after_the_last_message_is_not_cancelled() -> None:
    done: list[str] = []

    def accounting(inner: Any) -> Any:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_and_count(message: Message) -> None:
                await send(message)
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    await asyncio.sleep(0.05)
                    done.append("counted")

            await inner(scope, receive, send_and_count if scope["type"] == "http" else send)

        return wrapped

    with serve_app(UPSTREAM) as upstream, serve_app(accounting(create_gateway(upstream))) as url:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            assert (await client.post("/plain", json={})).status_code == 200
            assert (await client.get("/plain")).status_code == 200
    assert done == ["counted", "counted"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"GET http://front.example/p?q=1 HTTP/1.1", b"GET /base/p?q=1 HTTP/1.1"),
        (b"GET //lead HTTP/1.1", b"GET /base//lead HTTP/1.1"),
        (b"OPTIONS * HTTP/1.1", b"OPTIONS * HTTP/1.1"),
    ],
)
def test_targets_of_every_form_reach_the_upstream(line: bytes, expected: bytes) -> None:
    with socket_upstream(answer_ok) as (upstream, heads):
        with serve_app(create_gateway(f"{upstream}/base"), **AS_IT_IS) as url:
            assert _ask(url, line + b"\r\nHost: a\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200")
        assert heads[0].split(b"\r\n")[0] == expected


def _ask(url: str, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        connection.sendall(request)
        return connection.makefile("rb").read()


@case(Section.GATEWAY, "a tunnel (CONNECT)", "501")
async def test_tunnels_are_refused() -> None:
    scope = http_scope(method="CONNECT", path="/")
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await create_gateway("http://127.0.0.1:9")(scope, receive_from([]), send)
    assert sent[0]["status"] == 501


def test_conflicting_framing_is_settled_before_it_is_forwarded() -> None:
    with socket_upstream(answer_ok) as (upstream, heads):
        with serve_app(create_gateway(upstream), **AS_IT_IS) as url:
            request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n"
            answer = _ask(url, request + b"Connection: close\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
        assert answer.split(b"\r\n")[0] in (b"HTTP/1.1 200 OK", b"HTTP/1.1 400 Bad Request")
        assert all(b"content-length: 99" not in head.lower() for head in heads)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({}, b"/base/v1/x"),
        ({"root_path": "/v1"}, b"/base/x"),
        ({"root_path": "/v1/"}, b"/base/x"),
        ({"root_path": "/v"}, b"/base/v1/x"),
        ({"root_path": "/ä", "raw_path": b"/%C3%A4/x"}, b"/base/x"),
        ({"raw_path": None}, b"/base/v1/x"),
        ({"raw_path": b"http://host"}, b"/base/"),
    ],
)
def test_the_target_is_what_is_below_the_mount(scope: dict[str, Any], expected: bytes) -> None:
    assert target({"path": "/v1/x", "raw_path": b"/v1/x", "query_string": b"", **scope}, b"/base") == expected


@pytest.mark.parametrize(("method", "expected"), [("POST", True), ("GET", False)])
def test_a_body_needs_no_header_in_http_2(method: str, expected: bool) -> None:
    assert has_body({"headers": [], "http_version": "2", "method": method}) is expected
    assert has_body({"headers": [], "http_version": "1.1", "method": method}) is False
    assert has_body({"headers": [(b"Content-Length", b"0")], "method": method}) is True


def test_a_mounted_gateway_forwards_what_is_below_it_and_works_in_any_event_loop() -> None:
    def answer_and_close(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")

    with socket_upstream(answer_and_close) as (upstream, heads):
        mounted = create_gateway(upstream)
        app = Starlette(routes=[Mount("/llm", mounted)])

        async def ask(path: str) -> int:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return (await client.get(path)).status_code

        for _ in range(3):
            assert asyncio.run(ask("/llm/v1/models?a=1")) == 200
        assert asyncio.run(ask("/llm/-/session-pin/healthz")) == 200
        asyncio.run(mounted.aclose())
    assert {head.split(b"\r\n")[0] for head in heads} == {b"GET /v1/models?a=1 HTTP/1.1"}


# The rest


def test_sessions_are_pinned_in_front_of_the_upstream() -> None:
    asked: list[Any] = []

    async def chat(request: Request) -> Response:
        asked.append((await request.json())["model"])
        return JSONResponse({"model": f"model-{len(asked)}" if asked[-1] == "auto" else asked[-1]})

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    with serve_app(app) as upstream, gateway(upstream) as client:
        answers = [
            client.post("/v1/chat/completions", json={"model": "auto"}, headers={"x-session-id": "s"}) for _ in range(3)
        ]
        assert [answer.headers["x-session-pin-status"] for answer in answers] == ["miss", "hit", "hit"]
    assert asked == ["auto", "model-1", "model-1"]


def test_health_is_told_below_its_path_and_nowhere_else() -> None:
    with serve_app(UPSTREAM) as upstream, gateway(upstream) as client:
        for check in ("healthz", "readyz"):
            assert (client.get(f"/-/session-pin/{check}").text, client.get(f"/{check}").status_code) == ("ok\n", 404)
    nowhere = create_gateway(f"http://127.0.0.1:{free_port()}", {"admin": {"path": "/up"}})
    with serve_app(nowhere) as url, httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
        assert client.get("/up/healthz").status_code == 200
        answer = client.get("/up/readyz")
        assert (answer.status_code, answer.text) == (503, "the upstream does not answer\n")


@pytest.mark.parametrize(
    "upstream",
    [
        *(
            "localhost:4000",
            "ftp://host",
            "http://",
            "http://user:secret@host",
            "http://host/?a=1",
            "http://host/#a",
            "",
        ),
        *(
            "http://host:abc",
            "http://host:99999",
            "http://host:0",
            "http://[::1",
            "http://ho st",
            "http://a..b",
            "http://-",
        ),
    ],
)
def test_an_upstream_that_is_no_url_is_refused_at_the_start(upstream: str) -> None:
    with pytest.raises(ValueError, match="upstream: expected a URL") as raised:
        create_gateway(upstream)
    assert "secret" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"gateway\.keepalive_seconds: found 0"):
        create_gateway("http://host", {"gateway": {"keepalive_seconds": 0}})
