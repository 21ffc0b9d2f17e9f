"""What the operator is told, once."""

import logging
import sys

import pytest
from starlette.types import Send

from asgi_driver import SESSION, Gateway, Header, call, respond
from asgi_session_pin import Config, Routing, SessionPinMiddleware, Sessions
from asgi_session_pin.log import Warnings, logger
from asgi_session_pin.middleware import count_workers
from behaviour_document import Section, case


def test_the_logger_leaves_handlers_and_levels_to_the_application() -> None:
    assert logger is logging.getLogger("asgi_session_pin")
    assert (logger.handlers, logger.level, logger.propagate) == ([], logging.NOTSET, True)


def test_warnings_are_given_once_for_each_subject_and_bounded_in_number(caplog: pytest.LogCaptureFixture) -> None:
    warn = Warnings()
    for number in range(200):
        for _ in range(2):
            warn.once(number, "the name %r", f"name {number}")
    assert len(caplog.records) == len(set(caplog.messages)) == 100
    Warnings().once(0, "the name %r", "name 0")
    assert len(caplog.records) == 101, "each middleware has its own"


def test_a_name_from_outside_is_escaped_and_cut(caplog: pytest.LogCaptureFixture) -> None:
    Warnings().once("evil", "the name %r", "evil\nline" + "x" * 1000)
    assert "evil\\nline" in caplog.messages[0]
    assert len(caplog.messages[0]) < 500


LITELLM: Header = (b"x-litellm-call-id", b"1")


async def ask_litellm(answered: str, *headers: Header, config: Config | None = None) -> None:
    async def litellm(send: Send, model: str) -> None:
        body = b'{"model":"%s"}' % answered.encode()
        await respond(send, body, headers=[(b"content-type", b"application/json"), *headers])

    app = SessionPinMiddleware(Gateway("x", "x", answer=litellm), config=config)
    for session in (b"1", b"2"):
        assert (await call(app, {"model": "auto"}, (b"x-session-id", session))).pin_status == "miss"


@case(Section.RESPONSE, "LiteLLM names what was asked for", "that is pinned, which is harmless; one warning in the log")
async def test_litellm_that_answers_under_the_name_asked_for_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    await ask_litellm("auto", LITELLM)
    assert caplog.text.count("LiteLLM hides the model that it chose") == 1


def test_failures_are_told_with_their_traceback_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    warn = Warnings(lambda: now)

    def fail() -> None:
        for what in ("the store failed", "a listener failed"):
            try:
                raise OSError(what)
            except OSError:
                warn.failed(what)

    fail()
    fail()
    assert caplog.messages == ["the store failed", "a listener failed"]
    assert "OSError: a listener failed" in caplog.text
    now += 59
    fail()
    assert len(caplog.messages) == 2
    now += 1
    fail()
    assert len(caplog.messages) == 4


async def test_litellm_with_its_own_source_or_another_name_is_fine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = Config.load({"decisions": {"sources": ["header:x-litellm-model-name", "body:model"]}})
    await ask_litellm("auto", LITELLM, config=own)
    await ask_litellm("gpt-4o", LITELLM)
    await ask_litellm("auto")
    assert caplog.messages == []


@pytest.mark.parametrize(("router_models", "warnings"), [((), 1), (("auto", "smart"), 0)])
async def test_a_pin_over_another_model_that_the_client_named_is_warned_of(
    router_models: tuple[str, ...], warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(sessions=Sessions(pin_per="session"), routing=Routing(router_models=router_models))
    app = SessionPinMiddleware(Gateway("a"), config=config)
    await call(app, {"model": "auto"}, SESSION)
    await call(app, {"model": "a"}, SESSION)
    await call(app, {"n": 1}, SESSION)
    assert caplog.messages == []
    for _ in range(2):
        await call(app, {"model": "smart"}, SESSION)
    assert caplog.text.count("replaces the model 'smart'") == warnings


@pytest.mark.parametrize(
    ("command", "environment", "workers"),
    [
        ([], "", 1),
        (["python"], "4", 4),
        (["python"], "many", 1),
        (["/usr/bin/uvicorn", "app:app", "--workers", "4"], "", 4),
        (["gunicorn", "-w", "3", "app:app"], "", 3),
        (["gunicorn", "--workers=3", "app:app"], "", 3),
        (["gunicorn", "-w3", "app:app"], "", 3),
        (["/venv/site-packages/uvicorn/__main__.py", "app:app", "--workers", "4"], "", 4),
        (["/srv/__main__.py", "--workers", "4"], "", 1),
        (["uvicorn", "app-w3:app"], "", 1),
        (["uvicorn", "app:app", "--workers"], "", 1),
        (["uvicorn", "app:app", "--workers", "x"], "", 1),
        (["other", "--workers", "4"], "", 1),
        (["uvicorn", "app:app"], "0", 1),
    ],
)
def test_workers_are_counted_where_they_can_be_seen(command: list[str], environment: str, workers: int) -> None:
    assert count_workers(command, environment) == workers


def test_several_workers_on_memory_are_warned_of_at_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["uvicorn", "app:app", "--workers", "2"])
    SessionPinMiddleware(Gateway())
    assert "several workers" in caplog.text
    monkeypatch.setattr(sys, "argv", ["uvicorn", "app:app"])
    caplog.clear()
    SessionPinMiddleware(Gateway())
    assert caplog.messages == []
