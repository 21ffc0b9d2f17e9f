"""What is published."""

import re
from importlib.metadata import requires
from pathlib import Path

import msgspec
import pytest

import asgi_session_pin
from asgi_session_pin import Config, ConfigError

ROOT = Path(__file__).parent.parent


def test_every_public_name_is_there_and_documented() -> None:
    assert sorted(asgi_session_pin.__all__) == asgi_session_pin.__all__
    for name in asgi_session_pin.__all__:
        assert getattr(asgi_session_pin, name).__doc__


def test_every_setting_is_documented() -> None:
    sections = [field.type for field in msgspec.structs.fields(Config) if field.type is not bool]
    for section in [Config, *sections]:
        if isinstance(section, type) and issubclass(section, msgspec.Struct):
            own = [field.name for field in msgspec.structs.fields(section) if field.type not in sections]
            assert [name for name in own if f"- `{name}`:" not in str(section.__doc__)] == []


def test_the_changelog_knows_the_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1:2] in ([], [asgi_session_pin.__version__])


def test_the_example_configuration_has_every_key_at_its_default() -> None:
    path = ROOT / "examples" / "session_pin.yaml"
    assert Config.load(path) == Config()
    keys = set(re.findall(r"^ *([a-z_]+):", path.read_text(), re.MULTILINE))
    expected = set(msgspec.to_builtins(Config())) | {
        key for section in msgspec.to_builtins(Config()).values() if isinstance(section, dict) for key in section
    }
    assert keys == expected


def test_an_endpoint_without_path_is_a_fault() -> None:
    with pytest.raises(ConfigError, match=r"endpoints\.0\.path: missing"):
        Config.load({"endpoints": [{"kind": "ignore"}]})


def test_the_gateway_reads_all_that_upstreams_compress() -> None:
    stated = requires("asgi-session-pin") or []
    decoders = [line for line in stated if line.endswith("extra == 'compression'")]
    assert decoders
    assert [line for line in decoders if line.replace("'compression'", "'gateway'") not in stated] == []
