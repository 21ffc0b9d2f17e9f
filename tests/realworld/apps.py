"""Apps of other authors with the middleware inside, in the environment that `scripts/realworld` makes for them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx

from realworld.conftest import serve_command

ROOT = Path(__file__).parent.parent.parent
RECIPES = ROOT / "examples" / "recipes"
PYTHON = ROOT / ".venv-realworld-apps" / "bin" / "python"


class App(NamedTuple):
    """A running app: a client of it, and where it logs."""

    client: httpx.Client
    log: Path


@contextlib.contextmanager
def run_app(folder: Path, *command: str | Path, ready: str, **environment: str) -> Iterator[App]:
    """Run `python COMMAND PORT`."""
    with (
        serve_command(folder, PYTHON, *command, ready=ready, **environment) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        yield App(client, folder / f"{urlsplit(url).port}.log")
