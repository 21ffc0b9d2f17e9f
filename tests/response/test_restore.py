"""`restore_model`: what the client reads is the name that it asked for."""

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from asgi_session_pin.response.restore import Restorer

START: Message = {"type": "http.response.start", "status": 200}
EVENTS = (b"content-type", b"text/event-stream")
JSON = (b"content-type", b"application/json")
STATUS = (b"x-session-pin-status", b"hit")


def run(
    chunks: list[bytes],
    *headers: tuple[bytes, bytes],
    status: int = 200,
    streams: bool = False,
    max_bytes: int = 1000,
) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """Return the headers and the pieces that the client gets."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def answer() -> None:
        restorer = Restorer(send, "auto", streams=streams, max_bytes=max_bytes)
        await restorer.send({**START, "status": status, "headers": list(headers)})
        for number, chunk in enumerate(chunks, 1):
            await restorer.send({"type": "http.response.body", "body": chunk, "more_body": number < len(chunks)})

    asyncio.run(answer())
    assert [message["type"] for message in sent] == ["http.response.start"] + ["http.response.body"] * (len(sent) - 1)
    assert [message.get("more_body", False) for message in sent[1:]] == [True] * (len(sent) - 2) + [False]
    return sent[0]["headers"], [message["body"] for message in sent[1:]]


@pytest.mark.parametrize(
    ("routed", "seen"),
    [
        (b'{"id":1,"model":"gpt-4o"}', b'{"id":1,"model":"auto"}'),
        (b'{"message":{"model":"claude","n":1.50}}', b'{"message":{"model":"auto","n":1.50}}'),
        (b'{"response":{"model":"gpt"},"model":null}', b'{"response":{"model":"auto"},"model":null}'),
        (b'{"model":"auto", "a": [ 1 ]}', b'{"model":"auto", "a": [ 1 ]}'),
        (b'{"model":"", "choices":[{"model":"x"}]}', b'{"model":"", "choices":[{"model":"x"}]}'),
        (b'{"model":7}', b'{"model":7}'),
        (b'{"mod\\u0065l":"m", "a":"model"}', b'{"model":"auto","a":"model"}'),
        (b'{ "model" : "a\\"b" , "n":1.50}', b'{ "model" : "auto" , "n":1.50}'),
        (b'{"model":"m","a":["model"]}', b'{"model":"auto","a":["model"]}'),
        (b'["model"]', b'["model"]'),
        (b'{"model":"cut', b'{"model":"cut'),
        (b"", b""),
    ],
)
def test_an_answer_in_json_names_the_model_that_was_asked_for(routed: bytes, seen: bytes) -> None:
    for chunks in ([routed], [routed[:5], routed[5:], b""]):
        headers, pieces = run(chunks, JSON, (b"content-length", b"%d" % len(routed)), (b"x-a", b"b"))
        assert headers == [JSON, (b"x-a", b"b"), (b"content-length", b"%d" % len(seen))]
        assert b"".join(pieces) == seen


def test_a_json_answer_that_is_too_large_goes_on_as_it_is_from_then_on() -> None:
    length = (b"content-length", b"40")
    headers, pieces = run([b'{"model":"a",', b'"b":' + b"1" * 20, b"}"], JSON, length, max_bytes=20)
    assert headers == [JSON, length]
    assert pieces == [b'{"model":"a","b":' + b"1" * 20, b"}"]


STREAM = (
    b'\xef\xbb\xbfdata: {"model":"m","n":1}\n\n: {"model":"m"}\r\n\r\nevent: a\rdata:{"message":{"model":"m"}}\r\r'
    b'data: {"x":"\\"model\\""}\n\ndata: [DONE]\n\n'
)
SEEN = STREAM.replace(b'"model":"m","n"', b'"model":"auto","n"').replace(b':{"model":"m"}}', b':{"model":"auto"}}')


@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_events_name_the_model_that_was_asked_for_wherever_they_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in pairwise(edges)]
    headers, pieces = run(chunks, EVENTS, (b"content-length", b"7"))
    assert headers == [EVENTS]
    assert b"".join(pieces) == SEEN


def event(model: str, **more: Any) -> bytes:
    return b"data: %s\n\n" % json.dumps({"id": 1, "model": model, **more}).encode()


ALIKE = [
    *(event("gpt-4o", n=n) for n in range(3)),
    event("gpt-4o", choices=[{"model": "gpt-4o"}]) + event("gpt-4o", n=3) + b": a comment\n\n",
    event("gpt-4o-mini", x="model"),
    event("gpt-4o", model_2={"x": "\\", "message": {"model": "gpt-4o"}}),
    event("gpt-4o", n=4) + event("gpt-5", n=5),
    event('quo"te\\', n=6),
    event('quo"te\\', n=7),
    event("", n=8),
    event("auto", n=9),
    b"data: [DONE]\n\n",
]


def test_events_that_begin_alike_are_restored_and_nothing_else_in_them() -> None:
    _, pieces = run(ALIKE, EVENTS)
    assert len(pieces) == len(ALIKE)
    for piece, chunk in zip(pieces, ALIKE, strict=True):
        for told, came in zip(piece.split(b"\n\n"), chunk.split(b"\n\n"), strict=True):
            if came[6:7] != b"{":
                assert told == came
                continue
            expected = json.loads(came[6:])
            expected["model"] = "auto" if expected["model"] else ""
            assert json.loads(told[6:]) == expected


def test_a_text_that_is_no_json_is_no_model_to_begin_with() -> None:
    chunks = [b'data: {"model":"m" x\n\n', b'data: {"a":"model","model":"m"}\n\n', b'data: {"a":"model"}\n\n']
    assert run(chunks, EVENTS)[1] == [chunks[0], chunks[1].replace(b'"m"', b'"auto"'), chunks[2]]


def test_an_event_goes_on_as_soon_as_its_line_is_there() -> None:
    _, pieces = run([b'data: {"model":"m"}\n', b"\nda", b'ta: {"model":"m"}\n\n'], EVENTS)
    assert pieces == [b'data: {"model":"auto"}\n', b"\n", b'data: {"model":"auto"}\n\n']


def test_a_line_that_is_no_data_goes_on_as_it_comes() -> None:
    chunks = [b"tok", b"en", b"s\nevent: mess", b"age\ndata: ", b'{"model":"m"}\n']
    _, pieces = run(chunks, (b"content-type", b"text/plain"), streams=True)
    assert pieces == [b"tok", b"en", b"s\nevent: mess", b"age\n", b'data: {"model":"auto"}\n']


def test_a_line_that_is_too_long_goes_on_as_it_comes_and_the_next_is_restored() -> None:
    long = b'data: {"model":"m","x":"' + b"x" * 70_000
    _, pieces = run([long, b'"y', b'"}\n\ndata: {"model":"m"}\n\n', b""], EVENTS)
    assert pieces == [long, b'"y', b'"}\n\ndata: {"model":"auto"}\n\n', b""]


@pytest.mark.parametrize("kind", [(b"content-type", b"application/x-ndjson"), (b"x-a", b"b"), JSON])
def test_a_stream_is_restored_whatever_its_label(kind: tuple[bytes, bytes]) -> None:
    _, pieces = run([b'{"model":"m"}\n{"mod', b'el":"m"}'], kind, streams=True)
    assert b"".join(pieces) == b'{"model":"auto"}\n{"model":"auto"}'


@pytest.mark.parametrize("header", [(b"content-encoding", b"gzip"), (b"content-digest", b"sha-256=:AA==:")])
def test_what_is_compressed_or_has_a_digest_goes_as_it_is_and_says_so(header: tuple[bytes, bytes]) -> None:
    body = b'{"model":"m"}'
    assert run([body], JSON, header, STATUS) == (
        [JSON, header, (b"x-session-pin-status", b"hit; restored=false")],
        [body],
    )


@pytest.mark.parametrize(
    ("headers", "arguments"),
    [([JSON], {"status": 404}), ([(b"content-type", b"text/plain")], {}), ([], {}), ([EVENTS], {"status": 500})],
)
def test_failures_and_other_types_go_as_they_are(headers: list[Any], arguments: dict[str, Any]) -> None:
    body = json.dumps({"model": "m"}).encode()
    assert run([body], *headers, **arguments) == (headers, [body])


@pytest.mark.parametrize("kind", [EVENTS, JSON])
def test_other_messages_go_as_they_are(kind: tuple[bytes, bytes]) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def answer() -> None:
        restorer = Restorer(send, "auto", streams=False, max_bytes=10)
        await restorer.send({**START, "headers": [kind]})
        await restorer.send({"type": "http.response.pathsend", "path": "/a"})

    asyncio.run(answer())
    assert sent == [{**START, "headers": [kind]}, {"type": "http.response.pathsend", "path": "/a"}]
