"""Parallel first requests of a session: one decides, the others wait for it."""

import asyncio
import contextlib
import json
import random
import time
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from asgi_driver import (
    CHAT,
    DECISION,
    JSON_TYPE,
    SESSION,
    SSE_TYPE,
    Answer,
    Header,
    answer_json,
    asked_model,
    body_messages,
    call,
    http_scope,
    read_body,
    receive_from,
    respond,
    until,
)
from asgi_session_pin import (
    Config,
    Limits,
    MemoryStore,
    Pin,
    PinEvent,
    Routing,
    SessionPinMiddleware,
    get_session_pin,
)
from asgi_session_pin.pins.turns import MAX_WAITING, Turn, Turns
from behaviour_document import Section, case

AUTO = {"model": "auto"}


class Steps:
    """A gateway whose routed answers each wait until they are let go, and are what they are told to be."""

    def __init__(self, *models: str) -> None:
        self.models = list(models)
        self.asked: list[Any] = []
        self.gates: list[asyncio.Event] = []
        self.answers: dict[int, Any] = {}  # by number of the routed request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        self.asked.append(asked)
        if asked != "auto":
            return await answer_json(send, asked)
        number = len(self.gates)
        self.gates.append(asyncio.Event())
        await self.gates[number].wait()
        answer = self.answers.get(number)
        await (answer_json(send, self.models.pop(0)) if answer is None else answer(send))
        return None


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def start(app: Any, count: int, *headers: Header, path: str = CHAT) -> list[asyncio.Task[Answer]]:
    return [asyncio.create_task(call(app, AUTO, *(headers or (SESSION,)), path=path)) for _ in range(count)]


def told(answers: list[Answer]) -> list[tuple[str | None, Any]]:
    return [(answer.pin_status, answer.json["model"]) for answer in answers]


@case(
    Section.PARALLEL,
    "they ask for the same model in the same session",
    "one is routed (`miss`), the others wait for its decision (`wait`)",
)
async def test_parallel_first_requests_wait_for_one_decision() -> None:
    gateway = Steps("a", "b")
    events: list[PinEvent] = []
    app = SessionPinMiddleware(gateway, listeners=[events.append])
    tasks = start(app, 5)
    await settle()
    assert gateway.asked == ["auto"], "one went to the router"
    await asyncio.sleep(0.02)
    gateway.gates[0].set()
    answers = await asyncio.gather(*tasks)
    assert told(answers) == [("miss", "a")] + [("wait", "a")] * 4
    assert answers[1].headers["x-session-pinned"] == "true"
    assert answers[1].headers["x-session-model"] == "a"
    assert gateway.asked == ["auto", "a", "a", "a", "a"]
    assert [event.status for event in events].count("wait") == 4
    assert sorted(event.waited_seconds > 0.01 for event in events) == [False, True, True, True, True]


async def test_other_sessions_and_other_models_do_not_wait() -> None:
    gateway = Steps("a", "b", "c")
    app = SessionPinMiddleware(gateway)
    tasks = [*start(app, 1), *start(app, 1, (b"x-session-id", b"2"))]
    tasks.append(asyncio.create_task(call(app, {"model": "small"}, SESSION)))
    await settle()
    assert gateway.asked == ["auto", "auto", "small"]
    for gate in gateway.gates:
        gate.set()
    assert [answer.pin_status for answer in await asyncio.gather(*tasks)] == ["miss"] * 3


@case(Section.PARALLEL, "the first one streams", "the others go on with its first event")
async def test_a_stream_releases_the_others_with_its_first_event() -> None:
    gateway = Steps()
    go_on = asyncio.Event()

    async def stream(send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [SSE_TYPE]})
        await send({"type": "http.response.body", "body": b'data: {"model":"a"}\n\n', "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body"})

    gateway.answers[0] = stream
    app = SessionPinMiddleware(gateway)
    first, second = start(app, 2)
    await settle()
    gateway.gates[0].set()
    assert (await second).pin_status == "wait"
    assert not first.done()
    go_on.set()
    assert (await first).pin_status == "miss"


@case(Section.PARALLEL, "a header or the app's router tells the model", "the others go on before any body")
@pytest.mark.parametrize("how", ["stated", "header"])
async def test_a_decision_that_is_known_at_the_start_releases_the_others_before_any_body(how: str) -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        if asked == "auto":
            pin = get_session_pin(scope)
            assert pin is not None
            if how == "stated":
                pin.record("a")
            headers = [JSON_TYPE] if how == "stated" else [JSON_TYPE, (b"x-vsr-selected-model", b"a")]
            await settle()
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await go_on.wait()
        await answer_json(send, "a") if asked != "auto" else await send({"type": "http.response.body", "body": b"{}"})

    first, second = start(SessionPinMiddleware(app), 2)
    assert (await second).pin_status == "wait"
    assert not first.done()
    go_on.set()
    await first


async def fail(send: Send) -> None:
    await respond(send, b"{}", status=503)


async def fail_with_200(send: Send) -> None:
    await respond(send, b'{"error":{"message":"out"}}')


async def fail_by_raising(send: Send) -> None:
    raise RuntimeError("out")


async def fail_by_returning(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [JSON_TYPE]})


@case(
    Section.PARALLEL,
    "the first one fails, or is cancelled",
    "the next one decides, at its last message and not later",
)
@pytest.mark.parametrize("failure", [fail, fail_with_200, fail_by_raising, fail_by_returning])
async def test_after_a_failure_the_next_one_decides(failure: Any) -> None:
    gateway = Steps("b", "c")
    gateway.answers[0] = failure
    app = SessionPinMiddleware(gateway)
    first, *others = start(app, 4)
    await settle()
    gateway.gates[0].set()
    await settle()
    assert gateway.asked == ["auto", "auto"], "one after the other"
    gateway.gates[1].set()
    assert told(await asyncio.gather(*others)) == [("miss", "b"), ("wait", "b"), ("wait", "b")]
    await asyncio.gather(first, return_exceptions=True)


async def test_after_a_failure_the_next_one_decides_at_the_last_message_not_later() -> None:
    gateway = Steps("b")
    in_background, go_on = asyncio.Event(), asyncio.Event()

    async def fail_and_go_on(send: Send) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        await settle()
        assert gateway.asked == ["auto"]
        await send({"type": "http.response.body", "body": b"}"})
        in_background.set()
        await go_on.wait()

    gateway.answers[0] = fail_and_go_on
    first, second = start(SessionPinMiddleware(gateway), 2)
    await settle()
    gateway.gates[0].set()
    await in_background.wait()
    await settle()
    gateway.gates[1].set()
    assert told([await second]) == [("miss", "b")]
    assert not first.done()
    go_on.set()
    assert (await first).start["status"] == 503


async def test_one_that_failed_and_asks_again_waits_for_the_next_one() -> None:
    gateway = Steps("b")
    gateway.answers[0] = fail
    app = SessionPinMiddleware(gateway)

    async def ask_twice() -> list[Answer]:
        return [await call(app, AUTO, SESSION) for _ in range(2)]

    first = asyncio.create_task(ask_twice())
    (other,) = start(app, 1)
    await settle()
    gateway.gates[0].set()
    await settle()
    assert gateway.asked == ["auto", "auto"]
    gateway.gates[1].set()
    assert [answer.pin_status for answer in await first] == ["miss", "wait"]
    assert (await other).pin_status == "miss"


async def test_after_a_cancellation_the_next_one_decides() -> None:
    gateway = Steps("b", "c")
    app = SessionPinMiddleware(gateway)
    first, second, third = start(app, 3)
    await settle()
    first.cancel()
    await settle()
    assert gateway.asked == ["auto", "auto"]
    gateway.gates[1].set()
    assert told([await second, await third]) == [("miss", "b"), ("wait", "b")]
    assert first.cancelled()


async def test_one_that_is_cancelled_while_it_waits_is_passed_over() -> None:
    gateway = Steps("b")
    gateway.answers[0] = fail
    app = SessionPinMiddleware(gateway)
    first, second, third = start(app, 3)
    await settle()
    second.cancel()
    await settle()
    gateway.gates[0].set()
    await settle()
    gateway.gates[1].set()
    assert told([await third]) == [("miss", "b")]
    assert (await first).start["status"] == 503


async def test_one_that_is_cancelled_just_as_it_gets_the_turn_passes_it_on() -> None:
    gateway = Steps("b")
    app = SessionPinMiddleware(gateway)
    first, second, third = start(app, 3)
    await settle()

    async def fail_and_cancel(send: Send) -> None:
        await respond(send, b"{}", status=503)
        second.cancel()

    gateway.answers[0] = fail_and_cancel
    gateway.gates[0].set()
    await settle()
    gateway.gates[1].set()
    assert told([await third]) == [("miss", "b")]
    assert second.cancelled()
    await first


async def test_one_that_is_cancelled_while_it_waits_misses_nothing() -> None:
    gateway = Steps("a")
    app = SessionPinMiddleware(gateway)
    first, second, third = start(app, 3)
    await settle()
    second.cancel()
    gateway.gates[0].set()
    assert told([await first, await third]) == [("miss", "a"), ("wait", "a")]
    assert second.cancelled()


async def test_one_that_fails_after_somebody_else_decided_has_no_turn_to_pass_on() -> None:
    gateway = Steps("b")
    gateway.answers[0] = fail
    app = SessionPinMiddleware(gateway, config=Config(routing=Routing(decision_wait_seconds=0.01)))
    first, second = start(app, 2)
    await until(lambda: len(gateway.gates) == 2)
    gateway.gates[1].set()
    assert told([await second]) == [("miss", "b")]
    gateway.gates[0].set()
    assert (await first).start["status"] == 503
    assert (await call(app, AUTO, SESSION)).pin_status == "hit"


@case(
    Section.PARALLEL,
    "its answer names no model",
    "all go on at once, and none waits in this session until there is a decision",
)
@pytest.mark.parametrize("content", [b"{}", b'{"model":"auto"}', b"text"])
async def test_where_an_answer_names_no_model_all_go_on_and_none_waits_again(content: bytes) -> None:
    gateway = Steps("b", "b", "b")

    async def unnamed(send: Send) -> None:
        await respond(send, content)

    gateway.answers = dict.fromkeys(range(3), unnamed)
    app = SessionPinMiddleware(gateway, config=Config(routing=Routing(router_models=("auto",))))
    tasks = start(app, 3)
    await settle()
    gateway.gates[0].set()
    await settle()
    assert gateway.asked == ["auto"] * 3, "at once"
    tasks += start(app, 2)
    await settle()
    assert gateway.asked == ["auto"] * 5
    for gate in gateway.gates:
        gate.set()
    answers = await asyncio.gather(*tasks)
    assert [answer.pin_status for answer in answers] == ["miss"] * 5
    assert (await call(app, AUTO, SESSION)).pin_status == "hit", "the later ones named a model"


@case(
    Section.PARALLEL,
    "it takes longer than `decision_wait_seconds`",
    "those that waited are routed too; nobody waits for it again; the first decision stays",
)
async def test_the_wait_ends_and_nobody_waits_for_that_one_again() -> None:
    gateway = Steps("late", "b", "c", "d")
    app = SessionPinMiddleware(gateway, config=Config(routing=Routing(decision_wait_seconds=0.2)))
    first, second = start(app, 2)
    await settle()
    assert gateway.asked == ["auto"]
    await until(lambda: len(gateway.asked) == 2)  # the second one waited long enough
    (third,) = start(app, 1)
    await settle()
    assert gateway.asked == ["auto"] * 3, "the third one did not wait at all"
    gateway.gates[1].set()
    answer = await second
    assert (answer.pin_status, answer.json["model"]) == ("miss", "late")
    gateway.gates[0].set()
    gateway.gates[2].set()
    await asyncio.gather(first, third)
    assert (await call(app, AUTO, SESSION)).json["model"] == "late", "the first decision stays"


async def test_the_limit_of_the_wait_is_for_all_turns_together() -> None:
    gateway = Steps("b", "c", "d")
    gateway.answers[0] = fail
    app = SessionPinMiddleware(gateway, config=Config(routing=Routing(decision_wait_seconds=0.05)))
    first, second, third = start(app, 3)
    await settle()
    await asyncio.sleep(0.03)
    gateway.gates[0].set()
    await asyncio.sleep(0.03)
    assert gateway.asked == ["auto"] * 3, "the third one waited through two turns"
    gateway.gates[1].set()
    gateway.gates[2].set()
    await asyncio.gather(first, second, third)


async def test_decision_wait_seconds_0_never_waits() -> None:
    gateway = Steps("a", "b", "c")
    app = SessionPinMiddleware(gateway, config=Config(routing=Routing(decision_wait_seconds=0)))
    tasks = start(app, 3)
    await settle()
    assert gateway.asked == ["auto"] * 3
    for gate in gateway.gates:
        gate.set()
    answers = await asyncio.gather(*tasks)
    assert [answer.pin_status for answer in answers] == ["miss"] * 3
    silent = SessionPinMiddleware(
        lambda scope, receive, send: respond(send, b"{}"), config=Config(routing=Routing(decision_wait_seconds=0))
    )
    assert (await call(silent, AUTO, SESSION)).pin_status == "miss"


@case(
    Section.PARALLEL,
    "the bodies of those that wait are over a quarter of `max_buffered_bytes`, or over all of it with other sessions'",
    "further requests are routed at once",
)
async def test_beyond_max_buffered_bytes_requests_do_not_wait() -> None:
    gateway = Steps("a", "b")
    size = len(json.dumps(AUTO))
    app = SessionPinMiddleware(gateway, config=Config(limits=Limits(max_buffered_bytes=8 * size)))
    tasks = start(app, 4)
    await settle()
    assert gateway.asked == ["auto"] * 2, "two wait, the fourth one has no room"
    for gate in gateway.gates:
        gate.set()
    answers = await asyncio.gather(*tasks)
    assert sorted(str(answer.pin_status) for answer in answers) == ["miss", "miss", "wait", "wait"]
    other = start(app, 3, (b"x-session-id", b"2"))
    gateway.models = ["c"]
    await settle()
    assert gateway.asked.count("auto") == 3, "the room is free again"
    gateway.gates[-1].set()
    await asyncio.gather(*other)


@case(Section.PARALLEL, "2,500 of one session wait, or 10,000 of all", "further requests are routed at once")
async def test_so_many_requests_wait_at_most() -> None:
    quarter = MAX_WAITING // 4
    turns = Turns(wait_seconds=60)
    keys = [b"%d" % n for n in range(5)]
    waiting = [
        asyncio.create_task(turns.wait(key, lambda: True)) for key in keys for _ in range(quarter + 1)
    ]  # in contexts of their own: not within the turn
    for key in keys:
        turns.take(key)
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == ([False] * quarter + [True]) * 4 + [True] * (quarter + 1)
    for key in keys:
        turns.unnamed(key)
    assert set(await asyncio.gather(*waiting)) == {None}
    one = asyncio.create_task(wait_elsewhere(turns, b"5"))
    turns.take(b"5")
    await asyncio.sleep(0)
    assert not one.done(), "there is room again"
    one.cancel()


@case(Section.PARALLEL, "`X-Session-Pin: reset`", "does not wait")
async def test_a_reset_does_not_wait() -> None:
    gateway = Steps("a", "b")
    app = SessionPinMiddleware(gateway)
    tasks = [*start(app, 1), *start(app, 1, SESSION, (b"x-session-pin", b"reset"))]
    await settle()
    assert gateway.asked == ["auto"] * 2
    for gate in gateway.gates:
        gate.set()
    assert [answer.pin_status for answer in await asyncio.gather(*tasks)] == ["miss", "miss"]


async def test_decisions_and_completions_wait_for_each_other() -> None:
    gateway = Steps("a", "b")
    app = SessionPinMiddleware(gateway)
    tasks = [*start(app, 1, path=DECISION), *start(app, 1), *start(app, 1, path=DECISION)]
    await settle()
    assert gateway.asked == ["auto"]
    gateway.gates[0].set()
    answers = await asyncio.gather(*tasks)
    assert told(answers) == [("miss", "a"), ("wait", "a"), ("wait", "a")]
    assert [answer.json.get("pinned") for answer in answers] == [False, None, True]


async def test_a_store_that_fails_leaves_the_decision_to_those_that_wait() -> None:
    class Failing(MemoryStore):
        async def add(self, key: bytes, pin: Pin) -> Pin:
            raise OSError("down")

    gateway = Steps("a", "b")
    tasks = start(SessionPinMiddleware(gateway, store=Failing()), 3)
    await settle()
    gateway.gates[0].set()
    assert told(await asyncio.gather(*tasks)) == [("miss", "a"), ("wait", "a"), ("wait", "a")]


@case(Section.PARALLEL, "the app calls itself in its own session", "the inner call does not wait for the outer one")
async def test_an_app_that_calls_itself_in_its_own_session_does_not_wait_for_itself() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        depth = int(dict(scope["headers"]).get(b"depth", b"0"))
        if depth < 2:
            inner = await asyncio.create_task(call(middleware, AUTO, SESSION, (b"depth", b"%d" % (depth + 1))))
            assert inner.start["status"] == 200
        await read_body(receive)
        await answer_json(send, f"depth-{depth}")

    middleware = SessionPinMiddleware(app, config=Config(routing=Routing(decision_wait_seconds=3600)))
    for _ in range(3):
        assert (await call(middleware, AUTO, SESSION)).start["status"] == 200


def test_an_instance_works_in_one_event_loop_after_the_other() -> None:
    gateway = Steps("a", "b", "c")
    app = SessionPinMiddleware(gateway)

    async def leave_in_the_middle() -> None:
        start(app, 3)
        await settle()

    async def all_at_once() -> list[Answer]:
        tasks = start(app, 3)
        await settle()
        gateway.gates[-1].set()
        return await asyncio.gather(*tasks)

    asyncio.run(leave_in_the_middle())
    assert told(asyncio.run(all_at_once())) == [("miss", "a"), ("wait", "a"), ("wait", "a")]


async def wait_elsewhere(turns: Turns, key: bytes = b"key") -> Any:
    return await turns.wait(key, lambda: True)


async def test_a_decision_at_the_very_end_of_the_wait_counts() -> None:
    turns = Turns(wait_seconds=0.01)
    waiting = asyncio.create_task(turns.wait(b"key", lambda: True))  # in a context of its own: not within the turn
    turn = turns.take(b"key")
    await asyncio.sleep(0)
    pin = Pin("a", 0.0)
    time.sleep(0.02)  # noqa: ASYNC251 (both are due in the same round of the loop)
    turns.chosen(b"key", pin)
    assert await waiting is pin
    assert turn is not None
    assert not turn.ran_out


async def test_a_cancellation_at_the_very_end_of_the_wait_counts() -> None:
    turns = Turns(wait_seconds=0.01)
    waiting = asyncio.create_task(turns.wait(b"key", lambda: True))
    turns.take(b"key")
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(waiting.cancel)
    time.sleep(0.02)  # noqa: ASYNC251
    with pytest.raises(asyncio.CancelledError):
        await waiting


# Races


async def race(seed: int) -> None:
    chance = random.Random(seed)
    routed: dict[bytes, int] = {}
    failed: dict[bytes, int] = {}
    served: dict[bytes, set[str]] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        session = dict(scope["headers"])[b"x-session-id"]
        asked = asked_model(await read_body(receive))
        await asyncio.sleep(chance.random() / 500)
        if asked == "auto":
            routed[session] = routed.get(session, 0) + 1
            try:
                await asyncio.sleep(chance.random() / 200)
                if chance.random() < 0.3:
                    raise RuntimeError("out")
                if chance.random() < 0.3:
                    failed[session] = failed.get(session, 0) + 1
                    return await respond(send, b"{}", status=500)
            except BaseException:
                failed[session] = failed.get(session, 0) + 1
                raise
        model = chance.choice("abcdef") if asked == "auto" else asked
        await answer_json(send, model)
        served.setdefault(session, set()).add(model)
        return None

    middleware = SessionPinMiddleware(app)
    tasks: list[asyncio.Task[Answer]] = []
    for n in range(200):
        tasks += start(middleware, 1, (b"x-session-id", b"%d" % (n % 20)))
        if chance.random() < 0.2:
            asyncio.get_running_loop().call_later(chance.random() / 100, tasks[-1].cancel)
        if chance.random() < 0.1:
            await asyncio.sleep(chance.random() / 500)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, Answer | RuntimeError | asyncio.CancelledError), outcome
    assert all(len(models) == 1 for models in served.values()), served
    for session, count in routed.items():
        assert count == failed.get(session, 0) + (session in served), (session, count)
    async with asyncio.timeout(3):  # no turn is left behind, for which a request would wait five seconds
        for n in range(20):
            with contextlib.suppress(RuntimeError):
                await call(middleware, AUTO, (b"x-session-id", b"%d" % n))


async def test_races_of_parallel_first_requests_end_with_one_model_for_each_session() -> None:
    tasks = asyncio.all_tasks()
    for seed in range(50):
        await race(seed)
    assert asyncio.all_tasks() == tasks


async def test_a_client_that_left_while_it_waited_is_the_apps_affair() -> None:
    gateway = Steps("a")
    app = SessionPinMiddleware(gateway)
    (first,) = start(app, 1)
    await settle()
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    waiting = asyncio.create_task(app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send))
    await settle()
    gateway.gates[0].set()
    await asyncio.gather(first, waiting)
    assert messages[0]["status"] == 200
    assert gateway.asked == ["auto", "a"]


def test_nobody_waits_for_whoever_had_the_turn_in_another_event_loop() -> None:
    turns = Turns(wait_seconds=5)

    async def take() -> Turn | None:
        return turns.take(b"key")

    assert asyncio.run(take()) is not None
    assert asyncio.run(take()) is not None
