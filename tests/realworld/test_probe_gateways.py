"""`asgi-session-pin probe` against vllm-router, smg, LitServe and LM-Proxy, and its settings put in front of them."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from realworld.apps import run_app
from realworld.asking import CHAT, EASY, HARD, chat, new_session
from realworld.conftest import SCRIPTS, serve_command
from realworld.stacks import BACKEND, RECIPES, Stack, run_stack
from realworld.test_litserve import BARE as LITSERVE
from realworld.test_lm_proxy import BARE as LM_PROXY
from realworld.test_lm_proxy import INSIDE as LM_PROXY_INSIDE
from realworld.test_probe import probe
from realworld.test_vllm_router import RECIPE, ROUTERS

NAMES = {"auto": {}, "auto small": {"routing": {"router_models": ["auto"]}}}
every_naming = pytest.mark.parametrize("names", NAMES)
LITSERVE_ROUTED = LITSERVE.replace("import Models,", "import Models, RoutedSpec,").replace(
    "litserve.OpenAISpec()", "RoutedSpec()"
)


@pytest.fixture(scope="module", params=ROUTERS)
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    router: str = request.param
    with run_stack(tmp_path_factory.mktemp(router), router, [*ROUTERS[router], *RECIPE]) as stack:
        yield stack


@pytest.fixture(scope="module")
def litserve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """LitServe with the router of its recipe, and without the middleware."""
    folder = tmp_path_factory.mktemp("litserve")
    with run_app(folder, "-c", LITSERVE_ROUTED, ready="/health", PYTHONPATH=str(RECIPES)) as app:
        yield app.client


@contextlib.contextmanager
def pinned(folder: Path, upstream: httpx.Client, names: str) -> Iterator[httpx.Client]:
    """A client of a gateway behind `serve` with the settings that the probe prints for it, which must be right."""
    report = probe(str(upstream.base_url), "--model", *names.split())
    assert report["settings"] == NAMES[names]
    assert report["verdict"]["source"] == "body:model"
    assert {each["model"] for each in report["candidates"]} == {"small", "large"} - set(names.split())
    found = folder / "found.yaml"
    found.write_text(report["yaml"])
    options: list[str | Path] = ["serve", "--upstream", str(upstream.base_url), "--config", found, "--port"]
    with (
        serve_command(folder, SCRIPTS / "asgi-session-pin", *options, ready="/-/session-pin/healthz") as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        yield client


def check_that_it_pins(client: httpx.Client, served: Callable[[httpx.Response], tuple[str, str]]) -> None:
    """Sessions stay on the model of their first prompt; *served* tells what was asked for behind us, and who served."""
    for stream in (False, True):
        for first, second, model in ((EASY, HARD, "small"), (HARD, EASY, "large")):
            other = {"small": "large", "large": "small"}[model]
            for session, asked, models in (
                ({}, ["auto"] * 3, [model, other, model]),
                (new_session(), ["auto", model, model], [model] * 3),
            ):
                answers = [
                    served(client.post(CHAT, json=chat("auto", prompt, stream), headers=session))
                    for prompt in (first, second, first)
                ]
                assert answers == list(zip(asked, models, strict=True))


@every_naming
def test_what_it_prints_for_vllm_router_and_smg_pins_like_their_recipes(
    stack: Stack, names: str, tmp_path: Path
) -> None:
    def served(answer: httpx.Response) -> tuple[str, str]:
        [request] = stack.take_requests()
        return request["asked"], request["served"]

    assert NAMES["auto small"] == yaml.safe_load((RECIPES / f"{stack.router}.yaml").read_text())
    with pinned(tmp_path, stack.direct, names) as client:
        stack.take_requests()
        check_that_it_pins(client, served)


@every_naming
def test_what_it_prints_for_a_router_in_litserve_pins_like_its_recipe(
    litserve: httpx.Client, names: str, tmp_path: Path
) -> None:
    def served(answer: httpx.Response) -> tuple[str, str]:
        told = "".join(re.findall(r'"content":"([^"]*)"', answer.text))
        model = told.removeprefix("I am ").removesuffix(".")
        return model if answer.headers.get("x-session-pinned") == "true" else "auto", model

    assert NAMES["auto small"] == yaml.safe_load((RECIPES / "litserve.yaml").read_text())
    with pinned(tmp_path, litserve, names) as client:
        check_that_it_pins(client, served)


def test_litserve_alone_hides_what_answers(tmp_path: Path) -> None:
    with run_app(tmp_path, "-c", LITSERVE, ready="/health", PYTHONPATH=str(RECIPES)) as app:
        report = probe(str(app.client.base_url), "--model", "auto", "small", code=1)
    assert "body:model only repeats the name that was asked for" in report["verdict"]["why"]


@every_naming
@pytest.mark.parametrize("command", [["-c", LM_PROXY], [LM_PROXY_INSIDE]], ids=["alone", "with its recipe's router"])
def test_lm_proxy_cannot_be_pinned_from_in_front_since_its_answers_name_no_model(
    command: list[str | Path], names: str, tmp_path: Path
) -> None:
    config = tmp_path / "lm_proxy.toml"
    lines = (RECIPES / "lm_proxy.toml").read_text().splitlines(keepends=True)
    routed = command == [LM_PROXY_INSIDE]
    config.write_text("".join(line for line in lines if routed or not line.startswith("before")))
    with serve_command(tmp_path, SCRIPTS / "python", BACKEND, ready="/health") as backend:
        environment = {"FAKE_PROVIDER_URL": f"{backend}/v1", "FAKE_PROVIDER_KEY": "any", "LM_PROXY_CONFIG": str(config)}
        with run_app(tmp_path, *command, ready="/v1/models", **environment) as app:
            report = probe(str(app.client.base_url), "--model", *names.split(), code=1)
    assert all(reply["served"] for answer in report["answers"] for reply in answer["replies"])
    assert report["verdict"]["why"] == (
        "This gateway cannot be pinned by name: its answers name no model, neither in a header nor in the body."
    )
    assert "get_session_pin(request).record(model)" in report["verdict"]["notes"][0]
