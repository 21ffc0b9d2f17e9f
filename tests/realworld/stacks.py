"""A gateway between `asgi-session-pin serve` and backends with a router, each of them in a process of its own."""

import contextlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from realworld.asking import CHAT, chat, take_requests
from realworld.conftest import SCRIPTS, serve_command
from servers import free_port

BACKEND = Path(__file__).with_name("routing_backend.py")
RECIPES = Path(__file__).parent.parent.parent / "examples" / "recipes"


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
        """Return what reached the backends, and have them forget it."""
        return [
            {**request, "worker": worker}
            for worker, backend in enumerate(self.backends)
            for request in take_requests(backend)
        ]

    def fail(self, **models: list[str]) -> None:
        """Have the backends fail for the models that are `out` or `refused`, and for no others."""
        for backend in self.backends:
            backend.put("/conditions", json=models)


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
