"""What a model says, in the three APIs of OpenAI and Anthropic: plain JSON, or the same as server-sent events.

What is said is a text, or a call of a tool as a pair of its name and its arguments.
"""

import json
import uuid
from collections.abc import Iterator
from typing import Any

Said = str | tuple[str, dict[str, Any]]


def chat_completion(model: str, said: Said) -> dict[str, Any]:
    """Return the answer of /v1/chat/completions."""
    message: dict[str, Any] = {"role": "assistant", "content": said}
    reason = "stop"
    if not isinstance(said, str):
        function = {"name": said[0], "arguments": json.dumps(said[1])}
        call = {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        reason = "tool_calls"
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


def chat_events(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a streamed chat completion."""
    [choice] = answer["choices"]
    delta = dict(choice["message"])
    if "tool_calls" in delta:
        delta["tool_calls"] = [{"index": 0, **delta["tool_calls"][0]}]
    chunk = {**answer, "object": "chat.completion.chunk", "usage": None}
    yield {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]}
    yield {**chunk, "choices": [], "usage": answer["usage"]}


def response(model: str, said: Said) -> dict[str, Any]:
    """Return the answer of /v1/responses."""
    if isinstance(said, str):
        content = [{"type": "output_text", "text": said, "annotations": []}]
        item = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "content": content}
    else:
        call = {"call_id": f"call_{uuid.uuid4().hex}", "name": said[0], "arguments": json.dumps(said[1])}
        item = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", **call}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": 1,
        "model": model,
        "status": "completed",
        "output": [{**item, "status": "completed"}],
        "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7, **details},
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def response_events(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of a streamed response."""
    yield {"type": "response.created", "response": {**answer, "status": "in_progress", "output": [], "usage": None}}
    [item] = answer["output"]
    place = {"item_id": item["id"], "output_index": 0}
    if item["type"] == "function_call":
        yield {"type": "response.output_item.added", "output_index": 0, "item": {**item, "arguments": ""}}
        yield {"type": "response.function_call_arguments.delta", **place, "delta": item["arguments"]}
        yield {"type": "response.function_call_arguments.done", **place, "arguments": item["arguments"]}
    else:
        [part] = item["content"]
        place["content_index"] = 0
        yield {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}}
        yield {"type": "response.content_part.added", **place, "part": {**part, "text": ""}}
        yield {"type": "response.output_text.delta", **place, "delta": part["text"], "logprobs": []}
        yield {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": []}
        yield {"type": "response.content_part.done", **place, "part": part}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": answer}


def message(model: str, said: Said) -> dict[str, Any]:
    """Return the answer of /v1/messages."""
    block: dict[str, Any] = {"type": "text", "text": said}
    if not isinstance(said, str):
        block = {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex}", "name": said[0], "input": said[1]}
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [block],
        "stop_reason": "end_turn" if isinstance(said, str) else "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 2},
    }


def message_events(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of a streamed message."""
    [block] = answer["content"]
    if block["type"] == "text":
        begun, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
    else:
        begun, delta = {**block, "input": {}}, {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
    yield {"type": "message_start", "message": {**answer, "content": [], "stop_reason": None}}
    yield {"type": "content_block_start", "index": 0, "content_block": begun}
    yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    ended = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": ended, "usage": answer["usage"]}
    yield {"type": "message_stop"}
