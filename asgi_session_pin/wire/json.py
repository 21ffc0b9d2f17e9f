"""The top level of a JSON object, with every member's value kept as the bytes it came in.

Nothing is converted, so nothing can change: numbers, escapes and invalid bytes inside a value pass as they are. msgspec
does it at C speed; what it refuses but `json.loads` takes (NaN, lone surrogates, a BOM) goes through json's own C
scanner.
"""

import json
import re
from collections.abc import Callable
from itertools import accumulate
from typing import Any, TypeVar

import msgspec

Members = dict[str, msgspec.Raw]
ScannedT = TypeVar("ScannedT")

# Each member costs a quarter of a microsecond, each item of an array that is looked into a tenth. How many there are at
# most is told by the colons and commas.
MAX_MEMBERS = 200_000
MAX_ITEMS = 100_000
_SHORTEST_MEMBER = len(b'"":0,')

# The scanner goes from member to member in Python, and builds objects to find out where a value ends, up to 26 times
# the text's size. How many (by brackets and colons) is bounded in the garbage collector's favour, and how deep it goes
# is not left to the interpreter.
MAX_SCANNED_BYTES = 1_048_576
MAX_SCANNED_MEMBERS = 1_000
MAX_SCANNED_MARKS = 100_000
MAX_NESTING = 500

NULL, TRUE, FALSE = msgspec.Raw(b"null"), msgspec.Raw(b"true"), msgspec.Raw(b"false")

encode_json = msgspec.json.Encoder().encode
# Takes a string or null; raises ValueError for anything else.
decode_model: Callable[[msgspec.Raw], str | None] = msgspec.json.Decoder(str | None).decode

decode_value = msgspec.json.Decoder().decode
_decode_members = msgspec.json.Decoder(Members).decode
decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_string = msgspec.json.Decoder(str).decode


def decode_members(text: bytes) -> Members:
    """Return the members of the JSON object that *text* is; of members named twice, the last.

    Raises ValueError if *text* is not a JSON object in UTF-8, or is too large or nested too deep to tell.
    """
    if len(text) > MAX_MEMBERS * _SHORTEST_MEMBER and text.count(b":") > MAX_MEMBERS:
        raise ValueError("too many members")
    try:
        return _decode_members(text)
    except ValueError:  # msgspec.DecodeError and UnicodeDecodeError are ValueErrors
        return _scan_members(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_object(text: bytes) -> Members:
    """Return the JSON object that a body or an event is; an empty one for anything else, such as "[DONE]"."""
    if not text.lstrip().startswith((b"{", b"\xef\xbb\xbf")):  # cheaper than an exception, for streams full of such
        return {}
    try:
        return decode_members(text)
    except ValueError:
        return {}


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


def put_string(text: bytes, path: tuple[str, ...], value: str) -> bytes:
    """Return the JSON *text* with *value* at *path*, where `find_string` has found a string."""
    if not path:
        return encode_json(value)
    segment, rest = path[0], path[1:]
    if text.startswith(b"["):
        items = decode_items(text)
        items[int(segment)] = msgspec.Raw(put_string(bytes(items[int(segment)]), rest, value))
        return encode_json(items)
    members = decode_members(text)
    members[segment] = msgspec.Raw(put_string(bytes(members[segment]), rest, value))
    return encode_json(members)


def decode_text(value: msgspec.Raw) -> str | None:
    """Return the text that a value is; None if it is none. Raises ValueError for what would take long to read."""
    view = memoryview(value)
    if bytes(view[:1]) != b'"':
        return None
    if len(view) > MAX_SCANNED_BYTES:
        raise ValueError("too large to be read")
    try:
        return _decode_string(value)
    except ValueError:  # it has a lone surrogate
        text: str = json.loads(bytes(value))
        return text


def last_items(array: msgspec.Raw, count: int) -> list[msgspec.Raw]:
    """Return the last *count* items of an array, from its end, as they are.

    Raises ValueError for what is no array, or would take long to read.
    """
    text = bytes(array)
    if text.count(b",") >= MAX_ITEMS:
        raise ValueError("too many items")
    try:
        items = decode_items(text)
    except ValueError:
        items = _scan_items(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return items[: -count - 1 : -1]


def _step(value: msgspec.Raw, segment: str) -> msgspec.Raw | None:
    try:
        text = bytes(value)
        if segment.isdecimal() and text.startswith(b"["):
            return decode_items(text)[int(segment)] if text.count(b",") < MAX_ITEMS else None
        return decode_members(text).get(segment)
    except (ValueError, IndexError, RecursionError):
        return None


_BOM = "\xef\xbb\xbf"
_space = re.compile(r"[ \t\n\r]*").match
# Numbers need no value here, and converting one can fail (over 4,300 digits) or take long.
_scan = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=len).raw_decode


def _scan_members(text: bytes) -> Members:
    return _scan_text(text, _scan_object)


def _scan_items(text: bytes) -> list[msgspec.Raw]:
    return _scan_text(text, _scan_array)


def _scan_text(text: bytes, scan: Callable[[str, int], ScannedT]) -> ScannedT:
    if len(text) > MAX_SCANNED_BYTES:
        raise ValueError("too large for the scanner")
    _check_structure(text)
    source = text.decode("latin-1")  # one character a byte: positions are those of the text
    try:
        return scan(source, len(_BOM) if source.startswith(_BOM) else 0)
    except (IndexError, RecursionError):  # the latter if the caller is deep in the stack
        raise ValueError("cut off, or nested too deep") from None


_STEPS = bytes.maketrans(b"[{:]}", b"\x01\x01\x00\xff\xff")  # as signed bytes 1, 0 and -1
_NO_MARKS = bytes(set(range(256)) - set(b'[{:]}"'))


def _check_structure(text: bytes) -> None:
    """Raise ValueError if the brackets and colons outside of strings are too many, or nested too deep."""
    unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"")
    marks = unescaped.translate(_STEPS, _NO_MARKS).replace(b'""', b"")  # most strings have none
    steps = b"".join(marks.split(b'"')[::2])
    if len(steps) > MAX_SCANNED_MARKS:
        raise ValueError("too large for the scanner")
    if max(accumulate(memoryview(steps).cast("b")), default=0) > MAX_NESTING:
        raise ValueError("nested too deep")


def _scan_object(source: str, position: int) -> Members:
    members: Members = {}
    room = MAX_SCANNED_MEMBERS
    position = _pass(source, position, "{")
    more = source[position] != "}"
    while more:
        if source[position] != '"':
            raise ValueError("expected a name")
        if room == 0:
            raise ValueError("too many members for the scanner")
        room -= 1
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


def _scan_array(source: str, position: int) -> list[msgspec.Raw]:
    items: list[msgspec.Raw] = []
    position = _pass(source, position, "[")
    more = source[position] != "]"
    while more:
        if len(items) == MAX_SCANNED_MEMBERS:
            raise ValueError("too many items for the scanner")
        _, end = _scan(source, position)
        items.append(msgspec.Raw(source[position:end].encode("latin-1")))
        position = _skip_space(source, end)
        more = source[position] == ","
        if more:
            position = _skip_space(source, position + 1)
    if _pass(source, position, "]") != len(source):
        raise ValueError("more than one JSON value")
    return items


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
