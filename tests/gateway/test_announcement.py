"""What `serve` says first."""

import json
import logging
import socket
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette

from asgi_session_pin import Config
from asgi_session_pin.gateway import announcement
from asgi_session_pin.gateway.announcement import announce, does_answer
from asgi_session_pin.gateway.logs import JsonFormatter, Logs
from asgi_session_pin.gateway.worker import Service
from servers import free_port, serve_app


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")


def service(settings: object = None, upstream: str = "http://gateway:4000", **logs: bool) -> Service:
    return Service(upstream, Config.load(settings), Logs(**logs))  # type: ignore[arg-type]


def said(capsys: pytest.CaptureFixture[str], *, answers: bool = True, **settings: object) -> list[str]:
    announce(service(settings), answers, url="http://127.0.0.1:8080", workers=1, file=None)
    return capsys.readouterr().err.splitlines()


def test_defaults_are_said_to_be_defaults(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    lines = said(capsys)
    assert "  router    any model (routing.router_models names none)" in lines
    assert "  settings  the defaults (--config FILE)" in lines
    assert caplog.records == []
    assert max(map(len, lines)) <= 80


def test_settings_are_said_where_they_differ(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(
        capsys,
        routing={"session_ttl_seconds": 60.5, "session_ttl_sliding": False, "router_models": ["auto", "router/*"]},
        sessions={"sources": ["preset:coding-agents", "fingerprint"]},
        store={"url": "redis://ann:hunter2@host/0"},
        admin={"token": "hunter2-hunter2-hunter2"},
    )
    assert "hunter2" not in str(lines)
    assert lines[6] == "  page      http://127.0.0.1:8080/-/session-pin, for operators"
    assert lines[2:5] == [
        "  pins      redis://***@host/0 for 60.5 s after their decision",
        "  sessions  preset:coding-agents, fingerprint",
        "  router    auto, router/*",
    ]


def test_an_upstream_that_does_not_answer_is_warned_of(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    lines = said(capsys, answers=False)
    assert lines[1] == "  upstream  http://gateway:4000, which does not answer yet"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Is it started, and is --upstream right?" in caplog.text


def test_as_json_it_is_one_object(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    announce(service(as_json=True), True, url="http://127.0.0.1:8080", workers=2, file="a.yaml")
    told, warning = (json.loads(JsonFormatter().format(record)) for record in caplog.records)
    assert (told["upstream"], told["settings"]) == ("http://gateway:4000, which answers", "a.yaml")
    assert warning["message"].startswith("store.url is memory://")
    assert capsys.readouterr().err == ""


def test_above_info_there_are_only_warnings(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert said(capsys, answers=False) == []
    assert len(caplog.records) == 1


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_an_upstream_answers_whatever_it_says(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_app(Starlette()) as upstream:
        assert does_answer(service(upstream=upstream))
    assert not does_answer(service(upstream=f"http://127.0.0.1:{free_port()}"))
    assert not does_answer(service({"gateway": {"connect_timeout_seconds": 0.1}}, silent))
    monkeypatch.setattr(announcement, "_PATIENCE", 0.1)
    assert not does_answer(service({"gateway": {"connect_timeout_seconds": 1}}, silent))
