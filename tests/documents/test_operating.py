"""What an operator types at night, as docs/operating.md shows it, against workers that serve."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from code_blocks import ROOT, block
from fake_gateways import Answer, Asked, FakeGateway
from servers import serve_app, serving, wait_until
from shells import paste

TOKEN = "a-token-of-the-operator"
BEGINNING = block("docs/operating.md", "URL=http://localhost:8080/-/session-pin")


def router(asked: Asked) -> Answer:
    model = "openai/gpt-4o" if asked.model == "auto" else str(asked.model)
    return Answer(model, model)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("PIN_ADMIN_TOKEN", TOKEN)
    settings = {
        "routing": {"router_models": ["auto"]},
        "store": {"url": f"sqlite:///{tmp_path}/pins.db", "timeout_seconds": 5},
        "admin": {"token": "${PIN_ADMIN_TOKEN}"},
    }
    (tmp_path / "session_pin.yaml").write_text(yaml.safe_dump(settings))
    with serve_app(FakeGateway(router)) as upstream:
        config = str(tmp_path / "session_pin.yaml")
        with serving("--upstream", upstream, "--config", config, "--workers", "2") as (url, _):
            yield url


def chat(url: str) -> str:
    headers = {"x-session-id": "one", "authorization": "Bearer sk-1"}
    body = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, trust_env=False, timeout=30)
    return str(answer.headers["x-session-pin-status"])


def type_in(commands: str, url: str, folder: Path) -> str:
    """Run commands, whatever port they are documented with, and return what they print."""
    return paste(commands.replace("http://localhost:8080", url), folder, PIN_ADMIN_TOKEN=TOKEN)


def test_models_are_led_off_and_all_is_paused_and_goes_on_as_the_page_shows(url: str, tmp_path: Path) -> None:
    assert chat(url) == "miss"
    ready, *told = type_in(BEGINNING, url, tmp_path).splitlines()
    assert ready == "ok"
    models, paused = re.findall(r"{.*?}(?=$|{)", "".join(told))
    [model] = json.loads(models)["models"]
    assert (model["model"], model["pins"]) == ("openai/gpt-4o", 1)
    assert json.loads(paused) == {"paused": True}
    wait_until(lambda: chat(url) == "hit")


def test_each_command_of_the_night_does_what_is_said_of_it(url: str, tmp_path: Path) -> None:
    chat(url)
    assign = "\n".join(BEGINNING.splitlines()[:2])
    lines = [line for line in BEGINNING.splitlines() if "-X" in line]
    for line, expected in zip(lines, ("off; reason=paused", "hit", "miss", "hit"), strict=True):
        type_in(f"{assign}\n{line}", url, tmp_path)
        wait_until(lambda expected=expected: chat(url) == expected)  # type: ignore[misc]


def test_the_same_is_done_without_a_server(url: str, tmp_path: Path) -> None:
    chat(url)
    commands = block("docs/operating.md", "asgi-session-pin pins --config session_pin.yaml --retire")
    retired, restored, head, *pins = type_in(commands, url, tmp_path).splitlines()
    assert (retired.split()[0], restored.split()[0]) == ("retired", "restored")
    assert head.startswith("KEY")
    assert [line.split()[-1] for line in pins] == ["openai/gpt-4o"]


def test_one_session_is_found_and_its_pin_dropped(url: str, tmp_path: Path) -> None:
    assert [chat(url), chat(url)] == ["miss", "hit"]
    assign = "\n".join(BEGINNING.splitlines()[:2])
    assert type_in(f"{assign}\n{block('docs/operating.md', 'FOUND=$(curl')}", url, tmp_path) == ""
    assert chat(url) == "miss"


def test_each_alert_has_a_row_in_the_table_of_the_night() -> None:
    alerts = set(re.findall(r"alert: (\w+)", (ROOT / "deploy" / "alerts.yaml").read_text()))
    table = (ROOT / "docs" / "operating.md").read_text().partition("## At 3 a.m.")[2]
    assert set(re.findall(r"`(SessionPin\w+)`", table)) == alerts
