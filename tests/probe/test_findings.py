"""The probe's pure parts: from made-up replies, and from any bytes at all, to findings."""

import gzip
import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asgi_session_pin import Config
from asgi_session_pin._yaml import load_yaml
from asgi_session_pin.probe.evidence import NONSENSE, BodyReader, Evidence, Reply, shown
from asgi_session_pin.probe.findings import Examination, Stage, choose, find_all, next_name, settings_of
from asgi_session_pin.probe.litellm import (
    MAX_ALIASES,
    Deployment,
    auto_routers,
    group_aliases,
    read_deployments,
    read_listed,
    shorten,
)
from asgi_session_pin.probe.places import DEFAULTS, may_be_name, names_in_body, names_in_headers, rank, undated
from asgi_session_pin.probe.report import Report


def reply(model: str, named: str | None, *, hard: bool = False, stream: bool = False, **more: Any) -> Reply:
    members = {} if named is None else {"model": msgspec.Raw(json.dumps(named).encode())}
    return Reply(model=model, hard=hard, stream=stream, status=200, members=members, **more)


def refused(model: str, status: int = 404) -> Reply:
    return Reply(model=model, hard=False, stream=False, status=status)


def evidence(*replies: Reply, names: tuple[str, ...] = ("auto",), **more: Any) -> Evidence:
    return Evidence(names=names, replies=list(replies), **more)


def test_what_is_needed_next_is_asked_for_until_a_source_is_settled() -> None:
    case = evidence(reply("auto", "a"), reply("auto", "b", hard=True))
    for needed, answer in [(NONSENSE, refused(NONSENSE)), ("a", reply("a", "a")), ("b", reply("b", "b-2024-01-31"))]:
        assert next_name(find_all(case)) == needed
        assert choose(find_all(case)) is None
        case.replies.append(answer)
    findings = find_all(case)
    assert next_name(findings) is None
    finding = choose(findings)
    assert finding is not None
    assert settings_of(case, finding) == {}


def test_a_name_that_the_operator_asked_for_is_not_asked_for_again() -> None:
    case = evidence(reply("auto", "a"), reply("a", "a"), refused(NONSENSE), names=("auto", "a"))
    [finding] = find_all(case)
    assert (finding.works, finding.routed) == (True, ("auto",))


def test_a_name_that_is_answered_without_one_counts_where_unknown_names_are_refused() -> None:
    nameless = [reply("auto", "a"), reply("a", None)]
    assert find_all(evidence(*nameless, refused(NONSENSE)))[0].works
    for unknown in (reply(NONSENSE, None), refused(NONSENSE, 503)):
        [finding] = find_all(evidence(*nameless, unknown))
        assert finding.why.endswith("'a' was answered without a name")


def test_a_router_that_also_names_itself_is_told() -> None:
    case = evidence(reply("auto", "auto"), reply("auto", "a", hard=True), refused(NONSENSE), reply("a", "a"))
    [finding] = find_all(case)
    assert finding.doubts == ("plain answers to 'auto' also name 'auto' itself, which pins nothing",)


def test_without_a_request_left_nothing_is_claimed() -> None:
    [finding] = find_all(evidence(reply("auto", "a"), refused(NONSENSE), spent=True))
    assert (finding.stage, finding.why) == (
        Stage.UNTRIED,
        "names what could not be tried: 'a' (no request was left for it)",
    )


def test_a_busy_gateway_has_not_refused_a_name() -> None:
    case = evidence(reply("auto", "a"), reply("auto", "b"), refused(NONSENSE), refused("a", 429), reply("b", "b"))
    [finding] = find_all(case)
    assert finding.works
    assert finding.doubts == ("not tried: 'a' (HTTP 429)",)
    case.replies.pop()
    case.replies.append(refused("b", 503))
    assert find_all(case)[0].why == "names what could not be tried: 'a' (HTTP 429), 'b' (HTTP 503)"
    report = Report(case, "http://a", 5, 26)
    assert (report.can_be_pinned, report.code) == (None, 2)
    assert "It could not be found out whether this gateway can be pinned by name: body:model" in report.text()
    assert "cannot be pinned" not in report.text()


def test_thousands_of_deployments_cost_little() -> None:
    deployments = tuple(Deployment(f"group-{number}", f"x/{number}", f"{number}f") for number in range(5000))
    headers = {b"x-litellm-model-name": b"x/7", b"x-litellm-model-id": b"7f"}
    case = evidence(reply("auto", "auto", headers=headers), refused(NONSENSE), deployments=deployments)
    started = time.perf_counter()
    assert next_name(find_all(case)) == "group-7"
    assert time.perf_counter() - started < 2


def test_a_default_behind_another_one_is_moved_to_the_front() -> None:
    header = {b"x-vsr-selected-model": b"route-7"}
    replies = [reply("auto", "a", headers=header), refused(NONSENSE), refused("route-7"), reply("a", "a")]
    findings = find_all(evidence(*replies))
    assert [finding.source for finding in findings] == ["header:x-vsr-selected-model", "body:model"]
    finding = choose(findings)
    assert finding is not None
    sources = settings_of(evidence(*replies), finding)["decisions"]["sources"]
    assert sources == ["body:model", *(source for source in DEFAULTS if source != "body:model")]


def test_only_the_refused_name_of_a_fixed_group_is_no_finding() -> None:
    [finding] = find_all(evidence(reply("auto", "a"), refused(NONSENSE), refused("a")))
    assert finding.why == "names what is not taken back: 'a' was answered with HTTP 404"


def test_settings_are_yaml_that_loads_whatever_the_names_are() -> None:
    odd = 'a: #$"b]'.replace(" ", "")
    headers = {b"x-litellm-model-name": odd.encode()}
    deployments = (Deployment("auto", "auto_router/x", "0"), Deployment("{g}", odd, "1"))
    replies = [reply("auto", "auto", headers=headers), refused(NONSENSE), reply("{g}", "{g}", headers=headers)]
    case = evidence(*replies, deployments=deployments)
    report = Report(case, "http://a", 3, 26)
    text = json.loads(report.json())["yaml"]
    config = Config.load(load_yaml(text.encode()))
    assert config.decisions.aliases == {odd: "{g}"}
    assert text in report.text()


def test_litellm_ids_are_mapped_to_groups_too() -> None:
    headers = {b"x-litellm-model-id": b"f00d", b"x-litellm-model-name": b"openai/gpt"}
    deployments = (Deployment("gpt", "openai/gpt", "f00d"), Deployment("twin", "openai/gpt", "beef"))
    replies = [
        reply("auto", "auto", headers=headers),
        refused(NONSENSE),
        refused("openai/gpt", 400),  # the model of two groups has no alias
        reply("gpt", "gpt", headers=headers),
    ]
    case = evidence(*replies, deployments=deployments)
    finding = choose(find_all(case))
    assert finding is not None
    assert finding.source == "header:x-litellm-model-id"
    assert settings_of(case, finding)["decisions"]["aliases"] == {"f00d": "gpt", "beef": "twin"}


def test_aliases_are_bounded_and_the_seen_ones_come_first() -> None:
    deployments = tuple(Deployment(f"group-{number}", f"x/{number}", "") for number in range(MAX_ALIASES + 50))
    last = {b"x-litellm-model-name": b"x/149"}
    replies = [reply("auto", "auto", headers=last), refused(NONSENSE), reply("group-149", None, headers=last)]
    finding = choose(find_all(evidence(*replies, deployments=deployments)))
    assert finding is not None
    assert next(iter(finding.aliases.items())) == ("x/149", "group-149")
    assert len(finding.aliases) == MAX_ALIASES


def test_groups_have_aliases_only_where_they_say_which_model() -> None:
    deployments = [
        Deployment("smart", "auto_router/complexity_router", "r"),
        Deployment("mixed", "openai/a", "1"),
        Deployment("mixed", "openai/b", "2"),
        Deployment("one", "openai/c", "3"),
        Deployment("one", "openai/c", "4"),
        Deployment("same", "same", "5"),
        Deployment("wild/*", "openai/*", "6"),
        Deployment("all", "vertex/*", "7"),
    ]
    by_model, by_id = group_aliases(deployments)
    assert by_model == {"openai/c": "one", "openai/*": "wild/*"}
    assert by_id == {"3": "one", "4": "one", "5": "same"}
    assert auto_routers(deployments) == ["smart"]


def test_aliases_become_a_pattern_only_if_it_is_right_for_all() -> None:
    pairs = [Deployment("a", "openai/a", ""), Deployment("b", "openai/b", "")]
    aliases = {each.model: each.group for each in pairs}
    assert shorten(aliases, pairs) == {"openai/*": "*"}
    assert shorten(aliases, [*pairs, Deployment("d", "openai/c", "")]) == aliases
    assert shorten({"openai/a": "a"}, pairs) == {"openai/a": "a"}
    assert shorten({"my-a": "a", "my-b": "b"}, pairs) == {"my-a": "a", "my-b": "b"}
    assert shorten(aliases | {"azure/c": "c"}, pairs) == aliases | {"azure/c": "c"}


ODD_LISTS = [b"", b"[]", b'{"data": 1}', b'{"data": [1, {"model_name": 1}, {"id": "a b"}]}', b"[" * 100_000]


@pytest.mark.parametrize("body", ODD_LISTS)
def test_odd_lists_are_empty(body: bytes) -> None:
    assert read_deployments(body) == ()
    assert read_listed(body) == frozenset()


@settings(deadline=None)
@given(st.binary())
def test_any_bytes_are_a_list(body: bytes) -> None:
    read_deployments(body)
    read_listed(body)


def test_headers_and_members_that_tell_are_found() -> None:
    headers = {
        b"x-model": b" gpt-4o ",
        b"x-chosen": b"listed",
        b"x-other": b"unlisted",
        b"x-model-version": b"v1.2",
        b"x-model-region": b"two words",
        b"x-session-model": b"gpt-4o",
        b"x-route\xff": b"gpt-4o",
        b"x-azure-deployment": b"none",
        b"x-litellm-complexity-router-tier": b"SIMPLE",
    }
    found = names_in_headers(headers, frozenset({"listed"}))
    assert found == {"header:x-model": "gpt-4o", "header:x-chosen": "listed"}
    body = {
        "models": ["m0"],
        "modelVersion": "gemini-2",
        "model_used": "a",
        "provider": {"model": "b", "name": "c"},
        "model size": "d",
        "odd.key": {"model": "e"},
        "bad": {"model": 1},
        "choices": [{"model": "f"}],
    }
    members = {key: msgspec.Raw(json.dumps(value).encode()) for key, value in body.items()}
    assert names_in_body(members) == {
        "body:models.0": "m0",
        "body:modelVersion": "gemini-2",
        "body:model_used": "a",
        "body:provider.model": "b",
    }


def test_sources_are_ranked_from_the_usual_to_the_unlikely() -> None:
    sources = ["header:x-vsr-selected-model", "body:model", "header:x-litellm-model-name", "header:x-litellm-model-id"]
    sources += ["header:x-the-model", "header:x-model-id", "header:x-deployment", "body:model_used", "header:x-route"]
    turned = sources[::-1]
    assert sorted(turned, key=rank) == sources


@pytest.mark.parametrize("text", ["", "none", "True", "1.106.2", "v3", "2024-08-06", "http://a/b", "gpt-*", "a b", "é"])
def test_what_can_be_no_model(text: str) -> None:
    assert not may_be_name(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gpt-4o-2024-08-06", "gpt-4o"), ("claude-4-20250514", "claude-4"), ("c@20250514", "c"), ("gpt-4o", None)],
)
def test_the_date_of_a_snapshot_is_taken_off(name: str, expected: str | None) -> None:
    assert undated(name) == expected


def read(content_type: bytes, chunks: list[bytes], coding: bytes = b"") -> BodyReader:
    reader = BodyReader({b"content-type": content_type, b"content-encoding": coding}, lambda text: "hunter2" in text)
    for chunk in chunks:
        reader.feed(chunk)
    reader.end()
    return reader


JSON, EVENTS = b"application/json", b"text/event-stream"
STREAM = b': ping\n\ndata: {"model_used": "x", "a": 1}\n\ndata: {"model": "gpt"}\n\ndata: {"model": "later"}\n\n'


@settings(deadline=None)
@given(st.sampled_from([JSON, EVENTS]), st.binary(), st.integers(0, 200))
@example(EVENTS, STREAM, 31)
@example(JSON, b'{"model": "gpt", "x": {"model": "\xff"}}', 3)
def test_any_bytes_are_read_and_however_they_are_cut(kind: bytes, body: bytes, cut: int) -> None:
    whole, pieces = read(kind, [body]), read(kind, [body[:cut], body[cut:]])
    assert (whole.members, whole.failed) == (pieces.members, pieces.failed)


def test_a_stream_is_read_until_a_usual_place_names_a_model() -> None:
    reader = read(EVENTS, [STREAM])
    assert names_in_body(reader.members) == {"body:model_used": "x", "body:model": "gpt"}


def test_compressed_bodies_are_read_and_bounded() -> None:
    assert "model" in read(JSON, [gzip.compress(b'{"model": "gpt"}')], b"gzip").members
    bomb = read(JSON, [gzip.compress(b" " * 10_000_000)], b"gzip")
    assert (bomb.members, bomb.remark) == ({}, "can't be decoded, or is too large")


def test_secrets_are_no_names_and_no_codes() -> None:
    assert read(JSON, [b'{"model": "hunter2", "model_hunter2": "a", "model_b": "b"}']).members.keys() == {"model_b"}
    assert read(JSON, [b'{"error": {"code": "hunter2"}}']).remark == ""
    assert read(JSON, [b'{"error": {"code": 400, "type": "no\\nword"}}']).remark == ""
    assert read(EVENTS, [b'data: {"error": {"type": "out"}}\n\ndata: {"model": "a"}\n\n']).remark == "out"


def test_names_are_shown_escaped_and_cut() -> None:
    assert shown("é\n\x1b[31m") == r"'\xe9\n\x1b[31m'"
    assert len(shown("x" * 1000)) == 82


MODELS = st.sampled_from(["auto", "a", "a-2024-01-31", "b", "sum", NONSENSE])
REPLIES = st.builds(
    Reply,
    model=MODELS,
    hard=st.booleans(),
    stream=st.booleans(),
    status=st.sampled_from([0, 200, 400, 429]),
    headers=st.dictionaries(
        st.sampled_from([b"x-litellm-model-name", b"x-model"]),
        st.sampled_from([b"a", b"b", b"o/a"]),
    ),
    members=st.dictionaries(
        st.sampled_from(["model", "model_used"]),
        st.sampled_from([msgspec.Raw(json.dumps(name).encode()) for name in ("auto", "a", "a-2024-01-31", "b")]),
    ),
    failed=st.booleans(),
    remark=st.just(""),
)
DEPLOYED = st.lists(
    st.builds(
        Deployment, st.sampled_from(["sum", "a", "auto"]), st.sampled_from(["o/a", "b", "auto_router/x"]), st.just("")
    )
)


@settings(deadline=None)
@given(st.lists(REPLIES, min_size=1, max_size=12), DEPLOYED, st.booleans())
def test_any_replies_make_a_report_whose_settings_load(
    replies: list[Reply], deployments: list[Deployment], spent: bool
) -> None:
    case = evidence(*replies, names=("auto", "sum"), deployments=tuple(deployments), spent=spent)
    report = Report(case, "http://127.0.0.1", len(replies), 32)
    told = json.loads(report.json())
    for width in (80, 100):
        assert all(len(line) <= width for line in report.text(width).splitlines())
    Config.load(load_yaml(told["yaml"].encode()) or {})
    if report.finding is not None:
        assert report.finding.routed


def test_an_examination_needs_at_least_one_answer() -> None:
    assert Examination(evidence(), DEFAULTS).run().why == "name no model"
