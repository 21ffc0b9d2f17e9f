"""LitServe with the middleware inside: it answers under the name asked for; a router in its API shows its choice."""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from realworld.apps import RECIPES, run_app
from realworld.asking import CHAT, EASY, HARD, Exact, chat, new_session, raw

INSIDE = RECIPES / "litserve_inside.py"
UNROUTED = """
import sys
from litserve_inside import Config, litserve, run
run(litserve.OpenAISpec(), Config(), int(sys.argv[1]))
"""
BARE = """
import signal, sys
from litserve_inside import Models, litserve
signal.signal(signal.SIGTERM, signal.default_int_handler)
server = litserve.LitServer(Models(spec=litserve.OpenAISpec()), accelerator="cpu")
server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False)
"""
plain_and_streamed = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])


class Servers(NamedTuple):
    """LitServe without us, with the middleware at its defaults, and with the middleware and a router."""

    bare: httpx.Client
    unrouted: httpx.Client
    routed: httpx.Client


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder, path = tmp_path_factory.mktemp("litserve"), str(RECIPES)
    with (
        run_app(folder, "-c", BARE, ready="/health", PYTHONPATH=path) as bare,
        run_app(folder, "-c", UNROUTED, ready="/health", PYTHONPATH=path) as unrouted,
        run_app(folder, INSIDE, ready="/health") as routed,
    ):
        yield Servers(bare.client, unrouted.client, routed.client)


def ask(server: httpx.Client, prompt: str, session: dict[str, str], *, stream: bool, model: str = "auto") -> Exact:
    return raw(server, "POST", CHAT, content=json.dumps(chat(model, prompt, stream)).encode(), **session)


@plain_and_streamed
def test_a_name_that_is_echoed_is_pinned_as_itself_and_answers_are_those_without_us(
    servers: Servers, stream: bool
) -> None:
    session = new_session()
    for model in ("auto", "other"):
        for prompt, status in [(EASY, b"miss"), (HARD, b"hit"), (EASY, b"hit")]:
            direct = ask(servers.bare, prompt, session, stream=stream, model=model)
            rest, ours = ask(servers.unrouted, prompt, session, stream=stream, model=model).apart()
            assert rest.lasting() == direct.lasting()
            assert b"I am %s." % model.encode() in rest.body
            assert ours[b"x-session-pin-status"] == status


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"model": "auto"}'])
def test_its_errors_are_those_without_us(servers: Servers, content: bytes) -> None:
    session = new_session()
    rest, _ = raw(servers.unrouted, "POST", CHAT, content=content, **session).apart()
    assert rest == raw(servers.bare, "POST", CHAT, content=content, **session)
    assert rest.status == 422


@plain_and_streamed
def test_without_a_session_the_model_changes_with_the_prompt(servers: Servers, stream: bool) -> None:
    for prompt, model in [(EASY, b"small"), (HARD, b"large"), (EASY, b"small")]:
        rest, ours = ask(servers.routed, prompt, {}, stream=stream).apart()
        assert b"I am %s." % model in rest.body
        assert ours == {}


@plain_and_streamed
@pytest.mark.parametrize("prompts", [[EASY, HARD, EASY], [HARD, EASY, HARD]], ids=["easy first", "hard first"])
def test_a_session_stays_on_the_model_of_its_first_prompt(servers: Servers, stream: bool, prompts: list[str]) -> None:
    session = new_session()
    model = b"small" if prompts[0] == EASY else b"large"
    for prompt, status in zip(prompts, [b"miss", b"hit", b"hit"], strict=True):
        rest, ours = ask(servers.routed, prompt, session, stream=stream).apart()
        assert b"I am %s." % model in rest.body
        assert ours[b"x-session-pin-status"] == status


def processes(marker: str) -> list[int]:
    """Return the running processes that have *marker* in their environment, as the children of such a one do."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            pass  # it has just ended, or is somebody else's
    return found


def test_when_it_is_stopped_none_of_its_processes_is_left(tmp_path: Path) -> None:
    marker = str(uuid.uuid4())
    with run_app(tmp_path, INSIDE, ready="/health", MARKER=marker):
        assert len(processes(marker)) > 2
    deadline = time.monotonic() + 10
    while processes(marker):
        assert time.monotonic() < deadline
        time.sleep(0.05)
