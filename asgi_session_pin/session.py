"""Which session is this: the id from its source, and the key under which the session's pin is kept."""

import hashlib
import re

import msgspec

from .config import Sessions

_encode = msgspec.msgpack.Encoder().encode

# What a model key part is when the request names none, or not by a string: the JSON text, which no name's str equals.
AskedModel = str | bytes | None


class SessionReader:
    """Reads the session out of a request's headers."""

    def __init__(self, config: Sessions) -> None:
        self._sources = tuple(_header_name(source) for source in config.sources)
        self._partition = tuple(_header_name(part) for part in config.partition_by if part != "model")
        self.by_model = "model" in config.partition_by
        self.header_names = {*self._sources, *self._partition}
        # RFC 9110, section 5.5: a field value has no control characters; tabs are of no use in an id.
        self._valid = re.compile(rb"[^\x00-\x1f\x7f]{1,%d}" % config.max_id_length).fullmatch
        secret = (config.secret or "").encode()
        self._digest = hashlib.blake2b(digest_size=16, key=hashlib.blake2b(secret).digest() if secret else b"")

    def find_id(self, headers: dict[bytes, bytes]) -> bytes | None:
        """Return the session's id as it came, without white space around it, or None if the request has none."""
        for name in self._sources:
            if name in headers:
                return headers[name].strip(b" \t")
        return None

    def is_valid(self, session_id: bytes) -> bool:
        """Tell whether an id can be used. One that came twice with different values holds a newline, and can't."""
        return self._valid(session_id) is not None

    def key(self, session_id: bytes, headers: dict[bytes, bytes], model: AskedModel) -> bytes:
        """Return the 16 bytes under which the session's pin is kept.

        They are a digest over the id and all parts of the partition. MessagePack writes each part with its type and its
        length, so that no two different lists of parts make the same bytes.
        """
        digest = self._digest.copy()
        digest.update(_encode((session_id, model if self.by_model else None, *map(headers.get, self._partition))))
        return digest.digest()


def _header_name(source: str) -> bytes:
    return source.removeprefix("header:").lower().encode()
