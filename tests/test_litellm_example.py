"""The settings for LiteLLM fit the configuration beside them; tests/realworld runs both."""

from pathlib import Path

import yaml

from asgi_session_pin import Config

LITELLM = Path(__file__).parent.parent / "examples" / "litellm"


def test_the_settings_for_litellm_name_its_router_and_map_each_of_its_models_to_the_group() -> None:
    config = Config.load(LITELLM / "session_pin.yaml")
    models = {
        entry["model_name"]: entry["litellm_params"]["model"]
        for entry in yaml.safe_load((LITELLM / "config.yaml").read_text())["model_list"]
    }
    assert models.pop("smart") == "auto_router/complexity_router"
    assert config.routing.router_models == ("smart",)
    assert config.decisions.aliases == {model: group for group, model in models.items()}
    assert config.decisions.sources == ("header:x-litellm-model-name", *Config().decisions.sources)
