"""The second call of the app: what it may not disturb, and what may disturb it."""

import asyncio
import contextlib
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send
from test_failover import AUTO, ERROR_EVENT, failing, pinned, statuses

from asgi_driver import (
    JSON_TYPE,
    SESSION,
    SSE_TYPE,
    Clock,
    Gateway,
    answer_json,
    answer_stream,
    asked_model,
    body_messages,
    call,
    http_scope,
    read_body,
    receive_from,
    respond,
    until,
)
from asgi_session_pin import Config, Failover, Lapsed, MemoryStore, Pin, SessionPinMiddleware, get_session_pin
from behaviour_document import Section, case
from servers import serve_app, wait_until
from virtual_time import VirtualLoop, run

EVENTS = "text/event-stream"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_session_pin.hold_timer.HOLD_SECONDS", 0.005)


async def pass_through(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    return response


# On a real server


@pytest.mark.parametrize("kind", ["json", "stream", "error in a stream", "exception"])
@pytest.mark.parametrize("where", ["alone", "inside", "outside"])
def test_on_a_real_server_a_routed_stream_comes_whole_and_all_background_work_is_done(
    kind: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    # uvicorn answers `http.disconnect` as soon as any response is whole, and Starlette's StreamingResponse listens.
    asked: list[str] = []
    done: list[str] = []
    is_out = False

    async def background(model: str) -> None:
        await asyncio.sleep(0.02)
        done.append(model)

    async def fail() -> AsyncIterator[bytes]:
        yield ERROR_EVENT
        await asyncio.sleep(0.005)
        yield b"data: [DONE]\n\n"

    async def serve(model: str) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b'data: {"model":"%s"}\n\n' % model.encode()
            await asyncio.sleep(0.005)

    async def chat(request: Request) -> Response:
        model = (await request.json())["model"]
        asked.append(model)
        if is_out and model == "a":
            if kind == "exception":
                raise RuntimeError("out")
            task = BackgroundTask(background, "a")
            if kind == "json":
                return JSONResponse({"error": {}}, 503, background=task)
            status = 503 if kind == "stream" else 200
            return StreamingResponse(fail(), status, media_type=EVENTS, background=task)
        model = ("b" if is_out else "a") if model == "auto" else model
        return StreamingResponse(serve(model), media_type=EVENTS, background=BackgroundTask(background, model))

    app: Any = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    if where == "inside":
        app = BaseHTTPMiddleware(app, pass_through)
    app = SessionPinMiddleware(app)
    if where == "outside":
        app = BaseHTTPMiddleware(app, pass_through)
    with serve_app(app) as url, httpx.Client(base_url=url, headers={"x-session-id": "s"}) as client:
        for _ in range(2):
            assert client.post("/v1/chat/completions", json=AUTO).status_code == 200
        wait_until(lambda: len(done) == 2)
        is_out = True
        asked.clear()
        done.clear()
        caplog.clear()
        answer = client.post("/v1/chat/completions", json=AUTO)
        assert answer.headers["x-session-pin-status"] == "reroute"
        assert answer.content == b'data: {"model":"b"}\n\n' * 3
    assert asked == ["a", "auto"]
    assert sorted(done) == (["b"] if kind == "exception" else ["a", "b"])
    assert [record for record in caplog.records if record.name == "uvicorn.error"] == []


# What runs around the first call


async def test_each_call_has_an_inner_time_limit_of_its_own() -> None:
    async def route(send: Send, model: str) -> None:
        await asyncio.Event().wait()

    gateway = Gateway("a", serve=failing(503))

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(0.02):
                await gateway(scope, receive, send)
        except TimeoutError:
            await respond(send, b"{}", status=504)

    app = SessionPinMiddleware(limited)
    gateway.route, gateway.serve = answer_json, answer_json
    await statuses(app, count=2)
    gateway.route, gateway.serve = route, failing(503)
    gateway.bodies.clear()
    answer = await call(app, AUTO, SESSION)
    assert (answer.start["status"], answer.pin_status) == (503, "hit")
    assert gateway.asked == ["a", "auto"]


async def test_an_inner_time_limit_that_breaks_the_routed_answer_off_comes_out() -> None:
    async def route(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [SSE_TYPE]})
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        await asyncio.Event().wait()

    gateway = Gateway("a")

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.timeout(0.02):
            await gateway(scope, receive, send)

    app = SessionPinMiddleware(limited)
    await statuses(app, count=2)
    gateway.route, gateway.serve = route, failing(503)
    with pytest.raises(TimeoutError):
        await call(app, AUTO, SESSION)
    assert gateway.asked[2:] == ["a", "auto"]


@case(Section.FAILURE, "an app that lets so many requests in at a time", "gets its second call when the first has left")
async def test_an_app_that_lets_one_request_in_at_a_time_gets_its_second_call() -> None:
    gateway = Gateway("a", "b")
    one = asyncio.Semaphore(1)

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        async with one:
            await gateway(scope, receive, send)

    app = SessionPinMiddleware(limited)
    await statuses(app, count=2)
    gateway.serve = failing(503)
    answers = await asyncio.gather(*(call(app, AUTO, SESSION) for _ in range(5)))
    assert [(answer.start["status"], answer.json["model"]) for answer in answers] == [(200, "b")] * 5


async def test_each_call_has_a_state_of_its_own_until_the_end() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        scope["state"]["connection"] = asked
        try:
            await (answer_json(send, "a") if asked == "auto" else failing(503)(send, asked))
        finally:
            seen.append(f"{asked} closes {scope['state']['connection']}")

    middleware = SessionPinMiddleware(app)
    await call(middleware, AUTO, SESSION)
    scope = http_scope(SESSION)
    scope["state"] = {}
    await call(middleware, AUTO, scope=scope)
    assert seen[1:] == ["a closes a", "auto closes auto"]
    assert scope["state"] == {"connection": "auto"}, "that of the answer which the client got"


async def test_where_the_first_answer_goes_out_its_scope_is_what_outer_middleware_sees() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        scope["route"] = scope["state"]["route"] = asked
        await (answer_json(send, "a") if asked == "auto" and not fails else failing(404)(send, asked))
        scope["late"] = asked

    fails = False
    middleware = SessionPinMiddleware(app)
    await call(middleware, AUTO, SESSION)
    fails = True
    scope = http_scope(SESSION)
    scope["state"] = {}
    answer = await call(middleware, AUTO, scope=scope)
    assert answer.pin_status == "hit"
    assert (scope["route"], scope["late"], scope["state"]) == ("a", "a", {"route": "a"})


async def test_a_dropped_answer_does_not_delay_the_first_one_by_its_background_work() -> None:
    sent = asyncio.Event()
    order: list[str] = []

    async def route(send: Send, model: str) -> None:
        await respond(send, b"{", b"}", status=503)
        await asyncio.wait_for(sent.wait(), 5)
        order.append("background work")

    async def send(message: Message) -> None:
        order.append(message["type"])
        sent.set()

    gateway = Gateway("a", serve=failing(404))
    app = SessionPinMiddleware(gateway)
    await call(app, AUTO, SESSION)
    gateway.route = route
    await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto","n":1}')), send)
    assert order == ["http.response.start", "http.response.body", "background work"]


async def test_what_a_dropped_answer_raises_does_not_come_out(quick: None, caplog: pytest.LogCaptureFixture) -> None:
    async def route(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await gone_out.wait()
        raise ValueError("nobody's")

    gateway = Gateway("a", serve=failing(404))
    app = SessionPinMiddleware(gateway)
    await call(app, AUTO, SESSION)
    gateway.route = route
    gone_out = asyncio.Event()
    got: list[Message] = []

    async def send(message: Message) -> None:
        got.append(message)
        if message["type"] == "http.response.body":
            gone_out.set()

    await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
    assert got[0]["status"] == 404
    assert caplog.messages == ["a pinned model failed, and so did its request as it came: ValueError"]


async def test_what_the_first_call_raises_is_nothing_to_the_second_one() -> None:
    large = b'{"error":"' + b"x" * 70_000 + b'"}'
    told: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if asked_model(await read_body(receive)) != "auto":
            raise ValueError("no such model")
        if is_routed_first:
            return await answer_json(send, "a")
        await respond(send, large, status=503)
        told.append((await receive())["type"])

    is_routed_first = True
    middleware = SessionPinMiddleware(app)
    await call(middleware, AUTO, SESSION)
    is_routed_first = False
    with pytest.raises(ValueError, match="no such model"):
        await call(middleware, AUTO, SESSION)
    assert told == ["http.disconnect"], "nobody waits for it any longer"


def test_a_failure_goes_out_once_where_its_time_is_up_while_the_pin_is_given_up() -> None:
    class SlowStore(MemoryStore):
        async def discard(self, key: bytes, pin: Pin) -> bool:
            await asyncio.sleep(0.09)
            return await super().discard(key, pin)

    async def fail(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await asyncio.sleep(0.95)
        await send({"type": "http.response.body", "body": b"x" * 70_000})

    async def work(loop: VirtualLoop) -> list[str]:
        gateway = Gateway("a", serve=fail)
        config = Config(failover=Failover(give_up_after=1))
        app = SessionPinMiddleware(gateway, config=config, store=SlowStore(), clock=loop.time)
        await call(app, AUTO, SESSION)
        got: list[str] = []

        async def send(message: Message) -> None:
            await asyncio.sleep(0.5)
            got.append(message["type"])

        await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
        return got

    assert run(work) == ["http.response.start", "http.response.body"]


# What is remembered


async def test_a_stated_choice_of_the_router_counts_the_failure_once() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        if asked != "auto":
            return await (failing(503)(send, asked) if is_out else answer_json(send, asked))
        pin = get_session_pin(scope)
        assert pin is not None
        model = "b" if is_out else "a"
        pin.record(model)
        return await answer_json(send, model)

    is_out = False
    middleware = SessionPinMiddleware(app, config=Config(failover=Failover(give_up_after=2)))
    await statuses(middleware, count=2)
    is_out = True
    answers = [await call(middleware, AUTO, SESSION) for _ in range(2)]
    assert [answer.pin_status for answer in answers] == ["reroute", "reroute"]
    assert [answer.headers.get("x-session-model") for answer in answers] == ["a", "b"], "given up at the second one"


async def test_a_routed_answer_that_is_an_error_with_status_200_is_no_reason_to_try_again_at_once() -> None:
    gateway = Gateway("a", serve=failing(404))
    app = SessionPinMiddleware(gateway)
    await call(app, AUTO, SESSION)
    gateway.route = failing(200, ERROR_EVENT, [SSE_TYPE])
    assert await statuses(app, count=3) == ["hit", "hit", "hit"]
    assert gateway.asked == ["auto", "a", "auto", "a", "a"]


async def test_a_new_pin_starts_without_the_failures_and_the_rest_of_the_last_one(clock: Clock) -> None:
    gateway = Gateway("a", "b", serve=failing(503))
    app = await pinned(gateway, config=Config(failover=Failover(give_up_after=2)))
    gateway.models = ["x"]
    assert await statuses(app) == ["reroute"]
    gateway.models = ["a"]
    await call(app, AUTO, SESSION, (b"x-session-pin", b"reset"))
    gateway.models = ["x"]
    assert (await call(app, AUTO, SESSION)).headers["x-session-model"] == "a", "the first failure of this pin"
    gateway = Gateway("a", serve=failing(404))
    app = SessionPinMiddleware(gateway)
    await call(app, AUTO, SESSION)
    gateway.route = failing(503)
    await call(app, AUTO, SESSION)
    gateway.route, gateway.models = answer_json, ["b"]
    await call(app, AUTO, SESSION, (b"x-session-pin", b"reset"))
    assert await statuses(app) == ["reroute"], "the name b was not tried yet"


# What is held for too long


async def test_a_stream_that_starts_slowly_is_still_looked_at(quick: None) -> None:
    async def slow(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [SSE_TYPE]})
        await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": first, "more_body": True})
        await send({"type": "http.response.body"})

    gateway = Gateway("a", "b", serve=failing(503))
    app = await pinned(gateway)
    assert await statuses(app, count=2) == ["reroute"] * 2
    gateway.serve, first = slow, b'data: {"model":"a"}\n\n'
    assert await statuses(app) == ["hit"]
    first = ERROR_EVENT
    assert await statuses(app, count=3) == ["hit"] * 3
    assert await statuses(app) == ["miss"], "three errors in a row, after a success, if a slow one"


@case(
    Section.FAILURE,
    "an error of over 64 KiB, or not whole within a second",
    "goes on as it is, and counts as a failure",
)
async def test_failures_that_take_too_long_or_are_too_large_give_the_pin_up_in_the_end(quick: None) -> None:
    async def slow(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": [JSON_TYPE]})
        await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"{}"})

    async def slow_event(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [SSE_TYPE]})
        await send({"type": "http.response.body", "body": ERROR_EVENT, "more_body": True})
        await asyncio.sleep(0.05)
        await send({"type": "http.response.body"})

    for serve in (slow, slow_event, failing(503, b"x" * 70_000)):
        gateway = Gateway("a", serve=serve)
        app = await pinned(gateway)
        assert await statuses(app, count=3) == ["hit"] * 3
        assert gateway.asked == ["a"] * 3
        assert await statuses(app) == ["miss"]


async def test_an_app_that_gives_up_a_send_behind_a_late_release_is_not_cancelled(quick: None) -> None:
    async def serve(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [SSE_TYPE]})
        await asyncio.sleep(0.05)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})

    async def send(message: Message) -> None:
        await asyncio.sleep(0.1)

    app = await pinned(Gateway("a", serve=serve))
    await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto","n":1}')), send)


@pytest.mark.parametrize("blocked", [True, False])
async def test_a_cancellation_comes_out_whatever_a_late_release_does(quick: None, blocked: bool) -> None:
    async def serve(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [SSE_TYPE]})
        await asyncio.Event().wait()

    async def send(message: Message) -> None:
        if blocked:
            await asyncio.Event().wait()
        raise OSError("client gone")

    app = await pinned(Gateway("a", serve=serve))
    tasks = asyncio.all_tasks()
    request = asyncio.ensure_future(
        app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto","n":1}')), send)
    )
    await asyncio.sleep(0.05)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert asyncio.all_tasks() == tasks


async def test_what_the_server_raises_in_a_late_release_comes_out(quick: None) -> None:
    async def serve(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [SSE_TYPE]})
        await asyncio.sleep(0.05)

    async def send(message: Message) -> None:
        raise OSError("client gone")

    app = await pinned(Gateway("a", serve=serve))
    with pytest.raises(OSError, match="client gone"):
        await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto","n":1}')), send)


@pytest.mark.parametrize("case", ["json", "stream", "slow stream", "new name", "routed", "same name"])
async def test_the_body_is_not_kept_while_the_answer_streams(quick: None, case: str) -> None:
    kept: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        if asked == "auto" and not routes:
            return await (answer_json if case == "json" else answer_stream)(send, "a")
        if case == "routed" and asked != "auto" and routes:
            return await failing(503)(send, "a")
        kind = JSON_TYPE if case == "json" else SSE_TYPE
        await send({"type": "http.response.start", "status": 200, "headers": [kind]})
        if case == "slow stream":
            await asyncio.sleep(0.05)
        for chunk in (b'data: {"model":"a"}\n\n', b"data: 1\n\n"):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        kept.append(tracemalloc.get_traced_memory()[0])
        return await send({"type": "http.response.body"})

    routes = False
    middleware = SessionPinMiddleware(app)
    asked = "a" if case == "same name" else "auto"
    for _ in range(1 if case == "new name" else 2):
        await call(middleware, {"model": asked}, SESSION)
    routes = True
    kept.clear()
    messages = body_messages(b'{"model":"%s","pad":"%s"}' % (asked.encode(), b"x" * 4_000_000))

    async def send(message: Message) -> None: ...

    tracemalloc.start()
    try:
        receive = receive_from(messages)
        before = tracemalloc.get_traced_memory()[0]
        messages.clear()
        await middleware(http_scope(SESSION), receive, send)
    finally:
        tracemalloc.stop()
    assert kept[0] - before < 1_000_000


# A store that takes its time


class HeldUpStore(MemoryStore):
    """Looks at once, and answers when it is let."""

    is_slow = True
    is_down = False

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[asyncio.Event] = []

    async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
        pin = await super().get(key)
        if self.is_slow:
            self.answers.append(asyncio.Event())
            await self.answers[-1].wait()
        if self.is_down:
            raise OSError("down")
        return pin


async def test_a_decision_that_is_taken_while_the_store_is_asked_counts() -> None:
    store, gateway = HeldUpStore(), Gateway("a", "b")
    middleware = SessionPinMiddleware(gateway, store=store)
    early = [asyncio.create_task(call(middleware, AUTO, SESSION)) for _ in range(2)]
    await until(lambda: len(store.answers) == 2)
    store.is_slow = False
    assert (await call(middleware, AUTO, SESSION)).json["model"] == "a"
    for answer in store.answers:
        answer.set()
    assert [answer.json["model"] for answer in await asyncio.gather(*early)] == ["a", "a"]
    assert gateway.models == ["b"], "the router ran once"


@pytest.mark.parametrize("what", ["is cancelled", "fails"])
async def test_the_second_look_for_a_decision_may_fail(what: str) -> None:
    store = HeldUpStore()
    middleware = SessionPinMiddleware(Gateway("a", "b"), store=store)
    early = asyncio.create_task(call(middleware, AUTO, SESSION))
    await until(lambda: len(store.answers) == 1)
    store.is_slow = False
    assert (await call(middleware, AUTO, SESSION)).json["model"] == "a"
    store.is_slow = True
    store.answers[0].set()
    await until(lambda: len(store.answers) == 2)
    if what == "fails":
        store.is_down = True
        store.answers[1].set()
        assert (await early).pin_status == "miss; reason=store-unavailable"
    else:
        early.cancel()
        with pytest.raises(asyncio.CancelledError):
            await early
    store.is_slow = store.is_down = False
    assert (await call(middleware, AUTO, SESSION)).pin_status == "hit", "nobody leads any longer"
