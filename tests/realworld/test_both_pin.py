"""LiteLLM's own session affinity, switched on behind ours: what ours lets go, LiteLLM still holds."""

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from realworld.asking import CHAT, chat
from realworld.conftest import KEY, LITELLM, serve_command
from realworld.test_litellm import CLAUDE, EASY, HARD, MINI

ALIVE = "/health/liveliness"


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
    folder, scripts = tmp_path_factory.mktemp("both"), Path(sys.executable).parent
    config = folder / "config.yaml"
    section = "      complexity_router_config:\n"
    before, after = (LITELLM / "config.yaml").read_text().split(section)
    config.write_text(f"{before}{section}        session_affinity: true\n{after}")
    environment = {
        "LITELLM_MASTER_KEY": KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "FAKE_PROVIDER_URL": str(provider.base_url.join("/v1")),
        "FAKE_PROVIDER_KEY": "any",
    }
    options: list[str | Path] = ["--config", config, "--host", "127.0.0.1", "--port"]
    ours: list[str | Path] = ["--config", LITELLM / "session_pin.yaml", "--port"]
    headers = {"authorization": f"Bearer {KEY}"}
    with (
        serve_command(folder, scripts / "litellm", *options, ready=ALIVE, **environment) as upstream,
        serve_command(folder, scripts / "asgi-session-pin", "serve", "--upstream", upstream, *ours, ready=ALIVE) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client,
    ):
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
    assert answer.headers["x-session-pin-status"] == "reroute"
    both.session_id = str(uuid.uuid4())
    assert both.ask(HARD)[0] == {CLAUDE}
