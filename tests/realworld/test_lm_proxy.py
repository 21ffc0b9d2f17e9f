"""LM-Proxy with the middleware inside: its answers name no model, so its router has to say what there is to pin."""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx
import pytest

from realworld.apps import RECIPES, App, run_app
from realworld.asking import CHAT, EASY, HARD, Exact, chat, new_session, raw, take_requests
from realworld.conftest import serve_command
from realworld.stacks import BACKEND

INSIDE = RECIPES / "lm_proxy_inside.py"
# LM-Proxy's own command takes its port from its configuration.
BARE = """
import os, sys, uvicorn
from lm_proxy.app import web_app
from lm_proxy.bootstrap import bootstrap
bootstrap(os.environ["LM_PROXY_CONFIG"], env_file="")
uvicorn.run(web_app(), port=int(sys.argv[1]))
"""
TRIES = 3  # of the SDK that LM-Proxy asks with; it takes more than a second for them
plain_and_streamed = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])


class Apps(NamedTuple):
    """LM-Proxy without us, with the middleware, and with the middleware and a router, before one backend."""

    backend: httpx.Client
    bare: httpx.Client
    unrouted: App
    routed: httpx.Client

    def ask(self, prompt: str, session: dict[str, str], *, stream: bool = False) -> tuple[list[str], Exact]:
        """Return the models that the backend was asked for by the router, and the answer."""
        answer = raw(self.routed, "POST", CHAT, content=written("auto", prompt, stream), **session)
        return [request["asked"] for request in take_requests(self.backend)], answer


def written(model: str, prompt: str, stream: bool) -> bytes:
    return json.dumps(chat(model, prompt, stream)).encode()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apps]:
    folder = tmp_path_factory.mktemp("lm-proxy")
    unrouted = folder / "unrouted.toml"
    lines = (RECIPES / "lm_proxy.toml").read_text().splitlines(keepends=True)
    unrouted.write_text("".join(line for line in lines if not line.startswith("before")))
    with (
        serve_command(folder, sys.executable, BACKEND, ready="/health") as url,
        httpx.Client(base_url=url, trust_env=False) as backend,
    ):
        environment = {"FAKE_PROVIDER_URL": f"{url}/v1", "FAKE_PROVIDER_KEY": "any"}
        as_it_is = {**environment, "LM_PROXY_CONFIG": str(unrouted)}
        with (
            run_app(folder, "-c", BARE, ready="/v1/models", **as_it_is) as bare,
            run_app(folder, INSIDE, ready="/v1/models", **as_it_is) as inside,
            run_app(folder, INSIDE, ready="/v1/models", **environment) as routed,
        ):
            yield Apps(backend, bare.client, inside, routed.client)


@pytest.fixture
def apps(running: Apps) -> Iterator[Apps]:
    take_requests(running.backend)
    yield running
    running.backend.put("/conditions", json={})


@plain_and_streamed
def test_where_answers_name_no_model_nothing_is_pinned_and_answers_are_those_without_us(
    apps: Apps, stream: bool
) -> None:
    session = new_session()
    for prompt in (EASY, HARD, EASY):
        content = written("auto", prompt, stream)
        direct = raw(apps.bare, "POST", CHAT, content=content, **session)
        received = take_requests(apps.backend)
        rest, ours = raw(apps.unrouted.client, "POST", CHAT, content=content, **session).apart()
        assert rest.lasting() == direct.lasting()
        assert ours == {b"x-session-pinned": b"false", b"x-session-pin-status": b"miss"}
        assert take_requests(apps.backend) == received
        assert received[0]["served"] == ("large" if prompt == HARD else "small")
    assert apps.unrouted.log.read_text().count("a response names no model") == 1


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"model": "auto"}', written("none", EASY, False)])
def test_its_errors_are_those_without_us(apps: Apps, content: bytes) -> None:
    session = new_session()
    rest, _ = raw(apps.unrouted.client, "POST", CHAT, content=content, **session).apart()
    assert rest == raw(apps.bare, "POST", CHAT, content=content, **session)
    assert rest.status >= 400


@plain_and_streamed
def test_parallel_requests_of_a_session_wait_for_the_first_answer_and_no_longer(apps: Apps, stream: bool) -> None:
    session = new_session()
    apps.backend.put("/conditions", json={"seconds": 0.7})

    def ask(prompt: str) -> bytes:
        content = written("auto", prompt, stream)
        return raw(apps.unrouted.client, "POST", CHAT, content=content, **session).apart()[1][b"x-session-pin-status"]

    for _ in range(2):
        started = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, [EASY, HARD] * 4)) == {b"miss"}
        assert time.monotonic() - started < 4  # one by one it would be longer, and so would decision_wait_seconds


@plain_and_streamed
@pytest.mark.parametrize("prompts", [[EASY, HARD, EASY], [HARD, EASY, HARD]], ids=["easy first", "hard first"])
def test_a_choice_that_the_router_states_is_pinned(apps: Apps, stream: bool, prompts: list[str]) -> None:
    session = new_session()
    model = "small" if prompts[0] == EASY else "large"
    for prompt, status in zip(prompts, [b"miss", b"hit", b"hit"], strict=True):
        asked, answer = apps.ask(prompt, session, stream=stream)
        assert asked == [model]
        assert answer.apart()[1][b"x-session-pin-status"] == status
        assert answer.apart()[1][b"x-session-model"] == model.encode()


@plain_and_streamed
def test_without_a_session_the_router_goes_on_choosing(apps: Apps, stream: bool) -> None:
    for prompt, model in [(EASY, "small"), (HARD, "large"), (EASY, "small")]:
        asked, answer = apps.ask(prompt, {}, stream=stream)
        assert asked == [model]
        assert answer.apart()[1] == {}


def test_a_pinned_model_that_is_out_is_routed_around_and_stays_pinned(apps: Apps) -> None:
    session = new_session()
    for prompt in (HARD, EASY):
        assert apps.ask(prompt, session)[0] == ["large"]
    apps.backend.put("/conditions", json={"out": ["large"]})
    asked, answer = apps.ask(EASY, session)
    assert asked == [*["large"] * TRIES, "small"]
    assert (answer.status, answer.apart()[1][b"x-session-pin-status"]) == (200, b"reroute")
    apps.backend.put("/conditions", json={})
    assert apps.ask(EASY, session)[0] == ["large"]


def test_a_stream_fails_after_the_second_that_is_held_so_it_passes_and_the_third_gives_the_pin_up(apps: Apps) -> None:
    session = new_session()
    for prompt in (HARD, EASY):
        assert apps.ask(prompt, session, stream=True)[0] == ["large"]
    apps.backend.put("/conditions", json={"out": ["large"]})
    direct = raw(apps.bare, "POST", CHAT, content=written("large", EASY, True), **session)
    take_requests(apps.backend)
    for _ in range(3):
        asked, answer = apps.ask(EASY, session, stream=True)
        rest, ours = answer.apart()
        assert rest.lasting() == direct.lasting()
        assert asked == ["large"] * TRIES
        assert (rest.status, ours[b"x-session-pin-status"]) == (200, b"hit")
        assert b'"finish_reason": "error"' in rest.body
        time.sleep(0.5)  # a request that comes before the app is done with this one would be of the same failure
    asked, answer = apps.ask(EASY, session, stream=True)
    assert asked == ["small"]
    assert answer.apart()[1][b"x-session-pin-status"] == b"miss"
