"""Coding agents through `asgi-session-pin serve`, with the ids that they send unasked: which model served them?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from realworld.coding_agents import Agent, ClaudeCode, Codex, OpenCode, main_loop
from realworld.pinned_router import PinnedRouter, pinned_router
from realworld.routing_provider import LARGE, SMALL

EASY, HARD = "What time is it?", "A HARD question."
AGENTS: list[type[Agent]] = [ClaudeCode, Codex, OpenCode]
only_claude_code = pytest.mark.parametrize("agent", [ClaudeCode], indirect=True, ids=["ClaudeCode"])
only_opencode = pytest.mark.parametrize("agent", [OpenCode], indirect=True, ids=["OpenCode"])


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PinnedRouter]:
    with pinned_router(tmp_path_factory.mktemp("router"), "coding_agents.yaml") as router:
        yield router


@pytest.fixture(scope="module", params=AGENTS, ids=lambda kind: kind.__name__)
def agent(request: pytest.FixtureRequest, router: PinnedRouter, tmp_path_factory: pytest.TempPathFactory) -> Agent:
    """An agent that asks the pinned router; each test begins sessions of its own."""
    made: Agent = request.param(tmp_path_factory.mktemp("home"), router)
    return made


def served(requests: list[dict[str, Any]]) -> list[str]:
    return [request["served"] for request in main_loop(requests)]


def one_session(agent: Agent, requests: list[dict[str, Any]]) -> str:
    """Return the id that all these requests were sent with."""
    [session_id] = {request["headers"][agent.session_header] for request in requests}
    return str(session_id)


@pytest.mark.parametrize("kind", AGENTS, ids=lambda kind: kind.__name__)
def test_without_pinning_the_model_changes_within_a_session(
    tmp_path: Path, router: PinnedRouter, kind: type[Agent]
) -> None:
    agent = kind(tmp_path, router, pinned=False)
    assert served(agent.ask(f"{HARD} {agent.tool_call}")) == [LARGE, SMALL]


def test_a_session_that_asks_for_auto_stays_on_the_routers_first_choice_also_when_it_is_continued(
    agent: Agent,
) -> None:
    requests = agent.ask(f"{HARD} {agent.tool_call}")
    assert served(requests) == [LARGE, LARGE]
    continued = agent.ask(EASY, resume=True)
    assert served(continued) == [LARGE]
    one_session(agent, requests + continued)
    pinned = [request["headers"].get("x-session-pinned") for request in main_loop(requests + continued)]
    assert pinned == [None, "true", "true"]


def test_a_session_that_began_with_an_easy_prompt_stays_on_the_small_model(agent: Agent) -> None:
    easy = agent.ask(EASY)
    hard = agent.ask(HARD, resume=True)
    assert [served(easy), served(hard)] == [[SMALL], [SMALL]]
    other = agent.ask(HARD)
    assert served(other) == [LARGE]
    assert one_session(agent, easy + hard) != one_session(agent, other)


def test_who_names_another_model_in_a_session_gets_that_one(agent: Agent) -> None:
    large = agent.ask(HARD, LARGE)
    small = agent.ask(HARD, SMALL, resume=True)
    assert [served(large), served(small)] == [[LARGE], [SMALL]]
    one_session(agent, large + small)


@only_claude_code
@pytest.mark.parametrize("model", ["auto", LARGE])
def test_a_subagent_of_claude_code_has_its_small_model_beside_the_main_model(agent: Agent, model: str) -> None:
    call = '{"subagent_type": "helper", "description": "help", "prompt": "A HARD one.", "run_in_background": false}'
    requests = agent.ask(f"{HARD} CALL Agent {call}", model)
    assert served(requests) == [LARGE, SMALL, LARGE]
    one_session(agent, requests)
    assert "x-claude-code-agent-id" in requests[1]["headers"]


@only_opencode
@pytest.mark.parametrize("model", ["auto", LARGE])
def test_a_title_of_opencode_is_made_by_its_small_model_beside_the_main_model(agent: Agent, model: str) -> None:
    requests = agent.ask(HARD, model)
    assert served(requests) == [LARGE]
    [title] = [request for request in requests if not request["body"].get("tools")]
    assert title["served"] == SMALL
    one_session(agent, requests)
