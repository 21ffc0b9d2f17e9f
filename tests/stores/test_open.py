"""Which store a URL opens, and what is told where it can't."""

import logging
import sys
from pathlib import Path

import pytest

from asgi_session_pin import Config, ConfigError, MemoryStore, SessionPinMiddleware, Sessions, Store
from asgi_session_pin.cli import main
from asgi_session_pin.stores import open_store
from asgi_session_pin.stores.redis import RedisStore
from asgi_session_pin.stores.sqlite import SQLiteStore

SECRET_URL = "redis://user:hunter2@host:6380/1?client_name=hunter2"


def with_url(url: str) -> Config:
    return Config.load({"store": {"url": url}})


def fault_of(url: str) -> str:
    with pytest.raises(ConfigError) as error:
        open_store(with_url(url))
    [fault] = error.value.faults
    return fault


def test_each_url_opens_its_store_and_nothing_is_connected_or_written(tmp_path: Path) -> None:
    path = tmp_path / "pins.db"
    urls = {
        "memory://": MemoryStore,
        f"sqlite:///{path}": SQLiteStore,
        "redis://127.0.0.1:1/0": RedisStore,
        "rediss://127.0.0.1:1": RedisStore,
        "unix:///redis.sock": RedisStore,
        "redis+sentinel://127.0.0.1:1,127.0.0.1:2/pins/0": RedisStore,
        "rediss+cluster://127.0.0.1:1,127.0.0.1:2": RedisStore,
    }
    for url, kind in urls.items():
        assert type(open_store(with_url(url))) is kind
        SessionPinMiddleware(lambda *_: None, config=with_url(url))  # type: ignore[arg-type]
    assert not path.exists()


def test_three_slashes_lead_from_the_working_directory_and_four_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite:///pins.db", f"sqlite:///{tmp_path}/pins.db"):
        assert repr(open_store(with_url(url))) == f"SQLiteStore('{tmp_path}/pins.db')"


@pytest.mark.parametrize(
    "url",
    ["", "memory", "memory://x", "sqlite://pins.db", "sqlite:///", "redis://", "unix://", "http://x", "redis:// x"],
)
def test_any_other_url_is_a_fault_that_does_not_show_it(url: str) -> None:
    with pytest.raises(ConfigError, match=r'store.url: found text, expected "memory://", "sqlite:///FILE", "redis://'):
        with_url(url)


def test_a_file_that_cannot_be_used_is_a_fault_at_the_start(tmp_path: Path) -> None:
    assert fault_of(f"sqlite:///{tmp_path}/none/pins.db") == f"store.url: there is no directory {tmp_path}/none"
    with pytest.raises(ConfigError, match=r"store\.url: "):
        SessionPinMiddleware(lambda *_: None, config=with_url(f"sqlite:///{tmp_path}"))  # type: ignore[arg-type]


def test_a_redis_url_that_cannot_be_used_is_a_fault_without_its_secrets() -> None:
    fault = fault_of("redis://:hunter2@host:port/0")
    assert fault.startswith("store.url: a Redis URL can't be used: ")
    assert "hunter2" not in fault


def test_without_redis_the_fault_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("asgi_session_pin.stores.redis", "asgi_session_pin.stores._redis_client"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    fault = fault_of(SECRET_URL)
    assert fault == "store.url: found 'redis://***@host:6380/1', which needs asgi-session-pin[redis] to be installed"


def test_check_tells_of_a_store_that_cannot_be_used(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(f"store: {{url: 'sqlite:///{file.parent}/none/pins.db'}}")
    assert main(["check", str(file)]) == 1
    assert "store.url: there is no directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("sqlite:////var/a@b/pins.db", "sqlite:////var/a@b/pins.db"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("rediss://host?password=hunter2", "rediss://host"),
        (SECRET_URL, "redis://***@host:6380/1"),
        ("unix:///redis.sock?password=hunter2", "unix:///redis.sock"),
        ("redis+sentinel://ann:hunter2@h1,h2/pins/0?sentinel_password=hunter2", "redis+sentinel://***@h1,h2/pins/0"),
        ("rediss+cluster://ann:hunter2@h1:7000,h2:7001", "rediss+cluster://***@h1:7000,h2:7001"),
        ("redis://:hunter2@x@host", "redis://***@host"),
        ("redis://:hunter2?@host", "redis://***@host"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = with_url(url)
    assert config.store.shown_url == shown
    assert f"url: {shown}" in config.to_yaml().replace("'", "")
    assert "hunter2" not in repr(config) + config.to_yaml()


def test_a_shared_store_without_credential_or_secret_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings_of(**settings: object) -> int:
        caplog.clear()
        config = Config(store=Store(url=f"sqlite:///{tmp_path}/pins.db"), sessions=Sessions(**settings))  # type: ignore[arg-type]
        SessionPinMiddleware(lambda *_: None, config=config)  # type: ignore[arg-type]
        return len([record for record in caplog.records if "sessions.secret" in record.getMessage()])

    caplog.set_level(logging.WARNING)
    assert warnings_of(partition_by=()) == 1
    assert warnings_of(partition_by=(), secret="s") == 0
    assert warnings_of() == 0
