"""The provider with a router, and `asgi-session-pin serve` in front of it."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from realworld.conftest import HERE, serve_command

RECIPES = HERE.parent.parent / "examples" / "recipes"


class PinnedRouter:
    """Where to ask, and what was asked for there."""

    def __init__(self, url: str, provider_url: str, provider: httpx.Client) -> None:
        self.url = url
        self.provider_url = provider_url
        self._provider = provider

    def take_requests(self) -> list[dict[str, Any]]:
        """Return the requests that reached the provider since the last look."""
        requests: list[dict[str, Any]] = self._provider.delete("/requests").json()
        return requests


@contextlib.contextmanager
def pinned_router(folder: Path, recipe: str | Path, base: str = "") -> Iterator[PinnedRouter]:
    """Run the provider, and the command with the settings of a recipe, or of a file, in front of its *base*."""
    provider: list[str | Path] = [sys.executable, "-m", "realworld.routing_provider"]
    with serve_command(folder, *provider, ready="/requests", PYTHONPATH=str(HERE.parent)) as upstream:
        command: list[str | Path] = [Path(sys.executable).with_name("asgi-session-pin"), "serve"]
        command += ["--upstream", upstream + base, "--config", RECIPES / recipe, "--port"]
        with (
            serve_command(folder, *command, ready="/-/session-pin/healthz") as url,
            httpx.Client(base_url=upstream, trust_env=False) as client,
        ):
            yield PinnedRouter(url, upstream + base, client)
