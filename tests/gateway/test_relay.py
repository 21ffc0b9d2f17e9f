"""One request through the reverse proxy, with a client that is driven by hand and a real upstream."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message, Scope

from asgi_driver import Answer, Header, body_messages, http_scope, receive_from
from asgi_session_pin import Gateway
from asgi_session_pin.gateway.proxy import ReverseProxy
from asgi_session_pin.gateway.relay import UpstreamBroke
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


@case(
    Section.GATEWAY,
    "the upstream takes no piece of the request within `gateway.read_timeout_seconds`",
    "504, or the connection is cut if its answer had begun",
)
@pytest.mark.parametrize("has_begun", [False, True])
async def test_an_upstream_that_does_not_read_is_given_up(has_begun: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        if has_begun:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            while not is_over.is_set():
                writer.write(b"1\r\nx\r\n")  # so that it is not silent
                await asyncio.sleep(0.05)
        await is_over.wait()

    is_over = asyncio.Event()
    messages = [{"type": "http.request", "body": b"x" * 1_000_000, "more_body": True}] * 30
    async with proxy_to(serve, read_timeout_seconds=0.3) as proxy:
        try:
            if has_begun:
                with pytest.raises(UpstreamBroke):
                    await run(proxy, post(CHUNKED), *messages)
            else:
                assert (await run(proxy, post(CHUNKED), *messages)).start["status"] == 504
        finally:
            is_over.set()


async def test_a_client_that_leaves_just_when_the_upstream_is_given_up_gives_it_up_once() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await is_over.wait()

    is_over = asyncio.Event()
    async with proxy_to(serve, read_timeout_seconds=0.05) as proxy:  # when one begins to look for the client
        answer = await run(proxy, post(CHUNKED), *body_messages(b"x" * 30_000_000), stays=False)
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
