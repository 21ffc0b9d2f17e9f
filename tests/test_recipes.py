"""The settings of the recipes can be used, and docs/recipes.md shows those that tests/realworld runs."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from asgi_session_pin import Config

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
LITELLM = [ROOT / "examples" / "litellm" / name for name in ("session_pin.yaml", "balanced.yaml")]
PROGRAMS = ("openai_agents.py", "langgraph_agent.py", "ai_sdk.mjs")
DOCUMENT = ROOT / "docs" / "recipes.md"


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("recipe", [*RECIPES, *LITELLM], ids=lambda recipe: recipe.name)
def test_a_recipe_can_be_used_and_differs_from_the_defaults_in_all_it_says(recipe: Path) -> None:
    config = Config.load(recipe)
    for section, settings in yaml.safe_load(recipe.read_text()).items():
        for name in settings:
            assert getattr(getattr(config, section), name) != getattr(getattr(Config(), section), name)


def test_the_document_shows_the_settings_of_the_files_that_it_links_to() -> None:
    shown = re.findall(r"^Settings: (.+?)```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    linked = set()
    for links, settings in shown:
        for link in re.findall(r"\(\.\./([^)]+\.yaml)\)", links):
            if link not in ("examples/session_pin.yaml", "examples/litellm/config.yaml"):
                linked.add(ROOT / link)
                assert yaml.safe_load((ROOT / link).read_text()) == yaml.safe_load(settings), link
    assert linked == {*RECIPES, *LITELLM}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_document_shows_what_is_in_the_programs_that_it_links_to(name: str) -> None:
    [shown] = re.findall(rf"\(\.\./examples/recipes/{name}\)[^`]*```\w+\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    program = {line.strip() for line in (ROOT / "examples" / "recipes" / name).read_text().splitlines()}
    assert {line.strip() for line in shown.splitlines()} <= program


@pytest.mark.parametrize("block", re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(), re.DOTALL))
def test_settings_of_clients_in_json_are_json(block: str) -> None:
    assert json.loads(block)


@pytest.mark.parametrize("block", re.findall(r"```(?:yml|toml)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL))
def test_settings_of_clients_in_yaml_and_toml_can_be_read(block: str) -> None:
    assert tomllib.loads(block) if "= " in block else yaml.safe_load(block)
