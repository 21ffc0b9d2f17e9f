"""Clients that connect and send nothing, on connections of uvicorn's own."""

import asyncio
from typing import Any

from starlette.types import Receive, Scope, Send

from asgi_session_pin.gateway.silent_clients import SilentClients
from behaviour_document import Section, case
from client_connections import Transport, connect, settle


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/slow":
        await asyncio.Event().wait()
    await send({"type": "http.response.body"})


async def connection_that_got(*pieces: bytes) -> tuple[Any, Transport]:
    connection, transport = await connect(answer)
    for piece in pieces:
        connection.data_received(piece)
        await settle()
    return connection, transport


@case(Section.GATEWAY, "a client connects and sends no request within 10 s, or not to its head's end", "it is dropped")
async def test_who_sends_no_request_is_dropped() -> None:
    now = 0.0
    silent = SilentClients(10, clock=lambda: now)
    whole = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"
    waiting = [await connection_that_got(), await connection_that_got(b"GET / HT")]
    waiting.append(await connection_that_got(whole % b"", b"GET / HT"))
    used = [await connection_that_got(whole % b""), await connection_that_got(whole % b"slow")]
    connections = [connection for connection, _ in waiting + used]
    for seconds in (0.0, 5.0, 9.9):
        now = seconds
        silent.drop(connections)
        assert not any(transport.is_closed for _, transport in waiting)
    now = 10.0
    silent.drop(connections)
    assert all(transport.is_closed for _, transport in waiting)
    assert not any(transport.is_closed for _, transport in used)
    silent.drop([])
    for connection in connections:
        connection.connection_lost(None)
