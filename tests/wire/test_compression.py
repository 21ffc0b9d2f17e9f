"""Decoders by content-encoding: any chunking gives the same, and nothing decodes further than it may."""

import contextlib
import gzip
import json
import random
import tracemalloc
import types
import zlib
from collections.abc import Callable, Iterator

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from asgi_driver import JSON_TYPE, SESSION, SSE_TYPE, Answer, Header, call, read_body, respond
from asgi_session_pin import Config, Limits, SessionPinMiddleware
from asgi_session_pin.wire import compression
from asgi_session_pin.wire.compression import MAX_PIECE, decode_in_slices, open_decoder
from behaviour_document import Section, case

zstd = compression._zstd  # the standard library's, or its backport


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


CODINGS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"x-gzip": lambda data: gzip.compress(data[:3]) + gzip.compress(data[3:]) + b"\0" * 7,
    b"deflate": zlib.compress,
    b" Deflate ": raw_deflate,
    b"br": brotli.compress,
    b"zstd": lambda data: zstd.compress(data[:3]) + zstd.compress(data[3:]),
    b"gzip, br": lambda data: brotli.compress(gzip.compress(data)),
    b"zstd\nidentity\ndeflate": lambda data: zlib.compress(zstd.compress(data)),
}
ROOM = 1_000_000
each_coding = pytest.mark.parametrize("coding", CODINGS)


def decode(coding: bytes, chunks: list[bytes], room: int = ROOM) -> bytes:
    decoder = open_decoder(coding)
    assert decoder is not None
    return b"".join(decoder.decode(chunk, room) for chunk in chunks)


@each_coding
@given(data=st.binary(max_size=2000), size=st.integers(1, 500))
def test_any_chunking_gives_what_was_encoded(coding: bytes, data: bytes, size: int) -> None:
    encoded = CODINGS[coding](data)
    assert decode(coding, [encoded]) == data
    assert decode(coding, [encoded[i : i + size] for i in range(0, len(encoded), size)]) == data


@each_coding
@pytest.mark.parametrize("size", [0, 1, MAX_PIECE - 1, MAX_PIECE, MAX_PIECE + 1, 3 * MAX_PIECE])
def test_slices_give_what_was_encoded_and_none_is_large(coding: bytes, size: int) -> None:
    for data in (b"x" * size, random.Random(size).randbytes(size)):
        encoded = CODINGS[coding](data)
        decoder = open_decoder(coding)
        assert decoder is not None
        pieces = list(decode_in_slices(decoder, encoded))
        assert b"".join(pieces) == data
        assert max(map(len, pieces), default=0) <= 2 * MAX_PIECE
        assert decode(coding, [encoded], len(data) + 1) == data


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b" Deflate ", b"br", b"gzip, br"])
@given(data=st.binary(max_size=200), cut=st.integers(1, 20))
def test_what_is_cut_off_is_not_whole(coding: bytes, data: bytes, cut: int) -> None:
    decoder = open_decoder(coding)
    assert decoder is not None
    with pytest.raises(ValueError, match="cut off"):
        list(decode_in_slices(decoder, CODINGS[coding](data)[:-cut]))


def test_a_frame_that_is_cut_off_is_not_whole() -> None:
    frame = zstd.compress(b"data")
    for data, is_whole in ((frame * 2, True), (frame + frame[:-1], False), (frame[:-1], False)):
        decoder = open_decoder(b"zstd")
        assert decoder is not None
        with contextlib.nullcontext() if is_whole else pytest.raises(ValueError, match="cut off"):
            assert b"".join(decode_in_slices(decoder, data)) == b"datadata"


@each_coding
@given(data=st.binary(min_size=1, max_size=200))
def test_garbage_is_refused_or_decoded_but_never_another_exception(coding: bytes, data: bytes) -> None:
    decoder = open_decoder(coding)
    assert decoder is not None
    with contextlib.suppress(ValueError):
        decoder.decode(data, ROOM)
        decoder.decode(data, ROOM)


@each_coding
def test_nothing_decodes_to_more_than_its_room(coding: bytes) -> None:
    encoded = CODINGS[coding](b"x" * 1000)
    assert len(decode(coding, [encoded], room=1001)) == 1000
    with pytest.raises(ValueError, match="decodes to too much"):
        decode(coding, [encoded], room=1000)


@pytest.mark.parametrize("coding", [b"compress", b"gzip, something", b"gzip," * 5])
def test_a_coding_that_is_unknown_or_repeated_too_often_has_no_decoder(coding: bytes) -> None:
    assert open_decoder(coding) is None


def test_a_library_that_is_not_installed_leaves_its_coding_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compression._optional("no_such_module", "also_not_there") is None
    monkeypatch.setitem(compression._MAKERS, "br", None)
    assert open_decoder(b"br") is None
    assert open_decoder(b"gzip") is not None


def pack(total: int) -> bytes:
    """A gzip body that decodes to *total* spaces."""
    packer = zlib.compressobj(level=1, wbits=31)
    return b"".join(packer.compress(b" " * 1_000_000) for _ in range(total // 1_000_000)) + packer.flush()


async def pinned_by(body: list[bytes], *headers: Header, config: Config | None = None) -> tuple[Answer, str | None]:
    """Return the first answer of a session, and the model that its second request was pinned to."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        await respond(send, *body, headers=headers)

    middleware = SessionPinMiddleware(app, config=config)
    first = await call(middleware, {"model": "auto"}, SESSION)
    return first, (await call(middleware, {"model": "auto"}, SESSION)).headers.get("x-session-model")


@case(
    Section.RESPONSE,
    "compressed by gzip, deflate, br or zstd",
    "looked at as a copy; the bytes are those of the app",
)
@each_coding
@pytest.mark.parametrize("cut", [None, 7])
async def test_a_compressed_json_response_names_its_model(coding: bytes, cut: int | None) -> None:
    body = CODINGS[coding](json.dumps({"id": "x" * 100, "model": "a"}).encode())
    pieces = [body[:cut], body[cut:]] if cut else [body]
    length = (b"content-length", b"%d" % len(body))
    first, model = await pinned_by(pieces, JSON_TYPE, (b"content-encoding", coding), length)
    assert (first.body, model) == (body, "a")


@each_coding
async def test_a_compressed_stream_names_its_model_in_its_first_event(coding: bytes) -> None:
    body = CODINGS[coding](b'data: {"model":"a"}\n\ndata: {"model":"b"}\n\n')
    first, model = await pinned_by(
        [body[i : i + 5] for i in range(0, len(body), 5)], SSE_TYPE, (b"content-encoding", coding)
    )
    assert (first.body, model) == (body, "a")


async def test_what_is_no_gzip_passes_and_says_nothing() -> None:
    first, model = await pinned_by([b'{"model":"a"}'], JSON_TYPE, (b"content-encoding", b"gzip"))
    assert (first.body, model) == (b'{"model":"a"}', None)


async def test_the_limit_counts_decoded_bytes() -> None:
    body = gzip.compress(json.dumps({"model": "a", "text": "x" * 1000}).encode())
    assert len(body) < 100
    for limit, expected in ((2000, "a"), (1000, None)):
        config = Config(limits=Limits(max_inspected_response_bytes=limit))
        assert (await pinned_by([body], JSON_TYPE, (b"content-encoding", b"gzip"), config=config))[1] == expected


@case(Section.RESPONSE, "a bomb of 300 MB in gzip", "passes as it is, in bounded memory")
@pytest.mark.parametrize("layers", [1, 2])
async def test_a_gzip_bomb_of_300_mb_costs_bounded_memory(layers: int) -> None:
    bomb = pack(300_000_000)
    coding = b"gzip"
    if layers == 2:
        bomb, coding = gzip.compress(bomb), b"gzip, gzip"
    tracemalloc.start()
    try:
        first, model = await pinned_by([bomb], JSON_TYPE, (b"content-encoding", coding))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (first.body, model) == (bomb, None)
    assert peak < 40_000_000


def test_frames_without_end_are_refused_before_they_cost_time() -> None:
    empty = gzip.compress(b"")
    assert decode(b"gzip", [empty * 100]) == b""
    with pytest.raises(ValueError, match="too many frames"):
        decode(b"gzip", [empty * 101])


async def test_a_decoder_that_breaks_never_breaks_the_response(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(compression.Decoder):
        is_whole = True

        def pieces(self, data: bytes) -> Iterator[bytes]:
            raise TypeError("an old library")

    monkeypatch.setitem(compression._MAKERS, "br", Broken)
    first, model = await pinned_by([b"..."], JSON_TYPE, (b"content-encoding", b"br"))
    assert (first.body, model) == (b"...", None)


def test_a_brotli_that_cannot_bound_its_output_is_as_if_it_were_not_there() -> None:
    class Decompressor:
        def process(self, data: bytes) -> bytes:
            return data

    assert compression._bounded(types.SimpleNamespace(Decompressor=Decompressor)) is None
    assert compression._bounded(brotli) is brotli
    assert compression._bounded(None) is None
