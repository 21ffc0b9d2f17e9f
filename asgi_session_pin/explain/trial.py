"""A saved request through the real middleware, twice in its session: what it does is seen, not said once more."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from starlette.types import Message, Receive, Scope, Send

from ..config import Config
from ..events import PinEvent
from ..log import logger
from ..middleware import SessionPinMiddleware
from ..response.rules import RESPONSE_HEADERS, read_source
from ..stores import MemoryStore
from ..wire.headers import without
from .saved import Headers, SavedAnswer, SavedRequest


class Trial(NamedTuple):
    """What became of one request.

    - `event`: what a listener gets; None where the middleware had nothing to do with it.
    - `sent`: the body that the app got; None if it was not called.
    - `headers`: ours on the answer.
    - `told`: the notices and warnings of the log.
    """

    event: PinEvent | None
    sent: bytes | None
    headers: dict[str, str]
    told: list[str]


EXAMPLE = "the-chosen-model"  # what answers where no answer is given

SessionId = Callable[[Scope], str | None]


def try_twice(
    config: Config, request: SavedRequest, answer: SavedAnswer, session_id: SessionId | None = None
) -> tuple[Trial, Trial]:
    """Return what becomes of a request that is the first of its session, and of the same one sent again.

    Both are answered alike. The second one lacks `X-Session-Pin`, which asks for something once.
    """
    return asyncio.run(_try_twice(config, request, answer, session_id))


async def _try_twice(
    config: Config, request: SavedRequest, answer: SavedAnswer, session_id: SessionId | None
) -> tuple[Trial, Trial]:
    events: list[PinEvent] = []
    bodies: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        bodies.append(body)
        await send({"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)})
        await send({"type": "http.response.body", "body": answer.body, "more_body": False})

    with _listening() as told:
        store = MemoryStore()
        middleware = SessionPinMiddleware(
            app, config=config, store=store, session_id=session_id, listeners=[events.append]
        )
        trials = []
        for headers in (request.headers, without(request.headers, {b"x-session-pin"})):
            for gathered in (events, bodies, told):
                gathered.clear()
            answered = await _ask(middleware, request, headers)
            event = events[0] if events else None
            trials.append(Trial(event, bodies[-1] if bodies else None, answered, list(told)))
        await middleware.aclose()
    return trials[0], trials[1]


async def _ask(middleware: SessionPinMiddleware, request: SavedRequest, headers: Headers) -> dict[str, str]:
    messages = [{"type": "http.request", "body": request.body, "more_body": False}]
    answered: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        answered.append(message)

    scope = {"type": "http", "method": request.method, "path": request.path, "headers": list(headers)}
    await middleware(scope, receive, send)
    ours = [header for header in answered[0]["headers"] if header[0] in RESPONSE_HEADERS]
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in ours}


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    """Gather what the package's logger says, which nobody else hears meanwhile."""
    told: list[str] = []

    class Gathering(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    handler, level, propagates = Gathering(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield told
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


def example_answer(config: Config) -> SavedAnswer:
    """Return an answer that names a model wherever the configuration looks for one."""
    headers = [(b"content-type", b"application/json")]
    body: dict[str, Any] = {"choices": []}
    for source in config.decisions.sources:
        _, header, path = read_source(source)
        if header is not None:
            headers.append((header, EXAMPLE.encode()))
        else:
            named: Any = EXAMPLE
            for segment in reversed(path):
                named = [named] if segment.isdecimal() else {segment: named}
            body |= named
    return SavedAnswer(200, headers, json.dumps(body).encode())
