"""What a pinned answer that is held back may not disturb: order, contexts, scopes, the app's own objects."""

import asyncio
import contextlib
import json
import weakref
from contextvars import ContextVar
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from test_failover import AUTO, failing, pinned, statuses

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
)
from asgi_session_pin import (
    Config,
    Failover,
    MemoryStore,
    Pin,
    PinEvent,
    Routing,
    SessionPinMiddleware,
    get_session_pin,
)
from behaviour_document import Section, case

ROLE = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
WORD = b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n'
WORD_OF_B = b'data: {"model":"b","choices":[{"delta":{"content":"x"}}]}\n\n'
ERROR = b'data: {"error":{"message":"overloaded","type":"server_error"}}\n\n'


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_session_pin.hold_timer.HOLD_SECONDS", 0.005)


async def start_stream(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [SSE_TYPE]})


def body_of(messages: list[Message]) -> bytes:
    return b"".join(bytes(message.get("body", b"")) for message in messages)


# The app's messages


async def test_messages_that_are_sent_at_the_same_time_all_arrive_in_order() -> None:
    async def serve(send: Send, model: str) -> None:
        await start_stream(send)
        await asyncio.gather(
            *(send({"type": "http.response.body", "body": WORD % n, "more_body": True}) for n in range(5))
        )
        await send({"type": "http.response.body", "body": b""})

    app = await pinned(Gateway("a", serve=serve))
    messages: list[Message] = []

    async def send(message: Message) -> None:
        await asyncio.sleep(0.001)
        messages.append(message)

    await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
    assert body_of(messages) == b"".join(WORD % n for n in range(5))
    assert messages[0]["type"] == "http.response.start"


async def test_a_send_that_the_app_gives_up_loses_no_message_that_was_held() -> None:
    async def serve(send: Send, model: str) -> None:
        await start_stream(send)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.005):
                await send({"type": "http.response.body", "body": WORD % 0, "more_body": True})
        for number in (1, 2):
            await send({"type": "http.response.body", "body": WORD % number, "more_body": number < 2})

    app = await pinned(Gateway("a", serve=serve))
    messages: list[Message] = []
    is_slow = True

    async def send(message: Message) -> None:
        nonlocal is_slow
        if is_slow:
            is_slow = False
            await asyncio.Event().wait()
        messages.append(message)

    await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
    assert [message["type"].rpartition(".")[2] for message in messages] == ["start", "body", "body", "body"]
    assert body_of(messages) == b"".join(WORD % n for n in range(3))


async def test_an_app_may_use_its_messages_and_buffers_again() -> None:
    async def serve(send: Send, model: str) -> None:
        message: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": [SSE_TYPE]}
        await send(message)
        message = {"type": "http.response.body", "more_body": True}
        for chunk in (ROLE, WORD % 1, WORD % 2):
            message["body"] = chunk
            await send(message)
        with memoryview(bytearray(WORD % 3)) as view:
            await send({"type": "http.response.body", "body": view})

    answer = await call(await pinned(Gateway("a", serve=serve)), AUTO, SESSION)
    assert answer.body == ROLE + b"".join(WORD % n for n in (1, 2, 3))


async def test_messages_of_other_types_pass_while_output_is_still_to_come(quick: None) -> None:
    async def serve(send: Send, model: str) -> None:
        await start_stream(send)
        await send({"type": "http.response.body", "body": ROLE, "more_body": True})
        await asyncio.sleep(0.05)
        await send({"type": "http.response.debug", "info": {}})
        await send({"type": "http.response.body", "body": WORD % 1})

    answer = await call(await pinned(Gateway("a", serve=serve)), AUTO, SESSION)
    assert [message["type"].rpartition(".")[2] for message in answer.messages] == ["start", "body", "debug", "body"]


# What runs around


async def test_what_is_held_too_long_goes_out_in_the_context_of_its_own_request(quick: None) -> None:
    request_id: ContextVar[str] = ContextVar("request_id")

    async def serve(send: Send, model: str) -> None:
        await start_stream(send)
        await asyncio.sleep(0.03)
        await send({"type": "http.response.body", "body": WORD % 1})

    app = await pinned(Gateway("a", serve=serve))

    async def correlated(scope: Scope, receive: Receive, send: Send) -> None:
        request_id.set(scope["query_string"].decode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-request-id", request_id.get().encode()))
            await send(message)

        await app(scope, receive, send_with_id)

    async def ask(name: str) -> str:
        scope = http_scope(SESSION)
        scope["query_string"] = name.encode()
        return (await call(correlated, AUTO, scope=scope)).headers["x-request-id"]

    assert await asyncio.gather(*map(ask, "abc")) == ["a", "b", "c"]


@pytest.mark.parametrize("asked", ["auto", "a"])
async def test_what_outer_middleware_puts_into_the_scope_stays(asked: str) -> None:
    app = await pinned(Gateway("a", serve=answer_json))

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["user"] = "known"
                scope["state"]["status"] = message["status"]
            await send(message)

        scope["user"] = "anonymous"
        await app(scope, receive, send_and_note)

    scope = http_scope(SESSION)
    await call(outer, {"model": asked}, scope=scope)
    assert (scope["user"], scope["state"]) == ("known", {"status": 200})


async def test_an_exception_whose_cause_is_itself_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    async def serve(send: Send, model: str) -> None:
        error = RuntimeError("out")
        raise error from error

    app = await pinned(Gateway("a", "b", serve=serve))
    assert await statuses(app) == ["reroute"]
    assert "the app raised RuntimeError\n" in caplog.text


# What counts


@pytest.mark.parametrize("body", [b'{"error":{"message":"overloaded"}}', b""])
async def test_a_json_failure_over_a_second_after_its_start_counts(quick: None, body: bytes) -> None:
    async def serve(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [JSON_TYPE]})
        await asyncio.sleep(0.03)
        await send({"type": "http.response.body", "body": body})

    app = await pinned(Gateway("a", serve=serve))
    assert await statuses(app, count=4) == ["hit", "hit", "hit", "miss"]


@pytest.mark.parametrize(
    "error", [TimeoutError("upstream"), ConnectionResetError("upstream"), RuntimeError("upstream")]
)
async def test_what_the_app_raises_in_a_stream_counts_whatever_its_class(error: Exception) -> None:
    async def serve(send: Send, model: str) -> None:
        await start_stream(send)
        await send({"type": "http.response.body", "body": WORD % 1, "more_body": True})
        raise error

    app = await pinned(Gateway("a", serve=serve), config=Config(failover=Failover(give_up_after=1)))
    with pytest.raises(type(error), match="upstream"):
        await call(app, AUTO, SESSION)
    assert await statuses(app) == ["miss"]


async def test_what_the_servers_send_raises_is_the_clients_leaving() -> None:
    app = await pinned(Gateway("a", serve=answer_stream), config=Config(failover=Failover(give_up_after=1)))

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError("client gone")

    with pytest.raises(OSError, match="client gone"):
        await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
    assert await statuses(app) == ["hit"]


async def test_what_is_raised_behind_a_whole_stream_says_nothing_of_the_model() -> None:
    async def serve(send: Send, model: str) -> None:
        await answer_stream(send, model)
        raise RuntimeError("background work")

    app = await pinned(Gateway("a", serve=serve), config=Config(failover=Failover(give_up_after=1)))
    with pytest.raises(RuntimeError, match="background work"):
        await call(app, AUTO, SESSION)
    app.app.serve = answer_json  # type: ignore[attr-defined]
    assert await statuses(app) == ["hit"]


@pytest.mark.parametrize("chunk", [8, 1000])
async def test_a_late_error_is_seen_however_it_is_cut_and_whatever_comes_behind_it(chunk: int) -> None:
    stream = WORD % 1 + ERROR + b": ping\n\n" * 5 + b"data: [DONE]\n\n"

    async def serve(send: Send, model: str) -> None:
        await start_stream(send)
        for at in range(0, len(stream), chunk):
            await send({"type": "http.response.body", "body": stream[at : at + chunk], "more_body": True})
        await send({"type": "http.response.body"})

    app = await pinned(Gateway("a", serve=serve))
    assert await statuses(app, count=4) == ["hit", "hit", "hit", "miss"]


async def test_pieces_of_a_stream_that_are_large_or_buffers_are_looked_at_for_a_late_error_too() -> None:
    async def serve(send: Send, model: str) -> None:
        await start_stream(send)
        await send({"type": "http.response.body", "body": WORD % 1, "more_body": True})
        await send({"type": "http.response.body", "body": bytearray(b": x\n\n" * 10_000 + ERROR), "more_body": True})
        await send({"type": "http.response.body"})

    app = await pinned(Gateway("a", serve=serve))
    assert await statuses(app, count=4) == ["hit", "hit", "hit", "miss"]


@pytest.mark.parametrize("is_pinned", [True, False])
async def test_of_the_large_pieces_of_a_stream_no_more_is_kept_than_is_looked_at(is_pinned: bool) -> None:
    def kept() -> int:
        return sum(piece() is not None for piece in pieces)

    async def stream(send: Send, model: str) -> None:
        await start_stream(send)
        await send({"type": "http.response.body", "body": b'data: {"model":"a"}\n\n' + WORD % 0, "more_body": True})
        for _ in range(10):
            piece = memoryview(b"data: " + b" " * 100_000 + b"\n\n")
            pieces.append(weakref.ref(piece))
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            del piece
            most.append(kept())
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def send(message: Message) -> None:
        pass

    pieces: list[weakref.ref[memoryview]] = []
    most: list[int] = []
    gateway = Gateway("a", serve=stream)
    app = await pinned(gateway) if is_pinned else SessionPinMiddleware(Gateway("a", answer=stream))
    await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
    assert len(pieces) == 10
    assert max(most) <= 1


async def test_failures_that_come_in_bursts_give_the_pin_up_in_the_end(clock: Clock) -> None:
    gateway = Gateway("a", "b", serve=failing(503))
    app = await pinned(gateway)
    for _ in range(3):
        clock.now += 10
        assert await asyncio.gather(*(call(app, AUTO, SESSION) for _ in range(5)))
    gateway.serve = answer_json
    assert (await call(app, AUTO, SESSION)).json["model"] == "b"


async def test_a_gateways_own_fallback_under_a_pin_is_no_success_of_the_pinned_model() -> None:
    async def serve(send: Send, model: str) -> None:
        headers = [JSON_TYPE, (b"x-litellm-attempted-fallbacks", b"1")]
        await (respond(send, b'{"model":"b"}', headers=headers) if falls_back else failing(503)(send, model))

    falls_back = False
    gateway = Gateway("a", "b", serve=serve)
    app = await pinned(gateway)
    for answers_by_fallback in (False, False, True, False):
        falls_back = answers_by_fallback
        await call(app, AUTO, SESSION)
    gateway.serve = answer_json
    assert (await call(app, AUTO, SESSION)).json["model"] == "b", "three failures in a row"


async def test_a_router_that_does_not_heed_pins_is_told_of_after_three_sessions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    models = iter("abcdefgh")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        await respond(send, json.dumps({"model": next(models)}).encode())

    middleware = SessionPinMiddleware(app)
    for session in (b"1", b"2", b"3"):
        assert "does not heed" not in caplog.text
        for _ in range(2):
            await call(middleware, AUTO, (b"x-session-id", session))
    assert "the router does not heed the model that a request names" in caplog.text
    assert "get_session_pin(request).pinned" in caplog.text


async def test_a_pin_that_is_forgotten_in_a_long_stream_stays_so(clock: Clock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        if takes_long:
            assert await middleware.forget("session-1", model="auto")
            clock.now += 700
        await answer_stream(send, "a" if asked == "auto" else asked)

    takes_long = False
    middleware = SessionPinMiddleware(app)
    assert await statuses(middleware, count=2) == ["miss", "hit"]
    takes_long = True
    assert await statuses(middleware) == ["hit"]
    takes_long = False
    assert await statuses(middleware) == ["miss"]


@case(
    Section.FAILURE, "a second answer that turns out to be an error after its start", "goes on; the pin stays as it was"
)
async def test_a_routed_answer_that_fails_late_refuses_no_name(quick: None) -> None:
    refused = b'{"error":{"message":"no","code":"model_not_found"}}'

    async def route(send: Send, model: str) -> None:
        await start_stream(send)
        await asyncio.sleep(0.03)
        await send({"type": "http.response.body", "body": ERROR})

    gateway = Gateway("a", serve=failing(404, refused))
    app = await pinned(gateway)
    gateway.route = route
    assert await statuses(app) == ["reroute"]
    gateway.serve = answer_json
    assert await statuses(app) == ["hit"]


async def test_an_answer_without_a_body_is_no_failure_where_its_status_says_so() -> None:
    app = await pinned(Gateway("a", serve=failing(204, b"")))
    answer = await call(app, AUTO, SESSION)
    assert (answer.start["status"], answer.pin_status) == (204, "hit")


async def test_a_json_answer_that_is_whole_by_its_length_waits_for_nothing() -> None:
    content = b'{"model":"a"}'
    seen: list[int] = []

    async def serve(send: Send, model: str) -> None:
        headers = [JSON_TYPE, (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content, "more_body": True})
        seen.append(len(messages))
        await send({"type": "http.response.body"})

    app = await pinned(Gateway("a", serve=serve))
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
    assert seen == [2]


def test_one_event_loop_after_another_may_use_a_middleware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_session_pin.hold_timer.HOLD_SECONDS", 0.005)
    held = asyncio.Event()

    async def serve(send: Send, model: str) -> None:
        await start_stream(send)
        held.set()
        await asyncio.sleep(0.02 if seconds else 30)
        await send({"type": "http.response.body", "body": WORD % 1})

    async def make() -> ASGIApp:
        return await pinned(Gateway("a", serve=serve), config=Config(routing=Routing(decision_wait_seconds=1)))

    async def leave() -> None:
        task = asyncio.create_task(call(app, AUTO, SESSION))
        await held.wait()
        task.cancel()
        await asyncio.wait([task])

    seconds = 0
    app = asyncio.run(make())
    asyncio.run(leave())
    seconds = 1
    answer = asyncio.run(call(app, AUTO, SESSION))
    assert (answer.pin_status, answer.body) == ("hit", WORD % 1)


# What happens at the same moment


@pytest.mark.parametrize("rounds", range(6))
@pytest.mark.parametrize("raises", [True, False])
async def test_an_app_that_ends_just_when_the_hold_does_is_routed_for_or_raises(
    monkeypatch: pytest.MonkeyPatch, rounds: int, raises: bool
) -> None:
    monkeypatch.setattr("asgi_session_pin.hold_timer.HOLD_SECONDS", 0)

    async def serve(send: Send, model: str) -> None:
        await start_stream(send)
        for _ in range(rounds):
            await asyncio.sleep(0)
        if raises:
            raise RuntimeError("the provider broke off")

    gateway = Gateway("a", serve=serve)
    app = await pinned(gateway)
    with pytest.raises(RuntimeError) if raises and rounds > 2 else contextlib.nullcontext():
        answer = await call(app, AUTO, SESSION)
        assert answer.pin_status == ("hit" if rounds > 2 else "reroute")
    assert gateway.asked == ["a"] if rounds > 2 else ["a", "auto"]


@pytest.mark.parametrize("raises", [True, False])
async def test_what_comes_while_a_failure_that_was_let_go_is_counted_goes_out_behind_it(
    monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    monkeypatch.setattr("asgi_session_pin.hold_timer.HOLD_SECONDS", 0)
    counting, may_count = asyncio.Event(), asyncio.Event()

    class Store(MemoryStore):
        async def discard(self, key: bytes, pin: Pin) -> bool:
            counting.set()
            await may_count.wait()
            return await super().discard(key, pin)

    async def serve(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await counting.wait()
        asyncio.get_running_loop().call_soon(may_count.set)
        if raises:
            raise RuntimeError("the provider broke off")
        for _ in range(2):
            await send({"type": "http.response.body", "body": b"x" * 40_000, "more_body": True})
        await send({"type": "http.response.body", "body": b"end"})

    gateway = Gateway("a", serve=serve)
    app = await pinned(gateway, store=Store(), config=Config(failover=Failover(give_up_after=1)))
    if raises:
        with pytest.raises(RuntimeError):
            await call(app, AUTO, SESSION)
    else:
        answer = await call(app, AUTO, SESSION)
        assert (answer.start["status"], answer.body) == (503, b"x" * 80_000 + b"end")
    gateway.serve = answer_json
    assert await statuses(app) == ["miss"]


async def test_an_answer_that_breaks_off_is_routed_for_also_where_the_caller_handles_an_exception() -> None:
    async def serve(send: Send, model: str) -> None:
        await start_stream(send)

    app = await pinned(Gateway("a", serve=serve))
    try:
        raise ConnectionError("the first attempt of a middleware that tries again")
    except ConnectionError:
        assert await statuses(app) == ["reroute"]


async def test_a_failure_with_trailers_is_routed_too() -> None:
    async def serve(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"{}"})
        await send({"type": "http.response.trailers", "headers": [], "more_trailers": False})

    gateway = Gateway("a", serve=serve)
    app = await pinned(gateway)
    assert await statuses(app) == ["reroute"]
    gateway.route = failing(500)
    answer = await call(app, AUTO, SESSION)
    assert [message["type"].rpartition(".")[2] for message in answer.messages] == ["start", "body", "trailers"]


@pytest.mark.parametrize("listens", [True, False])
async def test_a_stream_without_output_is_no_end_of_failures_in_a_row(listens: bool) -> None:
    async def prelude(send: Send, model: str) -> None:
        await respond(send, ROLE, headers=[SSE_TYPE])

    gateway = Gateway("a", "b")
    app = await pinned(gateway, listeners=[lambda event: None] if listens else [])
    for serve in (failing(503), prelude, failing(503), failing(503)):
        gateway.serve = serve
        await call(app, AUTO, SESSION)
    gateway.serve = answer_json
    assert (await call(app, AUTO, SESSION)).headers["x-session-model"] == "b", "the third failure gave the pin up"


async def test_what_the_pinned_model_raised_is_told_also_where_the_second_answer_gives_no_output(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def raising(send: Send, model: str) -> None:
        raise RuntimeError("a secret")

    async def prelude(send: Send, model: str) -> None:
        await respond(send, ROLE, headers=[SSE_TYPE])

    gateway = Gateway("a", serve=raising)
    app = await pinned(gateway)
    gateway.route = prelude
    assert await statuses(app) == ["reroute"]
    assert "its request was routed; the app raised RuntimeError" in caplog.text


# An answer, and the pin of another one


async def test_an_answer_that_came_too_late_to_choose_counts_for_no_other_ones_pin() -> None:
    has_come, chosen = asyncio.Event(), asyncio.Event()
    events: list[PinEvent] = []

    async def route(send: Send, model: str) -> None:
        if model == "a":
            await has_come.wait()
            await answer_json(send, model)
            return chosen.set()
        has_come.set()
        await chosen.wait()
        return await respond(send, WORD_OF_B, ERROR, headers=[SSE_TYPE])

    gateway = Gateway("a", "b", route=route)
    config = Config(routing=Routing(decision_wait_seconds=0), failover=Failover(give_up_after=1))
    app = SessionPinMiddleware(gateway, config=config, listeners=[events.append])
    await asyncio.gather(call(app, AUTO, SESSION), call(app, {**AUTO, "stream": True}, SESSION))
    assert [event.changes for event in events] == [("made",), ()]
    assert await statuses(app) == ["hit"]
    assert gateway.asked[-1] == "a"


async def test_what_an_answer_is_called_that_came_too_late_to_choose_is_not_compared_with() -> None:
    names = {"group-a": "gpt-4o", "group-b": "claude-x"}
    has_come, chosen = asyncio.Event(), asyncio.Event()
    groups = ["group-a", "group-b"]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        pin = get_session_pin(scope)
        assert pin is not None
        if asked == "auto":
            asked = groups.pop(0)
            if asked == "group-a":
                await has_come.wait()
            else:
                has_come.set()
                await chosen.wait()
            pin.record(asked)
        await respond(send, json.dumps({"model": names[asked], "choices": [{"message": {"content": "x"}}]}).encode())
        chosen.set()

    events: list[PinEvent] = []
    config = Config(routing=Routing(decision_wait_seconds=0))
    middleware = SessionPinMiddleware(app, config=config, listeners=[events.append])
    await asyncio.gather(call(middleware, AUTO, SESSION), call(middleware, AUTO, SESSION))
    assert await statuses(middleware, count=2) == ["hit", "hit"]
    assert not any(event.drift for event in events)


async def test_a_choice_that_the_router_states_in_place_of_a_refused_name_doubts_that_once() -> None:
    calls = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        asked = asked_model(await read_body(receive))
        pin = get_session_pin(scope)
        assert pin is not None
        if asked != "auto":
            return await respond(send, b'{"error":{"message":"no"}}', status=418)
        calls += 1
        model = "a" if calls in (1, 3) else "b"
        pin.record(model)
        return await answer_json(send, model)

    middleware = SessionPinMiddleware(app)
    assert await statuses(middleware, count=2) == ["miss", "reroute"]
    other = (b"x-session-id", b"session-2")
    assert await statuses(middleware, other) == ["miss"]
    answer = await call(middleware, AUTO, other)
    assert (answer.pin_status, calls) == ("reroute", 4), "its pin on the doubted name was made, and tried"
