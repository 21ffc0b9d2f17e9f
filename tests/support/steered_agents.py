"""Agents that loop through `serve` with several workers while an operator retires a model, and pauses pinning."""

import asyncio
import contextlib
import itertools
import json
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from asgi_session_pin import Config, Pin, PinStore, SessionPinMiddleware
from asgi_session_pin.stores import OperableStore, open_store
from servers import serve_app, serving, wait_until, workers_of

GOES = "goes"
STAYS = ("stays-1", "stays-2")
BEGAN = "x-began"
TOKEN = "a-token-of-the-operator"
ADMIN = "/-/session-pin/api"
_LOADING = 200  # pins that are written at a time


class Step(NamedTuple):
    """One request of an agent. Times are on the monotonic clock; *before* is the model of its loop so far."""

    loop_began: float
    began: float
    ended: float
    session: int
    is_human: bool
    before: str | None
    model: str | None
    status: str


class Call(NamedTuple):
    """What came to the gateway behind: when its agent had begun it, when it came, and what it asked for."""

    began: float
    came: float
    model: str
    is_human: bool


class Moments(NamedTuple):
    """When the operator had done what, and was about to resume, on the monotonic clock.

    *follows*: seconds in which every process does what was said.
    """

    retired: float
    paused: float
    resuming: float
    resumed: float
    follows: float = 1.0


class Router:
    """The gateway behind: it answers as the model that it is asked for, and for `auto` as one of its choices."""

    def __init__(self) -> None:
        self.choices = [*STAYS, GOES]
        self.calls: list[Call] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for stage in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{stage}.complete"})
            return None
        if scope["method"] == "HEAD":  # `serve` asks whether it is there
            return await Response()(scope, receive, send)
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        asked = json.loads(body)
        began = float(dict(scope["headers"])[BEGAN.encode()])
        is_human = asked["messages"][-1]["role"] == "user"
        self.calls.append(Call(began, time.monotonic(), asked["model"], is_human))
        model = random.choice(self.choices) if asked["model"] == "auto" else asked["model"]
        await asyncio.sleep(random.uniform(0, 0.05))  # choices that are under way when the operator acts
        kind = b"text/event-stream" if asked["stream"] else b"application/json"
        part = {"delta" if asked["stream"] else "message": {"content": "yes"}}
        answer = json.dumps({"model": model, "choices": [part]})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        if asked["stream"]:
            answer = f"data: {answer}\n\ndata: [DONE]\n\n"
        return await send({"type": "http.response.body", "body": answer.encode()})


class Agents:
    """Loop through the gateway at *url*: a person's turn, then some with the results of tools, again and again.

    So many *sessions* have a pin already, on `model_of` their number; half of all loops are those of new ones. No two
    agents have the same one.
    """

    def __init__(self, url: str, sessions: int, number: int) -> None:
        self.steps: list[Step] = []
        self.failures: list[str] = []
        self._url = url
        self._sessions = sessions
        self._number = number
        self._is_over = False
        # A connection for each request, so that all workers get some, and none closes one that is about to be used.
        self._client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0))

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Have them work."""
        async with self._client:
            working = [asyncio.create_task(self._work(agent)) for agent in range(self._number)]
            try:
                yield
            finally:
                self._is_over = True
                await asyncio.gather(*working)

    async def operate(self, method: str, path: str) -> None:
        """Be the operator."""
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with self._client.request(method, f"{self._url}{ADMIN}/{path}", headers=headers) as answer:
            assert answer.status == 204, (method, path, answer.status)

    async def _work(self, agent: int) -> None:
        known = range(agent, self._sessions, self._number)
        new = itertools.count(self._sessions + agent, self._number)
        while True:
            session = random.choice([random.choice(known), next(new)])
            messages: list[dict[str, str]] = []
            for _ in range(random.randrange(1, 4)):
                began = time.monotonic()
                messages.append({"role": "user", "content": "Go on."})
                model = await self._ask(session, messages, began, None)
                for _ in range(random.randrange(6)):
                    messages.append({"role": "tool", "tool_call_id": "1", "content": "done"})
                    model = await self._ask(session, messages, began, model)
                if self._is_over:
                    return

    async def _ask(
        self, session: int, messages: list[dict[str, str]], loop_began: float, before: str | None
    ) -> str | None:
        body = {"model": "auto", "stream": len(messages) % 2 == 0, "messages": messages}
        began = time.monotonic()
        headers = {"x-session-id": name_of(session), BEGAN: str(began)}
        try:
            async with self._client.post(f"{self._url}/v1/chat/completions", json=body, headers=headers) as answer:
                text, status = await answer.text(), answer.headers["x-session-pin-status"]
            model: str | None = json.loads(text.removeprefix("data: ").partition("\n")[0])["model"]
        except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
            self.failures.append(f"a request failed: {error!r}")
            return None
        is_human = messages[-1]["role"] == "user"
        self.steps.append(Step(loop_began, began, time.monotonic(), session, is_human, before, model, status))
        return model


def name_of(session: int) -> str:
    return f"session-{session}"


def model_of(session: int) -> str:
    """Return the model that a session is on at the beginning: half of them are on the one that goes."""
    return GOES if session % 2 else STAYS[session // 2 % 2]


async def fill(path: Path, pins: int) -> None:
    """Put so many pins into the store of a configuration file."""
    config = Config.load(path)
    keys = SessionPinMiddleware(Router(), config=config)
    store: PinStore = open_store(config, "steering")

    async def add(first: int) -> None:
        for session in range(first, pins, _LOADING):
            key = keys.key_of(name_of(session), None, "auto")
            await store.add(key, Pin(model_of(session), time.time()))

    await asyncio.gather(*(add(first) for first in range(_LOADING)))
    await store.aclose()


async def count(path: Path) -> int:
    """Return how many pins there are."""
    store = open_store(Config.load(path), "steering")
    assert isinstance(store, OperableStore)
    number = await store.count()
    await store.aclose()
    return number


@contextlib.contextmanager
def steered(folder: Path, store_url: str, *, workers: int) -> Iterator[tuple[Path, Router, str, Callable[[], None]]]:
    """Serve a router through so many workers; yield the configuration, the router, the URL, and what reloads it."""
    path = folder / "session_pin.yaml"
    settings: dict[str, Any] = {
        "routing": {"router_models": ["auto"], "session_ttl_seconds": 3600, "session_max_entries": 10_000_000},
        "store": {"url": store_url, "timeout_seconds": 2},  # so many processes have few cores here
        "sessions": {"secret": "of-the-run"},
        "admin": {"token": TOKEN},
    }
    path.write_text(json.dumps(settings))
    router = Router()
    with serve_app(router) as upstream:
        command = ["--upstream", upstream, "--config", str(path), "--workers", str(workers), "--log-level", "error"]
        with serving(*command) as (url, process):
            wait_until(lambda: len(workers_of(process.pid)) == workers)

            def reload() -> None:
                before = workers_of(process.pid)
                process.send_signal(signal.SIGHUP)
                wait_until(lambda: len(workers_of(process.pid) - before) == workers)

            yield path, router, url, reload


async def run(
    folder: Path, store_url: str, *, pins: int, workers: int, agents: int, seconds: float, follows: float
) -> tuple[list[str], str]:
    """Steer agents, each stage for so many *seconds* beyond those in which all are to follow.

    Return what is wrong, and what was seen.
    """
    with steered(folder, store_url, workers=workers) as (path, router, url, reload):
        await fill(path, pins)
        team = Agents(url, pins, agents)
        async with team.at_work():
            await asyncio.sleep(seconds)
            router.choices.remove(GOES)
            await team.operate("PUT", f"retired/{GOES}")
            retired = time.monotonic()
            await asyncio.sleep(follows + seconds / 2)
            await asyncio.to_thread(reload)  # new processes know it, too
            await asyncio.sleep(seconds / 2)
            await team.operate("PUT", "pause")
            paused = time.monotonic()
            await asyncio.sleep(follows)
            before = await count(path)
            await asyncio.sleep(seconds)
            after = await count(path)
            resuming = time.monotonic()
            await team.operate("DELETE", "pause")
            resumed = time.monotonic()
            await asyncio.sleep(follows + seconds)
    moments = Moments(retired, paused, resuming, resumed, follows)
    wrong = [*team.failures, *faults_of(team.steps, moments), *faults_of_calls(router.calls, moments)]
    if before != after:
        wrong.append(f"{before} pins became {after} while it was paused")
    return wrong, describe(team.steps, moments)


def faults_of(steps: list[Step], moments: Moments) -> Iterator[str]:
    """Yield what went wrong, as the agents see it."""
    retired, paused, resuming, resumed, follows = moments
    on: dict[int, str | None] = {}  # the model of each session before the pause
    for step in steps:
        shown = f"{step} at {step.began - retired:.2f} s after it was retired"
        is_pinned = step.ended < paused or step.loop_began >= resumed + follows  # all of its loop so far
        if is_pinned and not step.is_human and step.model != step.before:
            yield f"a tool loop broke: {shown}"
        if step.is_human and step.model == GOES and step.began >= retired + follows:
            yield f"a person's turn went to the retired model: {shown}"
        if paused + follows <= step.began and step.ended < resuming and step.status != "off; reason=paused":
            yield f"pinned while paused: {shown}"
        if step.began >= resumed + follows and step.status not in ("hit", "wait", "miss"):
            yield f"not pinned again: {shown}"
        if step.ended < paused:
            on[step.session] = step.model
        elif step.began >= resumed + follows and on.pop(step.session, GOES) not in (GOES, step.model):
            yield f"a pin of before the pause is gone: {shown}"


def faults_of_calls(calls: list[Call], moments: Moments) -> Iterator[str]:
    """Yield what went wrong, as the gateway behind sees it."""
    for call in calls:
        if call.began >= moments.retired + moments.follows and call.is_human and call.model == GOES:
            yield f"a person's turn came to the retired model: {call} after {moments}"
        is_paused = moments.paused + moments.follows <= call.began and call.came < moments.resuming
        if is_paused and call.model != "auto":
            yield f"a pinned request came while it was paused: {call} after {moments}"


def describe(steps: list[Step], moments: Moments) -> str:
    """Return what was seen."""
    retired, paused = moments.retired, moments.paused
    statuses = Counter(step.status for step in steps).most_common()
    last = max((step.began for step in steps if step.is_human and step.model == GOES), default=retired)
    loops = sum(retired <= step.began < paused and not step.is_human and step.model == GOES for step in steps)
    unpaused = (step.began for step in steps if step.ended < moments.resuming and "paused" not in step.status)
    late = max(unpaused, default=paused) - paused
    return (
        f"{len(steps):,} requests: {', '.join(f'{status} {number:,}' for status, number in statuses)}; "
        f"the last person's turn on the retired model began {last - retired:+.2f} s after, and {loops:,} turns of tool "
        f"loops on it went on; the last pinned request began {late:+.2f} s after the pause"
    )
