"""A websocket on its way to the upstream: the frames of both sides pass as they are, until one of them closes."""

import asyncio
import base64
import contextlib
import hashlib
import logging
import secrets
from collections.abc import Coroutine
from typing import Any, TypeVar

import aiohttp
from aiohttp._websocket.reader import WebSocketDataQueue  # as aiohttp's own websockets have it; there is no other way
from aiohttp.connector import Connection
from aiohttp.http import WS_KEY, WebSocketError, WebSocketReader, WebSocketWriter, WSCloseCode, WSMsgType
from aiohttp.streams import EofStream
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ..log import names_of
from ..request.scope import SCOPE_KEY
from ..wire.headers import Headers, without
from .end_to_end import HANDSHAKE_HEADERS
from .forwarding import FAILURES, no_answer, not_sent, upgrade_required
from .sending import Answer
from .upstream import Upstream

logger = logging.getLogger("asgi_session_pin.gateway")
ResultT = TypeVar("ResultT")

MAX_MESSAGE_BYTES = 16_777_216
PING_SECONDS = 20.0  # for the networks between, which forget connections that are silent; nobody has to answer in time
_READ_BYTES = 65_536  # where the client is slower, messages of twice as many are held, and the one that comes
_CLOSE_SECONDS = 5.0  # for the upstream to answer a close
_MAX_REFUSAL_BYTES = 1_048_576  # uvicorn collects it
_REFUSAL_SECONDS = 10.0  # for the upstream to end it, however it comes

_PROTOCOL = b"sec-websocket-protocol"
# What a server says that has no websocket there. Only at 426 Codex asks by HTTP at once: it tries all else seven times.
_NO_WEBSOCKET = (404, 405, 501)
_NO_STATUS = 1005  # the other side's close has no code
_NEVER_SENT = (1006, 1015)  # there was no close


class _Stalled(Exception):
    """The upstream takes nothing."""


class UpstreamSocket:
    """A websocket to the upstream, on the connection of its handshake. To be closed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        protocol = connection.protocol
        assert protocol is not None
        assert protocol.transport is not None
        self._transport = protocol.transport
        self._messages = WebSocketDataQueue(protocol, _READ_BYTES, loop=asyncio.get_running_loop())
        self._reader = WebSocketReader(self._messages, MAX_MESSAGE_BYTES + 1, compress=False, decode_text=True)
        self._writer = WebSocketWriter(protocol, protocol.transport, use_mask=True)
        protocol.read_timeout = None  # a socket may be silent for long
        protocol.set_parser(self._reader, self._messages)

    async def receive(self) -> Message:
        """Return what comes next, as for an ASGI server to send: a frame, or the end of all."""
        while True:
            try:
                message = await self._messages.read()
            except WebSocketError as error:
                await self.send_close(error.code)
                code = error.code if error.code == WSCloseCode.MESSAGE_TOO_BIG else WSCloseCode.INTERNAL_ERROR
                return _close(code, "the upstream broke the protocol")
            except (EofStream, aiohttp.ClientError, OSError):
                return _close(WSCloseCode.INTERNAL_ERROR, "the upstream broke off")
            if message.type is WSMsgType.TEXT:
                return {"type": "websocket.send", "text": message.data}
            if message.type is WSMsgType.BINARY:
                return {"type": "websocket.send", "bytes": message.data}
            if message.type is WSMsgType.PING:
                await self._send(message.data, WSMsgType.PONG)
            elif message.type is WSMsgType.CLOSE:
                reason = message.extra or ""
                await self.send_close(message.data or _NO_STATUS, reason)
                return _close(message.data or WSCloseCode.OK, reason)

    async def send(self, message: Message) -> None:
        """Send a frame of the client, when the upstream has taken those before."""
        data = message.get("bytes")
        if data is not None:
            await self._send(data, WSMsgType.BINARY)
        else:
            await self._send(message["text"].encode(), WSMsgType.TEXT)

    async def send_close(self, code: int, reason: str = "") -> None:
        """Say that there is nothing more; without a code, where a close can't carry it."""
        if code in _NEVER_SENT:
            return
        said = b"" if code == _NO_STATUS else code.to_bytes(2) + reason.encode()
        await self._send(said, WSMsgType.CLOSE)

    async def ping(self) -> None:
        """Send something, that the connection is not taken for dead."""
        await self._send(b"", WSMsgType.PING)

    async def _send(self, data: bytes, kind: WSMsgType) -> None:
        with contextlib.suppress(OSError):  # it is closed, which `receive` tells
            await self._writer.send_frame(data, kind)

    def close(self) -> None:
        """End the connection."""
        if self._transport.get_write_buffer_size():
            self._transport.abort()  # closing would wait for an upstream that does not read
        self._connection.close()


def _close(code: int, reason: str) -> Message:
    return {"type": "websocket.close", "code": int(code), "reason": reason}


class WebSocketRelay:
    """Forwards one websocket. An upstream that takes no message for *stall_seconds* is given up; None: it never is."""

    def __init__(
        self, upstream: Upstream, stall_seconds: float | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._upstream = upstream
        self._stall_seconds = stall_seconds
        self._scope = scope
        self._receive = receive
        self._send = send
        self._key = base64.b64encode(secrets.token_bytes(16))
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Forward, until one of the sides closes."""
        await self._receive()  # that somebody wants to connect
        asking = self._start(self._upstream.ask(self._scope, None, self._handshake()))
        try:
            await self._forward(asking, self._start(self._next()))
        finally:
            if asking.done() and not asking.cancelled() and asking.exception() is None:
                asking.result()[0].close()  # also where nobody has looked at it yet, since the request is cancelled
            await self._stop()

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _next(self) -> Message:
        return await self._receive()  # which in granian gives no future of asyncio's

    def _start(self, coroutine: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _forward(self, asking: asyncio.Task[tuple[Answer, Headers]], received: asyncio.Task[Message]) -> None:
        await asyncio.wait((asking, received), return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            return None  # the client has left
        try:
            answer, headers = asking.result()
        except FAILURES as error:  # some of which are ValueErrors, too
            return await self._fail(error)
        except ValueError:
            return await self._refuse(not_sent())
        if answer.status != 101:
            reading = self._start(self._refusal(answer, headers))
            await asyncio.wait((reading, received), return_when=asyncio.FIRST_COMPLETED)
            return await self._refuse(reading.result()) if reading.done() else None
        accepted = self._accepted(answer, headers)
        if accepted is None:
            return await self._fail(aiohttp.ClientConnectionError())
        socket = UpstreamSocket(answer.take_connection())
        try:
            await self._send(accepted)
            await self._pass_frames(socket, received)
        finally:
            socket.close()

    def _handshake(self) -> Headers:
        headers = [
            (b"connection", b"Upgrade"),
            (b"upgrade", b"websocket"),
            (b"sec-websocket-version", b"13"),
            (b"sec-websocket-key", self._key),
        ]
        offered = self._scope.get("subprotocols")
        if offered and not any(name.lower() == _PROTOCOL for name, _ in self._scope["headers"]):  # wsproto drops it
            headers.append((_PROTOCOL, ", ".join(offered).encode("latin-1")))
        return headers

    def _accepted(self, answer: Answer, headers: Headers) -> Message | None:
        """Return what accepts the client's handshake, if the upstream did as it should (RFC 6455, section 4.1)."""
        said = {name.lower(): value for name, value in answer.headers}
        proof = base64.b64encode(hashlib.sha1(self._key + WS_KEY, usedforsecurity=False).digest())
        subprotocol = said.get(_PROTOCOL, b"").decode("latin-1") or None
        if (
            said.get(b"upgrade", b"").lower() != b"websocket"
            or said.get(b"sec-websocket-accept") != proof
            or (subprotocol is not None and subprotocol not in self._scope.get("subprotocols", ()))
        ):
            return None
        headers = without(headers, HANDSHAKE_HEADERS | {_PROTOCOL})
        return {"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers}

    # Frames

    async def _pass_frames(self, socket: UpstreamSocket, received: asyncio.Task[Message]) -> None:
        """Pass the frames of both sides on, each when the other side has taken the one before."""
        to_upstream = self._start(self._pass_to(socket, received))
        to_client = self._start(self._pass_from(socket))
        self._start(_keep_alive(socket))
        await asyncio.wait((to_upstream, to_client), return_when=asyncio.FIRST_COMPLETED)
        closing: Message | None = None
        try:
            if not to_client.done() and to_upstream.result():
                await asyncio.wait((to_client,), timeout=_CLOSE_SECONDS)
            if to_client.done():
                closing = to_client.result()
        except _Stalled:
            closing = _close(WSCloseCode.INTERNAL_ERROR, "the upstream takes no message")
        if closing is not None:
            await self._stop()  # granian closes when nobody waits for the client
            with contextlib.suppress(OSError):  # the client has left
                await self._send(closing)

    async def _pass_to(self, socket: UpstreamSocket, received: asyncio.Task[Message]) -> bool:
        """Pass the client's frames on until it leaves; tell whether the upstream may answer to that."""
        while (message := await received)["type"] == "websocket.receive":
            sending = self._start(socket.send(message))
            received = self._start(self._next())  # a client that leaves is seen, also if the upstream does not read
            await self._wait(sending, received)
            if not sending.done():
                if received.result()["type"] != "websocket.receive":
                    return False
                await self._wait(sending)
        code = message.get("code", _NO_STATUS)
        await socket.send_close(code, message.get("reason") or "")
        return code not in _NEVER_SENT

    async def _wait(self, *tasks: asyncio.Task[Any]) -> None:
        done, _ = await asyncio.wait(tasks, timeout=self._stall_seconds, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise _Stalled

    async def _pass_from(self, socket: UpstreamSocket) -> Message:
        """Pass the upstream's frames on; return the end of all."""
        has_left = False
        while (message := await socket.receive())["type"] != "websocket.close":
            if not has_left:
                try:
                    await self._send(message)
                except OSError:  # which `receive` tells, too
                    has_left = True
        return message

    # Refusals

    async def _fail(self, error: Exception) -> None:
        logger.warning("the upstream did not answer: %s", names_of(error))
        await self._refuse(no_answer(error))

    async def _refusal(self, answer: Answer, headers: Headers) -> Response:
        """Return the upstream's refusal for the client."""
        content = bytearray()
        try:
            async with asyncio.timeout(_REFUSAL_SECONDS):
                while not answer.content.at_eof() and len(content) <= _MAX_REFUSAL_BYTES:
                    content += await answer.content.readany()
        except FAILURES as error:
            return no_answer(error)
        has_none = answer.status in _NO_WEBSOCKET or (
            answer.status == 403 and not content
        )  # the latter by ASGI servers
        if SCOPE_KEY in self._scope and has_none:
            return upgrade_required(self._scope, f"The upstream has no websocket here: it answered {answer.status}.")
        if len(content) > _MAX_REFUSAL_BYTES or not 200 <= answer.status < 600:
            return no_answer(aiohttp.ClientError())
        response = Response(bytes(content), answer.status)
        response.raw_headers = headers
        return response

    async def _refuse(self, response: Response) -> None:
        if "websocket.http.response" in self._scope.get("extensions", {}):
            await response(self._scope, self._receive, self._send)
        else:
            await self._send(_close(WSCloseCode.INTERNAL_ERROR, ""))


async def _keep_alive(socket: UpstreamSocket) -> None:
    while True:
        await asyncio.sleep(PING_SECONDS)
        await socket.ping()
