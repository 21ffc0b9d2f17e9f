"""The Python that README and docs show: run as it stands, or completed by what the text around it says."""

import sys
import types
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi_lifespan import LifespanManager
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_driver import Clock
from asgi_session_pin import SessionPinMiddleware, get_pinning
from asgi_session_pin.testing import CHECKS, CLAIM_CHECKS, LAPSED_CHECKS, SHARED_CHECKS
from code_blocks import block
from directory_store import DirectoryStore

TRIED = ("auto", "easy"), ("auto", "hard"), ("auto", "easy")


def choose(messages: list[dict[str, str]]) -> str:
    """The router of these tests."""
    return "large" if messages[-1]["content"] == "hard" else "small"


async def statuses(app: Any, path: str = "/v1/chat/completions") -> list[tuple[str, str]]:
    """Return status and model of a session's answers: easy, hard, easy."""
    async with LifespanManager(app) as running:
        transport = httpx.ASGITransport(app=running.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answers = [
                await client.post(
                    path,
                    json={"model": model, "messages": [{"role": "user", "content": prompt}]},
                    headers={"X-Session-Id": "one", "Authorization": "Bearer a"},
                )
                for model, prompt in TRIED
            ]
    return [(answer.headers["x-session-pin-status"], answer.json()["model"]) for answer in answers]


PINNED = [("miss", "small"), ("hit", "small"), ("hit", "small")]


async def answer_as_asked(request: Request) -> Response:
    """A proxy with a router that takes the names of models, too."""
    body = await request.json()
    return JSONResponse({"model": choose(body["messages"]) if body["model"] == "auto" else body["model"]})


ROUTES = [Route("/v1/chat/completions", answer_as_asked, methods=["POST"])]


async def test_the_readme_adds_the_middleware_in_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = block("README.md", "from asgi_session_pin import Config, Routing")
    (tmp_path / "session_pin.yaml").write_text(block("README.md", "routing:\n  router_models"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"app": Starlette(routes=ROUTES)}
    exec(shown, names)
    assert isinstance(names["app"], SessionPinMiddleware)
    imported, *ways = [line for line in shown.splitlines() if line]
    assert len(ways) == 3
    for way in ways:
        names = {"app": Starlette(routes=ROUTES)}
        exec(f"{imported}\n{way}", names)
        assert await statuses(names["app"]) == PINNED


def test_contributing_marks_a_test_with_its_case() -> None:
    names: dict[str, Any] = {}
    exec(block("CONTRIBUTING.md", "from behaviour_document import"), names)
    assert names["test_the_least_recently_used_pin_goes_first"]() is None


async def test_an_app_mounts_the_operators_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "session_pin.yaml").touch()
    names: dict[str, Any] = {"app": Starlette(routes=ROUTES), "SessionPinMiddleware": SessionPinMiddleware}
    exec(block("docs/operating.md", "from asgi_session_pin.operate.admin import"), names)
    transport = httpx.ASGITransport(app=names["pinned"])
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/-/session-pin/healthz")).text == "ok\n"


class Anybody(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        return AuthCredentials(), SimpleUser("ann")


async def test_a_stack_is_built_as_the_page_about_placement_says() -> None:
    names: dict[str, Any] = {"routes": ROUTES, "backend": Anybody()}
    exec(block("docs/placement.md", "from starlette.applications import"), names)
    assert await statuses(names["app"]) == PINNED


async def test_a_fastapi_router_of_ones_own_states_its_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def forward(body: dict[str, Any]) -> Response:
        asked.append(body["model"])
        return JSONResponse({"model": "the provider's name for it"})

    asked: list[str] = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "session_pin.yaml").write_text("routing: {router_models: [auto]}")
    names: dict[str, Any] = {"app": FastAPI(), "Request": Request, "Response": Response}
    names.update(choose=choose, forward=forward)
    exec(block("docs/recipes.md", "from asgi_session_pin import Config, SessionPinMiddleware, get"), names)
    assert [status for status, _ in await statuses(names["app"])] == ["miss", "hit", "hit"]
    assert asked == ["small"] * 3


def test_routellm_is_asked_for_the_last_message(monkeypatch: pytest.MonkeyPatch) -> None:
    class Controller:
        """Takes what RouteLLM 0.2.0 takes; its package brings PyTorch along."""

        def __init__(self, *, routers: list[str], strong_model: str, weak_model: str) -> None:
            self._models = weak_model, strong_model

        def route(self, prompt: str, router: str, threshold: float) -> str:
            return self._models[len(prompt) > 4]

    module = types.ModuleType("routellm.controller")
    module.__dict__["Controller"] = Controller
    monkeypatch.setitem(sys.modules, "routellm", types.ModuleType("routellm"))
    monkeypatch.setitem(sys.modules, "routellm.controller", module)
    names: dict[str, Any] = {}
    exec(block("docs/recipes.md", "from routellm.controller import"), names)
    prompts = "Hi", "Hi there"
    chosen = [names["choose"]([{"role": "user", "content": prompt}]) for prompt in prompts]
    assert chosen == ["openai/gpt-4o-mini", "openai/gpt-4o"]


async def test_a_router_in_the_app_heeds_the_pin_and_records_its_choice() -> None:
    shown = block("docs/routers.md", "from asgi_session_pin import get_session_pin")

    async def endpoint(request: Request) -> Response:
        names = {
            "request": request,
            "messages": (await request.json())["messages"],
            "choose": lambda messages: (choose(messages), "a route"),
        }
        exec(shown, names)
        used.append(str(names["model"]))
        return JSONResponse({"model": "auto"})

    used: list[str] = []
    app = SessionPinMiddleware(Starlette(routes=[Route("/v1/chat/completions", endpoint, methods=["POST"])]))
    assert [status for status, _ in await statuses(app)] == ["miss", "hit", "hit"]
    assert used == ["small"] * 3


def test_a_redis_pool_of_the_app_is_handed_over() -> None:
    names: dict[str, Any] = {"app": Starlette(routes=ROUTES)}
    exec(block("docs/stores.md", "from redis.asyncio import Redis"), names)
    names["app"].middleware_stack = names["app"].build_middleware_stack()
    assert get_pinning(names["app"]) is not None


async def test_a_store_of_ones_own_is_put_to_the_contract(tmp_path: Path) -> None:
    def make_store(folder: Path, **options: Any) -> DirectoryStore:
        return DirectoryStore(folder, clock=clock, **options)

    clock = Clock()
    names: dict[str, Any] = {"MyStore": make_store}
    exec(block("docs/stores.md", "import asyncio\n\nimport pytest"), names)
    names["asyncio"] = types.SimpleNamespace(sleep=clock.wait)  # time goes by at once
    [mark] = names["test_my_store"].pytestmark
    name, checks = mark.args
    assert (name, len(checks)) == ("check", len(CHECKS + LAPSED_CHECKS + SHARED_CHECKS + CLAIM_CHECKS))
    for number, check in enumerate(checks):
        await names["test_my_store"](check, tmp_path / str(number))


async def test_an_integration_of_ones_own_is_tested_in_ten_lines() -> None:
    names: dict[str, Any] = {"app": Starlette(routes=ROUTES)}
    names["app"].add_middleware(SessionPinMiddleware)
    exec(block("docs/testing.md", "import httpx"), names)
    await names["test_a_session_keeps_its_model"]()
