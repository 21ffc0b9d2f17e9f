"""The demo says what the middleware answered, and fails when a run does not behave."""

import re

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_driver import read_body, respond
from asgi_session_pin.cli import main
from asgi_session_pin.demo import run_demo

CLAUDE = "anthropic/claude-sonnet-4-20250514"
GPT = "openai/gpt-4o"


def test_the_demo_shows_both_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    output = capsys.readouterr().out
    first, second, rest = output.split("\n\n")
    assert re.findall(r"Step \d: .*… → (\S+)$", first, re.MULTILINE) == [CLAUDE, GPT, CLAUDE, GPT, CLAUDE]
    assert first.startswith(f"Run 1: WITHOUT Session Pinning\nStep 1: Design a REST API… → {CLAUDE}\n")
    assert first.endswith(f"✗ Models varied: {CLAUDE}, {GPT}")
    assert re.match(r"Run 2: WITH Session Pinning \(X-Session-Id: [0-9a-f]{8}-…\)\n", second)
    assert re.findall(r"Step \d: .*… → (\S+) \(pinned=(\w+)\)$", second, re.MULTILINE) == [
        (CLAUDE, "false"),
        *[(CLAUDE, "true")] * 4,
    ]
    assert second.endswith(f"✓ All 5 steps routed to {CLAUDE}")
    assert "asgi-session-pin serve --upstream" in rest
    assert max(map(len, output.splitlines())) <= 80


def always(*contents: bytes) -> ASGIApp:
    left = list(contents)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        await respond(send, left.pop(0) if len(left) > 1 else left[0])

    return app


def test_a_router_that_never_varies_is_unexpected(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(always(b'{"model":"same"}')) is False
    assert "Unexpected: without a session every step went to same" in capsys.readouterr().out


def test_a_run_that_is_not_pinned_is_unexpected(capsys: pytest.CaptureFixture[str]) -> None:
    varying = [b'{"model":"a"}', *[b'{"model":"b"}'] * 4]
    unnamed = [b'{"model":"none"}'] * 4 + [b'{"model":"c d"}', b'{"model":"none"}']
    assert run_demo(always(*varying, *unnamed)) is False
    assert "Unexpected: with a session the steps went to none, c d\n" in capsys.readouterr().out
