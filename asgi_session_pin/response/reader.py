"""The response on its way to the client: which model does it name?"""

import math
import re
from functools import lru_cache
from typing import TypeVar

import msgspec

from ..config import Config
from ..config.patterns import Alias, Patterns
from ..log import Opaque
from ..pins.table import NamedModel, is_model_name
from ..warnings import Warnings
from ..wire.compression import Decoder, open_decoder
from ..wire.headers import JSON, HeaderPicker, Headers, NameMemory, content_length, is_identity, media_type
from ..wire.json import Members, find_string, read_object
from ..wire.sse import EventDecoder

MAX_NAME = 256
MAX_EVENTS = 10_000  # a stream names its model in the first ones; looking at an event costs a few microseconds
# gpt-4o -> gpt-4o-2024-08-06, claude-haiku-4-5 -> claude-haiku-4-5-20251001, and with "@" where Vertex AI serves it.
_date = re.compile(r"[-@](\d{4}-\d\d-\d\d|\d{8})").fullmatch

_PLAIN_JSON = {b"content-type": b"application/json"}

# What gateways put into an `error` that is none.
_NO_ERROR = frozenset({b"null", b"false", b"0", b'""', b"{}", b"[]"})

# On each of LiteLLM's answers, also those that carry no model name.
_LITELLM_HEADER = b"x-litellm-call-id"
# On those that another group than the one that was asked for has answered, its own fallback, this is no zero.
_LITELLM_FALLBACKS = b"x-litellm-attempted-fallbacks"
RESPONSE_HEADERS = frozenset({b"x-session-pinned", b"x-session-model", b"x-session-pin-status"})


class DecisionRules:
    """Where responses name the model that the router chose, and which names are decisions."""

    def __init__(self, config: Config) -> None:
        self._sources = [read_source(source) for source in config.decisions.sources]
        self._aliases = [Alias(name, target) for name, target in config.decisions.aliases.items()]
        self._router_models = Patterns(config.routing.router_models)
        self.max_bytes = config.limits.max_inspected_response_bytes
        self._reads_bodies = any(path for _, _, path in self._sources)
        self._source_headers = frozenset(name for _, name, _ in self._sources if name is not None)
        self._knows_litellm = any(name.startswith(b"x-litellm-") for name in self._source_headers)
        names = {b"content-type", b"content-length", b"content-encoding", _LITELLM_HEADER, _LITELLM_FALLBACKS}
        self.headers = HeaderPicker(names | RESPONSE_HEADERS | self._source_headers)
        self.plain = NameMemory()  # of headers that say no more than the type and the length
        # The cache also lets all pins on a model share one string.
        self._judge = lru_cache(maxsize=1024)(self._judge_name)

    def open_plain(self, headers: Headers, asked: object) -> "JSONReader":
        """Return what reads a JSON response whose *headers* say nothing else: `plain` covers them."""
        return JSONReader(self, _PLAIN_JSON, _name(asked), sent=headers)

    def open_reader(self, headers: dict[bytes, bytes], asked: object, whole: bool) -> "ResponseReader":
        """Return what looks for the decision in a response with these headers to a request for the model *asked*.

        With *whole* the body is read even where a header has the answer.
        """
        asked = _name(asked)
        if whole and media_type(headers.get(b"content-type", b"")) != JSON:
            return ResponseReader(self, headers, asked, finished=True, failed=True)  # no decision object, so none kept
        if not whole and not self._source_headers.isdisjoint(headers):
            found = self.find_model(headers, None, asked)
            if found is not None and found.model is not None:
                return _settled(ResponseReader(self, headers, asked))
        kind = media_type(headers.get(b"content-type", b"")) if self._reads_bodies or whole else None
        if kind is None:
            return _settled(ResponseReader(self, headers, asked))
        reader: ResponseReader = JSONReader(self, headers, asked) if kind == JSON else EventReader(self, headers, asked)
        return _decoding(reader) if b"content-encoding" in headers else reader

    def open_first_event(self, headers: dict[bytes, bytes], asked: str) -> "EventReader":
        """Return what looks at the first event of a stream, whether it names a model or not."""
        reader = EventReader(self, headers, asked, first_only=True)
        return _decoding(reader) if b"content-encoding" in headers else reader

    def find_model(self, headers: dict[bytes, bytes], members: Members | None, asked: str | None) -> NamedModel | None:
        """Return what the first source that names a usable model says; None if no source names any.

        *members* is None while the body has not come: then the answer is None too if a source in it comes first.
        """
        unusable: NamedModel | None = None
        for source, header, path in self._sources:
            if header is not None:
                name = headers[header].decode("latin-1") if header in headers else None
            elif members is None:
                return None
            else:
                name = find_string(members, path) if path[0] in members else None
            if name:
                kind = media_type(headers.get(b"content-type", b""))
                if len(name) <= MAX_NAME:
                    found = self._judge(name, asked, source, kind)
                else:
                    found = NamedModel(name, None, source, kind)
                if found.model is not None:
                    return found
                unusable = unusable or found
        return unusable

    def check_echo(self, headers: dict[bytes, bytes], warn: Warnings) -> None:
        """Warn if a gateway that is known to hide its choice answered under the name that was asked for."""
        if _LITELLM_HEADER in headers and not self._knows_litellm:
            warn.hidden()

    def is_fallback(self, headers: dict[bytes, bytes]) -> bool:
        """Tell whether a gateway says that it fell back to another model than it was asked for."""
        return headers.get(_LITELLM_FALLBACKS, b"0") != b"0"

    def is_usable(self, model: object) -> bool:
        """Tell whether a name can be a decision: text that can be sent back, and none that the router decides for."""
        return (
            isinstance(model, str)
            and model.lower() != "none"
            and is_model_name(model) is not None
            and not self._router_models.match(model)
        )

    def _judge_name(self, name: str, asked: str | None, source: str, kind: str | None) -> NamedModel:
        model = name.strip()
        model = next((target for alias in self._aliases if (target := alias.apply(model)) is not None), model)
        if asked and is_dated(model, asked):
            model = asked
        return NamedModel(name, model if self.is_usable(model) else None, source, kind)


class ResponseReader(Opaque):
    """Looks for the decision in one response, as it passes.

    `finished` tells when there is nothing more to look for; `found` is what names the model, and `members` the JSON
    object of the body that was read for it. `failed` tells that nothing can be learned here: it is an error, whatever
    its status, or no decision object where one is wanted.
    """

    rules: DecisionRules
    headers: dict[bytes, bytes]
    asked: str | None
    finished: bool = False
    failed: bool = False
    found: NamedModel | None = None
    members: Members = msgspec.field(default_factory=dict)
    decoder: Decoder | None = None
    size: int = 0  # bytes looked at, decoded

    def feed(self, chunk: bytes, more: bool) -> None:
        """Look at the next piece of the body; *more* tells whether others follow."""
        data = chunk
        if self.decoder is not None:
            try:
                data = self.decoder.decode(chunk, self.rules.max_bytes - self.size + 1)
            except Exception:  # a look must never raise into the app, whatever a decoder does
                return self.finish()
        self.size += len(data)
        if self.size > self.rules.max_bytes:
            return self.finish()
        return self._read(data, more, len(chunk))

    def _read(self, data: bytes, more: bool, sent: int) -> None:
        """Look at decoded *data* that came in *sent* bytes; for those that have a body to read."""

    def finish(self, members: Members | None = None) -> None:
        """Decide by the headers and, where there is one to look at, a JSON object."""
        if members:
            self.members = members
            self.failed = is_error(members)
        if not self.failed:
            self.found = self.rules.find_model(self.headers, self.members, self.asked)
        self.finished = True


ReaderT = TypeVar("ReaderT", bound=ResponseReader)


class JSONReader(ResponseReader):
    """Reads a body that is one JSON object, when it is whole: by its content-length or its last message."""

    sent: Headers | None = None  # all of them, where `headers` lacks the length
    content: bytearray | None = None
    to_come: float = math.inf  # bytes as they are sent

    def feed(self, chunk: bytes, more: bool) -> None:
        """Look at the next piece of the body; most bodies come in one."""
        if more or self.content is not None or self.decoder is not None or len(chunk) > self.rules.max_bytes:
            return super().feed(chunk, more)
        return self.finish(read_object(chunk))

    def _read(self, data: bytes, more: bool, sent: int) -> None:
        if self.content is None:
            self.content = bytearray()
            headers = self.headers if self.sent is None else self.rules.headers.pick(self.sent)
            self.to_come = content_length(headers) or math.inf
        self.content += data
        self.to_come -= sent
        if not more or self.to_come <= 0:
            self.finish(read_object(bytes(self.content)))


class EventReader(ResponseReader):
    """Reads server-sent events up to the first one that names a model, or that comes at all (*first_only*)."""

    events: EventDecoder = msgspec.field(default_factory=EventDecoder)
    first_only: bool = False
    room: int = MAX_EVENTS

    def _read(self, data: bytes, more: bool, sent: int) -> None:
        for event in self.events.feed(data):
            members = read_object(event)
            self.room -= 1
            if self.first_only or (members and self._tells(members)):
                return self.finish(members)
            if self.room == 0:
                return self.finish()
        return None if more else self.finish()

    def _tells(self, members: Members) -> bool:
        return is_error(members) or self.rules.find_model({}, members, self.asked) is not None


def is_error(members: Members) -> bool:
    """Tell whether a body or an event is an error, as gateways also send them with status 200."""
    if "error" in members and bytes(members["error"]) not in _NO_ERROR:
        return True
    if "type" in members and find_string(members, ("type",)) in ("error", "response.failed"):
        return True
    return "object" in members and bytes(members["object"]) == b'"error"'


def is_dated(model: str, name: str) -> bool:
    """Tell whether *model* is *name* plus a date."""
    return model.startswith(name) and _date(model, len(name)) is not None


def _settled(reader: ReaderT) -> ReaderT:
    reader.finish()
    return reader


def _decoding(reader: ReaderT) -> ReaderT:
    if is_identity(reader.headers[b"content-encoding"]):
        return reader
    reader.decoder = open_decoder(reader.headers[b"content-encoding"])
    return reader if reader.decoder is not None else _settled(reader)


def _name(asked: object) -> str | None:
    """Return the model that a request asks for, where it is a name of a usual length."""
    return asked if type(asked) is str and len(asked) <= MAX_NAME else None


def read_source(source: str) -> tuple[str, bytes | None, tuple[str, ...]]:
    """Return one of `decisions.sources` with the header that it names, or the path in the body."""
    kind, _, name = source.partition(":")
    return (source, name.lower().encode(), ()) if kind == "header" else (source, None, tuple(name.split(".")))
