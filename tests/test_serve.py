"""The command `asgi-session-pin serve`."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from asgi_session_pin import SessionPinMiddleware
from asgi_session_pin.cli import main
from asgi_session_pin.serve import create_app, set_up_logging
from servers import free_port, serve_app, wait_until_open


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    port = free_port()
    command = [sys.executable, "-m", "asgi_session_pin", "serve", "--port", str(port), *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until_open(port)
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()


async def chat(request: Request) -> Response:
    model = (await request.json())["model"]
    return JSONResponse({"model": f"model-{time.monotonic()}" if model == "auto" else model})


async def slow(request: Request) -> Response:
    async def events() -> AsyncIterator[bytes]:
        for number in range(10):
            yield b"data: %d\n\n" % number
            await asyncio.sleep(0.1)

    return StreamingResponse(events(), media_type="text/event-stream")


async def swallow(request: Request) -> Response:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return JSONResponse({"size": size})


async def pour(request: Request) -> Response:
    async def events() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            yield b"data: " + b"x" * 1000 + b"\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


UPSTREAM = Starlette(
    routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/slow", slow),
        Route("/swallow", swallow, methods=["POST"]),
        Route("/pour", pour),
    ]
)


def test_it_pins_in_front_of_an_upstream_and_finishes_its_streams_when_it_is_stopped(tmp_path: Path) -> None:
    config = tmp_path / "session_pin.yaml"
    config.write_text("routing: {session_ttl_seconds: 60}")
    with serve_app(UPSTREAM) as upstream, serving("--upstream", upstream, "--config", str(config)) as (url, process):
        with httpx.Client(base_url=url, trust_env=False) as client:
            models = {
                client.post("/v1/chat/completions", json={"model": "auto"}, headers={"x-session-id": "s"}).json()[
                    "model"
                ]
                for _ in range(3)
            }
            assert len(models) == 1
            events = 0
            with client.stream("GET", "/slow") as response:
                for line in response.iter_lines():
                    if line:
                        events += 1
                    if events == 2:
                        process.send_signal(signal.SIGTERM)
            assert events == 10
        assert process.wait(10) in (0, -signal.SIGTERM)
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
        assert lines[0] == (
            f"asgi-session-pin: {url} -> {upstream}, 1 worker, pins in memory:// for 60 s after their last use"
        )
        assert [line for line in lines if "Traceback" in line] == []


def resident_megabytes(process: subprocess.Popen[str]) -> float:
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096 / 1e6


def test_large_bodies_and_long_streams_pass_with_flat_memory() -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(1024):
            most.append(resident_megabytes(process))
            yield b"x" * 65_536

    most: list[float] = []
    with (
        serve_app(UPSTREAM) as upstream,
        serving("--upstream", upstream) as (url, process),
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        client.post("/swallow", content=b"warm")
        before = resident_megabytes(process)
        headers = {"content-length": str(64 * 1024 * 1024)}
        assert client.post("/swallow", content=chunks(), headers=headers).json() == {"size": 64 * 1024 * 1024}
        size = 0
        with client.stream("GET", "/pour") as response:
            for chunk in response.iter_raw():
                size += len(chunk)
                most.append(resident_megabytes(process))
        assert size == 10_000 * 1008
        assert max(most) - before < 20


def test_several_workers_with_one_file_agree(tmp_path: Path) -> None:
    config = tmp_path / "session_pin.yaml"
    config.write_text(f"store: {{url: 'sqlite:///{tmp_path}/pins.db', timeout_seconds: 5}}")
    arguments = ["--config", str(config), "--workers", "2"]
    with serve_app(UPSTREAM) as upstream, serving("--upstream", upstream, *arguments) as (url, process):
        models = []
        for _ in range(20):  # each over a connection of its own, which any worker takes
            headers = {"x-session-id": "s", "connection": "close"}
            answer = httpx.post(
                f"{url}/v1/chat/completions", json={"model": "auto"}, headers=headers, trust_env=False, timeout=30
            )
            models.append(answer.json()["model"])
        assert len(set(models)) == 1
        process.terminate()
        process.wait(20)
        assert process.stderr is not None
        assert "warning" not in process.stderr.read()


def test_several_workers_on_memory_are_warned_of() -> None:
    with serve_app(UPSTREAM) as upstream, serving("--upstream", upstream, "--workers", "2") as (url, process):
        with httpx.Client(base_url=url, trust_env=False) as client:
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/-/session-pin/healthz").text == "ok\n":
                        break
                assert time.monotonic() < deadline
                time.sleep(0.05)
        process.terminate()
        process.wait(20)
        assert process.stderr is not None
        text = process.stderr.read()
        assert ", 2 workers, " in text
        assert text.count("warning: store.url is memory://") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the following arguments are required: --upstream"),
        (["--upstream", "localhost:1"], "argument --upstream: expected a URL such as http://localhost:4000"),
        (
            ["--upstream", "http://a", "--port", "0"],
            "argument --port: found '0', expected a whole number from 1 to",
        ),
        (
            ["--upstream", "http://a", "--port", "x"],
            "argument --port: found 'x', expected a whole number from 1 to",
        ),
        (["--upstream", "http://a", "--workers", "-1"], "argument --workers: "),
        (["--upstream", "http://a", "--log-level", "loud"], "argument --log-level: invalid choice: 'loud'"),
    ],
)
def test_wrong_arguments_are_one_clear_line_and_exit_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_configuration_that_cannot_be_used_ends_before_it_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("routing: {session_ttl_seconds: 0}")
    assert main(["serve", "--upstream", "http://127.0.0.1:9", "--config", str(config)]) == 1
    assert "routing.session_ttl_seconds: found 0" in capsys.readouterr().err


def test_several_workers_need_a_file_that_each_of_them_can_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("routing: {session_ttl_seconds: 5}"))
    writer.start()
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--upstream", "http://127.0.0.1:9", "--workers", "2", "--config", str(pipe)])
    writer.join(5)
    assert ended.value.code == 2
    assert "expected a regular file where there are several workers" in capsys.readouterr().err


def test_headers_of_the_upstream_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("debug")
    assert not logging.getLogger("httpcore.http11").isEnabledFor(logging.DEBUG)


def test_without_the_extra_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "asgi_session_pin.serve")
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--upstream", "http://127.0.0.1:9"])
    assert ended.value.code == 2
    assert "install asgi-session-pin[gateway]" in capsys.readouterr().err


def test_it_runs_uvicorn_with_an_app_for_each_worker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[dict[str, Any]] = []
    monkeypatch.setattr("uvicorn.run", lambda app, **options: ran.append({"app": app, **options}))
    for name in ("UPSTREAM", "CONFIG", "LOG_LEVEL"):
        monkeypatch.setenv(f"ASGI_SESSION_PIN_{name}", "")
    assert main(["serve", "--upstream", "http://127.0.0.1:9"]) == 0
    assert isinstance(ran[0]["app"], SessionPinMiddleware)
    assert "1 worker, " in (told := capsys.readouterr().err)
    assert "warning" not in told
    ran.clear()
    assert main(["serve", "--upstream", "http://127.0.0.1:9", "--workers", "3"]) == 0
    assert [ran[0][name] for name in ("app", "factory", "workers")] == ["asgi_session_pin.serve:create_app", True, 3]
    assert re.search("3 workers.*\n.*warning: store.url is memory://", capsys.readouterr().err)
    assert isinstance(create_app(), SessionPinMiddleware)
    assert os.environ["ASGI_SESSION_PIN_UPSTREAM"] == "http://127.0.0.1:9"
