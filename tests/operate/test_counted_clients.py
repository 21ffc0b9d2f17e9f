"""The figures of several workers, against what their clients count."""

from contextlib import ExitStack
from pathlib import Path

import pytest

import counted_clients
from counted_clients import CHAT, Clients
from redis_servers import redis_server


@pytest.mark.parametrize("kind", ["SQLite", "Redis"])
async def test_the_figures_of_workers_are_those_of_their_clients_whatever_fails(kind: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        url = f"sqlite:///{tmp_path}/pins.db" if kind == "SQLite" else stack.enter_context(redis_server(tmp_path)).url
        wrong, seen = await counted_clients.run(tmp_path, url, requests=600, workers=2)
    assert wrong == [], seen


def test_figures_that_differ_are_seen() -> None:
    clients = Clients("http://127.0.0.1:9")
    clients.requests[CHAT, "", "hit"] = 2
    clients.models["a", "true"] = 2
    clients.tokens["input", "true"] = 100
    changes: dict[tuple[str, ...], float] = {
        (cause,): 0 for cause in ("lapsed", "evicted", "refused", "outage", "reset", "forgotten", "retired", "released")
    }
    figures: dict[str, dict[tuple[str, ...], float]] = {
        "session_pin_requests_total": {(CHAT, "", "hit"): 2},
        "session_pin_model_requests_total": {("a", "true"): 2},
        "session_pin_tokens_total": {("input", "true"): 100},
        "session_pin_changes_total": {**changes, ("made",): 1},
    }
    assert list(clients.faults(figures, 1)) == []
    clients.requests[CHAT, "", "hit"] += 1
    clients.models["b", "true"] = 1
    clients.tokens.clear()
    assert len(list(clients.faults(figures, 2))) == 4
