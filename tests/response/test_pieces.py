"""How the body of a response is cut, whatever its label says."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_session_pin.response.pieces import MOST_LINES, Framing, Piece, Pieces, open_pieces

LIMIT = 1_000_000
JSON, EVENTS, LINES = b"application/json", b"text/event-stream", b"application/x-ndjson"


def opened(
    kind: bytes | None, *, streams: bool = True, limit: int = LIMIT, stream_limit: int = LIMIT, **headers: bytes
) -> Pieces:
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return open_pieces(named | ({} if kind is None else {b"content-type": kind}), limit, stream_limit, streams=streams)


def cut(pieces: Pieces, *chunks: bytes) -> list[Piece]:
    return [piece for i, chunk in enumerate(chunks, 1) for piece in pieces.feed(chunk, i < len(chunks))]


@pytest.mark.parametrize(
    ("kind", "streams", "content", "framing"),
    [
        (JSON, False, b"data: x", Framing.WHOLE),
        (JSON, True, b" {}", Framing.WHOLE),
        (JSON, True, b"data: x", Framing.EVENTS),
        (JSON, True, b": x\n", Framing.EVENTS),
        (JSON, True, b"x", Framing.NONE),
        (EVENTS, False, b"\r\n[]", Framing.WHOLE),
        (EVENTS, False, b"\xef\xbb\xbf<", Framing.WHOLE),
        (EVENTS, True, b"id: 1", Framing.EVENTS),
        (EVENTS, True, b"data\n", Framing.EVENTS),
        (EVENTS, True, b"retry\r", Framing.EVENTS),
        (EVENTS, True, b"x: y", Framing.EVENTS),
        (EVENTS, True, b" ", Framing.UNKNOWN),
        (LINES, True, b"data: x", Framing.LINES),
        (None, True, b"event: x", Framing.EVENTS),
        (None, True, b"error: x", Framing.EVENTS),
        (None, True, b"x: y", Framing.NONE),
        (None, True, b"database", Framing.NONE),
        (None, True, b"data", Framing.NONE),
        (None, False, b"{}", Framing.NONE),
        (b"text/plain; charset=x", True, b"{}", Framing.WHOLE),
        (b"image/png", True, b"{}", Framing.NONE),
    ],
)
def test_a_body_is_taken_for_what_its_first_bytes_are(
    kind: bytes | None, streams: bool, content: bytes, framing: Framing
) -> None:
    for chunks in ([content], [content[i : i + 1] for i in range(len(content))]):
        pieces = opened(kind, streams=streams)
        cut(pieces, *chunks)
        assert pieces.framing is framing


@pytest.mark.parametrize(
    ("kind", "content", "unread"),
    [
        (b"text/plain", b"hello", "content type 'text/plain'"),
        (None, b"hello", "content type ''"),
        (b"image/\xff" + b"x" * 300, b"{}", f"content type {'image/ÿ' + 'x' * 249!r}"),
        (EVENTS, b"hello", None),
        (b"text/plain", b"data: hello", None),
    ],
)
def test_what_can_not_be_read_tells_its_type(kind: bytes | None, content: bytes, unread: str | None) -> None:
    pieces = opened(kind)
    cut(pieces, content)
    assert pieces.unread == unread


def test_a_coding_that_is_unknown_is_told() -> None:
    pieces = opened(JSON, content_encoding=b"compress")
    assert (pieces.framing, pieces.unread) == (Framing.NONE, "content encoding 'compress'")
    assert cut(pieces, b"{}") == []


def test_a_body_is_cut_into_its_pieces() -> None:
    assert cut(opened(JSON), b"{", b"}") == [(None, b"{}")]
    pieces = opened(JSON, content_length=b"2")
    assert [pieces.feed(chunk, True) for chunk in (b"{", b"}")] == [[], [(None, b"{}")]], "before its last message"
    assert cut(opened(EVENTS), b"event: a\nda", b"ta: b\n\ndata: c") == [("a", b"b"), (None, b"c")]
    assert cut(opened(LINES), b"a\n\nb", b"c\n", b" \nd") == [(None, b"a"), (None, b"bc"), (None, b"d")]
    assert cut(opened(JSON, content_encoding=b"gzip"), gzip.compress(b"{}")) == [(None, b"{}")]
    assert cut(opened(JSON, content_encoding=b"identity"), b"{}") == [(None, b"{}")]


def test_nothing_is_cut_off_beyond_a_limit() -> None:
    for kind, content in ((JSON, b"{}   "), (EVENTS, b"data: a\n\ndata: b\n\n"), (LINES, b"a\nb\n")):
        pieces = opened(kind, streams=False, limit=len(content) - 1)
        assert (cut(pieces, content), pieces.is_over) == ([], True)
    for chunks in ([b"data: a\n\ndata: bcd\n\n"], [b"data: a\n\nda", b"ta: bcd\n\n"]):
        pieces = opened(EVENTS, stream_limit=16)
        assert (cut(pieces, *chunks), pieces.is_over) == ([(None, b"a")], True)
        assert cut(pieces, b"data: e\n\n") == []
    pieces = opened(LINES, stream_limit=3)
    assert (cut(pieces, b"a\nbc"), pieces.is_over) == ([(None, b"a")], True)


@pytest.mark.parametrize("end", [b"\n", b"\r"])
def test_a_stream_has_so_many_lines_and_no_more(end: bytes) -> None:
    pieces = opened(EVENTS)
    content = b"data: a" + end * 2 + end * (MOST_LINES - 3) + b"data: b" + end * 2
    assert (cut(pieces, content), pieces.is_over) == ([(None, b"a")], True)
    assert cut(pieces, b"data: c\n\n") == []
    pieces = opened(EVENTS)
    content = b"data: a" + end * 2 + end * (MOST_LINES - 4) + b"data: b" + end * 2
    assert (cut(pieces, content), pieces.is_over) == ([(None, b"a"), (None, b"b")], False)


def test_what_is_not_of_its_coding_is_over() -> None:
    pieces = opened(JSON, content_encoding=b"gzip")
    assert (cut(pieces, b"{}"), pieces.is_over) == ([], True)


parts = st.sampled_from(
    [
        *(
            b"data: a\n\n",
            b"data: b",
            b"event: c\n",
            b": d\n",
            b"\n",
            b"\r\n",
            b"\r",
            b"id",
            b"{}",
            b"[1]",
            b"<p>",
            b" ",
        ),
        *(b"\xef\xbb\xbf", b"x", b"data", b"error: e\n\n", b"retry:1", b"\xff"),
    ]
)


@given(
    st.lists(parts, max_size=10).map(b"".join),
    st.sampled_from([JSON, EVENTS, LINES, None]),
    st.booleans(),
    st.integers(1, 60),
    st.data(),
)
def test_any_cutting_into_chunks_gives_the_same_pieces(
    content: bytes, kind: bytes | None, streams: bool, stream_limit: int, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    chunks = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    one, many = (opened(kind, streams=streams, stream_limit=stream_limit) for _ in range(2))
    assert cut(many, *chunks) == cut(one, content)
    assert (many.framing, many.is_over, many.unread) == (one.framing, one.is_over, one.unread)
