"""Fixtures of all tests."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asgi_driver import Clock

if TYPE_CHECKING:
    from redis_servers import Cluster, RedisServer, Sentinels


def pytest_report_header() -> str:
    """Tell which versions of its dependencies the package is tested with."""
    found = {}
    for requirement in requires("asgi-session-pin") or []:
        name = re.split(r"[^\w.-]", requirement)[0]
        with contextlib.suppress(PackageNotFoundError):  # not every Python and every environment needs all
            found[name] = version(name)
    return "with " + ", ".join(f"{name} {found[name]}" for name in sorted(found))


@pytest.fixture
def anyio_backend() -> str:
    """The middleware is for asyncio."""
    return "asyncio"


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands print the same, whatever terminal the tests run in."""
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A settings file that is still to be written."""
    return tmp_path / "session_pin.yaml"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of middlewares that are made from now on."""
    clock = Clock()
    monkeypatch.setattr("asgi_session_pin.middleware.monotonic", clock)
    return clock


@pytest.fixture
def collected() -> Iterator[None]:
    """What a test leaves to the collector of garbage, such as connections of an ended event loop, is no other's."""
    yield
    gc.collect()


# tests/realworld, which has these fixtures too, has no Redis in its environment.


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server for tests that take keys of their own in it."""
    from redis_servers import redis_server

    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Redis Cluster for tests that take keys of their own in it."""
    from redis_servers import redis_cluster

    with redis_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    """A service under a Sentinel for tests that take keys of their own in it."""
    from redis_servers import redis_sentinels

    with redis_sentinels(tmp_path_factory.mktemp("sentinels")) as sentinels:
        yield sentinels
