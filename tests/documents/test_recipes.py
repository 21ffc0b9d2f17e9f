"""The settings of the recipes can be used, and docs/recipes.md shows those that tests/realworld runs."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from asgi_session_pin import Config
from code_blocks import BLOCKS, ROOT, block

RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
LITELLM = [ROOT / "examples" / "litellm" / name for name in ("session_pin.yaml", "balanced.yaml")]
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


SHOWN = {
    "openai_agents.py": block("docs/recipes.md", "settings = ModelSettings("),
    "langgraph_agent.py": block("docs/recipes.md", "headers = {"),
    "ai_sdk.mjs": block("docs/recipes.md", "const { text } = "),
}


@pytest.mark.parametrize("name", SHOWN)
def test_the_document_shows_what_is_in_the_programs_that_tests_run(name: str) -> None:
    program = {line.strip() for line in (ROOT / "examples" / "recipes" / name).read_text().splitlines()}
    assert {line.strip() for line in SHOWN[name].splitlines()} <= program


@pytest.mark.parametrize("shown", [each.text for each in BLOCKS if each.language in ("json", "toml", "yml")])
def test_settings_of_clients_can_be_read(shown: str) -> None:
    assert json.loads(shown) if shown[0] == "{" else tomllib.loads(shown) if " = " in shown else yaml.safe_load(shown)
