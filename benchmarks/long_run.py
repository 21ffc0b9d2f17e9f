"""Long runs, with faults mixed in: memory stays flat, no task and no file is left, and the counts are true.

    scripts/soak [--requests 10000000] [--stores memory sqlite redis] [--minutes 60] [--agents 200]

The requests go through the middleware in this process, a third of them over each of memory, SQLite and Redis; apps
fail, clients leave, bodies are broken, and the stores are locked, killed, frozen, flushed and given garbage meanwhile.
Then agents talk for some minutes through `serve` with two workers, in JSON and in streams. What is not as it should be
is told, and ends it with 1. `--requests 0` or `--minutes 0` leaves a part out.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import aiohttp
from overhead import resident_bytes
from starlette.types import Message, Receive, Scope, Send

from asgi_session_pin import Config, PinEvent, SessionPinMiddleware, Store
from redis_servers import RedisServer, redis_server
from servers import serve_app, serving, workers_of

STORES = ("memory", "sqlite", "redis")
AT_A_TIME = 50
SESSIONS = 50_000  # more than a process remembers
CHECKPOINTS = 10
GROWTH_BYTES = 8_000_000  # of a process, from the fourth checkpoint to the last: allocators take their time
FAULTS = ("out", "raises", "leaves", "no body", "reset", "no session")
FAULT_PART = 0.06
PATIENT = aiohttp.ClientTimeout(total=None)  # the machine may have other work

Disturb = Callable[[], Awaitable[None]]


def grown(samples: list[int]) -> int:
    """Return by how many bytes memory grew after the first part, in which tables fill."""
    return max(samples[-3:]) - max(samples[: len(samples) * 4 // 10 + 1])


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """A gateway that routes at random, and fails where the scope says so."""
    body = (await receive()).get("body", b"")
    fault = scope.get("fault")
    asked = json.loads(body)["model"] if body.startswith(b"{") else "auto"
    if fault == "leaves":
        await asyncio.sleep(3600)
    if fault == "raises" and asked != "auto":
        raise OSError("out")
    status = 503 if fault == "out" and asked != "auto" else 200
    model = f"model-{random.randrange(10)}" if asked == "auto" else asked
    answer = json.dumps({"model": model, "choices": [{"message": {"role": "assistant", "content": "yes"}}]}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


class Client:
    """Asks the middleware, and counts what it gets."""

    def __init__(self, pinned: SessionPinMiddleware) -> None:
        self.pinned = pinned
        self.asked = 0
        self.with_session = 0
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def ask(self) -> None:
        fault = random.choice(FAULTS) if random.random() < FAULT_PART else None
        body = b"[" if fault == "no body" else b'{"model":"auto","messages":[{"role":"user","content":"Go on."}]}'
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        self.asked += 1
        if fault != "no session":
            self.with_session += 1
            headers.append((b"x-session-id", b"%d" % min(int(random.expovariate(1 / 5000)), SESSIONS)))
        if fault == "reset":
            headers.append((b"x-session-pin", b"reset"))
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "fault": fault}
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body}

        async def send(message: Message) -> None:
            sent.append(message)

        request = self.pinned({**scope, "query_string": b"", "http_version": "1.1"}, receive, send)
        try:
            if fault == "leaves":
                task = asyncio.create_task(request)
                await asyncio.sleep(0.01)
                task.cancel()
                await task
            else:
                await request
        except (asyncio.CancelledError, OSError) as error:
            if isinstance(error, asyncio.CancelledError) and fault != "leaves":
                raise  # somebody ends the run
            self.seen[type(error).__name__] += 1
            return
        self._check(dict(sent[0]["headers"]), sent[-1]["body"], fault)

    def _check(self, headers: dict[bytes, bytes], body: bytes, fault: str | None) -> None:
        status = headers.get(b"x-session-pin-status", b"none").decode()
        self.seen[status] += 1
        if (status == "none") != (fault == "no session"):
            self.wrong.append(f"status {status} with fault {fault}")
        if headers.get(b"x-session-pinned") == b"true":
            model = json.loads(body)["model"].encode()
            if model != headers[b"x-session-model"]:
                self.wrong.append(f"{model!r} for a session on {headers[b'x-session-model']!r}")


async def soak_middleware(url: str, disturb: Disturb, requests: int) -> list[str]:
    """Make so many requests, and return what is wrong."""
    events: Counter[str] = Counter()

    def listen(event: PinEvent) -> None:
        events[event.status] += 1

    files, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
    config = Config(store=Store(url=url, timeout_seconds=0.5))
    client = Client(SessionPinMiddleware(app, config=config, listeners=[listen]))
    samples = []
    started = time.monotonic()
    for number in range(1, CHECKPOINTS + 1):
        until = requests * number // CHECKPOINTS

        async def go_on(until: int = until) -> None:
            while client.asked < until:
                await client.ask()

        await asyncio.gather(disturb(), *(go_on() for _ in range(AT_A_TIME)))
        samples.append(resident_bytes())
        print(f"{url.partition(':')[0]}: {client.asked:,} requests, {samples[-1] // 1_000_000} MB", flush=True)
    await client.pinned.aclose()
    await asyncio.sleep(0.5)  # connections say goodbye
    rate = client.asked / (time.monotonic() - started)
    shown = ", ".join(f"{status} {count}" for status, count in client.seen.most_common())
    print(f"{url.partition(':')[0]}: {client.asked:,} requests, {rate:,.0f} a second: {shown}")
    print(f"  memory in MB: {' '.join(str(size // 1_000_000) for size in samples)}", flush=True)
    wrong = client.wrong[:5]
    if events.total() != client.with_session:
        wrong.append(f"{events.total()} events of {client.with_session} requests")
    if client.seen.total() != client.asked:
        wrong.append(f"{client.seen.total()} answers of {client.asked} requests")
    if grown(samples) > GROWTH_BYTES:
        wrong.append(f"memory grew by {grown(samples)} bytes")
    left = len(asyncio.all_tasks()) - tasks, len(os.listdir("/proc/self/fd")) - files
    if max(left) > 0:
        wrong.append(f"{left[0]} tasks and {left[1]} files are left")
    return [f"{url}: {each}" for each in wrong]


async def nothing() -> None:
    """Memory has no bad days."""


def disturb_sqlite(path: Path) -> Disturb:
    def lock() -> None:
        if not path.exists():
            return
        with contextlib.closing(sqlite3.connect(path, timeout=5)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(0.4)  # longer than a write waits

    async def disturb() -> None:
        await asyncio.to_thread(lock)

    return disturb


def disturb_redis(server: RedisServer) -> Disturb:
    def freeze() -> None:
        server.freeze()
        time.sleep(0.5)
        server.thaw()

    def restart() -> None:
        server.kill()
        time.sleep(0.5)
        server.start()

    def spoil() -> None:
        for name in server.call("KEYS", "session-pin:1:{*")[:200]:
            server.call("SET", name, "garbage")

    faults: Iterator[Callable[[], object]] = iter(
        [
            lambda: server.call("CLIENT", "KILL", "TYPE", "normal"),
            freeze,
            spoil,
            restart,
            lambda: server.call("FLUSHALL"),
        ]
        * CHECKPOINTS
    )

    async def disturb() -> None:
        await asyncio.to_thread(next(faults))

    return disturb


async def answer_agents(scope: Scope, receive: Receive, send: Send) -> None:
    """The gateway behind `serve`: it routes at random, and answers in a stream where it is asked to."""
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":  # the agent has left
            return
        body += message["body"]
        if not message["more_body"]:
            break
    if scope["method"] == "HEAD":  # whether anybody answers
        await send({"type": "http.response.start", "status": 200, "headers": []})
        return await send({"type": "http.response.body", "body": b""})
    asked = json.loads(body)
    model = f"model-{random.randrange(10)}" if asked["model"] == "auto" else asked["model"]
    media = b"text/event-stream" if asked["stream"] else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", media)]})
    if asked["stream"]:
        event = json.dumps({"model": model, "choices": [{"delta": {"content": "yes "}}]})
        for _ in range(20):
            await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True})
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
    else:
        answer = {"model": model, "choices": [{"message": {"role": "assistant", "content": "yes"}}]}
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


async def talk(session: aiohttp.ClientSession, url: str, until: float, counts: Counter[str], wrong: list[str]) -> None:
    """Be agents, one after the other: each has a session of some steps, and stays on its model."""
    while time.monotonic() < until:
        identity, first = f"{random.getrandbits(64):x}", None
        for step in range(random.randrange(2, 20)):
            request = {"model": "auto", "stream": step % 2 == 1, "messages": [{"role": "user", "content": "x" * 2000}]}
            headers = {"X-Session-Id": identity}
            async with session.post(f"{url}/v1/chat/completions", json=request, headers=headers) as response:
                if random.random() < 0.01:
                    response.close()  # an agent that has heard enough
                    counts["left"] += 1
                    continue
                text = await response.text()
                if response.status != 200:
                    wrong.append(f"serve: {response.status}, {text[:200]}")
                    break
                status = response.headers.get("X-Session-Pin-Status", "none")
                counts[status] += 1
            if "store-unavailable" in status:  # a disk that is busy: each worker then goes on with what it knows
                break
            model = json.loads(text.removeprefix("data: ").partition("\n")[0])["model"]
            first = first or model
            if model != first:
                wrong.append(f"serve: step {step} of a session on {first} got {model}, {response.headers}")
            await asyncio.sleep(random.uniform(0.2, 1.8))  # its tools


def sizes_of(pids: set[int]) -> tuple[int, int]:
    """Return the memory of processes in bytes, and how many files they have open."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return sum(pages) * 4096, sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


async def soak_serve(url: str, pid: int, minutes: float, agents: int) -> list[str]:
    """Let agents talk for so many minutes, and return what is wrong."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    samples, before = [], workers_of(pid)
    started = time.monotonic()
    until = started + minutes * 60
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=PATIENT) as session:
        talks = asyncio.gather(*(talk(session, url, until, counts, wrong) for _ in range(agents)))
        while not talks.done():
            await asyncio.wait([talks], timeout=minutes * 60 / CHECKPOINTS)
            samples.append(sizes_of(workers_of(pid))[0])
            print(f"serve: {counts.total():,} requests, {samples[-1] // 1_000_000} MB", flush=True)
        await talks
    await asyncio.sleep(5)  # kept connections to the upstream go
    files = sizes_of(workers_of(pid))[1]
    shown = ", ".join(f"{status} {count}" for status, count in counts.most_common())
    print(f"serve: {counts.total():,} requests of {agents} agents in {time.monotonic() - started:.0f} s: {shown}")
    print(f"  memory in MB: {' '.join(str(size // 1_000_000) for size in samples)}; files at the end: {files}")
    if workers_of(pid) != before:
        wrong.append("serve: a worker ended")
    if grown(samples) > 2 * GROWTH_BYTES:
        wrong.append(f"serve: memory grew by {grown(samples)} bytes")
    if files > 100:
        wrong.append(f"serve: {files} files are open")
    return wrong[:5]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000_000)
    parser.add_argument("--stores", nargs="+", choices=STORES, default=STORES)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--agents", type=int, default=200)
    arguments = parser.parse_args()
    logging.getLogger("asgi_session_pin").setLevel(logging.CRITICAL)  # what happens here is meant
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder)
        if arguments.requests:
            server = stack.enter_context(redis_server(path))
            stores = {
                "memory": ("memory://", nothing),
                "sqlite": (f"sqlite:///{path}/pins.db", disturb_sqlite(path / "pins.db")),
                "redis": (server.url, disturb_redis(server)),
            }
            for name in arguments.stores:
                wrong += asyncio.run(soak_middleware(*stores[name], arguments.requests // len(arguments.stores)))
        if arguments.minutes:
            settings = path / "session_pin.yaml"
            settings.write_text(
                f"store: {{url: 'sqlite:///{path}/served.db', timeout_seconds: 1}}\n"
                "gateway: {connect_timeout_seconds: 600}\n"  # as above
            )
            upstream = stack.enter_context(serve_app(answer_agents))
            command = ["--upstream", upstream, "--config", str(settings), "--workers", "2", "--log-level", "error"]
            url, process = stack.enter_context(serving(*command))
            logged: deque[str] = deque(maxlen=20)
            threading.Thread(target=logged.extend, args=(process.stderr,), daemon=True).start()  # lest the pipe fills
            wrong += asyncio.run(soak_serve(url, process.pid, arguments.minutes, arguments.agents))
            wrong += [f"serve logged: {line.rstrip()}" for line in logged]
    print("\n".join(wrong) or "ok")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
