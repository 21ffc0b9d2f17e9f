"""Coding agents without a screen: one prompt in, the requests that reached the provider out.

What `environment` and the settings files say is what docs/recipes.md shows, but for the switches that keep an agent
from asking anybody else than its gateway.
"""

import json
import os
import re
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytest

from code_blocks import block
from realworld.pinned_router import PinnedRouter

PROGRAMS = Path(sys.prefix) / "agents" / "node_modules" / ".bin"
KEY = "sk-realworld"
PATIENCE = 60  # seconds until an agent has to be done; the slowest takes 4


def main_loop(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what has no tools: OpenCode has its small model make a title."""
    return [request for request in requests if request["body"].get("tools")]


class Agent(ABC):
    """An agent with a home of its own, which asks *router*, pinned or not."""

    session_header: str
    tool_call: str

    def __init__(self, home: Path, router: PinnedRouter, *, pinned: bool = True) -> None:
        self.router = router
        self.url = router.url if pinned else router.provider_url
        self.home = home
        self.work = home / "work"
        self.work.mkdir()

    @abstractmethod
    def command(self, model: str, resume: bool) -> list[str]:
        """Return the command that reads a prompt from its standard input."""

    @abstractmethod
    def environment(self, model: str) -> dict[str, str]:
        """Return the variables that a user sets."""

    def ask(self, prompt: str, model: str = "auto", *, resume: bool = False) -> list[dict[str, Any]]:
        """Run the agent and return the requests that reached the provider; *resume* continues the last session."""
        self.router.take_requests()
        program, *arguments = self.command(model, resume)
        with socket.create_server(("127.0.0.1", 0)) as outside:
            ended = subprocess.run(
                [PROGRAMS / program, *arguments],
                input=prompt,
                cwd=self.work,
                env={**self.surroundings(outside), **self.environment(model)},
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            assert ended.returncode == 0, ended.stdout + ended.stderr
            outside.setblocking(False)
            with pytest.raises(BlockingIOError):  # nobody has come
                outside.accept()
        requests = self.router.take_requests()
        assert f"Hello from {main_loop(requests)[-1]['served']}." in ended.stdout
        return requests

    def asking(self, shown: str) -> str:
        """Return settings that a document shows, for this agent's gateway."""
        assert "http://localhost:8080" in shown
        return shown.replace("http://localhost:8080", self.url)

    def surroundings(self, outside: socket.socket) -> dict[str, str]:
        """Return what any program gets; whatever is for the internet comes to *outside*, which answers nobody."""
        proxy = f"http://127.0.0.1:{outside.getsockname()[1]}"
        proxies = {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": "127.0.0.1"}
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), **proxies}


class ClaudeCode(Agent):
    """Claude Code, which asks at /v1/messages."""

    session_header = "x-claude-code-session-id"
    tool_call = 'CALL Bash {"command": "echo noon", "description": "time"}'

    def command(self, model: str, resume: bool) -> list[str]:
        helper = {"description": "helps", "prompt": "You help.", "model": "haiku"}
        return ["claude", "--print", "--agents", json.dumps({"helper": helper}), *["--continue"] * resume]

    def environment(self, model: str) -> dict[str, str]:
        shown = self.asking(block("docs/recipes.md", "export ANTHROPIC_BASE_URL=")).replace("$GATEWAY_KEY", KEY)
        offline = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
        return {**dict(re.findall(r"^export (\w+)=(.*)$", shown, re.MULTILINE)), "ANTHROPIC_MODEL": model, **offline}


class Codex(Agent):
    """Codex, which asks at /v1/responses."""

    session_header = "session-id"
    tool_call = 'CALL exec_command {"cmd": "echo noon"}'

    def __init__(self, home: Path, router: PinnedRouter, *, pinned: bool = True) -> None:
        super().__init__(home, router, pinned=pinned)
        (home / ".codex").mkdir()
        (home / ".codex" / "config.toml").write_text(f"""
check_for_update_on_startup = false
{self.provider()}

[features]
plugins = false

[analytics]
enabled = false
""")

    def provider(self) -> str:
        """Return the settings that name the gateway."""
        return self.asking(block("docs/recipes.md", 'model = "auto"'))

    def command(self, model: str, resume: bool) -> list[str]:
        last = ["resume", "--last"] if resume else []
        return ["codex", "exec", "--skip-git-repo-check", "--model", model, *last, "-"]

    def environment(self, model: str) -> dict[str, str]:
        return {"GATEWAY_KEY": KEY}


class CodexByWebsocket(Codex):
    """Codex, which asks by a websocket, as its provider says that it has some."""

    def provider(self) -> str:
        return f"{super().provider()}supports_websockets = true\n"


class CodexOfOpenAI(Codex):
    """Codex with its own provider at another URL, which it asks by a websocket first."""

    def provider(self) -> str:
        return f'model_context_window = 200000\nopenai_base_url = "{self.url}/v1"\n'

    def environment(self, model: str) -> dict[str, str]:
        return {"CODEX_API_KEY": KEY}


class OpenCode(Agent):
    """OpenCode, which asks at /v1/chat/completions, for a session's title too."""

    session_header = "x-session-id"
    tool_call = 'CALL bash {"command": "echo noon", "description": "time"}'

    def __init__(self, home: Path, router: PinnedRouter, *, pinned: bool = True) -> None:
        super().__init__(home, router, pinned=pinned)
        settings = json.loads(self.asking(block("docs/recipes.md", '{"model": "gateway/auto"')))
        settings["provider"]["gateway"]["models"]["large"] = {}
        settings["autoupdate"] = False
        (self.work / "opencode.json").write_text(json.dumps(settings))

    def command(self, model: str, resume: bool) -> list[str]:
        return ["opencode", "run", "--model", f"gateway/{model}", *["--continue"] * resume]

    def environment(self, model: str) -> dict[str, str]:
        offline = {"OPENCODE_DISABLE_MODELS_FETCH": "1", "npm_config_offline": "true"}
        return {"GATEWAY_KEY": KEY, **offline}
