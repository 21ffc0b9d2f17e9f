"""No switch of models where it would be unsafe: in a tool loop, or where a request carries state of a provider."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from starlette.types import Receive, Scope, Send

from asgi_driver import SESSION, Answer, Clock, Gateway, asked_model, call, read_body, respond
from asgi_session_pin import Config, Lapsed, MemoryStore, Pin, PinEvent, Routing, SessionPinMiddleware
from asgi_session_pin.testing import StoreCase
from behaviour_document import Section, case
from cases import TOOL_LOOP, TTL, memory_case, redis_case, sqlite_case
from conversations import APIS, Body, Chat, Conversation, Messages, signatures
from redis_servers import RedisServer

MODELS = ("opus", "sonnet", "haiku", "gpt")
SUBAGENT = (b"x-claude-code-agent-id", b"a1")
every_api = pytest.mark.parametrize("api", APIS, ids=lambda api: api.__name__)


def pinned(app: Any, clock: Clock, **routing: Any) -> SessionPinMiddleware:
    return SessionPinMiddleware(app, config=Config(routing=Routing(**routing)), clock=clock)


class Session:
    """An agent in one session of a middleware."""

    def __init__(self, middleware: SessionPinMiddleware, conversation: Conversation) -> None:
        self.middleware = middleware
        self.conversation = conversation
        self.calls = 0
        self.answered = Answer()

    async def say(self, *headers: Any) -> str:
        """Have a person say something; return the model that has answered, by a call of a tool."""
        return await self._ask(self.conversation.say("Go on."), *headers)

    async def run(self, *headers: Any) -> str:
        """Send the result of the last tool."""
        return await self._ask(self.conversation.run([f"c{self.calls}"]), *headers)

    @property
    def status(self) -> str | None:
        return self.answered.pin_status

    async def _ask(self, body: Body, *headers: Any) -> str:
        self.answered = await call(self.middleware, body, SESSION, *headers, path=self.conversation.path)
        model: str = self.answered.json["model"]
        self.calls += 1
        self.conversation.answer(model, [f"c{self.calls}"])
        return model


@case(
    Section.PIN,
    "lapsed, and the request goes on in a tool loop (its last item is a tool's result), or carries state of a provider "
    "(`previous_response_id`, `encrypted_content`, a thinking `signature`)",
    "`hit`, up to `tool_loop_seconds` after its end; its time starts again",
)
@every_api
async def test_a_lapsed_pin_goes_on_in_a_tool_loop(clock: Clock, api: type[Conversation]) -> None:
    gateway = Gateway(*MODELS)
    session = Session(pinned(gateway, clock), api())
    assert await session.say() == "opus"
    for seconds in (600, 4199, 599, 4199):
        await clock.wait(seconds)
        assert (await session.run(), session.status) == ("opus", "hit")
    await clock.wait(4200)
    assert (await session.run(), session.status) == ("sonnet", "miss")


@every_api
async def test_a_lapsed_pin_goes_on_where_a_request_carries_state(clock: Clock, api: type[Conversation]) -> None:
    session = Session(pinned(Gateway(*MODELS), clock), api(signed=True))
    assert await session.say() == "opus"
    await clock.wait(3000)
    assert (await session.say(), session.status) == ("opus", "hit")


async def test_a_lapsed_pin_goes_on_where_the_provider_keeps_the_conversation(clock: Clock) -> None:
    middleware = pinned(Gateway(*MODELS), clock)
    for body, status in (({"previous_response_id": "resp_1"}, "hit"), ({}, "miss")):
        answer = await call(middleware, {"model": "auto", "input": "Hi", **body}, SESSION, path="/v1/responses")
        assert answer.pin_status == "miss" if clock.now == 1000 else status
        await clock.wait(700)
        answer = await call(middleware, {"model": "auto", "input": "Hi", **body}, SESSION, path="/v1/responses")
        assert answer.pin_status == status


@every_api
async def test_a_lapsed_pin_is_decided_afresh_where_a_person_goes_on(clock: Clock, api: type[Conversation]) -> None:
    session = Session(pinned(Gateway(*MODELS), clock), api())
    assert await session.say() == "opus"
    await clock.wait(600)
    assert (await session.say(), session.status) == ("sonnet", "miss")
    assert (await session.run(), session.status) == ("sonnet", "hit")


async def test_without_tool_loop_seconds_a_pin_ends_with_its_time(clock: Clock) -> None:
    session = Session(pinned(Gateway(*MODELS), clock, tool_loop_seconds=0), Chat())
    assert await session.say() == "opus"
    await clock.wait(600)
    assert (await session.run(), session.status) == ("sonnet", "miss")


async def evening(case: StoreCase) -> None:
    gateway = Gateway(*MODELS)
    config = Config.load(
        {
            "routing": {"session_ttl_seconds": TTL, "tool_loop_seconds": TOOL_LOOP, "release": "user_turn"},
            "store": {"timeout_seconds": 10},
        }
    )
    middleware = SessionPinMiddleware(gateway, config=config, store=case.open())
    session = Session(middleware, Messages())
    assert await session.say() == "opus"
    for _ in range(29):
        await case.wait(TTL * 1.5)
        assert (await session.run(), session.status) == ("opus", "hit")
    session.conversation.answer("opus", [])
    assert (await session.say(), session.status) == ("sonnet", "miss")
    assert (await session.run(), session.status) == ("sonnet", "hit")
    await middleware.aclose()


async def test_an_evening_of_an_agent_with_slow_tools() -> None:
    await evening(memory_case())


async def test_an_evening_of_an_agent_with_slow_tools_and_pins_in_a_file(tmp_path: Path) -> None:
    await evening(sqlite_case(tmp_path))


async def test_an_evening_of_an_agent_with_slow_tools_and_pins_in_redis(shared_redis: RedisServer) -> None:
    async with Redis.from_url(shared_redis.url) as client:
        await evening(redis_case(client, shared_redis.url))


class Provider:
    """Routes at random, calls up to three tools at a time, and takes no signature of another model."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.failures = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        asked = asked_model(body)
        model = self.chance.choice(MODELS) if asked == "auto" else asked
        if signatures(body) - {model}:
            self.failures += 1
            return await respond(send, b'{"error":{"message":"Invalid signature in thinking block"}}', status=400)
        return await respond(send, json.dumps({"model": model}).encode())


@pytest.mark.parametrize("release", ["never", "user_turn"])
@every_api
async def test_thousands_of_turns_without_an_unsafe_switch(api: type[Conversation], release: str) -> None:
    """All six together are 21,600 turns; before a fifth of them goes by more than the time to live."""
    chance, clock = random.Random(f"{api.__name__} {release}"), Clock()
    provider = Provider(chance)
    middleware = pinned(provider, clock, release=release)
    unsafe = safe = turns = 0
    for number in range(120):
        conversation = api(signed=number % 3 == 0)
        session = (b"x-session-id", b"%d" % number)
        calls: list[str] = []
        model = ""
        for turn in range(30):
            await clock.wait(chance.uniform(600, 4000) if chance.random() < 0.2 else chance.uniform(0, 500))
            body = conversation.run(calls) if calls else conversation.say("Go on.")
            answer = await call(middleware, body, session, path=conversation.path)
            before, model = model, answer.json.get("model", "refused")
            is_bound = bool(calls) or (conversation.signed and turn > 0)
            unsafe += is_bound and model != before
            safe += not is_bound and model != before
            calls = [f"c{turn}-{n}" for n in range(chance.choice((0, 1, 1, 2, 3)))]
            conversation.answer(model, calls)
            turns += 1
    assert (turns, unsafe, provider.failures) == (3_600, 0, 0)
    assert safe > 100


@case(
    Section.PIN,
    "`release: user_turn`, and a person has said something (more than what a harness adds), where a switch is safe",
    "`miss`; the new choice takes the pin's place",
)
@every_api
async def test_with_release_the_router_decides_anew_where_a_person_says_something(
    clock: Clock, api: type[Conversation]
) -> None:
    session = Session(pinned(Gateway(*MODELS), clock, release="user_turn"), api())
    assert [await session.say(), await session.run()] == ["opus", "opus"]
    session.conversation.answer("opus", [])
    assert (await session.say(), session.status) == ("sonnet", "miss")
    assert [await session.run(), await session.run()] == ["sonnet", "sonnet"]
    assert session.status == "hit"


@every_api
async def test_with_release_what_carries_state_stays(clock: Clock, api: type[Conversation]) -> None:
    session = Session(pinned(Gateway(*MODELS), clock, release="user_turn"), api(signed=True))
    assert await session.say() == "opus"
    session.conversation.answer("opus", [])
    assert (await session.say(), session.status) == ("opus", "hit")


async def test_with_release_what_a_harness_says_by_itself_stays(clock: Clock) -> None:
    session = Session(pinned(Gateway(*MODELS), clock, release="user_turn"), Messages())
    assert await session.say() == "opus"
    session.conversation.items = [
        {"role": "user", "content": "This session is being continued from a previous conversation"}
    ]
    answer = await call(session.middleware, session.conversation.body, SESSION, path="/v1/messages")
    assert answer.pin_status == "hit"


async def test_with_release_a_subagent_leaves_the_loop_of_its_parent_alone(clock: Clock) -> None:
    middleware = pinned(Gateway(*MODELS), clock, release="user_turn")
    parent, child = Session(middleware, Messages()), Session(middleware, Messages())
    assert await parent.say() == "opus"
    assert (await child.say(SUBAGENT), child.status) == ("opus", "hit")
    assert (await parent.run(), parent.status) == ("opus", "hit")


@case(
    Section.PIN,
    "its model is one of `routing.retired_models`, or it is older than `session_max_age_seconds`",
    "decided afresh, used or not, as soon as a switch is safe",
)
@pytest.mark.parametrize("routing", [{"retired_models": ("op*",)}, {"session_max_age_seconds": 60}])
@every_api
async def test_a_pin_that_is_over_ends_where_a_switch_is_safe(
    clock: Clock, routing: dict[str, Any], api: type[Conversation]
) -> None:
    class Backdating(MemoryStore):
        async def add(self, key: bytes, pin: Pin) -> Pin:
            return await super().add(key, Pin(pin.model, pin.created - 3600))

    store = Backdating(timer=clock)
    session = Session(SessionPinMiddleware(Gateway("opus"), store=store, clock=clock), api())
    assert await session.say() == "opus"
    config = Config(routing=Routing(**routing))
    session.middleware = SessionPinMiddleware(Gateway("sonnet"), config=config, store=store, clock=clock)
    assert (await session.run(), session.status) == ("opus", "hit")
    session.conversation.answer("opus", [])
    assert (await session.say(), session.status) == ("sonnet", "miss")
    assert (await session.run(), session.status) == ("sonnet", "hit")


async def test_a_retired_name_is_never_a_decision(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway("opus", "opus", "sonnet", "gpt")
    session = Session(pinned(gateway, clock, retired_models=("opus",), decision_wait_seconds=0), Chat())
    assert [await session.say() for _ in range(4)] == ["opus", "opus", "sonnet", "sonnet"]
    assert gateway.asked == ["auto", "auto", "auto", "sonnet"]
    assert "opus" not in caplog.text, "the operator knows"


@case(Section.PIN, "`X-Session-Pin: reset` in a tool loop, the pin lapsed or not", "`miss`: it was asked for")
@pytest.mark.parametrize("seconds", [0, 700])
async def test_a_reset_waits_for_no_safe_switch(clock: Clock, seconds: float) -> None:
    session = Session(pinned(Gateway(*MODELS), clock), Chat(signed=True))
    assert await session.say() == "opus"
    await clock.wait(seconds)
    assert (await session.run((b"x-session-pin", b"reset")), session.status) == ("sonnet", "miss")
    assert (await session.run(), session.status) == ("sonnet", "hit")


async def test_a_reset_whose_request_fails_leaves_no_lapsed_pin(clock: Clock) -> None:
    async def fail(send: Send, model: str) -> None:
        await respond(send, b"{}", status=500)

    gateway = Gateway(*MODELS)
    session = Session(pinned(gateway, clock), Chat())
    assert await session.say() == "opus"
    await clock.wait(700)
    gateway.route = fail
    body = session.conversation.run(["c1"])
    assert (await call(session.middleware, body, SESSION, (b"x-session-pin", b"reset"))).start["status"] == 500
    gateway.route = gateway.serve
    assert (await session.run(), session.status) == ("haiku", "miss")


async def test_a_lapsed_pin_that_can_not_be_kept_serves_nevertheless(clock: Clock) -> None:
    class Full(MemoryStore):
        is_full = False

        async def add(self, key: bytes, pin: Pin) -> Pin:
            if self.is_full:
                raise OSError("full")
            return await super().add(key, pin)

    store = Full(timer=clock)
    session = Session(SessionPinMiddleware(Gateway(*MODELS), store=store, clock=clock), Chat())
    assert await session.say() == "opus"
    await clock.wait(700)
    store.is_full = True
    assert (await session.run(), session.status) == ("opus", "hit; reason=store-unavailable")


async def test_of_two_that_go_on_at_once_both_keep_the_pin(clock: Clock) -> None:
    gateway = Gateway(*MODELS)
    session = Session(pinned(gateway, clock), Chat())
    assert await session.say() == "opus"
    await clock.wait(700)
    body = session.conversation.run(["c1"])
    answers = await asyncio.gather(*(call(session.middleware, body, SESSION) for _ in range(3)))
    assert [answer.pin_status for answer in answers] == ["hit"] * 3
    assert gateway.asked == ["auto", "opus", "opus", "opus"]


async def test_a_lapsed_pin_that_goes_on_is_the_one_that_another_has_chosen_meanwhile(clock: Clock) -> None:
    class Overtaken(MemoryStore):
        async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
            found = await super().get(key)
            if isinstance(found, Lapsed):
                await super().add(key, Pin("gpt", 1.0))
            return found

    session = Session(SessionPinMiddleware(Gateway(*MODELS), store=Overtaken(timer=clock), clock=clock), Chat())
    assert await session.say() == "opus"
    await clock.wait(700)
    assert (await session.run(), session.status) == ("gpt", "hit")


async def test_forget_takes_a_lapsed_pin_for_none_and_leaves_nothing_of_it(clock: Clock) -> None:
    session = Session(pinned(Gateway(*MODELS), clock), Chat())
    assert await session.say() == "opus"
    await clock.wait(700)
    assert await session.middleware.forget("session-1", model="auto") is False
    assert (await session.run(), session.status) == ("sonnet", "miss")


async def test_listeners_learn_why_a_pin_ended(clock: Clock) -> None:
    events: list[PinEvent] = []

    def listening(**routing: Any) -> Session:
        config = Config(routing=Routing(**routing))
        app = SessionPinMiddleware(Gateway(*MODELS), config=config, listeners=[events.append], clock=clock)
        return Session(app, Chat())

    releasing, retiring, lapsing = listening(release="user_turn"), listening(retired_models=("x",)), listening()
    for session in (releasing, retiring, lapsing):
        await session.say()
        session.conversation.answer("opus", [])
    await releasing.say()
    await lapsing.run()
    await clock.wait(700)
    await lapsing.run()
    await clock.wait(700)
    await lapsing.say()
    assert [event.changes for event in events[3:]] == [("released", "made"), (), (), ("lapsed", "made")]


async def test_a_store_may_keep_lapsed_pins_for_longer_than_they_are_used(clock: Clock) -> None:
    config = Config(routing=Routing(tool_loop_seconds=100))
    store = MemoryStore(timer=clock)  # for an hour
    session = Session(SessionPinMiddleware(Gateway(*MODELS), config=config, store=store, clock=clock), Chat())
    assert await session.say() == "opus"
    await clock.wait(699)
    assert (await session.run(), session.status) == ("opus", "hit")
    await clock.wait(700)
    assert (await session.run(), session.status) == ("sonnet", "miss")
