"""Coding agents through `asgi-session-pin serve`, known by their ids or by how they begin: which model served them?"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asgi_session_pin.request.fingerprint import fingerprint
from asgi_session_pin.wire.json import decode_members
from realworld.coding_agents import (
    Agent,
    Aider,
    ClaudeCode,
    Cline,
    ClineWithId,
    Codex,
    CodexWithCompression,
    Kilo,
    OpenCode,
    Pi,
    PiByChat,
    QwenCode,
    QwenCodeWithoutId,
    Requests,
)
from realworld.pinned_router import PinnedRouter, pinned_router
from realworld.routing_provider import LARGE, SMALL

EASY, HARD = "What time is it?", "A HARD question."
CONTINUING: list[type[Agent]] = [
    ClaudeCode,
    Codex,
    CodexWithCompression,
    OpenCode,
    Kilo,
    Pi,
    PiByChat,
    QwenCode,
    QwenCodeWithoutId,
    Aider,
]
OTHERS: list[type[Agent]] = [Cline, ClineWithId]
only_claude_code = pytest.mark.parametrize("agent", [ClaudeCode], indirect=True, ids=["ClaudeCode"])
only_opencode = pytest.mark.parametrize("agent", [OpenCode], indirect=True, ids=["OpenCode"])

Routers = Callable[[str | Path], PinnedRouter]


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routers]:
    """The router behind the settings of a recipe, or of a file."""
    running: dict[str | Path, PinnedRouter] = {}
    with contextlib.ExitStack() as stack:

        def run(settings: str | Path) -> PinnedRouter:
            if settings not in running:
                folder = tmp_path_factory.mktemp("router")
                running[settings] = stack.enter_context(pinned_router(folder, settings))
            return running[settings]

        yield run


@pytest.fixture(scope="module", params=CONTINUING, ids=lambda kind: kind.__name__)
def agent(request: pytest.FixtureRequest, routers: Routers, tmp_path_factory: pytest.TempPathFactory) -> Agent:
    """An agent that asks the pinned router; each test begins sessions of its own."""
    kind: type[Agent] = request.param
    return kind(tmp_path_factory.mktemp("home"), routers(kind.recipe))


def served(agent: Agent, requests: Requests) -> list[str]:
    return [request["served"] for request in agent.main_loop(requests)]


def one_session(agent: Agent, requests: Requests) -> str:
    """Return the id that all these requests were sent with, or what those of the main loop are known by."""
    if agent.session_header is not None:
        [session_id] = {request["headers"][agent.session_header] for request in requests}
        return str(session_id)
    bodies = [json.dumps(request["body"]).encode() for request in agent.main_loop(requests)]
    [begun] = {fingerprint(decode_members(body), b"") for body in bodies}
    return str(begun)


@pytest.mark.parametrize("kind", CONTINUING + OTHERS, ids=lambda kind: kind.__name__)
def test_without_pinning_the_model_changes_within_a_session(
    tmp_path: Path, routers: Routers, kind: type[Agent]
) -> None:
    agent = kind(tmp_path, routers(kind.recipe), pinned=False)
    requests = agent.ask(f"{HARD} {agent.tool_call}")
    assert served(agent, requests) == [LARGE, SMALL]
    codings = {request["headers"].get("content-encoding") for request in requests}
    assert codings == ({"zstd"} if kind is CodexWithCompression else {None})


def test_a_session_that_asks_for_auto_stays_on_the_routers_first_choice_also_when_it_is_continued(
    agent: Agent,
) -> None:
    requests = agent.ask(f"{HARD} {agent.tool_call}")
    assert served(agent, requests) == [LARGE, LARGE]
    continued = agent.ask(EASY, resume=True)
    assert set(served(agent, continued)) == {LARGE}
    one_session(agent, requests + continued)
    first, *others = [request["headers"].get("x-session-pinned") for request in agent.main_loop(requests + continued)]
    assert (first, set(others)) == (None, {"true"})


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.__name__)
def test_a_task_stays_on_the_routers_first_choice(tmp_path: Path, routers: Routers, kind: type[Agent]) -> None:
    agent = kind(tmp_path, routers(kind.recipe))
    requests = agent.ask(f"{HARD} {agent.tool_call}")
    assert served(agent, requests) == [LARGE, LARGE]
    one_session(agent, requests)
    assert [request["headers"].get("x-session-pinned") for request in requests] == [None, "true"]


def test_a_session_that_began_with_an_easy_prompt_stays_on_the_small_model(agent: Agent) -> None:
    easy = agent.ask(EASY)
    hard = agent.ask(HARD, resume=True)
    assert [served(agent, easy), served(agent, hard)] == [[SMALL], [SMALL]]
    other = agent.ask(HARD)
    assert set(served(agent, other)) == {LARGE}
    assert one_session(agent, easy + hard) != one_session(agent, other)


def test_who_names_another_model_in_a_session_gets_that_one(agent: Agent) -> None:
    large = agent.ask(HARD, LARGE)
    small = agent.ask(HARD, SMALL, resume=True)
    assert [set(served(agent, large)), set(served(agent, small))] == [{LARGE}, {SMALL}]
    one_session(agent, large + small)


@pytest.fixture(scope="module")
def releasing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings by which each prompt of a person's is routed."""
    settings = tmp_path_factory.mktemp("releasing") / "session_pin.yaml"
    settings.write_text("routing: {release: user_turn}\nsessions: {sources: ['preset:coding-agents']}")
    return settings


@pytest.mark.parametrize("kind", [ClaudeCode, Codex, OpenCode, Kilo, Pi, QwenCode], ids=lambda kind: kind.__name__)
def test_with_release_each_prompt_is_routed_and_its_loop_stays(
    tmp_path: Path, routers: Routers, releasing: Path, kind: type[Agent]
) -> None:
    agent = kind(tmp_path, routers(releasing))
    easy = agent.ask(EASY)
    hard = agent.ask(f"{HARD} {agent.tool_call}", resume=True)
    assert [served(agent, easy), served(agent, hard)] == [[SMALL], [LARGE, LARGE]]
    one_session(agent, agent.main_loop(easy + hard))


SUBAGENT = '{"subagent_type": "helper", "description": "help", "prompt": "A HARD one.", "run_in_background": false}'


@only_claude_code
@pytest.mark.parametrize("model", ["auto", LARGE])
def test_a_subagent_of_claude_code_has_its_small_model_beside_the_main_model(agent: Agent, model: str) -> None:
    requests = agent.ask(f"{HARD} CALL Agent {SUBAGENT}", model)
    assert served(agent, requests) == [LARGE, SMALL, LARGE]
    one_session(agent, requests)
    assert "x-claude-code-agent-id" in requests[1]["headers"]


@pytest.mark.parametrize(("pin_per", "model"), [("model", SMALL), ("session", LARGE)])
def test_a_subagent_of_claude_code_gets_what_pin_per_says_where_any_name_is_a_routers(
    tmp_path: Path, routers: Routers, pin_per: str, model: str
) -> None:
    settings = tmp_path / "session_pin.yaml"
    settings.write_text(f"sessions: {{sources: ['preset:coding-agents'], pin_per: {pin_per}}}")
    agent = ClaudeCode(tmp_path, routers(settings))
    requests = agent.ask(f"{HARD} CALL Agent {SUBAGENT}")
    assert served(agent, requests) == [LARGE, model, LARGE]
    one_session(agent, requests)


@only_opencode
@pytest.mark.parametrize("model", ["auto", LARGE])
def test_a_title_of_opencode_is_made_by_its_small_model_beside_the_main_model(agent: Agent, model: str) -> None:
    requests = agent.ask(HARD, model)
    assert served(agent, requests) == [LARGE]
    [title] = [request for request in requests if not request["body"].get("tools")]
    assert title["served"] == SMALL
    one_session(agent, requests)
