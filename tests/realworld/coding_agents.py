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
from base64 import urlsafe_b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from code_blocks import block
from realworld.pinned_router import PinnedRouter

PROGRAMS = Path(sys.prefix) / "agents" / "node_modules" / ".bin"
KEY = "sk-realworld"
AIDER = Path(sys.prefix).with_name(".venv-realworld-aider") / "bin" / "aider"
PATIENCE = 600  # seconds until an agent has to be done; the slowest needs 15 of a processor

Requests = list[dict[str, Any]]


class Agent(ABC):
    """An agent with a home of its own, which asks *router*, pinned or not."""

    recipe = "coding_agents.yaml"
    session_header: str | None = None  # in which it sends the id of its session, if it does
    tool_call: str  # what has it ask once more for the same prompt

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

    def ask(self, prompt: str, model: str = "auto", *, resume: bool = False) -> Requests:
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
        assert f"Hello from {self.main_loop(requests)[-1]['served']}." in ended.stdout
        return requests

    def main_loop(self, requests: Requests) -> Requests:
        """Leave out what has no tools: OpenCode has its small model make a title."""
        return [request for request in requests if request["body"].get("tools")]

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
apps = false
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


class CodexWithCompression(Codex):
    """Codex by a login at ChatGPT, here made up, with a gateway called OpenAI: then it compresses its requests."""

    def __init__(self, home: Path, router: PinnedRouter, *, pinned: bool = True) -> None:
        super().__init__(home, router, pinned=pinned)
        account = {"chatgpt_account_id": "account-1", "chatgpt_plan_type": "pro"}
        claims = {"exp": 4_000_000_000, "email": "ann@example.com", "https://api.openai.com/auth": account}
        parts = [urlsafe_b64encode(json.dumps(part).encode()).decode() for part in ({"alg": "none"}, claims, "none")]
        token = ".".join(parts).replace("=", "")
        tokens = {"id_token": token, "access_token": token, "refresh_token": KEY, "account_id": "account-1"}
        login = {"auth_mode": "chatgpt", "tokens": tokens, "last_refresh": datetime.now(UTC).isoformat()}
        (home / ".codex" / "auth.json").write_text(json.dumps(login))

    def provider(self) -> str:
        shown = super().provider().replace("My gateway", "OpenAI")
        shown = shown.replace('env_key = "GATEWAY_KEY"', "requires_openai_auth = true")
        return f'chatgpt_base_url = "{self.url}/backend-api"\n{shown}'  # which nobody serves


class OpenCode(Agent):
    """OpenCode, which asks at /v1/chat/completions, for a session's title too."""

    session_header = "x-session-id"
    tool_call = 'CALL bash {"command": "echo noon", "description": "time"}'

    def __init__(self, home: Path, router: PinnedRouter, *, pinned: bool = True) -> None:
        super().__init__(home, router, pinned=pinned)
        settings = json.loads(self.asking(block("docs/recipes.md", '{"model": "gateway/auto"')))
        settings["provider"]["gateway"]["models"]["large"] = {}
        settings["autoupdate"] = False
        path = self.settings_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))

    def settings_path(self) -> Path:
        """Return where its settings are."""
        return self.work / "opencode.json"

    def command(self, model: str, resume: bool) -> list[str]:
        return ["opencode", "run", "--model", f"gateway/{model}", *["--continue"] * resume]

    def environment(self, model: str) -> dict[str, str]:
        offline = {"OPENCODE_DISABLE_MODELS_FETCH": "1", "npm_config_offline": "true"}
        return {"GATEWAY_KEY": KEY, **offline}


class Kilo(OpenCode):
    """Kilo, which asks as OpenCode does."""

    def settings_path(self) -> Path:
        return self.home / ".config" / "kilo" / "kilo.jsonc"

    def command(self, model: str, resume: bool) -> list[str]:
        return ["kilo", *super().command(model, resume)[1:]]

    def environment(self, model: str) -> dict[str, str]:
        return {**super().environment(model), "KILO_DISABLE_MODELS_FETCH": "1", "KILO_TELEMETRY_LEVEL": "off"}


class Pi(Agent):
    """pi, which asks at /v1/responses, with an id."""

    session_header: str | None = "session_id"
    tool_call = 'CALL bash {"command": "echo noon"}'

    def __init__(self, home: Path, router: PinnedRouter, *, pinned: bool = True) -> None:
        super().__init__(home, router, pinned=pinned)
        (home / ".pi" / "agent").mkdir(parents=True)
        (home / ".pi" / "agent" / "models.json").write_text(self.settings())

    def settings(self) -> str:
        """Return the settings that name the gateway."""
        shown = self.asking(block("docs/recipes.md", '{"providers": {"gateway"'))
        return shown.replace('{"id": "small"}', '{"id": "small"}, {"id": "large"}')

    def command(self, model: str, resume: bool) -> list[str]:
        return ["pi", "--print", "--model", f"gateway/{model}", *["--continue"] * resume]

    def environment(self, model: str) -> dict[str, str]:
        return {"GATEWAY_KEY": KEY, "PI_OFFLINE": "1"}


class PiByChat(Pi):
    """pi, which asks at /v1/chat/completions, without an id."""

    recipe = "without_ids.yaml"
    session_header = None

    def settings(self) -> str:
        return super().settings().replace("openai-responses", "openai-completions")


class QwenCode(Agent):
    """qwen-code, which asks at /v1/chat/completions, with the id that its user has set for the task."""

    recipe = "sdk.yaml"
    session_header: str | None = "x-session-id"
    tool_call = 'CALL run_shell_command {"command": "echo noon", "is_background": false}'
    tasks = 0

    def settings(self) -> dict[str, Any]:
        """Return the settings for a task."""
        shown = block("docs/recipes.md", '{"security":').replace("my-feature", f"{self.home.name}-{self.tasks}")
        settings: dict[str, Any] = json.loads(shown)
        memory = {"enableManagedAutoMemory": False, "enableManagedAutoDream": False}  # it asks with other tools
        return {**settings, "privacy": {"usageStatisticsEnabled": False}, "memory": memory}

    def command(self, model: str, resume: bool) -> list[str]:
        self.tasks += not resume
        (self.work / ".qwen").mkdir(exist_ok=True)
        (self.work / ".qwen" / "settings.json").write_text(json.dumps(self.settings()))
        return ["qwen", "--yolo", "--model", model, *["--continue"] * resume]

    def environment(self, model: str) -> dict[str, str]:
        shown = self.asking(block("docs/recipes.md", "OPENAI_BASE_URL=")).replace("...", KEY)
        return dict(re.findall(r"(\w+)=(\S+)", shown))


class QwenCodeWithoutId(QwenCode):
    """qwen-code as it comes."""

    recipe = "without_ids.yaml"
    session_header = None

    def settings(self) -> dict[str, Any]:
        settings = super().settings()
        del settings["model"]["generationConfig"]
        return settings


class Cline(Agent):
    """Cline, which asks at /v1/chat/completions, without an id. Without a terminal it continues no session."""

    recipe = "without_ids.yaml"
    tool_call = 'CALL run_commands {"commands": ["echo noon"]}'

    def __init__(self, home: Path, router: PinnedRouter, *, pinned: bool = True) -> None:
        super().__init__(home, router, pinned=pinned)
        settings = {"provider": "openai-compatible", "apiKey": KEY, "model": "auto", "baseUrl": f"{self.url}/v1"}
        path = home / ".cline" / "data" / "settings" / "providers.json"
        path.parent.mkdir(parents=True)
        provider = {
            "settings": {**settings, **self.headers()},
            "updatedAt": "2026-11-26T00:00:00Z",
            "tokenSource": "manual",
        }
        path.write_text(json.dumps({"version": 1, "modes": {}, "providers": {"openai-compatible": provider}}))
        offline = {"telemetryOptOut": True, "autoUpdateEnabled": False}
        path.with_name("global-settings.json").write_text(json.dumps(offline))

    def headers(self) -> dict[str, Any]:
        """Return what its settings say of headers."""
        return {}

    def command(self, model: str, resume: bool) -> list[str]:
        assert not resume
        return ["cline", "--provider", "openai-compatible", "--model", model]

    def environment(self, model: str) -> dict[str, str]:
        return {"CLINE_SESSION_BACKEND_MODE": "local", "IS_TEST": "true"}  # no daemon stays, no flags are fetched


class ClineWithId(Cline):
    """Cline with the id that its user has set for the task."""

    recipe = "sdk.yaml"
    session_header = "x-session-id"

    def headers(self) -> dict[str, Any]:
        shown = block("docs/recipes.md", '{"providers": {"openai-compatible"').replace("my-feature", self.home.name)
        headers: dict[str, Any] = json.loads(shown)["providers"]["openai-compatible"]["settings"]
        return headers


class Aider(Agent):
    """aider, which asks at /v1/chat/completions, with the id that its user has set for the run.

    It has no tools: where an answer names a file, it shows that file and asks again. Here one is called as a model is.
    """

    recipe = "sdk.yaml"
    session_header = "x-session-id"
    tool_call = ""
    tasks = 0

    def __init__(self, home: Path, router: PinnedRouter, *, pinned: bool = True) -> None:
        super().__init__(home, router, pinned=pinned)
        (self.work / "large").write_text("noon")
        limits = {f"openai/{name}": {"max_input_tokens": 100_000} for name in ("auto", "large", "small")}
        (self.work / ".aider.model.metadata.json").write_text(json.dumps(limits))  # else it looks for them elsewhere
        commit = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com", "commit", "--quiet", "--message", "A file"]
        for command in (["init", "--quiet"], ["add", "large"], commit):
            subprocess.run(["git", *command], cwd=self.work, check=True)

    def command(self, model: str, resume: bool) -> list[str]:
        self.tasks += not resume
        settings = block("docs/recipes.md", "- name: openai/auto").replace(
            "my-feature", f"{self.home.name}-{self.tasks}"
        )
        (self.work / ".aider.model.settings.yml").write_text(settings.replace("/auto", f"/{model}"))
        shown = self.asking(block("docs/recipes.md", "aider ")).replace("KEY", KEY).replace("/auto", f"/{model}")
        quiet = ["--analytics-disable", "--no-check-update", "--no-show-release-notes", "--no-gitignore"]
        return [str(AIDER), *shown.split()[1:], "--message-file", "/dev/stdin", "--yes-always", *quiet]

    def environment(self, model: str) -> dict[str, str]:
        return {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}

    def main_loop(self, requests: Requests) -> Requests:
        return requests
