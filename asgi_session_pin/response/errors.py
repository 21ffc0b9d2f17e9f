"""What an error says of itself, in the shapes of gateways and providers: JSON, events and text."""

import re
from typing import Any, NamedTuple

import msgspec

from ..wire.json import Members, decode_items, decode_members, decode_value, find_string

# What gateways put into an `error` that is none.
_NO_ERROR = frozenset({b"null", b"false", b"0", b'""', b"{}", b"[]"})
# LiteLLM ends its errors with the name of the model group, whatever was wrong; the first words are old versions'.
_litellm_footer = re.compile(r"(?:Received|Available) Model Group\b|LiteLLM: model group '").search
MAX_VALUE = 65_536  # bytes of what is decoded: no error is larger
_MAX_MEMBER = 1_048_576  # bytes of one that is looked into: a failed response repeats its instructions and tools
_MAX_TEXT = 4096  # characters of a message that are looked at
_joints = str.maketrans("", "", "_- ")


class Error(NamedTuple):
    """The facts of an error.

    - `words`: its codes and types in lower case, without underscores, hyphens and spaces: "modelnotfound" is OpenAI's
      `model_not_found`, "deploymentnotfound" Azure's `DeploymentNotFound`.
    - `param`: the member of the request that it blames.
    - `text`: its message, without what a gateway adds to every message.
    """

    words: frozenset[str] = frozenset()
    param: str | None = None
    text: str = ""


def find_error(members: Members, event: str | None = None) -> Error | None:
    """Return the error that a JSON object is, a body or the data of an event named *event*; or None."""
    if "error" in members and bytes(members["error"]) not in _NO_ERROR:
        return _read(_value(members, "error"), beside=members)
    kind = find_string(members, ("type",)) if "type" in members else None
    if kind == "response.failed" or event == "response.failed":
        return _read(_value(_members_of(members, "response"), "error"))
    if kind == "error" or event == "error" or ("object" in members and bytes(members["object"]) == b'"error"'):
        return _read(_values(members))
    if "base_resp" in members:  # MiniMax
        base = _members_of(members, "base_resp")
        if bytes(base.get("status_code", b"0")) not in _NO_ERROR:
            return _read(_values(base))
    if "status" in members and bytes(members["status"]) == b'"failed"' and "object" in members:  # Responses
        return Error()
    if "choices" in members and b'"error"' in bytes(members["choices"]) and _ends_in_error(members["choices"]):
        return Error()
    return None


def read_error(content: bytes, event: str | None = None) -> Error:
    """Return the facts of what is known to be an error: JSON of any shape, or text."""
    try:
        members = read_members(content) if len(content) <= MAX_VALUE else {}
    except ValueError:
        members = {}
    if not members:
        return _read(content[:MAX_VALUE].decode(errors="replace"))
    detail = _members_of(members, "detail")  # FastAPI
    return find_error(members, event) or find_error(detail) or _read(_values(detail or members))


def read_members(content: bytes) -> Members:
    """Return the object that a body is, or the first one of an array, as Gemini has it; raises ValueError."""
    if content.lstrip()[:1] != b"[":
        return decode_members(content)
    if len(content) > MAX_VALUE:
        raise ValueError("too large for an error")
    try:
        return decode_members(bytes(decode_items(content)[0]))
    except (IndexError, RecursionError):
        raise ValueError("an empty array, or nested too deep") from None


def _read(value: Any, beside: Members | None = None) -> Error:
    """Return the facts in the value of an `error`; *beside* is the object that it stands in."""
    if isinstance(value, list):
        value = value[0] if value else None
    told = value if isinstance(value, dict) else {"message": value}
    inner = told.get("innererror")
    named = [told.get(name) for name in ("code", "type", "status")]
    named.append(inner.get("code") if isinstance(inner, dict) else None)
    if beside is not None:
        named += [_value(beside, name) for name in ("code", "type")]
    param = told.get("param")
    text = next((told[name] for name in ("message", "detail", "msg", "status_msg", "error") if told.get(name)), "")
    return Error(
        frozenset(word for name in named if isinstance(name, str) and (word := normalized(name)) not in _NO_WORDS),
        param if isinstance(param, str) and param.lower() not in ("", "none", "null") else None,
        _message(text),
    )


def normalized(word: str) -> str:
    """Return a code or type in the spelling of `Error.words`."""
    return word[:_MAX_TEXT].lower().translate(_joints)


_NO_WORDS = frozenset({"", "none", "null", "error"})


def _message(value: Any) -> str:
    if isinstance(value, dict):  # LiteLLM
        value = value.get("error") or value.get("message")
    if not isinstance(value, str):
        return ""
    text: str = value[: 4 * _MAX_TEXT]
    footer = _litellm_footer(text)
    return (text if footer is None else text[: footer.start()].rstrip())[:_MAX_TEXT]


def _values(members: Members) -> dict[str, Any]:
    names = ("code", "type", "status", "param", "message", "detail", "msg", "status_msg", "innererror")
    return {name: _value(members, name) for name in names if name in members}


def _value(members: Members, name: str) -> Any:
    """Return a member's value; None where there is none, or one that no error has."""
    value = members.get(name)
    try:
        return None if value is None or len(memoryview(value)) > MAX_VALUE else decode_value(value)
    except (ValueError, RecursionError):
        return None


def _members_of(members: Members, name: str) -> Members:
    value = members.get(name, b"")
    try:
        return decode_members(bytes(value)) if len(memoryview(value)) <= _MAX_MEMBER else {}
    except ValueError:
        return {}


class _Choice(msgspec.Struct):
    finish_reason: Any = None


_decode_choices = msgspec.json.Decoder(list[_Choice]).decode


def _ends_in_error(choices: msgspec.Raw) -> bool:
    try:
        return len(memoryview(choices)) <= MAX_VALUE and any(
            choice.finish_reason == "error" for choice in _decode_choices(choices)
        )
    except (ValueError, RecursionError):
        return False
