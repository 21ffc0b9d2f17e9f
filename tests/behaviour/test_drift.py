"""A gateway that answers a pinned name under another one: it misunderstood the name, or drifted from it later."""

import gzip
import json
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from asgi_driver import JSON_TYPE, SESSION, SSE_TYPE, Header, asked_model, call, read_body, respond
from asgi_session_pin import Config, Decisions, PinEvent, Routing, SessionPinMiddleware, get_session_pin
from asgi_session_pin.pins.health import COMPARE_EVERY
from behaviour_document import Section, case

AUTO = {"model": "auto"}


class Gateway:
    """Answers in turn under each of *names*, the last one for ever, whatever it is asked for."""

    def __init__(self, *names: str | None, streams: bool = False, header: bytes | None = None) -> None:
        self.names = list(names)
        self.streams = streams
        self.header = header
        self.asked: list[Any] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(asked_model(await read_body(receive)))
        name = self.names.pop(0) if len(self.names) > 1 else self.names[0]
        headers = [SSE_TYPE if self.streams else JSON_TYPE]
        content = b"{}" if name is None else json.dumps({"model": name}).encode()
        if self.header is not None and name is not None:
            headers.append((self.header, name.encode()))
            content = b"{}"
        await respond(send, b"data: " + content + b"\n\n" if self.streams else content, headers=headers)


async def statuses(app: SessionPinMiddleware, count: int, *headers: Header) -> list[str | None]:
    return [(await call(app, AUTO, SESSION, *headers)).pin_status for _ in range(count)]


# Claude Code Router answers 200 under its default model to a name that it does not know.
@case(
    Section.FAILURE,
    "the first pinned answer names another model than the one that made the pin",
    "that answer; the pin is given up and the name refused",
)
@pytest.mark.parametrize("streams", [False, True])
async def test_a_name_that_the_gateway_misunderstands_is_given_up_and_refused(
    streams: bool, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway("gpt-4o-mini", "gpt-4o", "gpt-4o-mini", "gpt-4o-mini", streams=streams)
    app = SessionPinMiddleware(gateway)
    assert await statuses(app, 4) == ["miss", "hit", "miss", "miss"]
    assert gateway.asked == ["auto", "gpt-4o-mini", "auto", "auto"]
    assert caplog.text.count("was asked for the model 'gpt-4o-mini', which it had named itself") == 1
    assert "answered as 'gpt-4o'" in caplog.text


async def test_a_name_that_a_header_gives_is_compared_too() -> None:
    gateway = Gateway("a", "b", header=b"x-model")
    config = Config(decisions=Decisions(sources=("header:x-model",)))
    assert await statuses(SessionPinMiddleware(gateway, config=config), 3) == ["miss", "hit", "miss"]
    gateway = Gateway("a", "b", header=b"x-model", streams=True)
    assert await statuses(SessionPinMiddleware(gateway, config=config), 3) == ["miss", "hit", "miss"]


async def test_a_name_that_has_served_is_not_refused_where_a_gateway_falls_back_on_its_own() -> None:
    gateway = Gateway("a", "a", "a", "b", "a", "a")
    app = SessionPinMiddleware(gateway)
    assert await statuses(app, 2) == ["miss", "hit"]
    other: Header = (b"x-session-id", b"session-2")
    answers = [await call(app, AUTO, other) for _ in range(4)]
    assert [answer.pin_status for answer in answers] == ["miss", "hit", "miss", "hit"], "given up, and pinned again"


async def test_litellm_that_tells_of_its_own_fallback_is_not_compared() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        headers = [JSON_TYPE, (b"x-litellm-attempted-fallbacks", b"1" if falls_back else b"0")]
        name = "mini" if falls_back else "claude" if asked == "smart" else asked
        await respond(send, json.dumps({"model": name}).encode(), headers=headers)

    middleware = SessionPinMiddleware(app)
    falls_back = False
    assert (await call(middleware, {"model": "smart"}, SESSION)).pin_status == "miss"
    falls_back = True
    assert (await call(middleware, {"model": "smart"}, SESSION)).json["model"] == "mini"
    falls_back = False
    answer = await call(middleware, {"model": "smart"}, SESSION)
    assert (answer.pin_status, answer.json["model"]) == ("hit", "claude")


@case(Section.FAILURE, "a later one does", "that answer; told in the log and as `PinEvent.drift`; the pin stays")
async def test_later_drift_is_counted_and_told_and_the_pin_stays(caplog: pytest.LogCaptureFixture) -> None:
    events: list[PinEvent] = []
    app = SessionPinMiddleware(Gateway("a", "a", "b", "b", "a", "a"), listeners=[events.append])
    assert await statuses(app, 5) == ["miss", "hit", "hit", "hit", "hit"]
    assert [event.drift for event in events] == [False, False, True, True, False]
    assert caplog.text.count("requests that are pinned to the model 'a' are also answered as 'b'") == 1


async def test_without_listeners_some_answers_are_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    app = SessionPinMiddleware(Gateway("a", "a", "b"))
    await statuses(app, 2)
    assert await statuses(app, COMPARE_EVERY) == ["hit"] * COMPARE_EVERY
    assert caplog.text.count("are also answered as 'b'") == 1


@pytest.mark.parametrize(
    "names",
    [
        ("a", "a-2024-08-06"),
        ("a-2024-08-06", "a"),
        ("a-2024-08-06", "a-2024-08-06"),
        ("a", None),
        ("a", "none"),
        ("a", "router/x"),
    ],
)
async def test_the_same_name_with_a_date_and_no_name_are_no_drift(names: tuple[str | None, ...]) -> None:
    config = Config(routing=Routing(router_models=("auto", "router/*")))
    assert await statuses(SessionPinMiddleware(Gateway(*names), config=config), 3) == ["miss", "hit", "hit"]


async def test_aliases_hold_on_both_sides() -> None:
    config = Config(decisions=Decisions(aliases={"provider-*": "group"}))
    gateway = Gateway("provider-1", "provider-2")
    assert await statuses(SessionPinMiddleware(gateway, config=config), 3) == ["miss", "hit", "hit"]
    assert gateway.asked == ["auto", "group", "group"]


async def test_only_like_is_compared_with_like() -> None:
    # Gateways also name a model otherwise where they stream.
    gateway = Gateway("a", "other")
    app = SessionPinMiddleware(gateway)
    assert await statuses(app, 1) == ["miss"]
    gateway.streams = True
    assert await statuses(app, 2) == ["hit", "hit"]
    gateway = Gateway("a", "other", header=b"x-model")
    app = SessionPinMiddleware(gateway, config={"decisions": {"sources": ["header:x-model", "body:model"]}})
    assert await statuses(app, 1) == ["miss"]
    gateway.header = None
    assert await statuses(app, 2) == ["hit", "hit"]


@pytest.mark.parametrize(("names", "expected"), [(("x", "y"), "miss"), (("x", "x"), "hit"), (("auto", "a"), "hit")])
async def test_for_a_stated_decision_what_the_responses_name_is_compared(names: tuple[str, str], expected: str) -> None:
    gateway = Gateway(*names)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pin = get_session_pin(scope)
        if pin is not None and not pin.pinned:
            pin.record("a")
        await gateway(scope, receive, send)

    assert await statuses(SessionPinMiddleware(app), 3) == ["miss", "hit", expected]


async def test_a_refusal_in_a_compressed_body_is_read() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        if asked == "auto" or not refuses:
            return await respond(send, b'{"model":"a"}')
        error = b'{"error":{"message":"Invalid model name passed in model=a"}}'
        content = gzip.compress(error) if coding == b"gzip" else error
        return await respond(send, content, status=400, headers=[JSON_TYPE, (b"content-encoding", coding)])

    refuses = False
    middleware = SessionPinMiddleware(app)
    assert await statuses(middleware, 2) == ["miss", "hit"]
    refuses = True
    coding = b"deflate"  # which it is not
    assert await statuses(middleware, 1) == ["hit"]
    coding = b"unknown"
    assert await statuses(middleware, 1) == ["hit"]
    coding = b"gzip"
    assert await statuses(middleware, 1) == ["reroute"]


async def test_an_error_with_status_200_proves_nothing_of_the_name() -> None:
    # vLLM behind RunPod answers so: runpod-workers/worker-vllm issue 57.
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        if asked == "auto":
            return await respond(send, b'{"model":"a"}')
        if refuses_well:
            return await respond(send, b"{}", status=500)
        return await respond(send, b'{"object":"error","code":404,"message":"The model `a` does not exist."}')

    refuses_well = False
    middleware = SessionPinMiddleware(app)
    assert await statuses(middleware, 2) == ["miss", "reroute"]
    refuses_well = True
    assert await statuses(middleware, 1) == ["reroute"]
