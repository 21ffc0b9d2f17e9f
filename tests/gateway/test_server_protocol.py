"""Clients' connections, over httptools: what arrives, and how answers are framed."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from asgi_session_pin.gateway.server_protocol import ServerProtocol
from behaviour_document import Section, case
from client_connections import connect, settle

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class App:
    """Keeps the requests that arrive whole, and says ok."""

    def __init__(self) -> None:
        self.requests: list[tuple[Scope, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            body, more = body + message["body"], message["more_body"]
        self.requests.append((scope, body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


async def arrived(
    pieces: list[bytes], http: type[asyncio.Protocol] = ServerProtocol, **options: Any
) -> tuple[App, bytes]:
    """Return what the app got when a client sent *pieces*, and all that the client got."""
    app = App()
    connection, transport = await connect(app, http, **options)
    for piece in pieces:
        if not transport.is_closing():
            connection.data_received(piece)
        await settle()
    connection.connection_lost(None)
    await settle()
    return app, transport.written


def post(body: bytes = b"body", more: bytes = b"", target: bytes = b"/a", version: bytes = b"1.1") -> bytes:
    head = b"POST %s HTTP/%s\r\nHost: a\r\n%sContent-Length: %d\r\n\r\n" % (target, version, more, len(body))
    return head + body


CHUNKED = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n%s\r\n"
CHUNKS = b"2\r\nbo\r\n2;extension\r\ndy\r\n0\r\n"


@pytest.mark.parametrize("offer", [b"", H2C, WEBSOCKET], ids=["no offer", "h2c", "websocket"])
@pytest.mark.parametrize(
    "request_bytes",
    [post(more=b"%s"), CHUNKED + CHUNKS + b"\r\n", CHUNKED + CHUNKS + b"X-Trailer: 1\r\nHost: evil\r\n\r\n"],
    ids=["length", "chunks", "trailers"],
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_a_body_arrives_whole_whatever_is_offered_and_trailers_are_no_headers(
    request_bytes: bytes, offer: bytes, size: int
) -> None:
    once = request_bytes % offer
    sent = once + once + post(b"", target=b"/last")
    app, answers = await arrived([sent[start : start + size] for start in range(0, len(sent), size)])
    assert [body for _, body in app.requests] == [b"body", b"body", b""]
    assert answers == OK * 3
    for scope, _ in app.requests[:2]:
        names = [name for name, _ in scope["headers"]]
        assert (names.count(b"host"), names.count(b"upgrade"), b"x-trailer" in names) == (1, bool(offer), False)
        assert scope["path"] == "/a"
    assert app.requests[2][0]["path"] == "/last"


async def test_a_websocket_is_opened_by_get_and_not_before_what_came_earlier_is_answered() -> None:
    get = b"GET /b HTTP/1.1\r\nHost: a\r\n%s\r\n"
    sent = post(more=WEBSOCKET) + get % b"" + get % WEBSOCKET + get % b""
    app, answers = await arrived([sent], ws="websockets-sansio")
    assert [(scope["type"], scope["path"], body) for scope, body in app.requests] == [
        ("http", "/a", b"body"),
        *[("http", "/b", b"")] * 3,
    ]
    assert answers == OK * 4


async def test_an_offer_without_a_body_and_a_tunnel_are_requests_as_others() -> None:
    get = b"GET /a?b=%%20 HTTP/1.1\r\nHost: a\r\n%s\r\n"
    app, answers = await arrived([get % H2C, get % b"", b"CONNECT host:443 HTTP/1.1\r\nHost: a\r\n\r\n", get % H2C])
    assert answers == OK * 4
    assert [(scope["method"], scope["raw_path"], scope["query_string"]) for scope, _ in app.requests] == [
        ("GET", b"/a", b"b=%20"),
        ("GET", b"/a", b"b=%20"),
        ("CONNECT", b"host:443", b""),
        ("GET", b"/a", b"b=%20"),
    ]


async def test_websockets_are_handed_to_the_protocol_that_uvicorn_has_for_them() -> None:
    class Websockets(asyncio.Protocol):
        def __init__(self, **_: Any) -> None:
            pass

        def data_received(self, data: bytes) -> None:
            handed.append(data)

    handed: list[bytes] = []
    app = App()
    connection, transport = await connect(app, ws=Websockets)
    transport.set_protocol = lambda protocol: None  # type: ignore[method-assign]
    connection.data_received(b"GET /v1/responses HTTP/1.1\r\nHost: a\r\n" + WEBSOCKET + b"\r\n")
    await settle()
    assert handed == [b"GET /v1/responses HTTP/1.1\r\nhost: a\r\n" + _lower_names(WEBSOCKET) + b"\r\n"]
    assert app.requests == []
    assert transport.written == b""


def _lower_names(headers: bytes) -> bytes:
    pairs = [line.split(b": ") for line in headers.split(b"\r\n") if line]
    return b"".join(b"%s: %s\r\n" % (name.lower(), value) for name, value in pairs)


TOKENS = st.sampled_from([b"accept", b"x-a", b"X-Session-Id", b"cookie", b"x_under", b"Expect", b"Connection"])
VALUES = st.sampled_from([b"", b"1", b"a, b", b"\xe4 x", b"100-continue", b"keep-alive", b'"quoted \\" text"'])
TARGETS = st.sampled_from([b"/", b"//lead", b"/a%2Fb?x=%zz&y", b"*", b"http://host/p?q", b"/c?d?e", b"/%C3", b"/a#b"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    headers = draw(st.lists(st.tuples(TOKENS, VALUES), max_size=5))
    head = draw(st.sampled_from([b"POST", b"GET", b"DELETE"])) + b" " + draw(TARGETS)
    head += draw(st.sampled_from([b" HTTP/1.1\r\n", b" HTTP/1.0\r\n"])) + b"Host: a\r\n"
    head += b"".join(b"%s: %s\r\n" % header for header in headers)
    body = draw(st.sampled_from([None, b"", b"body"]))
    if body is None:
        return head + b"\r\n"
    if draw(st.booleans()):
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + (b"4\r\nbody\r\n" if body else b"") + b"0\r\n\r\n"


@settings(deadline=None)
@given(st.lists(requests(), min_size=1, max_size=3), st.sets(st.integers(1, 400), max_size=4))
def test_what_arrives_is_what_arrives_by_h11_however_it_is_cut(sent: list[bytes], cuts: set[int]) -> None:
    data = b"".join(sent)
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[start:end] for start, end in pairwise(places)]
    ours, by_h11 = (asyncio.run(arrived(pieces, http))[0].requests for http in (ServerProtocol, H11Protocol))
    assert ours == by_h11


@case(Section.GATEWAY, "a head of over 64 KiB, of no host or of two, or a coding other than `chunked`", "400")
@pytest.mark.parametrize(
    "refused",
    [
        b"no HTTP\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET /\xe4 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000,
        b"GET /" + b"x" * 70_000,
    ],
    ids=lambda request_bytes: request_bytes[:60].decode("latin-1"),
)
async def test_what_cannot_be_understood_is_refused(refused: bytes) -> None:
    app, answer = await arrived([refused[start : start + 20_000] for start in range(0, len(refused), 20_000)])
    assert app.requests == []
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nconnection: close\r\n" in answer


async def test_headers_and_trailers_without_end_are_cut_and_long_bodies_are_not() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            got.append(await receive())
            if got[-1]["type"] == "http.disconnect":
                return

    got: list[Message] = []
    connection, transport = await connect(app)
    connection.data_received(CHUNKED % b"")
    for _ in range(10):
        connection.data_received(b"4e20\r\n" + b"x" * 20_000 + b"\r\n")
        await settle()
    assert not transport.is_closing()
    assert sum(len(message["body"]) for message in got) == 200_000
    connection.data_received(b"0\r\nX: ")
    for _ in range(10):
        connection.data_received(b"x" * 7_000)
    assert transport.is_closing()
    assert transport.written == b"", "an answer is under way"
    connection.connection_lost(None)
    await settle()
    assert got[-1]["type"] == "http.disconnect"


async def test_pipelined_requests_are_answered_in_turn_and_told_when_the_client_leaves() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        running.append(scope["path"])
        await receive()
        await going_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode(), "more_body": True})
        if scope["path"] == "/2":
            running.append((await receive())["type"])
        else:
            await send({"type": "http.response.body"})

    running: list[str] = []
    going_on = asyncio.Event()
    connection, transport = await connect(app)
    connection.data_received(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(1, 4)))
    await settle()
    assert running == ["/1"]
    going_on.set()
    await settle()
    assert running == ["/1", "/2"]
    assert b"/1\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n" in transport.written
    connection.connection_lost(None)
    await settle()
    assert running == ["/1", "/2", "http.disconnect"]


async def test_a_client_that_pipelines_without_end_gets_some_answers_and_no_more() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answers.wait()
        await answering(200, LENGTH, b"abc")(scope, receive, send)

    answers = asyncio.Event()
    connection, transport = await connect(app)
    for _ in range(3):
        connection.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
    answers.set()
    async with asyncio.timeout(20):
        while not transport.is_closing():
            await settle()
    assert transport.written.count(b"HTTP/1.1 200 OK\r\n") == 101
    assert transport.written.count(b"\r\nconnection: close\r\n") == 1
    connection.connection_lost(None)


class SlowApp:
    """Answers when it may."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.answers = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while not self.got or self.got[-1].get("more_body", False):
            self.got.append(await receive())
        waiting = asyncio.create_task(self._wait_for_the_end(receive))
        await self.answers.wait()
        await answering(200, LENGTH, b"abc")(scope, receive, send)
        await waiting

    async def _wait_for_the_end(self, receive: Receive) -> None:
        message = await receive()
        if not self.answers.is_set():
            self.got.append(message)


@pytest.mark.parametrize("broken", [b"}\n", b"\0", b"GET / HTTP/1.1\r\n\r\n", b"GET /\xe4 HTTP/1.1\r\n"])
@pytest.mark.parametrize("request_bytes", [post(b"{}"), CHUNKED % b"" + CHUNKS + b"\r\n"], ids=["length", "chunks"])
@pytest.mark.parametrize("size", [1, 100_000])
@case(
    Section.GATEWAY,
    "behind a whole request comes what is none, as where a body is longer than its `content-length`",
    "the answer, and the end of the connection: nothing that comes after it is read as a request",
)
async def test_what_comes_broken_behind_a_whole_request_does_not_take_its_answer_away(
    broken: bytes, request_bytes: bytes, size: int
) -> None:
    app = SlowApp()
    connection, transport = await connect(app)
    sent = request_bytes + broken
    for piece in [sent[start : start + size] for start in range(0, len(sent), size)]:
        connection.data_received(piece)
        await settle()
    connection.data_received(post(target=b"/smuggled"))
    await settle()
    assert not transport.is_closing()
    app.answers.set()
    await settle()
    assert transport.is_closing()
    assert b"\r\nconnection: close\r\n" in transport.written
    assert transport.written.count(b"HTTP/1.1 ") == 1
    assert transport.written.endswith(b"\r\n\r\nabc")
    assert [message["type"] for message in app.got] == ["http.request"] * len(app.got)
    connection.connection_lost(None)


async def test_who_sends_much_behind_a_whole_request_is_cut() -> None:
    app = SlowApp()
    connection, transport = await connect(app)
    connection.data_received(post() + b"}\n")
    for _ in range(6):
        assert not transport.is_closing()
        await settle()
        connection.data_received(b"x" * 12_000)
    assert transport.is_closing()
    connection.connection_lost(None)
    await settle()
    app.answers.set()
    await settle()
    assert [message["type"] for message in app.got] == ["http.request", "http.disconnect"]
    assert transport.written == b""


@pytest.mark.parametrize("is_early", [False, True])
async def test_a_body_that_breaks_in_its_midst_ends_the_connection_at_once_with_no_second_answer(
    is_early: bool,
) -> None:
    app = SlowApp()
    connection, transport = await connect(early if is_early else app)
    connection.data_received(CHUNKED % b"" + b"2\r\nbo\r\n")
    await settle()
    connection.data_received(b"no chunk\r\n" + post(target=b"/smuggled"))
    assert transport.is_closing()
    assert transport.written.count(b"HTTP/1.1 ") == is_early
    connection.connection_lost(None)
    app.answers.set()
    await settle()


async def early(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


def answering(status: int, headers: list[tuple[bytes, bytes]], *pieces: bytes) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    return app


LENGTH = [(b"content-length", b"3")]


@pytest.mark.parametrize(
    ("first", "app", "expected"),
    [
        (b"GET / HTTP/1.1", answering(200, [], b"a"), b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
        (b"GET / HTTP/1.0", answering(200, [], b"a", b"bc"), b"\r\nabc"),
        (b"GET / HTTP/1.0", answering(200, LENGTH, b"a", b"bc"), b"content-length: 3\r\n\r\nabc"),
        (b"HEAD / HTTP/1.0", answering(200, LENGTH), b"content-length: 3\r\n\r\n"),
        (b"HEAD / HTTP/1.1", answering(200, LENGTH), b"content-length: 3\r\n\r\n"),
        (b"GET / HTTP/1.1", answering(304, LENGTH), b"content-length: 3\r\n\r\n"),
        (b"GET / HTTP/1.0", answering(304, LENGTH), b"content-length: 3\r\n\r\n"),
        (b"GET / HTTP/1.1", answering(204, []), b"\r\n"),
        (b"GET / HTTP/1.1", answering(777, LENGTH, b"abc"), b"content-length: 3\r\n\r\nabc"),
    ],
)
async def test_answers_are_framed_as_their_client_and_their_status_have_it(
    first: bytes, app: Any, expected: bytes
) -> None:
    connection, transport = await connect(app, server_header=False, date_header=False)
    connection.data_received(first + b"\r\nHost: a\r\n\r\n")
    await settle()
    answer = transport.written.replace(b"connection: close\r\n", b"")  # which not every version says
    assert answer.partition(b"\r\n")[2] == expected
    assert transport.is_closing() is first.endswith(b"1.0")
    connection.connection_lost(None)


async def test_an_answer_that_is_too_short_or_too_long_closes_the_connection() -> None:
    for app in (answering(200, LENGTH, b"ab"), answering(200, LENGTH, b"abcd"), answering(304, LENGTH, b"abc")):
        connection, transport = await connect(app)
        connection.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await settle()
        assert transport.is_closing()
        connection.connection_lost(None)


def test_each_part_of_uvicorns_that_is_replaced_is_still_there() -> None:
    replaced = {name for name in vars(ServerProtocol) if not name.startswith("_")} - {"is_answered_early", "retire"}
    assert replaced == {
        "connection_lost",
        "data_received",
        "on_body",
        "on_header",
        "on_headers_complete",
        "on_message_begin",
        "on_message_complete",
        "on_response_complete",
        "send_400_response",
    }
    used = {"_should_upgrade", "_start_asgi_task", "_unset_keepalive_if_required", "handle_websocket_upgrade"}
    assert replaced | used <= set(vars(HttpToolsProtocol))


@case(
    Section.GATEWAY,
    "SIGHUP, and a client that has connected and sent no request yet, or not all of its head",
    "the old worker answers that one, and closes the connection",
)
@pytest.mark.parametrize("size", [0, 10])
async def test_a_connection_that_is_retired_before_its_request_answers_it_and_ends(size: int) -> None:
    connection, transport = await connect(App(), ServerProtocol)
    sent = post()
    connection.data_received(sent[:size])
    for _ in range(2):
        connection.retire()
    assert not transport.is_closing()
    connection.data_received(sent[size:])
    await settle()
    assert transport.written.startswith(b"HTTP/1.1 200 OK\r\n")
    assert transport.is_closing()
    connection.connection_lost(None)


async def test_a_connection_that_is_retired_between_two_requests_ends_at_once() -> None:
    connection, transport = await connect(App(), ServerProtocol)
    connection.data_received(post())
    await settle()
    assert not transport.is_closing()
    connection.retire()
    assert transport.is_closing()
    connection.connection_lost(None)


@pytest.mark.parametrize("rest", [b"b", b"bo"], ids=["a piece", "all of it"])
async def test_a_client_that_ends_in_silence_after_an_early_answer_is_dropped_as_any_idle_one(rest: bytes) -> None:
    connection, transport = await connect(early)
    connection.data_received(post(b"bo")[:-2])
    await settle()
    connection.timeout_keep_alive = 0
    connection.data_received(rest)
    assert not transport.is_closing()
    await settle()
    assert transport.is_closing()
    connection.connection_lost(None)


async def test_a_websocket_behind_an_early_answer_is_none_that_is_idle() -> None:
    class Websockets(asyncio.Protocol):
        def __init__(self, **_: Any) -> None:
            pass

    connection, transport = await connect(early, ws=Websockets)
    transport.set_protocol = lambda protocol: None  # type: ignore[method-assign]
    connection.data_received(post(b"bo")[:-2])
    await settle()
    connection.timeout_keep_alive = 0
    connection.data_received(b"boGET /v1/responses HTTP/1.1\r\nHost: a\r\n" + WEBSOCKET + b"\r\n")
    await settle()
    assert connection not in connection.connections
    assert not transport.is_closing()


async def test_a_connection_that_is_retired_after_an_early_answer_ends_when_the_body_does() -> None:
    connection, transport = await connect(early)
    connection.data_received(post(b"bo")[:-1])
    await settle()
    connection.retire()
    assert not transport.is_closing(), "which would take the answer away"
    connection.data_received(b"o")
    connection.retire()
    assert transport.is_closing()
    connection.connection_lost(None)
