"""Gateways of several manners, in a few lines each, for the probe to find out about."""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

SMALL, LARGE = "acme/small", "acme/large"


class Asked(NamedTuple):
    """What a request asks for."""

    model: str
    hard: bool
    stream: bool


class Answer(NamedTuple):
    """The model that really served, the body's member `model`, and more headers; or a status that is none."""

    served: str
    named: str | None = None
    headers: dict[str, str] | None = None
    status: int = 200


Manner = Callable[[Asked], Answer]
REFUSED = Answer("", status=400)


class FakeGateway:
    """An ASGI app that answers in the manner of a gateway, and keeps what it was asked and which models served."""

    def __init__(self, manner: Manner, lists: dict[str, Any] | None = None) -> None:
        self.manner = manner
        self.lists = lists or {}
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.served: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        request = Request(scope, receive)
        self.requests.append((request.method, request.url.path))
        self.headers.append(dict(request.headers))
        await (await self._answer(request))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        if request.method == "GET":
            return JSONResponse(self.lists[path]) if path in self.lists else Response(status_code=404)
        body = await request.json()
        self.bodies.append(body)
        asked = Asked(body["model"], "nalyze" in str(body), bool(body.get("stream")))
        answer = self.manner(asked)
        if answer.status != 200:
            error = {"message": "Secret things.", "code": "model_not_found"}
            return JSONResponse({"error": error}, answer.status, answer.headers)
        self.served.append(answer.served)
        content: dict[str, Any] = {"id": "1", "choices": []}
        if answer.named is not None:
            content["model"] = answer.named
        if not asked.stream:
            return JSONResponse(content, headers=answer.headers)
        return StreamingResponse(events(path, content), media_type="text/event-stream", headers=answer.headers)


def events(path: str, content: dict[str, Any]) -> Iterator[str]:
    """The stream of an endpoint."""
    items: list[dict[str, Any]] = [content, content]
    if path.endswith("/messages"):
        items = [{"type": "ping"}, {"type": "message_start", "message": content}, {"type": "message_stop"}]
    elif path.endswith("/responses"):
        items = [{"type": "response.created", "response": content}]
    yield from (f"data: {json.dumps(item)}\n\n" for item in items)
    yield "data: [DONE]\n\n"


def chosen(asked: Asked) -> str:
    """What a router chooses by the prompt."""
    return LARGE if asked.hard else SMALL


def plain_router(asked: Asked) -> Answer:
    """Names the model in the body, and takes these names."""
    if asked.model == "auto":
        return Answer(chosen(asked), chosen(asked))
    return Answer(asked.model, asked.model) if asked.model in (SMALL, LARGE) else REFUSED


def litellm(asked: Asked) -> Answer:
    """Repeats the name in the body; a header names the deployment's model, which it takes by the group's name."""
    groups = {"small": SMALL, "large": LARGE}
    group = {SMALL: "small", LARGE: "large"}[chosen(asked)] if asked.model == "smart" else asked.model
    if group not in groups:
        return Answer("", headers={"x-litellm-call-id": "1"}, status=400)
    headers = {
        "x-litellm-version": "1.106.2",
        "x-litellm-model-name": groups[group],
        "x-litellm-model-group": asked.model,
        "x-litellm-model-api-base": "http://127.0.0.1:1/v1",
        "x-litellm-complexity-router-score": "-0.15",
    }
    return Answer(groups[group], asked.model, headers)


def deployment(group: str, model: str, identity: str = "") -> dict[str, Any]:
    """An entry of LiteLLM's /model/info."""
    return {"model_name": group, "litellm_params": {"model": model}, "model_info": {"id": identity}}


DEPLOYMENTS = {
    "data": [
        deployment("smart", "auto_router/complexity_router"),
        deployment("small", SMALL, "1"),
        deployment("large", LARGE, "2"),
    ]
}


class LoadBalanced:
    """LiteLLM whose group `balanced` takes its deployments in turn, by their ids, whatever the prompt is."""

    def __init__(self, **deployments: str) -> None:
        self.deployments = deployments  # by id, what each asks its provider for
        self._turn = 0

    def __call__(self, asked: Asked) -> Answer:
        self._turn += 1
        ids = list(self.deployments)
        model = {"small": SMALL, "large": LARGE}.get(asked.model, asked.model)
        by_model = [each for each in ids if self.deployments[each] == model]
        named = [asked.model] if asked.model in ids else by_model
        if asked.model == "balanced":
            named = ids[self._turn % 2 :]
        if not named:
            return Answer("", headers={"x-litellm-call-id": "1"}, status=400)
        identity = named[0]
        served = self.deployments[identity]
        return Answer(identity, asked.model, {"x-litellm-model-name": served, "x-litellm-model-id": identity})


def snapshots(asked: Asked) -> Answer:
    """Names dated snapshots, and takes only the names without the date."""
    model = chosen(asked) if asked.model == "auto" else asked.model
    return Answer(model, f"{model}-2024-08-06") if model in (SMALL, LARGE) else REFUSED


def routellm(asked: Asked) -> Answer:
    """Takes no name but its own."""
    if asked.model != "router-random-0.5":
        return Answer("", status=500)
    return Answer(chosen(asked), f"{chosen(asked)}-2024-08-06")


def claude_code_router(asked: Asked) -> Answer:
    """Serves its default model for all names but a few; its own are `PROVIDER,MODEL`."""
    names = {"claude-haiku": "gpt-big-mini", "fake,gpt-big-mini": "gpt-big-mini"}
    model = names.get(asked.model, "gpt-big")
    if asked.model == "claude-opus" and not asked.hard:
        model = "gpt-big-mini"
    return Answer(model, f"{model}-2024-07-18")


def lm_proxy(asked: Asked) -> Answer:
    """Names no model at all."""
    return Answer(chosen(asked))


def echo(asked: Asked) -> Answer:
    """Repeats whatever it is asked for."""
    return Answer(chosen(asked), asked.model)


def two_tongued(asked: Asked) -> Answer:
    """Names snapshots, but not when it streams; takes both."""
    model = chosen(asked) if asked.model == "auto" else asked.model.removesuffix("-2024-08-06")
    return Answer(model, model if asked.stream else f"{model}-2024-08-06") if model in (SMALL, LARGE) else REFUSED
