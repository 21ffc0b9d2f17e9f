"""Websockets through the reverse proxy, between real clients and real upstreams."""

import asyncio
import base64
import contextlib
import errno
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any

import pytest
from starlette.types import Message, Scope
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.http11 import Request, Response

from asgi_driver import until
from asgi_session_pin import Config, Gateway
from asgi_session_pin.gateway import create_gateway, websocket
from asgi_session_pin.gateway.websocket import MAX_MESSAGE_BYTES, WebSocketRelay
from behaviour_document import Section, case
from servers import free_port, serve_app
from tcp_servers import Serve, tcp_server

AS_IT_IS = {"server_header": False, "date_header": False, "proxy_headers": False, "ws_max_size": MAX_MESSAGE_BYTES}
SERVERS = ["websockets-sansio", "wsproto"]
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3

Handler = Callable[[ServerConnection], Awaitable[None]]


def url_of(server: Any) -> str:
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@contextlib.asynccontextmanager
async def proxied(
    upstream: str,
    path: str = "/v1/realtime",
    server: str = SERVERS[0],
    read_seconds: float | None = None,
    **options: Any,
) -> AsyncIterator[ClientConnection]:
    """A client of the gateway in front of *upstream*."""
    app = create_gateway(upstream, Config(gateway=Gateway(read_timeout_seconds=read_seconds)))
    with contextlib.ExitStack() as serving:
        url = serving.enter_context(serve_app(app, ws=server, **AS_IT_IS)).replace("http", "ws")
        try:
            async with connect(f"{url}{path}", max_size=None, proxy=None, **options) as client:
                yield client
        finally:
            await asyncio.to_thread(serving.close)  # the upstream goes on meanwhile


@contextlib.contextmanager
def resets_pass() -> Iterator[None]:
    """Let asyncio's transports raise in peace where a connection that they are about to half-close has been reset."""
    loop = asyncio.get_running_loop()
    others = loop.get_exception_handler()
    assert others is not None

    def heed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if getattr(context.get("exception"), "errno", None) != errno.ENOTCONN:
            others(loop, context)

    loop.set_exception_handler(heed)
    try:
        yield
    finally:
        loop.set_exception_handler(others)


@contextlib.asynccontextmanager
async def echoing(handler: Handler | None = None, **options: Any) -> AsyncIterator[Server]:
    """An upstream that sends back what it gets, unless there is a *handler*."""

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    with resets_pass():
        async with serve(handler or echo, "127.0.0.1", 0, max_size=None, **options) as server:
            yield server


@contextlib.asynccontextmanager
async def raw_upstream(handler: Serve, *, switches: bool = True) -> AsyncIterator[str]:
    """An upstream that leaves all behind the handshake, or the answer itself, to *handler*."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if switches:
            writer.write(switching(head))
        await handler(reader, writer)

    async with tcp_server(answer, limit=2**22) as port:
        yield f"http://127.0.0.1:{port}"


def switching(head: bytes) -> bytes:
    key = next(line for line in head.split(b"\r\n") if line.startswith(b"sec-websocket-key: ")).split()[1]
    proof = base64.b64encode(hashlib.sha1(key + GUID).digest())
    lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: WebSocket", b"Connection: Upgrade"]
    return b"\r\n".join([*lines, b"Sec-WebSocket-Accept: " + proof, b"", b""])


async def closing_of(client: ClientConnection) -> tuple[int, str]:
    """Return the code and the reason that the client is told at the end."""
    with pytest.raises(ConnectionClosed) as raised:
        async with asyncio.timeout(20):
            await client.recv()
    assert raised.value.rcvd is not None
    return raised.value.rcvd.code, raised.value.rcvd.reason


# Frames


@pytest.mark.parametrize("server", SERVERS)
@case(Section.GATEWAY, "a websocket", "text and binary frames of up to 16 MiB pass as they are, both ways")
async def test_frames_pass_as_they_are(server: str) -> None:
    sent: list[str | bytes] = ["", "hällo", b"", b"\x00\xff\r\n\r\n", "\r\n\r\n" * 20_000, b"x" * MAX_MESSAGE_BYTES]
    async with echoing() as upstream, proxied(url_of(upstream), server=server) as client:
        for message in sent:
            await client.send(message)
            assert await client.recv() == message


async def test_frames_that_come_with_the_handshake_are_not_lost() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x81\x04\r\n\r\n\x81\x02hi")
        await reader.readexactly(8)  # the client's close

    async with raw_upstream(greet) as upstream, proxied(upstream) as client:
        assert [await client.recv(), await client.recv()] == ["\r\n\r\n", "hi"]


@pytest.mark.parametrize("server", SERVERS)
async def test_a_client_with_too_large_a_message_is_told_so(server: str) -> None:
    closed: list[int | None] = []

    async def wait(connection: ServerConnection) -> None:
        await connection.wait_closed()
        closed.append(connection.close_code)

    async with echoing(wait) as upstream:
        async with proxied(url_of(upstream), server=server) as client:
            with contextlib.suppress(ConnectionClosed):
                await client.send(b"x" * (MAX_MESSAGE_BYTES + 1))
            assert (await closing_of(client))[0] == 1009
        await until(lambda: closed == [1009])


async def test_a_message_of_the_upstream_that_is_too_large_ends_both_sides() -> None:
    closed: list[int | None] = []

    async def send(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await connection.send(b"x" * (MAX_MESSAGE_BYTES + 1))
        await connection.wait_closed()
        closed.append(connection.close_code)

    async with echoing(send) as upstream, proxied(url_of(upstream)) as client:
        assert (await closing_of(client))[0] == 1009
        await until(lambda: closed == [1009])


async def test_what_is_sent_faster_than_it_is_taken_waits_at_its_sender() -> None:
    """No more than a few messages of 1 MiB are under way, whoever is slow."""
    taken = asyncio.Event()
    sent = 0

    async def flood(connection: ServerConnection | ClientConnection) -> None:
        nonlocal sent
        for _ in range(100):
            await connection.send(b"x" * 2**20)
            sent += 1

    async def slow(connection: ServerConnection) -> None:
        await taken.wait()
        for _ in range(100):
            await connection.recv()
        await flood(connection)

    async def settle() -> int:
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.3)
        return sent

    async with (
        echoing(slow, max_queue=1, compression=None) as upstream,
        proxied(url_of(upstream), max_queue=1, compression=None) as client,
    ):
        flooding = asyncio.create_task(flood(client))
        assert await settle() < 60
        taken.set()
        await flooding
        sent = 0
        assert await settle() < 60
        for _ in range(100):
            assert len(await client.recv()) == 2**20


# The handshake


@case(
    Section.GATEWAY,
    "the handshake of a websocket",
    "the target and the headers of both sides as for any request; a subprotocol is the upstream's choice, extensions "
    "(compression) are for one connection and not offered on",
)
async def test_the_handshake_reaches_the_upstream_and_its_answer_the_client() -> None:
    requests: list[Request] = []

    def answer(connection: ServerConnection, request: Request, response: Response) -> None:
        requests.append(request)
        response.headers["X-Turn"] = "1"
        response.headers["Set-Cookie"] = "a=1"
        response.headers["Set-Cookie"] = "b=2"

    headers = {
        "X-Session-Pinned": "true",
        "X-Session-Id": "s",
        "X_Session_Model": "forged",
        "Authorization": "Bearer é",
    }
    options: dict[str, Any] = {"additional_headers": headers, "subprotocols": ["a", "b"]}
    async with echoing(process_response=answer, subprotocols=["b"]) as upstream:
        path = "/v1/x%2Fy//z?a=%20b&c"
        async with proxied(f"{url_of(upstream)}/base", path, **options) as client:
            assert client.response is not None
            answered = list(client.response.headers.raw_items())
            assert client.subprotocol == "b"
        async with proxied(f"{url_of(upstream)}/base", path, SERVERS[1], **options) as client:
            assert client.subprotocol == "b"
    first, other = requests
    assert first.path == other.path == "/base/v1/x%2Fy//z?a=%20b&c"
    names = [name.lower() for name, _ in first.headers.raw_items()]
    assert len(set(names)) == len(names)
    assert {"x-session-id", "x-forwarded-for", "x-forwarded-host", "sec-websocket-protocol"} < set(names)
    assert not {"x-session-pinned", "x_session_model", "sec-websocket-extensions"} & set(names)
    assert (first.headers["x-forwarded-proto"], first.headers["sec-websocket-protocol"]) == ("http", "a, b")
    assert other.headers["sec-websocket-protocol"] == "a, b"
    kept = [(name.lower(), value) for name, value in answered]
    assert [value for name, value in kept if name == "set-cookie"] == ["a=1", "b=2"]
    assert ("x-turn", "1") in kept
    assert [name for name, _ in kept].count("sec-websocket-accept") == 1


def rejected(**options: Any) -> Callable[[ServerConnection, Request], Response]:
    def reject(connection: ServerConnection, request: Request) -> Response:
        response = connection.respond(options.get("status", HTTPStatus.UNAUTHORIZED), options.get("text", "no\n"))
        response.headers["X-Why"] = "secret"
        return response

    return reject


async def refusal_of(upstream: str, path: str = "/v1/realtime", **options: Any) -> Any:
    """Return the answer to a handshake that is refused."""
    with pytest.raises(InvalidStatus) as raised:
        async with proxied(upstream, path, **options):
            pass
    return raised.value.response


@pytest.mark.parametrize("server", SERVERS)
@case(Section.GATEWAY, "the upstream refuses a websocket", "its status, headers and body")
async def test_a_refusal_of_the_upstream_goes_out_as_it_is(server: str) -> None:
    async with echoing(process_request=rejected()) as upstream:
        response = await refusal_of(url_of(upstream), server=server)
    assert (response.status_code, bytes(response.body), response.headers["X-Why"]) == (401, b"no\n", "secret")


@pytest.mark.parametrize(
    ("status", "text", "path", "expected"),
    [
        (404, "none", "/v1/responses", 426),
        (405, "none", "/v1/chat/completions/", 426),
        (501, "none", "/v1/responses", 426),
        (403, "", "/v1/responses", 426),
        (403, "not you", "/v1/responses", 403),
        (429, "later", "/v1/responses", 429),
        (404, "none", "/v1/realtime", 404),
    ],
)
@case(
    Section.GATEWAY,
    "the upstream has no websocket at an endpoint (404, 405, 501, or 403 without a word)",
    "426 at once, so that the client asks by HTTP: Codex would try seven times",
)
async def test_an_upstream_without_websockets_makes_clients_ask_by_http(
    status: int, text: str, path: str, expected: int
) -> None:
    async with echoing(process_request=rejected(status=HTTPStatus(status), text=text)) as upstream:
        response = await refusal_of(url_of(upstream), path)
    assert response.status_code == expected
    if expected == 426:
        assert json.loads(bytes(response.body))["error"]["code"] == "websocket_not_supported"
        assert response.headers["Upgrade"] == "HTTP/1.1"


@pytest.mark.parametrize("session", [{}, {"x-session-id": "s"}])
async def test_it_does_so_with_and_without_a_session(session: dict[str, str]) -> None:
    async with echoing(process_request=rejected(status=HTTPStatus.NOT_FOUND)) as upstream:
        response = await refusal_of(url_of(upstream), "/v1/responses", additional_headers=session)
    assert response.status_code == 426


@case(Section.GATEWAY, "a websocket, and the server that `create_gateway` runs on has none", "426 at once")
async def test_a_server_without_websockets_says_so_at_once() -> None:
    with serve_app(create_gateway(f"http://127.0.0.1:{free_port()}"), ws="none") as url:
        connecting = connect(url.replace("http", "ws"), proxy=None)
        with pytest.raises(InvalidStatus) as raised:
            await connecting
    assert raised.value.response.status_code == 426
    assert raised.value.response.headers["Upgrade"] == "HTTP/1.1"


async def test_an_upstream_that_is_not_there_is_a_502() -> None:
    assert (await refusal_of(f"http://127.0.0.1:{free_port()}")).status_code == 502


async def test_an_upstream_that_says_nothing_to_the_handshake_is_a_504() -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_upstream(wait, switches=False) as upstream:
        assert (await refusal_of(upstream, read_seconds=0.2)).status_code == 504


OK_HEAD = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
ANSWERS = {
    "another proof": OK_HEAD + b"Sec-WebSocket-Accept: AAAA\r\n\r\n",
    "no proof": OK_HEAD + b"\r\n",
    "another protocol": b"HTTP/1.1 101 x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "no HTTP": b"\x00\x01\x02\r\n\r\n",
    "a status that is none": b"HTTP/1.1 700 x\r\nContent-Length: 0\r\n\r\n",
    "a refusal that breaks off": b"HTTP/1.1 400 x\r\nContent-Length: 10\r\n\r\nno",
    "a refusal without end": b"HTTP/1.1 400 x\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000,
    "a control character": b"HTTP/1.1 400 x\r\nA: \x01\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_that_can_not_be_passed_on_is_a_502(answer: bytes) -> None:
    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    async with raw_upstream(send, switches=False) as upstream:
        assert (await refusal_of(upstream)).status_code == 502


async def test_a_subprotocol_that_was_not_offered_is_a_502() -> None:
    def answer(connection: ServerConnection, request: Request, response: Response) -> None:
        response.headers["Sec-WebSocket-Protocol"] = "c"

    async with echoing(process_response=answer) as upstream:
        assert (await refusal_of(url_of(upstream), subprotocols=["a"])).status_code == 502


DRIP = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n: \n\r\n"


@case(Section.GATEWAY, "the upstream refuses a websocket by an answer that does not end within 10 s", "504")
async def test_a_refusal_that_goes_on_is_a_504(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_REFUSAL_SECONDS", 0.05)
    gone = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(DRIP)
        await reader.read()
        gone.set()

    async with raw_upstream(drip, switches=False) as upstream:
        assert (await refusal_of(upstream)).status_code == 504
        async with asyncio.timeout(5):
            await gone.wait()


async def test_nothing_is_left_when_a_client_leaves_while_its_refusal_comes() -> None:
    gone = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(DRIP)
        await asyncio.sleep(0.05)  # for the gateway to have read that
        client.received.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await reader.read()
        gone.set()

    client = Client()
    async with raw_upstream(drip, switches=False) as upstream:
        app = create_gateway(upstream)
        async with asyncio.timeout(5):
            await app(websocket_scope(), client.received.get, client.send)
            await gone.wait()
        assert client.sent == []
        await app.aclose()


# The end


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(("code", "reason"), [(1000, "done"), (1001, ""), (1013, "later"), (4999, "r" * 123)])
@case(Section.GATEWAY, "one side closes a websocket", "the other side gets its code and its reason")
async def test_a_close_reaches_the_other_side(server: str, code: int, reason: str) -> None:
    closed: list[tuple[int | None, str | None]] = []

    async def serve_and_close(connection: ServerConnection) -> None:
        if await connection.recv() == "close":
            await connection.close(code, reason)
        await connection.wait_closed()
        closed.append((connection.close_code, connection.close_reason))

    async with echoing(serve_and_close) as upstream:
        async with proxied(url_of(upstream), server=server) as client:
            await client.send("close")
            assert await closing_of(client) == (code, reason)
        async with proxied(url_of(upstream), server=server) as client:
            await client.send("stay")
            await client.close(code, reason)
        await until(lambda: closed == [(code, reason)] * 2)


async def test_a_close_without_a_code_is_one_without_a_code() -> None:
    closed: list[int | None] = []

    async def wait(connection: ServerConnection) -> None:
        await connection.wait_closed()
        closed.append(connection.close_code)

    async with echoing(wait) as upstream, proxied(url_of(upstream)) as client:
        client.protocol.send_close()
        client.transport.write(b"".join(client.protocol.data_to_send()))
        await client.wait_closed()
        await until(lambda: closed == [1005])


async def test_a_close_of_the_upstream_without_a_code_is_a_normal_one() -> None:
    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x88\x00")
        assert await reader.readexactly(2) == b"\x88\x80"  # which is answered in kind

    async with raw_upstream(end) as upstream, proxied(upstream) as client:
        assert (await closing_of(client))[0] == 1000


BREAKS = {"a reset": b"", "a frame that is none": b"\x83\x01x", "text that is none": b"\x81\x02\xff\xff"}


@pytest.mark.parametrize("sent", BREAKS.values(), ids=BREAKS)
@case(Section.GATEWAY, "the upstream of a websocket breaks off, or breaks the protocol", "1011")
async def test_an_upstream_that_breaks_off_is_told_as_1011(sent: bytes) -> None:
    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x81\x02hi" + sent)
        await writer.drain()
        if not sent:
            await reader.readexactly(1)
            writer.transport.abort()
        await reader.read()

    async with raw_upstream(end) as upstream, proxied(upstream) as client:
        assert await client.recv() == "hi"
        with contextlib.suppress(ConnectionClosed):
            await client.send("x")
        assert (await closing_of(client))[0] == 1011


async def test_nothing_is_left_when_a_client_leaves_in_the_handshake() -> None:
    gone = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        gone.set()

    async with raw_upstream(wait, switches=False) as upstream:
        with serve_app(create_gateway(upstream), **AS_IT_IS) as url:
            with pytest.raises((TimeoutError, InvalidHandshake)):
                async with connect(url.replace("http", "ws"), proxy=None, open_timeout=0.3):
                    pass
            async with asyncio.timeout(5):
                await gone.wait()


async def test_nothing_is_left_when_a_client_leaves_while_the_upstream_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket, "_CLOSE_SECONDS", 0.1)
    reads, gone = asyncio.Event(), asyncio.Event()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await reads.wait()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(ConnectionError):
            while await reader.read(2**20):
                pass
        gone.set()

    async with raw_upstream(stall) as upstream, proxied(upstream) as client:
        for _ in range(2):
            await client.send(b"x" * MAX_MESSAGE_BYTES)
        client.transport.abort()
        await client.wait_closed()
        reads.set()
        async with asyncio.timeout(5):
            await gone.wait()


@case(
    Section.GATEWAY,
    "the upstream of a websocket takes no message within `gateway.read_timeout_seconds`",
    "1011",
)
@pytest.mark.parametrize("messages", [1, 2])
async def test_an_upstream_that_takes_no_message_is_given_up(messages: int) -> None:
    gone = asyncio.Event()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await gone.wait()

    async with raw_upstream(stall) as upstream, proxied(upstream, read_seconds=0.3) as client:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(messages):
                await client.send(b"x" * MAX_MESSAGE_BYTES)
        assert await closing_of(client) == (1011, "the upstream takes no message")
        gone.set()


async def test_an_upstream_that_does_not_answer_a_close_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_CLOSE_SECONDS", 0.1)
    gone = asyncio.Event()

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        gone.set()

    async with raw_upstream(ignore) as upstream, proxied(upstream) as client:
        await client.close()
        async with asyncio.timeout(5):
            await gone.wait()


async def test_a_client_that_leaves_while_the_upstream_sends_ends_it() -> None:
    closed = asyncio.Event()

    async def flood(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await connection.send(b"x" * 2**16)
        closed.set()

    async with echoing(flood) as upstream, proxied(url_of(upstream)) as client:
        await client.recv()
        client.transport.abort()
        async with asyncio.timeout(5):
            await closed.wait()


async def test_pings_are_answered_and_the_upstream_gets_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_SECONDS", 0.01)
    monkeypatch.setattr(websocket, "_CLOSE_SECONDS", 0.1)
    seen = asyncio.Event()

    async def pinged(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x89\x02yo\x8a\x01!\x81\x02hi")
        heads: set[int] = set()
        while len(heads) < 2:
            head = await reader.readexactly(6)
            heads.add(head[0])
            await reader.readexactly(head[1] & 0x7F)
        assert heads == {0x8A, 0x89}  # a pong, and pings
        seen.set()
        await reader.read()

    async with raw_upstream(pinged) as upstream, proxied(upstream) as client:
        assert await client.recv() == "hi"
        async with asyncio.timeout(5):
            await seen.wait()


# Pins


@pytest.mark.parametrize("server", SERVERS)
async def test_the_turns_of_a_socket_stay_on_one_model(server: str) -> None:
    asked: list[str] = []

    async def answer(connection: ServerConnection) -> None:
        async for message in connection:
            asked.append(json.loads(message)["model"])
            model = f"model-{len(asked)}" if asked[-1] == "auto" else asked[-1]
            for kind in ("response.created", "response.output_text.delta", "response.completed"):
                await connection.send(json.dumps({"type": kind, "response": {"model": model}}))

    session = {"x-session-id": "s"}
    async with (
        echoing(answer) as upstream,
        proxied(url_of(upstream), "/v1/responses", server=server, additional_headers=session) as client,
    ):
        assert client.response is not None
        assert client.response.headers["x-session-pin-status"] == "websocket"
        for _ in range(3):
            await client.send(json.dumps({"type": "response.create", "model": "auto", "input": "hi"}))
            assert {json.loads(await client.recv())["response"]["model"] for _ in range(3)} == {"model-1"}
    assert asked == ["auto", "model-1", "model-1"]


# Servers of other manners


def websocket_scope(upstream_path: str = "/v1/realtime", **more: Any) -> dict[str, Any]:
    return {
        "type": "websocket",
        "path": upstream_path,
        "raw_path": upstream_path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"test")],
        **more,
    }


class Client:
    """A hand-made server side."""

    def __init__(self, *received: Message) -> None:
        self.received: asyncio.Queue[Message] = asyncio.Queue()
        for message in ({"type": "websocket.connect"}, *received):
            self.received.put_nowait(message)
        self.sent: list[Message] = []
        self.raises: Exception | None = None

    async def send(self, message: Message) -> None:
        if self.raises is not None:
            raise self.raises
        self.sent.append(message)


async def test_without_the_extension_a_refusal_is_a_close() -> None:
    client = Client()
    app = create_gateway(f"http://127.0.0.1:{free_port()}")
    await app(websocket_scope(), client.received.get, client.send)
    assert client.sent == [{"type": "websocket.close", "code": 1011, "reason": ""}]


async def test_a_handshake_that_can_not_be_sent_is_a_400() -> None:
    client = Client()
    scope = websocket_scope(headers=[(b"a b", b"")], extensions={"websocket.http.response": {}})
    await create_gateway("http://127.0.0.1:9")(scope, client.received.get, client.send)
    assert client.sent[0]["status"] == 400


async def test_a_server_that_raises_where_the_client_has_left_is_taken_for_that() -> None:
    """ASGI 2.4: `send` raises an OSError."""
    closed: list[int | None] = []

    async def send(connection: ServerConnection) -> None:
        for _ in range(3):
            await connection.send("x")
        await connection.wait_closed()
        closed.append(connection.close_code)

    async with echoing(send) as upstream:
        client = Client()
        app = create_gateway(url_of(upstream))
        running = asyncio.create_task(app(websocket_scope(), client.received.get, client.send))
        await until(lambda: len(client.sent) == 4)
        client.raises = OSError()
        client.received.put_nowait({"type": "websocket.disconnect", "code": 1001})
        await running
        await until(lambda: closed == [1001])
        await app.aclose()


async def test_when_the_upstream_closes_nobody_waits_for_the_client_any_longer() -> None:
    """granian gets its close out only then."""

    async def end(connection: ServerConnection) -> None:
        await connection.close(4001)

    waiting: list[bool] = []

    async def receive() -> Message:
        waiting.append(True)
        try:
            return await client.received.get()
        finally:
            waiting.pop()

    async with echoing(end) as upstream:
        client = Client()
        app = create_gateway(url_of(upstream))
        before: list[tuple[str, int]] = []

        async def send(message: Message) -> None:
            before.append((message["type"], len(waiting)))

        await app(websocket_scope(), receive, send)
        assert before == [("websocket.accept", 1), ("websocket.close", 0)]
        await app.aclose()


async def test_a_fault_of_the_server_comes_out_and_leaves_nothing() -> None:
    async with echoing() as upstream:
        client = Client()
        client_send = client.send

        async def send(message: Message) -> None:
            if message["type"] == "websocket.send":
                raise RuntimeError("a fault")
            await client_send(message)
            client.received.put_nowait({"type": "websocket.receive", "text": "x"})

        app = create_gateway(url_of(upstream))
        before = len(asyncio.all_tasks())
        scope: Scope = websocket_scope()
        with pytest.raises(RuntimeError, match="a fault"):
            await app(scope, client.received.get, send)
        assert len(asyncio.all_tasks()) <= before + 2  # the upstream's own
        await app.aclose()


@pytest.mark.parametrize("code", [1006, 1015])
async def test_where_the_client_is_cut_off_the_upstream_gets_no_close(code: int) -> None:
    rest: list[bytes] = []

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rest.append(await reader.read())

    async with raw_upstream(read) as upstream:
        client = Client()
        app = create_gateway(upstream)
        running = asyncio.create_task(app(websocket_scope(), client.received.get, client.send))
        await until(lambda: bool(client.sent))
        client.received.put_nowait({"type": "websocket.disconnect", "code": code})
        async with asyncio.timeout(10):
            await running
        await until(lambda: rest == [b""])
        await app.aclose()


async def test_an_answer_that_comes_as_the_request_is_cancelled_is_closed() -> None:
    class Answered:
        """An upstream whose answer is there in the very moment in which the request ends."""

        def __init__(self) -> None:
            self.closed = 0

        async def ask(self, *_: Any) -> tuple[Any, list[Any]]:
            await asyncio.sleep(0)
            running.cancel()
            return self, []

        def close(self) -> None:
            self.closed += 1

    upstream: Any = Answered()
    client = Client()
    relay = WebSocketRelay(upstream, None, websocket_scope(), client.received.get, client.send)
    running = asyncio.create_task(relay.run())
    with pytest.raises(asyncio.CancelledError):
        await running
    assert upstream.closed == 1
    assert client.sent == []
