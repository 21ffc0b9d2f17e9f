"""The response on its way to the client: which model does it name?"""

import math
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from ._decompress import Decoder, open_decoder
from ._headers import HeaderPicker, content_length, is_identity
from ._json import Members, decode_members, find_string
from ._patterns import Alias, Patterns
from ._sse import EventDecoder
from ._warnings import Warnings
from .config import Config

JSON = "json"
EVENTS = "events"
MAX_NAME = 256
_visible_ascii = re.compile(r"[\x21-\x7e]{1,256}").fullmatch
# gpt-4o -> gpt-4o-2024-08-06, claude-haiku-4-5 -> claude-haiku-4-5-20251001, and with "@" where Vertex AI serves it.
_date = re.compile(r"[-@](\d{4}-\d\d-\d\d|\d{8})").fullmatch

# On each of LiteLLM's answers, also those that carry no model name.
_LITELLM_HEADER = b"x-litellm-call-id"
RESPONSE_HEADERS = frozenset({b"x-session-pinned", b"x-session-model", b"x-session-pin-status"})


class Decision(NamedTuple):
    """The name that a response gave, and the model that it means; None if that name can't be a decision."""

    name: str
    model: str | None


class DecisionRules:
    """Where responses name the model that the router chose, and which names are decisions."""

    def __init__(self, config: Config) -> None:
        self._sources = [_read_source(source) for source in config.decisions.sources]
        self._aliases = [Alias(name, target) for name, target in config.decisions.aliases.items()]
        self._router_models = Patterns(config.routing.router_models)
        self.max_bytes = config.limits.max_inspected_response_bytes
        self.reads_bodies = any(path for _, path in self._sources)
        sources = {name for name, _ in self._sources if name is not None}
        self._knows_litellm = any(name.startswith(b"x-litellm-") for name in sources)
        names = {b"content-type", b"content-length", b"content-encoding", _LITELLM_HEADER, *RESPONSE_HEADERS}
        self.headers = HeaderPicker(names | sources)
        # The cache also lets all pins on a model share one string.
        self._judge = lru_cache(maxsize=1024)(self._judge_name)

    def decide(self, headers: dict[bytes, bytes], members: Members | None, asked: str | None) -> Decision | None:
        """Return what the first source that names a usable model says; None if no source names any.

        *members* is None while the body has not come: then the answer is None too if a source in it comes first.
        """
        unusable: Decision | None = None
        for header, path in self._sources:
            if header is None:
                if members is None:
                    return None
                name = find_string(members, path)
            else:
                name = headers[header].decode("latin-1") if header in headers else None
            if name:
                decision = self._judge(name, asked) if len(name) <= MAX_NAME else Decision(name, None)
                if decision.model is not None:
                    return decision
                unusable = unusable or decision
        return unusable

    def check_echo(self, headers: dict[bytes, bytes], warn: Warnings) -> None:
        """Warn if a gateway that is known to hide its choice answered under the name that was asked for."""
        if _LITELLM_HEADER in headers and not self._knows_litellm:
            warn.hidden()

    def is_usable(self, model: object) -> bool:
        """Tell whether a name can be a decision: text that can be sent back, and none that the router decides for."""
        return (
            isinstance(model, str)
            and model.lower() != "none"
            and _visible_ascii(model) is not None
            and not self._router_models.match(model)
        )

    def _judge_name(self, name: str, asked: str | None) -> Decision:
        model = name.strip()
        model = next((target for alias in self._aliases if (target := alias.apply(model)) is not None), model)
        if asked and model.startswith(asked) and _date(model, len(asked)):
            model = asked
        return Decision(name, model if self.is_usable(model) else None)


class ResponseReader:
    """Looks for the decision in one response, as it passes.

    `finished` tells when there is nothing more to look for; `decision` is what was found, and `members` the JSON body
    that was read for it. With *whole* the body is read even where a header has the answer.
    """

    finished = False
    members: Members = {}  # noqa: RUF012 - read only: replaced, never changed
    _decoder: Decoder | None = None
    _events: EventDecoder | None = None
    _to_come: float = math.inf  # bytes of the body as it is sent, by content-length
    _size = 0  # bytes looked at, decoded

    def __init__(self, rules: DecisionRules, headers: dict[bytes, bytes], asked: str | None, whole: bool) -> None:
        self._rules = rules
        self.headers = headers
        self._asked = asked
        self._chunks: list[bytes] = []
        self.decision = rules.decide(headers, None, asked)
        if self.decision is not None and self.decision.model is not None and not whole:
            self.finished = True
        elif not self._expects_body():
            self._finish()

    def _expects_body(self) -> bool:
        headers = self.headers
        if not self._rules.reads_bodies:
            return False
        if b"content-encoding" in headers and not is_identity(headers[b"content-encoding"]):
            self._decoder = open_decoder(headers[b"content-encoding"])
            if self._decoder is None:
                return False
        kind = media_type(headers.get(b"content-type", b""))
        if kind == EVENTS:
            self._events = EventDecoder()
        elif kind == JSON:
            length = content_length(headers)
            if length is not None:
                self._to_come = length
                return length <= self._rules.max_bytes
        return kind is not None

    def feed(self, chunk: bytes, more: bool) -> None:
        """Look at the next piece of the body; *more* tells whether others follow."""
        chunk = bytes(chunk)
        self._to_come -= len(chunk)
        if self._decoder is not None:
            try:
                chunk = self._decoder.decode(chunk, self._rules.max_bytes - self._size + 1)
            except ValueError:
                return self._finish()
        self._size += len(chunk)
        if self._size > self._rules.max_bytes:
            self._finish()
        elif self._events is not None:
            self._read_events(self._events.feed(chunk))
            if not more and not self.finished:
                self._finish()
        else:
            self._chunks.append(chunk)
            if not more or self._to_come <= 0:
                self._read_json(b"".join(self._chunks))
        return None

    def _read_events(self, events: Iterable[bytes]) -> None:
        for data in events:
            try:
                members = decode_members(data)
            except ValueError:  # such as "[DONE]"
                continue
            if self._rules.decide({}, members, self._asked) is not None:
                self.members = members
                self._finish()
                return

    def _read_json(self, body: bytes) -> None:
        try:
            self.members = decode_members(body)
        except ValueError:
            self.members = {}
        self._finish()

    def _finish(self) -> None:
        self.decision = self._rules.decide(self.headers, self.members, self._asked)
        self.finished = True
        self._chunks = []


@lru_cache(maxsize=256)
def media_type(content_type: bytes) -> str | None:
    """Return what a body of this `content-type` is: `JSON`, `EVENTS` or None (RFC 9110 section 8.3.1, RFC 6839)."""
    kind = content_type.partition(b";")[0].strip().lower()
    if kind == b"application/json" or kind.endswith(b"+json"):
        return JSON
    return EVENTS if kind == b"text/event-stream" else None


def _read_source(source: str) -> tuple[bytes | None, tuple[str, ...]]:
    kind, _, name = source.partition(":")
    return (name.lower().encode(), ()) if kind == "header" else (None, tuple(name.split(".")))
