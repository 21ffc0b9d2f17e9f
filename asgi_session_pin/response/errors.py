"""What an error says of itself, in the shapes of gateways and providers: JSON, events and text."""

import re
from typing import Any, NamedTuple

import msgspec

from ..wire.json import Members, decode_items, decode_members, decode_value, find_string

# What gateways put into an `error` that is none.
_NO_ERROR = frozenset({b"null", b"false", b"0", b'""', b"{}", b"[]"})
# LiteLLM ends the text of every 400 with the name of the model group, whatever was wrong.
_litellm_footer = re.compile(r"\s*(?:Received|Available) Model Group\b.*", re.DOTALL)
_MAX_VALUE = 65_536  # bytes of a member that are decoded
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
        if bytes(base.get("status_code", b"0")) != b"0":
            return _read(_values(base))
    if "status" in members and bytes(members["status"]) == b'"failed"' and "object" in members:  # Responses
        return Error()
    if "choices" in members and b'"error"' in bytes(members["choices"]) and _ends_in_error(members["choices"]):
        return Error()
    return None


def read_error(content: bytes, event: str | None = None) -> Error:
    """Return the facts of what is known to be an error: JSON of any shape, or text."""
    try:
        if content.lstrip()[:1] == b"[":
            content = bytes(decode_items(content)[0])
        members = decode_members(content)
    except (ValueError, IndexError):
        return _read(content.decode(errors="replace"))
    return find_error(members, event) or _read(_values(members))


def _read(value: Any, beside: Members | None = None) -> Error:
    """Return the facts in the value of an `error`; *beside* is the object that it stands in."""
    if isinstance(value, list):
        value = value[0] if value else None
    if not isinstance(value, dict):
        return Error(frozenset(), None, _message(value))
    inner = value.get("innererror")
    named = [value.get(name) for name in ("code", "type", "status")]
    named.append(inner.get("code") if isinstance(inner, dict) else None)
    if beside is not None:
        named += [find_string(beside, (name,)) for name in ("code", "type") if name in beside]
    param = value.get("param")
    text = next((value[name] for name in ("message", "detail", "msg", "status_msg", "error") if value.get(name)), "")
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
    return _litellm_footer.sub("", value[: 4 * _MAX_TEXT])[:_MAX_TEXT] if isinstance(value, str) else ""


def _values(members: Members) -> dict[str, Any]:
    names = ("code", "type", "status", "param", "message", "detail", "msg", "status_msg", "innererror")
    return {name: _value(members, name) for name in names if name in members}


def _value(members: Members, name: str) -> Any:
    """Return a member's value; None where there is none, or one that no error has."""
    value = members.get(name)
    try:
        return None if value is None or len(memoryview(value)) > _MAX_VALUE else decode_value(value)
    except (ValueError, RecursionError):
        return None


def _members_of(members: Members, name: str) -> Members:
    try:
        return decode_members(bytes(members[name]))
    except (KeyError, ValueError):
        return {}


class _Choice(msgspec.Struct):
    finish_reason: Any = None


_decode_choices = msgspec.json.Decoder(list[_Choice]).decode


def _ends_in_error(choices: msgspec.Raw) -> bool:
    try:
        return any(choice.finish_reason == "error" for choice in _decode_choices(choices))
    except (ValueError, RecursionError):
        return False
