"""The commands and programs that docs/recipes.md shows, run as they stand there."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import httpx
import pytest
from anthropic import Anthropic
from langchain_openai import ChatOpenAI
from openai import OpenAI

from code_blocks import ROOT, block
from realworld.asking import CHAT, EASY, HARD, chat, new_session
from realworld.coding_agents import PROGRAMS
from realworld.conftest import (
    LITELLM,
    PATIENCE,
    SCRIPTS,
    litellm_alone,
    litellm_client,
    litellm_environment,
    serve_command,
)
from realworld.pinned_router import RECIPES, PinnedRouter, pinned_router
from realworld.routing_provider import LARGE, SMALL
from realworld.stacks import BACKEND
from servers import free_port, is_open
from shells import pasted

SDKS = {"OpenAI": OpenAI, "Anthropic": Anthropic, "ChatOpenAI": ChatOpenAI}
ENVIRONMENT = {"PATH": f"{SCRIPTS}:{os.environ['PATH']}", "HOME": os.environ["HOME"], "NO_PROXY": "127.0.0.1,localhost"}


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PinnedRouter]:
    with pinned_router(tmp_path_factory.mktemp("sdk"), "sdk.yaml") as router:
        yield router


def test_the_commands_for_litellm_pin_a_session() -> None:
    """Pasted into a shell, with other ports."""
    commands = block("docs/recipes.md", "export LITELLM_MASTER_KEY=")
    for port in ("9001", "4000"):
        commands = commands.replace(port, str(free_port()))
    own = str(free_port())
    commands = commands.replace("session_pin.yaml &", f"session_pin.yaml --port {own} &").replace("8080", own)
    environment = {**ENVIRONMENT, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    shell = subprocess.Popen(
        ["bash"], cwd=ROOT, env=environment, text=True, start_new_session=True, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    try:
        output, errors = shell.communicate(commands, timeout=4 * PATIENCE)
    finally:  # where a command failed, the others wait for it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGTERM)
        shell.communicate()
    told = re.findall(r"^x-session-(pin-status|model): (\S+)", output, re.MULTILINE)
    expected = [pair for status in ("miss", "hit", "hit") for pair in (("pin-status", status), ("model", "mini"))]
    assert told == expected, output + errors


BEHIND = {
    "vllm-router": block("docs/recipes.md", "vllm-router --worker-urls"),
    "smg": block("docs/recipes.md", "smg launch"),
}


@pytest.mark.parametrize("router", BEHIND)
def test_the_commands_for_routers_of_workers_pin_a_session(router: str, tmp_path: Path) -> None:
    own, behind, figures = (str(free_port()) for _ in range(3))
    with serve_command(tmp_path, sys.executable, BACKEND, ready="/health") as worker:
        commands = BEHIND[router].replace("http://localhost:8000", worker).replace("4000", behind)
        commands = commands.replace(" --disable-retries", f" --prometheus-port {figures} --disable-retries")
        commands = f"{commands.strip()} --port {own}"
        with pasted(commands, ROOT), httpx.Client(base_url=f"http://127.0.0.1:{own}", trust_env=False) as client:
            deadline = time.monotonic() + PATIENCE
            while not is_open(int(own)) or client.get("/health").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            session = new_session()
            answers = [client.post(CHAT, json=chat("auto", prompt), headers=session) for prompt in (HARD, EASY)]
    assert [(answer.headers["x-session-pin-status"], answer.json()["model"]) for answer in answers] == [
        ("miss", "large"),
        ("hit", "large"),
    ]


def test_the_clients_of_sdks_that_are_shown_stay_on_the_routers_first_choice(
    router: PinnedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "sk-sdk")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    shown = block("docs/recipes.md", "OpenAI(base_url=").replace("http://localhost:8080", router.url)
    openai, anthropic, langchain = (
        eval(line, {**SDKS, "session_id": f"sdk-{number}"}) for number, line in enumerate(shown.splitlines())
    )
    hello: Any = [{"role": "user", "content": "Hello"}]
    router.take_requests()
    for _ in range(2):
        openai.chat.completions.create(model="auto", messages=hello)
        anthropic.messages.create(model="auto", messages=hello, max_tokens=16)
        langchain.invoke("Hello")
    models = [request["body"]["model"] for request in router.take_requests()]
    assert models == ["auto"] * 3 + [SMALL] * 3


@pytest.mark.parametrize("program", ["openai_agents.py", "langgraph_agent.py", "ai_sdk.mjs"])
def test_a_program_of_an_sdk_stays_on_the_routers_first_choice(
    router: PinnedRouter, program: str, tmp_path: Path
) -> None:
    router.take_requests()
    source = RECIPES / program
    if source.suffix == ".mjs":  # node looks for packages from where the program is
        (tmp_path / "node_modules").symlink_to(PROGRAMS.parent)
        copy = tmp_path / program
        copy.write_text(source.read_text())
        command = ["node", str(copy)]
    else:
        command = [sys.executable, str(source)]
    environment = {**ENVIRONMENT, "GATEWAY_URL": router.url, "GATEWAY_KEY": f"sk-{program}"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.stdout.splitlines() == [f"Hello from {LARGE}."] * 2, ended.stderr
    requests = router.take_requests()
    assert [request["body"]["model"] for request in requests] == ["auto", LARGE]
    assert {request["headers"]["x-session-id"] for request in requests} == {"session-1"}


def test_a_session_of_a_balanced_group_stays_on_its_first_deployment(provider: httpx.Client, tmp_path: Path) -> None:
    deployment = "{model: openai/gpt-4o-mini, api_base: os.environ/FAKE_PROVIDER_URL, api_key: "
    config = tmp_path / "config.yaml"
    config.write_text(
        "model_list:\n" + "".join(f"- {{model_name: balanced, litellm_params: {deployment}{key}}}}}\n" for key in "ab")
    )
    with litellm_alone(tmp_path, litellm_environment(provider), config) as upstream:
        command: list[str | Path] = [SCRIPTS / "asgi-session-pin", "serve", "--upstream", upstream]
        command += ["--config", LITELLM / "balanced.yaml", "--port"]
        with serve_command(tmp_path, *command) as url, litellm_client(url) as client:

            def ask(session: str) -> tuple[str, str]:
                body = {"model": "balanced", "messages": [{"role": "user", "content": "Hello"}]}
                answer = client.post("/v1/chat/completions", json=body, headers={"x-session-id": session})
                return answer.headers["x-session-pin-status"], answer.headers["x-litellm-model-id"]

            firsts = {}
            for number in range(20):
                status, firsts[number] = ask(f"session-{number}")
                assert status == "miss"
            assert len(set(firsts.values())) == 2
            for number, first in firsts.items():
                assert {ask(f"session-{number}") for _ in range(3)} == {("hit", first)}
