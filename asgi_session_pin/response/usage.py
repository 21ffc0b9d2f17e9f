"""The tokens that an answer reports, read from its beginning and its end as it passes: nothing is held back."""

import json
import re
from collections import deque
from collections.abc import Awaitable, Iterable
from typing import Any

from msgspec.structs import astuple
from starlette.types import Message, Send

from ..events import Tokens
from ..wire.compression import decode_whole
from ..wire.headers import HeaderPicker, is_identity
from ..wire.messages import body_of

_HEAD_BYTES = 4_096  # Anthropic's streams tell the input in their first event
_TAIL_BYTES = 65_536
_LAST_MESSAGES = 32
_CODED_BYTES = 1_048_576  # of a compressed answer, which can't be read from its end; and of what it decodes to
_USAGE_BYTES = 4_096  # of one report
_MOST_REPORTS = 16  # some servers report with each event

# In a text of the model's the quotes would be escaped.
_reports = re.compile(rb'(?<!\\)"usage"\s*:\s*(?=\{)').finditer
_read_value = json.JSONDecoder().raw_decode
_coding = HeaderPicker({b"content-encoding"})


class UsageReader:
    """Keeps the first and the last of one answer's body, and reads the tokens out of them when it is over."""

    def __init__(self) -> None:
        self._coding = b""
        self._head: list[bytes] = []
        self._head_room = _HEAD_BYTES
        self._tail: deque[bytes] = deque(maxlen=_LAST_MESSAGES)

    def watch(self, send: Send) -> Send:
        """Return a `send` that keeps what is of interest."""

        def keep_and_send(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.body":
                self._keep(body_of(message))
            elif message["type"] == "http.response.start":
                self._start(message)
            return send(message)

        return keep_and_send

    def read(self) -> Tokens | None:
        """Return the tokens; None where the answer reports none."""
        head = b"".join(self._head)
        if self._coding:
            return read_tokens(decode_whole(head, self._coding, _CODED_BYTES)) if self._head_room > 0 else None
        tail = b"".join(self._tail)[-_TAIL_BYTES:]
        return read_tokens(head + b"\n" + tail)

    def _start(self, message: Message) -> None:
        coding = _coding.pick(message["headers"]).get(b"content-encoding", b"")
        if not is_identity(coding):
            self._coding = coding
            self._head_room = _CODED_BYTES

    def _keep(self, body: bytes) -> None:
        if self._head_room > 0:
            self._head.append(body[: self._head_room])
            self._head_room -= len(body)
        if not self._coding:
            self._tail.append(body[-_TAIL_BYTES:])


def read_tokens(text: bytes) -> Tokens | None:
    """Return the tokens that are reported in *text*, a body or a part of one. Reports of one answer only grow."""
    found = [tokens for report in _find_reports(text) if (tokens := _read_report(report)) is not None]
    return Tokens(*map(max, zip(*map(astuple, found), strict=True))) if found else None


def _find_reports(text: bytes) -> Iterable[dict[str, Any]]:
    places = [found.end() for found in _reports(text)]
    for place in places[:_MOST_REPORTS] + places[_MOST_REPORTS:][-_MOST_REPORTS:]:
        try:
            yield _read_value(text[place : place + _USAGE_BYTES].decode("latin-1"))[0]
        except (ValueError, RecursionError):  # it is cut
            continue


def _read_report(usage: dict[str, Any]) -> Tokens | None:
    """Return the tokens of one report: in the shape of chat completions, messages or responses."""
    output = _number(usage, "completion_tokens", "output_tokens")
    cached = (
        _number(_details(usage), "cached_tokens")
        or _number(usage, "prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens")  # DeepSeek, Moonshot
    )
    if "prompt_tokens" in usage:
        given = _number(usage, "prompt_tokens")
    elif "input_tokens" in usage or "output_tokens" in usage:
        given = _number(usage, "input_tokens")
        if "cache_read_input_tokens" in usage or "cache_creation_input_tokens" in usage:  # Anthropic counts them apart
            given += _number(usage, "cache_read_input_tokens") + _number(usage, "cache_creation_input_tokens")
    else:
        return None
    return Tokens(given, cached, output)


def _details(usage: dict[str, Any]) -> dict[str, Any]:
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    return details if isinstance(details, dict) else {}


def _number(members: dict[str, Any], *names: str) -> int:
    """Return the first of these members that is a number of tokens; 0 where there is none."""
    return next((value for name in names if type(value := members.get(name)) is int and 0 < value < 10**9), 0)
