import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asgi_session_pin.config import Config, ConfigError, Decisions, Endpoint, Limits, Routing, Sessions, Store
from asgi_session_pin.config.reading import read_settings
from asgi_session_pin.config.yaml import load_yaml
from config_files import error_of, faults, faults_of, load

# What is accepted

DEFAULTS = """
routing:
  session_ttl_seconds: 600
  session_ttl_sliding: true
  session_max_age_seconds: null
  session_max_entries: 10000
  router_models: []
sessions:
  sources: ["header:x-session-id"]
  pin_per: model
  partition_by: ["header:authorization", "header:x-api-key", "header:api-key", "header:x-goog-api-key",
                 "header:x-litellm-api-key", "header:ocp-apim-subscription-key"]
  max_id_length: 256
  secret: null
decisions:
  sources: ["header:x-vsr-selected-model", "body:model", "body:message.model", "body:response.model", "body:models.0"]
  aliases: {}
endpoints:
  - {path: "*/routing/v1/chat/completions", kind: decision}
  - {path: "*/deployments/*", kind: ignore}
  - {path: "*/engines/v1/chat/completions"}
  - {path: "*/engines/*/v1/chat/completions"}
  - {path: "*/engines/*", kind: ignore}
  - {path: "*/chat/completions"}
  - {path: "*/responses"}
  - {path: "*/responses/compact"}
  - {path: "*/v1/messages"}
  - {path: "*/v1/completions"}
store:
  url: "memory://"
limits:
  max_request_bytes: 33554432
  max_inspected_response_bytes: 8388608
response_headers: true
"""


def test_the_defaults_are_those_of_the_design(file: Path) -> None:
    assert load(file, DEFAULTS) == Config()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing but a comment\n",
        "---\n...\n",
        "null",
        "{}",
        "routing:\nsessions:\ndecisions:\nstore:\nlimits:\n",
        "routing: {}\nsessions: {}",
        "\ufeffrouting:",
    ],
)
def test_an_empty_file_and_empty_sections_give_the_defaults(file: Path, text: str) -> None:
    assert load(file, text) == Config()


def test_no_source_gives_the_defaults() -> None:
    assert Config.load(None) == Config.load({}) == Config.load(Config()) == Config()


EVERYTHING = """
routing: {session_ttl_seconds: 1.5, session_ttl_sliding: false, session_max_age_seconds: 60, session_max_entries: 7,
          router_models: [auto, "router/*"]}
sessions: {sources: ["header:X-Other", "header:!#$$%&'*+.^_`|~9-Z", "body:a.b.0", "preset:coding-agents",
                     "preset:body-ids", "fingerprint"], pin_per: session, partition_by: ["header:X-Tenant"],
           max_id_length: 65536, secret: hunter2}
decisions: {sources: ["body:a.b.0", "header:x"], aliases: {"gpt-*": "openai/gpt-*", a: b}}
endpoints: [{path: /x, kind: completion}, {path: "*"}]
limits: {max_request_bytes: 1, max_inspected_response_bytes: 2}
response_headers: false
"""
EVERYTHING_IN_PYTHON = Config(
    routing=Routing(
        session_ttl_seconds=1.5,
        session_ttl_sliding=False,
        session_max_age_seconds=60,
        session_max_entries=7,
        router_models=("auto", "router/*"),
    ),
    sessions=Sessions(
        sources=(
            "header:X-Other",
            "header:!#$%&'*+.^_`|~9-Z",
            "body:a.b.0",
            "preset:coding-agents",
            "preset:body-ids",
            "fingerprint",
        ),
        pin_per="session",
        partition_by=("header:X-Tenant",),
        max_id_length=65_536,
        secret="hunter2",
    ),
    decisions=Decisions(sources=("body:a.b.0", "header:x"), aliases={"gpt-*": "openai/gpt-*", "a": "b"}),
    endpoints=(Endpoint(path="/x"), Endpoint(path="*", kind="completion")),
    limits=Limits(max_request_bytes=1, max_inspected_response_bytes=2),
    response_headers=False,
)


def test_a_file_says_the_same_as_a_config_made_in_python(file: Path) -> None:
    assert load(file, EVERYTHING) == EVERYTHING_IN_PYTHON
    assert load(file, EVERYTHING.encode("utf-16")) == EVERYTHING_IN_PYTHON
    assert Config.load(str(file)) == EVERYTHING_IN_PYTHON


def test_a_config_made_in_python_is_checked_and_kept() -> None:
    assert Config.load(EVERYTHING_IN_PYTHON) == EVERYTHING_IN_PYTHON


def test_a_mapping_has_the_shape_of_the_file_and_knows_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "filled in")
    config = Config.load(
        {
            "routing": {"session_ttl_seconds": 5, "router_models": ("auto",)},
            "decisions": {"aliases": {"a": "${NAME}$$"}},
            "endpoints": [{"path": "/x", "kind": "ignore"}],
            "limits": None,
        }
    )
    assert config == Config(
        routing=Routing(session_ttl_seconds=5, router_models=("auto",)),
        decisions=Decisions(aliases={"a": "${NAME}$$"}),
        endpoints=(Endpoint(path="/x", kind="ignore"),),
    )


@pytest.mark.parametrize(
    ("section", "key", "values"),
    [
        ("routing", "session_ttl_seconds", [0.001, 10**9]),
        ("routing", "session_max_age_seconds", [0.001, 10**9, None]),
        ("routing", "session_max_entries", [1, 10**9]),
        ("sessions", "max_id_length", [1, 65_536]),
        ("limits", "max_request_bytes", [1, 10**12]),
        ("limits", "max_inspected_response_bytes", [1, 10**12]),
    ],
)
def test_the_bounds_of_a_number_can_be_used(section: str, key: str, values: list[float | None]) -> None:
    for value in values:
        assert getattr(getattr(Config.load({section: {key: value}}), section), key) == value


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        Config().routing.session_ttl_seconds = 5  # type: ignore[misc]


# What is refused; the texts of the faults are those of test_settings.py

IMPOSSIBLE: list[tuple[str, str, list[object]]] = [
    ("routing", "session_ttl_seconds", [0, -0.5, True, "5", None, 10**9 + 1, float("inf"), object()]),
    ("routing", "session_max_age_seconds", [0, False, "5", 10**9 + 1, float("nan"), []]),
    ("routing", "session_max_entries", [0, 1.5, True, "1", None, 10**9 + 1]),
    ("routing", "session_ttl_sliding", [0, 1, "true", None]),
    ("routing", "router_models", ["auto", {"auto": 1}, None, 5, [["auto"]]]),
    ("sessions", "sources", [["x-session-id"], ["header:"], ["header:a b"], ["header:a:b"], ["header:x\n"], [""], [5]]),
    (
        "sessions",
        "sources",
        [
            ["body:"],
            ["body:a..b"],
            ["body:a\n"],
            ["preset:"],
            ["preset:other"],
            ["preset:coding-agents2"],
            ["fingerprints"],
        ],
    ),
    ("sessions", "pin_per", ["agent", "Model", None, True, ["model"]]),
    (
        "sessions",
        "partition_by",
        [["model"], ["header:"], ["header:x\n"], ["body:model"], ["model\n"]],
    ),
    ("sessions", "max_id_length", [0, 65_537, 1.5, "1"]),
    ("sessions", "secret", ["", 5, b"bytes", ["x"]]),
    (
        "decisions",
        "sources",
        [["body:"], ["body:.a"], ["body:a."], ["body:a b"], ["model"], ["header:"], ["header:x\n"], ["body:a\n"]],
    ),
    ("decisions", "aliases", [[], "a", None, {"a": None}, {"a": "*"}, {"*": "**"}, {None: "a"}]),
    ("store", "url", ["", "memory", "memory://x", "memory://\n", "ftp://host", 5, None]),
    ("limits", "max_request_bytes", [0, -1, 1.5, "1", True, None, 10**12 + 1]),
    ("limits", "max_inspected_response_bytes", [0, 10**12 + 1, datetime.date(2024, 1, 1), {1}]),
]


@pytest.mark.parametrize(
    ("section", "key", "value"), [(section, key, value) for section, key, several in IMPOSSIBLE for value in several]
)
def test_a_value_that_cannot_work_is_one_fault_under_its_path(section: str, key: str, value: object) -> None:
    (fault,) = faults_of({section: {key: value}})
    assert fault.startswith(f"{section}.{key}")
    assert ", expected " in fault


@pytest.mark.parametrize(
    "config",
    [
        Config(routing=Routing(session_ttl_seconds=-1)),
        Config(routing=Routing(session_ttl_seconds=object())),  # type: ignore[arg-type]
        Config(sessions=Sessions(secret="")),
        Config(decisions=Decisions(aliases={"a": "*"})),
        Config(endpoints=(Endpoint(path="chat"),)),
        Config(endpoints=(Endpoint(path="/chat", kind="other"),)),  # type: ignore[arg-type]
        Config(store=Store(url="ftp://host")),
        Config(limits=5),  # type: ignore[arg-type]
    ],
)
def test_a_bad_value_in_a_config_made_in_python_is_refused(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"^configuration: 1 fault\n"):
        Config.load(config)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ([], "an empty list"),
        ((5,), "a list"),
        (5, "a number"),
        (5.5, "a number"),
        (True, "true or false"),
        (b"routing:", "a bytes"),
        ({"routing"}, "a set"),
        (Routing(), "a Routing"),
    ],
)
def test_a_source_of_another_kind_is_refused(source: Any, found: str) -> None:
    assert faults_of(source) == [f"found {found}, expected a mapping"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("- a", "a list"), ("just text", "text"), ("redis://:hunter2@host/0", "text"), ("5", "a number")],
)
def test_a_file_of_another_kind_is_refused(file: Path, text: str, found: str) -> None:
    assert faults(file, text) == [f"found {found}, expected a mapping"]


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert str(error_of(missing)) == f"{missing}: 1 fault\n  can't be read: No such file or directory"
    assert faults_of(tmp_path) == ["can't be read: Is a directory"]


@pytest.mark.parametrize(("path", "told"), [("a\0b", "embedded null byte"), ("\ud800", "surrogates not allowed")])
def test_a_path_that_no_file_can_have_is_refused(path: str, told: str) -> None:
    (fault,) = faults_of(path)
    assert told in fault


# What is shown and written


def test_a_repr_shows_everything_but_secrets() -> None:
    config = Config(sessions=Sessions(secret="hunter2"), store=Store(url="redis://:hunter2@host"))
    for text in (repr(config), str(config), f"{config.sessions!r}", f"{config.store}"):
        assert "hunter2" not in text
    assert repr(config.store) == "Store(url='***', timeout_seconds=0.1)"
    assert "secret='***'" in repr(config.sessions)
    assert repr(Endpoint(path="/x")) == "Endpoint(path='/x', kind='completion')"
    assert "routing=Routing(session_ttl_seconds=600, session_ttl_sliding=True" in repr(config)


def test_the_operators_token_is_long_and_never_shown() -> None:
    config = Config.load({"admin": {"token": "0123456789abcdef"}})
    assert config.admin.token == "0123456789abcdef"
    assert "0123456789" not in config.to_yaml() + repr(config)
    for token in ("0123456789abcde", "0123456789 abcdef", "0123456789abcdef\n", "0123456789abcdeä", "", 5):
        (fault,) = faults_of({"admin": {"token": token}})
        kind = "a number" if token == 5 else "text"
        assert fault == (
            f"admin.token: found {kind}, expected at least 16 visible characters, such as ${{PIN_ADMIN_TOKEN}} or null"
        )


def test_a_key_that_has_moved_says_where_to() -> None:
    (fault,) = faults_of({"gateway": {"health_path": "/up"}})
    assert fault == "gateway.health_path: is no key any longer, expected 'admin.path' in its place"


def test_a_pretty_printer_is_shown_everything_but_secrets() -> None:
    assert Store(url="redis://:hunter2@host").__rich_repr__() == [("url", "***"), ("timeout_seconds", 0.1)]
    assert Sessions(sources=("body:id",), partition_by=(), secret="hunter2").__rich_repr__() == [
        ("sources", ("body:id",)),
        ("pin_per", "model"),
        ("partition_by", ()),
        ("max_id_length", 256),
        ("secret", "***"),
    ]


# Whatever comes: a Config or a ConfigError, and a Config is written as the same

keys = st.sampled_from(
    [
        *(
            name
            for section in (Config, Routing, Sessions, Decisions, Store, Limits)
            for name in section.__struct_fields__
        ),
        *("path", "kind", "", "a*", "<<", "${X}"),
    ]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "auto", "header:x", "body:a.b", "model", "/x", "*", "ignore", "memory://", "${X}", "\ud800"])
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.dates()
)
nested = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys | scalars, v, max_size=3), max_leaves=6
)


seconds = st.integers(1, 10**9) | st.floats(0.001, 1e9)
header = st.from_regex(r"header:[a-z-]{1,5}", fullmatch=True)
# Values of the right kind for some keys, so that whole files come out right too.
usable: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "routing": {"session_ttl_seconds": seconds, "session_max_age_seconds": st.none() | seconds},
    "sessions": {"sources": st.lists(header), "secret": st.none() | st.text(min_size=1)},
    "decisions": {"aliases": st.dictionaries(st.text(), st.text("abc", min_size=1))},
    "limits": {"max_request_bytes": st.integers(1)},
}


def section(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({}, optional=fields) | st.fixed_dictionaries(
        {}, optional={name: value | scalars for name, value in fields.items()}
    )


sections = {name: section(fields) for name, fields in usable.items()}


@given(st.fixed_dictionaries({}, optional=sections) | nested)
@settings(max_examples=300, deadline=None)
def test_any_mapping_gives_a_config_or_a_config_error(source: Any) -> None:
    if isinstance(source, str):  # that would be a path
        source = [source]
    try:
        config = Config.load(source)
    except ConfigError:
        return
    assert Config.load(config) == config


texts = st.text(min_size=1) | st.sampled_from(["null", "1e3", "=", "${X}", "$$", "a: b # c", "- x", "*", "2024-01-01"])


@given(
    st.builds(
        Config,
        routing=st.builds(
            Routing,
            session_ttl_seconds=seconds,
            router_models=st.lists(texts.filter(lambda text: text.strip("*") != "")).map(tuple),
        ),
        decisions=st.builds(Decisions, aliases=st.dictionaries(texts, texts.map(lambda text: text.replace("*", "+")))),
        endpoints=st.lists(st.builds(Endpoint, path=texts.map("/".__add__)), min_size=1).map(tuple),
        response_headers=st.booleans(),
    )
)
@settings(deadline=None)
def test_settings_written_as_yaml_are_read_as_the_same(config: Config) -> None:
    assume("***" not in config.to_yaml())  # what looks like a URL's credentials is masked
    assert read_settings(Config, load_yaml(config.to_yaml().encode())) == (config, [])
