"""LiteLLM's auto-router, pinned: which model was its provider really asked for?"""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from realworld.conftest import LITELLM, in_front, litellm_client, litellm_environment

EASY = "What is the capital of France?"
HARD = (
    "Design a distributed database: analyze the trade-offs of its consensus algorithm step by step, then implement the "
    "replication protocol as a Python class with async functions."
)
# The provider's names, by the group that asks for them.
MINI = "gpt-4o-mini"
CLAUDE = "claude-sonnet-4"
GROUPS = {MINI: "mini", CLAUDE: "claude"}

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
every_kind = pytest.mark.parametrize(
    ("path", "stream"), [(path, stream) for path in (CHAT, MESSAGES, RESPONSES) for stream in (False, True)]
)


class Asker:
    """A client that tells which models its gateway asked the provider for."""

    def __init__(self, gateway: httpx.Client, provider: httpx.Client) -> None:
        self._gateway = gateway
        self._provider = provider

    def ask(
        self, path: str, prompt: str, session_id: str | None = None, *, stream: bool = False, model: str = "smart"
    ) -> tuple[list[str], httpx.Response]:
        """Return the models that the provider was asked for, and the answer, which has come whole and is good."""
        headers = {"x-session-id": session_id} if session_id else {}
        asked, answer = self.try_to_ask(path, prompt, headers, stream=stream, model=model)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
        assert text_of(answer) == f"Hello from {asked[-1]}-2024-07-18."
        return asked, answer

    def try_to_ask(
        self,
        path: str,
        prompt: str,
        headers: dict[str, str],
        *,
        stream: bool = False,
        model: str = "smart",
        **more: Any,
    ) -> tuple[list[str], httpx.Response]:
        """Return the models that the provider was asked for, and the answer, good or bad; *more* goes into the body."""
        body = {"model": model, "stream": stream, "max_tokens": 100, "messages": [{"role": "user", "content": prompt}]}
        if path == RESPONSES:
            body = {"model": model, "stream": stream, "input": prompt}
        answer = self._gateway.post(path, json=body | more, headers=headers)
        asked: list[str] = self._provider.delete("/asked").json()
        return asked, answer

    def take_out(self, *models: str) -> None:
        """Have the provider refuse these models from now on, and serve the others."""
        self._provider.put("/out", json=models)


@pytest.fixture
def asker(litellm: httpx.Client, provider: httpx.Client) -> Iterator[Asker]:
    asker = Asker(litellm, provider)
    provider.delete("/asked")
    yield asker
    asker.take_out()


def new_session() -> dict[str, str]:
    """Return the headers of a session of somebody else, for whom no name has served; LiteLLM looks at its own key."""
    return {"x-session-id": str(uuid.uuid4()), "ocp-apim-subscription-key": str(uuid.uuid4())}


def text_of(answer: httpx.Response) -> str:
    """Return what the model said, out of any kind of answer."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        body = answer.json()
        if "choices" in body:
            return str(body["choices"][0]["message"]["content"])
        [part] = body["content"] if "content" in body else body["output"][0]["content"]
        return str(part["text"])
    text = ""
    for line in answer.text.splitlines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line.removeprefix("data: "))
        if "choices" in event:
            text += event["choices"][0]["delta"].get("content") or ""
        elif event["type"] == "content_block_delta":
            text += event["delta"]["text"]
        elif event["type"] == "response.output_text.delta":
            text += event["delta"]
    return text


@every_kind
def test_without_a_session_the_model_changes_with_the_prompt(asker: Asker, path: str, stream: bool) -> None:
    for prompt, model in [(EASY, MINI), (HARD, CLAUDE), (EASY, MINI)]:
        asked, answer = asker.ask(path, prompt, stream=stream)
        assert asked == [model]
        assert "x-session-pinned" not in answer.headers


@every_kind
@pytest.mark.parametrize(
    ("prompts", "model"),
    [([EASY, HARD, EASY], MINI), ([HARD, EASY, HARD], CLAUDE)],
    ids=["easy first", "hard first"],
)
def test_a_session_stays_on_the_model_of_its_first_prompt(
    asker: Asker, path: str, stream: bool, prompts: list[str], model: str
) -> None:
    session_id = str(uuid.uuid4())
    for prompt, status in zip(prompts, ["miss", "hit", "hit"], strict=True):
        asked, answer = asker.ask(path, prompt, session_id, stream=stream)
        assert asked == [model]
        assert answer.headers["x-session-pin-status"] == status
        assert answer.headers["x-session-model"] == GROUPS[model]


@every_kind
def test_a_header_alone_names_the_model_that_the_router_chose(asker: Asker, path: str, stream: bool) -> None:
    for prompt, model in [(EASY, MINI), (HARD, CLAUDE)]:
        for name, group in [("smart", "smart"), (GROUPS[model], GROUPS[model])]:
            _, answer = asker.ask(path, prompt, stream=stream, model=name)
            assert answer.headers["x-litellm-model-name"] == f"openai/{model}"
            assert answer.headers["x-litellm-model-group"] == group
            assert f'"model":"{name}"' in answer.text.replace('": "', '":"')


def test_plain_and_streamed_requests_of_all_endpoints_share_a_pin(asker: Asker) -> None:
    session_id = str(uuid.uuid4())
    assert asker.ask(CHAT, HARD, session_id, stream=True)[0] == [CLAUDE]
    for path in (MESSAGES, RESPONSES, CHAT):
        for stream in (False, True):
            assert asker.ask(path, EASY, session_id, stream=stream)[0] == [CLAUDE]


def test_who_names_a_model_gets_it_in_a_pinned_session_too(asker: Asker) -> None:
    session_id = str(uuid.uuid4())
    assert asker.ask(CHAT, HARD, session_id)[0] == [CLAUDE]
    asked, answer = asker.ask(CHAT, HARD, session_id, model="mini")
    assert asked == [MINI]
    assert answer.headers["x-session-pin-status"] == "ignored; reason=model-not-routed"
    assert asker.ask(CHAT, EASY, session_id)[0] == [CLAUDE]


@pytest.mark.parametrize("stream", [False, True])
def test_a_pinned_model_that_is_out_is_routed_around_and_stays_pinned(asker: Asker, stream: bool) -> None:
    session_id = str(uuid.uuid4())
    assert asker.ask(CHAT, HARD, session_id, stream=stream)[0] == [CLAUDE]
    assert asker.ask(CHAT, EASY, session_id, stream=stream)[0] == [CLAUDE]
    asker.take_out(CLAUDE)
    asked, answer = asker.ask(CHAT, EASY, session_id, stream=stream)
    assert asked == [CLAUDE, CLAUDE, CLAUDE, MINI]  # LiteLLM itself tries a group three times
    assert answer.headers["x-session-pin-status"] == "reroute"
    asker.take_out()
    assert asker.ask(CHAT, EASY, session_id, stream=stream)[0] == [CLAUDE]


@pytest.fixture
def falling_back(provider: httpx.Client, tmp_path: Path) -> Iterator[Asker]:
    """A client of a LiteLLM that answers by `mini` where `claude` fails."""
    config = tmp_path / "config.yaml"
    settings = "router_settings: {num_retries: 0, fallbacks: [{claude: [mini]}]}"
    config.write_text(f"{(LITELLM / 'config.yaml').read_text()}\n{settings}\n")
    with in_front(tmp_path, litellm_environment(provider), config) as url, litellm_client(url) as client:
        asker = Asker(client, provider)
        provider.delete("/asked")
        yield asker
        asker.take_out()


def test_the_gateways_own_fallback_decides_nothing_and_takes_no_pin(falling_back: Asker) -> None:
    for path in (CHAT, MESSAGES, RESPONSES):
        for stream in (False, True):
            session_id = str(uuid.uuid4())
            for out, asked, status, model in [
                ([CLAUDE], [CLAUDE, MINI], "miss", None),
                ([], [CLAUDE], "miss", "claude"),
                ([CLAUDE], [CLAUDE, MINI], "hit", "claude"),
                ([], [CLAUDE], "hit", "claude"),
            ]:
                falling_back.take_out(*out)
                models, answer = falling_back.ask(path, EASY if status == "hit" else HARD, session_id, stream=stream)
                assert models == asked
                assert answer.headers["x-session-pin-status"] == status
                assert answer.headers.get("x-session-model") == model
                assert answer.headers["x-litellm-attempted-fallbacks"] == str(len(out))


ARRAY = {"type": "array"}  # not what a tool's parameters may be
BAD_TOOLS: dict[str, Any] = {
    CHAT: {"type": "function", "function": {"name": "clock", "parameters": ARRAY}},
    MESSAGES: {"name": "clock", "input_schema": ARRAY},
    RESPONSES: {"type": "function", "name": "clock", "parameters": ARRAY},
}


@every_kind
@pytest.mark.parametrize("served", [False, True], ids=["new pin", "proven pin"])
def test_a_request_that_the_provider_refuses_for_a_tools_schema_leaves_its_session_on_its_model(
    asker: Asker, path: str, stream: bool, served: bool
) -> None:
    headers = new_session()
    for prompt in [HARD, EASY][: 1 + served]:
        assert asker.try_to_ask(path, prompt, headers, stream=stream)[0] == [CLAUDE]
    for _ in range(4):
        asked, answer = asker.try_to_ask(path, EASY, headers, stream=stream, tools=[BAD_TOOLS[path]])
        assert asked == [CLAUDE]
        assert answer.status_code == 400
        assert "Invalid schema for function 'clock'" in answer.text
        assert f"model group '{GROUPS[CLAUDE]}'" in answer.text  # LiteLLM ends each of its errors with it
        assert answer.headers["x-session-pin-status"] == "hit"
    asked, answer = asker.try_to_ask(path, EASY, headers, stream=stream)
    assert (asked, answer.status_code, answer.headers["x-session-pin-status"]) == ([CLAUDE], 200, "hit")


@every_kind
def test_another_bad_request_of_a_new_pin_is_tried_once_as_it_came_and_leaves_its_session_on_its_model(
    asker: Asker, path: str, stream: bool
) -> None:
    headers = new_session()
    assert asker.try_to_ask(path, HARD, headers, stream=stream)[0] == [CLAUDE]
    # What is at fault LiteLLM says as OpenAI does at one endpoint alone.
    for models in [[CLAUDE] if path == CHAT else [CLAUDE, MINI], [CLAUDE], [CLAUDE], [CLAUDE]]:
        asked, answer = asker.try_to_ask(path, EASY, headers, stream=stream, temperature=3)
        assert asked == models
        assert answer.status_code == 400
        assert "Invalid 'temperature'" in answer.text
        assert answer.headers["x-session-pin-status"] == "hit"
    asked, answer = asker.try_to_ask(path, EASY, headers, stream=stream)
    assert (asked, answer.status_code, answer.headers["x-session-pin-status"]) == ([CLAUDE], 200, "hit")
