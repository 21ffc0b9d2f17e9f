"""Every fault is told, by its path, and none tells a secret."""

import re
from pathlib import Path
from typing import Any

import pytest

from asgi_session_pin.config import Config, ConfigError
from config_files import error_of, faults, faults_of, load

PATH_EXPECTED = 'expected a path pattern that starts with "/" or "*"'
SECONDS_EXPECTED = "expected a number of seconds above 0, at most 1,000,000,000"
COUNT_EXPECTED = "expected a whole number from 1 to 1,000,000,000"
BYTES_EXPECTED = "expected a whole number of bytes from 1 to 1,000,000,000,000"
SECRET_EXPECTED = "expected a string or null"
URL_EXPECTED = (
    'expected "memory://", "sqlite:///FILE", "redis://HOST:PORT/DB", "unix:///SOCKET", '
    '"redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB" or "redis+cluster://HOST:PORT,HOST:PORT" (TLS: "rediss")'
)
ANY_SECTION = (
    "expected one of routing, sessions, decisions, endpoints, failover, store, limits, gateway, admin, "
    "response_headers, restore_model"
)


def test_all_faults_of_a_file_are_told_at_once(file: Path) -> None:
    text = """
routing:
  session_ttl_seconds: -1
  session_ttl_sliding: "yes"
  session_max_age_seconds: .nan
  session_max_entries: 0
  tool_loop_seconds: -1
  release: human
  router_models: [auto, "", 5]
  retired_models: ["**"]
  session_ttl_second: 5
sessions:
  max_id_length: 65537
  partition_by: model
decisions:
  sources: ["body:a..b", [1], {a: 1}, null]
  aliases: {5: a, b: [c], "d*": "e*/*", f: "", 2024-01-01: 6}
  unless: {x-cause: [a], "header:x-a": [], "header:x-b": a, "header:x-session-pin": [a], "header:x-c": ["", 5]}
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
    name = "expected a name or a pattern with *"
    source = 'expected "header:NAME" or "body:PATH.TO.NAME"'
    lines = [
        f"routing.session_ttl_seconds: found -1, {SECONDS_EXPECTED}",
        "routing.session_ttl_sliding: found 'yes', expected true or false",
        f"routing.session_max_age_seconds: found nan, {SECONDS_EXPECTED} or null",
        f"routing.session_max_entries: found 0, {COUNT_EXPECTED}",
        "routing.tool_loop_seconds: found -1, expected a number of seconds from 0 to 1,000,000,000",
        'routing.release: found \'human\', expected "never" or "user_turn"',
        f"routing.retired_models.0: found '**', {name}, but not * alone",
        f"routing.router_models.1: found '', {name}, but not * alone",
        f"routing.router_models.2: found 5, {name}, but not * alone",
        "routing.session_ttl_second: unknown key, did you mean 'session_ttl_seconds'?",
        "sessions.max_id_length: found 65537, expected a whole number from 1 to 65536",
        "sessions.partition_by: found 'model', expected a list, each item \"header:NAME\" "
        '(instead of "model" use sessions.pin_per)',
        f"decisions.sources.0: found 'body:a..b', {source}",
        f"decisions.sources.1: found a list, {source}",
        f"decisions.sources.2: found a mapping, {source}",
        f"decisions.sources.3: found null, {source}",
        "decisions.aliases: found 5, expected a string",
        f"decisions.aliases.b: found a list, {name}",
        "decisions.aliases.d*: found 'e*/*', expected no more * than in the name",
        f"decisions.aliases.f: found '', {name}",
        "decisions.aliases: found 2024-01-01, expected a string",
        f"decisions.aliases.2024-01-01: found 6, {name}",
        "decisions.unless: found 'x-cause', expected \"header:NAME\"",
        "decisions.unless.header:x-a: found an empty list, expected a list of at least one item",
        "decisions.unless.header:x-b: found 'a', expected a list of at least one item",
        "decisions.unless: found 'header:x-session-pin', expected \"header:NAME\"",
        f"decisions.unless.header:x-c.0: found '', {name}",
        f"decisions.unless.header:x-c.1: found 5, {name}",
        "decisions.zzz: unknown key, expected one of sources, aliases, unless",
        f"endpoints.0.path: found 'chat', {PATH_EXPECTED}",
        f"endpoints.1.path: missing, {PATH_EXPECTED}",
        'endpoints.1.kind: found \'other\', expected "completion" or "decision" or "ignore"',
        "endpoints.2: found text, expected a mapping",
        f"endpoints.3.path: missing, {PATH_EXPECTED}",
        "endpoints.4.zzz: unknown key, expected one of path, kind",
        "endpoints.4.patch: unknown key, did you mean 'path'?",
        "limits: found a number, expected a mapping",
        "response_headers: found null, expected true or false",
    ]
    assert sorted(faults(file, text)) == sorted(lines)
    error = error_of(file)
    assert str(error).split("\n  ") == [f"{file}: 38 faults", *error.faults]


def test_faults_come_in_the_order_of_the_file_with_the_line_that_each_is_about(file: Path) -> None:
    text = """
usual: &usual
  session_ttl_seconds: soon
routing:
  <<: *usual
  router_models:
    - auto
    - ""
endpoints:
  - path: /a
    kind: other
  - kind: ignore
limits: {max_request_bytes: 0}
"""
    file.write_text(text)
    assert [fault.rpartition(" ")[::2] for fault in error_of(file).faults] == [
        (f"{fault} (line", f"{line})")
        for line, fault in [
            (2, f"usual: unknown key, expected one of {', '.join(Config.__struct_fields__)}"),
            (3, f"routing.session_ttl_seconds: found 'soon', {SECONDS_EXPECTED}"),
            (8, "routing.router_models.1: found '', expected a name or a pattern with *, but not * alone"),
            (11, 'endpoints.0.kind: found \'other\', expected "completion" or "decision" or "ignore"'),
            (12, f"endpoints.1.path: missing, {PATH_EXPECTED}"),
            (13, f"limits.max_request_bytes: found 0, {BYTES_EXPECTED}"),
        ]
    ]


def test_an_anchor_that_stands_for_itself_is_told_like_any_other_fault(file: Path) -> None:
    file.write_text("routing: &a\n  router_models: [*a]\n")
    [fault] = error_of(file).faults
    assert fault.startswith("routing.router_models.0: found a mapping, expected a name or a pattern with *")
    assert fault.endswith("(line 1)")


def test_one_fault_is_not_many(file: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{file}: 1 fault\n  limits: found a number, expected a mapping")):
        load(file, "limits: 5")


def test_keys_of_other_kinds_are_unknown_keys(file: Path) -> None:
    assert sorted(faults(file, "5: 1\nnull: 2\n2024-01-01: 3\n")) == [
        f"2024-01-01: unknown key, {ANY_SECTION}",
        f"5: unknown key, {ANY_SECTION}",
        f"None: unknown key, {ANY_SECTION}",
    ]


def test_a_long_value_is_shown_shortened() -> None:
    assert faults_of({"endpoints": [{"path": "x" * 78}]}) == [f"endpoints.0.path: found '{'x' * 78}', {PATH_EXPECTED}"]
    assert faults_of({"endpoints": [{"path": "x" * 79}]}) == [
        f"endpoints.0.path: found '{'x' * 76}..., {PATH_EXPECTED}"
    ]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("routing: {session_ttl: 5}", "routing.session_ttl: unknown key, did you mean 'session_ttl_seconds'?"),
        ("routing: {sesion_ttl: 5}", "routing.sesion_ttl: unknown key, did you mean 'session_ttl_seconds'?"),
        (
            "routing: {session_ttl_slide: 5}",
            "routing.session_ttl_slide: unknown key, did you mean 'session_ttl_sliding'?",
        ),
        ("limits: {max_request: 5}", "limits.max_request: unknown key, did you mean 'max_request_bytes'?"),
        (
            "gateway: {connect_timeout: 5}",
            "gateway.connect_timeout: unknown key, did you mean 'connect_timeout_seconds'?",
        ),
    ],
)
def test_a_key_without_its_unit_is_told_which_one_is_meant(file: Path, key: str, meant: str) -> None:
    assert faults(file, key) == [meant]


# Secrets

NO_TOKEN = "line 2: not valid YAML: while scanning for the next token, found character"
NOT_ONE = "not valid YAML: a number, a date or a tagged value that is none"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("sessions: hunter2", "sessions: found text, expected a mapping"),
        ("sessions: {secret: [hunter2]}", f"sessions.secret: found a list, {SECRET_EXPECTED}"),
        ("sessions: {secret: {hunter2: hunter2}}", f"sessions.secret: found a mapping, {SECRET_EXPECTED}"),
        ("sessions: {secret: !!binary aHVudGVyMg==}", f"sessions.secret: found a bytes, {SECRET_EXPECTED}"),
        ("sessions: {secret: !!set {hunter2}}", f"sessions.secret: found a set, {SECRET_EXPECTED}"),
        ("sessions: {secrets: hunter2}", "sessions.secrets: unknown key, did you mean 'secret'?"),
        (
            "sessions: {max_id_length: 0, secret: hunter2}",
            "sessions.max_id_length: found 0, expected a whole number from 1 to 65536",
        ),
        ("store: redis://:hunter2@host/0", "store: found text, expected a mapping"),
        (
            "endpoints: [{path: 'https://ann:hunter2@host/v1/chat/completions'}]",
            f"endpoints.0.path: found 'https://***@host/v1/chat/completions', {PATH_EXPECTED}",
        ),
        (
            f"endpoints: [{{path: 'https://ann:hunter2{'x' * 80}@host'}}]",
            f"endpoints.0.path: found 'https://***@host', {PATH_EXPECTED}",
        ),
        ("store: {url: 'ftp://:hunter2@host/0'}", f"store.url: found text, {URL_EXPECTED}"),
        ("store: {url: 'ftp://:hunter2@${HOME}'}", f"store.url: found text, {URL_EXPECTED}"),
        ("store:\n  url: ${NOT_SET:-ftp://:hunter2@host}", f"store.url: found text, {URL_EXPECTED}"),
        ("store: {url: [hunter2]}", f"store.url: found a list, {URL_EXPECTED}"),
        ("store: {uri: 'redis://:hunter2@host/0'}", "store.uri: unknown key, did you mean 'url'?"),
        ("sessions:\n  secret: hunter2: x", "line 2: not valid YAML: mapping values are not allowed here"),
        (
            "sessions:\n  secret: 'hunter2",
            "line 2: not valid YAML: while scanning a quoted scalar, found unexpected end of stream",
        ),
        (
            'sessions:\n  secret: "hunter2\\q"',
            "line 2: not valid YAML: while scanning a double-quoted scalar, found unknown escape character 'q'",
        ),
        (
            "sessions:\n  secret: @hunter2",
            f"{NO_TOKEN} '@' that cannot start any token",
        ),
        (
            "sessions:\n  secret: %hunter2",
            f"{NO_TOKEN} '%' that cannot start any token",
        ),
        (
            "sessions:\n  secret: [hunter2",
            "line 2: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'",
        ),
        ("sessions:\n  secret: hunter2\n  secret: hunter2", "line 3: not valid YAML: a key stands there a second time"),
        (
            "sessions:\n  secret: hunter2\x01",
            "not valid YAML: it holds bytes or characters that YAML does not allow",
        ),
        ("sessions:\n  secret: hunter2\n  x: 2024-99-99", NOT_ONE),
        (
            "sessions:\n  secret: !hunter2",
            "line 2: not valid YAML: could not determine a constructor for the tag ...",
        ),
        (
            "sessions:\n  secret: !hunter2!x y",
            "line 2: not valid YAML: while parsing a node, found undefined tag handle ...",
        ),
        ("sessions:\n  secret: *hunter2", "line 2: not valid YAML: found undefined alias ..."),
        ("sessions:\n  secret: !!int hunter2", NOT_ONE),
        ("sessions:\n  secret: !!float hunter2", NOT_ONE),
        ("sessions:\n  secret: !!bool hunter2", NOT_ONE),
        (
            "sessions:\n  secret: !!binary hunter2",
            "line 2: not valid YAML: failed to decode base64 data: Incorrect padding",
        ),
    ],
)
def test_a_secret_in_the_file_is_never_in_a_message(
    file: Path, monkeypatch: pytest.MonkeyPatch, text: str, fault: str
) -> None:
    monkeypatch.setenv("HOME", "/root")
    monkeypatch.delenv("NOT_SET", raising=False)
    assert faults(file, text) == [fault]


@pytest.mark.parametrize(
    ("text", "faults_told"),
    [
        (
            "routing:\n  session_ttl_seconds: ${PASSWORD}",
            [f"routing.session_ttl_seconds: found '${{PASSWORD}}', filled in as text, {SECONDS_EXPECTED}"],
        ),
        (
            "routing: {session_ttl_seconds: '${PASSWORD}'}",
            [f"routing.session_ttl_seconds: found '${{PASSWORD}}', filled in as text, {SECONDS_EXPECTED}"],
        ),
        (
            "routing:\n  router_models: ${PASSWORD}",
            [
                "routing.router_models: found '${PASSWORD}', filled in as text, "
                "expected a list, each item a name or a pattern with *, but not * alone"
            ],
        ),
        (
            "routing:\n  unknown: ${PASSWORD}",
            [
                "routing.unknown: unknown key, expected one of session_ttl_seconds, session_ttl_sliding, "
                "session_max_age_seconds, session_max_entries, tool_loop_seconds, release, router_models, "
                "retired_models, decision_wait_seconds"
            ],
        ),
        (
            "sessions:\n  secret: ${PASSWORD}\n  max_id_length: 0",
            ["sessions.max_id_length: found 0, expected a whole number from 1 to 65536"],
        ),
        (
            "sessions: {sources: ['${PASSWORD}']}",
            [
                "sessions.sources.0: found '${PASSWORD}', filled in as text, "
                'expected "header:NAME", "body:PATH.TO.ID", "preset:coding-agents", "preset:body-ids" or "fingerprint"'
            ],
        ),
        (
            "decisions: {aliases: '${PASSWORD}'}",
            ["decisions.aliases: found '${PASSWORD}', filled in as text, expected a mapping of name to name"],
        ),
        ("decisions: {aliases: {5: '${PASSWORD}'}}", ["decisions.aliases: found 5, expected a string"]),
        (
            "decisions: {aliases: {a: '${PASSWORD}*'}}",
            ["decisions.aliases.a: found '${PASSWORD}*', filled in as text, expected no more * than in the name"],
        ),
        (
            "decisions: {aliases: {'${PASSWORD}': 5}}",
            ["decisions.aliases.${PASSWORD}: found 5, expected a name or a pattern with *"],
        ),
        (
            "endpoints: [{path: '${PASSWORD}', kind: '${PASSWORD}'}]",
            [
                f"endpoints.0.path: found '${{PASSWORD}}', filled in as text, {PATH_EXPECTED}",
                "endpoints.0.kind: found '${PASSWORD}', filled in as text, "
                'expected "completion" or "decision" or "ignore"',
            ],
        ),
        ("endpoints: ['${PASSWORD}']", ["endpoints.0: found text, expected a mapping"]),
        ("store: {url: '${PASSWORD}'}", [f"store.url: found text, {URL_EXPECTED}"]),
        ("store: '${PASSWORD}'", ["store: found text, expected a mapping"]),
        (
            "response_headers: ${PASSWORD}",
            ["response_headers: found '${PASSWORD}', filled in as text, expected true or false"],
        ),
        ("${PASSWORD}: 1", [f"${{PASSWORD}}: unknown key, {ANY_SECTION}"]),
        ("${PASSWORD}", ["found text, expected a mapping"]),
    ],
)
@pytest.mark.parametrize("password", ["hunter2", "ftp://:hunter2@host"])
def test_what_the_environment_holds_is_never_in_a_message(
    file: Path, monkeypatch: pytest.MonkeyPatch, text: str, faults_told: list[str], password: str
) -> None:
    monkeypatch.setenv("PASSWORD", password)
    assert faults(file, text) == faults_told


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        (
            "${PASSWORD}",
            "decisions.aliases.a: found '${PASSWORD}', filled in as text, expected no more * than in the name",
        ),
        (
            "*${PASSWORD}",
            "decisions.aliases.a: found '*${PASSWORD}', filled in as text, expected no more * than in the name",
        ),
    ],
)
def test_a_star_that_a_variable_brings_counts_and_is_not_shown(
    file: Path, monkeypatch: pytest.MonkeyPatch, target: str, fault: str
) -> None:
    monkeypatch.setenv("PASSWORD", "*hunter2")
    assert faults(file, f'decisions: {{aliases: {{a: "{target}"}}}}') == [fault]


def test_a_number_in_a_secrets_place_is_not_shown_either(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIN", "12345678")
    assert faults(file, "sessions: {secret: 12345678}") == [f"sessions.secret: found a number, {SECRET_EXPECTED}"]
    assert faults(file, "store:\n  url: ${PIN}") == [f"store.url: found a number, {URL_EXPECTED}"]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("5.5", "a number"),
        ("true", "true or false"),
        ("2024-01-01", "a date"),
        ("2024-01-01 12:00:00", "a datetime"),
        ("[x]", "text"),
        ("", "nothing"),
    ],
)
def test_of_a_filled_in_value_only_its_kind_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch, value: str, found: str
) -> None:
    monkeypatch.setenv("VALUE", value)
    assert faults(file, "endpoints:\n  - path: ${VALUE}") == [
        f"endpoints.0.path: found '${{VALUE}}', filled in as {found}, {PATH_EXPECTED}"
    ]


def test_a_secret_given_in_python_is_never_in_a_message() -> None:
    source: Any = {"sessions": {"secret": b"hunter2"}, "store": {"url": "ftp://:hunter2@host"}, "limits": "hunter2"}
    assert faults_of(source) == [
        f"sessions.secret: found a bytes, {SECRET_EXPECTED}",
        f"store.url: found text, {URL_EXPECTED}",
        "limits: found text, expected a mapping",
    ]
    assert Config.load({"sessions": {"secret": "hunter2"}}).sessions.secret == "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        "sessions: {secret:hunter2, max_id_length: 5}",
        "sessions: {secret=hunter2}",
        "store: {url:redis://:hunter2@host}",
        "sessions: {secret: {hunter2: 1, hunter2: 2}}",
        "? !!binary aHVudGVyMg==\n: 1",
    ],
)
def test_a_secret_that_became_a_key_is_not_shown(file: Path, text: str) -> None:
    assert faults(file, text)


def test_what_a_variable_in_the_name_of_an_alias_holds_is_not_shown(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", "hunter2")
    assert faults(file, "decisions: {aliases: {'${PASSWORD}': 'a*'}}") == [
        "decisions.aliases.${PASSWORD}: found 'a*', expected no more * than in the name"
    ]
    assert faults(file, "decisions:\n  aliases:\n    ${PASSWORD}: b\n    5: a") == [
        "decisions.aliases: found 5, expected a string"
    ]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"sessions": {"sources": []}}, "sessions.sources: found an empty list, expected a list of at least one item"),
        ({"endpoints": []}, "endpoints: found an empty list, expected a list of at least one item"),
        (
            {"routing": {"router_models": ["**"]}},
            "routing.router_models.0: found '**', expected a name or a pattern with *, but not * alone",
        ),
        (
            {"sessions": {"partition_by": ["header:X-Session-Model"]}},
            "sessions.partition_by.0: found 'header:X-Session-Model', expected \"header:NAME\" "
            '(instead of "model" use sessions.pin_per)',
        ),
        (
            {"sessions": {"sources": ["header:x-session-id", "fingerprint", "preset:body-ids"]}},
            "sessions.sources.1: found 'fingerprint' before 'preset:body-ids', expected it last: nearly every request "
            "has one",
        ),
        (
            {"sessions": {"sources": ["fingerprint"], "partition_by": []}},
            "sessions.partition_by: found an empty list beside 'fingerprint' in sessions.sources, expected the headers "
            "of credentials, without which strangers with the same prompt would be one session",
        ),
        (
            {"sessions": {"partition_by": ["header:authorization", "model"]}},
            "sessions.partition_by.1: found 'model', expected \"header:NAME\" "
            '(instead of "model" use sessions.pin_per)',
        ),
    ],
)
def test_settings_that_can_never_work_are_refused(source: Any, told: str) -> None:
    assert faults_of(source) == [told]


def test_a_key_of_before_is_told_what_is_in_its_place() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load({"limits": {"max_waiting_bytes": 1}})
    assert caught.value.faults == (
        "limits.max_waiting_bytes: is no key any longer, expected 'max_buffered_bytes' in its place",
    )
