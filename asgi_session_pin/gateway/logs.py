"""What `asgi-session-pin serve` logs: its own lines and uvicorn's in one format, and a line for each request."""

import json
import logging
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..log import MAX_SHOWN
from ..terminal import Style, styled, wrapped
from .forwarding import target

access_logger = logging.getLogger("asgi_session_pin.access")


@dataclass(frozen=True)
class Logs:
    """What is logged: from which *level* on, whether as JSON objects, and whether requests are, too."""

    level: str = "info"
    as_json: bool = False
    access: bool = False


def set_up_logging(logs: Logs) -> None:
    """Log to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if logs.as_json else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logs.level.upper())
    access_logger.setLevel(logging.INFO)  # who asks for it gets it at any level


def quieten_uvicorn() -> None:
    """Leave out what uvicorn says of its process, but at DEBUG, and of websockets, whose query may hold a key.

    To be called when uvicorn has its configuration, which sets levels.
    """
    log = logging.getLogger("uvicorn.error")
    is_debugged = log.level == logging.DEBUG
    log.setLevel(logging.INFO if is_debugged else max(log.level, logging.WARNING))
    log.addFilter(lambda record: not str(record.msg).startswith(('%s - "WebSocket ', "connection ")))


class TextFormatter(logging.Formatter):
    """Makes a line for people of a record: level, logger, message. At a terminal it is wrapped, and trouble is red."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s: %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or the lines of an exception with it."""
        text = super().format(record)
        if "\n" in text:
            return text
        line = wrapped(text, "    ", sys.stderr)
        return styled(line, Style.BAD, sys.stderr) if record.levelno >= logging.WARNING else line


class JsonFormatter(logging.Formatter):
    """Makes one line of JSON of a record, with more `members`, if it has some."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().strip(),
            **getattr(record, "members", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class AccessLog:
    """Logs each request to *app* when it is over: who asked for what, the answer's status, and for how long it went.

    Of what the client sent there are the method and the path, but no query, no header and no session.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on (ASGI)."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        status: int | None = None
        pin: str | None = None

        async def watch(message: Message) -> None:
            nonlocal status, pin
            if status is None:
                status = _status(message)
                pin = _pin_status(message)
            await send(message)

        began = time.monotonic()
        try:
            return await self._app(scope, receive, watch)
        finally:
            _log(scope, status, pin, time.monotonic() - began)


_STATUSES = {"websocket.accept": 101, "websocket.close": 403}


def _status(message: Message) -> int | None:
    return message.get("status") or _STATUSES.get(message["type"])


def _pin_status(message: Message) -> str | None:
    headers: dict[bytes, bytes] = dict(message.get("headers", ()))
    status = headers.get(b"x-session-pin-status")
    return None if status is None else status.decode("latin-1")


def _log(scope: Scope, status: int | None, pin: str | None, seconds: float) -> None:
    client = scope["client"][0] if scope.get("client") else None
    method = scope.get("method", "WEBSOCKET")
    path = target({**scope, "query_string": b""}, b"").decode("latin-1")[:MAX_SHOWN]
    seconds = round(seconds, 3)
    request = {"client": client, "method": method, "path": path, "status": status, "pin": pin, "seconds": seconds}
    told = (client or "-", method, path, status or "-", pin or "-", seconds)
    access_logger.info('%s "%s %s" %s %s %s s', *told, extra={"members": request})
