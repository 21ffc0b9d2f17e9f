"""The command line."""

import io
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from starlette.applications import Starlette

from asgi_session_pin import Config, ConfigError, SessionPinMiddleware, __version__
from asgi_session_pin.cli import main
from asgi_session_pin.config.schema import make_schema
from redis_servers import SERVICE, RedisServer, Sentinels, redis_server
from servers import free_port


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "asgi_session_pin", *arguments]
    return subprocess.run(command, capture_output=True, env=environment, check=False)


def test_wrong_arguments_are_one_clear_line_and_exit_2() -> None:
    for arguments in ([], ["dmeo"], ["demo", "--fast"]):
        finished = run(*arguments)
        assert finished.returncode == 2
        assert finished.stderr.decode().splitlines()[-1].startswith("asgi-session-pin: error: ")


def test_the_version_is_told() -> None:
    assert run("--version").stdout.decode().strip() == f"asgi-session-pin {__version__}"


def test_a_terminal_without_arrows_still_gets_the_demo() -> None:
    finished = run("demo", PYTHONIOENCODING="ascii")
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert b"? All 5 steps routed to" in finished.stdout


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    script = f"{sys.executable} -m asgi_session_pin demo | head -n 1"
    finished = subprocess.run(["sh", "-c", script], capture_output=True, check=False)
    assert (finished.stdout, finished.stderr) == (b"Run 1: WITHOUT Session Pinning\n", b"")


def test_an_output_that_is_no_terminal_gets_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "argv", ["asgi-session-pin", "demo"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("asgi_session_pin", run_name="__main__")
    assert ended.value.code == 0
    assert "✓ All 5 steps" in output.getvalue()


def test_a_broken_pipe_ends_quietly(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    def broken() -> bool:
        raise BrokenPipeError

    with open(f"{tmp_path}/out", "w") as output:
        monkeypatch.setattr("asgi_session_pin.cli.run_demo", broken)
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["demo"]) == 1


SETTINGS = {
    "routing": {"session_ttl_seconds": 0.5, "session_max_age_seconds": 3600, "router_models": ["auto"]},
    "decisions": {"aliases": {"$a-*": "b/$*", "null": "true", "ü": "1e3"}},
    "endpoints": [{"path": "/x: #y"}],
    "response_headers": False,
}


def test_check_prints_the_settings_in_force_as_the_same_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "session_pin.yaml"
    path.write_text(Config.load(SETTINGS).to_yaml())
    assert main(["check", "--all", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "session_max_age_seconds: 3600  # default: null\n" in printed
    assert "session_ttl_sliding: " in printed
    path.write_text(printed)
    assert Config.load(path) == Config.load(SETTINGS)


def test_check_prints_what_differs_from_the_defaults_and_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "session_pin.yaml"
    path.write_text("routing: {session_ttl_seconds: 60, router_models: [auto]}\nresponse_headers: false\nstore: {}\n")
    assert main(["check", str(path)]) == 0
    printed = capsys.readouterr().out
    assert (
        printed
        == f"""\
# {path}: ok, 3 settings differ from the defaults
routing:
  session_ttl_seconds: 60  # default: 600
  router_models:  # default: []
  - auto
response_headers: false  # default: true

# All:  asgi-session-pin check --all {path}
# Next: asgi-session-pin serve --config {path} --upstream URL
"""
    )
    differing = Config.load(path)
    path.write_text(printed)
    assert Config.load(path) == differing


@pytest.mark.parametrize(
    ("text", "count"), [("", "no settings differ"), ("store: {timeout_seconds: 1}", "1 setting differs")]
)
def test_check_counts_what_differs(text: str, count: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "session_pin.yaml"
    path.write_text(text)
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"# {path}: ok, {count} from the defaults\n")


def test_schema_prints_a_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(make_schema()))


def test_check_prints_what_merge_keys_stand_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "session_pin.yaml"
    path.write_text("""
endpoints:
  - &chat {path: /chat, kind: ignore}
  - &any {path: /any, kind: decision}
  - {<<: [*chat, *any]}
  - {<<: [*chat, *any], path: /own}
""")
    assert main(["check", str(path)]) == 0
    expected = [("/chat", "ignore"), ("/any", "decision"), ("/chat", "ignore"), ("/own", "ignore")]
    assert re.findall(r"path: (\S+)\n +kind: (\w+)", capsys.readouterr().out) == expected


def test_check_masks_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIN_SECRET", "hunter2")
    path = tmp_path / "session_pin.yaml"
    path.write_text("sessions:\n  secret: ${PIN_SECRET}\n")
    assert main(["check", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "secret: '***'" in printed
    assert "hunter2" not in printed


def test_check_masks_user_and_password_in_any_url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "session_pin.yaml"
    path.write_text(
        """
routing: {router_models: ["https://ann:hunter2@host/auto", "hf://org/model@main"]}
decisions: {aliases: {"//:hunter2@host/*": "see http://ann:hunter2@[::1]:80/a@b"}}
endpoints: [{path: "//ann:hunter2@host"}]
store: {url: "redis://ann:hunter2@host/0?password=hunter2"}
"""
    )
    assert main(["check", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "hunter2" not in printed
    assert Config.load({**yaml.safe_load(printed), "store": {}}) == Config.load(
        {
            "routing": {"router_models": ["https://***@host/auto", "hf://org/model@main"]},
            "decisions": {"aliases": {"//***@host/*": "see http://***@[::1]:80/a@b"}},
            "endpoints": [{"path": "//***@host"}],
        }
    )


def test_check_shows_a_path_with_a_colon_and_an_at_sign_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "session_pin.yaml"
    path.write_text(f"store: {{url: 'sqlite:///{tmp_path}/a:b@c.db'}}")
    assert main(["check", str(path)]) == 0
    assert f"sqlite:///{tmp_path}/a:b@c.db" in capsys.readouterr().out


BAD_FILES = {
    "faults": b"routing: {session_ttl_seconds: soon}\nstores: {}\n",
    "python tag": b"a: !!python/object/apply:os.system [true]\n",
    "nesting": b"[" * 100_000,
    "binary": bytes(range(256)),
    "list": b"- 1\n",
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_check_tells_what_is_wrong_with_any_file_and_exits_1(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(BAD_FILES[kind])
    assert main(["check", str(path)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"{path}: ")
    assert len(output.err) < 1000
    if kind == "faults":
        assert output.err.splitlines()[1:-1] == [
            "  routing.session_ttl_seconds: found 'soon', expected a number of seconds above 0, at most 1,000,000,000 "
            "(line 1)",
            "  stores: unknown key, did you mean 'store'? (line 2)",
        ]


@pytest.mark.parametrize("command", [["check"], ["serve", "--upstream", "http://127.0.0.1:9", "--config"]])
def test_a_store_that_cannot_be_opened_is_told_with_the_file_that_names_it(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "session_pin.yaml"
    path.write_text(f"store: {{url: 'sqlite:///{tmp_path}/missing/pins.db'}}")
    told = f"{path}: 1 fault\n  store.url: there is no directory {tmp_path}/missing"
    assert main([*command, str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"{told}\n")
    with pytest.raises(ConfigError, match=re.escape(told)):
        SessionPinMiddleware(Starlette(), config=path)


def test_check_of_a_file_that_is_not_there_has_no_traceback(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        finished = run("check", str(path))
        assert finished.returncode == 1
        assert finished.stderr.decode().splitlines()[0] == f"{path}: 1 fault"
        assert b"Traceback" not in finished.stderr


def test_check_connect_says_that_the_store_answers(
    file: Path, shared_redis: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in ("memory://", f"sqlite:///{file.parent}/pins.db", shared_redis.url):
        file.write_text(f"store: {{url: '{url}'}}")
        assert main(["check", "--connect", str(file)]) == 0
        printed = capsys.readouterr()
        assert printed.out.splitlines()[1] == f"# {url} answers"
        assert printed.err == ""
        assert Config.load(yaml.safe_load(printed.out) or {}) == Config.load(file)


def test_check_connect_says_why_a_store_cannot_be_used(
    file: Path, shared_sentinels: Sentinels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentinel = f"127.0.0.1:{shared_sentinels.sentinels[0].port}"
    nobody = f"127.0.0.1:{free_port()}"
    with redis_server(tmp_path, password="right") as server:
        told = {
            f"redis://:hunter2@127.0.0.1:{server.port}/0": ["get: AuthenticationError"],
            f"redis+sentinel://ann:hunter2@{sentinel}/other": [
                "get: MasterNotFoundError",
                f"{sentinel}: knows no such service",
            ],
            f"redis+cluster://:hunter2@127.0.0.1:{server.port}": [
                "get: RedisClusterException from AuthenticationError",
                f"127.0.0.1:{server.port}: AuthenticationError",
            ],
        }
        for url, (failure, *faults) in told.items():
            file.write_text(f"store: {{url: '{url}'}}")
            assert main(["check", "--connect", str(file)]) == 1
            printed = capsys.readouterr()
            assert printed.out == ""
            assert "hunter2" not in printed.err
            expected = [f"{Config.load(file).store.shown_url}: {failure}", *faults]
            assert printed.err.split()[3:] == " ".join(f"store.url: {fault}" for fault in expected).split()
    file.write_text(f"store: {{url: 'redis+sentinel://{nobody},{sentinel}/{SERVICE}'}}")
    assert main(["check", "--connect", str(file)]) == 0, "the store answers, though a node does not"
    assert nobody in capsys.readouterr().err
