"""The files of deploy/, as the programs that they are for see them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
import yaml

from asgi_session_pin import Config

DEPLOY = Path(__file__).parents[2] / "deploy"


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_alerts_go_off_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in run("promtool", "test", "rules", DEPLOY / "alerts_test.yaml")
    tested = {
        case["alertname"]
        for test in yaml.safe_load((DEPLOY / "alerts_test.yaml").read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    [group] = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    assert tested == {rule["alert"] for rule in group["rules"]}


def test_each_expression_of_the_dashboard_is_one(tmp_path: Path) -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    concrete = [re.sub(r"\$__(rate_interval|range)", "5m", text).replace("$job", ".+") for text in expressions]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(concrete)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(expressions)} rules found" in run("promtool", "check", "rules", tmp_path / "rules.yaml")


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    unit = DEPLOY / "asgi-session-pin.service"
    there = shutil.which("true")
    assert there is not None
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/asgi-session-pin/bin/asgi-session-pin", there))
    assert run("systemd-analyze", "verify", copy) == ""
    exposure = run("systemd-analyze", "security", "--offline=yes", "--threshold=20", unit)
    assert "OK" in exposure.splitlines()[-1]


def test_nginx_takes_its_part(tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("llm.example.com")
    certificate.private_key_pem.write_to_path(tmp_path / "llm.example.com.key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "llm.example.com.pem")
    site = (DEPLOY / "nginx.conf").read_text().replace("/etc/nginx/llm", f"{tmp_path}/llm")
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\n{site}\n}}\n")
    assert "test is successful" in run("nginx", "-t", "-e", "stderr", "-c", tmp_path / "nginx.conf")


def test_a_linter_finds_nothing_wrong_with_the_image() -> None:
    assert run(Path(sys.executable).with_name("hadolint"), DEPLOY / "Dockerfile") == ""


def test_the_compose_file_and_the_unit_run_the_command_line_as_it_is() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    unit = (DEPLOY / "asgi-session-pin.service").read_text()
    [started] = re.findall(r"^ExecStart=\S+ (.+)$", unit, re.MULTILINE)
    for command in (services["pins"]["command"], started.split()):
        assert command[0] == "serve"
        options = {word for word in command if word.startswith("--")}
        told = run(Path(sys.executable).with_name("asgi-session-pin"), "serve", "--help")
        assert options <= set(re.findall(r"--[a-z-]+", told))


def test_its_settings_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIN_ADMIN_TOKEN", "0123456789abcdef")
    config = Config.load(DEPLOY / "session_pin.yaml")
    assert config.store.is_shared
