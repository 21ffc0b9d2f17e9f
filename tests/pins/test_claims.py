"""Parallel first requests in several processes that share a store: one decides, the others look for its decision."""

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from asgi_driver import (
    DECISION,
    SESSION,
    Answer,
    Clock,
    Header,
    answer_json,
    asked_model,
    call,
    read_body,
    respond,
    until,
)
from asgi_session_pin import Config, Lapsed, Limits, MemoryStore, Pin, PinEvent, Routing, SessionPinMiddleware, Store
from behaviour_document import Section, case

AUTO = {"model": "auto"}
RESET: Header = (b"x-session-pin", b"reset")


class SharedStore(MemoryStore):
    """What processes share: pins, and claims that end by the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: dict[bytes, tuple[bytes, float]] = {}
        self.given = 0
        self.clock = Clock()
        self.calls: list[str] = []

    async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
        self.calls.append("get")
        await asyncio.sleep(0)
        return await super().get(key)

    async def claim(self, key: bytes, token: bytes, seconds: float) -> bool:
        self.calls.append("claim")
        await asyncio.sleep(0)
        _, ends = self.claims.get(key, (b"", 0.0))
        if ends > self.clock.now:
            return self.claims[key][0] == token
        self.given += 1
        self.claims[key] = token, self.clock.now + seconds
        return True

    async def release(self, key: bytes, token: bytes) -> None:
        self.calls.append("release")
        await asyncio.sleep(0)
        if self.claims.get(key, (None, 0))[0] == token:
            del self.claims[key]


class Router:
    """The gateway of all processes: each routed answer waits until it is let go, and names the next model."""

    def __init__(self, *models: str) -> None:
        self.models = list(models)
        self.routed = 0
        self.go_on = asyncio.Event()
        self.failures = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        if asked != "auto":
            return await answer_json(send, asked)
        self.routed += 1
        await self.go_on.wait()
        if self.failures:
            self.failures -= 1
            return await respond(send, b"{}", status=500)
        await answer_json(send, self.models.pop(0))
        return None


def processes(app: Any, store: SharedStore, count: int = 2, **settings: Any) -> list[SessionPinMiddleware]:
    return [SessionPinMiddleware(app, store=store, **settings) for _ in range(count)]


def ask(app: SessionPinMiddleware, *headers: Header, **options: Any) -> asyncio.Task[Answer]:
    return asyncio.create_task(call(app, AUTO, SESSION, *headers, **options))


async def pass_time(seconds: float = 0.03) -> None:
    """Let some looks for a decision happen."""
    await asyncio.sleep(seconds)


def told(answers: list[Answer]) -> list[tuple[str | None, Any]]:
    return [(answer.pin_status, answer.json["model"]) for answer in answers]


@case(
    Section.SHARED_STORE,
    "first requests in several processes",
    "one is routed (`miss`), the others look for its decision (`wait`)",
)
async def test_one_process_decides_and_the_others_get_its_decision() -> None:
    store, router = SharedStore(), Router("a", "b", "c")
    tasks = [ask(app) for app in processes(router, store, 3) for _ in range(2)]
    await until(lambda: router.routed == 1)
    await pass_time()
    assert router.routed == 1
    router.go_on.set()
    answers = await asyncio.gather(*tasks)
    assert told(answers) == [("miss", "a")] + [("wait", "a")] * 5
    await until(lambda: not store.claims)


async def test_a_session_that_is_alone_costs_three_calls_before_the_app_and_two_later() -> None:
    store, router = SharedStore(), Router("a")
    router.go_on.set()
    [app] = processes(router, store, 1)
    assert (await ask(app)).pin_status == "miss"
    await until(lambda: store.calls == ["get", "claim", "get", "release"])
    store.calls.clear()
    assert (await ask(app)).pin_status == "hit"
    assert store.calls == ["get"]


async def test_nobody_waits_for_the_claim_to_be_given_back() -> None:
    class Slow(SharedStore):
        async def release(self, key: bytes, token: bytes) -> None:
            await go_on.wait()
            await super().release(key, token)

    store, router, go_on = Slow(), Router("a", "b"), asyncio.Event()
    router.go_on.set()
    [app] = processes(router, store, 1, config=Config(store=Store(timeout_seconds=60)))
    async with asyncio.timeout(5):
        assert (await ask(app)).pin_status == "miss"
        assert (await ask(app, (b"authorization", b"other"))).pin_status == "miss"
    assert len(store.claims) == 2
    go_on.set()
    await until(lambda: not store.claims)


async def test_a_request_that_is_cancelled_anywhere_leaves_no_claim() -> None:
    class Slow(SharedStore):
        async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
            await asyncio.sleep(0.002)
            return await super().get(key)

        async def claim(self, key: bytes, token: bytes, seconds: float) -> bool:
            await asyncio.sleep(0.002)
            claimed = await super().claim(key, token, seconds)
            await asyncio.sleep(0.002)
            return claimed

    store, router = Slow(), Router()
    [app] = processes(router, store, 1)
    for number in range(12):
        tasks = [ask(app), ask(app)]
        await asyncio.sleep(number * 0.001)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await until(lambda: not store.claims)


@case(Section.SHARED_STORE, "the process that decides fails", "another one decides")
async def test_where_the_decision_fails_another_process_decides() -> None:
    store, router = SharedStore(), Router("b")
    router.failures = 1
    one, other = processes(router, store)
    first = ask(one)
    await asyncio.sleep(0.005)
    second = ask(other)
    await pass_time()
    assert router.routed == 1
    router.go_on.set()
    assert (await first).start["status"] == 500
    assert (await second).pin_status == "miss"
    assert router.routed == 2
    await until(lambda: not store.claims)


async def test_the_next_request_of_the_same_process_takes_the_claim_over() -> None:
    store, router = SharedStore(), Router("b")
    router.failures = 1
    [app] = processes(router, store, 1)
    tasks = [ask(app) for _ in range(3)]
    await pass_time()
    router.go_on.set()
    answers = await asyncio.gather(*tasks)
    assert [answer.start["status"] for answer in answers] == [500, 200, 200]
    assert [answer.pin_status for answer in answers] == ["miss", "miss", "wait"]
    assert store.given == 1
    await until(lambda: not store.claims)


class Claimless(MemoryStore):
    """Processes share its pins, and agree on nothing else."""


@case(
    Section.SHARED_STORE,
    "the process that decides fails after `decision_wait_seconds`, and another one has decided meanwhile",
    "those that wait get its decision",
)
@pytest.mark.parametrize("kind", [SharedStore, Claimless])
async def test_the_next_request_finds_what_another_process_has_decided_meanwhile(kind: type[MemoryStore]) -> None:
    store, slow, fast = kind(), Router("late"), Router("b")
    one, other = (SessionPinMiddleware(router, store=store) for router in (slow, fast))
    slow.failures = 1
    first = ask(one)
    await until(lambda: slow.routed == 1)
    second = ask(one)
    if isinstance(store, SharedStore):
        await store.clock.wait(5)  # the claim ends
    fast.go_on.set()
    assert told([await ask(other)]) == [("miss", "b")]
    slow.go_on.set()
    assert (await first).start["status"] == 500
    assert told([await second]) == [("wait", "b")]
    assert slow.routed == 1


async def test_a_reset_takes_no_choice_that_was_made_while_the_store_was_asked() -> None:
    class Slow(Claimless):
        async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
            found = await super().get(key)
            if resetting:
                asked.set()
                await go_on.wait()
            return found

    asked, go_on, resetting = asyncio.Event(), asyncio.Event(), False
    router = Router("a", "b")
    app = SessionPinMiddleware(router, store=Slow(), config=Config(store=Store(timeout_seconds=60)))
    first = ask(app)
    await until(lambda: router.routed == 1)
    resetting = True
    second = ask(app, RESET)
    await asked.wait()
    resetting = False
    router.go_on.set()
    assert told([await first]) == [("miss", "a")]
    go_on.set()
    assert (await second).pin_status == "miss"
    assert router.routed == 2


@pytest.mark.parametrize("other_leads", [True, False])
@pytest.mark.parametrize("while_asked", [True, False])
async def test_a_choice_while_a_claim_is_asked_for_is_taken_and_leaves_no_claim(
    other_leads: bool, while_asked: bool
) -> None:
    class Slow(SharedStore):
        async def claim(self, key: bytes, token: bytes, seconds: float) -> bool:
            if is_slow:
                asked.set()
                await go_on.wait()
            claimed = await super().claim(key, token, seconds)
            asked.set()
            return claimed

    asked, go_on, is_slow = asyncio.Event(), asyncio.Event(), False
    store, leading, router = Slow(), Router("late"), Router("b", "c")
    config = Config(store=Store(timeout_seconds=60))
    one, other = (SessionPinMiddleware(app, store=store, config=config) for app in (router, leading))
    router.go_on.set()
    if other_leads or not while_asked:
        first = [ask(other)]
        await until(lambda: leading.routed == 1)
    else:
        first = []
    asked.clear()
    is_slow = while_asked
    second = ask(one)
    await asked.wait()  # now it is asked, or waits until it asks again
    assert (await ask(one, RESET)).pin_status == "miss"  # it waits for nobody
    if not other_leads:
        await store.clock.wait(5)  # the other one's claim ends
    go_on.set()
    [(status, model)] = told([await second])
    assert (status in ("hit", "wait"), model, router.routed) == (True, "b", 1)
    leading.go_on.set()
    await asyncio.gather(*first)
    await store.clock.wait(1)
    await until(lambda: not any(ends > store.clock.now for _, ends in store.claims.values()))


@case(Section.SHARED_STORE, "it stands still", "the others go on when its claim ends, after `decision_wait_seconds`")
async def test_a_process_that_stands_still_is_waited_for_until_its_claim_ends() -> None:
    store, router = SharedStore(), Router("a", "b")
    one, other = processes(router, store)
    first = ask(one)
    await pass_time(0.005)
    second = ask(other)
    await pass_time()
    assert router.routed == 1
    await store.clock.wait(5)
    await pass_time(0.1)
    assert router.routed == 2
    router.go_on.set()
    await asyncio.gather(first, second)
    await until(lambda: not store.claims)


async def test_a_wait_for_another_process_ends_after_its_time() -> None:
    store, router = SharedStore(), Router("a", "b")
    events: list[PinEvent] = []
    config = Config(routing=Routing(decision_wait_seconds=0.05))
    one, other = processes(router, store, config=config, listeners=[events.append])
    first = ask(one)
    await asyncio.sleep(0.005)
    second = ask(other)
    await pass_time(0.2)
    assert router.routed == 2
    router.go_on.set()
    answers = await asyncio.gather(first, second)
    assert [answer.pin_status for answer in answers] == ["miss", "miss"]
    assert (await ask(other)).headers["x-session-model"] == (await ask(one)).headers["x-session-model"]
    assert sorted(event.waited_seconds > 0.04 for event in events) == [False, False, False, True]


async def test_a_decision_between_the_look_and_the_claim_is_found() -> None:
    class Late(SharedStore):
        async def claim(self, key: bytes, token: bytes, seconds: float) -> bool:
            await self.add(key, Pin("early", 1.0))
            return await super().claim(key, token, seconds)

    store, router = Late(), Router()
    [app] = processes(router, store, 1)
    answer = await ask(app)
    assert (answer.pin_status, answer.json["model"]) == ("hit", "early")
    await until(lambda: not store.claims)


async def test_a_reset_waits_for_nobody() -> None:
    store, router = SharedStore(), Router("a", "b")
    one, other = processes(router, store)
    first = ask(one)
    await pass_time(0.005)
    second = ask(other, RESET)
    await pass_time()
    assert router.routed == 2
    router.go_on.set()
    assert [answer.pin_status for answer in await asyncio.gather(first, second)] == ["miss", "miss"]
    await until(lambda: not store.claims)


async def test_a_reset_with_the_claim_decides_afresh() -> None:
    store, router = SharedStore(), Router("a", "b")
    router.go_on.set()
    [app] = processes(router, store, 1)
    await ask(app)
    assert told([await ask(app, RESET), await ask(app)]) == [("miss", "b"), ("hit", "b")]


async def test_where_bodies_take_all_the_room_nobody_waits() -> None:
    store, router = SharedStore(), Router("a", "b")
    one, other = processes(router, store, config=Config(limits=Limits(max_buffered_bytes=1)))
    tasks = [ask(one), ask(other)]
    await pass_time()
    assert router.routed == 2
    router.go_on.set()
    await asyncio.gather(*tasks)


async def test_decision_endpoints_agree_too() -> None:
    store, router = SharedStore(), Router("a", "b")
    tasks = [ask(app, path=DECISION) for app in processes(router, store)]
    await pass_time()
    router.go_on.set()
    assert told(await asyncio.gather(*tasks)) == [("miss", "a"), ("wait", "a")]
    await until(lambda: not store.claims)


@pytest.mark.parametrize("what", ["claim", "get"])
async def test_a_store_that_fails_meanwhile_leaves_the_request_to_the_router(what: str) -> None:
    class Failing(SharedStore):
        is_out = False

        async def claim(self, key: bytes, token: bytes, seconds: float) -> bool:
            if self.is_out and what == "claim":
                raise OSError("down")
            return await super().claim(key, token, seconds)

        async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
            if self.is_out and what == "get":
                raise OSError("down")
            return await super().get(key)

    store, router = Failing(), Router("a", "b")
    one, other = processes(router, store)
    first = ask(one)
    await pass_time(0.005)
    second = ask(other)
    await pass_time()
    store.is_out = True
    await pass_time(0.1)
    assert router.routed == 2
    router.go_on.set()
    answers = await asyncio.gather(first, second)
    assert answers[1].pin_status == "miss; reason=store-unavailable"


async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind() -> None:
    store, router = SharedStore(), Router("a", "b")
    one, other = processes(router, store)
    first = ask(one)
    await pass_time(0.005)
    second, third = ask(other), ask(other)
    await pass_time()
    second.cancel()
    await asyncio.wait([second])
    router.go_on.set()
    assert told(await asyncio.gather(*[first, third])) == [("miss", "a"), ("wait", "a")]
    await until(lambda: not store.claims)


async def test_a_client_that_leaves_while_the_store_is_asked_for_a_claim_passes_none_on() -> None:
    class Slow(SharedStore):
        is_slow = False

        async def claim(self, key: bytes, token: bytes, seconds: float) -> bool:
            claimed = await super().claim(key, token, seconds)
            if self.is_slow:
                self.calls.append("slow")
                await asyncio.Event().wait()
            return claimed

    store, router = Slow(), Router("a", "b")
    one, other = processes(router, store)
    first = ask(one)
    await until(lambda: router.routed == 1)
    store.is_slow = True
    second, third = ask(other), ask(other)
    await until(lambda: "slow" in store.calls)
    store.is_slow = False
    second.cancel()
    await asyncio.wait([second])
    await pass_time()
    router.go_on.set()
    assert told(await asyncio.gather(*[first, third])) == [("miss", "a"), ("wait", "a")]
    await until(lambda: not store.claims)


async def test_a_session_whose_answers_name_no_model_is_waited_for_once() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        await respond(send, b"{}")

    store = SharedStore()
    for middleware in processes(app, store):
        assert [(await ask(middleware)).pin_status for _ in range(2)] == ["miss", "miss"]
        await until(lambda: not store.claims)
    assert sorted(store.calls) == sorted(["get", "claim", "get", "release", "get"] * 2)
    await until(lambda: not store.claims)


async def test_who_does_not_wait_does_not_claim() -> None:
    store, router = SharedStore(), Router("a")
    router.go_on.set()
    [app] = processes(router, store, 1, config=Config(routing=Routing(decision_wait_seconds=0)))
    assert (await ask(app)).pin_status == "miss"
    assert store.calls == ["get"]
