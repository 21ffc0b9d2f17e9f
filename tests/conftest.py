"""Fixtures of all tests."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The middleware is for asyncio."""
    return "asyncio"
