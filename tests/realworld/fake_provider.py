"""A provider with the API of OpenAI, for a gateway to ask: it answers in the name of whatever model it is asked for.

`python fake_provider.py PORT`. It remembers which model each request asked for, and serves all models but those that
are out. A tool whose parameters are no object, or a temperature beyond 2, is the client's fault, as it is for OpenAI.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

# Providers answer under the name of a snapshot, which a gateway need not take back.
SNAPSHOT = "-2024-07-18"

asked: list[str] = []
out: list[str] = []


async def tell_asked(request: Request) -> Response:
    """GET gives out the models that were asked for, in order; DELETE also forgets them."""
    models = list(asked)
    if request.method == "DELETE":
        asked.clear()
    return JSONResponse(models)


async def put_out(request: Request) -> Response:
    """PUT a list of models that are out from now on."""
    out[:] = await request.json()
    return JSONResponse(out)


async def chat_completions(request: Request) -> Response:
    body = await request.json()
    if refusal := refuse(body):
        return refusal
    model = body["model"] + SNAPSHOT
    answer = {"id": "chatcmpl-1", "created": 1, "model": model}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    if not body.get("stream"):
        message = {"role": "assistant", "content": f"Hello from {model}."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({**answer, "object": "chat.completion", "choices": [choice], "usage": usage})
    steps = [({"role": "assistant", "content": "Hello "}, None), ({"content": f"from {model}."}, None), ({}, "stop")]
    choices = [[{"index": 0, "delta": delta, "finish_reason": reason}] for delta, reason in steps]
    chunks = [{**answer, "object": "chat.completion.chunk", "choices": choice} for choice in choices]
    chunks.append({**answer, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    return StreamingResponse(events([*chunks, "[DONE]"]), media_type="text/event-stream")


async def responses(request: Request) -> Response:
    """LiteLLM asks here for an OpenAI model when it is asked itself at /v1/messages."""
    body = await request.json()
    if refusal := refuse(body):
        return refusal
    model = body["model"] + SNAPSHOT
    text = f"Hello from {model}."
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    usage = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
    answer = {"id": "resp_1", "object": "response", "created_at": 1, "model": model}
    begun = {**answer, "status": "in_progress", "output": []}
    done = {**answer, "status": "completed", "output": [item], "usage": usage}
    if not body.get("stream"):
        return JSONResponse(done)
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    return StreamingResponse(
        events(
            [
                {"type": "response.created", "response": begun},
                {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
                {"type": "response.content_part.added", **place, "part": {**part, "text": ""}},
                {"type": "response.output_text.delta", **place, "delta": text},
                {"type": "response.output_text.done", **place, "text": text},
                {"type": "response.content_part.done", **place, "part": part},
                {"type": "response.output_item.done", "output_index": 0, "item": item},
                {"type": "response.completed", "response": done},
            ]
        ),
        media_type="text/event-stream",
    )


def refuse(body: dict[str, Any]) -> Response | None:
    """Remember that a model was asked for, and return what a provider answers if it is out, or the request is bad."""
    model = body["model"]
    asked.append(model)
    if model in out:
        return JSONResponse({"error": {"message": f"{model} is overloaded", "type": "server_error"}}, status_code=503)
    for tool in body.get("tools") or ():
        function = tool.get("function", tool)
        if function["parameters"].get("type") != "object":
            said = f"Invalid schema for function '{function['name']}': schema must be of type 'object'."
            return bad_request(said, param="tools[0].function.parameters", code="invalid_function_parameters")
    if body.get("temperature", 1) > 2:
        said = "Invalid 'temperature': decimal above maximum value. Expected a value <= 2."
        return bad_request(said, param="temperature", code="decimal_above_max_value")
    return None


def bad_request(message: str, **more: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", **more}}, status_code=400)


def events(items: list[Any]) -> Iterator[str]:
    for item in items:
        yield f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n"


app = Starlette(
    routes=[
        Route("/asked", tell_asked, methods=["GET", "DELETE"]),
        Route("/out", put_out, methods=["PUT"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/responses", responses, methods=["POST"]),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
