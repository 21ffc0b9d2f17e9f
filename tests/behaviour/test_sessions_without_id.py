"""Sessions of clients that send no id, by how their conversations begin."""

import json
from typing import Any

import pytest
from starlette.types import Send

from asgi_driver import DECISION, SESSION, Gateway, Header, call, respond
from asgi_session_pin import Config, SessionPinMiddleware, Sessions, get_session_pin
from asgi_session_pin.events import PinEvent
from behaviour_document import Section, case

KEY: Header = (b"authorization", b"Bearer sk-1")
OTHER_KEY: Header = (b"authorization", b"Bearer sk-2")
SOURCES = ("preset:coding-agents", "preset:body-ids", "fingerprint")


def turn(number: int, prompt: str = "Fix the bug.") -> dict[str, Any]:
    """The request of a conversation that has come so far."""
    more = [{"role": "assistant", "content": "Done."}, {"role": "user", "content": "And now?"}]
    return {"model": "auto", "messages": [{"role": "user", "content": prompt}, *more * number]}


def pinned(gateway: Gateway, **sessions: Any) -> SessionPinMiddleware:
    return SessionPinMiddleware(gateway, config=Config(sessions=Sessions(sources=SOURCES, **sessions)))


@case(
    Section.SESSION,
    "no id, with `fingerprint` as the last source",
    "a session by the credential, the system prompt, the tools' names and the user's first text; the status says "
    "`; source=fingerprint`",
)
async def test_the_turns_of_a_conversation_without_an_id_keep_their_model() -> None:
    gateway = Gateway("a", "b", "c")
    app = pinned(gateway)
    answers = [await call(app, turn(number), KEY) for number in range(3)]
    assert [answer.pin_status for answer in answers] == [
        "miss; source=fingerprint",
        "hit; source=fingerprint",
        "hit; source=fingerprint",
    ]
    assert answers[2].headers["x-session-pinned"] == "true"
    assert gateway.asked == ["auto", "a", "a"]
    other = await call(app, turn(0, "Write a test."), KEY)
    assert other.pin_status == "miss; source=fingerprint"


@case(Section.SESSION, "the same conversation with another credential", "another session")
async def test_users_with_equal_prompts_never_share() -> None:
    gateway = Gateway("a", "b")
    app = pinned(gateway)
    for key in (KEY, OTHER_KEY, KEY, OTHER_KEY):
        await call(app, turn(0), key)
    assert gateway.asked == ["auto", "auto", "a", "b"]


@case(
    Section.SESSION,
    "`fingerprint`, but no credential, or a request that does not hold how its conversation began",
    "nothing of ours",
)
@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (turn(1), []),
        (turn(1), [(b"authorization", b"")]),
        (turn(1), [(b"authorization", b"Bearer ")]),
        ({"model": "auto"}, [KEY]),
        ({"model": "auto", "prompt": "Once upon a time"}, [KEY]),
        ({**turn(1), "previous_response_id": "resp_1"}, [KEY]),
        (b"no json", [KEY]),
    ],
)
async def test_where_there_is_no_fingerprint_the_request_passes_untouched(content: Any, headers: list[Header]) -> None:
    gateway = Gateway("a", "b")
    app = pinned(gateway)
    for _ in range(2):
        answer = await call(app, content, *headers)
        assert answer.pin_status is None
        assert "x-session-pinned" not in answer.headers
    assert gateway.bodies[1] == (content if isinstance(content, bytes) else json.dumps(content).encode())


async def test_without_the_setting_there_are_no_fingerprints() -> None:
    assert (await call(SessionPinMiddleware(Gateway("a")), turn(0), KEY)).pin_status is None


async def test_events_name_the_source_too() -> None:
    events: list[PinEvent] = []
    config = {"sessions": {"sources": ["body:user", "fingerprint"]}}
    app = SessionPinMiddleware(Gateway("a"), config=config, listeners=[events.append])
    await call(app, turn(0), KEY)
    await call(app, {**turn(0), "user": "ann-0123456789"}, KEY)
    assert [event.source for event in events] == ["fingerprint", "body:user"]


async def test_an_id_goes_before_a_fingerprint() -> None:
    app = pinned(Gateway("a"))
    for headers, body in (([SESSION], {}), ([], {"prompt_cache_key": "key-1"})):
        statuses = [(await call(app, {**turn(0, str(n)), **body}, KEY, *headers)).pin_status for n in range(2)]
        assert statuses == ["miss", "hit"]


async def test_an_id_that_cannot_be_used_is_not_replaced_by_a_fingerprint() -> None:
    answer = await call(pinned(Gateway("a")), turn(0), KEY, (b"x-session-id", b"undefined"))
    assert answer.pin_status == "ignored; reason=invalid-session-id"


async def test_a_credential_is_whatever_tells_sessions_apart() -> None:
    gateway = Gateway("a", "b")
    app = pinned(gateway, partition_by=("header:x-tenant", "header:x-user"))
    assert (await call(app, turn(0), KEY)).pin_status is None
    for user in (b"1", b"2", b"1", b"2"):
        await call(app, turn(0), (b"x-user", user))
    assert gateway.asked[1:] == ["auto", "auto", "b", "b"]


async def test_the_source_stands_before_the_reason() -> None:
    config = {"sessions": {"sources": ["fingerprint"]}, "routing": {"router_models": ["smart"]}}
    answer = await call(SessionPinMiddleware(Gateway("a"), config=config), turn(0), KEY)
    assert answer.pin_status == "ignored; source=fingerprint; reason=model-not-routed"


async def test_a_reset_and_a_second_call_of_the_app_are_told_with_the_source() -> None:
    async def fail(send: Send, model: str) -> None:
        await respond(send, b"", status=503)

    app = pinned(Gateway("a", "b", serve=fail))
    await call(app, turn(0), KEY)
    assert (await call(app, turn(1), KEY)).pin_status == "reroute; source=fingerprint"
    assert (await call(app, turn(1), KEY, (b"x-session-pin", b"reset"))).pin_status == "miss; source=fingerprint"
    assert (await call(app, turn(1), KEY, (b"x-session-pin", b"off"))).pin_status is None


async def test_the_app_sees_an_id_that_holds_nothing_of_the_prompt_or_the_credential() -> None:
    seen: list[str] = []
    gateway = Gateway("a")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pin = get_session_pin(scope)
        assert pin is not None
        seen.append(pin.session_id)
        await gateway(scope, receive, send)

    middleware = SessionPinMiddleware(app, config=Config(sessions=Sessions(sources=SOURCES)))
    for key in (KEY, KEY, OTHER_KEY):
        await call(middleware, turn(0), key)
    assert seen[0] == seen[1] != seen[2]
    assert all(len(each) == 32 and int(each, 16) for each in seen)
    assert await middleware.forget(seen[0], headers={"Authorization": "Bearer sk-1"}, model="auto")


async def test_a_decision_endpoint_takes_a_fingerprint_too() -> None:
    app = pinned(Gateway("a", "b"))
    first = await call(app, turn(0), KEY, path=DECISION)
    assert first.json["pinned"] is False
    second = await call(app, turn(1), KEY, path=DECISION)
    assert (second.pin_status, second.json["model"]) == ("hit; source=fingerprint", "a")
    assert second.json["session_id"] == first.json["session_id"]
