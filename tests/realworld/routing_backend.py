"""A backend with a router of its own, for gateways to stand in front of: it is asked for `auto` and says what it chose.

`python routing_backend.py PORT`. It remembers each request, and answers compressed where it is asked for gzip or zstd.
"""

import asyncio
import gzip
import json
import sys
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from asgi_session_pin.wire.compression import _zstd as zstd  # the standard library's, or its backport

LARGE, SMALL = "large", "small"
PIECE = 40  # bytes of a stream that are sent at once: events are cut anywhere

requests: list[dict[str, Any]] = []
conditions: dict[str, Any] = {}
coders = {"zstd": zstd.compress, "gzip": lambda content: gzip.compress(content, mtime=0)}


async def tell_requests(request: Request) -> Response:
    """GET gives out the requests, in order; DELETE also forgets them."""
    told = list(requests)
    if request.method == "DELETE":
        requests.clear()
    return JSONResponse(told)


async def put_conditions(request: Request) -> Response:
    """PUT what holds from now on.

    `out` are models that fail, `refused` are names that are not known though the router goes on choosing them, and
    `seconds` is how long an answer takes.
    """
    conditions.clear()
    conditions.update(await request.json())
    return JSONResponse(conditions)


async def chat_completions(request: Request) -> Response:
    content = await request.body()
    body = json.loads(content)
    asked = body["model"]
    model = choose(body["messages"][-1]["content"]) if asked == "auto" else asked
    headers = [[name.decode(), value.decode()] for name, value in request.headers.raw]
    requests.append({"asked": asked, "served": model, "headers": headers, "body": content.decode()})
    await asyncio.sleep(conditions.get("seconds", 0))
    if model in conditions.get("out", []):
        return refusal(503, f"{model} is overloaded", "server_error")
    if asked in conditions.get("refused", []) or model not in (LARGE, SMALL):
        return refusal(404, f"The model `{asked}` does not exist.", "model_not_found")
    answer = {"id": "chatcmpl-1", "created": 1, "model": model}
    if not body.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": f"I am {model}."}, "finish_reason": "stop"}
        whole, coding = compressed(request, json.dumps({**answer, "object": "chat.completion", "choices": [choice]}))
        return Response(whole, headers=coding, media_type="application/json")
    steps = [({"role": "assistant", "content": "I "}, None), ({"content": f"am {model}."}, None), ({}, "stop")]
    choices = [[{"index": 0, "delta": delta, "finish_reason": reason}] for delta, reason in steps]
    chunks = [json.dumps({**answer, "object": "chat.completion.chunk", "choices": choice}) for choice in choices]
    events = "".join(f"data: {event}\n\n" for event in [*chunks, "[DONE]"])
    whole, coding = compressed(request, events)
    return StreamingResponse(pieces(whole), headers=coding, media_type="text/event-stream")


def choose(prompt: str) -> str:
    """Return the model for a prompt, or the other one if that is out."""
    model, other = (LARGE, SMALL) if "analyze" in prompt.lower() else (SMALL, LARGE)
    return other if model in conditions.get("out", []) else model


def compressed(request: Request, text: str) -> tuple[bytes, dict[str, str]]:
    """Return the text as the client wants it, and the header that says so."""
    wanted = request.headers.get("accept-encoding", "").split(", ")
    for coding, compress in coders.items():
        if coding in wanted:
            return compress(text.encode()), {"content-encoding": coding}
    return text.encode(), {}


def pieces(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]


def refusal(status: int, message: str, code: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": code}}, status)


async def models(request: Request) -> Response:
    listed = [{"id": name, "object": "model"} for name in ("auto", LARGE, SMALL)]
    return JSONResponse({"object": "list", "data": listed})


async def alive(request: Request) -> Response:
    """Gateways look whether their workers are well."""
    return Response()


app = Starlette(
    routes=[
        Route("/requests", tell_requests, methods=["GET", "DELETE"]),
        Route("/conditions", put_conditions, methods=["PUT"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", alive),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
