"""What is in an ASGI message."""

from starlette.types import Message


def body_of(message: Message) -> bytes:
    """Return the body as bytes of its own: bytearrays and memoryviews come too, in buffers that are used again."""
    body = message.get("body") or b""
    return body if type(body) is bytes else bytes(body)
