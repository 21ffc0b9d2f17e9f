"""A provider with a router, for real clients: who asks for `auto` gets a model by the prompt, any other name is served.

`PYTHONPATH=tests python -m realworld.routing_provider PORT`. It remembers every request, and which model served it.

- The router looks at the last message alone, as many do: `large` if the user says HARD, else `small`. The result of a
  tool says nothing, so a session that began on `large` falls to `small` there.
- Below `/http` it refuses websockets, as an app that has none, and remembers that somebody tried.
- A user who says `CALL tool {"its": "arguments"}` makes the model call that tool, if the request offers it.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_session_pin.wire.compression import decode_whole
from realworld import answers

MAX_DECODED = 10_000_000  # bytes of a body
ROUTED, LARGE, SMALL = "auto", "large", "small"


class API(NamedTuple):
    """Where a request has its history, and how its answer is written."""

    history: str
    answer: Callable[[str, answers.Said], dict[str, Any]]
    events: Callable[[dict[str, Any]], Iterator[dict[str, Any]]]


APIS = {
    "/v1/chat/completions": API("messages", answers.chat_completion, answers.chat_events),
    "/v1/responses": API("input", answers.response, answers.response_events),
    "/v1/messages": API("messages", answers.message, answers.message_events),
}

requests: list[dict[str, Any]] = []


async def tell_requests(request: Request) -> Response:
    """GET gives out the requests, in order; DELETE also forgets them."""
    told = list(requests)
    if request.method == "DELETE":
        requests.clear()
    return JSONResponse(told)


async def serve(request: Request) -> Response:
    """Answer in the API of the path."""
    api = APIS[request.url.path.removeprefix("/http")]
    body = json.loads(decoded(await request.body(), request.headers.get("content-encoding")))
    prompt = last_prompt(body[api.history])
    model = take(body, prompt, request)
    answer = api.answer(model, tool_call(prompt, body) or f"Hello from {model}.")
    if not body.get("stream"):
        return JSONResponse(answer)
    return StreamingResponse(lines(api.events(answer)), media_type="text/event-stream")


async def converse(websocket: WebSocket) -> None:
    """Answer each `response.create` of a websocket. A warm-up is no turn: its answer has no output."""
    await websocket.accept()
    async for text in websocket.iter_text():
        body = json.loads(text)
        prompt = last_prompt(body["input"])
        model = take(body, prompt, websocket)
        answer = answers.response(model, tool_call(prompt, body) or f"Hello from {model}.")
        events = list(answers.response_events(answer))
        if body.get("generate") is False:
            events = [events[0], {**events[-1], "response": {**answer, "output": []}}]
        for event in events:
            await websocket.send_json(event)


async def refuse(websocket: WebSocket) -> None:
    """Refuse a websocket as Starlette does that knows of none."""
    requests.append({"served": None, "body": {}, "headers": dict(websocket.headers), "transport": "refused"})
    await websocket.close()


def decoded(content: bytes, coding: str | None) -> bytes:
    """Return what a body is, which Codex may have compressed."""
    return content if coding is None else decode_whole(content, coding.encode(), MAX_DECODED)


def take(body: dict[str, Any], prompt: str, connection: HTTPConnection) -> str:
    """Remember a request; return the model that serves it."""
    model: str = body["model"]
    if model == ROUTED:
        model = LARGE if "HARD" in prompt else SMALL
    way = {"headers": dict(connection.headers), "transport": connection.scope["type"]}
    requests.append({"served": model, "body": body, **way})
    return model


def last_prompt(history: Any) -> str:
    """Return what the user said last, empty if something else has come since, such as the result of a tool."""
    if isinstance(history, str):
        return history
    last: Any = next((item for item in reversed(history) if item.get("role") not in ("system", "developer")), {})
    content = last.get("content") or "" if last.get("role") == "user" else ""
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def tool_call(prompt: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the call that the prompt wants, if the request offers such a tool."""
    wanted = re.search(r"\bCALL (\w+) (?={)", prompt)
    offered = [tool.get("function", tool).get("name") for tool in body.get("tools") or ()]
    if wanted is None or wanted[1] not in offered:
        return None
    arguments, _ = json.JSONDecoder().raw_decode(prompt, wanted.end())
    return wanted[1], arguments


def lines(events: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Write events as each API does: with their names, or with an end where they have none."""
    for event in events:
        name = f"event: {event['type']}\n" if "type" in event else ""
        yield f"{name}data: {json.dumps(event)}\n\n"
    if not name:
        yield "data: [DONE]\n\n"


app = Starlette(
    routes=[
        Route("/requests", tell_requests, methods=["GET", "DELETE"]),
        *(Route(base + path, serve, methods=["POST"]) for path in APIS for base in ("", "/http")),
        WebSocketRoute("/v1/responses", converse),
        WebSocketRoute("/http/v1/responses", refuse),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
