"""Codex by websockets through `asgi-session-pin serve`, and where the upstream has none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from realworld.coding_agents import Codex, CodexByWebsocket, CodexOfOpenAI
from realworld.pinned_router import PinnedRouter, pinned_router
from realworld.routing_provider import LARGE, SMALL

EASY, HARD = "What time is it?", "A HARD question."
websockets = pytest.mark.parametrize("kind", [CodexByWebsocket, CodexOfOpenAI])


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PinnedRouter]:
    with pinned_router(tmp_path_factory.mktemp("router"), "coding_agents.yaml") as router:
        yield router


@pytest.fixture(scope="module")
def router_without_websockets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PinnedRouter]:
    with pinned_router(tmp_path_factory.mktemp("router"), "coding_agents.yaml", base="/http") as router:
        yield router


def turns(requests: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the model and the transport of each request but the warm-ups, which are for none of its turns."""
    return [(each["served"], each["transport"]) for each in requests if each["body"].get("generate") is not False]


@websockets
def test_without_pinning_the_model_changes_within_a_session(
    tmp_path: Path, router: PinnedRouter, kind: type[Codex]
) -> None:
    agent = kind(tmp_path, router, pinned=False)
    assert turns(agent.ask(f"{HARD} {agent.tool_call}")) == [(LARGE, "websocket"), (SMALL, "websocket")]


@websockets
def test_the_turns_of_a_websocket_stay_on_one_model_also_when_the_session_is_continued(
    tmp_path: Path, router: PinnedRouter, kind: type[Codex]
) -> None:
    agent = kind(tmp_path, router)
    requests = agent.ask(f"{HARD} {agent.tool_call}")
    assert turns(requests) == [(LARGE, "websocket")] * 2
    continued = agent.ask(EASY, resume=True)
    assert turns(continued) == [(LARGE, "websocket")]
    assert len({each["headers"][agent.session_header] for each in requests + continued}) == 1


@websockets
def test_release_leaves_the_turns_of_a_websocket_where_they_are(tmp_path: Path, kind: type[Codex]) -> None:
    """Each goes on from a response that the provider keeps, at first from that of the warm-up."""
    settings = tmp_path / "session_pin.yaml"
    settings.write_text("routing: {release: user_turn}\nsessions: {sources: ['preset:coding-agents']}")
    with pinned_router(tmp_path, settings) as router:
        agent = kind(tmp_path, router)
        assert turns(agent.ask(EASY)) == [(SMALL, "websocket")]
        hard = agent.ask(f"{HARD} {agent.tool_call}", resume=True)
    assert turns(hard) == [(SMALL, "websocket")] * 2
    assert all(each["body"]["previous_response_id"] for each in hard if each["body"].get("generate") is not False)


@websockets
def test_where_the_upstream_has_no_websocket_it_tries_once_and_asks_by_http(
    tmp_path: Path, router_without_websockets: PinnedRouter, kind: type[Codex]
) -> None:
    """Where it is refused by 403, 404 or 501 it tries seven times, for seven seconds."""
    agent = kind(tmp_path, router_without_websockets)
    tried, *requests = agent.ask(f"{HARD} {agent.tool_call}")
    assert tried["transport"] == "refused"
    assert turns(requests) == [(LARGE, "http")] * 2


@websockets
def test_without_the_gateway_it_tries_for_long(
    tmp_path: Path, router_without_websockets: PinnedRouter, kind: type[Codex]
) -> None:
    agent = kind(tmp_path, router_without_websockets, pinned=False)
    assert [each["transport"] for each in agent.ask(EASY)].count("refused") > 1
