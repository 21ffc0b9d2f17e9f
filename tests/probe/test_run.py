"""`asgi-session-pin probe` against gateways of many manners; the settings that it prints are then put to use."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from asgi_session_pin import Config, SessionPinMiddleware
from asgi_session_pin.cli import main
from asgi_session_pin.config import Decisions
from asgi_session_pin.probe.asking import EASY, HARD
from asgi_session_pin.probe.litellm import UNLESS
from fake_gateways import (
    DEPLOYMENTS,
    LARGE,
    REFUSED,
    SMALL,
    Answer,
    Asked,
    FakeGateway,
    LoadBalanced,
    chosen,
    claude_code_router,
    deployment,
    echo,
    litellm,
    lm_proxy,
    plain_router,
    routellm,
    snapshots,
    two_tongued,
)
from servers import serve_app, serve_script

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
DEFAULTS = list(Decisions().sources)


class Outcome(NamedTuple):
    """What the command ended with."""

    code: int
    report: dict[str, Any]
    text: str

    @property
    def why(self) -> str:
        return str(self.report["verdict"]["why"])

    @property
    def notes(self) -> str:
        return " ".join(self.report["verdict"]["notes"])


class Probe:
    """Runs the command, once for people and once for programs."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, gateway: FakeGateway, *names: str, path: str = CHAT) -> Outcome:
        with serve_app(gateway) as url:
            return self.url(url, gateway, *names, path=path)

    def url(self, url: str, gateway: FakeGateway | None, *names: str, path: str = CHAT) -> Outcome:
        arguments = ["probe", "--upstream", url, "--path", path, "--verbose", "--model", *names]
        code = main(arguments)
        text = self._capsys.readouterr().out
        if gateway is not None:
            gateway.requests.clear()
        assert main([*arguments, "--json"]) == code
        output = self._capsys.readouterr()
        report = json.loads(output.out)
        assert report["requests_sent"] <= report["requests_at_most"]
        assert f"at most {report['requests_at_most']} requests to {url}{path}," in output.err
        if gateway is not None:
            assert len(gateway.requests) == report["requests_sent"]
        assert all(len(line) <= 100 for line in text.splitlines())
        assert (report["settings"] is not None) == (code == 0) == report["verdict"]["can_be_pinned"]
        assert report["yaml"].rstrip() in text
        return Outcome(code, report, text)


@pytest.fixture
def probe(capsys: pytest.CaptureFixture[str]) -> Probe:
    return Probe(capsys)


@contextmanager
def pinned(gateway: FakeGateway, outcome: Outcome, file: Path) -> Iterator[httpx.Client]:
    """A client of the gateway with the middleware in front of it, with the settings that were printed."""
    file.write_text(outcome.report["yaml"])
    with (
        serve_app(SessionPinMiddleware(gateway, config=Config.load(file))) as url,
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        yield client


def models_served(
    gateway: FakeGateway, client: httpx.Client, model: str, session: str | None, *, stream: bool = False
) -> list[str]:
    """Ask an easy, a hard and an easy question, and return the models that served."""
    gateway.served.clear()
    for prompt in (EASY, HARD, EASY):
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": prompt}]}
        client.post(CHAT, json=body, headers={"x-session-id": session} if session else {}).raise_for_status()
    return list(gateway.served)


def check_that_it_pins(gateway: FakeGateway, outcome: Outcome, model: str, file: Path) -> None:
    """The printed settings keep a session on its first model; without a session the model changes."""
    with pinned(gateway, outcome, file) as client:
        for stream in (False, True):
            first, second, third = models_served(gateway, client, model, None, stream=stream)
            assert first == third != second
            assert models_served(gateway, client, model, f"session-{stream}", stream=stream) == [first] * 3


def test_a_router_that_names_its_choice_in_the_body_needs_no_setting(probe: Probe, file: Path) -> None:
    gateway = FakeGateway(plain_router)
    outcome = probe(gateway, "auto")
    assert outcome.code == 0
    assert outcome.report["settings"] == {}
    assert outcome.report["requests_sent"] == 3 + 3 + 1 + 1 + 4 + 4
    assert "no setting is needed: body:model names the chosen model" in outcome.why
    assert "router_models stays empty" in outcome.notes
    check_that_it_pins(gateway, outcome, "auto", file)


def test_a_name_that_is_no_routers_tells_which_ones_are(probe: Probe, file: Path) -> None:
    gateway = FakeGateway(plain_router)
    outcome = probe(gateway, "auto", SMALL)
    assert outcome.report["settings"] == {"routing": {"router_models": ["auto"]}}
    assert "a router decides for 'auto'" in outcome.notes
    check_that_it_pins(gateway, outcome, "auto", file)


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
def test_other_endpoints_are_asked_in_their_own_shape(probe: Probe, path: str) -> None:
    gateway = FakeGateway(plain_router)
    outcome = probe(gateway, "auto", path=path)
    assert outcome.report["settings"] == {}
    streamed = {MESSAGES: "body:message.model", RESPONSES: "body:response.model"}[path]
    assert f"body:model + {streamed} names the chosen model" in outcome.why
    assert all(("input" in body) == (path == RESPONSES) for body in gateway.bodies)
    limits = {body.get("max_tokens", body.get("max_output_tokens")) for body in gateway.bodies}
    assert limits == {16}
    assert ("anthropic-version" in gateway.headers[0]) == (path == MESSAGES)


def test_litellm_gets_its_header_its_groups_and_its_auto_routers(probe: Probe, file: Path) -> None:
    gateway = FakeGateway(litellm, {"/model/info": DEPLOYMENTS})
    outcome = probe(gateway, "smart")
    assert outcome.report["settings"] == {
        "routing": {"router_models": ["smart"]},
        "decisions": {
            "sources": ["header:x-litellm-model-name", *DEFAULTS],
            "aliases": {"acme/*": "*"},
            "unless": UNLESS,
        },
    }
    assert "unless: what LiteLLM's auto-router says" in outcome.notes
    assert [each["model"] for each in outcome.report["candidates"]] == ["small", "large"]
    assert "body:model only repeats the name that was asked for" in outcome.text
    assert "score" not in outcome.text
    assert "/model/info" in outcome.notes
    check_that_it_pins(gateway, outcome, "smart", file)


def test_litellm_aliases_stay_exact_where_a_pattern_would_be_wrong(probe: Probe, file: Path) -> None:
    lists = {"/v1/model/info": {"data": [*DEPLOYMENTS["data"], deployment("other", "acme/third", "3")]}}
    gateway = FakeGateway(litellm, lists)
    outcome = probe(gateway, "smart", "small")
    assert outcome.report["settings"]["decisions"]["aliases"] == {SMALL: "small", LARGE: "large", "acme/third": "other"}
    assert outcome.report["settings"]["routing"] == {"router_models": ["smart"]}
    check_that_it_pins(gateway, outcome, "smart", file)


def test_a_snapshot_that_is_refused_is_mapped_to_its_name(probe: Probe, file: Path) -> None:
    gateway = FakeGateway(snapshots)
    outcome = probe(gateway, "auto")
    assert outcome.report["settings"] == {
        "decisions": {"aliases": {f"{SMALL}-2024-08-06": SMALL, f"{LARGE}-2024-08-06": LARGE}},
    }
    assert [each["accepted"] for each in outcome.report["candidates"]] == [False, True] * 2
    assert "'acme/small-2024-08-06', sent back: 0 of 1 served; plain: HTTP 400 (model_not_found)" in outcome.text
    assert "Secret things" not in outcome.text
    check_that_it_pins(gateway, outcome, "auto", file)


def test_a_snapshot_is_mapped_to_the_only_name_that_was_always_answered_so(probe: Probe, file: Path) -> None:
    def groups(asked: Asked) -> Answer:
        model = {"auto": chosen(asked), "tiny": SMALL, "huge": LARGE}.get(asked.model)
        return Answer(model, f"{model}-2024-08-06") if model else REFUSED

    gateway = FakeGateway(groups)
    outcome = probe(gateway, "auto", "tiny", "huge")
    assert outcome.report["settings"] == {
        "routing": {"router_models": ["auto"]},
        "decisions": {"aliases": {f"{SMALL}-2024-08-06": "tiny", f"{LARGE}-2024-08-06": "huge"}},
    }
    check_that_it_pins(gateway, outcome, "auto", file)
    both = probe(FakeGateway(lambda asked: groups(asked._replace(hard=False))), "auto", "tiny")
    assert both.code == 1  # which of the two is a router?


def test_a_gateway_that_takes_no_name_back_cannot_be_pinned(probe: Probe) -> None:
    outcome = probe(FakeGateway(routellm), "router-random-0.5")
    assert outcome.code == 1
    assert outcome.why == (
        "This gateway cannot be pinned by name: body:model names what is not taken back: 'acme/small-2024-08-06' was "
        "answered with HTTP 500 (model_not_found), 'acme/small' was answered with HTTP 500 (model_not_found)."
    )
    assert "get_session_pin(request).record(model)" in outcome.notes


def test_a_name_that_is_understood_as_another_one_is_none_to_send_back(probe: Probe) -> None:
    outcome = probe(FakeGateway(claude_code_router), "claude-opus")
    assert outcome.code == 1
    told = (
        "'gpt-big-mini-2024-07-18' was answered as 'gpt-big-2024-07-18', its answer to any name that it does not know"
    )
    assert told in outcome.why
    assert "At Claude Code Router they are PROVIDER,MODEL." in outcome.notes
    assert "'asgi-session-pin-probe-nonexistent', a name that does not exist: 1 of 1 served" in outcome.text


def test_where_unknown_names_are_served_the_gateways_own_names_are_sent_back(probe: Probe, file: Path) -> None:
    gateway = FakeGateway(claude_code_router)
    outcome = probe(gateway, "claude-opus", "fake,gpt-big-mini", "fake,gpt-big")
    aliases = {"gpt-big-mini-2024-07-18": "fake,gpt-big-mini", "gpt-big-2024-07-18": "fake,gpt-big"}
    assert outcome.report["settings"] == {
        "routing": {"router_models": ["claude-opus"]},
        "decisions": {"aliases": aliases},
    }
    check_that_it_pins(gateway, outcome, "claude-opus", file)


def test_where_no_name_is_routed_by_the_prompt_the_gateways_own_names_are_told_by_what_they_say(probe: Probe) -> None:
    def by_name(asked: Asked) -> Answer:
        return claude_code_router(asked._replace(hard=True))

    outcome = probe(FakeGateway(by_name), "claude-haiku", "claude-opus", "fake,gpt-big-mini", "fake,gpt-big")
    aliases = {"gpt-big-mini-2024-07-18": "fake,gpt-big-mini", "gpt-big-2024-07-18": "fake,gpt-big"}
    assert outcome.report["settings"] == {
        "routing": {"router_models": ["claude-haiku", "claude-opus"]},
        "decisions": {"aliases": aliases},
    }
    assert probe(FakeGateway(by_name), "claude-haiku", "claude-opus").code == 1


def test_a_name_that_one_other_model_answers_is_no_routers(probe: Probe, file: Path) -> None:
    def aliased(asked: Asked) -> Answer:
        return plain_router(asked._replace(model=SMALL) if asked.model == "tiny" else asked)

    gateway = FakeGateway(aliased)
    outcome = probe(gateway, "auto", "tiny")
    assert outcome.report["settings"]["routing"] == {"router_models": ["auto"]}
    check_that_it_pins(gateway, outcome, "auto", file)
    alone = probe(FakeGateway(aliased), "tiny")
    assert "Only 'acme/small' was ever chosen" in alone.notes


def test_where_each_name_has_one_model_it_is_not_known_which_are_routers(probe: Probe) -> None:
    def aliased(asked: Asked) -> Answer:
        model = {"tiny": SMALL, "huge": LARGE}.get(asked.model, asked.model)
        return plain_router(asked._replace(model=model))

    outcome = probe(FakeGateway(aliased), "tiny", "huge")
    assert outcome.report["settings"] == {}
    assert "No name was answered by several models, so which of them are a router's was not seen." in outcome.notes


def stays(gateway: FakeGateway, outcome: Outcome, file: Path) -> bool:
    """Tell whether the printed settings keep a session of the balanced group on its first deployment."""
    with pinned(gateway, outcome, file) as client:
        assert len(set(models_served(gateway, client, "balanced", None))) == 2
        return len(set(models_served(gateway, client, "balanced", "session"))) == 1


def test_a_group_of_two_deployments_of_one_model_is_pinned_by_their_ids(probe: Probe, file: Path) -> None:
    lists = {"/model/info": {"data": [deployment("balanced", SMALL, "dep-a"), deployment("balanced", SMALL, "dep-b")]}}
    gateway = FakeGateway(LoadBalanced(**{"dep-a": SMALL, "dep-b": SMALL}), lists)
    outcome = probe(gateway, "balanced")
    assert outcome.report["settings"] == {"decisions": {"sources": ["header:x-litellm-model-id", *DEFAULTS]}}
    assert stays(gateway, outcome, file)


def test_a_group_of_two_models_is_pinned_by_the_groups_of_these(probe: Probe, file: Path) -> None:
    data = [deployment("balanced", SMALL, "dep-a"), deployment("balanced", LARGE, "dep-b"), *DEPLOYMENTS["data"][1:]]
    gateway = FakeGateway(LoadBalanced(**{"dep-a": SMALL, "dep-b": LARGE}), {"/model/info": {"data": data}})
    outcome = probe(gateway, "balanced", "small")
    assert outcome.report["settings"] == {
        "routing": {"router_models": ["balanced"]},
        "decisions": {
            "sources": ["header:x-litellm-model-name", *DEFAULTS],
            "aliases": {SMALL: "small", LARGE: "large"},
        },
    }
    assert stays(gateway, outcome, file)


class OnlyAt(FakeGateway):
    """A plain router with one endpoint."""

    def __init__(self, path: str, absent: int) -> None:
        super().__init__(plain_router)
        self._path, self._absent = path, absent

    async def _answer(self, request: Request) -> Response:
        if request.method == "POST" and request.url.path != self._path:
            return Response(status_code=self._absent)
        return await super()._answer(request)


@pytest.mark.parametrize("absent", [404, 405, 501])
@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
def test_where_there_are_no_chat_completions_the_other_endpoints_are_tried(
    path: str, absent: int, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = OnlyAt(path, absent)
    with serve_app(gateway) as url:
        assert main(["probe", "--upstream", url, "--model", "auto", "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["url"] == url + path
    assert len(gateway.requests) == report["requests_sent"] <= report["requests_at_most"]
    assert f"asgi-session-pin probe: {CHAT} is answered with {absent}; trying {MESSAGES}\n" in captured.err
    assert ("GET", "/v1/models") in gateway.requests
    assert len(report["answers"][0]["replies"]) == 6


def test_where_there_is_no_endpoint_at_all_the_first_one_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with serve_app(OnlyAt("/elsewhere", 404)) as url:
        assert main(["probe", "--upstream", url, "--model", "auto"]) == 2
    told = capsys.readouterr().err
    assert "no request was served: HTTP 404" in told
    assert "are --upstream, --path, --model and the key right?" in told


def test_the_default_model_for_unknown_names_proves_nothing(probe: Probe) -> None:
    outcome = probe(FakeGateway(lambda asked: Answer("gpt", "gpt")), "auto")
    assert outcome.code == 1
    assert "names only 'gpt', as it does for a name that does not exist" in outcome.why


def test_a_gateway_that_routes_whatever_it_is_asked_for_cannot_be_pinned(probe: Probe) -> None:
    outcome = probe(FakeGateway(lambda asked: Answer(chosen(asked), chosen(asked))), "auto")
    assert outcome.code == 1
    assert "'acme/small' was answered as 'acme/large'" in outcome.why


def test_a_gateway_that_names_no_model_cannot_be_pinned(probe: Probe) -> None:
    outcome = probe(FakeGateway(lm_proxy), "auto")
    assert outcome.code == 1
    assert outcome.why == (
        "This gateway cannot be pinned by name: its answers name no model, neither in a header nor in the body."
    )
    assert outcome.report["requests_sent"] == 7


def test_an_echo_says_nothing(probe: Probe) -> None:
    outcome = probe(FakeGateway(echo), "auto", SMALL)
    assert outcome.code == 1
    assert "as far as these requests show: body:model only repeats the name that was asked for" in outcome.why
    assert "ask for one that is" in outcome.notes


def test_a_header_is_used_where_the_body_is_an_echo(probe: Probe, file: Path) -> None:
    def manner(asked: Asked) -> Answer:
        answer = plain_router(asked)
        headers = {"x-upstream-model": answer.served, "x-hop": answer.served, "x-version-of-model": "1.2.3"}
        return answer._replace(named=asked.model, headers=headers)

    gateway = FakeGateway(manner, {"/v1/models": {"data": [{"id": SMALL}, {"id": LARGE}]}})
    outcome = probe(gateway, "auto")
    assert outcome.report["settings"] == {"decisions": {"sources": ["header:x-upstream-model", *DEFAULTS]}}
    assert "header:x-hop" in outcome.text  # its value is a name that the gateway lists
    assert "x-version-of-model" not in outcome.text
    check_that_it_pins(gateway, outcome, "auto", file)


def test_other_names_when_streamed_are_told(probe: Probe, file: Path) -> None:
    gateway = FakeGateway(two_tongued)
    outcome = probe(gateway, "auto")
    assert outcome.code == 0
    assert "Streamed answers to 'auto' name other models than plain ones" in outcome.notes
    check_that_it_pins(gateway, outcome, "auto", file)


def test_a_source_that_names_models_in_both_kinds_of_answers_is_preferred(probe: Probe, file: Path) -> None:
    def manner(asked: Asked) -> Answer:
        answer = plain_router(asked)
        return answer._replace(named=None if asked.stream else answer.named, headers={"x-model": answer.served})

    gateway = FakeGateway(manner)
    outcome = probe(gateway, "auto")
    assert outcome.report["verdict"]["source"] == "header:x-model"
    assert "streamed answers to 'auto' name no model" in json.dumps(outcome.report["sources"])
    check_that_it_pins(gateway, outcome, "auto", file)


def test_a_weak_proof_is_told(probe: Probe) -> None:
    def manner(asked: Asked) -> Answer:
        return Answer("", chosen(asked) if asked.model == "auto" else asked.model)

    outcome = probe(FakeGateway(manner), "auto")
    assert outcome.code == 0
    assert "the proof is weak" in outcome.notes


def test_no_more_names_are_sent_back_than_there_are_requests_for(probe: Probe) -> None:
    def manner(asked: Asked) -> Answer:
        if asked.model.startswith("auto"):
            return Answer("", f"{asked.model[-1]}-{chosen(asked)}")
        return Answer("", asked.model) if asked.model[1:] in (f"-{SMALL}", f"-{LARGE}") else REFUSED

    outcome = probe(FakeGateway(manner), "auto1", "auto2", "auto3")
    assert outcome.code == 0
    assert outcome.report["requests_sent"] == 18 + 1 + 1 + 16
    left = "no request was left for it"
    assert f"Not tried: '3-acme/large' ({left}), '3-acme/small' ({left})." in outcome.notes


def test_a_gateway_that_does_not_stream_is_judged_by_its_plain_answers(probe: Probe, file: Path) -> None:
    gateway = FakeGateway(lambda asked: Answer("", status=500) if asked.stream else plain_router(asked))
    outcome = probe(gateway, "auto")
    assert outcome.report["settings"] == {}
    assert "streamed: HTTP 500" in outcome.text


def test_the_fastapi_example_needs_only_its_routers_name(probe: Probe) -> None:
    with serve_script(Path(__file__).parents[2] / "examples" / "fastapi_proxy.py") as url:
        alone = probe.url(url, None, "auto")
        assert alone.report["settings"] == {}
        outcome = probe.url(url, None, "auto", "openai/gpt-4o")
    assert outcome.report["settings"] == {"routing": {"router_models": ["auto"]}}


FAULTS = [
    (["--upstream", "localhost:1"], "argument --upstream: expected a URL such as http://localhost:4000"),
    (["--upstream", "http://u:hunter2@a"], "argument --upstream: expected a URL without credentials"),
    (["--path", "/v1/embeddings"], "argument --path: expected a path that ends in /chat/completions, "),
    (["--path", "v1/chat/completions"], "argument --path: expected a path that ends in "),
    (["--path", "/a b/chat/completions"], "argument --path: expected a path that ends in "),
    (["--key", "hunter2 "], "argument --key: expected visible ASCII characters"),
    (["--key-env", "GATEWAY_KEY"], "argument --key-env: that environment variable is not set"),
    (["--key", "hunter2", "--key-env", "GATEWAY_KEY"], "argument --key-env: not allowed with argument --key"),
    (["--header", "hunter2"], "argument --header: expected 'NAME: VALUE'"),
    (["--header", "X: hunter2\r\nY: z"], "argument --header: expected 'NAME: VALUE'"),
    (["--header", "X-Session-Id: hunter2"], "argument --header: x-session-id can't be set here"),
    (["--header", "Content-Length: 5"], "argument --header: content-length can't be set here"),
    (["--model", "gpt-*"], "argument --model: expected the name of a model"),
    (["--model", ""], "argument --model: expected the name of a model"),
    (["--timeout", "0"], "argument --timeout: found '0', expected a number of seconds"),
    (["--timeout", "soon"], "argument --timeout: found 'soon', expected a number of seconds"),
]


@pytest.mark.parametrize(("arguments", "told"), FAULTS)
def test_wrong_arguments_are_one_clear_line_and_exit_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GATEWAY_KEY", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["probe", "--upstream", "http://127.0.0.1:9", "--model", "auto", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert told in error.splitlines()[-1]
    assert "hunter2" not in error
