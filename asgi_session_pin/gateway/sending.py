"""One request and its answer on a connection to the upstream."""

import asyncio
import re
from collections.abc import AsyncIterable
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import StreamWriter
from aiohttp.http_exceptions import HttpProcessingError

from ..wire.headers import NAME, Headers

Body = bytes | AsyncIterable[bytes | memoryview] | None

_is_method = re.compile(NAME.encode()).fullmatch
_find_in_target = re.compile(rb"[\x00-\x20\x7f]").search
_find_in_values = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search


class Request:
    """A request as it is sent; *upgrades*: it offers to switch protocols. Raises ValueError for what can't be sent."""

    def __init__(self, method: bytes, target: bytes, headers: Headers, body: Body, *, upgrades: bool = False) -> None:
        self.body = body
        self.upgrades = upgrades
        self.length: int | None = None  # of a body that streams; None: in chunks
        if body is not None:
            headers = self._framed(headers)
        values = b"".join([value for _, value in headers])
        if not _is_method(method) or _find_in_target(target) or _find_in_values(values):
            raise ValueError("there are characters in the head that can't be")
        lines = [b"%s %s HTTP/1.1" % (method, target), *map(b": ".join, headers), b"\r\n"]
        self.head = b"\r\n".join(lines)
        self.is_head = method == b"HEAD"

    def _framed(self, headers: Headers) -> Headers:
        at = next((number for number, (name, _) in enumerate(headers) if name == b"content-length"), None)
        if isinstance(self.body, bytes):
            framing = (b"content-length", b"%d" % len(self.body))
        elif at is not None:
            self.length = read_length(headers[at][1])
            return headers
        else:
            framing = (b"transfer-encoding", b"chunked")
        return [*headers, framing] if at is None else [*headers[:at], framing, *headers[at + 1 :]]


def read_length(value: bytes) -> int:
    """Return a content-length. Raises ValueError for what is none."""
    if not value.isdigit():
        raise ValueError("content-length: expected digits")
    return int(value)


class Answer:
    """The answer to a request, whose head is there. To be closed."""

    def __init__(self, connection: Connection, sending: "asyncio.Task[None] | None", head: Any, content: Any) -> None:
        self._connection: Connection | None = connection
        self._sending = sending
        self.status: int = head.code
        self.headers: tuple[tuple[bytes, bytes], ...] = head.raw_headers
        self.content: aiohttp.StreamReader = content
        if self.status != 101:
            content.on_eof(self._end)

    def take_connection(self) -> Connection:
        """Return the connection, for whoever goes on with it: the upstream has switched protocols."""
        connection, self._connection = self._connection, None
        assert connection is not None
        return connection

    def close(self) -> None:
        """Give the connection up, if the answer was not read to its end."""
        connection, self._connection = self._connection, None
        if connection is not None:
            _give_up(connection, self._sending)

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._sending is None or self._sending.done():
                connection.release()
            else:  # nobody waits for the rest
                _give_up(connection, self._sending)


async def send_request(connection: Connection, request: Request, **reading: Any) -> Answer:
    """Send a request, and return the answer. *reading*: how to read it, as of aiohttp's sessions.

    Raises ClientError and OSError.
    """
    protocol = connection.protocol
    assert protocol is not None
    sending: asyncio.Task[None] | None = None
    try:
        protocol.set_response_params(
            skip_payload=request.is_head, read_until_eof=True, auto_decompress=False, **reading
        )
        if protocol.transport is None:
            raise aiohttp.ClientConnectionError("the connection ended before the request")
        if request.body is None or isinstance(request.body, bytes):
            protocol.transport.write(request.head + (request.body or b""))
            protocol.start_timeout()
        else:
            protocol.transport.write(request.head)
            sending = asyncio.get_running_loop().create_task(_send(protocol, request.body, request.length))
        head, content = await protocol.read()
        while head.code < 200 and not (head.code == 101 and request.upgrades):
            if head.code == 101:
                raise aiohttp.ClientConnectionError("there was no offer to switch protocols")
            head, content = await protocol.read()
        return Answer(connection, sending, head, content)
    except HttpProcessingError as error:
        _give_up(connection, sending)
        raise aiohttp.ClientConnectionError from error
    except BaseException:
        _give_up(connection, sending)
        raise


async def _send(protocol: ResponseHandler, body: AsyncIterable[bytes | memoryview], length: int | None) -> None:
    writer = StreamWriter(protocol, asyncio.get_running_loop())
    writer.length = length
    if length is None:
        writer.enable_chunking()
    try:
        async for piece in body:
            await writer.write(piece)
        if writer.length:
            raise EOFError
        protocol.start_timeout()  # also for what of the body is not taken yet
        await writer.write_eof()
    except OSError:
        pass  # the connection is lost, which is told where the answer is awaited
    except Exception as error:
        protocol.set_exception(aiohttp.ClientConnectionError("the request was not sent to its end"), error)


def _give_up(connection: Connection, sending: "asyncio.Task[None] | None") -> None:
    if sending is not None:
        sending.cancel()
    transport = connection.transport
    if transport is not None and transport.get_write_buffer_size():
        transport.abort()  # closing would wait for an upstream that does not read
    connection.close()
