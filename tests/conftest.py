"""Fixtures of all tests."""

from pathlib import Path

import pytest

from asgi_driver import Clock


@pytest.fixture
def anyio_backend() -> str:
    """The middleware is for asyncio."""
    return "asyncio"


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
