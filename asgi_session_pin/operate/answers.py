"""What the answers to operators have in common."""

from typing import Any

import msgspec
from starlette.responses import Response

_encode = msgspec.json.Encoder().encode


def shown(value: Any, status: int = 200) -> Response:
    """Return *value* as JSON."""
    return Response(_encode(value), status, media_type="application/json")


def error(status: int, message: str, code: str) -> Response:
    """Return an error as JSON."""
    return shown({"error": {"message": message, "code": code}}, status)
