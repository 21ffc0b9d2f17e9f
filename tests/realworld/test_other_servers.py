"""The gateway on hypercorn and granian, by HTTP/1.1 and HTTP/2: it needs nothing of uvicorn's."""

import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from realworld.asking import CHAT, chat, new_session
from realworld.conftest import HERE, serve_command
from servers import PATIENCE, serve_app

going_on = threading.Event()
left = threading.Event()
chosen: list[str] = []


async def answer(request: Request) -> Response:
    model = (await request.json())["model"]
    if model == "auto":
        chosen.append(f"model-{len(chosen)}")
        model = chosen[-1]
    return JSONResponse({"model": model, "choices": [{"message": {"content": "hello"}}]})


async def count(request: Request) -> Response:
    size = 0
    async for piece in request.stream():
        size += len(piece)
    return JSONResponse({"size": size, "host": request.headers["x-forwarded-host"]})


async def events(request: Request) -> Response:
    async def say() -> AsyncIterator[bytes]:
        yield b"data: first\n\n"
        await anyio.to_thread.run_sync(going_on.wait, PATIENCE)
        yield b"data: second\n\n"

    return StreamingResponse(say(), media_type="text/event-stream")


class Endless:
    """Says one event, and waits until it is left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: first\n\n", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()


UPSTREAM = Starlette(
    routes=[
        Route(CHAT, answer, methods=["POST"]),
        Route("/count", count, methods=["POST"]),
        Route("/events", events),
        Route("/endless", Endless()),
    ]
)


class Gateway(NamedTuple):
    """A gateway, and by which version of HTTP it is asked."""

    client: httpx.Client
    version: str


@pytest.fixture(scope="module", params=["hypercorn", "granian"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp(request.param)
    script = HERE / "other_server.py"
    ready = "/-/session-pin/healthz"
    with (
        serve_app(UPSTREAM) as upstream,
        serve_command(folder, sys.executable, script, request.param, upstream, ready=ready) as url,
    ):
        yield url


@pytest.fixture(params=["HTTP/1.1", "HTTP/2"])
def gateway(request: pytest.FixtureRequest, url: str) -> Iterator[Gateway]:
    is_2 = request.param == "HTTP/2"
    with httpx.Client(base_url=url, http1=not is_2, http2=is_2, timeout=PATIENCE, trust_env=False) as client:
        yield Gateway(client, request.param)


def test_a_session_is_pinned_and_other_requests_pass(gateway: Gateway) -> None:
    session = new_session()
    answers = [gateway.client.post(CHAT, json=chat("auto", "hello"), headers=session) for _ in range(2)]
    assert [each.headers["x-session-pin-status"] for each in answers] == ["miss", "hit"]
    first, second = (each.json()["model"] for each in answers)
    assert first == second == chosen[-1]
    other = gateway.client.post(CHAT, json=chat("auto", "hello"))
    assert other.http_version == gateway.version
    assert other.json()["model"] != first
    assert "x-session-pin-status" not in other.headers


def test_events_come_as_they_are_said(gateway: Gateway) -> None:
    going_on.clear()
    with gateway.client.stream("GET", "/events") as response:
        pieces = response.iter_raw()
        assert next(pieces) == b"data: first\n\n"
        going_on.set()
        assert b"".join(pieces) == b"data: second\n\n"


def test_a_client_that_leaves_is_seen_by_the_upstream(gateway: Gateway) -> None:
    left.clear()
    with gateway.client.stream("GET", "/endless") as response:
        assert next(response.iter_raw()) == b"data: first\n\n"
        assert not left.is_set()
    gateway.client.close()  # by HTTP/2 this client does not tell of a stream that it gives up
    assert left.wait(PATIENCE)


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_big_body_arrives_whole(gateway: Gateway, in_pieces: bool) -> None:
    size = 8 * 2**20
    content = (b"x" * 2**16 for _ in range(size // 2**16)) if in_pieces else b"x" * size
    answer = gateway.client.post("/count", content=content)
    assert answer.json() == {"size": size, "host": gateway.client.base_url.netloc.decode()}
