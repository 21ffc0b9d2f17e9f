"""`asgi-session-pin probe` against the real LiteLLM, and the settings that it prints put in front of it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from realworld.conftest import KEY, LITELLM, SCRIPTS, litellm_alone, litellm_client, litellm_environment, serve_command
from realworld.test_litellm import CHAT, CLAUDE, EASY, GROUPS, HARD, MESSAGES, MINI, RESPONSES, Asker

COMMAND = SCRIPTS / "asgi-session-pin"


@pytest.fixture(scope="module")
def upstream(provider: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A LiteLLM that knows nothing of session pinning."""
    with litellm_alone(tmp_path_factory.mktemp("bare-litellm"), litellm_environment(provider)) as url:
        yield url


def probe(upstream: str, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Return what the command prints, which are settings if its exit code is 0."""
    command = [str(COMMAND), "probe", "--upstream", upstream, "--key", KEY, "--json", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert KEY not in ended.stdout + ended.stderr
    report: dict[str, Any] = json.loads(ended.stdout)
    return report


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
@pytest.mark.parametrize("names", [["smart"], ["smart", "mini"]], ids=" ".join)
def test_it_finds_the_settings_of_the_example(upstream: str, path: str, names: list[str]) -> None:
    report = probe(upstream, "--path", path, "--model", *names)
    assert report["settings"] == yaml.safe_load((LITELLM / "session_pin.yaml").read_text())
    assert report["verdict"]["notes"][0].startswith("router_models: a router decides for 'smart'")
    assert {each["model"] for each in report["candidates"]} >= set(GROUPS.values()) - set(names)


def test_the_settings_that_it_prints_pin(upstream: str, provider: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "found.yaml").write_text(probe(upstream, "--model", "smart")["yaml"])
    options = ["serve", "--upstream", upstream, "--config", "found.yaml", "--port"]
    with serve_command(tmp_path, COMMAND, *options) as url, litellm_client(url) as client:
        provider.delete("/asked")
        asker = Asker(client, provider)
        for path in (CHAT, MESSAGES, RESPONSES):
            for stream in (False, True):
                asked = [asker.ask(path, prompt, stream=stream)[0] for prompt in (EASY, HARD, EASY)]
                assert asked == [[MINI], [CLAUDE], [MINI]]
                for prompts, model in (((EASY, HARD, EASY), MINI), ((HARD, EASY, HARD), CLAUDE)):
                    session = f"probe-{path}-{stream}-{model}"
                    asked = [asker.ask(path, prompt, session, stream=stream)[0] for prompt in prompts]
                    assert asked == [[model]] * 3
