"""Websockets on our endpoints: what the app gets, what the client gets, and what becomes of the pin."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_driver import DECISION, SESSION, Clock, Gateway, Header, call, until
from asgi_session_pin import (
    Config,
    Failover,
    Limits,
    MemoryStore,
    PinEvent,
    Routing,
    SessionPinMiddleware,
    get_session_pin,
)
from asgi_session_pin.websocket import MAX_OPEN
from behaviour_document import Section, case

RESPONSES = "/v1/responses"
REFUSAL = {"type": "error", "status": 404, "error": {"code": "model_not_found", "message": "no such model"}}
BUSY = {"type": "error", "status": 429, "error": {"code": "rate_limit_exceeded", "message": "later"}}
TOO_LONG = {"type": "error", "status": 400, "error": {"code": "context_length_exceeded", "message": "too long"}}

Events = Iterable[dict[str, Any] | str]


def response(model: str | None, **more: Any) -> list[dict[str, Any]]:
    """The events of a response."""
    named = {"id": "resp_1"} if model is None else {"id": "resp_1", "model": model}
    return [
        {"type": "response.created", "response": {**named, "status": "in_progress"}, **more},
        {"type": "response.output_text.delta", "delta": "hi", **more},
        {"type": "response.completed", "response": {**named, "status": "completed"}, **more},
    ]


class Provider:
    """An app with a websocket: it routes `auto` to the next of *models*, and answers with the events of `said`."""

    def __init__(self, *models: str) -> None:
        self.models = list(models)
        self.scopes: list[Scope] = []
        self.texts: list[str] = []
        self.said: dict[str | None, Events] = {}
        self.hold = asyncio.Event()
        self.hold.set()

    def has_more_than(self, count: int) -> bool:
        """Tell whether more messages than so many have arrived."""
        return len(self.texts) > count

    @property
    def asked(self) -> list[Any]:
        """The model of each message that arrived here."""
        return [json.loads(text).get("model") for text in self.texts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        answering: list[asyncio.Task[None]] = []
        while (message := await receive())["type"] == "websocket.receive":
            if message.get("text") is not None:
                self.texts.append(message["text"])
                answering.append(asyncio.create_task(self._answer(send, json.loads(message["text"]).get("model"))))
        for task in answering:
            task.cancel()

    async def _answer(self, send: Send, asked: Any) -> None:
        model = self.models.pop(0) if asked == "auto" and len(self.models) > 1 else asked
        model = self.models[0] if model == "auto" else model
        await self.hold.wait()
        for event in self.said.get(model, response(model)):
            text = event if isinstance(event, str) else json.dumps(event)
            await send({"type": "websocket.send", "text": text})


class Client:
    """A client's socket, on the server's side."""

    def __init__(self, app: ASGIApp, *headers: Header, path: str = RESPONSES, **scope: Any) -> None:
        self._received: asyncio.Queue[Message] = asyncio.Queue()
        self._received.put_nowait({"type": "websocket.connect"})
        self.sent: list[Message] = []
        self.on_send: Callable[[Message], Awaitable[None]] | None = None
        self._news = asyncio.Event()
        self.scope = {"type": "websocket", "path": path, "headers": list(headers), "state": {}, **scope}
        self.running = asyncio.ensure_future(app(self.scope, self._received.get, self._send))

    async def _send(self, message: Message) -> None:
        if self.on_send is not None:
            await self.on_send(message)
        self.sent.append(message)
        self._news.set()

    @property
    def events(self) -> list[str]:
        """The types of the events that have come."""
        texts = [message["text"] for message in self.sent if message["type"] == "websocket.send"]
        return [json.loads(text)["type"] for text in texts]

    def create(self, model: str | None = "auto", **more: Any) -> None:
        """Ask for a response."""
        body = {"type": "response.create", "model": model, "input": "hi", **more}
        self.send({name: value for name, value in body.items() if value is not None})

    def send(self, content: Any) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        self._received.put_nowait({"type": "websocket.receive", "text": text})

    def leave(self, code: int = 1000) -> None:
        self._received.put_nowait({"type": "websocket.disconnect", "code": code})

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def turn(self, model: str | None = "auto", **more: Any) -> list[str]:
        """Ask for a response, and return the types of its events."""
        before = len(self.events)
        self.create(model, **more)
        last = ("response.completed", "response.failed", "error", "response.incomplete")
        await self.until(lambda: any(event in last for event in self.events[before:]))
        return self.events[before:]


@asynccontextmanager
async def connected(app: ASGIApp, *headers: Header, **options: Any) -> AsyncIterator[Client]:
    """A client with a session, which leaves at the end."""
    client = Client(app, *(headers or (SESSION,)), **options)
    try:
        await client.until(lambda: bool(client.sent))
        yield client
    finally:
        client.leave()
        await client.running


def statuses(events: list[PinEvent]) -> list[str]:
    return [event.status if event.reason is None else f"{event.status} {event.reason}" for event in events]


# The way of a response


@case(
    Section.WEBSOCKET,
    "several `response.create` on a socket",
    "each is a request of its own: the first is routed, the others ask for the model that `response.created` named",
)
async def test_the_turns_of_a_socket_stay_on_the_first_model() -> None:
    provider, events = Provider("a", "b"), list[PinEvent]()
    app = SessionPinMiddleware(provider, listeners=[events.append])
    async with connected(app) as client:
        for _ in range(3):
            assert await client.turn() == ["response.created", "response.output_text.delta", "response.completed"]
    assert provider.asked == ["auto", "a", "a"]
    assert statuses(events) == ["miss", "hit", "hit"]
    assert {event.endpoint for event in events} == {"*/responses"}
    assert len({event.key for event in events}) == 1


@case(Section.WEBSOCKET, "a session asks by HTTP and by websockets, on one or on several", "one pin for all of them")
async def test_a_pin_is_shared_with_http_and_other_sockets() -> None:
    provider, gateway = Provider("a"), Gateway("b")

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        await (gateway if scope["type"] == "http" else provider)(scope, receive, send)

    app = SessionPinMiddleware(both)
    async with connected(app) as first, connected(app) as second:
        await first.turn()
        await second.turn()
    answer = await call(app, {"model": "auto", "input": "hi"}, SESSION, path=RESPONSES)
    assert (answer.pin_status, gateway.asked, provider.asked) == ("hit", ["a"], ["auto", "a"])
    other = (b"x-session-id", b"session-2")
    await call(app, {"model": "auto", "input": "hi"}, other, path=RESPONSES)
    async with connected(app, other) as third:
        await third.turn()
        await third.turn("another")
    assert provider.asked[2:] == ["b", "another"]


async def test_all_but_the_model_keeps_its_bytes() -> None:
    provider = Provider("a")
    rest = r'"input":[{"n":1e400,"m":"mod\u0065l","x":"\ud800 ä"}],"b":1.0,"model_2":"auto"'
    async with connected(SessionPinMiddleware(provider)) as client:
        await client.turn()
        client.send(f'{{"type":"response.create","model":"auto",{rest}}}')
        await client.until(lambda: client.events.count("response.completed") == 2)
    assert provider.texts[1] == f'{{"type":"response.create","model":"a",{rest}}}'


UNTOUCHED: dict[str, Message] = {
    "no JSON": {"type": "websocket.receive", "text": "{"},
    "no object": {"type": "websocket.receive", "text": '["response.create"]'},
    "another event": {"type": "websocket.receive", "text": '{"type":"response.cancel","model":"auto","input":""}'},
    "no type": {"type": "websocket.receive", "text": '{"model":"auto","input":""}'},
    "another application": {"type": "websocket.receive", "text": '{"type":"response.create","response":{}}'},
    "binary": {"type": "websocket.receive", "bytes": b'{"type":"response.create","model":"auto","input":""}'},
    "a surrogate": {"type": "websocket.receive", "text": '{"type":"response.create","input":"\ud800"}'},
    "too large": {"type": "websocket.receive", "text": '{"type":"response.create","input":"%s"}' % ("x" * 10_000)},
    "empty": {"type": "websocket.receive", "text": ""},
}


@pytest.mark.parametrize("message", UNTOUCHED.values(), ids=UNTOUCHED)
@case(
    Section.WEBSOCKET,
    "a message that is no `response.create` in JSON, is binary, or over `limits.max_request_bytes`",
    "the app gets the very message of the server",
)
async def test_other_messages_pass_as_they_are(message: Message) -> None:
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.append(await receive())

    async def receive() -> Message:
        return message

    async def send(message: Message) -> None:
        raise AssertionError

    pinned = SessionPinMiddleware(app, config=Config(limits=Limits(max_request_bytes=9_000)))
    await pinned({"type": "websocket", "path": RESPONSES, "headers": [SESSION]}, receive, send)
    assert got[0] is message


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"type":1}', '{"type":"session.created"}', "", "[" * 100_000, '{"type":"ping","status":"x"}']
)
async def test_what_the_app_sends_goes_on_whatever_it_is(text: str) -> None:
    provider = Provider("a")
    provider.said["a"] = [text, *response("a")]
    async with connected(SessionPinMiddleware(provider)) as client:
        client.create()
        await client.until(lambda: len(client.sent) == 5)
        assert client.sent[1] == {"type": "websocket.send", "text": text}
        await client.until(lambda: len(client.sent) == 5)
        client.create()
        await client.until(lambda: len(client.sent) == 9)
    assert provider.asked == ["auto", "a"]


async def test_the_pin_is_written_before_the_event_that_names_the_model_goes_on() -> None:
    provider = Provider("a")
    app = SessionPinMiddleware(provider)
    asked: list[list[Any]] = []

    async def look(message: Message) -> None:
        if message.get("text") and json.loads(message["text"])["type"] == "response.created" and not asked:
            asked.append([])
            async with connected(app) as other:
                await other.turn()
            asked.append(provider.asked)

    async with connected(app) as client:
        client.on_send = look
        await client.turn()
    assert asked[1] == ["auto", "a"]


@pytest.mark.parametrize("headers", [[], [(b"x-session-id", b"s"), (b"x-session-pin", b"off")]])
async def test_without_a_session_nothing_is_pinned(headers: list[Header]) -> None:
    provider = Provider("a", "b", "c")
    async with connected(SessionPinMiddleware(provider), *(headers or [(b"x", b"y")])) as client:
        await client.turn()
        await client.turn()
        assert "asgi_session_pin" in provider.scopes[0]
    assert provider.asked == ["auto", "auto"]
    assert "asgi_session_pin" not in client.scope


async def test_an_id_may_come_in_each_request() -> None:
    provider, events = Provider("a", "b", "c"), list[PinEvent]()
    config = Config.load({"sessions": {"sources": ["body:prompt_cache_key"]}})
    app = SessionPinMiddleware(provider, config=config, listeners=[events.append])
    async with connected(app, (b"x", b"y")) as client:
        await client.turn(prompt_cache_key="one")
        await client.turn(prompt_cache_key="two")
        await client.turn(prompt_cache_key="one")
        await client.turn(prompt_cache_key="bad\n")
        await client.turn()
    assert provider.asked == ["auto", "auto", "a", "auto", "auto"]
    assert statuses(events) == ["miss", "miss", "hit", "ignored invalid-session-id"]
    assert {event.source for event in events} == {"body:prompt_cache_key"}


@case(Section.WEBSOCKET, "an operator pauses pinning", "each `response.create` passes as it is, as for HTTP")
async def test_while_pinning_is_paused_requests_pass_and_listeners_are_told() -> None:
    provider, events = Provider("a", "b"), list[PinEvent]()
    app = SessionPinMiddleware(provider, listeners=[events.append])
    async with connected(app) as client:
        await client.turn()
        for is_paused in (True, False):
            await app.runtime.steering.pause(is_paused)
            await client.turn()
    assert provider.asked == ["auto", "auto", "a"]
    assert statuses(events) == ["miss", "off paused", "hit"]


async def test_a_request_without_a_model_gets_the_pinned_one() -> None:
    provider = Provider("auto-less")
    provider.said = {None: response("a")}
    async with connected(SessionPinMiddleware(provider)) as client:
        await client.turn(None)
        await client.turn(None)
    assert provider.asked == [None, "a"]


@case(
    Section.WEBSOCKET,
    "a warm-up (`generate: false`), as Codex sends it first",
    "gets the pinned model; without a pin it decides nothing",
)
async def test_a_warm_up_decides_nothing() -> None:
    provider = Provider("a", "b")
    async with connected(SessionPinMiddleware(provider)) as client:
        await client.turn(generate=False)
        await client.turn(generate=True)
        await client.turn(generate=False)
    assert provider.asked == ["auto", "auto", "b"]


async def test_models_that_the_router_does_not_decide_for_pass() -> None:
    provider, events = Provider("a"), list[PinEvent]()
    config = Config(routing=Routing(router_models=("auto",)))
    app = SessionPinMiddleware(provider, config=config, listeners=[events.append])
    async with connected(app) as client:
        await client.turn("b")
        await client.turn()
        await client.turn("b")
        await client.turn()
    assert provider.asked == ["b", "auto", "b", "a"]
    assert statuses(events) == ["ignored model-not-routed", "miss"] * 1 + ["ignored model-not-routed", "hit"]


async def test_a_decision_endpoint_has_no_websocket() -> None:
    provider = Provider("a")
    async with connected(SessionPinMiddleware(provider), SESSION, path=DECISION) as client:
        await client.turn()
        await client.turn()
    assert provider.asked == ["auto", "auto"]
    assert "headers" not in client.sent[0]


# What the client is told


@pytest.mark.parametrize(
    ("headers", "told", "told_listeners"),
    [
        ([SESSION], b"websocket", []),
        ([SESSION, (b"x-session-pin", b"Off")], b"off", ["off"]),
        ([(b"x-session-id", b"\x01")], b"ignored; reason=invalid-session-id", ["ignored invalid-session-id"]),
    ],
)
@case(
    Section.WEBSOCKET,
    "the answer to the upgrade",
    "`websocket`: each response is pinned by itself; `off`; or `ignored` with its reason",
)
async def test_the_upgrade_tells_what_is_done(headers: list[Header], told: bytes, told_listeners: list[str]) -> None:
    events: list[PinEvent] = []
    app = SessionPinMiddleware(Provider("a"), listeners=[events.append])
    async with connected(app, *headers) as client:
        assert client.sent[0]["headers"] == [(b"x-session-pin-status", told)]
    assert statuses(events) == told_listeners
    silent = SessionPinMiddleware(Provider("a"), config=Config(response_headers=False))
    async with connected(silent, *headers) as client:
        assert client.sent == [{"type": "websocket.accept"}]


async def test_a_refusal_of_the_app_tells_it_too_and_nobody_else_can() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        assert (b"x-session-model", b"forged") not in scope["headers"]
        headers = ((b"X-Session-Model", b"forged"), (b"a", b"b"))
        await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b"no"})

    client = Client(SessionPinMiddleware(refuse), SESSION, (b"x-session-model", b"forged"))
    await client.running
    assert client.sent[0]["headers"] == [(b"a", b"b"), (b"x-session-pin-status", b"websocket")]


async def test_what_the_app_puts_into_its_scope_is_in_the_servers() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = "here"
        await send({"type": "websocket.accept"})

    client = Client(SessionPinMiddleware(app), SESSION)
    await client.running
    assert client.scope["route"] == "here"


@case(Section.WEBSOCKET, "`restore_model`", "the events name the model that was asked for")
async def test_events_name_the_model_that_was_asked_for() -> None:
    provider = Provider("a")
    provider.said["a"] = [
        '{"type":"response.created","response":{"x":1e400,"model":"a"}}',
        response("a")[1],
        *response("a")[1:],
    ]
    provider.said[None] = response("b")
    async with connected(SessionPinMiddleware(provider, config=Config(restore_model=True))) as client:
        await client.turn()
        await client.turn()
        await client.turn(None)
    assert provider.asked == ["auto", "a", None]
    texts = [message["text"] for message in client.sent if message["type"] == "websocket.send"]
    assert texts[0] == texts[4] == '{"type":"response.created","response":{"x":1e400,"model":"auto"}}'
    named = [json.loads(text).get("response", {}).get("model") for text in texts]
    assert named == ["auto", None, None, "auto"] * 2 + ["b", None, "b"]


# One choice


@case(
    Section.WEBSOCKET, "parallel first `response.create`, on one socket or on several", "the others wait for the first"
)
@pytest.mark.parametrize("sockets", [1, 2])
async def test_parallel_first_turns_wait_for_one_choice(sockets: int) -> None:
    provider, events = Provider("a", "b"), list[PinEvent]()
    provider.hold.clear()
    app = SessionPinMiddleware(provider, listeners=[events.append])
    async with connected(app) as first, connected(app) as other:
        second = first if sockets == 1 else other
        first.create()
        await until(lambda: bool(provider.texts))
        second.create()
        for _ in range(20):
            await asyncio.sleep(0)
        assert provider.asked == ["auto"]
        provider.hold.set()
        await second.until(lambda: second.events.count("response.completed") == (2 if sockets == 1 else 1))
    assert provider.asked == ["auto", "a"]
    assert sorted(statuses(events)) == ["miss", "wait"]


async def test_a_first_turn_that_fails_lets_the_next_one_lead() -> None:
    provider = Provider("a", "b")
    provider.said["a"] = [BUSY]
    async with connected(SessionPinMiddleware(provider)) as client:
        assert await client.turn() == ["error"]
        await client.turn()
        await client.turn()
    assert provider.asked == ["auto", "auto", "b"]


@pytest.mark.parametrize("ends", [True, False])
async def test_a_first_turn_that_names_no_model_pins_nothing(ends: bool, caplog: pytest.LogCaptureFixture) -> None:
    provider = Provider("a")
    long = {"type": "response.output_text.delta", "delta": "x" * 70_000}
    provider.said["a"] = response(None) if ends else [response(None)[0], long, *response("late")[1:]]
    async with connected(SessionPinMiddleware(provider)) as client:
        await client.turn()
        await client.turn()
    assert provider.asked == ["auto", "auto"]
    assert "names no model" in caplog.text


async def test_a_first_turn_whose_client_leaves_lets_the_next_one_lead() -> None:
    provider = Provider("a")
    provider.hold.clear()
    app = SessionPinMiddleware(provider)
    async with connected(app) as client:
        client.create()
        await until(lambda: bool(provider.texts))
    provider.hold.set()
    async with connected(app) as client:
        await client.turn()
        await client.turn()
    assert provider.asked == ["auto", "auto", "a"]


async def test_where_only_headers_name_models_a_socket_pins_nothing() -> None:
    provider = Provider("a")
    config = Config.load({"decisions": {"sources": ["header:x-model"]}})
    async with connected(SessionPinMiddleware(provider, config=config)) as client:
        await client.turn()
        await client.turn()
    assert provider.asked == ["auto", "auto"]


@case(Section.WEBSOCKET, "a pin lapses between two `response.create`", "the second is routed, and decides afresh")
async def test_a_pin_that_lapses_is_decided_afresh() -> None:
    provider, clock = Provider("a", "b"), Clock()
    async with connected(SessionPinMiddleware(provider, clock=clock)) as client:
        await client.turn()
        await client.turn()
        clock.now += 700
        await client.turn()
        await client.turn()
    assert provider.asked == ["auto", "a", "auto", "b"]


OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "noon"}
ASSISTANT = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello."}]}


def said(text: str) -> list[dict[str, Any]]:
    """What a person says, after an answer."""
    content = [{"type": "input_text", "text": text}]
    return [ASSISTANT, {"type": "message", "role": "user", "content": content}]


@case(
    Section.WEBSOCKET,
    "a pin has lapsed, and a `response.create` goes on in a tool loop, or from a response that the provider keeps",
    "it keeps the pin for `tool_loop_seconds`, as for HTTP",
)
@pytest.mark.parametrize("going_on", [{"input": [OUTPUT]}, {"previous_response_id": "resp_1"}], ids=["tool", "state"])
async def test_a_pin_that_lapsed_goes_on_in_a_tool_loop(going_on: dict[str, Any]) -> None:
    provider, clock = Provider("a", "b"), Clock()
    async with connected(SessionPinMiddleware(provider, clock=clock)) as client:
        await client.turn()
        for seconds in (700, 4199, 4200):
            clock.now += seconds
            await client.turn(**going_on)
        await client.turn()
    assert provider.asked == ["auto", "a", "a", "auto", "b"]


@case(
    Section.WEBSOCKET,
    "`release: user_turn`, and a person has said something in a `response.create` where a switch is safe",
    "it is routed, and decides afresh",
)
async def test_with_release_the_router_decides_anew_where_a_person_says_something() -> None:
    provider, events = Provider("a", "b", "c"), list[PinEvent]()
    config = Config(routing=Routing(release="user_turn"))
    async with connected(SessionPinMiddleware(provider, config=config, listeners=[events.append])) as client:
        await client.turn(input=said("Go on."))
        await client.turn(input=[OUTPUT])
        await client.turn(input=said("<environment_context>noon</environment_context>"))
        await client.turn(input=said("Go on."), previous_response_id="resp_1")
        await client.turn(input=said("Go on."))
        await client.turn(input=[OUTPUT])
    assert provider.asked == ["auto", "a", "a", "a", "auto", "b"]
    assert [event.changes for event in events] == [("made",), (), (), (), ("released", "made"), ()]


async def test_with_release_a_subagent_leaves_the_loop_of_its_parent_alone() -> None:
    provider = Provider("a", "b")
    app = SessionPinMiddleware(provider, config=Config(routing=Routing(release="user_turn")))
    async with connected(app) as parent, connected(app, SESSION, (b"x-openai-subagent", b"review")) as child:
        await parent.turn()
        await child.turn(input=said("Review it."))
        await parent.turn(input=[OUTPUT])
    assert provider.asked == ["auto", "a", "a"]


async def test_with_release_a_warm_up_is_routed_and_so_is_the_turn_that_it_is_for() -> None:
    provider = Provider("a", "b", "c")
    config = Config(routing=Routing(release="user_turn"))
    async with connected(SessionPinMiddleware(provider, config=config)) as client:
        await client.turn(input=said("Hello."))
        await client.turn(input=said("Go on."), generate=False)
        await client.turn(input=[], previous_response_id="resp_1")
        await client.turn(input=[OUTPUT], previous_response_id="resp_1")
    assert provider.asked == ["auto", "auto", "auto", "c"]


@case(
    Section.WEBSOCKET,
    "a pin's model is one of `routing.retired_models`, or retired by an operator",
    "the next `response.create` where a switch is safe is routed, and no answer makes such a pin",
)
@pytest.mark.parametrize("by_operator", [False, True], ids=["settings", "operator"])
async def test_a_retired_model_ends_where_a_switch_is_safe(by_operator: bool) -> None:
    provider, events = Provider("a", "a", "b"), list[PinEvent]()
    store = MemoryStore()
    async with connected(SessionPinMiddleware(provider, store=store)) as client:
        await client.turn()
    config = Config(routing=Routing(retired_models=() if by_operator else ("a*",), decision_wait_seconds=0))
    app = SessionPinMiddleware(provider, config=config, store=store, listeners=[events.append])
    if by_operator:
        await app.runtime.steering.retire("a", True)
    async with connected(app) as client:
        for sent in ([OUTPUT], said("Go on."), said("Go on."), [OUTPUT]):
            await client.turn(input=sent)
    assert provider.asked == ["auto", "a", "auto", "auto", "b"]
    assert statuses(events) == ["hit", "miss", "miss", "hit"]
    assert [event.changes for event in events] == [(), ("retired",), ("made",), ()]


async def test_a_long_answer_renews_the_pin_at_its_end() -> None:
    provider, clock = Provider("a", "b"), Clock()
    async with connected(SessionPinMiddleware(provider, clock=clock)) as client:
        await client.turn()
        provider.hold.clear()
        client.create()
        await until(lambda: len(provider.texts) == 2)
        clock.now += 500
        provider.hold.set()
        await client.until(lambda: client.events.count("response.completed") == 2)
        clock.now += 500
        await client.turn()
    assert provider.asked == ["auto", "a", "a"]


@case(
    Section.WEBSOCKET, "`X-Session-Pin: reset` on the upgrade", "the first `response.create` for a model decides afresh"
)
async def test_reset_forgets_the_pin_once() -> None:
    provider = Provider("a", "b")
    app = SessionPinMiddleware(provider)
    async with connected(app) as client:
        await client.turn()
    async with connected(app, SESSION, (b"x-session-pin", b"reset")) as client:
        await client.turn()
        await client.turn()
        assert not [name for name, _ in provider.scopes[1]["headers"] if name == b"x-session-pin"]
    assert provider.asked == ["auto", "auto", "b"]


async def test_a_router_in_the_app_sees_the_pin_and_states_its_choice() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        assert get_session_pin(scope) is None
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            pin = get_session_pin(scope)
            assert pin is not None
            seen.append((pin.session_id, pin.pinned, pin.model))
            pin.record("stated")
            for event in ({"type": "response.queued"}, *response("what-it-says")):
                await send({"type": "websocket.send", "text": json.dumps(event)})

    async with connected(SessionPinMiddleware(app)) as client:
        await client.turn()
        await client.turn()
    assert seen == [("session-1", False, None), ("session-1", True, "stated")]


# A pinned model that does not serve


async def pinned_to_a(app: ASGIApp, *, turns: int = 2) -> None:
    """Pin the session to the model a, which has served under the pin from the second turn on."""
    async with connected(app) as client:
        for _ in range(turns):
            assert (await client.turn())[-1] == "response.completed"


@case(
    Section.WEBSOCKET,
    "the gateway refuses the pinned name, or a name that has never served under a pin fails by a 4xx",
    "the failure, as the socket is the app's; the pin is given up, so that the next `response.create` is routed",
)
@pytest.mark.parametrize(("turns", "failure"), [(2, REFUSAL), (1, REFUSAL), (1, {**REFUSAL, "error": {}})])
async def test_a_refused_name_is_given_up(turns: int, failure: dict[str, Any]) -> None:
    provider = Provider("a", "b")
    app = SessionPinMiddleware(provider)
    await pinned_to_a(app, turns=turns)
    provider.said["a"] = [failure]
    async with connected(app) as client:
        assert await client.turn() == ["error"]
        assert (await client.turn())[-1] == "response.completed"
        await client.turn()
    assert provider.asked[turns:] == ["a", "auto", "b"]


@case(
    Section.WEBSOCKET,
    "a 4xx without a word of the name, for a name that has not served yet",
    "the pin is given up; other sessions keep theirs, as no routed answer has shown that it is the name",
)
async def test_requests_that_are_at_fault_take_no_model_from_other_sessions() -> None:
    provider = Provider("a")
    app = SessionPinMiddleware(provider)
    for number in range(3):
        provider.said.pop("a", None)
        async with connected(app, (b"x-session-id", b"session-%d" % number)) as client:
            await client.turn()
            provider.said["a"] = [{"type": "error", "status": 400, "error": {"message": "a tool call has no output"}}]
            await client.turn()
    provider.said.pop("a")
    async with connected(app, (b"x-session-id", b"another")) as client:
        await client.turn()
        await client.turn()
    assert provider.asked == ["auto", "a"] * 4


async def test_on_refused_pass_leaves_the_pin() -> None:
    provider = Provider("a", "b")
    app = SessionPinMiddleware(provider, config=Config(failover=Failover(on_refused="pass")))
    await pinned_to_a(app)
    provider.said["a"] = [REFUSAL]
    async with connected(app) as client:
        for _ in range(4):
            await client.turn()
    assert provider.asked[2:] == ["a"] * 4


FAILURES: dict[str, Events] = {
    "429": [BUSY],
    "status_code": [{"type": "error", "status_code": 503, "error": {}}],
    "failed": [response("a")[0], {"type": "response.failed", "response": {"error": {"code": "server_error"}}}],
    "late": [*response("a")[:2], {"type": "response.failed", "response": {"error": {"code": "server_error"}}}],
}


@pytest.mark.parametrize("said", FAILURES.values(), ids=FAILURES)
@case(
    Section.WEBSOCKET,
    "the pinned model is out, or fails late",
    "the failure: nothing is routed again; `give_up_after` in a row give the pin up",
)
async def test_failures_in_a_row_give_the_pin_up(said: Events) -> None:
    provider, clock, events = Provider("a", "b"), Clock(), list[PinEvent]()
    app = SessionPinMiddleware(provider, clock=clock, listeners=[events.append])
    await pinned_to_a(app)
    served, provider.said["a"] = provider.said.get("a", response("a")), said
    async with connected(app) as client:
        for said_now in (said, said, served, said, said, said):
            provider.said["a"] = said_now
            await client.turn()
            clock.now += 1
        assert provider.asked[2:] == ["a"] * 6
        await client.turn()
        assert provider.asked[8:] == ["auto"]
    failed = ["unavailable"] * 2
    assert [event.verdict for event in events[2:]] == [*failed, None, *failed, "unavailable", None]


async def test_failures_of_the_answer_that_made_the_pin_count_for_it() -> None:
    provider, clock = Provider("a", "b"), Clock()
    provider.said["a"] = FAILURES["late"]
    app = SessionPinMiddleware(provider, clock=clock)
    async with connected(app) as client:
        for _ in range(4):
            await client.turn()
            clock.now += 1
    assert provider.asked == ["auto", "a", "a", "auto"]


@pytest.mark.parametrize(
    "failure",
    [TOO_LONG, {"type": "error", "status": 400, "error": {"code": "websocket_connection_limit_reached"}}],
)
async def test_a_failure_of_the_request_itself_counts_for_nothing(failure: dict[str, Any]) -> None:
    provider, clock = Provider("a", "b"), Clock()
    app = SessionPinMiddleware(provider, clock=clock)
    await pinned_to_a(app, turns=1)
    provider.said["a"] = [failure]
    async with connected(app) as client:
        for _ in range(5):
            await client.turn()
            clock.now += 1
    assert provider.asked[1:] == ["a"] * 5


async def test_where_routing_did_no_better_lately_failures_count_for_nothing() -> None:
    async def fail(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    provider, gateway, clock = Provider("a", "b"), Gateway("b", answer=fail), Clock()

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        await (gateway if scope["type"] == "http" else provider)(scope, receive, send)

    app = SessionPinMiddleware(both, clock=clock)
    await pinned_to_a(app)
    await call(app, {"model": "auto", "input": "hi"}, SESSION, path=RESPONSES)
    assert gateway.asked == ["a", "auto"]
    provider.said["a"] = [BUSY]
    async with connected(app) as client:
        for _ in range(5):
            await client.turn()
            clock.now += 1
    assert provider.asked[2:] == ["a"] * 5


async def test_who_asks_for_the_pinned_name_itself_is_not_judged() -> None:
    provider = Provider("a", "b")
    app = SessionPinMiddleware(provider)
    async with connected(app) as client:
        await client.turn("a")
        provider.said["a"] = [BUSY]
        for _ in range(5):
            await client.turn("a")
        provider.said["a"] = response("b")
        await client.turn("a")
        await client.turn("a")
    assert provider.asked == ["a"] * 8


@case(Section.WEBSOCKET, "the first answer under a pin names another model", "the pin is given up, as for HTTP")
async def test_a_name_that_is_misunderstood_is_given_up() -> None:
    provider = Provider("a", "b")
    app = SessionPinMiddleware(provider)
    await pinned_to_a(app, turns=1)
    provider.said["a"] = response("c")
    async with connected(app) as client:
        await client.turn()
        await client.turn()
    assert provider.asked[1:] == ["a", "auto"]


@case(
    Section.WEBSOCKET,
    "the app closes the socket, or fails, within an answer",
    "that; it counts as a failure. A client that leaves is none, but after 30 s without output",
)
@pytest.mark.parametrize("manner", ["close", "raise", "return"])
async def test_a_socket_that_breaks_off_counts_as_a_failure(manner: str) -> None:
    provider, clock = Provider("a", "b"), Clock()

    async def breaking(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        provider.texts.append((await receive())["text"])
        await send({"type": "websocket.send", "text": json.dumps(response("a")[0])})
        if manner == "close":
            await send({"type": "websocket.close", "code": 1011})
        elif manner == "raise":
            raise RuntimeError("a fault")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (breaking if provider.texts[2:] or breaks else provider)(scope, receive, send)

    breaks = False
    pinned = SessionPinMiddleware(app, clock=clock)
    await pinned_to_a(pinned)
    breaks = True
    for _ in range(4):
        client = Client(pinned, SESSION)
        client.create()
        with suppress(RuntimeError):
            await client.running
        clock.now += 1
    assert provider.asked[2:] == ["a", "a", "a", "auto"]


@pytest.mark.parametrize(("seconds", "expected"), [(29.0, "a"), (31.0, "auto")])
@pytest.mark.parametrize("manner", ["leave", "cancel", "raise"])
async def test_a_client_that_leaves_is_no_failure_unless_it_waited_for_long(
    seconds: float, expected: str, manner: str
) -> None:
    provider, clock = Provider("a", "b"), Clock()
    app = SessionPinMiddleware(provider, clock=clock)
    await pinned_to_a(app)
    for _ in range(3):
        provider.hold.clear()
        client = Client(app, SESSION)
        client.create()
        count = len(provider.texts)
        await until(partial(provider.has_more_than, count))
        clock.now += seconds
        if manner == "cancel":
            client.running.cancel()
        else:
            client.leave()
        with suppress(asyncio.CancelledError):
            await client.running
        clock.now += 1
    provider.hold.set()
    async with connected(app) as client:
        await client.turn()
    assert provider.asked[5:] == [expected]


async def test_a_server_whose_send_fails_as_the_client_has_left_is_no_failure() -> None:
    provider, clock = Provider("a", "b"), Clock()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            provider.texts.append(message["text"])
            for event in response("a"):
                await send({"type": "websocket.send", "text": json.dumps(event)})

    async def fail(message: Message) -> None:
        if "delta" in message.get("text", ""):
            raise OSError("gone")

    pinned = SessionPinMiddleware(app, clock=clock)
    await pinned_to_a(pinned)
    for _ in range(4):
        client = Client(pinned, SESSION)
        client.on_send = fail
        client.create()
        with pytest.raises(OSError, match="gone"):
            await client.running
        clock.now += 1
    assert provider.asked[2:] == ["a"] * 4


# Several answers at a time


async def test_answers_at_the_same_time_are_told_apart_by_their_streams() -> None:
    provider = Provider("x")
    first, second = response("a", stream_id="1"), response("b", stream_id="2")
    provider.said["one"], provider.said["two"] = [], [*second[:1], *first, *second[1:]]
    async with connected(SessionPinMiddleware(provider)) as client:
        client.create("one", stream_id="1")
        client.create("two", stream_id="2")
        await client.until(lambda: client.events.count("response.completed") == 2)
        provider.said = {}
        await client.turn("one")
        await client.turn("two")
    assert provider.asked == ["one", "two", "a", "b"]


@case(
    Section.WEBSOCKET,
    "an `error` that may be of another answer under way, or of a message that asks for no response",
    "it goes on, and nothing is learned of what is under way",
)
@pytest.mark.parametrize("asks_else", [True, False])
async def test_an_error_that_may_be_of_something_else_says_nothing_of_a_model(asks_else: bool) -> None:
    provider = Provider("a")
    app = SessionPinMiddleware(provider)
    await pinned_to_a(app)
    provider.said = {None: [], "a": []}
    async with connected(app) as client:
        if asks_else:
            client.send({"type": "response.processed"})
        client.create()
        if not asks_else:
            client.create()
        await until(lambda: provider.has_more_than(3))
        provider.said["a"] = [REFUSAL, *response("other")]
        client.create()
        await client.until(lambda: client.events[-1:] == ["response.completed"])
        del provider.said["a"]
        await client.turn()
    assert provider.asked[-1] == "a"


async def test_answers_that_never_end_are_looked_at_within_bounds() -> None:
    provider, events = Provider("a"), list[PinEvent]()
    provider.said["a"] = response("a")[:2]
    app = SessionPinMiddleware(provider, listeners=[events.append])
    async with connected(app) as client:
        client.create()
        await client.until(lambda: len(client.events) == 2)
        for _ in range(MAX_OPEN + 5):
            client.create()
        await client.until(lambda: len(client.events) == 2 * (MAX_OPEN + 6))
        assert len(events) == 6
    assert len(events) == MAX_OPEN + 6


async def test_an_app_may_send_the_end_of_an_answer_twice_at_once() -> None:
    events = list[PinEvent]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        ends = [json.dumps(event) for event in (TOO_LONG, response("a")[-1])]
        await asyncio.gather(*(send({"type": "websocket.send", "text": end}) for end in ends))
        await receive()

    async with connected(SessionPinMiddleware(app, listeners=[events.append])) as client:
        client.create()
        await client.until(lambda: len(client.events) == 2)
    assert client.events == ["error", "response.completed"]
    assert statuses(events) == ["miss"]


# An app that waits for a message for some time only


class SlowStore(MemoryStore):
    """Takes longer than the app waits."""

    async def get(self, key: bytes) -> Any:
        for _ in range(20):
            await asyncio.sleep(0)
        return await super().get(key)


def polling(texts: list[str]) -> ASGIApp:
    """An app that asks for the next message again and again."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        message: Message = {}
        while message.get("type") != "websocket.disconnect":
            asking = asyncio.ensure_future(receive())
            for _ in range(5):
                await asyncio.sleep(0)
            asking.cancel()
            with suppress(asyncio.CancelledError):
                message = await asking
                texts.append(message.get("text", ""))

    return app


@case(Section.WEBSOCKET, "an app that gives up waiting for a message, and asks again", "it gets each message, and once")
async def test_an_app_that_polls_gets_each_message_once() -> None:
    texts: list[str] = []
    async with connected(SessionPinMiddleware(polling(texts), store=SlowStore())) as client:
        client.create(n=1)
        await until(lambda: len(texts) == 1)
        client.send({"type": "else"})
        await until(lambda: len(texts) == 2)
    assert [json.loads(text).get("n") for text in texts[:2]] == [1, None]


async def test_a_socket_that_ends_while_a_message_is_being_pinned_leaves_nothing() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        asking = asyncio.ensure_future(receive())
        for _ in range(5):
            await asyncio.sleep(0)
        asking.cancel()

    events: list[PinEvent] = []
    middleware = SessionPinMiddleware(app, store=SlowStore(), listeners=[events.append])
    before = asyncio.all_tasks()
    async with connected(middleware) as client:
        client.create()
        await client.running
    assert asyncio.all_tasks() == before
    assert events == []


async def test_a_reset_that_an_app_did_not_wait_for_is_made_all_the_same() -> None:
    texts: list[str] = []
    store = SlowStore()
    async with connected(SessionPinMiddleware(Provider("a", "b"), store=store)) as first:
        await first.turn()
    async with connected(
        SessionPinMiddleware(polling(texts), store=store), SESSION, (b"x-session-pin", b"reset")
    ) as client:
        client.create()
        await until(lambda: len(texts) == 1)
    assert json.loads(texts[0])["model"] == "auto"
