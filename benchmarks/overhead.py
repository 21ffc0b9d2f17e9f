"""What the middleware adds to a request, in process: no sockets, no server, one core.

    python benchmarks/overhead.py [--rounds 9] [--only hit]

Each request is a fresh scope with 15 headers, as a server makes one, into an app that reads the body and answers at
once. The candidates take turns in every round; the table shows medians of process CPU time and ratios against a no-op
middleware.
"""

import argparse
import asyncio
import gc
import json
import platform
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_session_pin import Config, MemoryStore, Pin, SessionPinMiddleware

CHAT = "/v1/chat/completions"
CREDENTIAL = (b"authorization", b"Bearer sk-" + b"k" * 40)
SESSIONS = 100
SSE_CHUNKS = 500


PARAMETERS = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "description": "Absolute path of the file."},
        "offset": {"type": "integer", "minimum": 0, "default": 0},
        "limit": {"type": "integer", "minimum": 1, "maximum": 2000},
        "model": {"type": "string", "enum": ["fast", "exact"]},
    },
    "required": ["path"],
    "additionalProperties": False,
}


def request_body(size: int) -> bytes:
    """A chat request of about *size* bytes, as the OpenAI SDK writes it; from 10 KB on half of it is tools."""
    body: dict[str, Any] = {"messages": [], "model": "auto", "temperature": 0.2, "stream": False}
    if size >= 10_000:
        tool = {"type": "function", "function": {"name": "read", "description": "Read.", "parameters": PARAMETERS}}
        body["tools"] = [tool] * (size // 2 // len(compact(tool)))
    text = 'Summarise the report, then list what is missing; say "unknown" where the text doesn\'t tell.\n' * 3
    while len(compact(body)) < size - 40:
        room = size - 40 - len(compact(body))
        body["messages"] += [{"role": "user", "content": text[:room]}] * max(1, room // len(text) // 2)
    return compact(body)


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 150}, "finish_reason": "stop"}],
    }
).encode()
EVENT = {"id": "c", "object": "chat.completion.chunk", "model": "gpt-4o", "choices": [{"delta": {"content": "word "}}]}
CHUNK = b"data: " + json.dumps(EVENT).encode() + b"\n\n"


async def answer_json(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    headers = [
        (b"date", b"Mon, 23 Nov 2026 00:00:00 GMT"),
        (b"server", b"bench"),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(ANSWER)),
        (b"x-request-id", b"1"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


async def answer_stream(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(SSE_CHUNKS):
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


# The same inside of an app with a router, as most are: the middleware's cost there is what users see.
IN_STARLETTE = Starlette(
    routes=[
        *(Route(f"/api/{name}/{{id}}", answer_json) for name in ("users", "keys", "models")),
        Route(CHAT, type("Endpoint", (), {"__call__": staticmethod(answer_json)})(), methods=["POST"]),
    ]
)


class Noop:
    """The floor of any middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class Naive(BaseHTTPMiddleware):
    """What one writes first: BaseHTTPMiddleware, json in, json out, a dict."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app)
        self.pins: dict[str, str] = {}

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        session_id = request.headers.get("x-session-id")
        if session_id is None or request.url.path != CHAT:
            return await call_next(request)
        body = await request.json()
        if session_id in self.pins:
            body["model"] = self.pins[session_id]
            request._body = json.dumps(body).encode()
            return await call_next(request)
        response = await call_next(request)
        chunks: list[bytes] = [chunk async for chunk in response.body_iterator]  # type: ignore[attr-defined]
        content = b"".join(chunks)
        text = content.removeprefix(b"data: ").partition(b"\n")[0]
        self.pins[session_id] = json.loads(text)["model"]
        return Response(content, response.status_code, dict(response.headers))


def fresh_ids() -> Iterator[bytes]:
    number = 0
    while True:
        number += 1
        yield b"00000000-0000-4000-8000-%012d" % number


FRESH = fresh_ids()


async def seconds_per_request(
    app: ASGIApp,
    count: int,
    body: bytes,
    path: str,
    ids: list[bytes] | None,
    clock: Callable[[], float] = time.process_time,
) -> float:
    length = (b"content-length", b"%d" % len(body))
    base = [
        (b"host", b"localhost:8000"),
        (b"accept", b"application/json"),
        (b"accept-encoding", b"gzip, deflate"),
        (b"connection", b"keep-alive"),
        (b"content-type", b"application/json"),
        (b"user-agent", b"OpenAI/Python 3.54.0"),
        length,
        CREDENTIAL,
        *((b"x-stainless-%s" % name, b"v") for name in (b"lang", b"os", b"arch", b"runtime", b"async", b"retry-count")),
    ]
    message: Message = {"type": "http.request", "body": body, "more_body": False}

    async def receive() -> Message:
        return message

    async def send(message: Message) -> None:
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 40000),
        "scheme": "http",
        "method": "POST",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "state": {},
    }
    requests = [[(b"x-session-id", ids[n % len(ids)])] if ids else [(b"x-other", b"v")] for n in range(count)]
    started = clock()
    for own in requests:
        await app({**scope, "headers": base + own}, receive, send)
    return (clock() - started) / count


class Case(NamedTuple):
    """What is measured: so many *times* a round. With a *config*, also what it costs beside the defaults."""

    name: str
    app: ASGIApp
    times: int
    body: bytes
    path: str = CHAT
    kind: str = "hit"
    config: Config | None = None


def cases() -> list[Case]:
    kilobyte = request_body(1_000)
    restored = Config(restore_model=True)
    return [
        Case("another path", answer_json, 4000, kilobyte, "/api/users/17/items", "miss"),
        Case("no session header", answer_json, 4000, kilobyte, kind="none"),
        Case("miss, 1 KB", answer_json, 2000, kilobyte, kind="miss"),
        Case("hit, 1 KB", answer_json, 2000, kilobyte),
        Case("hit, 10 KB", answer_json, 1000, request_body(10_000)),
        Case("hit, 100 KB", answer_json, 200, request_body(100_000)),
        Case("Starlette, miss, 1 KB", IN_STARLETTE, 1000, kilobyte, kind="miss"),
        Case("Starlette, hit, 1 KB", IN_STARLETTE, 1000, kilobyte),
        Case("hit, 1 MB", answer_json, 20, request_body(1_000_000)),
        Case("restored, 1 KB", answer_json, 2000, kilobyte, config=restored),
        Case(f"SSE of {SSE_CHUNKS}, miss", answer_stream, 40, kilobyte, kind="miss"),
        Case(f"SSE of {SSE_CHUNKS}, hit", answer_stream, 40, kilobyte),
        Case(f"SSE of {SSE_CHUNKS}, restored", answer_stream, 40, kilobyte, config=restored),
    ]


async def measure(case: Case, rounds: int) -> dict[str, float]:
    _, app, count, body, path, kind, config = case
    builders: dict[str, Callable[[ASGIApp], ASGIApp]] = {
        "bare": lambda app: app,
        "no-op": Noop,
        "ours": partial(SessionPinMiddleware, config=config),
        "naive": Naive,
    }
    if config is not None:
        builders["defaults"] = SessionPinMiddleware
    candidates = {name: build(app) for name, build in builders.items()}
    warm = [next(FRESH) for _ in range(SESSIONS)]
    times: dict[str, list[float]] = {name: [] for name in candidates}
    if kind == "miss" and path == CHAT and app is not answer_stream:  # keep the table full: each miss pushes one out
        await seconds_per_request(candidates["ours"], 10_000, body, path, [next(FRESH) for _ in range(10_000)])
    for round_number in range(-1, rounds):
        for name, candidate in candidates.items():
            few = max(1, count // 20) if name == "naive" else count
            ids = {"none": None, "hit": warm, "miss": [next(FRESH) for _ in range(few)]}[kind]
            if kind == "hit" and round_number < 0:
                await seconds_per_request(candidate, SESSIONS, body, path, warm)
            gc.collect()
            taken = await seconds_per_request(candidate, few, body, path, ids)
            if round_number >= 0:
                times[name].append(taken)
    return {name: statistics.median(values) * 1e6 for name, values in times.items()}


def json_round_trip(body: bytes) -> float:
    count = max(5, 2_000_000 // len(body))
    started = time.process_time()
    for _ in range(count):
        compact(json.loads(body))
    return (time.process_time() - started) / count * 1e6


async def table_figures(pins: int) -> None:
    store = MemoryStore(max_entries=pins)
    before = resident_bytes()
    for number in range(pins):
        await store.add(number.to_bytes(16, "big"), Pin("gpt-4o", time.time()))
    print(f"\nmemory per pin, a table of {pins:,}: {(resident_bytes() - before) / pins:.0f} bytes")
    worst: dict[str, float] = {}
    for number in range(pins, pins + 100_000):
        calls: dict[str, Awaitable[Any]] = {
            "add": store.add(number.to_bytes(16, "big"), Pin("gpt-4o", 0.0)),
            "get": store.get((number - 1000).to_bytes(16, "big")),
        }
        for name, pending in calls.items():
            started = time.perf_counter()
            await pending
            worst[name] = max(worst.get(name, 0), time.perf_counter() - started)
    print(f"worst single call at {pins:,} pins: " + ", ".join(f"{n} {s * 1e3:.3f} ms" for n, s in worst.items()))


def resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--pins", type=int, default=1_000_000)
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("msgspec", "starlette"))
    print(f"Python {platform.python_version()}, {packages}; {platform.system()} {platform.machine()}\n")
    print(f"{'µs per request':<23}{'bare':>9}{'no-op':>9}{'ours':>9}{'naive':>10}{'ours/no-op':>12}{'naive/ours':>12}")
    for case in cases():
        if arguments.only not in case.name:
            continue
        found = await measure(case, arguments.rounds)
        columns = "".join(f"{found[name]:9.2f}" for name in ("bare", "no-op", "ours")) + f"{found['naive']:10.1f}"
        added = found["ours"] - found["no-op"]
        note = ""
        if "defaults" in found:
            note = f"  {found['ours'] / found['defaults']:.2f}x of {found['defaults']:.2f}, a hit by the defaults"
        elif "KB" in case.name or "MB" in case.name:
            note = f"  added {added:.1f} µs, json loads+dumps alone {json_round_trip(case.body) / added:.1f}x that"
        elif "SSE" in case.name:
            note = f"  added {added / SSE_CHUNKS * 1e3:.0f} ns a chunk"
        ratios = f"{found['ours'] / found['no-op']:12.2f}{found['naive'] / found['ours']:12.1f}"
        print(f"{case.name:<23}{columns}{ratios}{note}", flush=True)
    if not arguments.only:
        await table_figures(arguments.pins)


if __name__ == "__main__":
    asyncio.run(main())
