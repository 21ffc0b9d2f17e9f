"""A FastAPI proxy with a small router, and session pinning in front of it.

It needs `fastapi` and `uvicorn`; after `scripts/test` they are in .venv, so `.venv/bin/python` has them.
Run it with `python examples/fastapi_proxy.py [PORT]`, then point any OpenAI client at http://127.0.0.1:8000/v1 and ask
for the model `auto`. With an `X-Session-Id` header a whole session stays on the model that its first request was routed
to.
"""

import asyncio
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse

from asgi_session_pin import Config, Routing, SessionPinMiddleware

CODE_MODEL = "anthropic/claude-sonnet-4-20250514"
REASONING_MODEL = "openai/gpt-4o"
REASONING_WORDS = ("analyze", "review", "compare", "explain", "why", "trade-off")

app = FastAPI()
app.add_middleware(SessionPinMiddleware, config=Config(routing=Routing(router_models=("auto",))))


def choose_model(messages: list[dict[str, Any]]) -> str:
    """The router: which model suits the last message?"""
    prompt = str(messages[-1:]).lower()
    return REASONING_MODEL if any(word in prompt for word in REASONING_WORDS) else CODE_MODEL


@app.post("/v1/chat/completions")
async def chat_completions(body: dict[str, Any]) -> Response:
    messages = body.get("messages", [])
    model = body.get("model", "auto")
    if model == "auto":
        model = choose_model(messages)
    if model not in (CODE_MODEL, REASONING_MODEL):
        error = {
            "message": f"The model {model!r} does not exist.",
            "type": "invalid_request_error",
            "code": "model_not_found",
        }
        return JSONResponse({"error": error}, status_code=404)
    answer = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
    message = provider_message(model, messages, bool(body.get("tools")))
    if body.get("stream"):
        return StreamingResponse(stream(answer, message), media_type="text/event-stream")
    choices = [{"index": 0, "message": message, "finish_reason": finish_reason(message)}]
    return JSONResponse({**answer, "object": "chat.completion", "choices": choices})


def provider_message(model: str, messages: list[dict[str, Any]], tools: bool) -> dict[str, Any]:
    """Stands in for the provider, which a real proxy would ask here: if there are tools two calls, then an answer."""
    queries = ["storage engines", "write paths"][sum(message["role"] == "tool" for message in messages) :]
    if not tools or not queries:
        return {"role": "assistant", "content": f"Hello from {model}."}
    function = {"name": "search", "arguments": json.dumps({"query": queries[0]})}
    call = {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def finish_reason(message: dict[str, Any]) -> str:
    return "tool_calls" if "tool_calls" in message else "stop"


async def stream(answer: dict[str, Any], message: dict[str, Any]) -> AsyncIterator[str]:
    for delta in deltas(message):
        yield event({**answer, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]})
        await asyncio.sleep(0.01)
    done = [{"index": 0, "delta": {}, "finish_reason": finish_reason(message)}]
    yield event({**answer, "object": "chat.completion.chunk", "choices": done})
    yield "data: [DONE]\n\n"


def deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "tool_calls" not in message:
        for position, word in enumerate(message["content"].split(" ")):
            yield {"role": "assistant", "content": word if position == 0 else f" {word}"}
        return
    [call] = message["tool_calls"]
    arguments = call["function"]["arguments"]
    yield {"role": "assistant", "tool_calls": [{"index": 0, **call, "function": {**call["function"], "arguments": ""}}]}
    for half in (arguments[:9], arguments[9:]):
        yield {"tool_calls": [{"index": 0, "function": {"arguments": half}}]}


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
