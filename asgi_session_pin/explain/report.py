"""From trials to words: a verdict, step by step why, and the settings that were seen to change it."""

import json
import re
import textwrap
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import msgspec

from ..config import Config, Endpoint
from ..config.settings import FINGERPRINT
from ..probe.places import names_in_body, names_in_headers
from ..request.session import PRESETS, asked_model, asks_for_stream
from ..wire.json import Members, decode_members, find_string, read_object
from ..wire.sse import EventDecoder
from .saved import SavedAnswer, SavedRequest
from .sentences import ELSEWHERE, IGNORED, UNPINNED
from .trial import Trial, example_answer, try_twice

MAX_ADVICE = 3
MAX_EVENTS = 64  # of an answer that are looked at for what may name a model
_MIN_HIDDEN = 6  # characters of a secret that is looked for in what is printed

_tells_session = re.compile(r"session|thread|conversation|chat[-_]?id|cache_key", re.IGNORECASE).search
_is_credential = re.compile(r"auth|key|token|secret|cookie|pass|credential|sign", re.IGNORECASE).search
_BODY_IDS = (
    "metadata.session_id",
    "metadata.conversation_id",
    "metadata.thread_id",
    "session_id",
    "thread_id",
    "chat_id",
)


class Stage(IntEnum):
    """How far a request comes."""

    NO_ENDPOINT = 0
    NO_SESSION = 1
    IGNORED = 2
    UNPINNED = 3
    ECHO = 4  # pinned to the name that it asks for
    PINNED = 5


class Explanation:
    """What the middleware does with one request, and why."""

    def __init__(self, config: Config, request: SavedRequest, answer: SavedAnswer | None) -> None:
        self._config = config
        self._request = request
        self._answer = answer
        self._members = _members_of(request.body)
        self._first, self._second = self._try(config)
        event = self._first.event
        self._asked = asked_model(self._members) if event is None or event.asked is None else event.asked
        self.stage = self._stage(config)
        self.why = self._why()
        self.verdict = self._verdict()
        self.steps = list(self._steps())
        self.advice = list(self._advise())[:MAX_ADVICE]

    @property
    def is_pinned(self) -> bool:
        """Whether the next request of its session gets another model than it asks for, since this one did."""
        return self.stage is Stage.PINNED

    @property
    def elsewhere(self) -> str:
        """What can be done that is no setting."""
        return ELSEWHERE.get(self.why, "")

    def text(self, width: int) -> str:
        """Return it all, in lines of *width* characters."""
        lines = [*_wrap(self.verdict, width), "", *(line for step in self.steps for line in _wrap(step, width, "  - "))]
        if self.advice:
            lines += ["", "What changes that, tried on this request:"]
            lines += [line for each in self.advice for line in _wrap(each, width, "  + ")]
        if self.elsewhere:
            lines += ["", *_wrap(self.elsewhere, width)]
        return self._hide("\n".join(lines))

    # What happens

    def _try(self, config: Config) -> tuple[Trial, Trial]:
        return try_twice(config, self._request, self._answer or example_answer(config))

    def _endpoint(self, config: Config, body: bytes | None = None) -> str | None:
        """Return the pattern of the endpoint that the request is for, as if it had a session, and *body*."""
        answer = self._answer or example_answer(config)
        request = self._request if body is None else self._request._replace(body=body)
        event = try_twice(config, request, answer, lambda scope: "explained-session")[0].event
        return None if event is None else event.endpoint

    def _stage(self, config: Config) -> Stage:
        first, second = self._try(config)
        if first.event is None:
            return Stage.NO_ENDPOINT if self._endpoint(config) is None else Stage.NO_SESSION
        if first.event.status in ("off", "ignored"):
            return Stage.IGNORED
        if second.event is None or second.event.status not in ("hit", "wait"):
            return Stage.UNPINNED
        return Stage.ECHO if second.event.model == self._asked else Stage.PINNED

    def _why(self) -> str:
        event = self._first.event
        if event is None:
            return "no-endpoint" if self.stage is Stage.NO_ENDPOINT else "no-session"
        if self.stage is Stage.IGNORED:
            return event.reason or event.status
        if self.stage is Stage.UNPINNED:
            return event.unpinned or "no-model"
        if self.stage is Stage.ECHO:
            return "echo"
        return "reset" if self._resets else "pinned"

    def _verdict(self) -> str:
        if self.stage is Stage.NO_ENDPOINT:
            reason = self._why_no_endpoint()
        elif self.stage is Stage.NO_SESSION:
            reason = f"It has no session id: {_join(self._config.sessions.sources)} is not there."
        elif self.why == "off":
            reason = "The client asked for that: X-Session-Pin: off."
        elif self.stage in (Stage.IGNORED, Stage.UNPINNED):
            reason = IGNORED.get(self.why) or UNPINNED.get(self.why, f"The reason: {self.why}.")
        elif self._answer is None:
            return "As far as the request goes, it is pinned: to what its answer names."
        elif self.stage is Stage.ECHO:
            reason = "Its answer names the very model that it asks for, so the pin changes nothing."
        elif self.why == "reset":
            return "It is pinned, but each request with X-Session-Pin: reset is routed afresh."
        else:
            return f"It is pinned: its session stays on {self._model!r}."
        return f"It is not pinned. {reason}"

    def _why_no_endpoint(self) -> str:
        if self._request.method != "POST":
            return f"Only POST requests are, and this is a {self._request.method}."
        everywhere = tuple(msgspec.structs.replace(each, kind="completion") for each in self._config.endpoints)
        pattern = self._endpoint(msgspec.structs.replace(self._config, endpoints=everywhere))
        if pattern is not None:
            return f"The first of the endpoints that its path is one of has kind: ignore: {pattern!r}."
        if self._endpoint(self._config, b'{"input": ""}') is not None:
            inputs = "input, prompt, previous_response_id and conversation"
            return f"Its body has none of {inputs}, so it is taken for another application's."
        return "Its path is none of the endpoints."

    @property
    def _model(self) -> str | None:
        return None if self._second.event is None else self._second.event.model

    @property
    def _resets(self) -> bool:
        return any(name == b"x-session-pin" and value.lower() == b"reset" for name, value in self._request.headers)

    def _steps(self) -> Iterator[str]:
        asked = f"asks for {self._asked!r}" if isinstance(self._asked, str) else "names no model"
        streamed = ", streamed" if asks_for_stream(self._members) else ""
        yield f"The request: {self._request.method} {self._request.path}, {asked}{streamed}."
        pattern = self._endpoint(self._config)
        if pattern is None:
            yield "Endpoint: none, so it passes untouched."
            return
        yield f"Endpoint: {pattern!r}."
        event = self._first.event
        if event is None:
            yield "Session: none, so it passes untouched."
            return
        yield f"Session: an id from {event.source}; its value is shown nowhere."
        if event.key is not None:
            per = f"the model asked for, {self._asked!r}" if self._config.sessions.pin_per == "model" else "any model"
            yield f"Key of the pin: {event.key}, a digest of {_join(['the id', *self._partition(event.key), per])}."
        if self.stage is Stage.IGNORED:
            yield f"So the app gets it as it came: X-Session-Pin-Status: {_status(self._first)}."
            return
        reset = "; X-Session-Pin: reset has forgotten what there was" if self._resets else ""
        yield f"No pin yet{reset}: the app gets it as it came. X-Session-Pin-Status: {_status(self._first)}."
        if self._answer is None:
            yield "Its answer is not given; a second file with it says whether it names a model."
        else:
            yield f"The answer: HTTP {self._answer.status}, {self._where()}."
        if self.stage >= Stage.ECHO and self._model is not None and self._answer is not None:
            yield f"The pin: {self._model!r}, until {self._config.routing.session_ttl_seconds:g} s after its last use."
            sent = self._second.sent
            what = "the app is not called" if sent is None else f"the app gets model {_model_of(sent)!r}"
            yield f"The next request like it: {what}. X-Session-Pin-Status: {_status(self._second)}."
        for line in self._first.told:
            yield f"In the log: {line}"

    def _partition(self, key: str) -> list[str]:
        """Return the parts of the key beside the id: those without which it would be another one."""
        parts = self._config.sessions.partition_by
        return [
            part
            for part in parts
            if (event := self._try(self._without_part(part))[0].event) is not None and event.key != key
        ]

    def _without_part(self, part: str) -> Config:
        rest = tuple(each for each in self._config.sessions.partition_by if each != part)
        return _with(self._config, "sessions", partition_by=rest)

    def _where(self) -> str:
        """Return in words where the answer names a model."""
        for source in self._config.decisions.sources:
            event = self._try(_with(self._config, "decisions", sources=(source,)))[0].event
            if event is not None and event.model is not None:
                return f"which {source} says is of {event.model!r}"
        return "which names no model that can be pinned"

    # What would change it

    def _advise(self) -> Iterator[str]:
        if self.stage is Stage.PINNED or self.why == "off":
            return
        for told, config in self._candidates():
            if self._stage(config) > self.stage:
                yield told

    def _candidates(self) -> Iterator[tuple[str, Config]]:
        """Yield settings that may bring the request further, in words, and the configuration with them."""
        config = self._config
        if self.stage is Stage.NO_ENDPOINT and self._request.method == "POST":
            own = Endpoint(path=self._request.path)
            told = f'endpoints: put {{path: "{own.path}"}} before those that are there'
            yield told, msgspec.structs.replace(config, endpoints=(own, *config.endpoints))
        elif self.stage is Stage.NO_SESSION:
            for source in self._session_sources():
                sources = (*config.sessions.sources, source)
                yield _setting("sessions", "sources", sources), _with(config, "sessions", sources=sources)
        elif self.why == "invalid-session-id":
            length = config.sessions.max_id_length * 4
            yield _setting("sessions", "max_id_length", length), _with(config, "sessions", max_id_length=length)
        elif self.why == "body-too-large":
            size = 1 << len(self._request.body).bit_length()
            yield _setting("limits", "max_request_bytes", size), _with(config, "limits", max_request_bytes=size)
        elif self.why == "model-not-routed":
            names = (*config.routing.router_models, str(self._asked))
            yield _setting("routing", "router_models", names), _with(config, "routing", router_models=names)
        elif self.stage in (Stage.UNPINNED, Stage.ECHO):
            for source in self._decision_sources():
                sources = (source, *(each for each in config.decisions.sources if each != source))
                yield _setting("decisions", "sources", sources), _with(config, "decisions", sources=sources)

    def _session_sources(self) -> Iterator[str]:
        """Yield what may hold the session's id: headers called so, then members of the body."""
        names = [name.decode("latin-1") for name, _ in self._request.headers]
        if any(f"header:{name}" in PRESETS["preset:coding-agents"] for name in names):
            yield "preset:coding-agents"
        for name in names:
            if _tells_session(name) and not name.startswith("x-session-pin") and name != "x-session-model":
                yield f"header:{name}"
        yield "preset:body-ids"
        yield from (f"body:{path}" for path in _BODY_IDS)
        yield FINGERPRINT

    def _decision_sources(self) -> Iterator[str]:
        """Yield where else the answer may name a model."""
        answer = self._answer or example_answer(self._config)
        found = names_in_headers(dict(answer.headers), frozenset())
        bodies = [answer.body]
        if b"data:" in answer.body[:4096]:
            bodies = [data for _, data in EventDecoder().feed(answer.body)][:MAX_EVENTS]
        for body in bodies:
            found |= names_in_body(read_object(body))
        yield from (source for source, name in found.items() if name != self._asked)

    # What is not to be seen

    def _hide(self, text: str) -> str:
        """Return *text* without what is a credential or a session's id, should a name or a path repeat one."""
        values = [value for name, value in self._request.headers if _is_secret(name.decode("latin-1"))]
        words = {word for value in values for word in re.split(r"[\s;=,]+", value.decode("latin-1"))}
        words |= {find_string(self._members, tuple(path.split("."))) or "" for path in _BODY_IDS}
        for word in sorted(words, key=len, reverse=True):
            text = text.replace(word, "***") if len(word) >= _MIN_HIDDEN else text
        return text


def _is_secret(name: str) -> bool:
    return (_is_credential(name) or _tells_session(name)) is not None and not name.startswith("x-session-pin")


def _members_of(body: bytes) -> Members:
    try:
        return decode_members(body)
    except ValueError:
        return {}


def _model_of(body: bytes) -> str | None:
    return find_string(_members_of(body), ("model",))


def _with(config: Config, section: str, **settings: Any) -> Config:
    changed = msgspec.structs.replace(getattr(config, section), **settings)
    return msgspec.structs.replace(config, **{section: changed})


def _setting(section: str, name: str, value: object) -> str:
    return f"{section}: {{{name}: {json.dumps(value)}}}"


def _status(trial: Trial) -> str:
    return trial.headers.get("x-session-pin-status", "not sent, since response_headers is false")


def _join(parts: list[str] | tuple[str, ...]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    following = " " * len(indent)
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=following, break_on_hyphens=False, break_long_words=False
    )
