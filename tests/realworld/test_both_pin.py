"""LiteLLM's own session affinity, switched on behind ours: what ours lets go, LiteLLM still holds."""

import uuid
from collections.abc import Iterator

import httpx
import pytest

from realworld.asking import CHAT, chat
from realworld.conftest import LITELLM, in_front, litellm_client, litellm_environment
from realworld.test_litellm import CLAUDE, EASY, HARD, MINI


class Both:
    """Sessions that LiteLLM and we pin, and what reaches the provider."""

    def __init__(self, client: httpx.Client, provider: httpx.Client) -> None:
        self._client = client
        self._provider = provider
        self.session_id = str(uuid.uuid4())

    def ask(self, prompt: str, **headers: str) -> tuple[set[str], httpx.Response]:
        """Return the models that the provider was asked for, and the answer."""
        sent = {"x-session-id": self.session_id, **{name.replace("_", "-"): value for name, value in headers.items()}}
        answer = self._client.post(CHAT, json=chat("smart", prompt), headers=sent)
        return set(self._provider.delete("/asked").json()), answer

    def take_out(self, *models: str) -> None:
        """Have the provider refuse these models from now on, and serve the others."""
        self._provider.put("/out", json=models)


@pytest.fixture(scope="module")
def pinned(provider: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("both")
    config = folder / "config.yaml"
    section = "      complexity_router_config:\n"
    before, after = (LITELLM / "config.yaml").read_text().split(section)
    config.write_text(f"{before}{section}        session_affinity: true\n{after}")
    with in_front(folder, litellm_environment(provider), config) as url, litellm_client(url) as client:
        yield client


@pytest.fixture
def both(pinned: httpx.Client, provider: httpx.Client) -> Iterator[Both]:
    both = Both(pinned, provider)
    provider.delete("/asked")
    yield both
    both.take_out()


def test_where_both_pin_ours_can_be_neither_reset_nor_switched_off(both: Both) -> None:
    assert both.ask(EASY)[0] == {MINI}
    for control, status in [("reset", "miss"), ("off", "off")]:
        asked, answer = both.ask(HARD, x_session_pin=control)
        assert asked == {MINI}
        assert answer.headers["x-session-pin-status"] == status
        assert answer.headers["x-litellm-complexity-router-cause"] == "session_affinity_pin"


def test_where_both_pin_a_model_that_is_out_is_not_routed_around(both: Both) -> None:
    assert both.ask(EASY)[0] == {MINI}
    assert both.ask(HARD)[0] == {MINI}
    both.take_out(MINI)
    asked, answer = both.ask(HARD)
    assert asked == {MINI}
    assert answer.status_code == 503
    assert answer.headers["x-session-pin-status"] == "hit"  # routing did no better
    both.session_id = str(uuid.uuid4())
    assert both.ask(HARD)[0] == {CLAUDE}
