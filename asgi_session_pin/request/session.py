"""Which session is this: the id from its source, and the key under which the session's pin is kept."""

import hashlib
from collections.abc import Iterable
from itertools import chain
from operator import itemgetter

import msgspec

from ..config import Sessions
from ..config.settings import FINGERPRINT
from ..pin import TENANT_BYTES
from ..wire.json import NULL, TRUE, Members, decode_model, find_string
from .fingerprint import fingerprint

_encode = msgspec.msgpack.Encoder().encode

MAX_NAME = 256  # characters; what is longer is kept as its digest, as it lives as long as the answer

# What a model key part is: a name, None, or the digest of what is no name, which no name's str equals.
AskedModel = str | bytes | None

_RESPONSE_INPUTS = frozenset({"input", "prompt", "previous_response_id", "conversation"})

# What coding agents send unasked. Not x-client-request-id: in some clients it is new for each request.
# What the APIs have in the body: a conversation is the Responses API's own, by its id or as an object with it; a key of
# the prompt cache may be as wide as its sender likes, so it comes last.
PRESETS = {
    "preset:coding-agents": (
        "header:x-session-id",
        "header:x-claude-code-session-id",
        "header:session-id",
        "header:session_id",
        "header:x-session-affinity",
        "header:x-opencode-session",
        "header:x-amp-thread-id",
        "header:x-litellm-session-id",
        "header:agent-session-id",
    ),
    "preset:body-ids": ("body:conversation", "body:conversation.id", "body:prompt_cache_key"),
}

# RFC 9110, section 5.5: a field value has no control characters; tabs, which it may have, are of no use in an id.
_CONTROLS = bytes(range(0x20)) + b"\x7f"
# An id that has none of these, and more than nine bytes, has nothing to trim and is no placeholder.
_ODD = _CONTROLS + b" {<"
_PLACEHOLDERS = frozenset({b"undefined", b"null", b"none", b"nil"})
_LONGEST_PLACEHOLDER = max(map(len, _PLACEHOLDERS))


class SessionReader:
    """Reads the session out of a request's headers and body.

    With *tells_tenants* a key begins with a digest of the credential alone, by which a store can tell whose it is.
    """

    def __init__(self, config: Sessions, sources: Iterable[str], *, tells_tenants: bool = False) -> None:
        names = [part for source in sources for part in PRESETS.get(source, (source,))]
        self._takes_fingerprints = FINGERPRINT in names
        self._named = [(name, *_read_source(name)) for name in names if name != FINGERPRINT]
        self._sources = [(header, path) for _, header, path in self._named]
        self._partition = frozenset(_read_source(part)[0] for part in config.partition_by)
        self._max_length = config.max_id_length
        self.by_model = config.pin_per == "model"
        self.reads_bodies = self._takes_fingerprints or any(path for _, path in self._sources)
        self.id_headers = frozenset(name for name, path in self._sources if not path)
        self.header_names = self._partition | self.id_headers
        self._tells_tenants = tells_tenants
        secret = (config.secret or "").encode(errors="surrogatepass")
        self._digest = hashlib.blake2b(digest_size=16, key=hashlib.blake2b(secret).digest() if secret else b"")

    def find_id(self, headers: dict[bytes, bytes], members: Members | None = None) -> bytes | None:
        """Return the session's id, empty if what came can't be used; None if the request has none.

        *members* is None while the body has not been read: then the answer is None too if a source in it comes first.
        """
        for name, path in self._sources:
            if name in headers:
                value = headers[name]
                size = len(value)
                plain = _LONGEST_PLACEHOLDER < size <= self._max_length and value.translate(None, _ODD) == value
                return value if plain else self._check(value)
            if path:
                if members is None:
                    return None
                found = find_string(members, path)
                if found is not None:
                    return self.use(found)
        return None

    def find_source(self, headers: dict[bytes, bytes], members: Members | None = None) -> str | None:
        """Return which source the id comes from, as the settings name it."""
        for name, header, path in self._named:
            if header in headers or (path and members is not None and find_string(members, path) is not None):
                return name
        return None

    def fingerprint(self, headers: dict[bytes, bytes], members: Members) -> bytes | None:
        """Return an id for the conversation of a request that brings none, if that is wanted and can be done.

        Without a credential it is not: strangers whose conversations begin alike would be one session.
        """
        if not self._takes_fingerprints or not any(map(_is_credential, map(headers.get, self._partition))):
            return None
        return fingerprint(members, self.credential(headers))

    def use(self, session_id: str) -> bytes:
        """Return an id that came as text, as it would come in a header; empty if it can't be used."""
        try:
            encoded = session_id.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            return b""
        return b"" if b"\n" in encoded else self._check(encoded)

    def _check(self, value: bytes) -> bytes:
        session_id = value.strip(b" \t")
        if len(session_id) <= self._max_length and session_id.translate(None, _CONTROLS) == session_id:
            return b"" if _is_placeholder(session_id) else session_id
        values = set(value.split(b"\n"))
        return self._check(values.pop()) if len(values) == 1 and b"\n" in value else b""  # the same one, sent twice

    def credential(self, headers: dict[bytes, bytes]) -> bytes:
        """Return a digest of what a request is partitioned by, beside its model."""
        return self.key(b"", headers, None)

    def key(self, session_id: bytes, headers: dict[bytes, bytes], model: AskedModel) -> bytes:
        """Return the 16 bytes under which the session's pin is kept.

        They are a digest over the id and all parts of the partition. MessagePack writes each part with its type and its
        length, so that no two different lists of parts make the same bytes.
        """
        parts: list[AskedModel] = [session_id, model if self.by_model else None]
        for name in headers:
            if name in self._partition:
                value = headers[name]
                parts += name, value if value.startswith(b"Bearer ") else _one_case(name, value)
        if len(parts) > 4:  # several: their order is the sender's whim
            pairs = sorted(zip(parts[2::2], parts[3::2], strict=True), key=itemgetter(0))
            parts[2:] = chain.from_iterable(pairs)
        digest = self._digest.copy()
        digest.update(_encode(parts))
        if not self._tells_tenants:
            return digest.digest()
        tenant = self._digest.copy()
        tenant.update(_encode(parts[2:]))
        return tenant.digest()[:TENANT_BYTES] + digest.digest()[TENANT_BYTES:]


def _is_placeholder(session_id: bytes) -> bool:
    """Tell whether an id is what stands where there is none, or a template that was not filled in.

    In angle brackets are also the ids of mails (RFC 5322, section 3.6.4), which have an @.
    """
    return (
        session_id.lower() in _PLACEHOLDERS
        or b"}}" in session_id.partition(b"{{")[2]
        or b"}" in session_id.partition(b"${")[2]
        or (session_id[:1] == b"<" and session_id[-1:] == b">" and b"@" not in session_id)
    )


def _is_credential(value: bytes | None) -> bool:
    """Tell whether a header holds one, and more than a scheme."""
    return value is not None and value.strip().lower() not in (b"", b"bearer")


def _one_case(name: bytes, value: bytes) -> bytes:
    """Return a credential, which may have a scheme before it, with that in one case (RFC 9110, section 11.1)."""
    scheme, space, credential = value.partition(b" ")
    return scheme.capitalize() + space + credential if space and name == b"authorization" else value


def _read_source(source: str) -> tuple[bytes, tuple[str, ...]]:
    kind, _, name = source.partition(":")
    return (name.lower().encode(), ()) if kind == "header" else (b"", tuple(name.split(".")))


def asked_model(members: Members) -> AskedModel:
    """Return the model that a request asks for: a name, None, or a digest of whatever else it is."""
    value = members.get("model", NULL)
    try:
        model = decode_model(value)
        if model is None or len(model) <= MAX_NAME:
            return model
    except ValueError:
        pass
    return hashlib.blake2b(value, digest_size=16).digest()


def asks_for_response(members: Members) -> bool:
    """Tell whether this may be a request of the Responses API, and not of another application's `/responses`."""
    return not _RESPONSE_INPUTS.isdisjoint(members)


def asks_for_stream(members: Members) -> bool:
    """Tell whether a request asks for a stream."""
    return members.get("stream") == TRUE
