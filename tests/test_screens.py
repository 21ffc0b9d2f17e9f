"""What people see: each command in a terminal of 80 columns."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fake_gateways import FakeGateway, plain_router
from servers import free_port, serve_app

PATIENCE = 60
COLOURS = re.compile(r"\x1b\[\d+m")


def screen(*arguments: str, until: str | None = None, **environment: str) -> str:
    """Run a command in a terminal of 80 columns, and return what it shows; where it shows *until*, Ctrl+C ends it."""
    unset = ("COLUMNS", "NO_COLOR", "TERM")
    variables = {name: value for name, value in os.environ.items() if name not in unset}
    pid, terminal = pty.fork()
    if pid == 0:
        time.sleep(0.2)  # until the terminal has its size
        command = [sys.executable, "-m", "asgi_session_pin", *arguments]
        os.execve(sys.executable, command, {**variables, "TERM": "xterm", **environment})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown = b""
    deadline = time.monotonic() + PATIENCE
    try:
        while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                chunk = os.read(terminal, 65_536)
            except OSError:  # the program has ended
                return shown.decode().replace("\r\n", "\n").replace("^C", "")
            shown += chunk
            if until is not None and until.encode() in shown:
                os.write(terminal, b"\x03")
                until = None
        raise AssertionError(shown.decode())
    finally:
        os.close(terminal)
        os.kill(pid, signal.SIGTERM)  # where it did not end
        os.waitpid(pid, 0)


GOOD = """
routing: {router_models: [smart], session_ttl_seconds: 60}
decisions: {sources: ["header:x-litellm-model-name", "body:model"], aliases: {openai/gpt-4o-mini: mini}}
"""
BAD = """
routing: {session_ttl_second: 5, session_max_entries: 0}
sessions: {sources: ["header:x-session-id", "preset:codng-agents"]}
store: {url: "postgres://ann:hunter2@host"}
"""
REQUEST = (
    """curl http://localhost:8080/v1/chat/completions -H 'X-Session-Id: s-1' -d '{"model": "auto", "messages": []}'"""
)
ANSWER = "HTTP/1.1 200 OK\ncontent-type: application/json\nx-chosen-model: gpt-4o\n\n{}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the files that are named below."""
    for name, text in (("good.yaml", GOOD), ("bad.yaml", BAD), ("request.txt", REQUEST), ("answer.txt", ANSWER)):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def serve(upstream: str) -> str:
    port = str(free_port())
    return screen("serve", "--upstream", upstream, "--port", port, "--config", "good.yaml", until="serve: ready")


def pins() -> str:
    Path("shared.yaml").write_text("store: {url: 'sqlite:///pins.db'}")
    screen("check", "--connect", "shared.yaml")  # which makes the file
    return screen("pins", "--config", "shared.yaml")


SCREENS: dict[str, Callable[[str], str]] = {
    "demo": lambda upstream: screen("demo"),
    "check": lambda upstream: screen("check", "good.yaml"),
    "check a bad file": lambda upstream: screen("check", "bad.yaml"),
    "explain": lambda upstream: screen("explain", "request.txt", "answer.txt"),
    "probe": lambda upstream: screen("probe", "--upstream", upstream, "--model", "auto", "--verbose"),
    "probe nobody": lambda upstream: screen("probe", "--upstream", "http://127.0.0.1:9", "--model", "auto"),
    "serve": serve,
    "serve before nobody": lambda upstream: serve("http://127.0.0.1:9"),
    "pins": lambda upstream: pins(),
    "wrong arguments": lambda upstream: screen("serve", "--upstream", upstream, "--log-level", "loud"),
}


@pytest.mark.parametrize("name", SCREENS)
def test_a_terminal_of_80_columns_breaks_no_word_and_shows_colours(name: str, folder: Path) -> None:
    with serve_app(FakeGateway(plain_router)) as upstream:
        shown = SCREENS[name](upstream)
    lines = COLOURS.sub("", shown).splitlines()
    assert len(lines) > 1, shown
    assert [line for line in lines if len(line) > 80] == []
    assert "Traceback" not in shown
    assert COLOURS.search(shown) or name == "wrong arguments"
    assert len(COLOURS.findall(shown)) == 2 * shown.count("\x1b[0m"), "each colour ends"


@pytest.mark.parametrize("command", [["demo"], ["check", "good.yaml"], ["check", "bad.yaml"]])
def test_who_wants_no_colours_gets_none(command: list[str], folder: Path) -> None:
    assert "\x1b" not in screen(*command, NO_COLOR="1")


NEXT = {
    "demo": "asgi-session-pin serve --upstream http://localhost:4000",
    "check": "# Next: asgi-session-pin serve --config good.yaml --upstream URL",
    "check a bad file": "Next: mend the file and check it again.",
    "serve": "Next: send requests there in place of the upstream. Ctrl+C ends it.",
    "probe": "asgi-session-pin serve ",
    "pins": "Next: --drop KEY gives a pin up, --retire MODEL leads sessions off a model.",
}


@pytest.mark.parametrize("name", NEXT)
def test_a_command_ends_with_what_to_do_next(name: str, folder: Path) -> None:
    with serve_app(FakeGateway(plain_router)) as upstream:
        assert NEXT[name] in SCREENS[name](upstream)
