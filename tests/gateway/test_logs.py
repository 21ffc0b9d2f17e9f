"""What `serve` logs."""

import io
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from asgi_driver import body_messages, http_scope, receive_from
from asgi_session_pin.gateway.logs import AccessLog, JsonFormatter, TextFormatter, quieten_uvicorn
from behaviour_document import Section, case


def app_that_sends(*messages: Message) -> Callable[[Scope, Receive, Send], Any]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


PINNED = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"x-session-model", b"big"), (b"x-session-pin-status", b"hit")],
}
END = {"type": "http.response.body"}
WEBSOCKET = {"type": "websocket", "path": "/a", "query_string": b"key=secret", "client": None}


@case(
    Section.GATEWAY,
    "`--access-log`",
    "a line for each request at its end: client, method, path, status, `X-Session-Pin-Status`, seconds; no query",
)
@pytest.mark.parametrize(
    ("scope", "messages", "told"),
    [
        ({}, [PINNED, END], '10.0.0.1 "POST /v1/chat/completions" 200 hit'),
        ({"client": None, "raw_path": b"/a%0Ab", "path": "/a\nb"}, [END], '- "POST /a%0Ab" - -'),
        ({"raw_path": b"http://me:secret@host/p"}, [{"type": "http.response.start", "status": 500}], "POST /p"),
        (WEBSOCKET, [{"type": "websocket.accept"}, {"type": "websocket.close"}], '- "WEBSOCKET /a" 101 -'),
        (WEBSOCKET, [{"type": "websocket.close"}], '- "WEBSOCKET /a" 403 -'),
        ({"raw_path": b"/" + b"x" * 1000}, [END], '"POST /' + "x" * 255 + '" - -'),
    ],
)
async def test_each_request_is_a_line_without_secrets(
    scope: Scope, messages: list[Message], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def send(message: Message) -> None:
        sent.append(message)

    sent: list[Message] = []
    caplog.set_level("INFO")
    base = http_scope((b"authorization", b"secret"), (b"x-session-id", b"secret"))
    base.update({"query_string": b"key=secret", "client": ("10.0.0.1", 1), **scope})
    asked = scope if "type" in scope else base
    await AccessLog(app_that_sends(*messages))(asked, receive_from(body_messages(b"secret")), send)
    assert sent == messages
    (record,) = caplog.records
    assert told in record.getMessage()
    assert record.getMessage().endswith(" s")
    assert "secret" not in JsonFormatter().format(record)


async def test_a_request_whose_app_fails_is_a_line_and_the_lifespan_is_none(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise OSError

    async def send(message: Message) -> None: ...

    caplog.set_level("INFO")
    for scope in ({"type": "lifespan"}, http_scope()):
        with pytest.raises(OSError, match=r"^$"):
            await AccessLog(app)(scope, receive_from([]), send)
    assert len(caplog.records) == 1


def test_a_line_of_json_has_all_of_a_record() -> None:
    try:
        raise ValueError("told")
    except ValueError:
        raised = sys.exc_info()
    record = logging.LogRecord("name", logging.WARNING, "file", 1, "told %s\n", ("ä\n\udc80",), raised)
    record.created, record.members = 0.5, {"status": 200}
    line = JsonFormatter().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert told.pop("exception").startswith("Traceback ")
    assert told == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "warning",
        "logger": "name",
        "message": "told ä\n\udc80",
        "status": 200,
    }


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record_of(level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord("asgi_session_pin.serve", level, "file", 1, message, None, None)


def test_at_a_terminal_lines_are_wrapped_and_trouble_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert TextFormatter().format(record_of(logging.INFO, "ready")) == "INFO: asgi_session_pin.serve: ready"
    told = TextFormatter().format(record_of(logging.WARNING, "words that go on"))
    assert told == "\033[31mWARNING: asgi_session_pin.serve: words\n    that go on\033[0m"
    assert TextFormatter().format(record_of(logging.ERROR, "two\nlines")).endswith(": two\nlines")


@pytest.mark.parametrize(("level", "shown"), [("DEBUG", ["info", "error"]), ("INFO", ["error"]), ("ERROR", ["error"])])
def test_of_its_process_uvicorn_says_something_at_debug_alone(
    level: str, shown: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("uvicorn.error")
    before = log.level, list(log.filters)
    log.setLevel(level)
    try:
        quieten_uvicorn()
        log.info("info")
        log.error("error")
        log.error('%s - "WebSocket %s" [accepted]', "client", "/?key=secret")
    finally:
        log.setLevel(before[0])
        log.filters[:] = before[1]
    assert [record.getMessage() for record in caplog.records] == shown
