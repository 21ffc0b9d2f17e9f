"""What the log tells of requests that are not pinned: once what looks like a mistake, at DEBUG of each one."""

import asyncio
import logging
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_driver import CHAT, call, read_body, respond
from asgi_session_pin import SessionPinMiddleware
from asgi_session_pin.notices import MAX_STRAYS

ID = (b"x-session-id", b"a-session-of-mine")
OFF = (b"x-session-pin", b"off")
AUTO = {"model": "auto"}


def answering(*answers: bytes, status: int = 200) -> ASGIApp:
    """An app that gives these answers in turn, and the last one ever after."""
    left = list(answers)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await read_body(receive)
            await asyncio.sleep(0)  # others may come meanwhile
            await respond(send, left.pop(0) if len(left) > 1 else left[0], status=status)

    return app


class At:
    """The log at one level; `lines` are those since the last look, where none may hold an id."""

    def __init__(self, caplog: pytest.LogCaptureFixture, level: int) -> None:
        self._caplog = caplog
        caplog.set_level(level, logger="asgi_session_pin")

    def lines(self) -> list[str]:
        lines = [record.getMessage() for record in self._caplog.records]
        self._caplog.clear()
        assert "a-session-of-mine" not in str(lines)
        return lines


async def test_a_session_id_that_meets_no_endpoint_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    log = At(caplog, logging.INFO)
    app = SessionPinMiddleware(answering(b"{}"))
    for path in ("/v1/embeddings", "/api/chat"):
        await call(app, AUTO, path=path)
        await call(app, AUTO, ID, path="/openai/deployments/x/chat/completions")  # which is ignored on purpose
    assert log.lines() == []
    for path in ("/api/chat", "/v1/embeddings"):
        await call(app, AUTO, ID, path=path)
    path = "its path '/api/chat' is none of the endpoints; right for what asks no model to answer"
    assert log.lines() == [f"a request with a session id is not pinned: {path}"]


async def test_after_many_other_paths_nobody_looks_any_longer(caplog: pytest.LogCaptureFixture) -> None:
    log = At(caplog, logging.INFO)
    app = SessionPinMiddleware(answering(b"{}"))
    for _ in range(MAX_STRAYS):
        await call(app, AUTO, path="/other")
    await call(app, AUTO, ID, path="/other")
    assert log.lines() == []


@pytest.mark.parametrize("name", [b"X-SessionId", b"x_session_id", b"XSession-ID"])
async def test_a_mistyped_header_is_told_once(name: bytes, caplog: pytest.LogCaptureFixture) -> None:
    log = At(caplog, logging.INFO)
    app = SessionPinMiddleware(answering(b"{}"))
    for _ in range(2):
        await call(app, AUTO, (name, b"a-session-of-mine"))
    told = f"the header {name.decode()!r}, which is no source of session ids (header:x-session-id); is it mistyped?"
    assert log.lines() == [f"a request has {told}"]


async def test_a_header_in_capitals_is_not_mistyped(caplog: pytest.LogCaptureFixture) -> None:
    log = At(caplog, logging.INFO)
    app = SessionPinMiddleware(answering(b'{"model": "gpt-4o"}'))
    await call(app, AUTO, (b"X-Session-ID", b"a-session-of-mine"), (b"session", b"x"))
    assert log.lines() == []


async def test_an_answer_under_the_name_asked_for_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    log = At(caplog, logging.INFO)
    app = SessionPinMiddleware(answering(b'{"model": "auto"}'))
    for session in (b"1", b"2"):
        await call(app, AUTO, (b"x-session-id", session))
    [line] = log.lines()
    assert line.startswith(
        "an answer names the very model that was asked for, 'auto', so its pin changes nothing: right"
    )


@pytest.mark.parametrize("settings", [{}, {"routing": {"router_models": ["auto"]}}])
async def test_an_answer_that_names_a_snapshot_or_a_choice_is_no_echo(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    log = At(caplog, logging.INFO)
    app = SessionPinMiddleware(answering(b'{"model": "gpt-4o-2024-08-06"}'), config=settings)
    await call(app, {"model": "gpt-4o"}, ID)
    await call(app, AUTO, ID)
    assert log.lines() == []


async def test_at_debug_each_request_has_a_line_that_says_why(caplog: pytest.LogCaptureFixture) -> None:
    log = At(caplog, logging.DEBUG)
    app = SessionPinMiddleware(answering(b'{"model": "gpt-4o"}'))
    chat, path = "*/chat/completions", "'/v1/chat/completions'"
    cases: list[tuple[list[tuple[bytes, bytes]], str, str]] = [
        ([], CHAT, f"POST {path}: not pinned: it has no session id (header:x-session-id)"),
        ([], "/other", "POST '/other': not pinned: its path is none of the endpoints"),
        ([], "/engines/x", "POST '/engines/x': not pinned: its endpoint has kind: ignore"),
        ([(b"x-session-id", b"undefined")], CHAT, f"{chat}: not pinned: invalid-session-id"),
        (
            [ID, (b"x-session-pin", b"off")],
            CHAT,
            f"{chat}: not pinned: the client asked for that by X-Session-Pin: off",
        ),
        ([ID], CHAT, f"{chat}: routed; pinned to 'gpt-4o' from now on"),
        ([ID], CHAT, f"{chat}: pinned to 'gpt-4o'"),
    ]
    for headers, asked, line in cases:
        await call(app, AUTO, *headers, path=asked)
        assert log.lines() == [line]
    await call(app, AUTO, method="GET")
    assert log.lines() == []


NOT_PINNED = {
    b"{}": "the answer names no model where decisions.sources look",
    b'{"model": "a b"}': "what the answer names can't be sent as a model, or is a router's or a retired one",
    b'{"error": {"message": "a prompt"}}': "the answer is an error",
}


@pytest.mark.parametrize("answer", NOT_PINNED)
async def test_at_debug_it_is_told_why_an_answer_pinned_nothing(
    answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    log = At(caplog, logging.DEBUG)
    await call(SessionPinMiddleware(answering(answer)), AUTO, ID)
    assert log.lines()[-1] == f"*/chat/completions: routed; nothing is pinned: {NOT_PINNED[answer]}"


async def test_at_debug_a_failure_is_told_with_what_became_of_it(caplog: pytest.LogCaptureFixture) -> None:
    log = At(caplog, logging.DEBUG)
    await call(SessionPinMiddleware(answering(b"{}", status=500)), AUTO, ID)
    assert log.lines() == ["*/chat/completions: routed; nothing is pinned: the answer is no 2xx"]

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await call(SessionPinMiddleware(failing), AUTO, ID)
    assert log.lines() == ["*/chat/completions: routed; nothing is pinned: there was no answer"]


async def test_a_websocket_that_is_not_pinned_is_told_as_one(caplog: pytest.LogCaptureFixture) -> None:
    log = At(caplog, logging.DEBUG)

    async def nothing(*_: Any) -> Message:
        return {"type": "websocket.disconnect"}

    scope = {"type": "websocket", "path": "/other", "headers": []}
    await SessionPinMiddleware(answering(b"{}"))(scope, nothing, nothing)  # type: ignore[arg-type]
    assert log.lines() == ["websocket '/other': not pinned: its path is none of the endpoints"]


async def test_at_debug_a_request_that_waited_says_so(caplog: pytest.LogCaptureFixture) -> None:
    log = At(caplog, logging.DEBUG)
    app = SessionPinMiddleware(answering(b'{"model": "gpt-4o"}'))
    await asyncio.gather(call(app, AUTO, ID), call(app, AUTO, ID))
    waited = "*/chat/completions: pinned to 'gpt-4o', for which it waited until another request was routed"
    assert sorted(log.lines()) == [waited, "*/chat/completions: routed; pinned to 'gpt-4o' from now on"]


async def test_the_level_counts_that_the_log_has_when_the_app_starts(caplog: pytest.LogCaptureFixture) -> None:
    log = At(caplog, logging.INFO)
    seen: list[Any] = []
    app = SessionPinMiddleware(answering(b'{"model": "gpt-4o"}'), listeners=[seen.append])
    await call(app, AUTO)
    assert log.lines() == []
    caplog.set_level(logging.DEBUG, logger="asgi_session_pin")

    async def nothing(*_: Any) -> Message:
        return {"type": "lifespan.startup"}

    for _ in range(2):
        await app({"type": "lifespan"}, nothing, nothing)  # type: ignore[arg-type]
    await call(app, AUTO, ID)
    assert log.lines() == ["*/chat/completions: routed; pinned to 'gpt-4o' from now on"]
    assert [(event.status, event.unpinned) for event in seen] == [("miss", None)]
