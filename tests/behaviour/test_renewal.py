"""Idle time is counted from the end of the last answer."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from asgi_driver import (
    JSON_TYPE,
    SESSION,
    SSE_TYPE,
    Clock,
    Header,
    asked_model,
    body_messages,
    call,
    http_scope,
    read_body,
    receive_from,
    respond,
)
from asgi_session_pin import Config, Lapsed, MemoryStore, Pin, Routing, SessionPinMiddleware
from behaviour_document import Section, case

TTL = 600.0
AUTO = {"model": "auto"}


class Slow:
    """Names `a`, however it is asked; an answer takes *seconds* before it starts, or between start and end."""

    def __init__(self, clock: Clock, content_type: Header) -> None:
        self.clock = clock
        self.content_type = content_type
        self.before = self.between = 0.0
        self.status = 200
        self.in_one = False
        self.asked: list[Any] = []
        self.middle = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(asked_model(await read_body(receive)))
        self.clock.now += self.before
        chunk = b'data: {"model":"a"}\n\n' if self.content_type == SSE_TYPE else b'{"model":"a"}'
        await send({"type": "http.response.start", "status": self.status, "headers": [self.content_type]})
        await send({"type": "http.response.body", "body": chunk, "more_body": not self.in_one})
        if self.in_one:
            return
        if self.between:
            self.clock.now += self.between
            await asyncio.sleep(0.02)
        await send({"type": "http.response.body", "body": b" ", "more_body": True})
        await send({"type": "http.response.body"})


@case(
    Section.PIN,
    "an answer that takes longer than a tenth of `session_ttl_seconds`",
    "the pin's time starts again at its end, when the app is done",
)
@pytest.mark.parametrize("asked", ["auto", "a"])
@pytest.mark.parametrize("content_type", [JSON_TYPE, SSE_TYPE, (b"content-type", b"application/x-ndjson")])
@pytest.mark.parametrize("seconds", [100, 700])
@pytest.mark.parametrize("hits_before", [0, 1])
async def test_an_answer_that_starts_late_renews_the_pin_at_its_end(
    clock: Clock, asked: str, content_type: Header, seconds: float, hits_before: int
) -> None:
    store = MemoryStore(ttl_seconds=TTL, timer=clock)
    app = Slow(clock, JSON_TYPE)
    middleware = SessionPinMiddleware(app, store=store)
    request = {"model": asked}
    for _ in range(1 + hits_before):
        await call(middleware, request, SESSION)
    app.content_type = content_type
    app.before = seconds
    await call(middleware, request, SESSION)
    app.before = 0
    clock.now += TTL - 1
    assert (await call(middleware, request, SESSION)).pin_status == "hit"


async def test_a_json_answer_that_starts_at_once_and_ends_late_renews_the_pin(clock: Clock) -> None:
    app = Slow(clock, JSON_TYPE)
    middleware = SessionPinMiddleware(app, store=MemoryStore(ttl_seconds=TTL, timer=clock))
    for seconds in (0, 0, 700, 0):
        app.between = seconds
        answer = await call(middleware, AUTO, SESSION)
    assert answer.pin_status == "hit"


async def test_a_stream_of_one_chunk_that_starts_late_renews_the_pin(clock: Clock) -> None:
    app = Slow(clock, SSE_TYPE)
    middleware = SessionPinMiddleware(app, store=MemoryStore(ttl_seconds=TTL, timer=clock))
    app.in_one = True
    for seconds in (0, 0, 100, 0):
        app.before = seconds
        await call(middleware, AUTO, SESSION)
    clock.now += TTL - 1
    assert (await call(middleware, AUTO, SESSION)).pin_status == "hit"


async def test_a_stream_that_takes_long_renews_the_pin_at_its_end(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The loop's own clock is not turned: a time to live of 0.1 s makes a stream of 20 ms a long one.
    store = MemoryStore(ttl_seconds=TTL, timer=clock)
    config = Config(routing=Routing(session_ttl_seconds=0.1))
    for status_before in ("miss", "hit"):
        app = Slow(clock, SSE_TYPE)
        middleware = SessionPinMiddleware(app, store=store, config=config)
        session = (b"x-session-id", status_before.encode())
        if status_before == "hit":
            await call(middleware, AUTO, session)
        app.between = TTL + 1
        assert (await call(middleware, AUTO, session)).pin_status == status_before
        app.between = 0
        assert (await call(middleware, AUTO, session)).pin_status == "hit"


async def test_a_pin_is_renewed_when_the_app_is_done(clock: Clock) -> None:
    renewed: list[int] = []

    class Watched(MemoryStore):
        async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
            renewed.append(len(messages))
            return await super().get(key)

    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    app = Slow(clock, JSON_TYPE)
    middleware = SessionPinMiddleware(app, store=Watched())
    await call(middleware, AUTO, SESSION)
    await call(middleware, AUTO, SESSION)
    renewed.clear()
    app.before = 61
    await middleware(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
    assert renewed == [0, 4]
    app.before = 59
    messages.clear()
    await middleware(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
    assert renewed == [0, 4, 0], "a tenth of the time to live is not over"


@pytest.mark.parametrize("reason", ["failure", "not sliding"])
async def test_a_failure_and_a_fixed_time_renew_nothing(clock: Clock, reason: str) -> None:
    sliding = reason == "failure"
    store = MemoryStore(ttl_seconds=TTL, sliding=sliding, timer=clock)
    app = Slow(clock, JSON_TYPE)
    config = Config(routing=Routing(session_ttl_sliding=sliding, session_ttl_seconds=TTL))
    middleware = SessionPinMiddleware(app, store=store, config=config)
    await call(middleware, AUTO, SESSION)
    await call(middleware, AUTO, SESSION)
    app.before = 400
    app.status = 409 if reason == "failure" else 200
    await call(middleware, AUTO, SESSION)
    app.before = 0
    clock.now += 300
    assert (await call(middleware, AUTO, SESSION)).pin_status == "miss"


async def test_a_pin_that_is_given_up_meanwhile_stays_so(clock: Clock) -> None:
    async def forget_and_answer(scope: Scope, receive: Receive, send: Send) -> None:
        if app.before:
            await middleware.forget("session-1", model="auto")
        await app(scope, receive, send)

    app = Slow(clock, JSON_TYPE)
    middleware = SessionPinMiddleware(forget_and_answer, store=MemoryStore(ttl_seconds=TTL, timer=clock))
    await call(middleware, AUTO, SESSION)
    await call(middleware, AUTO, SESSION)
    app.before = 100
    await call(middleware, AUTO, SESSION)
    app.before = 0
    assert (await call(middleware, AUTO, SESSION)).pin_status == "miss"


async def test_a_store_that_fails_at_the_end_does_not_hurt(clock: Clock) -> None:
    class Failing(MemoryStore):
        fails = False
        fails_next = False

        async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
            if self.fails:
                raise OSError("down")
            return await super().get(key)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        if store.fails_next:
            clock.now += 100
            store.fails = True
        await respond(send, b'{"model":"a"}')

    store = Failing()
    middleware = SessionPinMiddleware(app, store=store)
    await call(middleware, AUTO, SESSION)
    await call(middleware, AUTO, SESSION)
    store.fails_next = True
    answer = await call(middleware, AUTO, SESSION)
    assert (answer.pin_status, answer.body) == ("hit", b'{"model":"a"}')


@case(
    Section.PIN,
    "a pin that another process gives up during an answer that takes longer than `session_ttl_seconds`",
    "stays given up",
)
@pytest.mark.parametrize("seconds", [100, 700])
async def test_a_pin_that_another_process_gives_up_meanwhile_stays_so(clock: Clock, seconds: float) -> None:
    store = MemoryStore(ttl_seconds=TTL, timer=clock)
    app = Slow(clock, JSON_TYPE)
    middleware, other = (SessionPinMiddleware(app, store=store) for _ in range(2))
    await call(middleware, AUTO, SESSION)
    app.in_one = True

    async def forget_and_answer(scope: Scope, receive: Receive, send: Send) -> None:
        assert await other.forget("session-1", model="auto")
        await app(scope, receive, send)

    app.before = seconds
    forgetting = SessionPinMiddleware(forget_and_answer, store=store)
    assert (await call(forgetting, AUTO, SESSION)).pin_status == "hit"
    app.before = 0
    assert (await call(middleware, AUTO, SESSION)).pin_status == "miss"


async def test_a_pin_that_an_answer_outlasts_by_all_the_time_that_it_is_kept_comes_back(clock: Clock) -> None:
    app = Slow(clock, JSON_TYPE)
    app.in_one = True
    middleware = SessionPinMiddleware(app, store=MemoryStore(ttl_seconds=TTL, tool_loop_seconds=10, timer=clock))
    await call(middleware, AUTO, SESSION)
    app.before = TTL + 3600
    assert (await call(middleware, AUTO, SESSION)).pin_status == "hit"
    app.before = 0
    assert (await call(middleware, AUTO, SESSION)).pin_status == "hit"
