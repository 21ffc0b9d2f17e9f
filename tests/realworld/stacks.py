"""A gateway between `asgi-session-pin serve` and a backend with a router, each of them in a process of its own."""

import contextlib
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from realworld.conftest import serve_command
from servers import free_port

BACKEND = Path(__file__).with_name("routing_backend.py")
RECIPES = Path(__file__).parent.parent.parent / "examples" / "recipes"
SCRIPTS = Path(sys.executable).parent
CHAT = "/v1/chat/completions"
EASY, HARD = "What is the capital of France?", "HARD: prove it."
# Of the connection, of the moment, or of our proxy.
PASSING = {b"connection", b"transfer-encoding", b"date"}
FORWARDED = {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"}


class Exact(NamedTuple):
    """An answer to the last byte."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def raw(client: httpx.Client, method: str, path: str, *, content: bytes | None = None, **headers: str) -> Exact:
    """Ask with one and the same request id, which gateways would make up else, and return the answer as it came."""
    sent = {"x-request-id": "1", "content-type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    with client.stream(method, path, content=content, headers=sent) as response:
        body = b"".join(response.iter_raw())
    kept = [pair for pair in response.headers.raw if pair[0].lower() not in PASSING]
    return Exact(response.status_code, kept, body)


class Stack:
    """The backends, the gateway, and the gateway with session pinning in front."""

    def __init__(self, router: str, backends: list[httpx.Client], direct: httpx.Client, pinned: httpx.Client) -> None:
        self.router = router
        self.backends = backends
        self.direct = direct
        self.pinned = pinned

    def ask(
        self,
        prompt: str,
        session: dict[str, str] | None = None,
        *,
        model: str = "auto",
        stream: bool = False,
        coding: str = "identity",
    ) -> tuple[list[str], httpx.Response]:
        """Return the models that served, or failed to, in turn, and the answer, which has come whole."""
        headers = {"accept-encoding": coding, **(session or {})}
        answer = self.pinned.post(CHAT, json=chat(model, prompt, stream), headers=headers)
        return [request["served"] for request in self.take_requests()], answer

    def take_requests(self) -> list[dict[str, Any]]:
        """Return what reached the backends, without what proxies say of themselves, and forget it."""
        taken = []
        for worker, backend in enumerate(self.backends):
            for request in backend.delete("/requests").json():
                headers = [pair for pair in request["headers"] if pair[0] not in FORWARDED]
                taken.append({**request, "worker": worker, "headers": headers})
        return taken

    def fail(self, **models: list[str]) -> None:
        """Have the backends fail for the models that are `out` or `refused`, and for no others."""
        for backend in self.backends:
            backend.put("/failing", json=models)


def chat(model: str, prompt: str, stream: bool = False) -> dict[str, Any]:
    """Return a chat request."""
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": prompt}]}


def new_session() -> dict[str, str]:
    """Return the headers of a session that nobody has used, with a credential that nobody has."""
    return {"x-session-id": str(uuid.uuid4()), "authorization": f"Bearer {uuid.uuid4()}"}


@contextlib.contextmanager
def run_stack(folder: Path, router: str, options: list[str], *, backends: int = 1) -> Iterator[Stack]:
    """Run a router by these *options*, behind which it is told its workers and its port, and its recipe in front."""
    with ExitStack() as running:

        def client(url: str) -> httpx.Client:
            return running.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False))

        def run(*command: str | Path, ready: str = "/health") -> str:
            return running.enter_context(serve_command(folder, *command, ready=ready))

        workers = [run(sys.executable, BACKEND) for _ in range(backends)]
        metrics = ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
        upstream = run(SCRIPTS / options[0], *options[1:], *metrics, "--worker-urls", *workers, "--port")
        config = RECIPES / f"{router}.yaml"
        url = run(SCRIPTS / "asgi-session-pin", "serve", "--upstream", upstream, "--config", config, "--port")
        yield Stack(router, [client(worker) for worker in workers], client(upstream), client(url))
