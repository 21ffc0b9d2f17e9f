"""Connections to the upstream: when they are used again, and when not."""

import asyncio
import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest

from asgi_driver import http_scope, until
from asgi_session_pin import Gateway
from asgi_session_pin.gateway.connections import UpstreamConnection
from asgi_session_pin.gateway.upstream import Upstream
from asgi_session_pin.wire.url import read_upstream
from behaviour_document import Section, case
from servers import free_port
from tcp_servers import tcp_server

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
EVIL = b"HTTP/1.1 200 OK\r\nset-cookie: of=another\r\ncontent-length: 4\r\n\r\nevil"

Answer = Callable[[asyncio.StreamWriter, int], object]


class Served:
    """An upstream that answers each request by hand, and the connections that it has seen."""

    def __init__(self, answer: Answer) -> None:
        self.connections = 0
        self.open = 0
        self.requests: list[bytes] = []
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                result = self._answer(writer, len(self.requests))
                if asyncio.iscoroutine(result):
                    await result
        finally:
            self.open -= 1


@contextlib.asynccontextmanager
async def upstream_that(answer: Answer, **settings: float) -> AsyncIterator[tuple[Upstream, Served]]:
    served = Served(answer)
    async with tcp_server(served.serve) as port:
        upstream = Upstream(read_upstream(f"http://127.0.0.1:{port}"), Gateway(**settings))  # type: ignore[arg-type]
        try:
            yield upstream, served
        finally:
            await upstream.aclose()


async def ask(upstream: Upstream, method: str = "GET") -> tuple[int, bytes]:
    answer, _ = await upstream.ask(http_scope(method=method, path="/"), None)
    try:
        return answer.status, await answer.content.read()
    finally:
        answer.close()


def say(*pieces: bytes) -> Answer:
    """Answer each request with the same pieces, and a pause between them."""

    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.02)

    return answer


REUSABLE = {
    "a length": (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody",),
    "a length, piece by piece": (b"HTTP/1.1 200 OK\r\ncontent-le", b"ngth: 4\r\n\r\nbo", b"dy"),
    "chunks": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"4\r\nbody\r\n0\r\n\r\n"),
    "after hints": (b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody",),
    "bare line feeds": (b"HTTP/1.1 200 OK\ncontent-length: 4\n\n", b"body"),
}


@pytest.mark.parametrize("framing", REUSABLE)
async def test_a_connection_is_used_again_after_an_answer_that_was_whole(framing: str) -> None:
    async with upstream_that(say(*REUSABLE[framing])) as (upstream, served):
        assert [await ask(upstream) for _ in range(3)] == [(200, b"body")] * 3
        assert served.connections == 1


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\n\r\n"),
        ("GET", b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
    ],
)
async def test_a_connection_is_used_again_after_an_answer_without_a_body(method: str, head: bytes) -> None:
    async with upstream_that(say(head)) as (upstream, served):
        assert [(await ask(upstream, method))[1] for _ in range(3)] == [b""] * 3
        assert served.connections == 1


@case(
    Section.GATEWAY,
    "the upstream sends more than its answer, at once or later, a whole answer or a part of one",
    "the answer alone; what is beyond is nobody's, and the connection is closed",
)
@pytest.mark.parametrize(
    "beyond", [b"the end of a text", EVIL, EVIL[:20], EVIL * 2, b"HTTP/1.1 100 Continue\r\n\r\n" + EVIL]
)
@pytest.mark.parametrize("pause", [False, True])
@pytest.mark.parametrize(
    "whole",
    [OK, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"HTTP/1.1 204 None\r\n\r\n"],
)
async def test_what_is_beyond_an_answer_is_nobodys(beyond: bytes, pause: bool, whole: bytes) -> None:
    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        if number > 1:
            return writer.write(OK)
        writer.write(whole if pause else whole + beyond)
        if pause:
            await asyncio.sleep(0.02)
            writer.write(beyond)

    async with upstream_that(answer) as (upstream, served):
        assert (await ask(upstream))[1] == (b"" if b" 204 " in whole else b"ok")
        await until(lambda: not served.open)
        assert await ask(upstream) == (200, b"ok")
        assert served.connections == 2


async def test_what_is_beyond_a_body_that_comes_by_itself_is_nobodys() -> None:
    async with upstream_that(say(OK[:-2], b"ok" + EVIL[:20])) as (upstream, served):
        assert [await ask(upstream) for _ in range(2)] == [(200, b"ok")] * 2
        assert served.connections == 2


@case(
    Section.GATEWAY,
    "the upstream answers with a 5xx",
    "that answer; the connection is closed, as the upstream may be about to do",
)
@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops",),
        (b"HTTP/1.1 503 Oops\r\ncontent-length: 4\r\n\r\n", b"oops"),
        (b"HTTP/1.1 599 Oops\r\ncontent-length: 0\r\n\r\n",),
    ],
)
async def test_a_connection_is_not_used_again_after_a_server_error(pieces: tuple[bytes, ...]) -> None:
    async with upstream_that(say(*pieces)) as (upstream, served):
        for _ in range(3):
            status, body = await ask(upstream)
            assert status >= 500
            assert body in (b"oops", b"")
        assert served.connections == 3


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        (OK, 1),
        (OK + b"XX", 3),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 1),
        (b"HTTP/1.1 503 Oops\r\ncontent-length: 2\r\n\r\nok", 3),
        (b"HTTP/1.1 503 Oops\r\ncontent-length: 0\r\n\r\n", 3),
    ],
)
async def test_a_head_whose_end_is_cut_in_two_is_a_head(cut: int, answer: bytes, connections: int) -> None:
    end = answer.index(b"\r\n\r\n") + cut
    async with upstream_that(say(answer[:end], answer[end:])) as (upstream, served):
        for _ in range(3):
            assert (await ask(upstream))[1] in (b"ok", b"")
        assert served.connections == connections


async def test_a_head_that_comes_byte_by_byte_is_a_head() -> None:
    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        for byte in b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.001)

    async with upstream_that(answer) as (upstream, served):
        assert [await ask(upstream) for _ in range(2)] == [(200, b"ok")] * 2
        assert served.connections == 1


@pytest.mark.parametrize("status", [200, 503])
async def test_a_connection_is_not_used_again_where_the_end_of_a_head_could_not_be_seen(status: int) -> None:
    async with upstream_that(say(b"HTTP/1.1 %d X\ncontent-length: 2\n\nok" % status)) as (upstream, served):
        assert [await ask(upstream) for _ in range(2)] == [(status, b"ok")] * 2
        assert served.connections == 2


BROKEN = {
    "a chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"no size\r\n"),
    "a chunk in one piece": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno size\r\n",),
    "a status line": (b"what\r\n\r\n",),
    "a head": (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\nbody",),
    "a switch of protocols": (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",),
    "a control character": (b"HTTP/1.1 200 OK\r\na: \x01\r\ncontent-length: 9\r\n\r\n",),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_connection_is_not_used_again_after_a_broken_answer(what: str) -> None:
    async with upstream_that(say(*BROKEN[what])) as (upstream, served):
        for _ in range(2):
            with pytest.raises(aiohttp.ClientError):
                await ask(upstream)
        assert served.connections == 2


async def test_an_answer_to_the_end_of_the_connection_that_is_reset_is_broken() -> None:
    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await asyncio.sleep(0.02)
        if number == 1:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.close()

    async with upstream_that(answer) as (upstream, _):
        with pytest.raises(aiohttp.ClientPayloadError):
            await ask(upstream)
        assert await ask(upstream) == (200, b"half")


async def test_words_before_anything_was_asked_end_the_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVIL)
        await writer.drain()

    async with tcp_server(serve) as port:
        upstream = Upstream(read_upstream(f"http://127.0.0.1:{port}"), Gateway())
        bodies = []
        for _ in range(2):
            with contextlib.suppress(aiohttp.ClientError):
                bodies.append((await ask(upstream))[1])
        await upstream.aclose()
    assert bodies in ([], [b"evil"], [b"evil"] * 2)  # it is the answer, if it comes after the question


async def test_an_answer_that_the_client_takes_slowly_is_whole() -> None:
    size = 2_000_000
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size
    async with upstream_that(say(head + b"x" * size)) as (upstream, _):
        answer, _ = await upstream.ask(http_scope(method="GET", path="/"), None)
        got = 0
        while piece := await answer.content.readany():
            got += len(piece)
            await asyncio.sleep(0.002)
        assert got == size
        assert (await ask(upstream))[1] == b"x" * size


@case(
    Section.GATEWAY,
    "a connection to the upstream is idle for `gateway.keepalive_seconds`",
    "it is closed within one second more, also after a burst",
)
async def test_idle_connections_are_closed_in_time() -> None:
    async with upstream_that(say(OK), keepalive_seconds=1.5) as (upstream, served):
        await ask(upstream)
        await asyncio.sleep(0.1)
        assert await asyncio.gather(*(ask(upstream) for _ in range(20))) == [(200, b"ok")] * 20
        assert served.open > 1
        await asyncio.sleep(2.5)
        assert served.open == 0
        await asyncio.sleep(1)  # nothing is looked after any more, until there is a connection again
        assert await ask(upstream) == (200, b"ok")


@case(
    Section.GATEWAY,
    "the upstream has closed an idle connection, which a busy gateway has not come to see yet",
    "another connection is made",
)
@pytest.mark.parametrize("has_poll", [True, False])
async def test_a_connection_whose_end_was_not_seen_yet_is_not_used_again(
    has_poll: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_poll:  # as on Windows
        monkeypatch.delattr(select, "poll")
    accepted = 0

    def serve(listener: socket.socket) -> None:
        nonlocal accepted
        for _ in range(2):
            connection, _ = listener.accept()
            accepted += 1
            with connection:
                connection.recv(65_536)
                connection.sendall(OK)
                may_close.wait(20)

    may_close = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,), daemon=True)
        server.start()
        upstream = Upstream(read_upstream(f"http://127.0.0.1:{listener.getsockname()[1]}"), Gateway())
        assert await ask(upstream) == (200, b"ok")
        may_close.set()
        time.sleep(0.1)  # noqa: ASYNC251 # the event loop is busy
        assert await ask(upstream) == (200, b"ok")
        assert accepted == 2
        await upstream.aclose()
        server.join(20)


async def test_a_connection_that_cannot_be_made_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0
    connect = aiohttp.TCPConnector.connect

    async def fail_first(*arguments: object) -> object:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise TimeoutError
        return await connect(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", fail_first)
    async with upstream_that(say(OK)) as (upstream, _):
        assert await ask(upstream) == (200, b"ok")
    tries = 0
    upstream = Upstream(read_upstream(f"http://127.0.0.1:{free_port()}"), Gateway())
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask(upstream)
    await upstream.aclose()
    assert tries == 2


@pytest.mark.parametrize("broken", [1, 2])
async def test_a_connection_that_ends_before_it_is_used_is_replaced_once(
    monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    made: list[aiohttp.connector.Connection] = []
    connect = aiohttp.TCPConnector.connect

    async def connect_slowly(*arguments: object) -> object:
        made.append(await connect(*arguments))  # type: ignore[arg-type]
        if len(made) <= broken:
            assert made[-1].transport is not None
            made[-1].transport.abort()
            await until(lambda: made[-1].transport is None)
        return made[-1]

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect_slowly)
    async with upstream_that(say(OK)) as (upstream, served):
        if broken == 1:
            assert await ask(upstream) == (200, b"ok")
            assert len(served.requests) == 1
        else:
            with pytest.raises(aiohttp.ClientConnectionError, match="ended before the request"):
                await ask(upstream)
    assert len(made) == 2


async def test_a_connection_that_had_no_request_yet_is_not_idle_for_too_long() -> None:
    loop = asyncio.get_running_loop()
    assert not UpstreamConnection(set(), loop).is_stale(loop.time() + 3600)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_request_that_was_sent_is_not_sent_again(method: str) -> None:
    def answer(writer: asyncio.StreamWriter, number: int) -> None:
        if number == 1:
            writer.write(OK)
        else:
            writer.close()

    async with upstream_that(answer) as (upstream, served):
        await ask(upstream)
        with pytest.raises(aiohttp.ClientError):
            await ask(upstream, method)
        assert len(served.requests) == 2


async def test_requests_wait_for_one_of_the_connections_where_these_are_limited() -> None:
    async with upstream_that(say(OK), max_connections=2) as (upstream, served):
        assert await asyncio.gather(*(ask(upstream) for _ in range(10))) == [(200, b"ok")] * 10
        assert served.connections == 2


async def test_a_head_may_be_large() -> None:
    lines = b"".join(b"x-%d: %s\r\n" % (number, b"v" * 1000) for number in range(500)) + b"y: " + b"v" * 100_000
    async with upstream_that(say(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\ncontent-length: 2\r\n\r\nok")) as (upstream, _):
        assert await ask(upstream) == (200, b"ok")


async def test_an_answer_that_is_given_up_ends_its_connection() -> None:
    async with upstream_that(say(b"HTTP/1.1 200 OK\r\n\r\nhalf")) as (upstream, served):
        answer, _ = await upstream.ask(http_scope(method="GET", path="/"), None)
        assert await answer.content.readany() == b"half"
        answer.close()
        answer.close()
        await asyncio.sleep(0.05)
        assert served.open == 0
        assert await answer.content.readany() == b"", "nobody waits for it"


async def test_a_connection_that_is_lost_while_the_body_is_sent_is_told() -> None:
    def reset(writer: asyncio.StreamWriter, number: int) -> None:
        writer.transport.abort()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65_536
            await asyncio.sleep(0)

    async with upstream_that(reset) as (upstream, _):
        with pytest.raises((aiohttp.ClientError, OSError)):
            await upstream.ask(http_scope(path="/"), endless())


async def test_an_upstream_that_does_not_take_the_end_of_a_body_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[aiohttp.connector.Connection] = []
    connect = aiohttp.TCPConnector.connect

    async def remember(*arguments: object) -> object:
        made.append(await connect(*arguments))  # type: ignore[arg-type]
        return made[-1]

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        assert made[0].protocol is not None
        made[0].protocol.pause_writing()  # as the transport does where it has too much to send

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", remember)
    async with upstream_that(say(), read_timeout_seconds=0.05) as (upstream, _):
        with pytest.raises(TimeoutError):
            await upstream.ask(http_scope(path="/"), body())
