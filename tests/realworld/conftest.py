"""Real gateways with session pinning, in processes of their own, and the provider that they ask."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from servers import free_port

HERE = Path(__file__).parent
LITELLM = HERE.parent.parent / "examples" / "litellm"
SCRIPTS = Path(sys.executable).parent
KEY = "sk-realworld"
ALIVE = "/health/liveliness"  # of LiteLLM
PATIENCE = 120  # seconds until a server has to answer; LiteLLM alone is imported for several


@contextlib.contextmanager
def serve_command(folder: Path, *command: str | Path, ready: str = "/", **environment: str) -> Iterator[str]:
    """Run a server that is told its port as the last argument, and yield its URL; *ready* is a path it answers."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    own = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **environment}
    with open(folder / f"{port}.log", "w+b") as log:
        process = subprocess.Popen([*command, str(port)], cwd=folder, env=own, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until_ready(process, url + ready, log.name)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(url, trust_env=False)
            return
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"{url} does not answer:\n{Path(log).read_text(errors='replace')[-4000:]}")
        time.sleep(0.1)


@pytest.fixture(scope="session")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The provider behind the gateways, to see what it was asked for and to take its models out."""
    folder = tmp_path_factory.mktemp("provider")
    with (
        serve_command(folder, sys.executable, HERE / "fake_provider.py", ready="/asked") as url,
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        yield client


def inside(folder: Path, environment: dict[str, str]) -> AbstractContextManager[str]:
    """The middleware within LiteLLM's own app."""
    script = LITELLM / "inside.py"
    return serve_command(folder, sys.executable, script, ready=ALIVE, **environment)


def litellm_alone(
    folder: Path, environment: dict[str, str], config: Path = LITELLM / "config.yaml"
) -> AbstractContextManager[str]:
    """A LiteLLM that knows nothing of session pinning."""
    options: list[str | Path] = ["--config", config, "--host", "127.0.0.1", "--port"]
    return serve_command(folder, SCRIPTS / "litellm", *options, ready=ALIVE, **environment)


@contextlib.contextmanager
def in_front(folder: Path, environment: dict[str, str], config: Path = LITELLM / "config.yaml") -> Iterator[str]:
    """`asgi-session-pin serve` in front of a LiteLLM that knows nothing of it."""
    with litellm_alone(folder, environment, config) as upstream:
        options: list[str | Path] = ["--upstream", upstream, "--config", LITELLM / "session_pin.yaml", "--port"]
        with serve_command(folder, SCRIPTS / "asgi-session-pin", "serve", *options, ready=ALIVE) as url:
            yield url


def litellm_environment(provider: httpx.Client) -> dict[str, str]:
    """The variables of a LiteLLM that asks *provider*."""
    return {
        "LITELLM_MASTER_KEY": KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "FAKE_PROVIDER_URL": str(provider.base_url.join("/v1")),
        "FAKE_PROVIDER_KEY": "any",
    }


def litellm_client(url: str) -> httpx.Client:
    """A client that LiteLLM lets in."""
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False)


Placement = Callable[[Path, dict[str, str]], AbstractContextManager[str]]
PLACEMENTS: list[Placement] = [inside, in_front]


@pytest.fixture(scope="session", params=PLACEMENTS, ids=lambda placement: placement.__name__)
def litellm(
    request: pytest.FixtureRequest, provider: httpx.Client, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A client of a LiteLLM whose sessions are pinned, wherever the middleware stands."""
    with (
        request.param(tmp_path_factory.mktemp("litellm"), litellm_environment(provider)) as url,
        litellm_client(url) as client,
    ):
        yield client
