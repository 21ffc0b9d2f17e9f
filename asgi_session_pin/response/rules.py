"""Which names that responses give are choices of the router, and what makes two names the same model."""

import re
from functools import lru_cache

from ..config import Config
from ..config.patterns import Alias, Patterns
from ..pin import NamedModel, is_model_name
from ..wire.headers import HeaderPicker, NameMemory
from ..wire.json import Members, find_string

MAX_NAME = 256
# gpt-4o -> gpt-4o-2024-08-06, claude-haiku-4-5 -> claude-haiku-4-5-20251001, and with "@" where Vertex AI serves it.
_date = re.compile(r"[-@](\d{4}-\d\d-\d\d|\d{8})\Z")
_dated = re.compile(r"[-@](\d{4}-\d\d-\d\d|\d{8})").fullmatch
_VARIANT = (":", "-", "@", "(", "[")  # what a suffix begins with: `:free`, `-high`, `(high)`, `[1m]`
_SUFFIX_OF_ANSWER = re.compile(r"[:@(\[].*\Z")

# On each of LiteLLM's answers, also those that carry no model name.
_LITELLM_HEADER = b"x-litellm-call-id"
# On those that another group than the one that was asked for has answered, its own fallback, this is no zero.
_LITELLM_FALLBACKS = b"x-litellm-attempted-fallbacks"
HEEDED_HEADERS = frozenset({_LITELLM_FALLBACKS})
"""What may say of any answer that another model than the one that was asked for gave it."""
RESPONSE_HEADERS = frozenset({b"x-session-pinned", b"x-session-model", b"x-session-pin-status"})


class ModelRules:
    """Where responses name the model that the router chose, and which names are choices."""

    def __init__(self, config: Config) -> None:
        self._sources = [read_source(source) for source in config.decisions.sources]
        self._aliases = [Alias(name, target) for name, target in config.decisions.aliases.items()]
        self._router_models = Patterns(config.routing.router_models)
        self.is_retired = Patterns(config.routing.retired_models).match
        self._unless = {
            source.partition(":")[2].lower().encode(): Patterns(values)
            for source, values in config.decisions.unless.items()
        }
        self.max_bytes = config.limits.max_inspected_response_bytes
        self.reads_bodies = any(path for _, _, path in self._sources)
        self.source_headers = frozenset(name for _, name, _ in self._sources if name is not None)
        self._knows_litellm = any(name.startswith(b"x-litellm-") for name in self.source_headers)
        names = {b"content-type", b"content-length", b"content-encoding", _LITELLM_HEADER, _LITELLM_FALLBACKS}
        self.headers = HeaderPicker(names | RESPONSE_HEADERS | self.source_headers | self._unless.keys())
        self.plain = NameMemory()  # of headers that say no more than the type and the length
        # The cache also lets all pins on a model share one string.
        self._read_name = lru_cache(maxsize=1024)(self._read_name_anew)

    def find_model(
        self, headers: dict[bytes, bytes], members: Members | None, asked: str | None, kind: str | None
    ) -> NamedModel | None:
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
                if len(name) <= MAX_NAME:
                    found = self._read_name(name, asked, source, kind)
                else:
                    found = NamedModel(name, None, source, kind)
                if found.model is not None:
                    return found
                unusable = unusable or found
        return unusable

    def hides_choices(self, headers: dict[bytes, bytes]) -> bool:
        """Tell whether a response is of a gateway that answers under the name that was asked for, whatever it chose."""
        return _LITELLM_HEADER in headers and not self._knows_litellm

    def is_fallback(self, headers: dict[bytes, bytes]) -> bool:
        """Tell whether a gateway says that it fell back to another model than it was asked for."""
        return headers.get(_LITELLM_FALLBACKS, b"0") != b"0"

    def decides_nothing(self, headers: dict[bytes, bytes]) -> bool:
        """Tell whether a 2xx answer is no choice of the router's: a fallback, or one that `decisions.unless` names."""
        return self.is_fallback(headers) or any(
            values.match(headers[name].decode("latin-1").strip())
            for name, values in self._unless.items()
            if name in headers
        )

    def is_usable(self, model: object) -> bool:
        """Tell whether a name can be a choice: text that can be sent back, not retired, and not the router's own."""
        return (
            isinstance(model, str)
            and model.lower() != "none"
            and is_model_name(model) is not None
            and not self._router_models.match(model)
            and not self.is_retired(model)
        )

    def _read_name_anew(self, name: str, asked: str | None, source: str, kind: str | None) -> NamedModel:
        model = name.strip()
        model = next((target for alias in self._aliases if (target := alias.apply(model)) is not None), model)
        if asked and is_answer_to(asked, model) and not self._router_models.match(asked):
            model = asked
        return NamedModel(name, model if self.is_usable(model) else None, source, kind)


def is_dated(model: str, name: str) -> bool:
    """Tell whether *model* is *name* plus a date."""
    return model.startswith(name) and _dated(model, len(name)) is not None


def is_answer_to(asked: str, answered: str) -> bool:
    """Tell whether *answered* is what a gateway calls the model *asked*: with a date, or without a variant."""
    base = _date.sub("", answered)
    return (
        asked in (answered, base)
        or asked.startswith("@preset/")
        or any(asked.startswith(name) and asked[len(name) :].startswith(_VARIANT) for name in (answered, base))
    )


def is_same_model(answered: str, other: str) -> bool:
    """Tell whether two answers name the same model: dates, variants and a provider's prefix make no difference.

    A suffix behind a hyphen does: `gpt-4o-mini` is no `gpt-4o`.
    """
    return answered == other or _core(answered) == _core(other)


def _core(name: str) -> str:
    name = name.rpartition("/")[2]
    return _SUFFIX_OF_ANSWER.sub("", _date.sub("", name)) or name


def read_source(source: str) -> tuple[str, bytes | None, tuple[str, ...]]:
    """Return a source as it is written, and the header that it names in lower case, or the path in the body."""
    kind, _, name = source.partition(":")
    return (source, name.lower().encode(), ()) if kind == "header" else (source, None, tuple(name.split(".")))
