"""Attacks on what operators get, byte by byte, through the server that `serve` runs.

`test_admin.py` has those on the token and the path that need no server, `test_metrics.py` and `test_page.py` those by
the names of models.
"""

import asyncio
import contextlib
import gzip
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from asgi_driver import SESSION, Gateway, Header, call, http_scope
from asgi_session_pin import Config, MemoryStore, Pin, PinEvent, SessionPinMiddleware
from asgi_session_pin.config import Admin
from asgi_session_pin.gateway import create_gateway
from asgi_session_pin.gateway.server_protocol import ServerProtocol
from asgi_session_pin.operate.admin import MOST_READERS, SECURITY_HEADERS, create_admin
from asgi_session_pin.operate.event_stream import EventStream
from behaviour_document import Section, case
from servers import serve_app

TOKEN = "0123456789abcdef"
BEARER = f"Authorization: Bearer {TOKEN}"
ADMIN = "/-/session-pin"
KEY = bytes(15) + b"\1"
ENDPOINTS = [
    ("GET", "metrics"),
    ("GET", "api/events"),
    ("GET", "api/pins"),
    ("GET", f"api/pins/{KEY.hex()}"),
    ("PUT", f"api/pins/{KEY.hex()}"),
    ("DELETE", f"api/pins/{KEY.hex()}"),
    ("POST", "api/lookup"),
    ("GET", "api/models"),
    ("GET", "api/retired"),
    ("PUT", "api/retired/model"),
    ("DELETE", "api/retired/model"),
    ("GET", "api/pause"),
    ("PUT", "api/pause"),
    ("DELETE", "api/pause"),
]


def middleware(store: MemoryStore | None = None) -> SessionPinMiddleware:
    return SessionPinMiddleware(Gateway("a"), config=Config(admin=Admin(token=TOKEN)), store=store)


async def upstream(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        seen = f"upstream: {scope['path']} {Request(scope).headers.get('x-original-url', '')}"
        await PlainTextResponse(seen, 418)(scope, receive, send)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with (
        serve_app(upstream) as behind,
        serve_app(create_gateway(behind, Config(admin=Admin(token=TOKEN))), http=ServerProtocol) as url,
    ):
        yield int(url.rpartition(":")[2])


def exchange(port: int, head: str, body: bytes = b"") -> bytes:
    """Send a request, the lines of its *head* by `\\n`, and return all that comes until the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # it has said what there is to say
            while piece := client.recv(65_536):
                answer += piece
        return answer


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer.split()[1])


def get(port: int, target: str, *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    head = "\n".join([f"{method} {target} HTTP/{version}", "Host: a", "Connection: close", *lines])
    return exchange(port, head)


# Without the token


@case(Section.OPERATORS, "any endpoint of the API without the token", "401, and nothing is done")
@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
async def test_no_endpoint_does_anything_without_the_token(method: str, path: str) -> None:
    store = MemoryStore()
    await store.add(KEY, Pin("a", 1.0))
    pinned = middleware(store)

    async def receive() -> Message:
        raise AssertionError("a body that nobody may send is read")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await create_admin(pinned)(http_scope(path=f"/{path}", method=method), receive, send)
    assert sent[0]["status"] == 401
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    assert headers | SECURITY_HEADERS == headers
    assert await store.get(KEY) == Pin("a", 1.0)
    assert not pinned.runtime.steering.is_paused
    assert not pinned.runtime.steering.retired
    assert pinned.runtime.listeners == []


async def test_how_long_a_wrong_token_takes_tells_nothing_of_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return False

    monkeypatch.setattr("hmac.compare_digest", compare)
    admin = create_admin(middleware())
    for token in ("", "0", TOKEN[:-1], TOKEN, "x" * 60_000):
        await call(admin, b"", (b"authorization", f"Bearer {token}".encode()), path="/metrics", method="GET")
    assert compared == [(32, 32)] * 5  # digests, whatever was given


@pytest.mark.parametrize(
    "lines",
    [
        [f"Authorization: Bearer\t{TOKEN}"],
        [f"Authorization: Bearer {TOKEN}, Bearer {TOKEN}"],
        [f"Authorization: Bearer Bearer {TOKEN}"],
        [f"Authorization: Bearer {TOKEN}\N{NO-BREAK SPACE}"],
        ["Authorization: Bearer " + "x" * 60_000],
        ["Authorization: Bearer x"] * 500,
        [f"Proxy-Authorization: Bearer {TOKEN}"],
        [f"X-Authorization: Bearer {TOKEN}"],
        [f"Authorization_: Bearer {TOKEN}"],
        ["X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "Forwarded: for=127.0.0.1"],
        ["X-Original-URL: /-/session-pin/healthz", "X-Rewrite-URL: /-/session-pin/healthz"],
        ["X-HTTP-Method-Override: OPTIONS"],
        [f"X-Session-Id: {TOKEN}", "X-Session-Pin: off"],
        [f"Cookie: session-pin-token={TOKEN}; authorization=Bearer%20{TOKEN}"],
        ["Origin: null", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: navigate"],
    ],
)
def test_no_other_header_opens(port: int, lines: list[str]) -> None:
    answer = get(port, f"{ADMIN}/metrics", *lines)
    assert status(answer) == 401
    assert b"session_pin_" not in answer


@pytest.mark.parametrize("query", ["token=", "access_token=", "authorization=Bearer%20", "%61uthorization=Bearer+"])
def test_the_token_in_a_url_opens_nothing(port: int, query: str) -> None:
    assert status(get(port, f"{ADMIN}/metrics?{query}{TOKEN}")) == 401
    assert status(get(port, f"{ADMIN}/api/pins?{query}{TOKEN}")) == 401


@pytest.mark.parametrize("name", ["Authorization ", " Authorization", "Author\x00ization", "Authorization\n "])
def test_a_header_that_is_none_opens_nothing(port: int, name: str) -> None:
    answer = get(port, f"{ADMIN}/metrics", "X-First: 1", f"{name}: Bearer {TOKEN}")
    assert status(answer) in (400, 401)
    assert b"session_pin_" not in answer


# Paths


@case(Section.OPERATORS, "its path in other letters: `%2D`, `%2f`, a whole URL", "the same: never the upstream's")
@pytest.mark.parametrize(
    "target",
    [
        "/%2D/session-pin/metrics",
        "/-%2fsession-pin/metrics",
        "/-/session-pin%2fmetrics",
        "/-/session%2Dpin/%6detrics",
        f"http://elsewhere.example{ADMIN}/metrics",
        f"http://a:1{ADMIN}/metrics?x#y",
    ],
)
def test_a_path_in_other_letters_is_the_same_and_needs_the_token(port: int, target: str) -> None:
    assert status(get(port, target)) == 401
    answer = get(port, target, BEARER)
    assert status(answer) == 200
    assert b"session_pin_build_info" in answer


@pytest.mark.parametrize(
    "path",
    [
        "/%2e%2e/metrics",
        "/.%2e/session-pin/metrics",
        "/metrics%00",
        "/metrics;x=/healthz",
        "/metrics%0d%0aX-Injected:1",
        "/%c0%afmetrics",
        "/metrics%ff",
        "/%EF%BD%8Detrics",
        "/healthz%2f..%2fmetrics",
        "/healthz;/../metrics",
        "/healthz\\..\\metrics",
        "/api/pins%2f..%2fpause",
        f"/api/pins/{KEY.hex()}%00",
        f"/api/pins/{KEY.hex().upper().replace('0', 'O')}",
        "/api/pins/%2e%2e%2fpause",
        "/api%252fpins",
        "/page/index.html",
        "/../../etc/passwd",
    ],
)
def test_what_is_below_the_path_is_never_the_upstreams(port: int, path: str) -> None:
    for lines in ([], [BEARER]):
        answer = get(port, ADMIN + path, *lines)
        assert status(answer) in (400, 404)
        assert b"X-Injected" not in answer
        assert b"session_pin_" not in answer
        assert b"root:" not in answer


@pytest.mark.parametrize("root", ["/llm", "/llm/", "/-", ADMIN, f"{ADMIN}/", "/", "/-/session-pin/api"])
async def test_a_root_path_opens_nothing(root: str) -> None:
    gateway = create_gateway("http://127.0.0.1:9", Config(admin=Admin(token=TOKEN)))
    for path in (f"{root.rstrip('/')}{ADMIN}/metrics", f"{ADMIN}/metrics", f"{ADMIN}{ADMIN}/metrics"):
        scope = {**http_scope(path=path, method="GET"), "root_path": root}
        assert (await call(gateway, b"", scope=scope)).start["status"] in (401, 404, 502)
    await gateway.aclose()


def test_a_header_that_names_another_path_is_the_upstreams_affair(port: int) -> None:
    answer = get(port, "/v1/models", f"X-Original-URL: {ADMIN}/metrics", BEARER)
    assert status(answer) == 418
    assert f"upstream: /v1/models {ADMIN}/metrics".encode() in answer


# Methods and versions


@pytest.mark.parametrize("path", ["metrics", "api/pins", "api/models", "api/pause", "api/events", "healthz", ""])
def test_head_has_no_body_and_does_not_wait(port: int, path: str) -> None:
    began = time.monotonic()
    answer = get(port, f"{ADMIN}/{path}", BEARER, method="HEAD")
    assert status(answer) == 200
    assert answer.endswith(b"\r\n\r\n")
    assert time.monotonic() - began < 10  # not for as long as events last
    assert status(get(port, f"{ADMIN}/{path}", method="HEAD")) == (401 if path not in ("healthz", "") else 200)


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "CONNECT", "PROPFIND", "PATCH", "POST"])
def test_no_other_method_does_anything(port: int, method: str) -> None:
    for path in ("metrics", "api/pause", "api/retired/a", "healthz"):
        answer = get(port, f"{ADMIN}/{path}", BEARER, "X-Secret: echo", method=method)
        assert status(answer) in (400, 405)
        assert b"echo" not in answer
    assert json.loads(get(port, f"{ADMIN}/api/pause", BEARER).partition(b"\r\n\r\n")[2]) == {"paused": False}


def test_the_server_as_a_whole_has_no_options_of_ours(port: int) -> None:
    assert b"access-control" not in get(port, "*", method="OPTIONS").lower()


def test_http_1_0_needs_the_token_too(port: int) -> None:
    assert status(exchange(port, f"GET {ADMIN}/metrics HTTP/1.0")) == 401
    answer = exchange(port, f"GET {ADMIN}/metrics HTTP/1.0\n{BEARER}")
    assert status(answer) == 200
    assert b"transfer-encoding" not in answer.lower()


@pytest.mark.parametrize("first", ["GET", "HEAD", "DELETE"])
def test_a_request_hidden_in_a_body_is_no_request(port: int, first: str) -> None:
    hidden = f"GET {ADMIN}/metrics HTTP/1.1\r\nHost: a\r\n{BEARER}\r\n\r\n".encode()
    head = f"{first} {ADMIN}/healthz HTTP/1.1\nHost: a\nContent-Length: {len(hidden)}\nConnection: close"
    assert b"session_pin_" not in exchange(port, head, hidden)
    head = head.replace("Connection", "Transfer-Encoding: chunked\nConnection")
    assert b"session_pin_" not in exchange(port, head, b"0\r\n\r\n" + hidden.replace(BEARER.encode(), b"X: 1"))


def test_a_websocket_is_refused(port: int) -> None:
    upgrade = ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    head = "\n".join([f"GET {ADMIN}/api/events HTTP/1.1", "Host: a", "Connection: Upgrade", BEARER, *upgrade])
    assert status(exchange(port, head)) in (400, 403)


# Browsers


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_form_of_another_origin_does_nothing(port: int, content_type: str) -> None:
    body = b'{"session_id":"1","x":"="}'
    lines = ["Host: a", "Origin: https://elsewhere.example", "Cookie: a=b", f"Content-Type: {content_type}"]
    head = "\n".join([f"POST {ADMIN}/api/lookup HTTP/1.1", *lines, f"Content-Length: {len(body)}", "Connection: close"])
    answer = exchange(port, head, body)
    assert status(answer) == 401
    assert b"access-control" not in answer.lower()
    assert b"set-cookie" not in answer.lower()


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_a_preflight_allows_nothing(port: int, method: str, path: str) -> None:
    asked = [f"Access-Control-Request-Method: {method}", "Access-Control-Request-Headers: authorization"]
    lines = ["Origin: https://elsewhere.example", "Access-Control-Request-Private-Network: true", *asked]
    answer = get(port, f"{ADMIN}/{path}", *lines, method="OPTIONS")
    assert status(answer) == 401
    assert b"access-control" not in answer.lower()


@pytest.mark.parametrize("path", ["", "healthz", "metrics", "api/pins", "api/nothing"])
def test_no_answer_may_be_shown_in_another_page_run_or_kept(port: int, path: str) -> None:
    head = get(port, f"{ADMIN}/{path}", BEARER).partition(b"\r\n\r\n")[0].decode().lower()
    for line in ("x-frame-options: deny", "x-content-type-options: nosniff", "cache-control: no-store"):
        assert line in head
    policy = re.search("content-security-policy: (.*)", head)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "frame-ancestors 'none'" in policy[1]
    assert "unsafe" not in policy[1]


# Bodies


def put(port: int, path: str, body: bytes, *lines: str, method: str = "PUT") -> bytes:
    length = [] if any(line.startswith("Transfer-Encoding") for line in lines) else [f"Content-Length: {len(body)}"]
    head = [f"{method} {ADMIN}/api/{path} HTTP/1.1", "Host: a", "Connection: close", BEARER, *length, *lines]
    return exchange(port, "\n".join(head), body)


def test_a_body_without_end_is_refused_before_it_is_whole(port: int) -> None:
    chunks = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    answer = put(port, f"pins/{KEY.hex()}", chunks * 3, "Transfer-Encoding: chunked")
    assert status(answer) == 413


def test_a_body_is_not_unpacked(port: int) -> None:
    bomb = gzip.compress(b'{"model":"' + b"a" * 10_000_000 + b'"}')
    assert status(put(port, f"pins/{KEY.hex()}", bomb, "Content-Encoding: gzip")) == 400


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":' * 7_000,
        b'{"x":' + b"[" * 60_000,
        b'{"model":1e400}',
        b'{"model":NaN}',
        b'{"model":null}',
        b'{"model":["a"]}',
        b'{"model":"\\ud800"}',
        b'{"model":"a\\r\\nX: 1"}',
        b'{"model":"\\u0000"}',
        b'{"model":"\xff"}',
        b"\xef\xbb\xbf{}",
        b'"model"',
        b"0" * 60_000,
    ],
)
def test_a_body_that_is_none_sets_nothing(port: int, body: bytes) -> None:
    assert status(put(port, f"pins/{KEY.hex()}", body)) == 400
    assert status(get(port, f"{ADMIN}/api/pins/{KEY.hex()}", BEARER)) == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"session_id": "\ud800"},
        {"session_id": "1", "model": "\ud800"},
        {"session_id": "1", "headers": {"\u20ac": "1"}},
        {"session_id": "1", "headers": {"a": ["b"]}},
        {"session_id": ["1"]},
        {"headers": {}},
    ],
)
def test_a_lookup_of_what_no_request_has_is_refused(port: int, fields: dict[str, Any]) -> None:
    assert status(put(port, "lookup", json.dumps(fields).encode(), method="POST")) == 400


@pytest.mark.parametrize(
    "query",
    [
        "after='%20OR%201=1--",
        "after=*",
        "after=%00",
        "after=" + "9" * 5_000,
        "limit=" + "9" * 5_000,
        "limit=%D9%A1",
        "limit=1e1",
        "limit=+1",
    ],
)
def test_a_query_of_a_listing_is_no_statement(port: int, query: str) -> None:
    assert status(get(port, f"{ADMIN}/api/pins?{query}", BEARER)) == 400


# Names of models, and events


@pytest.mark.parametrize("name", ["a\n\ndata: {}\n\n", "a\r\rdata: {}", "</script>", "\u2028data: {}", '"}', "\\"])
async def test_a_name_makes_no_event_of_its_own(name: str) -> None:
    stream, sent = EventStream(), b""
    leaving = asyncio.Event()

    async def receive() -> Message:
        await leaving.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal sent
        sent += message.get("body", b"")
        if b"data: " in sent:
            leaving.set()

    stream.put(PinEvent("hit", None, "*", asked=name, model=name))
    await stream.run(receive, send, [])
    [block] = [block for block in sent.decode().split("\n\n") if block not in ("", ":")]
    assert "\r" not in block
    assert json.loads(block.removeprefix("data: "))["model"] == name


def test_a_name_in_a_path_is_text(port: int) -> None:
    for name in ("<script>alert(1)</script>", "..%2f..%2fpins", "a%2Fb", "%7B%7B7*7%7D%7D", "a?b".replace("?", "%3F")):
        assert status(get(port, f"{ADMIN}/api/retired/{name}", BEARER, method="PUT")) == 204
    answer = get(port, f"{ADMIN}/api/retired", BEARER)
    assert b"content-type: application/json" in answer.lower()
    names = json.loads(answer.partition(b"\r\n\r\n")[2])["retired"]
    assert names == ["../../pins", "<script>alert(1)</script>", "a/b", "a?b", "{{7*7}}"]
    for name in ("%0d%0aX:1", "%00", "%20", "a%0a", "%C3%A4", "x" * 257):
        assert status(get(port, f"{ADMIN}/api/retired/{name}", BEARER, method="PUT")) == 400
    for name in ("%3Cscript%3Ealert(1)%3C/script%3E", "../../pins", "a/b", "%7B%7B7*7%7D%7D", "a%3Fb"):
        assert status(get(port, f"{ADMIN}/api/retired/{name}", BEARER, method="DELETE")) == 204


@case(Section.OPERATORS, "more readers of events than there may be", "503; all else is answered, and requests go on")
def test_readers_that_take_all_places_hurt_nobody_else(port: int) -> None:
    head = f"GET {ADMIN}/api/events HTTP/1.1\r\nHost: a\r\n{BEARER}\r\n\r\n".encode()
    readers = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(MOST_READERS)]
    try:
        for reader in readers:
            reader.sendall(head)
            assert reader.recv(12) == b"HTTP/1.1 200"
        assert status(get(port, f"{ADMIN}/api/events", BEARER)) == 503
        assert status(get(port, f"{ADMIN}/metrics", BEARER)) == 200
        assert status(get(port, "/v1/models")) == 418
    finally:
        for reader in readers:
            reader.close()


async def test_a_reader_that_has_left_makes_room() -> None:
    admin = create_admin(middleware())

    async def send(message: Message) -> None:
        pass

    async def leave() -> Message:
        return {"type": "http.disconnect"}

    for _ in range(MOST_READERS + 1):
        await admin(http_scope((b"authorization", BEARER[15:].encode()), path="/api/events", method="GET"), leave, send)


# What is told


async def test_no_token_and_no_credential_is_in_any_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    pinned = middleware()
    admin = create_admin(pinned)
    secret = b"sk-secret-of-the-client"
    wrong: Header = (b"authorization", b"Bearer wrong-token-of-somebody")
    right: Header = (b"authorization", f"Bearer {TOKEN}".encode())
    await call(pinned, {"model": "auto"}, SESSION, (b"authorization", b"Bearer " + secret))
    asked = {"session_id": "session-1", "headers": {"authorization": f"Bearer {secret.decode()}"}, "model": "auto"}
    answers = [
        await call(admin, b"", wrong, path="/metrics", method="GET"),
        await call(admin, asked, wrong, path="/api/lookup"),
        await call(admin, asked, right, path="/api/lookup"),
        await call(admin, b"", right, path="/api/pins", method="GET"),
        await call(admin, b"", right, path="/metrics", method="GET"),
    ]
    told = caplog.text + "".join(str(answer.messages) for answer in answers)
    for each in (TOKEN, "wrong-token", secret.decode(), "session-1"):
        assert each not in told
