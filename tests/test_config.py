import datetime
import re
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_session_pin._settings import expected
from asgi_session_pin._yaml import MAX_BYTES, MAX_VALUES, YAMLFault, load_yaml
from asgi_session_pin.config import (
    Config,
    ConfigError,
    Decisions,
    Endpoint,
    Limits,
    PathPattern,
    Routing,
    Sessions,
    Store,
)

PATH_EXPECTED = 'expected a path pattern that starts with "/" or "*"'
SECONDS_EXPECTED = "expected a number of seconds above 0"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "session_pin.yaml"


def load(file: Path, text: str | bytes) -> Config:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return Config.load(file)


def faults(file: Path, text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(file, text)
    return list(caught.value.faults)


def faults_of(source: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config.load(source)
    return list(caught.value.faults)


def everything_printed(error: BaseException) -> str:
    """All that a traceback in a log shows, errors this one came from included."""
    return "".join(traceback.format_exception(error)) + repr(error)


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
  partition_by: ["header:authorization", "header:x-api-key", "header:api-key", "header:x-goog-api-key",
                 "header:x-litellm-api-key", "header:ocp-apim-subscription-key", "model"]
  max_id_length: 256
  secret: null
decisions:
  sources: ["header:x-vsr-selected-model", "body:model", "body:message.model", "body:response.model", "body:models.0"]
  aliases: {}
endpoints:
  - {path: "*/routing/v1/chat/completions", kind: decision}
  - {path: "*/deployments/*", kind: ignore}
  - {path: "*/engines/*", kind: ignore}
  - {path: "*/chat/completions"}
  - {path: "*/responses"}
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
sessions: {sources: ["header:X-Other", "header:!#$$%&'*+.^_`|~9-Z", "body:a.b.0", "preset:coding-agents"],
           partition_by: [model], max_id_length: 65536, secret: hunter2}
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
        sources=("header:X-Other", "header:!#$%&'*+.^_`|~9-Z", "body:a.b.0", "preset:coding-agents"),
        partition_by=("model",),
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


def test_merge_keys_and_aliases_are_written_out(file: Path) -> None:
    text = """
endpoints:
  - &chat {path: /chat, kind: ignore}
  - <<: *chat
  - {<<: *chat, path: /other}
  - {<<: [{path: /first}, *chat]}
  - *chat
"""
    assert load(file, text).endpoints == (
        Endpoint(path="/chat", kind="ignore"),
        Endpoint(path="/chat", kind="ignore"),
        Endpoint(path="/other", kind="ignore"),
        Endpoint(path="/first", kind="ignore"),
        Endpoint(path="/chat", kind="ignore"),
    )


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        Config().routing.session_ttl_seconds = 5  # type: ignore[misc]


# Faults


def test_all_faults_of_a_file_are_told_at_once(file: Path) -> None:
    text = """
routing:
  session_ttl_seconds: -1
  session_ttl_sliding: "yes"
  session_max_age_seconds: .nan
  session_max_entries: 0
  router_models: [auto, "", 5]
  session_ttl_second: 5
sessions:
  max_id_length: 65537
  partition_by: model
decisions:
  sources: ["body:a..b", [1], {a: 1}, null]
  aliases: {5: a, b: [c], "d*": "e*/*", f: ""}
  zzz: {nested: [1, 2]}
endpoints:
  - {path: chat}
  - {kind: other}
  - /chat
  - null
  - {path: /x, zzz: 1, patch: /y}
limits: 5
response_headers: null
"""
    with pytest.raises(ConfigError) as caught:
        load(file, text)
    name = "expected a name or a pattern with *"
    source = 'expected "header:NAME" or "body:PATH.TO.NAME"'
    lines = [
        f"routing.session_ttl_seconds: found -1, {SECONDS_EXPECTED}",
        "routing.session_ttl_sliding: found 'yes', expected true or false",
        f"routing.session_max_age_seconds: found nan, {SECONDS_EXPECTED} or null",
        "routing.session_max_entries: found 0, expected a whole number of at least 1",
        f"routing.router_models.1: found '', {name}",
        f"routing.router_models.2: found 5, {name}",
        "routing.session_ttl_second: unknown key, did you mean 'session_ttl_seconds'?",
        "sessions.max_id_length: found 65537, expected a whole number from 1 to 65536",
        'sessions.partition_by: found \'model\', expected a list, each item "header:NAME" or "model"',
        f"decisions.sources.0: found 'body:a..b', {source}",
        f"decisions.sources.1: found a list, {source}",
        f"decisions.sources.2: found a mapping, {source}",
        f"decisions.sources.3: found null, {source}",
        "decisions.aliases.5: found 5, expected a string",
        f"decisions.aliases.b: found a list, {name}",
        "decisions.aliases.d*: found 'e*/*', expected no more * than in 'd*'",
        f"decisions.aliases.f: found '', {name}",
        "decisions.zzz: unknown key, expected one of sources, aliases",
        f"endpoints.0.path: found 'chat', {PATH_EXPECTED}",
        f"endpoints.1.path: missing, {PATH_EXPECTED}",
        'endpoints.1.kind: found \'other\', expected "completion" or "decision" or "ignore"',
        "endpoints.2: found '/chat', expected a mapping",
        f"endpoints.3.path: missing, {PATH_EXPECTED}",
        "endpoints.4.zzz: unknown key, expected one of path, kind",
        "endpoints.4.patch: unknown key, did you mean 'path'?",
        "limits: found 5, expected a mapping",
        "response_headers: found null, expected true or false",
    ]
    assert sorted(caught.value.faults) == sorted(lines)
    message = str(caught.value).split("\n  ")
    assert message == [f"{file}: 27 faults", *caught.value.faults]


def test_one_fault_is_not_many(file: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{file}: 1 fault\n  limits: found 5, expected a mapping")):
        load(file, "limits: 5")


IMPOSSIBLE: list[tuple[str, str, list[object]]] = [
    ("routing", "session_ttl_seconds", [0, -0.5, True, "5", None, 10**10, float("inf")]),
    ("routing", "session_max_age_seconds", [0, False, "5", float("nan"), []]),
    ("routing", "session_max_entries", [0, 1.5, True, "1", None]),
    ("routing", "session_ttl_sliding", [0, 1, "true", None]),
    ("routing", "router_models", ["auto", {"auto": 1}, None, 5, [["auto"]]]),
    ("sessions", "sources", [["x-session-id"], ["header:"], ["header:a b"], ["header:a:b"], [""], [5]]),
    ("sessions", "sources", [["body:"], ["body:a..b"], ["preset:"], ["preset:other"], ["preset:coding-agents2"]]),
    ("sessions", "partition_by", [["Model"], ["header:"], ["body:model"], ["xmodel"], ["modelx"]]),
    ("sessions", "max_id_length", [0, 65_537, 1.5, "1"]),
    ("sessions", "secret", ["", 5, b"bytes", ["x"]]),
    ("decisions", "sources", [["body:"], ["body:.a"], ["body:a."], ["body:a b"], ["model"], ["header:"]]),
    ("decisions", "aliases", [[], "a", None, {"a": None}, {"a": "*"}, {"*": "**"}, {None: "a"}]),
    ("store", "url", ["", "memory", "memory://x", "ftp://host", 5, None]),
    ("limits", "max_request_bytes", [0, -1, 1.5, "1", True, None]),
    ("limits", "max_inspected_response_bytes", [0, datetime.date(2024, 1, 1), {1}]),
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
    [([], "a list"), (5, "5"), (True, "true"), (b"routing:", "b'routing:'"), ({"routing"}, "{'routing'}")],
)
def test_a_source_of_another_kind_is_refused(source: Any, found: str) -> None:
    assert faults_of(source) == [f"found {found}, expected a mapping"]


@pytest.mark.parametrize(("text", "found"), [("- a", "a list"), ("just text", "'just text'"), ("5", "5")])
def test_a_file_of_another_kind_is_refused(file: Path, text: str, found: str) -> None:
    assert faults(file, text) == [f"found {found}, expected a mapping"]


def test_keys_of_other_kinds_are_unknown_keys(file: Path) -> None:
    text = "5: 1\nnull: 2\n2024-01-01: 3\n"
    assert [fault.partition(":")[0] for fault in faults(file, text)] == ["5", "None", "2024-01-01"]


def test_a_long_value_is_shown_shortened() -> None:
    assert faults_of({"endpoints": [{"path": "x" * 78}]}) == [f"endpoints.0.path: found '{'x' * 78}', {PATH_EXPECTED}"]
    assert faults_of({"endpoints": [{"path": "x" * 79}]}) == [
        f"endpoints.0.path: found '{'x' * 76}..., {PATH_EXPECTED}"
    ]


def test_what_is_expected_is_said_in_words() -> None:
    assert expected(PathPattern | None) == 'a path pattern that starts with "/" or "*" or null'
    assert expected(str | bool) == "a string or true or false"
    assert expected(Endpoint) == "a mapping"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    with pytest.raises(ConfigError) as caught:
        Config.load(missing)
    assert str(caught.value) == f"{missing}: 1 fault\n  can't be read: No such file or directory"
    assert faults_of(tmp_path) == ["can't be read: Is a directory"]


# Variables


@pytest.mark.parametrize(
    ("written", "environment", "expected_value"),
    [
        ("${TTL}", {"TTL": "5"}, 5),
        ("${TTL}", {"TTL": "1.5"}, 1.5),
        ("${TTL:-600}", {}, 600),
        ("${TTL:-600}", {"TTL": "5"}, 5),
        ("${TTL:-600}", {"TTL": ""}, 600),
        ("${TTL:-}", {}, None),
        ("${TTL}", {"TTL": ""}, None),
        ("${TTL}", {"TTL": "null"}, None),
        ("1${TTL}", {"TTL": "00"}, 100),
        ("${A}${B}", {"A": "1", "B": "2"}, 12),
        ("${_a1}", {"_a1": "7"}, 7),
    ],
)
def test_a_plain_variable_is_read_as_yaml(
    file: Path, monkeypatch: pytest.MonkeyPatch, written: str, environment: dict[str, str], expected_value: float | None
) -> None:
    monkeypatch.delenv("TTL", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = load(file, f"routing:\n  session_max_age_seconds: {written}\n")
    assert config.routing.session_max_age_seconds == expected_value


@pytest.mark.parametrize(
    ("written", "value", "expected_value"),
    [
        ('"${NAME}"', "5", "5"),
        ("'${NAME}'", "null", "null"),
        ('"${NAME}"', "x: [y", "x: [y"),
        ("${NAME}", "x: [y", "x: [y"),
        ("${NAME}", "!x # &y", "!x # &y"),
        ("${NAME}", "2024-99-99", "2024-99-99"),
        ("${NAME}", "$NAME ${NAME} $$", "$NAME ${NAME} $$"),
        ("a-${NAME}-b", "x", "a-x-b"),
        ("a ${NAME} b", "x", "a x b"),
        ('"${NAME:-}x"', "", "x"),
        ('"${OTHER:-a:-b $x}"', "", "a:-b $x"),
        ('"${OTHER:-two\\nlines}"', "", "two\nlines"),
        ("|-\n      ${NAME}", "5", "5"),
        ("$$", "", "$"),
        ('"$$"', "", "$"),
        ("$${NAME}", "x", "${NAME}"),
        ("$$$${NAME}", "x", "$${NAME}"),
        ("$$${NAME}", "x", "$x"),
        ("$NAME", "x", "$NAME"),
        ("a$", "", "a$"),
        ("a}b$c", "", "a}b$c"),
    ],
)
def test_a_variable_in_a_text(
    file: Path, monkeypatch: pytest.MonkeyPatch, written: str, value: str, expected_value: str
) -> None:
    monkeypatch.delenv("OTHER", raising=False)
    monkeypatch.setenv("NAME", value)
    config = load(file, f"decisions:\n  aliases:\n    key: {written}\n")
    assert config.decisions.aliases == {"key": expected_value}


def test_a_variable_may_stand_for_any_value_and_is_filled_in_where_an_alias_repeats_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADERS", "false")
    monkeypatch.setenv("PART", "model")
    monkeypatch.setenv("NOTHING", "")
    text = """
limits: ${NOTHING}
sessions: {partition_by: [&part "${PART}", *part]}
response_headers: ${HEADERS}
"""
    assert load(file, text) == Config(sessions=Sessions(partition_by=("model", "model")), response_headers=False)


def test_the_names_of_aliases_are_filled_in_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "x")
    assert load(file, 'decisions: {aliases: {"a${NAME}$$": b}}').decisions.aliases == {"ax$": "b"}


def test_a_quoted_variable_is_a_text_where_a_number_is_expected(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTL", "5")
    assert faults(file, 'routing: {session_ttl_seconds: "${TTL}"}') == [
        f"routing.session_ttl_seconds: found '${{TTL}}', filled in as a value of type str, {SECONDS_EXPECTED}"
    ]


def test_a_missing_variable_names_itself_beside_the_other_faults(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST", "SECOND", "THIRD"):
        monkeypatch.delenv(name, raising=False)
    text = """
routing:
  session_ttl_seconds: ${FIRST}
  session_max_entries: -1
  router_models: ["${SECOND}", "a${THIRD}"]
decisions:
  aliases: {a: "${THIRD}"}
"""
    assert faults(file, text) == [
        "routing.session_ttl_seconds: the environment variable FIRST is not set",
        "routing.session_max_entries: found -1, expected a whole number of at least 1",
        "routing.router_models.0: the environment variable SECOND is not set",
        "routing.router_models.1: the environment variable THIRD is not set",
        "decisions.aliases.a: the environment variable THIRD is not set",
    ]


@pytest.mark.parametrize(
    "written", ["${", "${}", "${NAME", "${1}", "${NA ME}", "${NAME-x}", "${NAME:x}", "${:-x}", "${É}"]
)
def test_what_only_looks_like_a_variable_is_a_fault(file: Path, monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("NAME", "x")
    assert faults(file, f'decisions:\n  aliases:\n    key: "{written}"\n') == [
        "decisions.aliases.key: found a ${ that is not ${NAME} or ${NAME:-default}; a plain dollar sign is $$"
    ]


def test_a_whole_file_can_be_a_variable_and_is_no_mapping_then(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL", "routing: {}")
    assert faults(file, "${ALL}") == ["found '${ALL}', filled in as a value of type str, expected a mapping"]


# Secrets


@pytest.mark.parametrize(
    "text",
    [
        "sessions: {secret: [hunter2]}",
        "sessions: {secret: {hunter2: hunter2}}",
        "sessions: {secret: !!binary aHVudGVyMg==}",
        "sessions: {secrets: hunter2}",
        "sessions: {max_id_length: 0, secret: hunter2}",
        "store: {url: 'ftp://:hunter2@host/0'}",
        "store: {url: [hunter2]}",
        "store: {uri: 'redis://:hunter2@host/0'}",
        "sessions:\n  secret: hunter2: x",
        "sessions:\n  secret: 'hunter2",
        'sessions:\n  secret: "hunter2\\q"',
        "sessions:\n  secret: @hunter2",
        "sessions:\n  secret: [hunter2",
        "sessions:\n  secret: hunter2\n  secret: hunter2",
        "sessions:\n  secret: hunter2\x01",
        "sessions:\n  secret: hunter2\n  x: 2024-99-99",
    ],
)
def test_a_secret_in_the_file_is_never_in_a_message(file: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, text)
    printed = everything_printed(caught.value)
    assert "hunter2" not in printed
    assert "aHVudGVyMg" not in printed


def test_a_fault_in_the_text_shows_no_line_of_it() -> None:
    text = b"sessions:\n  secret: hunter2: x"
    with pytest.raises(YAMLFault) as caught:
        load_yaml(text)
    assert "hunter2" not in everything_printed(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "routing:\n  session_ttl_seconds: ${PASSWORD}",
        "routing: {session_ttl_seconds: '${PASSWORD}'}",
        "routing:\n  router_models: ${PASSWORD}",
        "routing:\n  unknown: ${PASSWORD}",
        "sessions:\n  secret: ${PASSWORD}\n  max_id_length: 0",
        "sessions: {sources: ['${PASSWORD}']}",
        "decisions: {aliases: '${PASSWORD}'}",
        "decisions: {aliases: {5: '${PASSWORD}'}}",
        "decisions: {aliases: {a: '${PASSWORD}*'}}",
        "endpoints: [{path: '${PASSWORD}', kind: '${PASSWORD}'}]",
        "endpoints: ['${PASSWORD}']",
        "store: {url: '${PASSWORD}'}",
        "store: '${PASSWORD}'",
        "response_headers: ${PASSWORD}",
        "${PASSWORD}: 1",
    ],
)
@pytest.mark.parametrize("password", ["hunter2", "ftp://:hunter2@host"])
def test_what_the_environment_holds_is_never_in_a_message(
    file: Path, monkeypatch: pytest.MonkeyPatch, text: str, password: str
) -> None:
    monkeypatch.setenv("PASSWORD", password)
    with pytest.raises(ConfigError) as caught:
        load(file, text)
    assert "hunter2" not in everything_printed(caught.value)


def test_a_number_in_a_secrets_place_is_not_shown_either(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIN", "12345678")
    wanted = "expected a string or null"
    assert faults(file, "sessions: {secret: 12345678}") == [f"sessions.secret: found a value of type int, {wanted}"]
    assert faults(file, "sessions:\n  secret: ${PIN}") == [
        f"sessions.secret: found '${{PIN}}', filled in as a value of type int, {wanted}"
    ]


def test_a_repr_shows_everything_but_secrets() -> None:
    config = Config(sessions=Sessions(secret="hunter2"), store=Store(url="redis://:hunter2@host"))
    for text in (repr(config), str(config), f"{config.sessions!r}", f"{config.store}"):
        assert "hunter2" not in text
    assert repr(config.store).startswith("Store(url=***")
    assert "secret=***" in repr(config.sessions)
    assert repr(Endpoint(path="/x")) == "Endpoint(path='/x', kind='completion')"
    assert "routing=Routing(session_ttl_seconds=600, session_ttl_sliding=True" in repr(config)


# Files that are meant to harm, or are broken


def bomb(level: str) -> str:
    return "a0: &a0 [1]\n" + "".join(level.format(i=i, of=f"*a{i - 1}") for i in range(1, 30))


@pytest.mark.parametrize(
    "text",
    [
        bomb("a{i}: &a{i} [{of}, {of}, {of}]\n"),
        bomb("a{i}: &a{i} {{x: {of}, y: {of}}}\n"),
        bomb("a{i}: &a{i}\n  <<: [{of}, {of}]\n").replace("[1]", "{x: 1}"),
        bomb("a{i}: &a{i} {{? {of} : {of}}}\n"),
    ],
)
def test_aliases_that_expand_without_end_are_refused(file: Path, text: str) -> None:
    (fault,) = faults(file, text)
    assert re.fullmatch(r"line \d+: its aliases expand to more than 100,000 values", fault)


def test_as_many_values_as_the_limit_are_taken_and_no_more() -> None:
    repeated = 271  # of 369 values each; with the outer list: 100,000
    text = b"- &x [" + b"1," * 368 + b"]\n" + b"- *x\n" * (repeated - 1)
    assert 1 + repeated * (1 + 368) == MAX_VALUES
    assert len(load_yaml(text)) == repeated
    with pytest.raises(YAMLFault, match=r"^line 1: its aliases expand to more than 100,000 values$"):
        load_yaml(text + b"- 1")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("&a [*a]", "line 1: an alias stands inside what it names"),
        ("routing: &a\n  x: {y: *a}", "line 1: an alias stands inside what it names"),
        ("a: &a\n  <<: *a", "line 1: an alias stands inside what it names"),
        ("a: *b", "line 1: not valid YAML: found undefined alias 'b'"),
        ("[" * 2000, "nested too deep"),
        ("[" * 2000 + "]" * 2000, "nested too deep"),
        ("{a: " * 2000, "nested too deep"),
        ("- " * 2000, "nested too deep"),
        ("? " * 2000, "nested too deep"),
        ("a: [", "line 1: not valid YAML: expected the node content, but found '<stream end>'"),
        ("a: 1\n b: 2", "line 2: not valid YAML: mapping values are not allowed here"),
        ("a: 1\n\tb: 2", "line 2: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 2", "line 2: not valid YAML: but found another document"),
        ("a: 1\n\na: 2", "line 3: the key 'a' stands there a second time"),
        ("routing: {a: 1, b: 2, 'a': 3}", "line 1: the key 'a' stands there a second time"),
        ("a: {<<: {b: 1}, <<: {c: 1}}", "line 1: the key '<<' stands there a second time"),
        ("? [a]\n: 1", "line 1: not valid YAML: found unhashable key"),
        ("a: {<<: 5}", "line 1: not valid YAML: expected a mapping or list of mappings for merging, but found scalar"),
        ("a: 2024-99-99", "not valid YAML: month must be in 1..12"),
        ("\0", "not valid YAML: it holds bytes or characters that YAML does not allow"),
        (b"a: \xff\xfe", "not valid YAML: it holds bytes or characters that YAML does not allow"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not valid YAML: it holds bytes or characters that YAML does not allow"),
        (b"\x7fELF\x02\x01\x01", "not valid YAML: it holds bytes or characters that YAML does not allow"),
        (b"\xff\xfea", "not valid YAML: it holds bytes or characters that YAML does not allow"),
        (b"#" * (MAX_BYTES + 1), "found 1,048,577 bytes, expected at most 1,048,576"),
    ],
)
def test_text_that_is_no_usable_yaml_is_one_fault(file: Path, text: str | bytes, fault: str) -> None:
    assert faults(file, text) == [fault]


@pytest.mark.parametrize("value", ["2024-01-01 00:00:00 +99:00", "9" * 5000, "0b_"])
def test_a_number_or_a_date_that_python_cannot_take_is_one_fault(file: Path, value: str) -> None:
    (fault,) = faults(file, f"a: {value}")
    assert fault.startswith("not valid YAML: ")  # the rest is Python's text, which differs from version to version


def test_a_file_of_the_size_limit_is_read(file: Path) -> None:
    assert load(file, b"response_headers: false #".ljust(MAX_BYTES, b"x")) == Config(response_headers=False)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [{path}]",
        "!!python/object/new:os.mkdir [{path}]",
        "!!python/object/apply:os.mkdir {{args: [{path}]}}",
        "!!python/name:os.mkdir",
        "!!python/module:os",
        "!!python/tuple [a]",
        "!unknown x",
    ],
)
def test_python_tags_are_refused_and_run_nothing(file: Path, value: str) -> None:
    made = file.parent / "made"
    (fault,) = faults(file, "routing: " + value.format(path=made))
    assert fault.startswith("line 1: not valid YAML: could not determine a constructor for the tag ")
    assert not made.exists()


# Whatever comes: a Config or a ConfigError

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


snippets = st.sampled_from(
    [
        *(
            "routing:",
            "sessions:",
            "secret:",
            "url:",
            "a:",
            "- ",
            "? ",
            ": ",
            "[",
            "]",
            "{",
            "}",
            ",",
            "&a ",
            "*a",
            "<<: ",
        ),
        *(
            "|",
            ">",
            "'",
            '"',
            "#",
            "%",
            "@",
            "!",
            "!!",
            "$",
            "$$",
            "${X}",
            "${X:-5}",
            "${",
            "}",
            "\\",
            "~",
            "null",
            "0x1",
        ),
        *(
            "1",
            ".",
            ":",
            "-",
            "2024-01-01",
            "=",
            "yes",
            "\n",
            "\n  ",
            "\t",
            " ",
            "\x00",
            "\x85",
            "\ufeff",
            "\U0001f600",
        ),
    ]
)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generated") / "session_pin.yaml"


@given(text=st.binary(max_size=40) | st.lists(snippets, max_size=20).map(lambda parts: "".join(parts).encode()))
@settings(max_examples=600, deadline=None)
def test_any_file_gives_a_config_or_a_config_error(generated: Path, text: bytes) -> None:
    try:
        config = load(generated, text)
    except ConfigError:
        return
    assert Config.load(config) == config
