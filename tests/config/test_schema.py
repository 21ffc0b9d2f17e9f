"""The schema for editors, and what `Config.load` says of the same values."""

import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_session_pin.config import Config, ConfigError
from asgi_session_pin.config.schema import describe, make_schema, sections_of

SCHEMA = jsonschema.Draft202012Validator(make_schema())
NUMBERS = st.sampled_from([0, 1, 0.5, -1, 3, 600, 65_536, 65_537, 10**6 + 1, 10**9, 10**9 + 1, 10**13, True])
TEXTS = st.sampled_from(
    [
        *("", "*", "auto", "router/*", "/v1/*", "chat", "model", "session", "reroute", "pass", "ignore", "user_turn"),
        *("header:x-id", "header:X-Session-Pinned", "header:a b", "body:a.b", "body:a..b", "body:", "body:a b"),
        *(
            "preset:coding-agents",
            "preset:body-ids",
            "preset:x",
            "fingerprint",
            "memory://",
            "sqlite:///pins.db",
            "sqlite:///",
        ),
        *("redis://host/0", "redis://", "rediss://u:p@host", "mysql://x", "never", "header:x-id\n", "/-/pins", "/x/"),
        *("a-long-token-for-the-operators", "short", "header:"),
    ]
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(TEXTS, SCALARS, max_size=2))


def files() -> st.SearchStrategy[dict[str, Any]]:
    """Return files with keys that there are, most values of which are of the right kind."""
    sections: dict[str, st.SearchStrategy[Any]] = {}
    for field, value in Config().to_dict().items():
        if isinstance(value, dict):
            keys = {key: st.one_of(st.just(default), like(default), VALUES) for key, default in value.items()}
            sections[field] = st.one_of(st.none(), st.fixed_dictionaries({}, optional=keys))
    endpoint = st.fixed_dictionaries({}, optional={"path": TEXTS, "kind": TEXTS, "other": TEXTS})
    sections["endpoints"] = st.one_of(VALUES, st.lists(endpoint, max_size=3))
    sections |= {"response_headers": SCALARS, "restore_model": SCALARS}
    return st.fixed_dictionaries({}, optional=sections)


def like(default: Any) -> st.SearchStrategy[Any]:
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int | float):
        return NUMBERS
    if isinstance(default, list):
        return st.lists(TEXTS, max_size=2)
    return st.dictionaries(TEXTS, TEXTS, max_size=2) if isinstance(default, dict) else TEXTS


# What one key alone can't tell: a schema knows no addresses, nor what stands beside or behind a value.
BEYOND = re.compile(
    r"trust_forwarded\.\d+: found '.*expected an address|no more \* than in the name|'fingerprint' (before|in sessions)"
)


@settings(max_examples=1000, deadline=None)
@given(files())
def test_the_schema_takes_what_load_takes_and_nothing_else(file: dict[str, Any]) -> None:
    try:
        Config.load(file)
        faults: tuple[str, ...] = ()
    except ConfigError as error:
        faults = error.faults
    if all(BEYOND.search(fault) for fault in faults):
        SCHEMA.validate(file)
    else:
        assert not SCHEMA.is_valid(file)


@pytest.mark.parametrize(
    "file",
    [
        None,
        {"routing": None},
        {"routing": {"session_ttl_seconds": "${TTL:-600}", "router_models": ["${ROUTER}"]}},
        {"store": {"url": "${REDIS_URL}"}, "decisions": {"aliases": {"a": "${B}"}}},
    ],
)
def test_the_schema_takes_what_the_environment_fills_in_and_sections_without_a_key(file: Any) -> None:
    SCHEMA.validate(file)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(make_schema())


def test_its_expressions_are_those_of_every_language() -> None:
    patterns = re.findall(r"'pattern': '(.*?)'", str(make_schema()))
    assert patterns
    assert not [pattern for pattern in patterns if re.search(r"\\[AZz]|\(\?[^:!=<]", pattern)]


@pytest.mark.parametrize("section", sections_of(Config), ids=lambda section: section.__name__)
def test_each_key_is_described_in_its_sections_docstring(section: Any) -> None:
    about = describe(section)
    own = [key for key in section.__struct_fields__ if key not in about]
    inner = {type(getattr(Config(), key)).__name__.lower() for key in own} if section is Config else set(own)
    assert inner <= set(Config.__struct_fields__) if section is Config else not own
    assert about[""]
