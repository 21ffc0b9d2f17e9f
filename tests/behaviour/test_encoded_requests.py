"""Request bodies with a content-encoding: decoded within bounds, or passed on as they came."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import pytest
from starlette.types import Message, Receive, Scope, Send

from asgi_driver import (
    DECISION,
    SESSION,
    Gateway,
    Header,
    answer_json,
    body_messages,
    call,
    http_scope,
    read_body,
    receive_from,
    respond,
)
from asgi_session_pin import Config, Limits, SessionPinMiddleware
from asgi_session_pin.wire import compression
from behaviour_document import Section, case

CODINGS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"deflate": zlib.compress,
    b"br": brotli.compress,
    b"zstd": compression._zstd.compress,
    b"gzip, br": lambda content: brotli.compress(gzip.compress(content)),
}
each_coding = pytest.mark.parametrize("coding", CODINGS)
AUTO = b'{"model": "auto", "n": 1.0}'
GZIP: Header = (b"content-encoding", b"gzip")


def framing(scope: Scope) -> dict[bytes, bytes]:
    names = (b"content-encoding", b"content-length", b"transfer-encoding")
    found = [header for header in scope["headers"] if header[0] in names]
    assert len(dict(found)) == len(found)
    return dict(found)


@case(
    Section.REQUEST,
    "in gzip, deflate, br or zstd",
    "pinned as others; the app gets it decoded, without `content-encoding`, whether there is a pin or not",
)
@each_coding
@pytest.mark.parametrize("cut", [None, 5])
async def test_an_encoded_request_is_pinned_and_sent_on_decoded(coding: bytes, cut: int | None) -> None:
    gateway = Gateway("a", "b")
    app = SessionPinMiddleware(gateway)
    packed = CODINGS[coding](AUTO)
    body = [packed[:cut], packed[cut:]] if cut else packed
    encoding = (b"content-encoding", coding)
    assert [(await call(app, body, SESSION, encoding)).pin_status for _ in range(2)] == ["miss", "hit"]
    assert (await call(app, AUTO, SESSION)).pin_status == "hit", "it is the same session"
    assert gateway.bodies == [AUTO, b'{"model":"a","n":1.0}', b'{"model":"a","n":1.0}']
    assert [framing(scope) for scope in gateway.scopes] == [
        {b"content-length": b"%d" % len(content)} for content in gateway.bodies
    ]


async def test_in_place_of_a_failure_it_is_sent_decoded_too() -> None:
    async def serve(send: Send, model: str) -> None:
        await respond(send, b"{}", status=500)

    gateway = Gateway("a", "b", route=answer_json, serve=serve)
    app = SessionPinMiddleware(gateway)
    chunked = (b"transfer-encoding", b"chunked")
    scope = http_scope(SESSION, GZIP, chunked)
    statuses = [(await call(app, gzip.compress(AUTO), scope=dict(scope))).pin_status for _ in range(2)]
    assert statuses == ["miss", "reroute"]
    assert gateway.bodies == [AUTO, b'{"model":"a","n":1.0}', AUTO]
    assert all(b"content-encoding" not in framing(scope) for scope in gateway.scopes)


async def test_a_decision_endpoint_gets_it_decoded() -> None:
    gateway = Gateway("a")
    app = SessionPinMiddleware(gateway)
    statuses = [(await call(app, gzip.compress(AUTO), SESSION, GZIP, path=DECISION)).pin_status for _ in range(2)]
    assert (statuses, gateway.bodies) == (["miss", "hit"], [AUTO])


@pytest.mark.parametrize(
    ("config", "content", "headers", "status"),
    [
        ({"routing": {"router_models": ["other"]}}, AUTO, [SESSION], "ignored; reason=model-not-routed"),
        ({}, b"[]", [SESSION], "ignored; reason=body-not-json"),
        ({}, AUTO, [SESSION, (b"x-session-pin", b"off")], "off"),
        ({}, AUTO, [(b"x-session-id", b"")], "ignored; reason=invalid-session-id"),
        ({"sessions": {"sources": ["body:id"]}}, b'{"id":"\\n"}', [], "ignored; reason=invalid-session-id"),
        ({"sessions": {"sources": ["body:id"]}}, AUTO, [], None),
        ({"limits": {"max_buffered_bytes": 4 * len(AUTO) - 4}}, AUTO, [SESSION], "ignored; reason=no-room"),
    ],
)
async def test_where_it_is_not_pinned_it_goes_on_as_it_came(
    config: Any, content: bytes, headers: list[Header], status: str | None
) -> None:
    gateway = Gateway("a")
    packed = gzip.compress(content)
    answer = await call(SessionPinMiddleware(gateway, config=config), packed, GZIP, *headers)
    assert (answer.pin_status, gateway.bodies) == (status, [packed])
    assert framing(gateway.scopes[0]) == {b"content-encoding": b"gzip", b"content-length": b"%d" % len(packed)}


async def test_a_missing_library_makes_a_coding_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compression._MAKERS, "zstd", None)
    packed, encoding = CODINGS[b"zstd"](AUTO), (b"content-encoding", b"zstd")
    gateway = Gateway("a")
    answer = await call(SessionPinMiddleware(gateway), packed, SESSION, encoding)
    assert (answer.pin_status, gateway.bodies) == ("ignored; reason=body-encoded", [packed])


async def test_decoded_bodies_take_room() -> None:
    app = SessionPinMiddleware(Gateway("a"), config=Config(limits=Limits(max_buffered_bytes=40_000)))
    large = gzip.compress(json.dumps({"model": "auto", "x": "x" * 11_000}).encode())
    small = gzip.compress(json.dumps({"model": "auto", "x": "x" * 8_000}).encode())
    assert len(large) < 200
    assert (await call(app, large, SESSION, GZIP)).pin_status == "ignored; reason=no-room"
    assert [(await call(app, small, SESSION, GZIP)).pin_status for _ in range(3)] == ["miss", "hit", "hit"]


async def test_a_large_one_is_pinned_too() -> None:
    gateway = Gateway("a")
    body = json.dumps({"model": "auto", "x": "x" * 1_000_000}).encode()
    answer = await call(SessionPinMiddleware(gateway), gzip.compress(body), SESSION, GZIP)
    assert (answer.pin_status, gateway.bodies) == ("miss", [body])


@case(Section.REQUEST, "a few bytes decode to millions", "others have their turn meanwhile")
@pytest.mark.parametrize("coding", [b"gzip", b"br", b"zstd", b"gzip, br"])
async def test_decoding_holds_nobody_up(coding: bytes) -> None:
    size = 16_000_000
    bomb = CODINGS[coding](b" " * size)
    rounds = 0

    async def count() -> None:
        nonlocal rounds
        while True:
            await asyncio.sleep(0)
            rounds += 1

    received: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.append(await read_body(receive))
        await respond(send, b"{}")

    async def send(message: Message) -> None: ...

    counting = asyncio.create_task(count())
    scope = http_scope(SESSION, (b"content-encoding", coding))
    config = Config(limits=Limits(max_request_bytes=size - 1))
    await SessionPinMiddleware(app, config=config)(scope, receive_from(body_messages(bomb)), send)
    counting.cancel()
    assert received == [bomb]
    assert rounds >= size / compression.MAX_PIECE / 2
