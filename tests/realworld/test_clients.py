"""SDKs as people use them, through `asgi-session-pin serve`: which model served each request?"""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic import Anthropic
from openai import OpenAI

from realworld.pinned_router import PinnedRouter, pinned_router
from realworld.routing_provider import LARGE, SMALL
from realworld.sdk_conversations import CONVERSATIONS, KEY, Conversation

EASY, HARD = "What time is it?", "A HARD question."

every_sdk = pytest.mark.parametrize("sdk", CONVERSATIONS, ids=lambda sdk: sdk.__name__)
plain_and_streamed = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])


@pytest.fixture(scope="module")
def shared_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PinnedRouter]:
    with pinned_router(tmp_path_factory.mktemp("sdk"), "sdk.yaml") as router:
        yield router


@pytest.fixture
def router(shared_router: PinnedRouter) -> PinnedRouter:
    """The provider's router, pinned; nobody has asked it yet."""
    shared_router.take_requests()
    return shared_router


def new_session() -> dict[str, str]:
    return {"X-Session-Id": str(uuid.uuid4())}


def served(router: PinnedRouter) -> list[str]:
    return [request["served"] for request in router.take_requests()]


@every_sdk
@plain_and_streamed
def test_without_the_header_the_model_changes_with_the_prompt(
    router: PinnedRouter, sdk: type[Conversation], stream: bool
) -> None:
    talk = sdk(router.url, stream=stream)
    for prompt, model in [(EASY, SMALL), (HARD, LARGE), (EASY, SMALL)]:
        assert talk.say(prompt) == f"Hello from {model}."
        assert "x-session-pinned" not in talk.headers
        assert served(router) == [model]


@every_sdk
@plain_and_streamed
@pytest.mark.parametrize("way", ["default_headers", "extra_headers"])
@pytest.mark.parametrize(("first", "then", "model"), [(EASY, HARD, SMALL), (HARD, EASY, LARGE)], ids=["easy", "hard"])
def test_a_session_stays_on_the_routers_first_choice(
    router: PinnedRouter, sdk: type[Conversation], stream: bool, way: str, first: str, then: str, model: str
) -> None:
    headers: Any = {way: new_session()}
    talk = sdk(router.url, stream=stream, **headers)
    for turn, prompt in enumerate([first, then, first, then]):
        assert talk.say(prompt) == f"Hello from {model}."
        [request] = router.take_requests()
        assert request["served"] == model
        assert request["body"].get("stream", False) is stream
        history = request["body"].get("messages") or request["body"]["input"]
        assert [message["role"] for message in history] == ["user", "assistant"] * turn + ["user"]
        assert talk.headers["x-session-pin-status"] == ("hit" if turn else "miss")
        assert talk.headers["x-session-pinned"] == ("true" if turn else "false")
    assert talk.headers["x-session-model"] == model


@every_sdk
@plain_and_streamed
def test_a_main_and_a_small_model_named_in_one_session_each_stay_as_asked(
    router: PinnedRouter, sdk: type[Conversation], stream: bool
) -> None:
    talk = sdk(router.url, stream=stream, default_headers=new_session())
    for model in (LARGE, SMALL, LARGE, SMALL):
        assert talk.say(HARD, model) == f"Hello from {model}."
        assert talk.headers["x-session-pin-status"] == "ignored; reason=model-not-routed"
    assert talk.say(EASY) == f"Hello from {SMALL}."
    assert talk.say(HARD, LARGE) == f"Hello from {LARGE}."
    assert talk.say(HARD) == f"Hello from {SMALL}."
    assert served(router) == [LARGE, SMALL, LARGE, SMALL, SMALL, LARGE, SMALL]


CALL = f'{HARD} CALL clock {{"zone": "UTC"}}'
ZONE = {"type": "object", "properties": {"zone": {"type": "string"}}}


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "not pinned"])
def test_a_loop_of_tool_calls_by_openai_stays_with_the_model_that_began_it(router: PinnedRouter, pinned: bool) -> None:
    headers = new_session() if pinned else {}
    tools: Any = [{"type": "function", "function": {"name": "clock", "parameters": ZONE}}]
    messages: list[Any] = [{"role": "user", "content": CALL}]
    with OpenAI(base_url=f"{router.url}/v1", api_key=KEY, default_headers=headers, max_retries=0) as client:
        answer = client.chat.completions.create(model="auto", messages=messages, tools=tools).choices[0].message
        assert answer.tool_calls is not None
        [call] = answer.tool_calls
        assert call.type == "function"
        assert json.loads(call.function.arguments) == {"zone": "UTC"}
        messages += [answer, {"role": "tool", "tool_call_id": call.id, "content": "noon"}]
        told = client.chat.completions.create(model="auto", messages=messages, tools=tools).choices[0].message
    first, second = router.take_requests()
    assert [first["served"], second["served"]] == [LARGE, LARGE if pinned else SMALL]
    assert told.content == f"Hello from {second['served']}."
    _, called, result = second["body"]["messages"]
    assert called["tool_calls"][0]["id"] == result["tool_call_id"] == call.id


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "not pinned"])
def test_a_streamed_loop_of_tool_calls_by_anthropic_stays_with_the_model_that_began_it(
    router: PinnedRouter, pinned: bool
) -> None:
    headers = new_session() if pinned else {}
    tools: Any = [{"name": "clock", "input_schema": ZONE}]
    messages: list[Any] = [{"role": "user", "content": CALL}]
    with Anthropic(base_url=router.url, api_key=KEY, default_headers=headers, max_retries=0) as client:
        with client.messages.stream(model="auto", max_tokens=100, messages=messages, tools=tools) as stream:
            [call] = stream.get_final_message().content
        assert call.type == "tool_use"
        assert call.input == {"zone": "UTC"}
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "noon"}
        messages += [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
        with client.messages.stream(model="auto", max_tokens=100, messages=messages, tools=tools) as stream:
            told = stream.get_final_text()
    first, second = router.take_requests()
    assert [first["served"], second["served"]] == [LARGE, LARGE if pinned else SMALL]
    assert told == f"Hello from {second['served']}."
    _, called, answered = second["body"]["messages"]
    assert called["content"][0]["id"] == answered["content"][0]["tool_use_id"] == call.id
