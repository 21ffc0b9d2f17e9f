"""Which session is this: the id from its source, and the key under which the session's pin is kept."""

import hashlib

import msgspec

from ._json import NULL, Members, decode_string
from .config import Sessions

_encode = msgspec.msgpack.Encoder().encode

# What a model key part is when the request names none, or not by a string: the JSON text, which no name's str equals.
AskedModel = str | bytes | None

# RFC 9110, section 5.5: a field value has no control characters; tabs, which it may have, are of no use in an id.
_CONTROLS = bytes(range(0x20)) + b"\x7f"


class SessionReader:
    """Reads the session out of a request's headers."""

    def __init__(self, config: Sessions) -> None:
        self._sources = tuple(_header_name(source) for source in config.sources)
        self._partition = frozenset(_header_name(part) for part in config.partition_by if part != "model")
        self._by_model = "model" in config.partition_by
        self._max_length = config.max_id_length
        self.header_names = self._partition | set(self._sources)
        secret = (config.secret or "").encode()
        self._digest = hashlib.blake2b(digest_size=16, key=hashlib.blake2b(secret).digest() if secret else b"")

    def find_id(self, headers: dict[bytes, bytes]) -> bytes | None:
        """Return the session's id, empty if what came can't be used; None if the request has none."""
        for name in self._sources:
            if name in headers:
                session_id = headers[name].strip(b" \t")
                if b"\n" in session_id and len(set(session_id.split(b"\n"))) == 1:  # the same one, sent twice
                    session_id = session_id.partition(b"\n")[0]
                if len(session_id) > self._max_length or session_id.translate(None, _CONTROLS) != session_id:
                    return b""
                return session_id
        return None

    def key(self, session_id: bytes, headers: dict[bytes, bytes], model: AskedModel) -> bytes:
        """Return the 16 bytes under which the session's pin is kept.

        They are a digest over the id and all parts of the partition. MessagePack writes each part with its type and its
        length, so that no two different lists of parts make the same bytes.
        """
        parts: list[AskedModel] = [session_id, model if self._by_model else None]
        for name in headers:
            if name in self._partition:
                parts += name, headers[name]
        if len(parts) > 4:  # several: their order is the sender's whim
            parts[2:] = [part for name in sorted(self._partition & headers.keys()) for part in (name, headers[name])]
        digest = self._digest.copy()
        digest.update(_encode(parts))
        return digest.digest()


def _header_name(source: str) -> bytes:
    return source.removeprefix("header:").lower().encode()


def asked_model(members: Members) -> AskedModel:
    """Return the model that a request asks for."""
    if "model" not in members:
        return None
    value = members["model"]
    name = decode_string(value)
    if name is None and value != NULL:
        return bytes(value)
    return name
