"""The hard cases, row by row as in the table of the design."""

import gzip
import json
import logging
import tracemalloc
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from asgi_driver import (
    JSON_TYPE,
    SESSION,
    SSE_TYPE,
    Answer,
    Gateway,
    Header,
    answer_json,
    call,
    http_scope,
    read_body,
    receive_from,
    respond,
)
from asgi_session_pin import (
    Config,
    Decisions,
    Limits,
    MemoryStore,
    Pin,
    PinEvent,
    Routing,
    SessionPinMiddleware,
    Sessions,
)
from behaviour_document import Section, case

# Session ids


@case(
    Section.SESSION,
    "id empty, over 256 bytes, with control characters, or sent twice with different values",
    "`ignored; reason=invalid-session-id`; no other source is tried",
)
@pytest.mark.parametrize(
    "headers",
    [
        [(b"x-session-id", b"")],
        [(b"x-session-id", b" \t ")],
        [(b"x-session-id", b"x" * 257)],
        [(b"x-session-id", b"a\x00b")],
        [(b"x-session-id", b"a\tb")],
        [(b"x-session-id", b"a\x7f")],
        [(b"x-session-id", b"a"), (b"x-session-id", b"b")],
        [(b"x-session-id", b"a"), (b"X-Session-Id", b"b")],
    ],
)
async def test_session_id_that_cannot_be_used_is_ignored_with_its_reason(headers: list[Header]) -> None:
    gateway = Gateway("a", "b")
    sources = Sessions(sources=("header:x-session-id", "header:x-other-id"))
    app = SessionPinMiddleware(gateway, config=Config(sessions=sources))
    for _ in range(2):
        answer = await call(app, {"model": "auto"}, *headers, (b"x-other-id", b"valid"))
        assert answer.pin_status == "ignored; reason=invalid-session-id"
        assert answer.headers["x-session-pinned"] == "false"
    assert gateway.asked == ["auto", "auto"], "no fall-through to the next source"


@case(
    Section.SESSION,
    "id `undefined`, `null`, `none` or `nil` in any case of letters, or with an unfilled `{{…}}`, `${…}` or `<…>`",
    "`ignored; reason=invalid-session-id`; no other source is tried",
)
@pytest.mark.parametrize(
    "placeholder",
    [
        *(b"undefined", b"Undefined", b"null", b"NULL", b"none", b"None", b"nil", b" null\t"),
        *(b"{{session_id}}", b"{{ $json.id }}", b"{{}}", b"chat-{{id}}", b"x" * 100 + b"{{id}}"),
        *(b"${SESSION_ID}", b"agent-${ID}-1", b"<session-id>", b"<YOUR SESSION ID HERE>", b"<>"),
    ],
)
async def test_a_placeholder_is_no_id(placeholder: bytes) -> None:
    sources = Sessions(sources=("header:x-session-id", "body:id", "header:x-other-id"))
    app = SessionPinMiddleware(Gateway("a"), config=Config(sessions=sources))
    other = (b"x-other-id", b"valid")
    asked = [
        await call(app, {"model": "auto"}, (b"x-session-id", placeholder), other),
        await call(app, {"model": "auto"}, (b"x-session-id", placeholder), (b"x-session-id", placeholder), other),
        await call(app, {"model": "auto", "id": placeholder.decode()}, other),
    ]
    assert [answer.pin_status for answer in asked] == ["ignored; reason=invalid-session-id"] * 3
    stated = SessionPinMiddleware(Gateway("a"), session_id=lambda scope: placeholder.decode())
    assert (await call(stated, {"model": "auto"})).pin_status == "ignored; reason=invalid-session-id"


@case(Section.SESSION, "the same id sent twice, white space around it, any other characters", "the id is used")
@pytest.mark.parametrize(
    "headers",
    [
        [(b"x-session-id", b"x" * 256)],
        [(b"x-session-id", b"  padded\t")],
        [(b"x-session-id", b"same"), (b"x-session-id", b"same")],
        [(b"x-session-id", "ünïcødé".encode())],
        [(b"x-session-id", b"with spaces, and commas")],
        *([(b"x-session-id", value)] for value in (b"1", b"nullable", b"none-1", b"undefined1", b"null null")),
        *([(b"x-session-id", value)] for value in (b"{id}", b"}}{{", b"}${", b"$5", b"a<b>", b"<a", b"<1.2@host>")),
    ],
)
async def test_session_id_that_can_be_used_pins(headers: list[Header]) -> None:
    gateway = Gateway("a", "b")
    app = SessionPinMiddleware(gateway)
    statuses = [(await call(app, {"model": "auto"}, *headers)).pin_status for _ in range(2)]
    assert statuses == ["miss", "hit"]


# Request bodies that can't be read


@case(
    Section.REQUEST,
    "not a JSON object, UTF-16 or UTF-32, an invalid name at top level",
    "`ignored; reason=body-not-json`",
)
@case(
    Section.REQUEST,
    "with a `content-encoding` that is unknown, or broken, or decodes to more than `max_request_bytes`",
    "`ignored; reason=body-encoded`",
)
@case(
    Section.REQUEST,
    "signed: `Content-Digest`, `Repr-Digest`, `Digest`, `Content-MD5`, AWS SigV4",
    "`ignored; reason=body-signed`",
)
@pytest.mark.parametrize(
    ("reason", "content", "headers"),
    [
        ("body-too-large", b'{"model": "auto", "x": "%s"}' % (b"x" * 1000), []),
        ("body-too-large", [b'{"model": "auto",', b'"x": "%s' % (b"x" * 1000), b'"}'], []),
        ("body-not-json", b"", []),
        ("body-not-json", b"model=auto", []),
        ("body-not-json", b'["auto"]', []),
        ("body-not-json", b'"auto"', []),
        ("body-not-json", b'{"model": "auto"', []),
        ("body-not-json", b'{"model": "auto"} {}', []),
        ("body-not-json", '{"model": "auto"}'.encode("utf-16"), []),
        ("body-not-json", '{"model": "auto"}'.encode("utf-32"), []),
        ("body-not-json", b'{"model": "auto", "\xff": 1}', []),
        ("body-encoded", b'{"model": "auto"}', [(b"content-encoding", b"gzip")]),
        ("body-encoded", b'{"model": "auto"}', [(b"content-encoding", b"compress")]),
        ("body-encoded", gzip.compress(b'{"model": "auto"}', mtime=0)[:-1], [(b"content-encoding", b"gzip")]),
        ("body-encoded", gzip.compress(b'{"x": "%s"}' % (b"x" * 1000), mtime=0), [(b"content-encoding", b"gzip")]),
        ("body-encoded", gzip.compress(b'{"model": "auto"}', mtime=0), [(b"content-encoding", b"gzip, compress")]),
        ("body-encoded", b"", [(b"content-encoding", b"gzip")]),
        ("body-not-json", gzip.compress(b"model=auto", mtime=0), [(b"content-encoding", b"gzip")]),
        ("body-signed", gzip.compress(b"{}", mtime=0), [(b"content-encoding", b"gzip"), (b"digest", b"SHA-256=x")]),
        ("body-signed", b'{"model": "auto"}', [(b"content-digest", b"sha-256=:x:")]),
        ("body-signed", b'{"model": "auto"}', [(b"repr-digest", b"sha-256=:x:")]),
        ("body-signed", b'{"model": "auto"}', [(b"digest", b"SHA-256=x")]),
        ("body-signed", b'{"model": "auto"}', [(b"content-md5", b"x")]),
        ("body-signed", b'{"model": "auto"}', [(b"authorization", b"AWS4-HMAC-SHA256 Credential=x")]),
    ],
)
async def test_body_that_cannot_be_read_passes_byte_for_byte(reason: str, content: Any, headers: list[Header]) -> None:
    gateway = Gateway("a", "b")
    app = SessionPinMiddleware(gateway, config=Config(limits=Limits(max_request_bytes=900)))
    await call(app, {"model": "auto"}, SESSION)
    answer = await call(app, content, SESSION, *headers)
    assert answer.pin_status == f"ignored; reason={reason}"
    assert gateway.bodies[1] == (b"".join(content) if isinstance(content, list) else content)
    assert (b"x-session-pinned", b"true") not in gateway.scopes[1]["headers"]
    assert set(headers) <= set(gateway.scopes[1]["headers"])


@case(Section.REQUEST, "over `max_request_bytes`", "`ignored; reason=body-too-large`; it streams to the app")
async def test_body_over_the_limit_streams_and_is_refused_by_its_length_before_it_is_asked_for() -> None:
    events: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        events.append("app called")
        await read_body(receive)
        await respond(send, b"{}")

    async def receive() -> Message:
        events.append("receive")
        return {"type": "http.request", "body": b"x" * 1_000_000, "more_body": events.count("receive") < 3}

    async def send(message: Message) -> None: ...

    middleware = SessionPinMiddleware(app, config=Config(limits=Limits(max_request_bytes=1_500_000)))
    await middleware(http_scope(SESSION, (b"content-length", b"3000000")), receive, send)
    assert events == ["app called", "receive", "receive", "receive"]
    events.clear()
    await middleware(http_scope(SESSION, (b"transfer-encoding", b"chunked")), receive, send)
    assert events == ["receive", "receive", "app called", "receive"]


@pytest.mark.parametrize("length", [b"-1", b"ten", b"9" * 30, b"\xb2"])
async def test_content_length_that_is_none_is_left_to_the_app(length: bytes) -> None:
    scope = http_scope(SESSION, (b"content-length", length))
    answer = await call(SessionPinMiddleware(Gateway("a")), {"model": "auto"}, scope=scope)
    assert answer.pin_status == "miss"


async def test_identity_is_no_encoding() -> None:
    answer = await call(
        SessionPinMiddleware(Gateway("a")), {"model": "auto"}, SESSION, (b"content-encoding", b" Identity")
    )
    assert answer.pin_status == "miss"


# Bodies that can be read, but are odd


ODD_BODIES = [
    (b'{"model":"auto","model":"auto"}', {"model": "pinned"}),
    (b'{"mod\\u0065l":"auto"}', {"model": "pinned"}),
    (b'{"mod\\u0065l":"x","model":"auto"}', {"model": "pinned"}),
    (b'{"model":"auto","x":{"model":"inner"}}', {"model": "pinned", "x": {"model": "inner"}}),
    (b'{"model":"auto","n":1180591620717411303424}', {"model": "pinned", "n": 2**70}),
    (b'\xef\xbb\xbf{"model":"auto"}', {"model": "pinned"}),
    (b' {\n "model" : "auto" ,\t"a" : [ 1 , 2 ]\r\n} ', {"model": "pinned", "a": [1, 2]}),
]


@case(
    Section.REQUEST,
    "`model` twice, escaped, or also nested",
    "the app sees the pinned one at top level, and only there",
)
@pytest.mark.parametrize(("content", "forwarded"), ODD_BODIES)
async def test_model_is_only_seen_pinned_by_the_app(content: bytes, forwarded: dict[str, Any]) -> None:
    gateway = Gateway("pinned", "other")
    app = SessionPinMiddleware(gateway)
    await call(app, {"model": "auto"}, SESSION)
    answer = await call(app, content, SESSION)
    assert answer.pin_status == "hit"
    assert json.loads(gateway.bodies[1]) == forwarded
    assert gateway.bodies[1].count(b'"pinned"') == 1
    assert b"auto" not in gateway.bodies[1]


@case(
    Section.REQUEST,
    "huge numbers, NaN, lone surrogates, invalid bytes in a value",
    "every other value keeps its bytes",
)
@pytest.mark.parametrize(
    "value",
    [
        b"1e400",
        b"-0",
        b"1.0",
        b"0.1000000000000000055",
        b"9" * 5000,
        b"NaN",
        b"[Infinity,-Infinity]",
        b'"\\ud800"',
        b'"cut \\ud83d"',
        b'"\\/\\u0041"',
        b'"\xff\xfe"',
        b'{"model" : "inner", "model" : "inner"}',
        b"[" * 500 + b"]" * 500,
    ],
)
async def test_values_keep_their_bytes(value: bytes) -> None:
    gateway = Gateway("pinned")
    app = SessionPinMiddleware(gateway)
    await call(app, {"model": "auto"}, SESSION)
    answer = await call(app, b'{"model":"auto","value":%s,"last":1}' % value, SESSION)
    assert answer.pin_status == "hit"
    assert gateway.bodies[1] == b'{"model":"pinned","value":%s,"last":1}' % value


@case(Section.REQUEST, "nested 200,000 deep", "`ignored; reason=body-not-json`, in bounded memory")
@pytest.mark.parametrize("nesting", [b"[" * 200_000, b'{"a":' * 200_000])
async def test_a_body_nested_200000_deep_passes_with_bounded_memory(nesting: bytes) -> None:
    content = b'{"model":"auto","x":' + nesting
    bodies = []

    async def unparsing(scope: Scope, receive: Receive, send: Send) -> None:
        bodies.append(await read_body(receive))  # to parse it takes more memory than the middleware does
        await answer_json(send, "pinned")

    app = SessionPinMiddleware(unparsing)
    await call(app, {"model": "auto"}, SESSION)
    tracemalloc.start()
    try:
        answer = await call(app, content, SESSION)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.pin_status == "ignored; reason=body-not-json"
    assert bodies[1] == content
    assert peak < 8 * len(content) + 1_000_000


TOO_LARGE_TO_READ = {
    "members": b'"x":[' + b'{"a":0},' * 200_000 + b"0]",
    "members beside NaN": b'"odd":NaN,' + b",".join([b'"x":0'] * 1_000),
    "nesting beside NaN": b'"odd":NaN,"x":' + b"[" * 500 + b"]" * 500,
    "bytes beside NaN": b'"odd":NaN,"x":"' + b"x" * 1_048_576 + b'"',
    "arrays beside NaN": b'"odd":NaN,"x":[' + b"[]," * 50_000 + b"0]",
}


@case(
    Section.REQUEST,
    "over 200,000 members; with a NaN, a lone surrogate or a BOM also over 1 MiB, 1,000 members at top level, 500 "
    "levels or 100,000 brackets and colons outside of strings",
    "`ignored; reason=body-not-json`, so that nobody else waits for the reading",
)
@pytest.mark.parametrize("excess", TOO_LARGE_TO_READ.values(), ids=TOO_LARGE_TO_READ)
async def test_a_body_that_would_take_long_to_read_passes_byte_for_byte(excess: bytes) -> None:
    content = b'{"model":"auto",' + excess + b"}"
    gateway = Gateway("pinned", "routed")
    app = SessionPinMiddleware(gateway)
    await call(app, {"model": "auto"}, SESSION)
    answer = await call(app, content, SESSION)
    assert answer.pin_status == "ignored; reason=body-not-json"
    assert gateway.bodies[1] == content


@case(Section.RESPONSE, "beyond the bounds of a request's body", "passes as it is, and names no model")
@pytest.mark.parametrize("excess", TOO_LARGE_TO_READ.values(), ids=TOO_LARGE_TO_READ)
@pytest.mark.parametrize("media_type", [JSON_TYPE, SSE_TYPE])
async def test_an_answer_that_would_take_long_to_read_passes_and_names_no_model(
    excess: bytes, media_type: Header
) -> None:
    body = b'{"model":"a",' + excess + b"}"
    if media_type == SSE_TYPE:
        body = b"data: " + body + b"\n\n"
    assert await order_of(start(media_type), piece(body, False)) == ["http.response.start", body]


@case(Section.REQUEST, "`model` is a number, an object, an empty text", "a kind of its own")
@pytest.mark.parametrize("model", [b"1", b"{}", b'["auto"]', b'"\\ud800"', b'"\xff"', b'""'])
async def test_a_model_that_is_no_name_is_a_kind_of_its_own(model: bytes) -> None:
    gateway = Gateway("a", "b", "c")
    gateway.serve = served_by_the_router
    app = SessionPinMiddleware(gateway)
    await call(app, {"model": "auto"}, SESSION)
    statuses = [(await call(app, b'{"model":%s}' % model, SESSION)).pin_status for _ in range(2)]
    assert statuses == ["miss", "hit"]
    assert json.loads(gateway.bodies[2]) == {"model": "routed"}


async def served_by_the_router(send: Send, model: object) -> None:
    await respond(send, b'{"model":"routed"}')


@case(Section.REQUEST, "no `model`", "a kind of its own; on a hit the pinned one is put in")
async def test_a_request_without_model_is_of_its_own_kind_and_gets_the_pinned_one() -> None:
    gateway = Gateway("a", "b")
    app = SessionPinMiddleware(gateway)
    await call(app, {"model": "auto"}, SESSION)
    assert (await call(app, {"n": 1}, SESSION)).pin_status == "miss"
    assert (await call(app, {"n": 1}, SESSION)).pin_status == "hit"
    assert (await call(app, {"model": None, "n": 1}, SESSION)).pin_status == "hit"
    assert gateway.asked == ["auto", None, "b", "b"]


# Responses


@case(Section.RESPONSE, "not 2xx", "nothing is pinned")
@pytest.mark.parametrize("status", [199, 302, 400, 401, 404, 429, 500, 503])
async def test_a_response_that_is_not_2xx_records_nothing(status: int) -> None:
    async def refuse(send: Send, model: str) -> None:
        await respond(send, b'{"model":"a"}', status=status)

    gateway = Gateway("a", "b", answer=refuse)
    app = SessionPinMiddleware(gateway)
    answers = [await call(app, {"model": "auto"}, SESSION) for _ in range(2)]
    assert [answer.pin_status for answer in answers] == ["miss", "miss"]
    assert gateway.asked == ["auto", "auto"]


@case(
    Section.RESPONSE,
    "names `none`, over 256 bytes, not visible ASCII, or one of `router_models`",
    "nothing is pinned; a warning in the log",
)
@pytest.mark.parametrize("name", ["none", "None", "x" * 257, "zwölf", "two words", "line\nbreak", "auto", "auto/fast"])
async def test_a_name_that_is_no_decision_records_nothing_and_warns_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway(name, name)
    app = SessionPinMiddleware(gateway, config=Config(routing=Routing(router_models=("auto*",))))
    for _ in range(2):
        assert (await call(app, {"model": "auto"}, SESSION)).pin_status == "miss"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert repr(name[:256]) in caplog.text
    assert "decisions.sources" in caplog.text


@case(Section.RESPONSE, "names no model", "nothing is pinned; one warning in the log")
@pytest.mark.parametrize(
    "content", [b'{"model":""}', b'{"model":null}', b"{}", b"[]", b"", b"not json", b'{"model":[1]}']
)
async def test_a_response_that_names_no_model_records_nothing_and_warns_once(
    content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def unnamed(send: Send, model: str) -> None:
        await respond(send, content)

    app = SessionPinMiddleware(Gateway("a", "b", answer=unnamed))
    for _ in range(2):
        answer = await call(app, {"model": "auto"}, SESSION)
        assert (answer.pin_status, answer.body) == ("miss", content)
    assert caplog.text.count("names no model") == 1


@case(Section.RESPONSE, "names the requested model plus a date", "the requested name is pinned")
@pytest.mark.parametrize(
    ("asked", "answered", "pinned"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", "gpt-4o"),
        ("claude-haiku-4-5", "claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-sonnet-4", "claude-sonnet-4@20250514", "claude-sonnet-4"),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", "gpt-4o-mini-2024-07-18"),
        ("gpt-4o", "gpt-4o-2024-08-06-ft", "gpt-4o-2024-08-06-ft"),
        ("gpt-4o", "gpt-4o", "gpt-4o"),
    ],
)
async def test_the_requested_name_plus_a_date_is_the_requested_name(asked: str, answered: str, pinned: str) -> None:
    async def dated(send: Send, model: str) -> None:
        await respond(send, json.dumps({"model": answered}).encode())

    gateway = Gateway(answer=dated)
    app = SessionPinMiddleware(gateway)
    await call(app, {"model": asked}, SESSION)
    answer = await call(app, {"model": asked}, SESSION)
    assert answer.headers["x-session-model"] == pinned
    assert gateway.asked == [asked, pinned]


class Watched(MemoryStore):
    """A store that notes, among what the server was sent, when a pin was written."""

    def __init__(self, sent: list[Any]) -> None:
        super().__init__()
        self.sent = sent

    async def add(self, key: bytes, pin: Pin) -> Pin:
        self.sent.append(f"pinned {pin.model}")
        return await super().add(key, pin)


async def order_of(*messages: Message, config: Config | None = None) -> list[Any]:
    """Return what reached the server, bodies as bytes, with the writing of the pin in its place."""
    sent: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        for message in messages:
            await send(message)

    answer = Answer()
    middleware = SessionPinMiddleware(app, config=config, store=Watched(sent))

    async def send(message: Message) -> None:
        answer.messages.append(message)
        sent.append(message["body"] if message["type"] == "http.response.body" else message["type"])

    async def receive() -> Message:
        return {"type": "http.request", "body": b'{"model":"auto"}', "more_body": False}

    await middleware(http_scope(SESSION), receive, send)
    return sent


def start(*headers: Header, status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def piece(body: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


@case(Section.RESPONSE, "JSON", "the pin is written before the last message goes on")
async def test_a_json_response_is_recorded_before_its_last_message_goes_on() -> None:
    sent = await order_of(start(JSON_TYPE), piece(b'{"mod'), piece(b'el":"a"}'), piece(b"", False))
    assert sent == ["http.response.start", b'{"mod', b'el":"a"}', "pinned a", b""]


async def test_a_json_response_is_recorded_when_its_content_length_is_reached() -> None:
    length = (b"content-length", b"13")
    sent = await order_of(start(JSON_TYPE, length), piece(b'{"mod'), piece(b'el":"a"}'), piece(b"", False))
    assert sent == ["http.response.start", b'{"mod', "pinned a", b'el":"a"}', b""]


@case(
    Section.RESPONSE,
    "server-sent events, cut anywhere",
    "the pin is written before the chunk that names the model goes on",
)
async def test_a_stream_is_recorded_before_the_chunk_that_names_the_model() -> None:
    sent = await order_of(
        start(SSE_TYPE),
        piece(b": hello\n\ndata: {}\n\n"),
        piece(b'data: {"model":""}\n\n'),
        piece(b'data: {"model":"a"}\n'),
        piece(b"\ndata: x"),
        piece(b'data: {"model":"b"}\n\n', False),
    )
    assert sent[3:6] == [b'data: {"model":"a"}\n', "pinned a", b"\ndata: x"]
    assert sent.count("pinned a") == 1
    assert len(sent) == 7


async def test_a_header_is_recorded_before_the_response_starts() -> None:
    chosen = (b"X-VSR-Selected-Model", b"a")
    sent = await order_of(start(JSON_TYPE, chosen), piece(b'{"model":"b"}', False))
    assert sent == ["pinned a", "http.response.start", b'{"model":"b"}']


async def test_the_order_of_sources_decides_not_the_order_of_arrival() -> None:
    config = Config(decisions=Decisions(sources=("body:model", "header:x-model")))
    chosen = (b"x-model", b"header")
    assert "pinned body" in await order_of(start(JSON_TYPE, chosen), piece(b'{"model":"body"}', False), config=config)
    assert "pinned header" in await order_of(start(JSON_TYPE, chosen), piece(b"{}", False), config=config)
    assert "pinned header" in await order_of(start(chosen), piece(b'{"model":"body"}', False), config=config)
    stream = [start(SSE_TYPE, chosen), piece(b"data: {}\n\n"), piece(b'data: {"model":"body"}\n\n', False)]
    assert "pinned body" in await order_of(*stream, config=config)
    assert "pinned header" in await order_of(*stream[:2], piece(b"", False), config=config)


async def test_only_header_sources_leave_the_body_alone() -> None:
    config = Config(decisions=Decisions(sources=("header:x-model",)))
    assert "pinned a" in await order_of(start((b"x-model", b"a")), piece(b"", False), config=config)
    sent = await order_of(start(JSON_TYPE), piece(b'{"model":"a"}', False), config=config)
    assert sent == ["http.response.start", b'{"model":"a"}']


async def test_a_header_that_is_no_decision_leaves_it_to_the_next_source() -> None:
    for value in (b"", b"none", b"\xff"):
        chosen = (b"x-vsr-selected-model", value)
        assert "pinned a" in await order_of(start(JSON_TYPE, chosen), piece(b'{"model":"a"}', False))


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"type":"message_start","message":{"model":"a"}}\n\n',
        b'event: response.created\ndata: {"type":"response.created","response":{"model":"a"}}\n\n',
        b'data: {"models":["a","b"]}\n\n',
        b'data:{"choices":[],\r\ndata:"model":"a"}\r\n\r\n',
    ],
)
async def test_every_shape_of_stream_names_its_model(event: bytes) -> None:
    assert "pinned a" in await order_of(start(SSE_TYPE), piece(event), piece(b"data: [DONE]\n\n", False))


@case(
    Section.RESPONSE,
    "a stream that names no usable model in its first 64 KiB",
    "passes as it is, not looked at further; those who wait go on, and a warning tells of `decisions.sources`",
)
@pytest.mark.parametrize("event", [b"data: {}\n\n", b"data: x\n\n", b'data: {"model":"none"}\n\n', b": ping\n\n"])
async def test_a_stream_is_looked_at_for_64_kib(event: bytes) -> None:
    pinning = b'data: {"model":"a"}\n\n'
    before = event * ((65_536 - len(pinning)) // len(event))
    assert "pinned a" in await order_of(start(SSE_TYPE), piece(before), piece(pinning, False))
    assert "pinned a" in await order_of(start(SSE_TYPE), piece(before + pinning + b"x" * 1_000_000, False))
    for stream in ([piece(event * 10_000 + pinning, False)], [piece(event * 10_000), piece(pinning, False)]):
        assert "pinned a" not in await order_of(start(SSE_TYPE), *stream)


async def test_events_that_are_no_object_are_passed_over() -> None:
    noise = b'data: ping\n\ndata: ["b"]\n\ndata: "b"\n\ndata: {\n\ndata:  \n\n'
    assert "pinned a" in await order_of(start(SSE_TYPE), piece(noise + b'data:  {"model":"a"}\n\n', False))


@pytest.mark.parametrize("media_type", [b"Application/JSON; charset=utf-8", b"application/vnd.api+json"])
async def test_every_json_media_type_is_looked_at(media_type: bytes) -> None:
    sent = await order_of(start((b"Content-Type", media_type)), piece(b'{"model":"a"}', False))
    assert "pinned a" in sent


@case(Section.RESPONSE, "compressed by anything else", "known by its headers only")
@pytest.mark.parametrize("coding", [b"gzip", b"br", b"something"])
async def test_a_compressed_response_is_known_by_its_headers_only(coding: bytes) -> None:
    encoding = (b"content-encoding", coding)
    assert await order_of(start(JSON_TYPE, encoding), piece(b'{"model":"a"}', False)) == [
        "http.response.start",
        b'{"model":"a"}',
    ]
    chosen = (b"x-vsr-selected-model", b"a")
    assert "pinned a" in await order_of(start(JSON_TYPE, encoding, chosen), piece(b"...", False))


@case(Section.RESPONSE, "larger than `max_inspected_response_bytes`", "passes as it is, not looked at further")
async def test_a_response_is_looked_at_up_to_its_limit() -> None:
    config = Config(limits=Limits(max_inspected_response_bytes=20))
    large = b'{"model":"a","x":"%s"}' % (b"x" * 20)
    length = (b"content-length", b"%d" % len(large))
    for headers in ([JSON_TYPE], [JSON_TYPE, length]):
        pieces = [piece(large[:9]), piece(large[9:], False)]
        assert "pinned a" not in await order_of(start(*headers), *pieces, config=config)
    late = [piece(b"data: {}\n\n"), piece(b"data: {}\n\n"), piece(b'data: {"model":"a"}\n\n', False)]
    assert "pinned a" not in await order_of(start(SSE_TYPE), *late, config=config)
    assert "pinned a" in await order_of(start(JSON_TYPE), piece(b'{"model":"a"}', False), config=config)


async def test_other_messages_pass_at_once_and_a_body_may_be_a_buffer() -> None:
    body = bytearray(b'{"model":"a"}')
    sent = await order_of(
        {"type": "http.response.debug", "info": {}},
        start(JSON_TYPE),
        {"type": "http.response.body", "body": memoryview(body)},
        {"type": "http.response.trailers", "headers": []},
    )
    assert sent == ["http.response.debug", "http.response.start", "pinned a", body, "http.response.trailers"]


async def test_a_file_sent_by_the_server_itself_says_nothing() -> None:
    sent = await order_of(start(JSON_TYPE), {"type": "http.response.pathsend", "path": "x.json"})
    assert sent == ["http.response.start", "http.response.pathsend"]


@case(
    Section.RESPONSE,
    "the app raises, pinned or not",
    "the exception, as without us, unless routing the request serves it; the pin stays",
)
async def test_an_exception_of_the_app_comes_out_as_it_is_and_leaves_the_pin() -> None:
    gateway = Gateway("a", "b")
    app = SessionPinMiddleware(gateway)
    await call(app, {"model": "auto"}, SESSION)

    async def fail(send: Send, model: str) -> None:
        raise KeyError(model)

    gateway.serve = gateway.route = fail
    with pytest.raises(KeyError, match="a"):
        await call(app, {"model": "auto"}, SESSION)
    gateway.serve = gateway.route = answer_json
    assert (await call(app, {"model": "auto"}, SESSION)).pin_status == "hit"


@case(Section.REQUEST, "the client leaves while it sends", "the app gets what came, and the disconnect")
@pytest.mark.parametrize("pieces", [0, 1, 2])
async def test_a_client_that_leaves_while_it_sends_is_the_apps_affair(pieces: int) -> None:
    gone: Message = {"type": "http.disconnect"}
    messages: list[Message] = [{"type": "http.request", "body": b'{"model":', "more_body": True}] * pieces
    received: list[Message] = []
    events: list[PinEvent] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.extend([await receive() for _ in range(min(pieces, 1) + 2)])

    async def send(message: Message) -> None:
        raise AssertionError

    middleware = SessionPinMiddleware(app, listeners=[events.append])
    await middleware(http_scope(SESSION, (b"x-session-model", b"forged")), receive_from(messages), send)
    sent: list[Message] = [{"type": "http.request", "body": b'{"model":' * pieces, "more_body": True}]
    assert received == [*sent[: min(pieces, 1)], gone, gone]
    assert [event.reason for event in events] == ["client-disconnected"]


async def test_an_exception_out_of_receive_comes_out_as_it_is() -> None:
    async def receive() -> Message:
        raise ConnectionResetError("gone")

    async def send(message: Message) -> None:
        raise AssertionError

    with pytest.raises(ConnectionResetError, match="gone"):
        await SessionPinMiddleware(Gateway())(http_scope(SESSION), receive, send)


@case(
    Section.RESPONSE,
    "200, but an error where the body is looked at (`error` in the JSON or in an event, `type` `error` or "
    "`response.failed`)",
    "nothing is pinned",
)
@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        (JSON_TYPE, b'{"error":{"message":"overloaded"},"model":"a"}'),
        (JSON_TYPE, b'{"type":"error","model":"a"}'),
        (SSE_TYPE, b'event: error\ndata: {"type":"error","model":"a"}\n\ndata: {"model":"a"}\n\n'),
        (SSE_TYPE, b'data: {"choices":[],"error":{"code":1},"model":"a"}\n\n'),
        (SSE_TYPE, b'data: {"type":"response.failed","response":{"model":"a"}}\n\n'),
    ],
)
async def test_an_error_with_status_200_records_nothing(
    media_type: Header, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert "pinned a" not in await order_of(start(media_type), piece(body), piece(b"", False))
    assert caplog.messages == []


@pytest.mark.parametrize("error", [b"null", b"false", b'""', b"{}", b"[]", b"0"])
async def test_an_error_that_is_empty_is_none(error: bytes) -> None:
    body = b'{"object":"response","type":"response","error":%s,"model":"a"}' % error
    assert "pinned a" in await order_of(start(JSON_TYPE), piece(body, False))


@case(Section.REQUEST, "sent byte by byte", "memory by its bytes")
@pytest.mark.parametrize("size", [0, 1])
async def test_a_body_sent_byte_by_byte_costs_memory_by_its_bytes(size: int) -> None:
    count = 100_000
    content = b'{"model":"auto"}'.ljust(count) if size else b'{"model":"auto"}'
    position = 0

    async def trickle() -> Message:
        nonlocal position
        body = content[position : position + 1] if size else b""
        position += 1
        last = position == count
        return {"type": "http.request", "body": content if last and not size else body, "more_body": not last}

    gateway = Gateway("a")
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    tracemalloc.start()
    try:
        await SessionPinMiddleware(gateway)(http_scope(SESSION), trickle, send)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert gateway.bodies == [content]
    assert peak < 1_500_000
