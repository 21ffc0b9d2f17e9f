"""The command line."""

import io
import runpy
import subprocess
import sys

import pytest

from asgi_session_pin import __version__
from asgi_session_pin.cli import main


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "asgi_session_pin", *arguments]
    return subprocess.run(command, capture_output=True, env=environment, check=False)


def test_wrong_arguments_are_one_clear_line_and_exit_2() -> None:
    for arguments in ([], ["dmeo"], ["demo", "--fast"]):
        finished = run(*arguments)
        assert finished.returncode == 2
        assert finished.stderr.decode().splitlines()[-1].startswith("asgi-session-pin: error: ")


def test_the_version_is_told() -> None:
    assert run("--version").stdout.decode().strip() == f"asgi-session-pin {__version__}"


def test_a_terminal_without_arrows_still_gets_the_demo() -> None:
    finished = run("demo", PYTHONIOENCODING="ascii")
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert b"? All 5 steps routed to" in finished.stdout


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    script = f"{sys.executable} -m asgi_session_pin demo | head -n 1"
    finished = subprocess.run(["sh", "-c", script], capture_output=True, check=False)
    assert (finished.stdout, finished.stderr) == (b"Run 1: WITHOUT Session Pinning\n", b"")


def test_an_output_that_is_no_terminal_gets_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "argv", ["asgi-session-pin", "demo"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("asgi_session_pin", run_name="__main__")
    assert ended.value.code == 0
    assert "✓ All 5 steps" in output.getvalue()


def test_a_broken_pipe_ends_quietly(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    def broken() -> bool:
        raise BrokenPipeError

    with open(f"{tmp_path}/out", "w") as output:
        monkeypatch.setattr("asgi_session_pin.cli.run_demo", broken)
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["demo"]) == 1
