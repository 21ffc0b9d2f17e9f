"""The settings in examples/recipes can be used, and say nothing that is the default; tests/realworld runs them."""

from pathlib import Path

import pytest
import yaml

from asgi_session_pin import Config

RECIPES = sorted((Path(__file__).parent.parent / "examples" / "recipes").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_can_be_used_and_differs_from_the_defaults_in_all_it_says(recipe: Path) -> None:
    config = Config.load(recipe)
    for section, settings in yaml.safe_load(recipe.read_text()).items():
        for name in settings:
            assert getattr(getattr(config, section), name) != getattr(getattr(Config(), section), name)
