"""Clients that count what they get of `serve` with several workers, whose figures have to be the same."""

import asyncio
import contextlib
import json
import logging
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Receive, Scope, Send

from asgi_session_pin import Config
from asgi_session_pin.stores import OperableStore, open_store
from servers import serve_app, serving, wait_until, workers_of

CHAT, LEFT, UPLOADED = "*/chat/completions", "*/v1/messages", "*/v1/completions"
TOKEN = "a-token-of-the-operator"
MODELS = [f"model-{number}" for number in range(10)]
AT_A_TIME = 40
FAULTS = ("503", "refuses", "raises", "breaks", "hangs")
MOST_BYTES = 10_000  # of a request's body
PATIENCE = 20  # seconds until the workers have told each other what they counted
_ENDS_A_PIN = ("lapsed", "evicted", "refused", "outage", "reset", "forgotten", "retired", "released")


async def upstream(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as the model that is asked for, or for `auto` as any; or fail, as the header `x-fault` says.

    A model that was named fails by itself, `auto` only in two of three cases.
    """
    if scope["type"] == "lifespan":
        for stage in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{stage}.complete"})
        return None
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body, more = body + message.get("body", b""), message.get("more_body", False)
    fault = dict(scope["headers"]).get(b"x-fault", b"").decode()
    asked = json.loads(body) if body.startswith(b"{") else {"model": "auto"}
    model = random.choice(MODELS) if asked["model"] == "auto" else asked["model"]
    if asked["model"] == "auto" and random.random() < 1 / 3 and fault not in ("hangs", "silent"):
        fault = ""
    if fault == "silent":
        return await _wait_for_the_end(receive)
    if fault == "raises":
        raise OSError(fault)
    status = {"503": 503, "refuses": 404}.get(fault, 200)
    error = {"error": {"code": "model_not_found" if fault == "refuses" else "overloaded"}}
    streams = asked.get("stream") or fault in ("breaks", "hangs")
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 60}}
    part = {"delta" if streams else "message": {"role": "assistant", "content": "yes"}}
    answer = json.dumps(error if status != 200 else {"model": model, "choices": [part]}).encode()
    kind = b"text/event-stream" if streams and status == 200 else b"application/json"
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    if status != 200:
        return await send({"type": "http.response.body", "body": answer})
    if not streams:
        answer = json.dumps({"model": model, "choices": [part], "usage": usage}).encode()
        return await send({"type": "http.response.body", "body": answer})
    await send({"type": "http.response.body", "body": b"data: %b\n\n" % answer, "more_body": True})
    if fault == "breaks":
        raise OSError(fault)
    if fault == "hangs":  # until its client leaves
        return await _wait_for_the_end(receive)
    last = json.dumps({"model": model, "choices": [], "usage": usage}).encode()
    return await send({"type": "http.response.body", "body": b"data: %b\n\ndata: [DONE]\n\n" % last})


async def _wait_for_the_end(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Clients:
    """Ask through the gateway at *url*, and count: `requests` by endpoint, reason and status, as the figures do."""

    def __init__(self, url: str) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.models: Counter[tuple[str, str]] = Counter()
        self.tokens: Counter[tuple[str, str]] = Counter()
        self._on: dict[tuple[str, str], str] = {}  # the last model of each credential's sessions
        self._url = url
        self._port = int(url.rpartition(":")[2])

    async def ask(self, number: int, *, counts_tokens: bool) -> None:
        """Make so many requests, some at a time, over connections that are kept, and closed at the end."""
        left = iter(range(number))

        async def go_on(client: aiohttp.ClientSession) -> None:
            credential, sessions = "", 0
            for _ in left:
                if not credential or random.random() < 0.05:
                    credential, sessions = f"Bearer {random.getrandbits(64):x}", random.randrange(1, 6)
                headers = {"authorization": credential, "x-session-id": str(random.randrange(sessions))}
                await self._choose(client, headers, counts_tokens)
                if headers.get("x-fault") == "refuses":  # a refused name is no choice for this credential any longer
                    credential = ""

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            await asyncio.gather(*(go_on(client) for _ in range(AT_A_TIME)))

    def _choose(
        self, client: aiohttp.ClientSession, headers: dict[str, str], counts_tokens: bool
    ) -> Coroutine[Any, Any, None]:
        content = json.dumps({"model": "auto", "stream": random.random() < 0.5}).encode()
        chance = random.random()
        if chance < 0.02:
            return self._leave()
        if chance < 0.04:
            return self._leave_while_it_sends()
        if chance < 0.12:
            headers["x-fault"] = random.choice(FAULTS)
        elif chance < 0.14:
            headers["x-session-pin"] = random.choice(["off", "reset"])
        elif chance < 0.18:
            content = random.choice([b"[", b"", b'{"model": "named"}', b'{"model": "auto"}' + b" " * MOST_BYTES])
        elif chance < 0.19:
            headers["x-session-id"] = " "
        elif chance < 0.21:
            del headers["x-session-id"]
        return self._chat(client, headers, content, counts_tokens)

    async def _chat(
        self, client: aiohttp.ClientSession, headers: dict[str, str], content: bytes, counts_tokens: bool
    ) -> None:
        hangs = headers.get("x-fault") == "hangs"
        text, whole = b"", False
        async with client.post(f"{self._url}/v1/chat/completions", data=content, headers=headers) as answer:
            with contextlib.suppress(aiohttp.ClientPayloadError):  # it broke
                async for piece in answer.content.iter_any():
                    text += piece
                    if hangs:
                        break
                whole = not hangs
            if hangs:
                answer.close()  # it has heard enough
        told = answer.headers.get("x-session-pin-status")
        if told is None:
            return
        status, _, reason = told.partition("; reason=")
        self.requests[CHAT, reason, status] += 1
        pinned = answer.headers["x-session-pinned"]
        model = answer.headers.get("x-session-model")
        session = headers["authorization"], headers["x-session-id"]
        if model is None and status in ("miss", "reroute") and answer.status == 200:
            model = json.loads(text.removeprefix(b"data: ").partition(b"\n")[0])["model"]
            if status == "reroute" and model == self._on[session]:  # which has just been refused
                model = None
        if model is not None:
            self.models[model, pinned] += 1
            self._on[session] = model
        if counts_tokens and whole and b'"usage"' in text:
            for kind, count in (("input", 100), ("cached", 60), ("output", 7)):
                self.tokens[kind, pinned] += count

    async def _leave(self) -> None:
        """Leave without having waited for the answer: nobody but the gateway knows its status."""
        await self._send(LEFT, b'{"model": "auto"}', 17)
        self.requests[LEFT, "", ""] += 1

    async def _leave_while_it_sends(self) -> None:
        await self._send(UPLOADED, b'{"model": ', 1000)
        self.requests[UPLOADED, "client-disconnected", "ignored"] += 1

    async def _send(self, endpoint: str, body: bytes, length: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        path = endpoint.removeprefix("*").encode()
        head = b"POST %b HTTP/1.1\r\nHost: a\r\nX-Fault: silent\r\nX-Session-Id: %x\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (path, random.getrandbits(64), length) + body)
        await writer.drain()
        await asyncio.sleep(0.02 * random.random())
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def figures(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Return what Prometheus reads: for each series its values by the labels' values."""
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with (
            aiohttp.ClientSession(headers=headers) as client,
            client.get(f"{self._url}/-/session-pin/metrics") as answer,
        ):
            text = await answer.text()
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = tuple(sample.labels[name] for name in sorted(sample.labels))
                found.setdefault(sample.name, {})[labels] = sample.value
        return found

    async def wait_for_figures(self) -> None:
        """Wait until as many requests are told as were made, for a while."""
        for _ in range(PATIENCE * 10):
            if sum((await self.figures())["session_pin_requests_total"].values()) >= self.requests.total():
                return
            await asyncio.sleep(0.1)

    def faults(self, figures: dict[str, dict[tuple[str, ...], float]], pins: int) -> Iterator[str]:
        """Yield where the figures are others, with so many pins in the store."""
        told: Counter[tuple[str, ...]] = Counter()
        for (endpoint, reason, status), number in figures["session_pin_requests_total"].items():
            told[(endpoint, reason, status) if endpoint != LEFT else (LEFT, "", "")] += int(number)
        yield from _differences("requests", self.requests, told)
        yield from _differences("requests of a model", self.models, figures["session_pin_model_requests_total"])
        yield from _differences("tokens", self.tokens, figures.get("session_pin_tokens_total", {}))
        changes = figures["session_pin_changes_total"]
        left = changes["made",] - sum(changes[cause,] for cause in _ENDS_A_PIN)
        if left != pins:
            yield f"by the changes {left:.0f} pins are left, in the store are {pins}: {changes}"


def _differences(name: str, counted: Counter[Any], told: Any) -> Iterator[str]:
    for labels in sorted(counted.keys() | told.keys()):
        if counted[labels] != told.get(labels, 0):
            yield f"{name}, {labels}: the clients counted {counted[labels]}, the figures say {told.get(labels, 0):.0f}"


@contextlib.contextmanager
def counted(folder: Path, store: str, *, workers: int) -> Iterator[tuple[Path, str, Callable[[], None]]]:
    """Serve the upstream through so many workers; yield the configuration, the URL, and what reloads it."""
    path = folder / "session_pin.yaml"
    settings: dict[str, Any] = {
        "routing": {"router_models": ["auto"], "session_ttl_seconds": 3600, "session_max_entries": 10_000_000},
        "store": {"url": store, "timeout_seconds": 10},  # so many processes have few cores here
        "limits": {"max_request_bytes": MOST_BYTES},
        "admin": {"token": TOKEN, "tokens": True},
    }
    path.write_text(json.dumps(settings))
    with serve_app(upstream) as behind:
        command = ["--upstream", behind, "--config", str(path), "--workers", str(workers), "--log-level", "critical"]
        with serving(*command) as (url, process):
            wait_until(lambda: len(workers_of(process.pid)) == workers)

            def reload() -> None:
                settings["admin"]["tokens"] = False
                path.write_text(json.dumps(settings))
                _replace_workers(process, workers)

            yield path, url, reload


def _replace_workers(process: subprocess.Popen[str], workers: int) -> None:
    before = workers_of(process.pid)
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(workers_of(process.pid)) == workers and not before & workers_of(process.pid))


async def run(folder: Path, store: str, *, requests: int, workers: int) -> tuple[list[str], str]:
    """Make so many requests, half of them after a reload; return what is wrong, and what was seen."""
    log = logging.getLogger("uvicorn.error")  # the upstream's, whose failures are meant
    with counted(folder, store, workers=workers) as (path, url, reload):
        log.disabled = True
        try:
            clients = Clients(url)
            await clients.ask(requests // 2, counts_tokens=True)
            await asyncio.to_thread(reload)
            await clients.ask(requests - requests // 2, counts_tokens=False)
            await clients.wait_for_figures()
            figures = [await clients.figures() for _ in range(2 * workers)]  # whichever worker answers
        finally:
            log.disabled = False
        opened = open_store(Config.load(path), "counting")
        assert isinstance(opened, OperableStore)
        pins = await opened.count()
        await opened.aclose()
    wrong = list(clients.faults(figures[0], pins))
    names = ("session_pin_requests_total", "session_pin_model_requests_total", "session_pin_changes_total")
    if any(each[name] != figures[0][name] for each in figures for name in names):
        wrong.append("the workers tell different figures")
    counts = [(" ".join(filter(None, told)) or "left", n) for (_, *told), n in clients.requests.most_common()]
    shown = ", ".join(f"{name} {number:,}" for name, number in counts)
    return wrong, f"{clients.requests.total():,} requests with a session, {pins:,} pins: {shown}"
