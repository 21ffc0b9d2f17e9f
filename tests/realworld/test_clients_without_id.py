"""SDKs as they are, without any header of ours: their conversations are known by how they begin."""

from collections.abc import Iterator
from typing import Any

import pytest
from anthropic import Anthropic

from realworld.pinned_router import PinnedRouter, pinned_router
from realworld.routing_provider import LARGE, SMALL
from realworld.sdk_conversations import CONVERSATIONS, KEY, Conversation

EASY, HARD = "What time is it?", "A HARD question."
MARK = {"cache_control": {"type": "ephemeral"}}


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PinnedRouter]:
    with pinned_router(tmp_path_factory.mktemp("without_ids"), "without_ids.yaml") as router:
        yield router


@pytest.mark.parametrize("sdk", CONVERSATIONS, ids=lambda sdk: sdk.__name__)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(("first", "then", "model"), [(EASY, HARD, SMALL), (HARD, EASY, LARGE)], ids=["easy", "hard"])
def test_a_conversation_stays_on_the_routers_first_choice(
    router: PinnedRouter, sdk: type[Conversation], stream: bool, first: str, then: str, model: str
) -> None:
    first = f"{first} By {sdk.__name__}, {'streamed' if stream else 'plain'}."
    talk = sdk(router.url, stream=stream)
    for turn, prompt in enumerate([first, then, first, then]):
        assert talk.say(prompt) == f"Hello from {model}."
        assert talk.headers["x-session-pin-status"] == f"{'hit' if turn else 'miss'}; source=fingerprint"
    other = sdk(router.url, stream=stream)
    assert other.say(f"{then} By {sdk.__name__}, {stream}.") == f"Hello from {SMALL if model == LARGE else LARGE}."


def test_a_tool_loop_whose_cache_marks_wander_stays_with_the_model_that_began_it(router: PinnedRouter) -> None:
    tools: Any = [{"name": "clock", "input_schema": {"type": "object"}}]
    prompt = {"type": "text", "text": f"{HARD} CALL clock {{}}"}
    messages: list[Any] = [{"role": "user", "content": [{**prompt, **MARK}]}]
    router.take_requests()
    with Anthropic(base_url=router.url, api_key=KEY, max_retries=0) as client:
        asked: Any = {"model": "auto", "max_tokens": 100, "tools": tools}
        [call] = client.messages.create(system="You are it.", messages=messages, **asked).content
        assert call.type == "tool_use"
        messages[0]["content"] = prompt["text"]
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "noon", **MARK}
        messages += [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
        system: Any = [{"type": "text", "text": "You are it.", **MARK}]
        client.messages.create(system=system, messages=messages, **asked)
    assert [request["served"] for request in router.take_requests()] == [LARGE, LARGE]
