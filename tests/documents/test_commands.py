"""The commands that README and docs show, pasted into a shell, with other ports; and what they say is printed."""

import json
import re
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from asgi_session_pin import Config
from asgi_session_pin.config.schema import make_schema
from code_blocks import ROOT, block
from fake_gateways import Answer, Asked, FakeGateway
from servers import free_port, serve_app, wait_until_open
from shells import paste, pasted, read_until

SERVES = "INFO: asgi_session_pin.serve: ready"
HELLO = [{"role": "user", "content": "Hello"}]


def ask(url: str, model: str = "auto", path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"model": model, "messages": HELLO}
    return httpx.post(f"{url}{path}", json=body, headers=named, trust_env=False, timeout=30)


def with_ports(commands: str, upstream: str, listens: int, documented: int = 4000) -> str:
    """Return commands that ask *upstream* in the place of what is documented, and serve on a port of the test's."""
    assert f"http://localhost:{documented}" in commands
    asked = commands.replace(f"http://localhost:{documented}", upstream)
    return re.sub(r"(asgi-session-pin serve .*?)( &)?$", rf"\1 --port {listens}\2", asked, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("number", "shown"), [(1, block("README.md", "python3 -m venv")), (2, block("README.md", "scripts/test"))]
)
def test_the_gate_types_the_first_two_commands_of_the_readme(number: int, shown: str) -> None:
    [function] = re.findall(r"^readme_command\(\) .*$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert paste(f"{function}; readme_command {number}", ROOT) == shown


def test_the_demo_prints_what_the_readme_shows(tmp_path: Path) -> None:
    printed = iter(paste("asgi-session-pin demo", tmp_path).splitlines())
    for shown in block("README.md", "Run 1").splitlines():
        start = re.escape(shown.removesuffix(" …")).replace("a1b2c3d4", "[0-9a-f]{8}")
        assert any(re.match(start, line) for line in printed), shown


def router(asked: Asked) -> Answer:
    """Chooses by the prompt, and takes the names of its models."""
    if asked.model != "auto":
        return Answer(asked.model, asked.model)
    model = "gpt-4o" if asked.hard else "gpt-4o-mini"
    return Answer(model, model)


PIP = """#!/bin/sh
echo "$@" >>"$HOME/installed"
"""


def test_the_readme_probes_a_gateway_and_serves_in_front_of_it(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pip").write_text(PIP)  # stands in for pip: the package is there
    (tmp_path / "bin" / "pip").chmod(0o755)
    port = free_port()
    gateway = FakeGateway(router)
    with serve_app(gateway) as upstream:
        commands = with_ports(block("README.md", "pip install 'PATH_OF_THIS_FOLDER[gateway]'"), upstream, port)
        commands = f"PATH=$HOME/bin:$PATH\n{commands.replace('PATH_OF_THIS_FOLDER', str(ROOT))}"
        with pasted(commands, tmp_path) as shell:
            read_until(shell, SERVES)
            url = f"http://127.0.0.1:{port}"
            told = [ask(url, x_session_id="one").headers["x-session-pin-status"] for _ in range(3)]
    assert told == ["miss", "hit", "hit"]
    assert gateway.served[-3:] == ["gpt-4o-mini"] * 3
    assert Config.load(tmp_path / "session_pin.yaml").routing.router_models == ("auto",)
    assert (tmp_path / "installed").read_text() == f"install {ROOT}[gateway]\n"


def test_a_file_is_checked_and_a_schema_written(tmp_path: Path) -> None:
    (tmp_path / "session_pin.yaml").write_text((ROOT / "examples" / "session_pin.yaml").read_text())
    printed = paste(block("docs/configuration.md", "asgi-session-pin check"), tmp_path)
    assert printed.startswith("# session_pin.yaml: ok, no settings differ from the defaults\n")
    assert json.loads((tmp_path / "session_pin.schema.json").read_text()) == json.loads(json.dumps(make_schema()))


def test_serve_runs_as_the_page_for_operators_says(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "session_pin.yaml").touch()
    with serve_app(FakeGateway(router)) as upstream:
        commands = with_ports(block("docs/operating.md", "asgi-session-pin serve"), upstream, port)
        with pasted(commands, tmp_path) as shell:
            read_until(shell, SERVES)
            assert ask(f"http://127.0.0.1:{port}", x_session_id="one").headers["x-session-pin-status"] == "miss"


def test_two_workers_share_a_file_of_pins(tmp_path: Path) -> None:
    port = free_port()
    settings = block("docs/stores.md", "store:\n  url: sqlite:")
    (tmp_path / "session_pin.yaml").write_text(settings.replace("sqlite:////var/lib/session-pin/", "sqlite:///"))
    gateway = FakeGateway(router)
    with serve_app(gateway) as upstream:
        commands = with_ports(block("docs/stores.md", "asgi-session-pin serve"), upstream, port)
        with pasted(commands, tmp_path) as shell:
            assert ", 2 workers\n" in read_until(shell, SERVES)
            url = f"http://127.0.0.1:{port}"
            told = [ask(url, x_session_id="one", connection="close").headers["x-session-pin-status"] for _ in range(8)]
    assert told == ["miss"] + ["hit"] * 7


def test_a_token_for_operators_is_made_and_opens_what_is_theirs(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "session_pin.yaml").write_text(block("docs/operating.md", "admin:\n  path"))
    making = block("docs/operating.md", "export PIN_ADMIN_TOKEN=")
    with serve_app(FakeGateway(router)) as upstream:
        serve = with_ports(block("docs/operating.md", "asgi-session-pin serve"), upstream, port)
        with pasted(f"{making}echo token $PIN_ADMIN_TOKEN\n{serve}", tmp_path) as shell:
            token = re.findall("^token (.+)$", read_until(shell, SERVES), re.MULTILINE)[0]
            url = f"http://127.0.0.1:{port}/-/session-pin/api/pins"
            told = httpx.get(url, headers={"authorization": f"Bearer {token}"}, trust_env=False, timeout=30)
    assert told.json() == {"pins": [], "next": None}


async def at_debug(request: Request) -> Response:
    named = {} if "unnamed" in request.headers else {"model": "gpt-4o"}
    return JSONResponse({"id": "1", "choices": [], **named})


def test_the_log_at_debug_says_what_the_page_about_it_shows(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    app = Starlette(routes=[Route("/v1/chat/completions", at_debug, methods=["POST"])])
    with serve_app(app) as upstream:
        commands = with_ports(block("docs/debugging.md", "asgi-session-pin serve"), upstream, port)
        with pasted(commands, tmp_path) as shell:
            told = read_until(shell, SERVES)
            ask(url)
            ask(url, x_session_id="one")
            ask(url, x_session_id="one")
            ask(url, x_session_id="two", unnamed="1")
            shell.terminate()
            output, _ = shell.communicate(timeout=30)
    shown = block("docs/debugging.md", "DEBUG: ").splitlines()
    printed = (told + output).splitlines()
    assert [line for line in shown if line not in printed] == [], output


def test_a_saved_request_is_explained_as_the_page_about_it_shows(tmp_path: Path) -> None:
    (tmp_path / "session_pin.yaml").touch()
    (tmp_path / "request.txt").write_text(
        "curl http://localhost:8080/v1/chat/completions -H 'X-Session-Id: one' "
        """-d '{"model": "auto", "messages": []}'"""
    )
    (tmp_path / "answer.txt").write_text(
        'HTTP/1.1 200 OK\ncontent-type: application/json\nx-chosen-model: gpt-4o\n\n{"id": "1", "choices": []}'
    )
    printed = iter(paste(block("docs/debugging.md", "asgi-session-pin explain"), tmp_path).splitlines())
    for shown in block("docs/debugging.md", "It is not pinned").splitlines():
        if shown.strip() != "...":
            assert any(line.startswith(shown.removesuffix(" ...")) for line in printed), shown


def claude_code_router(asked: Asked) -> Answer:
    """Names the provider's snapshots; its own names are `PROVIDER,MODEL`, and it serves what it does not know."""
    small = {"claude-3-5-haiku-20241022", "openai,gpt-4o-mini"}
    is_small = asked.model in small or (asked.model == "claude-opus-4-1" and not asked.hard)
    served = "gpt-4o-mini-2024-07-18" if is_small else "gpt-4o-2024-08-06"
    return Answer(served, served)


class MessagesAlone(FakeGateway):
    """A gateway that has nothing but /v1/messages."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/v1/messages":
            return await Response(status_code=404)(scope, receive, send)
        return await super().__call__(scope, receive, send)


def test_claude_code_router_is_pinned_by_what_the_probe_of_it_finds() -> None:
    port = free_port()
    gateway = MessagesAlone(claude_code_router)
    with serve_app(gateway) as upstream:
        shown = block("docs/recipes.md", "asgi-session-pin serve --upstream http://localhost:3456")
        with pasted(with_ports(shown, upstream, port, 3456), ROOT) as shell:
            read_until(shell, "gpt-4o-mini-2024-07-18: openai,gpt-4o-mini")
            wait_until_open(port)  # `serve` was begun first
            url = f"http://127.0.0.1:{port}"
            for status in ("miss", "hit"):
                asked = ask(url, "claude-opus-4-1", "/v1/messages", x_claude_code_session_id="one")
                assert asked.headers["x-session-pin-status"] == status
    assert gateway.served[-2:] == ["gpt-4o-mini-2024-07-18"] * 2


def test_the_query_of_what_pinning_is_worth_names_a_series_that_is_counted() -> None:
    shown = block("docs/operating.md", "sum by (pinned)")
    assert set(re.findall(r"session_pin_\w+", shown)) == {"session_pin_tokens_total"}
    assert shown.count("(") == shown.count(")")
