"""Bodies of replies, of any bytes at all, and what of them is kept."""

import gzip

from hypothesis import example, given, settings
from hypothesis import strategies as st

from asgi_session_pin.probe.evidence import BodyReader, shown
from asgi_session_pin.probe.places import names_in_body


def read(content_type: bytes, chunks: list[bytes], coding: bytes = b"") -> BodyReader:
    reader = BodyReader({b"content-type": content_type, b"content-encoding": coding}, lambda text: "hunter2" in text)
    for chunk in chunks:
        reader.feed(chunk)
    reader.end()
    return reader


JSON, EVENTS = b"application/json", b"text/event-stream"
STREAM = b': ping\n\ndata: {"model_used": "x", "a": 1}\n\ndata: {"model": "gpt"}\n\ndata: {"model": "later"}\n\n'


@settings(deadline=None)
@given(st.sampled_from([JSON, EVENTS]), st.binary(), st.integers(0, 200))
@example(EVENTS, STREAM, 31)
@example(JSON, b'{"model": "gpt", "x": {"model": "\xff"}}', 3)
def test_any_bytes_are_read_and_however_they_are_cut(kind: bytes, body: bytes, cut: int) -> None:
    whole, pieces = read(kind, [body]), read(kind, [body[:cut], body[cut:]])
    assert (whole.members, whole.failed) == (pieces.members, pieces.failed)


def test_a_stream_is_read_until_a_usual_place_names_a_model() -> None:
    reader = read(EVENTS, [STREAM])
    assert names_in_body(reader.members) == {"body:model_used": "x", "body:model": "gpt"}


def test_compressed_bodies_are_read_and_bounded() -> None:
    assert "model" in read(JSON, [gzip.compress(b'{"model": "gpt"}')], b"gzip").members
    bomb = read(JSON, [gzip.compress(b" " * 10_000_000)], b"gzip")
    assert (bomb.members, bomb.remark) == ({}, "can't be decoded, or is too large")


def test_secrets_are_no_names_and_no_codes() -> None:
    assert read(JSON, [b'{"model": "hunter2", "model_hunter2": "a", "model_b": "b"}']).members.keys() == {"model_b"}
    assert read(JSON, [b'{"error": {"code": "hunter2"}}']).remark == ""
    assert read(JSON, [b'{"error": {"code": 400, "type": "no\\nword"}}']).remark == ""
    assert read(EVENTS, [b'data: {"error": {"type": "out"}}\n\ndata: {"model": "a"}\n\n']).remark == "out"


def test_names_are_shown_escaped_and_cut() -> None:
    assert shown("é\n\x1b[31m") == r"'\xe9\n\x1b[31m'"
    assert len(shown("x" * 1000)) == 82
