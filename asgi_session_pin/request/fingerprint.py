"""A session for clients that send no id: a digest of how their conversation begins.

The system prompt, the tools and the user's first text come back in each request of a conversation. Only these are read,
as they stand in the JSON and up to a few KB: what follows them is not decoded.
"""

import hashlib
import re
import threading
from collections.abc import Callable

import msgspec

from ..wire.json import NULL, Members
from .harness import own_text

# Bytes that count. Prompts that begin alike are told apart by the other parts.
_OF_SYSTEM = 1024
_OF_TOOLS = 2048
_OF_USER = 2048

# What is looked at for these: bytes of one text; messages and blocks, together.
_LONGEST_TEXT = 262_144
_MOST_PIECES = 64

# Where one of these is, the provider keeps the beginning of the conversation.
_CONTINUING = ("previous_response_id", "conversation")

# Only names: descriptions hold what changes (dates, folders), and tools that are found later come behind these.
_names = re.compile(rb"\"name\"\s*:\s*\"([^\"\\]*)\"").findall
_encode = msgspec.msgpack.Encoder().encode
_STRING, _ARRAY = b'"['


def fingerprint(members: Members, credential: bytes) -> bytes | None:
    """Return an id for the conversation of a request, in hex; None if the request does not hold how it began.

    *credential* tells clients apart: another one makes another id.
    """
    conversation = members.get("messages") or members.get("input")
    if conversation is None or any(name in members and bytes(members[name]) != b"null" for name in _CONTINUING):
        return None
    _reading.left = _MOST_PIECES
    try:
        system, user = _beginning(conversation)
        system = _text(members.get("system") or members.get("instructions") or NULL, _OF_SYSTEM, _OF_SYSTEM) or system
    except (ValueError, RecursionError):  # it is no conversation, or is nested too deep
        return None
    if not user:
        return None
    tools = _names(memoryview(members.get("tools", NULL))[:_OF_TOOLS])
    parts = _encode([credential, system, tools, user])
    return hashlib.blake2b(parts, digest_size=16).hexdigest().encode()


def _beginning(conversation: msgspec.Raw) -> tuple[bytes, bytes]:
    """Return the text of the system, if it comes before the user's, and the user's first text."""
    system = user = b""

    def look(message: _Piece) -> bool:
        nonlocal system, user
        if message.role == "user":
            user = _text(message.content, _OF_USER)
        elif message.role in ("system", "developer") and not system:
            system = _text(message.content, _OF_SYSTEM, _OF_SYSTEM)
        return user != b""

    if memoryview(conversation)[0] == _ARRAY:
        _read(conversation, look)
    else:
        user = _text_of_string(conversation, _OF_USER)
    return system, user


def _text(content: msgspec.Raw, limit: int, enough: int = 1) -> bytes:
    """Return the first *limit* bytes of a string's own text, or of the blocks' until these have *enough*."""
    if memoryview(content)[0] != _ARRAY:
        return _text_of_string(content, limit)
    text = b""

    def look(block: _Piece) -> bool:
        nonlocal text
        text += _text_of_string(block.text, limit)
        return len(text) >= enough

    _read(content, look)
    return text[:limit]


def _text_of_string(value: msgspec.Raw, limit: int) -> bytes:
    view = memoryview(value)
    return own_text(bytes(view[1 : min(len(view) - 1, _LONGEST_TEXT)]), limit) if view[0] == _STRING else b""


class _Piece(msgspec.Struct):
    """What is read of a message, or of a block of its content."""

    role: str | None = None
    content: msgspec.Raw = NULL
    text: msgspec.Raw = NULL

    def __post_init__(self) -> None:
        _reading.left -= 1
        assert _reading.look is not None
        if _reading.look(self) or _reading.left <= 0:
            raise _Enough


class _Reading(threading.local):
    """Of the array that this thread decodes: what gets its pieces, and how many may still be read."""

    look: Callable[[_Piece], bool] | None = None
    left = 0


class _Enough(Exception):
    """What follows in an array need not be decoded."""


_reading = _Reading()
_decode = msgspec.json.Decoder(list[_Piece]).decode


def _read(array: msgspec.Raw, look: Callable[[_Piece], bool]) -> None:
    """Give *look* the pieces of an array until it has seen enough; nothing but an exception ends decoding early.

    Raises ValueError or RecursionError for what is no array of objects.
    """
    outer, _reading.look = _reading.look, look
    try:
        _decode(array)
    except _Enough:
        pass
    finally:
        _reading.look = outer
