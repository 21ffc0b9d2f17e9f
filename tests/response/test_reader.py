"""Where a response names the model that the router chose, and when that is known."""

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_session_pin import Config, Decisions, Limits
from asgi_session_pin.response.reader import STREAM_BYTES, Reader, open_plain_reader, open_reader
from asgi_session_pin.response.rules import ModelRules
from asgi_session_pin.wire.headers import EVENTS, JSON

RULES = ModelRules(Config())
TYPES = {"json": b"application/json", "events": b"text/event-stream", "lines": b"application/x-ndjson"}


def opened(kind: str, rules: ModelRules = RULES, *, streams: bool = False, **headers: bytes) -> Reader:
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return open_reader(rules, {b"content-type": TYPES[kind], **named}, "auto", streams=streams)


def fed(reader: Reader, chunks: Iterable[bytes]) -> Reader:
    *first, last = chunks
    for chunk in first:
        if not reader.finished:
            reader.feed(chunk, True)
    if not reader.finished:
        reader.feed(last, False)
    assert reader.finished
    return reader


def named(reader: Reader) -> str | None:
    return None if reader.found is None else reader.found.model


@pytest.mark.parametrize(
    ("kind", "content", "model"),
    [
        ("json", b'{"model":"a"}', "a"),
        ("json", b'{"message":{"model":"a"}}', "a"),
        ("json", b'{"models":["a"]}', "a"),
        ("json", b"{}", None),
        ("json", b"no", None),
        ("json", b"", None),
        ("json", b'[{"model":"a"}]', None),
        ("events", b'data: {"model":"a"}\n\n', "a"),
        ("events", b'data: [DONE]\n\ndata: no\n\ndata: {"response":{"model":"a"}}', "a"),
        ("events", b"data: {}\n\n", None),
        ("events", b'{"model":"a"}', "a"),
        ("lines", b'{}\n{"model":"a"}\n', "a"),
    ],
)
def test_a_body_names_its_model(kind: str, content: bytes, model: str | None) -> None:
    reader = fed(opened(kind), [content])
    assert (named(reader), reader.failed) == (model, False)
    assert named(fed(opened(kind), [bytes([byte]) for byte in content] + [b""])) == model


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("json", b'{"error":{},"type":"error","model":"a"}'),
        ("json", b'[{"error":{"code":1}}]'),
        ("json", b"<html>"),
        ("events", b'data: {"error":{"code":1},"model":"a"}\n\n'),
        ("events", b'event: error\ndata: {"model":"a"}\n\n'),
        ("events", b'event: response.failed\ndata: {"model":"a"}\n\n'),
        ("lines", b'{"error":"no","model":"a"}'),
    ],
)
def test_from_an_error_nothing_is_learned(kind: str, content: bytes) -> None:
    reader = fed(opened(kind), [content])
    assert (named(reader), reader.failed) == (None, True)


def test_an_unusable_name_does_not_end_the_search() -> None:
    reader = opened("events")
    reader.feed(b'data: {"model":"none"}\n\ndata: {"model":""}\n\n', True)
    assert not reader.finished
    reader.feed(b'data: {"model":"a"}\n\n', True)
    assert (reader.finished, named(reader)) == (True, "a")
    reader = fed(opened("events"), [b'data: {"model":"none"}\n\n', b"data: {}\n\n"])
    assert reader.found is not None
    assert (reader.found.name, reader.found.model) == ("none", None)


def test_a_stream_is_searched_for_so_many_bytes() -> None:
    for before, model in ((STREAM_BYTES - 40, "a"), (STREAM_BYTES, None)):
        reader = opened("events")
        reader.feed(b":" + b"x" * (before - 3) + b"\n\n", True)
        if not reader.finished:
            reader.feed(b'data: {"model":"a"}\n\n', True)
        assert named(reader) == model
        assert reader.finished


def test_a_body_is_searched_up_to_its_limit() -> None:
    rules = ModelRules(Config(limits=Limits(max_inspected_response_bytes=20)))
    for content, model in ((b'{"model":"a"}', "a"), (b'{"model":"a"}        ', None)):
        for chunks in ([content], [content[:5], content[5:]]):
            plain = open_plain_reader(rules, [(b"content-type", TYPES["json"])], "auto")
            assert named(fed(plain, chunks)) == named(fed(opened("json", rules), chunks)) == model


def test_a_header_that_comes_first_ends_the_search_before_the_body() -> None:
    rules = ModelRules(Config(decisions=Decisions(sources=("header:x-model", "body:model"))))
    reader = opened("json", rules, x_model=b"a")
    assert (reader.finished, named(reader)) == (True, "a")
    reader = opened("json", rules, x_model=b"none")
    assert named(fed(reader, [b'{"model":"b"}'])) == "b"
    rules = ModelRules(Config(decisions=Decisions(sources=("body:model", "header:x-model"))))
    assert named(fed(opened("json", rules, x_model=b"a"), [b"{}"])) == "a"
    assert named(fed(opened("json", rules, x_model=b"a"), [b'{"model":"b"}'])) == "b"
    rules = ModelRules(Config(decisions=Decisions(sources=("header:x-model",))))
    reader = opened("json", rules)
    assert (reader.finished, named(reader)) == (True, None)


def test_what_can_not_be_read_is_told_and_only_its_headers_say_anything() -> None:
    reader = open_reader(RULES, {b"content-type": b"image/png"}, 7, streams=True)
    assert (reader.finished, reader.unread, reader.kind) == (True, "content type 'image/png'", None)
    reader = fed(open_reader(RULES, {b"content-type": b"text/plain"}, "auto", streams=True), [b"hello"])
    assert (named(reader), reader.unread) == (None, "content type 'text/plain'")
    assert open_plain_reader(RULES, [], None).unread is None


def test_the_kind_of_a_body_is_that_of_its_bytes() -> None:
    assert fed(opened("json"), [b"{}"]).kind == JSON
    assert fed(opened("json", streams=True), [b"data: {}\n\n"]).kind == EVENTS
    assert fed(opened("events", streams=True), [b"{}"]).kind == JSON
    assert fed(opened("lines", streams=True), [b"{}\n"]).kind == EVENTS
    assert open_plain_reader(RULES, [], None).kind == JSON


def test_where_a_decision_is_wanted_only_a_json_object_is_one() -> None:
    reader = open_reader(RULES, {b"content-type": TYPES["events"]}, "auto", streams=True, whole=True)
    assert (reader.finished, reader.failed) == (True, True)
    reader = open_reader(RULES, {b"content-type": TYPES["json"]}, "auto", streams=True, whole=True)
    assert bytes(fed(reader, [b'{"model":"a"}']).members["model"]) == b'"a"'


values = st.recursive(
    st.sampled_from([None, 1, "", "a", "none", "error", "x" * 300, "\udfff", "ключ"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["model", "message", "response", "models", "error"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(values, max_size=4), st.sampled_from(["json", "events", "lines"]), st.booleans(), st.data())
def test_any_cutting_of_a_response_names_the_same_model(
    items: list[object], kind: str, streams: bool, data: st.DataObject
) -> None:
    texts = [json.dumps(item).encode() for item in items]
    form = {"json": b"%s", "events": b"data: %s\n\n", "lines": b"%s\n"}[data.draw(st.sampled_from(sorted(TYPES)))]
    content = b"".join(form % text for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    chunks = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    one, many = fed(opened(kind, streams=streams), [content]), fed(opened(kind, streams=streams), chunks)
    assert (many.found, many.failed, many.kind) == (one.found, one.failed, one.kind)
