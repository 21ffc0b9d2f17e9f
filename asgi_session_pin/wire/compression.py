"""Bounded decoders for the codings of `content-encoding` (RFC 9110, section 8.4.1), fed piece by piece.

A decoder raises ValueError for data that is not of its coding, and when the output gets to the room that it is given: a
few bytes can decode to gigabytes, so nothing is decoded further than it is of use.
"""

import contextlib
import importlib
import zlib
from typing import Any, Protocol

MAX_CODINGS = 4  # in a row; servers send one
MAX_FRAMES = 100  # one behind the other; each one costs a copy of the rest


class Decoder(Protocol):
    """Decodes one coding."""

    def decode(self, data: bytes, room: int) -> bytes:
        """Return what *data* decodes to; fewer than *room* bytes."""
        ...


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


class _Chain:
    def __init__(self, decoders: list[Decoder]) -> None:
        self._decoders = decoders

    def decode(self, data: bytes, room: int) -> bytes:
        for decoder in self._decoders:
            data = decoder.decode(data, room)
        return data


class _Frames:
    """gzip and zstd: a body may be several compressed frames, one behind the other."""

    def __init__(self, open_frame: Any, error: type[Exception]) -> None:
        self._open_frame = open_frame
        self._error = error
        self._frame = open_frame()
        self._frames = 1

    def decode(self, data: bytes, room: int) -> bytes:
        pieces: list[bytes] = []
        while data:
            if self._frame.eof:
                self._frame = self._open_frame()
                self._frames += 1
                if self._frames > MAX_FRAMES:
                    raise ValueError("too many frames")
            try:
                pieces.append(self._frame.decompress(data, room))
            except self._error:
                if self._frames == 1:
                    raise ValueError("not of its coding") from None
                break  # padding behind the last frame
            room -= len(pieces[-1])
            if room <= 0:
                raise ValueError("decodes to too much")
            data = self._frame.unused_data if self._frame.eof else b""
        return b"".join(pieces)


class _Deflate:
    """`deflate` means the zlib format, but some servers send the raw one: the first two bytes tell."""

    def __init__(self) -> None:
        self._start = b""
        self._frames: _Frames | None = None

    def decode(self, data: bytes, room: int) -> bytes:
        if self._frames is None:
            self._start += data
            if len(self._start) < 2:
                return b""
            data = self._start
            is_zlib = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0  # RFC 1950, section 2.2
            self._frames = _zlib_frames(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
        return self._frames.decode(data, room)


class _Brotli:
    def __init__(self) -> None:
        self._stream = _brotli.Decompressor()

    def decode(self, data: bytes, room: int) -> bytes:
        try:
            output: bytes = self._stream.process(data, output_buffer_limit=room)
        except _brotli.error:
            raise ValueError("not of its coding") from None
        if len(output) >= room:
            raise ValueError("decodes to too much")
        return output


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
