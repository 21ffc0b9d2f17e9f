"""From made-up replies to findings, and from these to a report whose settings load."""

import json
import time
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_session_pin import Config
from asgi_session_pin.config.yaml import load_yaml
from asgi_session_pin.probe.evidence import NONSENSE, Evidence, Reply
from asgi_session_pin.probe.findings import Examination, Stage, choose, find_all, next_name, settings_of
from asgi_session_pin.probe.litellm import (
    MAX_ALIASES,
    Deployment,
)
from asgi_session_pin.probe.places import DEFAULTS
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


def test_routers_that_name_each_other_name_no_model() -> None:
    names = ("auto", "best")
    replies = [reply(asked, named) for asked in names for named in names]
    [finding] = find_all(evidence(*replies, refused(NONSENSE), names=names))
    assert finding.why == "names what is not taken back: 'best' was answered as 'auto'"


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
    report = Report(case, "http://a", "/v1/chat/completions", sent=5, limit=26)
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
    report = Report(case, "http://a", "/v1/chat/completions", sent=3, limit=26)
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
    report = Report(case, "http://127.0.0.1", "/v1/chat/completions", sent=len(replies), limit=32)
    told = json.loads(report.json())
    for width in (80, 100):
        assert all(len(line) <= width for line in report.text(width).splitlines())
    Config.load(load_yaml(told["yaml"].encode()) or {})
    if report.finding is not None:
        assert report.finding.routed


def test_an_examination_needs_at_least_one_answer() -> None:
    assert Examination(evidence(), DEFAULTS).run().why == "name no model"
