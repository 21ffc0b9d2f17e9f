"""One request through the reverse proxy, with a client that is driven by hand and a real upstream."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message, Scope

from asgi_driver import Answer, Header, body_messages, http_scope, receive_from
from asgi_session_pin import Gateway
from asgi_session_pin.gateway.proxy import ReverseProxy
from behaviour_document import Section, case
from tcp_servers import Serve, tcp_server

CHUNKED: Header = (b"transfer-encoding", b"chunked")


@contextlib.asynccontextmanager
async def proxy_to(serve: Serve, **settings: float) -> AsyncIterator[ReverseProxy]:
    async with tcp_server(serve) as port:
        proxy = ReverseProxy(f"http://127.0.0.1:{port}", Gateway(**settings))  # type: ignore[arg-type]
        yield proxy
        await proxy.aclose()


def post(*headers: Header) -> Scope:
    return http_scope(*headers, path="/")


async def run(proxy: ReverseProxy, scope: Scope, *messages: Message, stays: bool = True) -> Answer:
    answer = Answer()

    async def send(message: Message) -> None:
        answer.messages.append(message)

    await proxy(scope, receive_from(messages, asyncio.Event() if stays else None), send)
    return answer


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body


async def test_a_body_streams_in_pieces_and_arrives_whole() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        bodies.append(await read_chunks(reader))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    bodies: list[bytes] = []
    async with proxy_to(serve, read_timeout_seconds=5) as proxy:
        answer = await run(proxy, post(CHUNKED), *body_messages(b"one", b"", b"two", b"x" * 100_000, b""))
    assert (answer.start["status"], answer.body) == (200, b"ok")
    assert bodies == [b"onetwo" + b"x" * 100_000]


@pytest.mark.parametrize(("length", "status"), [(b"6", 200), (b"4", 200), (b"9", 502)])
async def test_a_body_that_streams_is_as_long_as_it_says(length: bytes, status: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        bodies.append(await reader.readexactly(int(length)))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        bodies.append(await reader.read())

    bodies: list[bytes] = []
    async with proxy_to(serve) as proxy:
        answer = await run(proxy, post((b"content-length", length)), *body_messages(b"one", b"two"))
        assert answer.start["status"] == status
    assert bodies == ([b"onetwo"[: int(length)], b""] if status == 200 else [])


async def test_a_large_body_in_one_message_arrives_whole() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        sizes.append(len(await reader.readexactly(3_000_000)))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    sizes: list[int] = []
    async with proxy_to(serve) as proxy:
        await run(proxy, post((b"content-length", b"3000000")), *body_messages(b"x" * 3_000_000))
    assert sizes == [3_000_000]


async def test_an_early_answer_ends_what_is_still_to_be_sent() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await reader.read()

    async with proxy_to(serve) as proxy:
        answer = await run(proxy, post(CHUNKED), {"type": "http.request", "body": b"half", "more_body": True})
        assert (answer.start["status"], answer.body) == (413, b"no")


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_client_that_leaves_while_it_sends_ends_the_request(has_begun: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if has_begun:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
        ends.append(await reader.read())

    ends: list[bytes] = []
    messages: list[Message] = [{"type": "http.request", "body": b"half", "more_body": True}]
    async with proxy_to(serve) as proxy:
        answer = await run(proxy, post(CHUNKED), *messages, stays=False)
        assert not any(message["type"].endswith(".body") and not message["more_body"] for message in answer.messages)
    assert len(ends) == 1
    assert not ends[0].endswith(b"0\r\n\r\n"), "half a body is not told to be whole"


async def test_a_client_that_left_before_its_body_came_asks_nothing() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise AssertionError

    async with proxy_to(serve) as proxy:
        assert (await run(proxy, post(CHUNKED), stays=False)).messages == []


class LoopClock:
    """Puts the clock of the event loop that runs ahead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        loop = asyncio.get_running_loop()
        tell = loop.time
        monkeypatch.setattr(loop, "time", lambda: tell() + self.ahead)


async def do_not_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.pause_reading()  # type: ignore[attr-defined]


@case(
    Section.GATEWAY,
    "the upstream takes no piece of the request within `gateway.read_timeout_seconds`",
    "504, if its answer has not begun",
)
async def test_an_upstream_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await do_not_read(reader, writer)
        clock.ahead += 1000
        await is_over.wait()

    clock, is_over = LoopClock(monkeypatch), asyncio.Event()
    messages = [{"type": "http.request", "body": b"x" * 1_000_000, "more_body": True}] * 30
    async with proxy_to(serve, read_timeout_seconds=600) as proxy:
        async with asyncio.timeout(5000):
            answer = await run(proxy, post(CHUNKED), *messages)
        is_over.set()
    assert answer.start["status"] == 504


async def test_an_upstream_that_takes_a_large_piece_slowly_has_the_time_anew_for_each_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        left = size
        while left:
            taken = len(await reader.read(65_536))
            left -= taken
            clock.ahead += taken / 40_000  # of what is on the way, several megabytes, a part of the time
            await asyncio.sleep(0)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    clock, size = LoopClock(monkeypatch), 40_000_000
    async with proxy_to(serve, read_timeout_seconds=600) as proxy:
        answer = await run(proxy, post((b"content-length", b"%d" % size)), *body_messages(b"x" * size))
    assert (answer.start["status"], answer.body) == (200, b"ok")
    assert clock.ahead >= 1000


@pytest.mark.parametrize("how", ["an early answer", "a reset"])
async def test_a_piece_that_was_not_taken_stops_nothing_after_its_request(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await do_not_read(reader, writer)
        if how == "a reset":
            return writer.transport.abort()
        writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\nno")
        await is_over.wait()

    clock, is_over = LoopClock(monkeypatch), asyncio.Event()
    async with proxy_to(serve, read_timeout_seconds=600) as proxy:
        answer = await run(proxy, post((b"content-length", b"8000000")), *body_messages(b"x" * 8_000_000))
        clock.ahead += 1000
        await asyncio.sleep(0.01)  # what the middleware does then in this task, another call for example
        is_over.set()
    assert answer.start["status"] == (503 if how == "an early answer" else 502)


async def test_a_receive_that_takes_its_cancellation_for_the_clients_end_stops_nothing_after_its_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        clock.ahead += 1
        await is_watched.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async def receive() -> Message:
        is_watched.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        ended.append("receive")
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    clock, is_watched, ended = LoopClock(monkeypatch), asyncio.Event(), list[str]()
    async with proxy_to(serve) as proxy:
        await proxy(http_scope(method="GET", path="/"), receive, send)
        await asyncio.sleep(0.01)
    assert ended == ["receive"]


class Stream:
    """An upstream that sends a piece of its answer for each that the client gets, and does not read in the meantime."""

    def __init__(self, clock: LoopClock, pieces: int) -> None:
        self.ended = False
        self.taken = 0
        self._clock = clock
        self._pieces = pieces
        self._may_go_on = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await do_not_read(reader, writer)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(self._pieces):
            writer.write(b"1\r\nx\r\n")
            await self._may_go_on.wait()
            self._may_go_on.clear()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(TimeoutError):
            while not self.ended:
                self.taken += len(await asyncio.wait_for(reader.read(1_000_000), 0.05))
                self.ended = reader.at_eof()
        writer.write(b"0\r\n\r\n")

    def go_on(self) -> None:
        self._clock.ahead += 400
        self._may_go_on.set()


@case(
    Section.GATEWAY,
    "the upstream answers, and takes nothing more of the request",
    "its answer goes on; what the client had not sent within `gateway.read_timeout_seconds` is left",
)
@pytest.mark.parametrize("is_whole", [True, False])
async def test_an_answer_goes_on_while_the_request_is_not_taken(
    is_whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def send(message: Message) -> None:
        answer.messages.append(message)
        if message.get("body"):
            stream.go_on()

    answer, stream = Answer(), Stream(LoopClock(monkeypatch), 8)
    messages = body_messages(b"x" * 30_000_000) if is_whole else body_messages(*[b"x" * 1_000_000] * 30)
    async with proxy_to(stream.serve, read_timeout_seconds=600) as proxy:
        await proxy(post((b"content-length", b"30000000")), receive_from(messages, asyncio.Event()), send)
    assert (answer.start["status"], answer.body) == (200, b"x" * 8)
    assert answer.messages[-1]["more_body"] is False
    assert not stream.ended
    assert (stream.taken == 30_000_000) is is_whole


async def test_a_client_that_leaves_before_the_upstream_took_its_request_ends_an_answer_that_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def send(message: Message) -> None:
        answer.messages.append(message)
        if message.get("body"):
            stream.go_on()

    answer, stream = Answer(), Stream(LoopClock(monkeypatch), 1_000)
    messages = [{"type": "http.request", "body": b"x" * 1_000_000, "more_body": True}] * 30
    async with proxy_to(stream.serve, read_timeout_seconds=600) as proxy:
        await proxy(post(CHUNKED), receive_from(messages), send)
    assert 1 < len(answer.messages) < 100
    assert answer.messages[-1]["more_body"] is True


async def test_a_client_that_leaves_just_when_the_upstream_is_given_up_gives_it_up_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await do_not_read(reader, writer)
        clock.ahead += 1
        await is_watched.wait()
        asyncio.get_running_loop().call_later(500, leaves.set)
        clock.ahead += 1000  # in the same round of the event loop, and first
        await is_over.wait()

    async def receive() -> Message:
        if messages:
            return messages.pop()
        is_watched.set()
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        answer.messages.append(message)

    clock, answer, messages = LoopClock(monkeypatch), Answer(), body_messages(b"x" * 30_000_000)
    is_watched, leaves, is_over = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with proxy_to(serve, read_timeout_seconds=600) as proxy:
        await proxy(post((b"content-length", b"30000000")), receive, send)
        is_over.set()
    assert answer.start["status"] == 504


async def test_a_cancellation_from_outside_is_none_of_ours() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with proxy_to(serve) as proxy:
        asking = asyncio.create_task(run(proxy, post(), *body_messages(b"")))
        await asyncio.sleep(0.1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_what_fails_at_the_clients_side_is_not_the_upstreams() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
        await reader.read()

    async def send(message: Message) -> None:
        raise OSError("the client is gone")

    async with proxy_to(serve) as proxy:
        with pytest.raises(OSError, match="the client is gone"):
            await proxy(post(), receive_from(body_messages(b""), asyncio.Event()), send)
