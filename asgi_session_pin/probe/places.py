"""Where a gateway's reply may name a model: headers and members of bodies, and which of their values can be names."""

import re

from ..config import Config, Decisions
from ..response.rules import RESPONSE_HEADERS, ModelRules, is_dated, read_source
from ..wire.headers import NAME
from ..wire.json import Members, find_string, read_object

MAX_MEMBERS = 200
MAX_SOURCES = 20

DEFAULTS = Decisions().sources
BODY_DEFAULTS = {source: path for source, _, path in map(read_source, DEFAULTS) if path}
# The first of these that LiteLLM sends tells most; ids of deployments change with its configuration. Others of its
# headers tell of its router: tiers and causes, no models.
_LITELLM = ("header:x-litellm-model-name", "header:x-litellm-model-id", "header:x-litellm-model-group")

_is_header = re.compile(NAME).fullmatch
_tells = re.compile(r"model|deployment|engine|rout").search
_is_member = re.compile(r"(?=.{1,64}\Z)[\w-]*model[\w-]*", re.ASCII | re.IGNORECASE).fullmatch
_is_parent = re.compile(r"[\w-]{1,64}", re.ASCII).fullmatch
_is_number = re.compile(r"v?[\W\d_]*", re.ASCII | re.IGNORECASE).fullmatch  # a version or a date as well
_NO_NAMES = frozenset({"true", "false", "null", "unknown"})
_rules = ModelRules(Config())


def rank(source: str) -> tuple[int, int]:
    """Return a place in the order in which sources are preferred."""
    if source in DEFAULTS:
        return 0, DEFAULTS.index(source)
    if source in _LITELLM:
        return 1, _LITELLM.index(source)
    if source.startswith("body:"):
        return 4, 0
    if "model" in source:
        return 2, source.endswith("-id")
    return (5 if "rout" in source else 3), 0  # a route is rather what a model was chosen for


def names_in_headers(headers: dict[bytes, bytes], known: frozenset[str]) -> dict[str, str]:
    """Return the values of headers that may name a model, by their source."""
    named = {}
    for raw_name, raw_value in headers.items():
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1").strip()
        if raw_name not in RESPONSE_HEADERS and len(name) <= 64 and _is_header(name) and may_be_name(value):
            source = f"header:{name}"
            tells = source in _LITELLM if name.startswith("x-litellm-") else _tells(name)
            if value in known or source in DEFAULTS or tells:
                named[source] = value
    return named


def names_in_body(members: Members) -> dict[str, str]:
    """Return the strings that may name a model, by their source: the usual places, then members called so."""
    found = {source: find_string(members, path) for source, path in BODY_DEFAULTS.items()}
    for key, value in list(members.items())[:MAX_MEMBERS]:
        if _is_member(key):
            found.setdefault(f"body:{key}", find_string(members, (key,)))
        if _is_parent(key) and bytes(memoryview(value)[:1]) == b"{":
            for inner in list(read_object(bytes(value)))[:MAX_MEMBERS]:
                if _is_member(inner):
                    found.setdefault(f"body:{key}.{inner}", find_string(members, (key, inner)))
    return {source: value.strip() for source, value in found.items() if value and may_be_name(value.strip())}


def unusable_name(members: Members) -> str:
    """Return what stands at one of the usual places but can be no name; empty if there is nothing of that kind."""
    found = (find_string(members, path) for path in BODY_DEFAULTS.values())
    return next((value for value in found if value and not may_be_name(value.strip())), "")


def may_be_name(value: str) -> bool:
    """Tell whether a text can be sent as a model: no number, version or URL, and nothing that patterns would heed."""
    return (
        _rules.is_usable(value)
        and "*" not in value
        and "://" not in value
        and _is_number(value) is None
        and value.lower() not in _NO_NAMES
    )


def undated(name: str) -> str | None:
    """Return the name of a dated snapshot without its date; None if it has no date."""
    return next((name[:-size] for size in (9, 11) if name[:-size] and is_dated(name, name[:-size])), None)
