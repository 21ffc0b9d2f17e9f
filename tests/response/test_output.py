"""Whether a 2xx answer gives output, as far as it has come."""

import gzip
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_session_pin.response.errors import Error
from asgi_session_pin.response.output import (
    HELD_BYTES,
    LOOKED_AT_BYTES,
    MOST_LOOKS,
    Output,
    Seen,
    late_error,
    look_at_body,
    look_at_event,
    open_output,
)
from asgi_session_pin.response.pieces import Framing

JSON, EVENTS, LINES, TEXT = b"application/json", b"text/event-stream", b"application/x-ndjson", b"text/plain"
ERROR = b'{"error":{"message":"no"}}'
PRELUDE = b'data: {"type":"message_start"}\n\n'


def opened(kind: bytes | None, *, streams: bool = True, coding: bytes | None = None) -> Output:
    headers = {} if kind is None else {b"content-type": kind}
    return open_output(headers | ({} if coding is None else {b"content-encoding": coding}), streams=streams)


def shown(chunks: Iterable[bytes], kind: bytes | None, *, streams: bool = True, coding: bytes | None = None) -> Seen:
    output = opened(kind, streams=streams, coding=coding)
    *first, last = chunks
    for chunk in first:
        if output.feed(chunk, True) in (Seen.OUTPUT, Seen.ERROR):
            return output.seen
    return output.feed(last, False)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("content", "kind", "seen"),
    [
        (b"{}", JSON, Seen.OUTPUT),
        (b"no", JSON, Seen.OUTPUT),
        (b"[1]", JSON, Seen.OUTPUT),
        (b"[]", JSON, Seen.OUTPUT),
        (ERROR, JSON, Seen.ERROR),
        (b"[" + ERROR + b"]", JSON, Seen.ERROR),
        (b"<html>", JSON, Seen.ERROR),
        (b"  <html>", b"Text/HTML; charset=utf-8", Seen.ERROR),
        (b"", b"text/html", Seen.NOTHING),
        (b"", JSON, Seen.NOTHING),
        (b" \r\n", JSON, Seen.NOTHING),
        (b"", None, Seen.NOTHING),
        (ERROR, None, Seen.ERROR),
        (ERROR, TEXT, Seen.ERROR),
        (ERROR, b"Text/Plain; charset=utf-8", Seen.ERROR),
        (b"data: " + ERROR, None, Seen.ERROR),
        (b"hello", None, Seen.OUTPUT),
        (b"dat", None, Seen.OUTPUT),
        (ERROR, b"image/png", Seen.OUTPUT),
        (b"", b"image/png", Seen.NOTHING),
        (ERROR, EVENTS, Seen.ERROR),
        (b"event: x", EVENTS, Seen.NOTHING),
        (b"dat", EVENTS, Seen.NOTHING),
        (b": x\n\ndata: " + ERROR, EVENTS, Seen.ERROR),
        (b"data: x", EVENTS, Seen.OUTPUT),
        (PRELUDE, EVENTS, Seen.PRELUDE),
        (PRELUDE + b": x\n\ndata: [DONE]\n\n", EVENTS, Seen.PRELUDE),
        (ERROR + b"\n{}", LINES, Seen.ERROR),
        (b'\n\n{"type":"ping"}\n{}', LINES, Seen.OUTPUT),
        (b'{"type":"ping"}\n', LINES, Seen.NOTHING),
    ],
)
def test_what_an_answer_shows(content: bytes, kind: bytes | None, seen: Seen, streams: bool) -> None:
    assert shown([content], kind, streams=streams) is seen
    assert shown([bytes([byte]) for byte in content] + [b""], kind, streams=streams) is seen


def test_an_answer_shows_its_output_as_soon_as_it_comes() -> None:
    output = opened(EVENTS)
    assert [output.feed(chunk, True) for chunk in (b": x\n\n", PRELUDE[:9], PRELUDE[9:], b"data: x\n", b"\n")] == [
        *(Seen.NOTHING, Seen.NOTHING, Seen.PRELUDE, Seen.PRELUDE, Seen.OUTPUT)
    ]
    assert output.framing is Framing.EVENTS


def test_the_facts_of_an_error_are_kept() -> None:
    output = opened(EVENTS)
    assert output.feed(b'data: {"error":{"code":"x","message":"no"}}\n\n', True) is Seen.ERROR
    assert output.error == Error(frozenset({"x"}), None, "no")


def test_a_compressed_answer_is_looked_at_where_its_coding_is_known() -> None:
    output = opened(EVENTS, coding=b"gzip")
    assert output.feed(gzip.compress(b"data: " + ERROR), False) is Seen.ERROR
    assert output.framing is Framing.NONE, "it can't be read as it is sent"
    assert shown([b"no gzip"], EVENTS, coding=b"gzip") is Seen.OUTPUT
    assert shown([ERROR], JSON, coding=b"unknown") is Seen.OUTPUT
    assert shown([ERROR], JSON, coding=b"identity") is Seen.ERROR


def test_a_body_larger_than_any_error_is_output_before_it_is_whole() -> None:
    output = opened(JSON)
    assert output.feed(b'{"error":"' + b"x" * HELD_BYTES, True) is Seen.OUTPUT
    assert look_at_body(b'{"error":"%s"}' % (b"x" * HELD_BYTES)) is Seen.OUTPUT


@pytest.mark.parametrize(
    ("piece", "count"),
    [
        (b'data: {"choices":[]}\n\n', MOST_LOOKS + 1),
        (b": x\n\n", 10_001),
        (b"data:\n", 20_001),
        (b": " + b"x" * 1000 + b"\n\n", LOOKED_AT_BYTES // 1004 + 1),
    ],
)
def test_a_stream_is_looked_at_so_far_and_no_further(piece: bytes, count: int) -> None:
    output = opened(EVENTS)
    assert output.feed(piece * (count - 2), True) is not Seen.OUTPUT
    assert output.feed(piece * 2, True) is Seen.OUTPUT
    assert opened(EVENTS).feed(piece * (8 * LOOKED_AT_BYTES // len(piece)), True) is Seen.OUTPUT, "also at once"


@pytest.mark.parametrize(
    ("event", "data", "seen"),
    [
        (None, b"{}", Seen.OUTPUT),
        (None, b"no", Seen.OUTPUT),
        (None, b"<p>", Seen.OUTPUT),
        (None, b"[1]", Seen.OUTPUT),
        (None, b"[" * 100_000, Seen.OUTPUT),
        (None, b"[DONE]", Seen.NOTHING),
        ("ping", b"{}", Seen.NOTHING),
        (None, b'{"type":"ping"}', Seen.NOTHING),
        ("message_start", b'{"message":{}}', Seen.PRELUDE),
        ("message_start", b'{"type":"content_block_delta"}', Seen.OUTPUT),
        *((None, b'{"type":"response.%s"}' % kind, Seen.PRELUDE) for kind in (b"created", b"in_progress", b"queued")),
        (None, b'{"type":"response.completed"}', Seen.OUTPUT),
        (None, b'{"type":1}', Seen.OUTPUT),
        (None, b'{"choices":null}', Seen.PRELUDE),
        (None, b'{"choices":[]}', Seen.PRELUDE),
        (None, b'{"choices":[{"index":0}]}', Seen.PRELUDE),
        (None, b'{"choices":[{"delta":null,"finish_reason":null}]}', Seen.PRELUDE),
        (None, b'{"choices":[{"delta":{"role":"assistant","content":"","tool_calls":[]}}]}', Seen.PRELUDE),
        (None, b'{"choices":[{"delta":{"content":null,"x":{}}}]}', Seen.PRELUDE),
        (None, b'{"choices":[{"text":""}]}', Seen.PRELUDE),
        (None, b'{"choices":[{"delta":{}},{"delta":{"content":" "}}]}', Seen.OUTPUT),
        (None, b'{"choices":[{"delta":{"audio":{"id":1}}}]}', Seen.OUTPUT),
        (None, b'{"choices":[{"message":{"role":"assistant","content":"hello"}}]}', Seen.OUTPUT),
        (None, b'{"choices":[{"text":"hello"}]}', Seen.OUTPUT),
        (None, b'{"choices":[{"delta":{},"finish_reason":"stop"}]}', Seen.OUTPUT),
        (None, b'{"choices":"hello"}', Seen.OUTPUT),
        (None, b'{"choices":[{"delta":{"x":' + b"[" * 3000 + b"]" * 3000 + b"}}]}", Seen.OUTPUT),
        (None, b'{"choices":[' + b"{}," * 30_000 + b"{}]}", Seen.OUTPUT),
    ],
)
def test_what_an_event_shows(event: str | None, data: bytes, seen: Seen) -> None:
    assert look_at_event(event, data) is seen


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (None, ERROR),
        (None, b"[" + ERROR + b"]"),
        ("error", b"no"),
        ("error", b"{}"),
        ("response.failed", b"no"),
        (None, b'{"choices":[{"finish_reason":"error"}]}'),
    ],
)
def test_an_event_that_is_an_error(event: str | None, data: bytes) -> None:
    assert isinstance(look_at_event(event, data), Error)


@pytest.mark.parametrize(
    ("chunks", "framing", "fails"),
    [
        ([b"data: x\n\n", b"data: " + ERROR + b"\n\n", b"data: [DONE]\n\n"], Framing.EVENTS, True),
        ([b"data: x\n\nda", b"ta: " + ERROR[:7], ERROR[7:]], Framing.EVENTS, True),
        ([b'nt: x\ndata: {"a', b'":1}\n\nevent: error\n', b"data: no\n\n"], Framing.EVENTS, True),
        ([b"event: response.failed\ndata: no\n\n"], Framing.EVENTS, True),
        ([b'data: {"type":"response.failed"}\n\n'], Framing.EVENTS, True),
        ([b"{}\n" + ERROR], Framing.LINES, True),
        ([b"data: there was an error\n\n"], Framing.EVENTS, False),
        ([b'data: {"delta":"error, failed"}\n\n'], Framing.EVENTS, False),
        ([b"data: x\n\n"], Framing.EVENTS, False),
        ([], Framing.EVENTS, False),
        ([b"data: " + ERROR + b"\n\n", b"data: x\n\n" * 10_000], Framing.EVENTS, False),
        ([b"data: x\n\n" * 10_000, b"data: " + ERROR + b"\n\n"], Framing.EVENTS, True),
    ],
)
def test_an_error_at_the_end_of_a_stream(chunks: list[bytes], framing: Framing, fails: bool) -> None:
    assert (late_error(chunks, framing) is not None) is fails


parts = st.sampled_from(
    [
        *(
            b"data: {}\n\n",
            b"data: x",
            b": x\n",
            b"\n",
            b"\r\n",
            b"\r",
            b"event: error\n",
            b"event: ping\n",
            b"[",
            b"{",
        ),
        *(
            b"data: [DONE]\n\n",
            PRELUDE,
            b"data: " + ERROR + b"\n\n",
            ERROR,
            b"error: x\n\n",
            b"<html>",
            b"\xef\xbb\xbf",
        ),
        *(b" ", b"dat", b"a", b"id", b'data: {"choices":[{"delta":{}}]}\n\n', b"]", b"}", b"\xff", b"data: [[\n\n"),
    ]
)
kinds = st.sampled_from([JSON, EVENTS, LINES, TEXT, None, b"text/html", b"image/png"])


@given(st.lists(parts, max_size=8).map(b"".join), kinds, st.booleans(), st.data())
def test_any_cutting_of_an_answer_shows_the_same(
    content: bytes, kind: bytes | None, streams: bool, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    chunks = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    assert shown(chunks, kind, streams=streams) is shown([content], kind, streams=streams)
