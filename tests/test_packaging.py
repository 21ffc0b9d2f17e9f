"""What is published."""

import json
import re
from importlib.metadata import requires
from pathlib import Path

import msgspec
import pytest
import yaml

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


LOCKS = sorted((ROOT / "tests" / "realworld").glob("*.lock"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_has_what_its_requirements_pin_with_hashes_and_names_no_host(lock: Path) -> None:
    locked = lock.read_text()
    assert "://" not in locked
    entries = re.findall(
        r"^([\w.-]+)==([^\s;]+)[^\n]*\\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", locked, re.MULTILINE
    )
    assert len(entries) == len(re.findall(r"^\S", locked, re.MULTILINE))
    versions = {(name, version) for name, version, _ in entries}
    wanted = re.findall(r"^([\w.-]+)(?:\[.*?\])?==(\S+)", lock.with_suffix(".txt").read_text(), re.MULTILINE)
    assert wanted
    assert [(name, version) for name, version in wanted if (name.lower(), version) not in versions] == []


def test_the_lock_of_node_names_no_registry_and_has_a_digest_of_everything() -> None:
    assert LOCKS
    locked = json.loads((ROOT / "tests" / "realworld" / "package-lock.json").read_text())["packages"]
    packages = [package for name, package in locked.items() if name]
    assert packages
    assert [package for package in packages if "resolved" in package or "integrity" not in package] == []


def test_hooks_before_a_commit_are_of_this_tree() -> None:
    [source] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert source["repo"] == "local"
    assert all((ROOT / hook["entry"]).exists() for hook in source["hooks"])
