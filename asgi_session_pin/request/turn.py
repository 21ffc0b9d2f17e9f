"""What a request goes on from: a tool's result, or what a person has said. It tells where a switch of models is safe.

The history is not decoded: of its array the last items alone are looked at, in the shapes of chat completions, messages
and responses.
"""

import re
from enum import Enum

import msgspec

from ..wire.json import Members, decode_members, decode_text, find_string, last_items
from .human import human_text, is_tool_result

MAX_ITEMS_BACK = 64  # items in a row that a harness has added, or a user has sent without an answer
MAX_PARTS = 256  # of one of them, from its end
MAX_TEXT = 1_048_576  # characters of users' texts in a request, which take up to 50 ms to be read
MAX_MARKS = 1_000  # names that say state where a text is behind them


class Step(Enum):
    """What the last items of a request are."""

    TOOL = "tool"
    """A tool's result: the request goes on in a tool loop. Also what can't be told, so that no switch is made."""
    HUMAN = "human"
    """A user's text that is more than what a harness adds."""
    OTHER = "other"
    """Anything else: a request of the harness's own, an answer that is to be continued, an image alone."""


def last_step(members: Members) -> Step:
    """Return what a request goes on from."""
    history = next((members[name] for name in ("messages", "input") if name in members), None)
    if history is None:
        return Step.OTHER
    try:
        text, texts = decode_text(history), _Texts()
        return _last_step(history, texts) if text is None else texts.step_of(text) or Step.OTHER
    except ValueError:
        return Step.TOOL


def carries_state(members: Members) -> bool:
    """Tell whether a request carries what only one provider can read, or has: then another model may refuse it.

    That is a response or a conversation that it keeps (`previous_response_id`, `conversation`), encrypted reasoning, or
    a signature (of thinking blocks; Gemini's has other names). Strings are told from names by what is escaped in them.
    """
    if any(bytes(members.get(name, b"null")) != b"null" for name in ("previous_response_id", "conversation")):
        return True
    return any(_has_mark(bytes(members[name])) for name in ("messages", "input") if name in members)


_MARKS = (b'"encrypted_content"', b'"signature"', b'"thought_signature"', b'"thoughtSignature"')
_has_value = re.compile(rb'\s*:\s*"[^"]').match


def _has_mark(history: bytes) -> bool:
    left = MAX_MARKS
    for mark in _MARKS:
        position = history.find(mark)
        while position >= 0:
            left -= 1
            position += len(mark)
            if left < 0 or _has_value(history, position):
                return True
            position = history.find(mark, position)
    return False


class _Texts:
    """Reads the texts of one request. Raises ValueError where they are more than `MAX_TEXT`."""

    def __init__(self) -> None:
        self._left = MAX_TEXT

    def step_of(self, text: str) -> Step | None:
        """Return what a user's text is; None if it is nothing but what a harness adds."""
        self._left -= len(text)
        if self._left < 0:
            raise ValueError("too much to be read")
        if is_tool_result(text):
            return Step.TOOL
        return Step.HUMAN if human_text(text) else None


def _last_step(history: msgspec.Raw, texts: _Texts) -> Step:
    """Go back to the answer before the request's own items."""
    step = Step.OTHER
    for item in last_items(history, MAX_ITEMS_BACK):
        members = decode_members(bytes(item))
        role, kind = find_string(members, ("role",)), find_string(members, ("type",)) or ""
        if role in ("tool", "function") or kind.endswith("_output") or kind == "mcp_approval_response":
            return step if step is Step.HUMAN else Step.TOOL
        if role == "user":
            found = _step_of_content(members.get("content"), texts)
            if found is Step.TOOL:
                return found
            step = found or step
        elif role not in ("system", "developer"):
            is_paused = step is Step.OTHER and role == "assistant" and _calls_tools(members.get("content"))
            return Step.TOOL if is_paused else step
    return step


def _step_of_content(content: msgspec.Raw | None, texts: _Texts) -> Step | None:
    """Return what a user's message is; None if it is nothing but what a harness adds."""
    if content is None or bytes(content) == b"null":
        return None
    text = decode_text(content)
    if text is not None:
        return texts.step_of(text)
    steps = {_step_of_part(part, texts) for part in last_items(content, MAX_PARTS)}
    return next((step for step in (Step.TOOL, Step.HUMAN) if step in steps), None)


def _step_of_part(part: msgspec.Raw, texts: _Texts) -> Step | None:
    members = decode_members(bytes(part))
    kind = find_string(members, ("type",)) or ""
    if kind.endswith("tool_result"):
        return Step.TOOL
    if kind not in ("text", "input_text") or "text" not in members:
        return None
    text = decode_text(members["text"])
    return None if text is None else texts.step_of(text)


def _calls_tools(content: msgspec.Raw | None) -> bool:
    """Tell whether an answer breaks off in a call of the provider's own tools, as Anthropic's `pause_turn` does."""
    if content is None or decode_text(content) is not None:
        return False
    parts = [decode_members(bytes(part)) for part in last_items(content, MAX_PARTS)]
    return any((find_string(part, ("type",)) or "").endswith("tool_use") for part in parts)
