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
every_agent = pytest.mark.parametrize("kind", AGENTS, ids=lambda kind: kind.__name__)


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PinnedRouter]:
    with pinned_router(tmp_path_factory.mktemp("agents"), "coding_agents.yaml") as router:
        yield router


def served(requests: list[dict[str, Any]]) -> list[str]:
    return [request["served"] for request in main_loop(requests)]


def one_session(agent: Agent, requests: list[dict[str, Any]]) -> str:
    """Return the id that all these requests were sent with."""
    [session_id] = {request["headers"][agent.session_header] for request in requests}
    return str(session_id)


@every_agent
def test_without_pinning_the_model_changes_within_a_session(
    tmp_path: Path, router: PinnedRouter, kind: type[Agent]
) -> None:
    agent = kind(tmp_path, router, pinned=False)
    assert served(agent.ask(f"{HARD} {agent.tool_call}")) == [LARGE, SMALL]
    assert served(agent.ask(HARD, resume=True)) == [LARGE]


@every_agent
def test_a_session_that_asks_for_auto_stays_on_the_routers_first_choice_also_when_it_is_continued(
    tmp_path: Path, router: PinnedRouter, kind: type[Agent]
) -> None:
    agent = kind(tmp_path, router)
    requests = agent.ask(f"{HARD} {agent.tool_call}")
    assert served(requests) == [LARGE, LARGE]
    continued = agent.ask(EASY, resume=True)
    assert served(continued) == [LARGE]
    one_session(agent, requests + continued)
    pinned = [request["headers"].get("x-session-pinned") for request in main_loop(requests + continued)]
    assert pinned == [None, "true", "true"]


@every_agent
def test_a_session_that_began_with_an_easy_prompt_stays_on_the_small_model(
    tmp_path: Path, router: PinnedRouter, kind: type[Agent]
) -> None:
    agent = kind(tmp_path, router)
    easy = agent.ask(EASY)
    hard = agent.ask(HARD, resume=True)
    assert [served(easy), served(hard)] == [[SMALL], [SMALL]]
    other = agent.ask(HARD)
    assert served(other) == [LARGE]
    assert one_session(agent, easy + hard) != one_session(agent, other)


def test_the_subagent_of_claude_code_keeps_its_small_model_beside_a_pinned_and_a_named_main_model(
    tmp_path: Path, router: PinnedRouter
) -> None:
    agent = ClaudeCode(tmp_path, router)
    call = '{"subagent_type": "helper", "description": "help", "prompt": "A HARD one.", "run_in_background": false}'
    for model in ("auto", LARGE):
        requests = agent.ask(f"{HARD} CALL Agent {call}", model)
        assert served(requests) == [LARGE, SMALL, LARGE]
        one_session(agent, requests)
        assert "x-claude-code-agent-id" in requests[1]["headers"]


def test_the_title_of_opencode_is_made_by_its_small_model_beside_a_pinned_and_a_named_main_model(
    tmp_path: Path, router: PinnedRouter
) -> None:
    agent = OpenCode(tmp_path, router)
    for model in ("auto", LARGE):
        requests = agent.ask(HARD, model)
        assert served(requests) == [LARGE]
        [title] = [request for request in requests if not request["body"].get("tools")]
        assert title["served"] == SMALL
        one_session(agent, requests)


@every_agent
def test_who_changes_the_model_in_a_session_gets_the_one_that_is_named(
    tmp_path: Path, router: PinnedRouter, kind: type[Agent]
) -> None:
    agent = kind(tmp_path, router)
    requests = []
    for turn, (model, expected) in enumerate([(LARGE, LARGE), (SMALL, SMALL), ("auto", SMALL)]):
        asked = agent.ask(EASY if turn else HARD, model, resume=turn > 0)
        assert served(asked) == [expected]
        requests += asked
    one_session(agent, requests)
