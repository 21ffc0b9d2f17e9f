"""The endpoints that are ours by default, and those of other applications that are called the same."""

import pytest

from asgi_driver import SESSION, Gateway, call
from asgi_session_pin import SessionPinMiddleware
from asgi_session_pin.events import PinEvent
from behaviour_document import Section, case

OURS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/anthropic/v1/messages",
    "/v1/responses",
    "/v1/responses/compact",
    "/engines/v1/chat/completions",
    "/engines/llama.cpp/v1/chat/completions",
    "/exp/vDD4.40/engines/v1/chat/completions",
]


@pytest.mark.parametrize("path", OURS)
async def test_a_session_keeps_its_model_on_each_of_the_usual_endpoints(path: str) -> None:
    gateway = Gateway("a", "b")
    app = SessionPinMiddleware(gateway)
    content = {"model": "auto", "input": "hello"}
    assert [(await call(app, content, SESSION, path=path)).pin_status for _ in range(2)] == ["miss", "hit"]
    assert gateway.asked == ["auto", "a"]


@case(
    Section.SESSION,
    "`*/messages` and `*/completions` without `/v1`, the model in the path (`*/deployments/*`, `*/engines/*`)",
    "nothing of ours, unless `endpoints` names it",
)
@pytest.mark.parametrize(
    "path",
    [
        "/messages",
        "/chat/messages",
        "/completions",
        "/v1/engines/davinci/completions",
        "/engines/gpt-4o/chat/completions",
        "/engines/v1/embeddings",
        "/openai/deployments/gpt-4o/chat/completions",
    ],
)
async def test_other_endpoints_are_pinned_where_they_are_configured(path: str) -> None:
    content = {"model": "auto"}
    assert (await call(SessionPinMiddleware(Gateway("a")), content, SESSION, path=path)).pin_status is None
    configured = SessionPinMiddleware(Gateway("a"), config={"endpoints": [{"path": path}]})
    assert (await call(configured, content, SESSION, path=path)).pin_status == "miss"


@case(
    Section.SESSION,
    "`*/responses` with a JSON object that has none of `input`, `prompt`, `previous_response_id` and `conversation`",
    "nothing of ours: another application has an endpoint of that name",
)
async def test_the_responses_of_another_application_pass_untouched() -> None:
    events: list[PinEvent] = []
    gateway = Gateway("a", "b")
    app = SessionPinMiddleware(gateway, listeners=[events.append])
    content = b'{"survey": 5, "model": "auto", "answers": [{"input": 1}]}'
    for _ in range(2):
        answer = await call(app, content, SESSION, path="/forms/5/responses")
        assert [name for name in answer.headers if name.startswith("x-session")] == []
    assert gateway.bodies == [content, content]
    assert [(b"x-session-pinned", b"true") in scope["headers"] for scope in gateway.scopes] == [False, False]
    assert events == []


@pytest.mark.parametrize("member", ["input", "prompt", "previous_response_id", "conversation"])
async def test_a_request_for_a_response_has_one_of_four_members(member: str) -> None:
    app = SessionPinMiddleware(Gateway("a", "b"))
    content = {"model": "auto", member: None}
    assert [(await call(app, content, SESSION, path="/v1/responses")).pin_status for _ in range(2)] == ["miss", "hit"]


async def test_an_endpoint_for_responses_that_is_configured_takes_whatever_comes() -> None:
    app = SessionPinMiddleware(Gateway("a"), config={"endpoints": [{"path": "/llm/responses"}]})
    assert (await call(app, {"model": "auto"}, SESSION, path="/llm/responses")).pin_status == "miss"
