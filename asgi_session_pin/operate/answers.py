"""What the answers to operators have in common."""

from starlette.responses import JSONResponse, Response


def error(status: int, message: str, code: str) -> Response:
    """Return an error as JSON."""
    return JSONResponse({"error": {"message": message, "code": code}}, status)
