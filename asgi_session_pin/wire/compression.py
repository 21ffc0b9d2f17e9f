"""Bounded decoders for the codings of `content-encoding` (RFC 9110, section 8.4.1), fed piece by piece.

A decoder raises ValueError for data that is not of its coding, and when the output gets to the room that it is given: a
few bytes can decode to gigabytes, so nothing is decoded further than it is of use.
"""

import contextlib
import importlib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import chain
from typing import Any

MAX_CODINGS = 4  # in a row; servers send one
MAX_PIECE = 262_144  # bytes that are decoded at once, or decoded to: what takes no time
MAX_FRAMES = 100  # one behind the other; each one costs a copy of the rest


class Decoder(ABC):
    """Decodes one coding."""

    @property
    @abstractmethod
    def is_whole(self) -> bool:
        """Whether what was decoded may end here."""

    def decode(self, data: bytes, room: int) -> bytes:
        """Return what *data* decodes to; fewer than *room* bytes."""
        decoded: list[bytes] = []
        for piece in self.pieces(data):
            decoded.append(piece)
            room -= len(piece)
            if room <= 0:
                raise ValueError("decodes to too much")
        return b"".join(decoded)

    @abstractmethod
    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield what *data* decodes to in pieces of about `MAX_PIECE` bytes at most."""


def open_decoder(content_encoding: bytes) -> Decoder | None:
    """Return a decoder for the codings that a header names, in the order they were applied; None if one is unknown."""
    names = content_encoding.replace(b"\n", b",").decode("latin-1").lower().split(",")
    makers = [_MAKERS.get(name.strip()) for name in names if name.strip() not in ("", "identity")]
    decoders = [maker() for maker in reversed(makers) if maker is not None]
    if len(decoders) < len(makers) or len(decoders) > MAX_CODINGS:
        return None
    return decoders[0] if len(decoders) == 1 else _Chain(decoders)


def decode_whole(data: bytes, content_encoding: bytes, room: int) -> bytes:
    """Return what a whole body decodes to, at most *room* bytes; empty where it can't be decoded."""
    decoder = open_decoder(content_encoding)
    try:
        return b"" if decoder is None else decoder.decode(data, room)
    except Exception:  # whatever a decoder does
        return b""


def decode_in_slices(decoder: Decoder, data: bytes) -> Iterator[bytes]:
    """Yield what a whole body decodes to, in pieces none of which takes long; raises ValueError if it is broken."""
    for start in range(0, len(data), MAX_PIECE):
        if start:
            yield b""
        yield from decoder.pieces(data[start : start + MAX_PIECE])
    if not decoder.is_whole:
        raise ValueError("cut off")


class _Chain(Decoder):
    def __init__(self, decoders: list[Decoder]) -> None:
        self._decoders = decoders

    @property
    def is_whole(self) -> bool:
        return all(decoder.is_whole for decoder in self._decoders)

    def decode(self, data: bytes, room: int) -> bytes:
        return super().decode(data, room) if self._decoders else data  # which is there already

    def pieces(self, data: bytes) -> Iterator[bytes]:
        pieces = iter((data,))
        for decoder in self._decoders:
            pieces = chain.from_iterable(map(decoder.pieces, pieces))
        return pieces


class _Frames(Decoder):
    """gzip and zstd: a body may be several compressed frames, one behind the other."""

    def __init__(self, open_frame: Any, error: type[Exception]) -> None:
        self._open_frame = open_frame
        self._error = error
        self._frame = open_frame()
        self._frames = 1
        self._is_whole = False

    @property
    def is_whole(self) -> bool:
        return self._is_whole

    def pieces(self, data: bytes) -> Iterator[bytes]:
        more = bool(data)
        while more:
            if self._frame.eof:
                self._frame = self._open_frame()
                self._frames += 1
                if self._frames > MAX_FRAMES:
                    raise ValueError("too many frames")
            try:
                piece = self._frame.decompress(data, MAX_PIECE)
            except self._error:
                if self._frames == 1:
                    raise ValueError("not of its coding") from None
                return  # padding behind the last frame
            yield piece
            self._is_whole = self._frame.eof
            data = self._frame.unused_data if self._frame.eof else getattr(self._frame, "unconsumed_tail", b"")
            more = bool(data) or (len(piece) == MAX_PIECE and not self._frame.eof)  # zstd keeps what it did not consume


class _Deflate(Decoder):
    """`deflate` means the zlib format, but some servers send the raw one: the first two bytes tell."""

    def __init__(self) -> None:
        self._start = b""
        self._frames: _Frames | None = None

    @property
    def is_whole(self) -> bool:
        return self._frames is not None and self._frames.is_whole

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if self._frames is None:
            self._start += data
            if len(self._start) < 2:
                return iter(())
            data = self._start
            is_zlib = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0  # RFC 1950, section 2.2
            self._frames = _zlib_frames(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
        return self._frames.pieces(data)


class _Brotli(Decoder):
    def __init__(self) -> None:
        self._stream = _brotli.Decompressor()

    @property
    def is_whole(self) -> bool:
        return bool(self._stream.is_finished())

    def pieces(self, data: bytes) -> Iterator[bytes]:
        more = True
        while more:
            try:
                piece: bytes = self._stream.process(data, output_buffer_limit=MAX_PIECE)
            except _brotli.error:
                raise ValueError("not of its coding") from None
            yield piece
            data = b""
            more = len(piece) >= MAX_PIECE


def _zlib_frames(window_bits: int) -> _Frames:
    return _Frames(lambda: zlib.decompressobj(window_bits), zlib.error)


def _gzip() -> Decoder:
    return _zlib_frames(16 + zlib.MAX_WBITS)


def _zstandard() -> Decoder:
    return _Frames(_zstd.ZstdDecompressor, _zstd.ZstdError)


def _optional(*modules: str) -> Any:
    """Return the first of *modules* that is installed, or None."""
    for module in modules:
        with contextlib.suppress(ImportError):
            return importlib.import_module(module)
    return None


def _bounded(brotli: Any) -> Any:
    """Return *brotli* if it can bound its output, which it can since 1.2; None otherwise."""
    try:
        brotli.Decompressor().process(b"", output_buffer_limit=1)
    except Exception:
        return None
    return brotli


_brotli = _bounded(_optional("brotli", "brotlicffi"))
_zstd = _optional("compression.zstd", "backports.zstd")
_MAKERS: dict[str, Any] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _Deflate,
    "br": _Brotli if _brotli else None,
    "zstd": _zstandard if _zstd else None,
}
