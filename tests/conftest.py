"""Fixtures of all tests."""

from pathlib import Path

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The middleware is for asyncio."""
    return "asyncio"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A settings file that is still to be written."""
    return tmp_path / "session_pin.yaml"
