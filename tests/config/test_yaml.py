"""YAML files: merge keys, variables, and files that are broken."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_session_pin.config import Config, ConfigError, Endpoint, Sessions
from asgi_session_pin.config.yaml import YAMLFault, load_yaml, locate
from config_files import everything_printed, faults, load


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


@pytest.mark.parametrize(
    "merged",
    [
        "{<<: [*first, *second]}",
        "{<<: [*first, *second, {kind: decision, models: body:c}]}",
        "{<<: [*first, {<<: *second}]}",
        "{<<: [{<<: *first}, *second]}",
        "{<<: {<<: [*first, *second]}}",
        "{<<: [{<<: [*first, *second]}, *second]}",
        "{<<: [*first, *second, *first]}",
        "{kind: ignore, <<: [*second, {path: /second}], path: /first}",
        "{<<: [*second, *first], kind: ignore, path: /first}",
        "{path: /first, kind: ignore, <<: *second}",
    ],
)
def test_own_keys_win_over_merged_ones_and_the_first_of_a_list_over_those_after_it(merged: str) -> None:
    text = f"""
- &first {{path: /first, kind: ignore}}
- &second {{path: /second, kind: decision, models: body:b}}
- {merged}
"""
    assert load_yaml(text.encode())[2] == {"path": "/first", "kind": "ignore", "models": "body:b"}


def test_a_merged_mapping_stays_as_it_is_where_it_stands_itself() -> None:
    text = b"- &a {x: 1}\n- &b {<<: *a, y: 2}\n- {<<: [*b, {z: 3}], x: 4}\n- *b\n- {'<<': 5}\n- {<<: []}"
    ab = {"x": 1, "y": 2}
    assert load_yaml(text) == [{"x": 1}, ab, {"x": 4, "y": 2, "z": 3}, ab, {"<<": 5}, {}]


def test_merge_keys_that_double_what_they_merge_do_not_grow() -> None:
    text = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60))
    assert load_yaml(text.encode())["a59"] == {"x": 1}


# Variables

BASE_60 = "1" + ":1" * 300 + ".0"  # a number in YAML 1.1, and too large a one for a float


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
        ("${NAME}", "=", "="),
        ("${NAME}", "<<", "<<"),
        pytest.param("${NAME}", BASE_60, BASE_60, id="base 60"),
        ("${NAME}", "$NAME ${NAME} $$", "$NAME ${NAME} $$"),
        ("a-${NAME}-b", "x", "a-x-b"),
        ("a ${NAME} b", "x", "a x b"),
        ('"${NAME:-}x"', "", "x"),
        ('"${OTHER:-a:-b $x}"', "", "a:-b $x"),
        ('"${OTHER:-two\\nlines}"', "", "two\nlines"),
        ('"${OTHER:-a$$b$$$$}"', "", "a$b$$"),
        ('"${NAME:-$$}"', "a$$b", "a$$b"),
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
    monkeypatch.setenv("PART", "header:x-part")
    monkeypatch.setenv("NOTHING", "")
    text = """
limits: ${NOTHING}
sessions: {partition_by: [&part "${PART}", *part]}
response_headers: ${HEADERS}
"""
    assert load(file, text) == Config(sessions=Sessions(partition_by=("header:x-part",) * 2), response_headers=False)


def test_the_names_of_aliases_are_filled_in_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "x")
    assert load(file, 'decisions: {aliases: {"a${NAME}$$": b}}').decisions.aliases == {"ax$": "b"}


@pytest.mark.parametrize(
    ("value", "secret"),
    [
        ("12345678", "12345678"),
        ("1e3", "1e3"),
        ("true", "true"),
        ("2024-01-01", "2024-01-01"),
        ("null", None),
        ("", None),
    ],
)
def test_a_plain_variable_is_a_text_where_a_text_is_expected(
    file: Path, monkeypatch: pytest.MonkeyPatch, value: str, secret: str | None
) -> None:
    monkeypatch.setenv("SECRET", value)
    assert load(file, "sessions:\n  secret: ${SECRET}\n").sessions.secret == secret


def test_a_quoted_variable_is_a_text_where_a_number_is_expected(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTL", "5")
    assert faults(file, 'routing: {session_ttl_seconds: "${TTL}"}') == [
        "routing.session_ttl_seconds: found '${TTL}', filled in as text, "
        "expected a number of seconds above 0, at most 1,000,000,000"
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
        "routing.session_max_entries: found -1, expected a whole number from 1 to 1,000,000,000",
        "routing.router_models.0: the environment variable SECOND is not set",
        "routing.router_models.1: the environment variable THIRD is not set",
        "decisions.aliases.a: the environment variable THIRD is not set",
    ]


@pytest.mark.parametrize("default", ["=", "<<", "1:1:x", "", "$$"])
def test_a_default_that_is_no_number_is_a_fault_where_one_is_expected(
    file: Path, monkeypatch: pytest.MonkeyPatch, default: str
) -> None:
    monkeypatch.delenv("NAME", raising=False)
    assert faults(file, f"routing:\n  session_ttl_seconds: ${{NAME:-{default}}}") == [
        f"routing.session_ttl_seconds: found '${{NAME:-{default}}}', filled in as {'text' if default else 'nothing'}, "
        "expected a number of seconds above 0, at most 1,000,000,000"
    ]


@pytest.mark.parametrize("value", [None, "", "x"])
@pytest.mark.parametrize("written", ["${NAME:-${OTHER}}", "${NAME:-a${OTHER:-b}}", "${NAME:-$${OTHER}}"])
def test_a_variable_inside_a_default_is_a_fault_whatever_the_environment_holds(
    file: Path, monkeypatch: pytest.MonkeyPatch, written: str, value: str | None
) -> None:
    monkeypatch.setenv("OTHER", "x")
    monkeypatch.delenv("NAME", raising=False)
    if value is not None:
        monkeypatch.setenv("NAME", value)
    assert faults(file, f'decisions:\n  aliases:\n    key: "{written}"\n') == [
        "decisions.aliases.key: the default of ${NAME:-...} holds another variable, which is not filled in"
    ]


@pytest.mark.parametrize(
    "written", ["${", "${}", "${NAME", "${1}", "${NA ME}", "${NAME-x}", "${NAME:x}", "${:-x}", "${É}"]
)
def test_what_only_looks_like_a_variable_is_a_fault(file: Path, monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("NAME", "x")
    assert faults(file, f'decisions:\n  aliases:\n    key: "{written}"\n') == [
        "decisions.aliases.key: found a ${ that is not ${NAME} or ${NAME:-default}; a plain dollar sign is $$"
    ]


# Files that are broken


NOT_ALLOWED = "not valid YAML: it holds bytes or characters that YAML does not allow"
NO_TOKEN = "line 2: not valid YAML: while scanning for the next token, found character"
NOT_ONE = "not valid YAML: a number, a date or a tagged value that is none"
NO_TAG = "not valid YAML: could not determine a constructor for the tag ..."
NO_MAPPING = "not valid YAML: << stands before something that is no mapping, nor a list of mappings"
TWICE = "not valid YAML: a key stands there a second time"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("&a [*a]", "found a list, expected a mapping"),
        ("a: &a\n  <<: *a", "nested too deep"),
        ("a: *b", "line 1: not valid YAML: found undefined alias 'b'"),
        (
            "a: &xyz 1\nb: &xyz 2",
            "line 2: not valid YAML: found duplicate anchor ...; first occurrence, second occurrence",
        ),
        (
            "a: 1\n---\nb: 2",
            "line 2: not valid YAML: expected a single document in the stream, but found another document",
        ),
        ("[" * 2000, "nested too deep"),
        ("[" * 2000 + "]" * 2000, "nested too deep"),
        ("{a: " * 2000, "nested too deep"),
        ("- " * 2000, "nested too deep"),
        ("? " * 2000, "nested too deep"),
        (
            "a: [",
            "line 1: not valid YAML: while parsing a flow node, expected the node content, but found '<stream end>'",
        ),
        ("a: 1\n b: 2", "line 2: not valid YAML: mapping values are not allowed here"),
        (
            "a: 1\n\tb: 2",
            f"{NO_TOKEN} '\\t' that cannot start any token",
        ),
        ("a: !e!x y", "line 1: not valid YAML: while parsing a node, found undefined tag handle ..."),
        ("%TAG ! a\n%TAG ! b\n---\na: 1", "line 2: not valid YAML: duplicate tag handle '!'"),
        ("a: 1\n\na: 2", f"line 3: {TWICE}"),
        ("routing: {a: 1, b: 2, 'a': 3}", f"line 1: {TWICE}"),
        ("a: {<<: {b: 1}, <<: {c: 1}}", f"line 1: {TWICE}"),
        ("? [a]\n: 1", "line 1: not valid YAML: while constructing a mapping, found unhashable key"),
        ("a: 1\nb: {<<: 5}", f"line 2: {NO_MAPPING}"),
        ("a: 1\nb:\n  <<: [{c: 1},\n       x]", f"line 4: {NO_MAPPING}"),
        ("a: {<<: [[{b: 1}]]}", f"line 1: {NO_MAPPING}"),
        ("a: !!map 5", "line 1: not valid YAML: expected a mapping node, but found scalar"),
        ("a: !unknown x", f"line 1: {NO_TAG}"),
        ("a: 2024-99-99", NOT_ONE),
        ("a: 2024-01-01 00:00:00 +99:00", NOT_ONE),
        pytest.param("a: " + "9" * 5000, NOT_ONE, id="digits"),
        pytest.param(f"a: {BASE_60}", NOT_ONE, id="base 60"),
        ("a: 0b_", NOT_ONE),
        ("a: !!bool foo", NOT_ONE),
        ("a: !!int ''", NOT_ONE),
        ("a: !!float ''", NOT_ONE),
        ("a: !!timestamp foo", NOT_ONE),
        ("a: !!str {=: '$x'}", NOT_ONE),
        ("\0", NOT_ALLOWED),
        (b"a: \xff\xfe", NOT_ALLOWED),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", NOT_ALLOWED),
        (b"\x7fELF\x02\x01\x01", NOT_ALLOWED),
        (b"\xff\xfea", NOT_ALLOWED),
    ],
)
def test_text_that_is_no_usable_yaml_is_one_fault(file: Path, text: str | bytes, fault: str) -> None:
    assert faults(file, text) == [fault]


def test_a_fault_in_the_text_shows_no_line_of_it() -> None:
    text = b"sessions:\n  secret: hunter2: x"
    with pytest.raises(YAMLFault, match=r"^line 2: not valid YAML: mapping values are not allowed here$") as caught:
        load_yaml(text)
    assert "hunter2" not in everything_printed(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [{path}]",
        "!!python/object/new:os.mkdir [{path}]",
        "!!python/object/apply:os.mkdir {{args: [{path}]}}",
        "!!python/name:os.mkdir",
        "!!python/module:os",
        "!!python/tuple [a]",
    ],
)
def test_python_tags_are_refused_and_run_nothing(file: Path, value: str) -> None:
    made = file.parent / "made"
    assert faults(file, "routing: " + value.format(path=made)) == [f"line 1: {NO_TAG}"]
    assert not made.exists()


# Whatever stands in a file: a Config or a ConfigError

snippets = st.sampled_from(
    [
        *("routing:", "sessions:", "secret:", "url:", "a:", "- ", "? ", ": ", "[", "]", "{", "}", ",", "&a ", "*a"),
        *("<<: ", "|", ">", "'", '"', "#", "%", "@", "!", "!!", "!!int ", "!!str ", "!!timestamp ", "$", "$$", "${X}"),
        *("${X:-5}", "${", "}", "\\", "~", "null", "0x1", "1", ".", ":", "-", "2024-01-01", "=", "yes", "\n", "\n  "),
        *("\t", " ", "\x00", "\x85", "\ufeff", "\U0001f600"),
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


def test_an_anchor_that_stands_for_itself_is_followed_to_a_depth_that_is_bounded() -> None:
    lines = locate(b"&a [*a]")
    assert lines[("0",)] == 1
    assert max(map(len, lines)) < 10
