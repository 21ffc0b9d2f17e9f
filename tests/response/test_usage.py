"""The tokens that answers report, in the shapes of four APIs, and what is no report."""

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Send

from asgi_driver import (
    JSON_TYPE,
    SESSION,
    SSE_TYPE,
    Gateway,
    Header,
    body_messages,
    call,
    http_scope,
    receive_from,
    respond,
)
from asgi_session_pin import PinEvent, SessionPinMiddleware, Tokens
from asgi_session_pin.response.usage import UsageReader, read_tokens

CHAT = {
    "prompt_tokens": 100,
    "completion_tokens": 7,
    "total_tokens": 107,
    "prompt_tokens_details": {"cached_tokens": 64},
}
MESSAGES = {
    "input_tokens": 20,
    "cache_creation_input_tokens": 16,
    "cache_read_input_tokens": 64,
    "cache_creation": {"ephemeral_5m_input_tokens": 16},
    "output_tokens": 7,
}
RESPONSES = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 64},
    "output_tokens": 7,
    "total_tokens": 107,
}
DEEPSEEK = {"prompt_tokens": 100, "prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 36, "completion_tokens": 7}
MOONSHOT = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107, "cached_tokens": 64}
LITELLM = {**CHAT, "cache_creation_input_tokens": 16, "cache_read_input_tokens": 64}
SHAPES = [CHAT, MESSAGES, RESPONSES, DEEPSEEK, MOONSHOT, LITELLM]
IDS = ["chat", "messages", "responses", "deepseek", "moonshot", "litellm"]


def body(usage: Any) -> bytes:
    return json.dumps({"id": "1", "model": "a", "choices": [], "usage": usage}).encode()


def events(*members: dict[str, Any]) -> list[bytes]:
    return [b"data: " + json.dumps(each).encode() + b"\n\n" for each in members]


async def tokens_of(*chunks: bytes, headers: list[Header]) -> Tokens | None:
    """Return the tokens that are told of an answer, which has to come out as it is."""

    async def answer(send: Send, model: str) -> None:
        await respond(send, *chunks, headers=headers)

    told: list[PinEvent] = []
    app = SessionPinMiddleware(Gateway("a", answer=answer), config={"admin": {"tokens": True}}, listeners=[told.append])
    sent = await call(app, {"model": "auto"}, SESSION)
    assert sent.body == b"".join(chunks)
    return told[0].tokens


@pytest.mark.parametrize("usage", SHAPES, ids=IDS)
async def test_a_json_answer_reports_its_tokens(usage: dict[str, Any]) -> None:
    assert await tokens_of(body(usage), headers=[JSON_TYPE]) == Tokens(100, 64, 7)


@pytest.mark.parametrize("size", [1, 7, 50])
async def test_a_json_answer_may_be_cut_anywhere(size: int) -> None:
    text = json.dumps({"model": "a", "usage": CHAT}, indent=1).encode()
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    assert await tokens_of(*chunks, headers=[JSON_TYPE]) == Tokens(100, 64, 7)


async def test_the_last_chunk_of_a_chat_stream_reports_its_tokens() -> None:
    chunks = events(*({"model": "a", "choices": [{"delta": {"content": "x" * 500}}], "usage": None} for _ in range(60)))
    chunks += [*events({"model": "a", "choices": [], "usage": CHAT}), b"data: [DONE]\n\n"]
    assert await tokens_of(*chunks, headers=[SSE_TYPE]) == Tokens(100, 64, 7)


async def test_the_first_and_the_last_events_of_messages_report_their_tokens() -> None:
    start = {"type": "message_start", "message": {"model": "a", "usage": {**MESSAGES, "output_tokens": 1}}}
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x" * 500}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}
    chunks = events(start, *([text] * 60), end, {"type": "message_stop"})
    assert await tokens_of(*chunks, headers=[SSE_TYPE]) == Tokens(100, 64, 7)


async def test_the_completed_event_of_responses_reports_its_tokens_however_large_it_is() -> None:
    def response(usage: Any) -> dict[str, Any]:
        return {"model": "a", "instructions": "x" * 100_000, "usage": usage, "user": None}

    chunks = events(
        {"type": "response.created", "response": response(None)},
        {"type": "response.output_text.delta", "delta": "x"},
        {"type": "response.completed", "response": response(RESPONSES)},
    )
    assert await tokens_of(*chunks, headers=[SSE_TYPE]) == Tokens(100, 64, 7)


async def test_of_reports_in_each_event_the_last_one_counts() -> None:
    chunks = events(
        *({"model": "a", "choices": [], "usage": {**CHAT, "completion_tokens": number}} for number in range(1, 41))
    )
    assert await tokens_of(*chunks, headers=[SSE_TYPE]) == Tokens(100, 64, 40)


async def test_a_compressed_answer_is_read_up_to_its_limit() -> None:
    coded = [(b"content-encoding", b"gzip"), JSON_TYPE]
    assert await tokens_of(gzip.compress(body(CHAT)), headers=coded) == Tokens(100, 64, 7)
    assert await tokens_of(b"\0" * 1_100_000, body(CHAT), headers=coded) is None


@pytest.mark.parametrize(
    "usage",
    [None, {}, [], "x", 5, {"prompt_tokens": "7"}, {"type": "object"}, {"prompt_tokens": -1}, {"prompt_tokens": True}],
)
def test_what_reports_no_number_reports_nothing(usage: Any) -> None:
    assert read_tokens(body(usage)) in (None, Tokens(0, 0, 0))


def test_details_may_be_anything() -> None:
    assert read_tokens(body({**CHAT, "prompt_tokens_details": None})) == Tokens(100, 0, 7)
    assert read_tokens(body({**CHAT, "prompt_tokens_details": "x"})) == Tokens(100, 0, 7)


def test_a_text_that_looks_like_a_report_is_none() -> None:
    text = json.dumps({"usage": {"prompt_tokens": 5, "completion_tokens": 5}})
    assert read_tokens(json.dumps({"choices": [{"message": {"content": text}}]}).encode()) is None
    assert read_tokens(b'{"usage":{"prompt_tokens":1,"completion') is None
    assert read_tokens(b'"usage":' + b'{"a":' * 100_000) is None


@given(st.binary(max_size=300), st.sampled_from(SHAPES))
def test_whatever_stands_before_a_report_is_read_over(before: bytes, usage: dict[str, Any]) -> None:
    before = before.replace(b"\\", b"").replace(b'"usage"', b"")
    assert read_tokens(before + body(usage)) == Tokens(100, 64, 7)


async def test_nothing_is_held_back_and_buffers_may_be_used_again() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    reader = UsageReader()
    watching = reader.watch(send)
    await watching({"type": "http.response.start", "status": 200, "headers": [JSON_TYPE]})
    buffer = bytearray(body(CHAT))
    message = {"type": "http.response.body", "body": buffer, "more_body": True}
    await watching(message)
    assert sent[1] is message
    buffer[:] = b" " * len(buffer)
    await watching({"type": "http.response.trailers", "headers": []})
    assert reader.read() == Tokens(100, 64, 7)


async def test_without_the_setting_nothing_is_read() -> None:
    async def answer(send: Send, model: str) -> None:
        await respond(send, body(CHAT))

    told: list[PinEvent] = []
    app = SessionPinMiddleware(Gateway("a", answer=answer), listeners=[told.append])
    await call(app, {"model": "auto"}, SESSION)
    assert told[0].tokens is None


async def test_a_client_that_leaves_is_told_from_a_model_that_fails_also_while_tokens_are_counted() -> None:
    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the client left")

    async def answer(send: Send, model: str) -> None:
        await respond(send, *events({"model": "a", "choices": [{"delta": {"content": "x"}}]}, {}), headers=[SSE_TYPE])

    told: list[PinEvent] = []
    app = SessionPinMiddleware(Gateway("a", answer=answer), config={"admin": {"tokens": True}}, listeners=[told.append])
    await call(app, {"model": "auto"}, SESSION)
    for _ in range(4):
        receive = receive_from(body_messages(b'{"model":"auto"}'))
        with pytest.raises(OSError, match="the client left"):
            await app(http_scope(SESSION), receive, send)
    assert [event.verdict for event in told[1:]] == [None] * 4
