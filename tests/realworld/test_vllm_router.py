"""vllm-router and smg, in Rust: what they answer passes as it is, and what the backend behind them chose is pinned."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

from realworld.asking import CHAT, EASY, HARD, chat, new_session, raw
from realworld.stacks import Stack, run_stack

ROUTERS = {
    "vllm-router": ["vllm-router", "--host", "127.0.0.1", "--policy", "consistent_hash"],
    "smg": ["smg", "launch", "--backend", "openai", "--host", "127.0.0.1", "--shutdown-grace-period-secs", "0"],
}
RECIPE = ["--disable-retries", "--disable-circuit-breaker"]
every_coding = pytest.mark.parametrize("coding", ["identity", "gzip", "zstd"])
plain_and_streamed = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])


@pytest.fixture(scope="module", params=ROUTERS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    router: str = request.param
    with run_stack(tmp_path_factory.mktemp(router), router, [*ROUTERS[router], *RECIPE]) as stack:
        yield stack


@pytest.fixture
def stack(running: Stack) -> Iterator[Stack]:
    running.take_requests()
    yield running
    running.fail()


@every_coding
def test_without_a_session_the_answer_and_the_request_are_those_of_a_direct_call(stack: Stack, coding: str) -> None:
    bodies = [json.dumps(chat(*case)).encode() for case in product(("auto", "large", "none"), (HARD,), (False, True))]
    bodies += [b'{"model": "auto", "model": "small",  "messages":[{"role":"user","content":"\\u00e9"}]}', b"{", b"[]"]
    cases: list[tuple[str, str, bytes | None]] = [("POST", CHAT, body) for body in bodies]
    cases += [("GET", path, None) for path in ("/v1/models", "/health", "/nothing")]
    for method, path, body in cases:
        direct = raw(stack.direct, method, path, content=body, accept_encoding=coding)
        received = stack.take_requests()
        assert raw(stack.pinned, method, path, content=body, accept_encoding=coding) == direct, (path, body)
        assert stack.take_requests() == received


@every_coding
@plain_and_streamed
def test_with_a_session_only_our_own_headers_are_added(stack: Stack, coding: str, stream: bool) -> None:
    session = new_session()
    for prompt, named, status in [(HARD, "auto", b"miss"), (EASY, "large", b"hit")]:
        asked, served = (json.dumps(chat(model, prompt, stream)).encode() for model in ("auto", named))
        direct = raw(stack.direct, "POST", CHAT, content=served, accept_encoding=coding, **session)
        rest, ours = raw(stack.pinned, "POST", CHAT, content=asked, accept_encoding=coding, **session).apart()
        assert rest == direct
        is_coded = stack.router == "vllm-router" and coding != "identity"  # smg's answers never are
        assert ((b"content-encoding", coding.encode()) in direct.headers) == is_coded
        assert ours.pop(b"x-session-pin-status") == status
        assert ours.pop(b"x-session-pinned") == (b"true" if status == b"hit" else b"false")
        assert ours in ({b"x-session-model": b"large"}, {})  # of a body that is still to come nothing is known


@every_coding
@plain_and_streamed
def test_without_a_session_the_model_changes_with_the_prompt(stack: Stack, coding: str, stream: bool) -> None:
    for prompt, model in [(EASY, "small"), (HARD, "large"), (EASY, "small")]:
        asked, answer = stack.ask(prompt, stream=stream, coding=coding)
        assert asked == [model]
        assert f'"model": "{model}"' in answer.text


@every_coding
@plain_and_streamed
@pytest.mark.parametrize("prompts", [[EASY, HARD, EASY], [HARD, EASY, HARD]], ids=["easy first", "hard first"])
def test_a_session_stays_on_the_model_of_its_first_prompt(
    stack: Stack, coding: str, stream: bool, prompts: list[str]
) -> None:
    session = new_session()
    model = "small" if prompts[0] == EASY else "large"
    for prompt, status in zip(prompts, ["miss", "hit", "hit"], strict=True):
        asked, answer = stack.ask(prompt, session, stream=stream, coding=coding)
        assert asked == [model]
        assert answer.headers["x-session-pin-status"] == status
        assert f'"model": "{model}"' in answer.text


def test_who_names_a_model_gets_it_in_a_pinned_session_too(stack: Stack) -> None:
    session = new_session()
    assert stack.ask(HARD, session)[0] == ["large"]
    asked, answer = stack.ask(HARD, session, model="small")
    assert asked == ["small"]
    assert answer.headers["x-session-pin-status"] == "ignored; reason=model-not-routed"
    assert stack.ask(EASY, session)[0] == ["large"]


@every_coding
@plain_and_streamed
def test_a_pinned_model_that_is_out_is_routed_around_and_stays_pinned(stack: Stack, coding: str, stream: bool) -> None:
    session = new_session()
    for prompt in (HARD, EASY):
        assert stack.ask(prompt, session, stream=stream, coding=coding)[0] == ["large"]
    stack.fail(out=["large"])
    asked, answer = stack.ask(EASY, session, stream=stream, coding=coding)
    assert asked == ["large", "small"]
    assert answer.headers["x-session-pin-status"] == "reroute"
    assert '"model": "small"' in answer.text
    stack.fail()
    asked, answer = stack.ask(EASY, session, stream=stream, coding=coding)
    assert asked == ["large"]
    assert answer.headers["x-session-pin-status"] == "hit"


@every_coding
@plain_and_streamed
def test_a_pinned_name_that_is_refused_is_routed_and_given_up(stack: Stack, coding: str, stream: bool) -> None:
    session = new_session()
    assert stack.ask(HARD, session, stream=stream, coding=coding)[0] == ["large"]
    stack.fail(refused=["large"])
    for models, status in [(["large", "small"], "reroute"), (["small"], "hit")]:
        asked, answer = stack.ask(EASY, session, stream=stream, coding=coding)
        assert asked == models
        assert answer.headers["x-session-pin-status"] == status
        assert '"model": "small"' in answer.text


@plain_and_streamed
def test_a_404_that_routing_does_not_mend_passes_as_it_is(stack: Stack, stream: bool) -> None:
    session = new_session()
    assert stack.ask(HARD, session, stream=stream)[0] == ["large"]
    stack.fail(refused=["large", "auto"])
    asked, served = (json.dumps(chat(model, EASY, stream)).encode() for model in ("auto", "large"))
    direct = raw(stack.direct, "POST", CHAT, content=served, **session)
    rest, ours = raw(stack.pinned, "POST", CHAT, content=asked, **session).apart()
    assert rest == direct
    assert direct.status == 404
    assert ours[b"x-session-pin-status"] == b"hit"
    assert [request["asked"] for request in stack.take_requests()] == ["large", "large", "auto"]
    # vllm-router says of the error of a streamed request that it is a stream, which it is not.
    is_odd = stack.router == "vllm-router" and stream
    assert (b"content-type", b"text/event-stream" if is_odd else b"application/json") in direct.headers
    assert json.loads(direct.body)["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize(("options", "status"), [(RECIPE, 200), ([], 503)], ids=["recipe", "defaults"])
def test_with_its_circuit_breaker_one_model_that_is_out_takes_the_worker_out(
    router: str, options: list[str], status: int, tmp_path: Path
) -> None:
    with run_stack(tmp_path, router, [*ROUTERS[router], *options]) as stack:
        sessions = [new_session() for _ in range(8)]
        for session in sessions:
            assert [stack.ask(prompt, session)[0] for prompt in (HARD, EASY)] == [["large"], ["large"]]
        stack.fail(out=["large"])
        with ThreadPoolExecutor(len(sessions)) as pool:
            list(pool.map(lambda session: stack.pinned.post(CHAT, json=chat("auto", EASY), headers=session), sessions))
        stack.take_requests()
        asked, answer = stack.ask(EASY)
        assert answer.status_code == status
        assert asked == (["small"] if status == 200 else [])


def test_the_session_affinity_of_vllm_router_keeps_the_worker_and_ours_the_model(tmp_path: Path) -> None:
    used = set()
    with run_stack(tmp_path, "vllm-router", [*ROUTERS["vllm-router"], *RECIPE], backends=2) as stack:
        for _ in range(12):
            session = new_session()
            workers = set()
            for client, models in [(stack.direct, {"small", "large"}), (stack.pinned, {"small"})]:
                for prompt in (EASY, HARD, EASY):
                    client.post(CHAT, json=chat("auto", prompt), headers=session)
                requests = stack.take_requests()
                assert {request["served"] for request in requests} == models
                workers |= {request["worker"] for request in requests}
            assert len(workers) == 1
            used |= workers
    assert used == {0, 1}
