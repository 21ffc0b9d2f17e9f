"""`asgi-session-pin pins`: what operators do to the pins of a shared store from a shell."""

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from asgi_session_pin import Config, Pin
from asgi_session_pin.cli import main
from asgi_session_pin.log import Warnings
from asgi_session_pin.pins.steering import Steering
from asgi_session_pin.stores import OperableStore, open_store
from servers import free_port

KEYS = [bytes([number]) * 16 for number in range(3)]


@pytest.fixture(params=["sqlite", "redis"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a file of settings whose store has three pins, one of them an operator's."""
    url = f"sqlite:///{tmp_path}/pins.db"
    if request.param == "redis":
        url = request.getfixturevalue("shared_redis").url.removesuffix("/0") + "/9"
        with redis.Redis.from_url(url) as client:
            client.flushdb()
    file = tmp_path / "session_pin.yaml"
    file.write_text(f"store: {{url: '{url}'}}\n")

    async def fill(store: OperableStore) -> None:
        made = time.time() - 90
        for key, model in zip(KEYS, ("small", "large", "small"), strict=True):
            await store.add(key, Pin(model, made, by_operator=key == KEYS[2]))

    use(file, fill)
    return file


def use(file: Path, work: Callable[[OperableStore], Any]) -> Any:
    async def run() -> Any:
        store = open_store(Config.load(file))
        assert isinstance(store, OperableStore)
        try:
            return await work(store)
        finally:
            await store.aclose()

    return asyncio.run(run())


def pins(file: Path, *arguments: str) -> int:
    return main(["pins", "--config", str(file), *arguments])


@pytest.mark.parametrize("page", [1, 500])
def test_pins_are_listed(
    page: int, settings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_session_pin.operate.pins.PAGE", page)
    assert pins(settings) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["KEY", "IDLE", "AGE", "BY", "MODEL"]
    rows = [re.fullmatch(r"(\w{32}) +(\d+) s +(9\d) s  (\w+) +(\w+)", line) for line in lines]
    assert sorted(row.group(1, 4, 5) for row in rows if row) == [
        (KEYS[0].hex(), "router", "small"),
        (KEYS[1].hex(), "router", "large"),
        (KEYS[2].hex(), "operator", "small"),
    ]


def test_pins_of_one_model_are_listed(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pins(settings, "--model", "large") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["KEY", KEYS[1].hex()]


def test_a_person_is_told_what_can_be_done_next(
    settings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {}
    for is_terminal in (True, False):
        monkeypatch.setattr("sys.stdout.isatty", lambda is_terminal=is_terminal: is_terminal, raising=False)
        assert pins(settings) == 0
        told[is_terminal] = "Next: --drop KEY" in capsys.readouterr().out
    assert told == {True: True, False: False}


def test_a_pin_is_dropped_once(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [pins(settings, "--drop", KEYS[0].hex()) for _ in range(2)] == [0, 1]
    assert capsys.readouterr().out.splitlines() == [
        "dropped: the session's next request is routed",
        "there is no such pin",
    ]
    assert use(settings, lambda store: store.get(KEYS[0])) is None


def test_a_model_is_retired_and_restored(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def retired(store: OperableStore) -> set[str]:
        steering = Steering(store, Warnings())
        await steering.read()
        return set(steering.retired)

    assert pins(settings, "--retire", "small") == 0
    assert use(settings, retired) == {"small"}
    assert pins(settings, "--restore", "small") == 0
    assert use(settings, retired) == set()
    assert "within a second" in capsys.readouterr().out


def test_too_many_retired_models_are_told(
    settings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_session_pin.pins.steering.MOST_RETIRED", 0)
    assert pins(settings, "--retire", "small") == 1
    assert "retired models already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--drop", "x"], "argument --drop: found 'x', expected a key"),
        (["--drop", "AB" * 16], "expected a key"),
        (["--retire", "a b"], "expected a name"),
        (["--restore", ""], "expected a name"),
        (["--drop", "ab" * 16, "--retire", "a"], "not allowed with"),
    ],
)
def test_what_can_be_no_key_and_no_name_is_refused(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        pins(tmp_path / "settings.yaml", *arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_a_store_that_other_processes_do_not_see_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.yaml"
    for text, told in (
        ("store: {}", "store.url: found memory://, expected a store that is shared"),
        (f"store: {{url: 'sqlite:///{tmp_path}/none.db'}}", "none.db yet"),
        ("stor: {}", "unknown key"),
    ):
        file.write_text(text)
        assert pins(file) == 1
        assert told in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()


def test_a_store_that_is_out_is_told_without_its_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"store: {{url: 'redis://:hunter2@127.0.0.1:{free_port()}/0'}}")
    assert pins(file) == 1
    told = capsys.readouterr().err
    assert told.startswith("the pin store failed: ")
    assert "hunter2" not in told


def test_a_reader_that_has_seen_enough_ends_it(settings: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*arguments: object) -> None:
        raise BrokenPipeError

    with open(tmp_path / "out", "w") as output:
        monkeypatch.setattr("sys.stdout", output)
        monkeypatch.setattr("builtins.print", broken)
        assert pins(settings) == 1
