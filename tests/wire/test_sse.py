import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asgi_session_pin.wire.sse import EventDecoder

BOM = b"\xef\xbb\xbf"


def decode(chunks: Iterable[bytes]) -> list[bytes]:
    decoder = EventDecoder()
    return [data for chunk in chunks for data in feed(decoder, chunk)]


def feed(decoder: EventDecoder, chunk: bytes) -> list[bytes]:
    return [data for _, data in decoder.feed(chunk)]


def byte_by_byte(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


def reference(stream: bytes) -> list[bytes]:
    """The rules of WHATWG HTML, 9.2.5 and 9.2.6, applied to a whole stream."""
    text = stream.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    *lines, _without_its_end = text.split(b"\n")
    events: list[bytes] = []
    data = b""
    for line in lines:
        if line == b"":
            if data != b"":
                events.append(data[:-1])  # the last line feed goes
            data = b""
        elif line.startswith(b":"):
            pass
        elif b":" in line:
            colon = line.index(b":")
            value = line[colon + 1 :]
            if value[:1] == b" ":
                value = value[1:]
            if line[:colon] == b"data":
                data += value + b"\n"
        elif line == b"data":
            data += b"\n"
    return [event for event in events if event]  # one with an empty data would be fired, but tells no model


ends = st.sampled_from([b"\n", b"\r", b"\r\n"])
lines = st.sampled_from(
    [
        *(b"", b"", b"data: a", b"data:b", b"data:  c", b"data", b"data:", b"data: ", b"data: x:y", b"data:\xff\x00"),
        *(b":", b": comment", b":data: d", b"event: data", b"id: 1", b"retry: 5", b"no colon", b" data: e", b"Data: f"),
        *(b"data : g", b"datum: h", BOM, BOM + b"data: i", b"data: " + BOM, b"data: \x0b\x0c\x1c\xc2\x85\xe2\x80\xa8."),
    ]
)
written = st.lists(st.tuples(lines, ends), max_size=12).map(lambda parts: b"".join(map(b"".join, parts)))
# Too short for words, so that every order of the special characters is met.
scrambled = st.lists(st.sampled_from([b"data", b":", b" ", b"\r", b"\n", b"x", BOM]), max_size=16).map(b"".join)
streams = st.builds(
    lambda bom, stream, rest: bom + stream + rest, st.sampled_from([b"", BOM]), written | scrambled, lines
)


@given(streams, st.data())
@settings(max_examples=400, deadline=None)
def test_any_chunking_gives_the_events_of_the_whole_stream(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))  # a cut twice is an empty chunk
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    expected = reference(stream)
    assert decode([stream]) == expected
    assert decode(chunks) == expected
    assert decode(byte_by_byte(stream)) == expected


@given(streams)
@example(b"data: a\n\ndata: b\r\rdata: c\r\n\r\n")
@settings(max_examples=100, deadline=None)
def test_an_event_is_given_with_its_blank_line_and_not_before(stream: bytes) -> None:
    decoder = EventDecoder()
    for end in range(1, len(stream) + 1):
        given_now = feed(decoder, stream[end - 1 : end])
        # The line feed of a CRLF ends nothing: the carriage return did.
        assert reference(stream[: end - 1]) + given_now == reference(stream[:end])


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"", []),
        (b"data: a\n\n", [b"a"]),
        (b"data: a\r\r", [b"a"]),
        (b"data: a\r\n\r\n", [b"a"]),
        (b"data: a\n\r\n", [b"a"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\nid: 1\n: keep-alive\ndata: b\n\n", [b"a\nb"]),
        (b"event: message\ndata: a\n\n", [b"a"]),
        (b"data:a\n\ndata:  a\n\n", [b"a", b" a"]),
        (b"data\ndata\n\n", [b"\n"]),
        (b"data\n\ndata:\n\n", []),
        (b"\n\n\ndata: a\n\n\n\n", [b"a"]),
        (b": ping\n\n", []),
        (BOM + b"data: a\n\n", [b"a"]),
        (BOM + b"\ndata: a\n\n", [b"a"]),
        (BOM + BOM + b"data: a\n\ndata: b\n\n", [b"b"]),
        (b"data: a\n\n" + BOM + b"data: b\n\n", [b"a"]),
        (b"data: a", []),
        (b"data: a\n", []),
        (b"data: a\r\n", []),
        (b"data: a\n\ndata: b\n", [b"a"]),
        (b"data: a\x0bb\x0cc\x1cd\xc2\x85e\xe2\x80\xa8f\n\n", [b"a\x0bb\x0cc\x1cd\xc2\x85e\xe2\x80\xa8f"]),
    ],
)
def test_events_of_a_stream(stream: bytes, expected: list[bytes]) -> None:
    assert decode([stream]) == expected
    assert decode(byte_by_byte(stream)) == expected


def test_a_crlf_cut_in_two_is_one_line_end() -> None:
    decoder = EventDecoder()
    assert feed(decoder, b"data: a\r") == []
    assert feed(decoder, b"") == []
    assert feed(decoder, b"\n") == []
    assert feed(decoder, b"data: b\r") == []
    assert feed(decoder, b"\n\r") == [b"a\nb"]
    assert feed(decoder, b"\ndata: c\n\n") == [b"c"]


def test_an_event_does_not_wait_for_the_line_feed_that_may_follow_a_carriage_return() -> None:
    assert feed(EventDecoder(), b"data: a\r\n\r") == [b"a"]


def test_events_that_are_not_asked_for_are_behind_it_all_the_same() -> None:
    decoder = EventDecoder()
    assert next(iter(decoder.feed(b"data: a\n\ndata: b\n\ndata: c"))) == (None, b"a")
    assert feed(decoder, b"c\n\n") == [b"cc"]


@pytest.mark.parametrize("size", [2, 65_536])
def test_a_line_in_many_pieces_costs_memory_by_its_bytes(size: int) -> None:
    total = 12_000_000 if size > 2 else 1_000_000
    count = total // size
    pieces = [bytes(size - 1) + b"%d" % (number % 10) for number in range(10)]
    decoder = EventDecoder()
    decoder.feed(b"data:")
    tracemalloc.start()
    try:
        for number in range(count):
            assert feed(decoder, pieces[number % 10]) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * total
    [data] = feed(decoder, b"\n\n")
    assert len(data) == count * size
    assert data.startswith(pieces[0] + pieces[1])


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"event: ping\ndata: {}\n\n", [("ping", b"{}")]),
        (b"data: {}\nevent:error\n\n", [("error", b"{}")]),
        (b"event: a\nevent: b\ndata: 1\n\ndata: 2\n\n", [("b", b"1"), (None, b"2")]),
        (b"event:\ndata: 1\n\n", [(None, b"1")]),
        (b"event: ping\n\n", []),
        (b'error: {"code":500}\n\n', [("error", b'{"code":500}')]),
        (b"error: not this\ndata: 1\n\n", [(None, b"1")]),
        (b"event: \xff\ndata: 1\n\n", [("\ufffd", b"1")]),
    ],
)
def test_names_of_events(stream: bytes, expected: list[tuple[str | None, bytes]]) -> None:
    assert list(EventDecoder().feed(stream)) == expected
