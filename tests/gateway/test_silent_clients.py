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


@case(
    Section.GATEWAY,
    "an answer comes before the client has sent all of its body, as a 401 or a 413",
    "the rest is taken, for 300 s at most, and while something comes within `gateway.client_keepalive_seconds`: many "
    "clients read only then",
)
async def test_who_still_sends_when_the_answer_is_there_has_more_time_and_not_for_ever() -> None:
    now = 0.0
    silent = SilentClients(10, 300, clock=lambda: now)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n%s\r\n"
    offer = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"  # which is declined
    sending = [await connection_that_got(head % more) for more in (b"", offer)]
    connections = [connection for connection, _ in sending]
    for seconds in range(300):
        now = float(seconds)
        if seconds % 9 == 0:
            for connection in connections:
                connection.data_received(b"x")
        silent.drop(connections)
        assert not any(transport.is_closed for _, transport in sending)
    now = 300.0
    silent.drop(connections)
    assert all(transport.is_closed for _, transport in sending)
    for connection in connections:
        connection.connection_lost(None)


async def test_who_has_sent_the_rest_of_its_body_may_send_its_next_request() -> None:
    now = 0.0
    silent = SilentClients(10, 300, clock=lambda: now)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"
    connection, transport = await connection_that_got(head, b"x")
    silent.drop([connection])
    connection.data_received(b"x")
    for seconds in (299.0, 300.0, 309.0, 310.0, 1000.0):
        now = seconds
        silent.drop([connection])
        assert not transport.is_closed, "the time that it may be idle is another one's affair"
    connection.data_received(head + b"x")
    await settle()
    assert transport.written.count(b"HTTP/1.1 200 OK\r\n") == 2
    connection.data_received(b"xGET / HT")
    for seconds in (1001.0, 1010.9):
        now = seconds
        silent.drop([connection])
        assert not transport.is_closed
    now = 1011.0
    silent.drop([connection])
    assert transport.is_closed, "the head of its next request does not end"
    connection.connection_lost(None)
