"""The top level of a JSON object, with every member's value kept as the bytes it came in.

Nothing is converted, so nothing can change: numbers, escapes and invalid bytes inside a value pass as they are. msgspec
does it at C speed; what it refuses but `json.loads` takes (NaN, lone surrogates, a BOM) goes through json's own C
scanner.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import msgspec

Members = dict[str, msgspec.Raw]

# The scanner builds Python objects to find out where a value ends, up to 26 times the text's size; so does a look into
# an array.
MAX_SCANNED_BYTES = 1_048_576

NULL = msgspec.Raw(b"null")

encode_json = msgspec.json.Encoder().encode
# Takes a string or null; raises ValueError for anything else.
decode_model: Callable[[msgspec.Raw], str | None] = msgspec.json.Decoder(str | None).decode

_decode_members = msgspec.json.Decoder(Members).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_string = msgspec.json.Decoder(str).decode


def decode_members(text: bytes) -> Members:
    """Return the members of the JSON object that *text* is; of members named twice, the last.

    Raises ValueError if *text* is not a JSON object in UTF-8, or is nested too deep to tell.
    """
    try:
        return _decode_members(text)
    except (ValueError, RecursionError):  # msgspec.DecodeError and UnicodeDecodeError are ValueErrors
        return _scan_members(text)


def put_model(members: dict[str, Any], model: str) -> bytes:
    """Return the JSON text of the object with *model* as its model; *members* is used up."""
    members["model"] = model
    return encode_json(members)


def find_string(members: Members, path: tuple[str, ...]) -> str | None:
    """Return the string at *path*, whose segments are names of members or positions in arrays."""
    value = members.get(path[0])
    for segment in path[1:]:
        value = None if value is None else _step(value, segment)
    try:
        return None if value is None else _decode_string(value)
    except ValueError:  # it is anything else
        return None


def _step(value: msgspec.Raw, segment: str) -> msgspec.Raw | None:
    try:
        text = memoryview(value)
        if segment.isdecimal() and text[:1].tobytes() == b"[":
            return _decode_items(value)[int(segment)] if len(text) <= MAX_SCANNED_BYTES else None
        return decode_members(bytes(value)).get(segment)
    except (ValueError, IndexError, RecursionError):
        return None


_BOM = "\xef\xbb\xbf"
_space = re.compile(r"[ \t\n\r]*").match
# Numbers need no value here, and converting one can fail (over 4,300 digits) or take long.
_scan = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=len).raw_decode


def _scan_members(text: bytes) -> Members:
    if len(text) > MAX_SCANNED_BYTES:
        raise ValueError("too large for the scanner")
    source = text.decode("latin-1")  # one character a byte: positions are those of the text
    try:
        return _scan_object(source, len(_BOM) if source.startswith(_BOM) else 0)
    except (IndexError, RecursionError):
        raise ValueError("cut off, or nested too deep") from None


def _scan_object(source: str, position: int) -> Members:
    members: Members = {}
    position = _pass(source, position, "{")
    more = source[position] != "}"
    while more:
        if source[position] != '"':
            raise ValueError("expected a name")
        _, end = _scan(source, position)
        name = _decode_string(source[position:end].encode("latin-1"))
        start = _pass(source, end, ":")
        _, end = _scan(source, start)
        members[name] = msgspec.Raw(source[start:end].encode("latin-1"))
        position = _skip_space(source, end)
        more = source[position] == ","
        if more:
            position = _skip_space(source, position + 1)
    position = _pass(source, position, "}")
    if position != len(source):
        raise ValueError("more than one JSON value")
    return members


def _pass(source: str, position: int, character: str) -> int:
    """Return where the token after *character* starts; white space may be on both sides of it."""
    position = _skip_space(source, position)
    if source[position] != character:
        raise ValueError(f"expected {character}")
    return _skip_space(source, position + 1)


def _skip_space(source: str, position: int) -> int:
    found = _space(source, position)
    assert found is not None  # it matches the empty string too
    return found.end()
