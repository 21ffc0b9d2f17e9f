"""Codex by websockets through `asgi-session-pin serve`, and where the upstream has none."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from realworld.coding_agents import Codex, CodexByWebsocket, CodexOfOpenAI
from realworld.pinned_router import PinnedRouter, pinned_router
from realworld.routing_provider import LARGE, SMALL

EASY, HARD = "What time is it?", "A HARD question."
FIRST_SECONDS = 1.5  # from its start to its first request; where it is refused by 501 it tries for seven
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


def seconds_to_the_first_request(agent: Codex) -> float:
    """Return the least of three sessions, as the machine may be busy."""
    seconds: list[float] = []
    for _ in range(3):
        began = time.time()
        requests = agent.ask(EASY)
        seconds.append(requests[0]["at"] - began)
    print(f"{type(agent).__name__}: first requests after {seconds} s")  # noqa: T201
    return min(seconds)


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


@pytest.mark.parametrize("kind", [Codex, CodexByWebsocket, CodexOfOpenAI])
def test_its_first_request_is_there_at_once(tmp_path: Path, router: PinnedRouter, kind: type[Codex]) -> None:
    assert seconds_to_the_first_request(kind(tmp_path, router)) < FIRST_SECONDS


@websockets
def test_where_the_upstream_has_no_websocket_it_asks_by_http_at_once(
    tmp_path: Path, router_without_websockets: PinnedRouter, kind: type[Codex]
) -> None:
    agent = kind(tmp_path, router_without_websockets)
    assert turns(agent.ask(f"{HARD} {agent.tool_call}")) == [(LARGE, "http")] * 2
    assert seconds_to_the_first_request(agent) < FIRST_SECONDS
