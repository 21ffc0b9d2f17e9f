"""How a conversation begins, in the three APIs, as real clients send it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_session_pin.request.fingerprint import fingerprint
from asgi_session_pin.wire.json import decode_members

SYSTEM = "You are an agent. " * 100
PROMPT = 'Fix the "bug".\n\nIn <main>.'
REMINDER = "<system-reminder>\nBe kind.\n</system-reminder>"
MARK = {"cache_control": {"type": "ephemeral"}}


def of(body: dict[str, Any], credential: bytes = b"Bearer 1") -> bytes | None:
    return fingerprint(decode_members(json.dumps({"model": "auto", **body}).encode()), credential)


def text(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def chat_tools(*names: str) -> list[dict[str, Any]]:
    properties = {"name": {"type": "string"}}
    return [
        {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}} for name in names
    ]


def tools(*names: str, **more: Any) -> list[dict[str, Any]]:
    return [{"name": name, "description": "Does it.", "input_schema": {}, **more} for name in names]


CALL = {"id": "1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
ENVIRONMENT = text("<environment_details>\nMessage time: 2026-11-26T03:21:55Z\n</environment_details>")
CHAT: dict[str, list[list[dict[str, Any]]]] = {
    "the SDK": [
        [{"role": "system", "content": SYSTEM}, user(PROMPT)],
        [{"role": "assistant", "content": "Done."}, user("Thanks."), {"role": "assistant", "content": "."}],
    ],
    "Cline": [
        [{"role": "system", "content": SYSTEM}, user([text(f"<task>\n{PROMPT}\n</task>"), ENVIRONMENT])],
        [{"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "main.py"}],
    ],
    "without a system prompt": [[user(PROMPT)], [{"role": "assistant", "content": "Done."}, user("Thanks.")]],
}


@pytest.mark.parametrize("client", CHAT)
def test_each_turn_of_chat_completions_begins_alike(client: str) -> None:
    first, more = CHAT[client]
    known = of({"messages": first, "tools": chat_tools("read", "bash")})
    assert known is not None
    assert len(known) == 32
    for end in range(len(more) + 1):
        turn = {
            "messages": [*first, *more[:end]],
            "tools": chat_tools("read", "bash"),
            "stream": True,
            "temperature": 1,
        }
        assert of(turn) == known


def test_each_turn_of_messages_begins_alike_whatever_is_marked_for_the_cache() -> None:
    """As Claude Code does it: the mark wanders, the first line is another one each time, reminders come and go."""

    def turn(line: str, *messages: dict[str, Any], marked: bool = False) -> dict[str, Any]:
        mark = MARK if marked else {}
        system = [text(f"x-anthropic-billing-header: cch={line};"), text("You are it.", **mark), text(SYSTEM, **mark)]
        return {"system": system, "messages": messages, "tools": tools("Agent", "Bash", **mark)}

    reminders = [text(REMINDER), text(f"{REMINDER}\n")]
    environment = {"role": "system", "content": [text("# Environment", **MARK)]}
    known = of(turn("1", user([*reminders, text(PROMPT, **MARK)]), environment, marked=True))
    assert known is not None
    answer = {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "Bash", "input": {}}]}
    result = user([{"type": "tool_result", "tool_use_id": "1", "content": "noon", **MARK}])
    assert of(turn("2", user([*reminders, text(PROMPT)]), {"role": "system", "content": "# Environment"})) == known
    assert of(turn("3", user([text(PROMPT)]), answer, result)) == known
    assert of(turn("4", user(PROMPT), answer, result, user([text("And now?")]))) == known
    assert of(turn("5", user([text("And now?")]))) != known


def test_each_turn_of_responses_begins_alike() -> None:
    """As Codex does it."""

    def said(role: str, *texts: str) -> dict[str, Any]:
        return {"type": "message", "role": role, "content": [{"type": "input_text", "text": each} for each in texts]}

    first = [
        said("developer", SYSTEM),
        said("developer", "<skills_instructions>\nSkills\n</skills_instructions>"),
        said("user", "# AGENTS.md instructions for /work\n\n<INSTRUCTIONS>\nBe kind.\n</INSTRUCTIONS>"),
        said("user", "<environment_context>\n  <current_date>2026-11-26</current_date>\n</environment_context>"),
    ]
    known = of({"input": [*first, said("user", PROMPT)]})
    assert known is not None
    call = {"type": "function_call", "call_id": "1", "name": "exec", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "1", "output": "noon"}
    assert of({"input": [*first, said("user", PROMPT), call, result], "previous_response_id": None}) == known
    assert of({"input": [*first, said("user", "Another one.")]}) != known


def test_an_input_that_is_text_begins_as_the_list_that_it_becomes() -> None:
    known = of({"input": PROMPT, "instructions": SYSTEM})
    assert known is not None
    assert of({"input": [user(PROMPT), {"role": "assistant", "content": "."}], "instructions": SYSTEM}) == known


def test_the_apis_agree_on_a_conversation() -> None:
    known = of({"messages": [{"role": "system", "content": SYSTEM}, user(PROMPT)], "tools": chat_tools("read", "bash")})
    assert of({"system": SYSTEM, "messages": [user([text(PROMPT)])], "tools": tools("read", "bash")}) == known
    assert of({"instructions": SYSTEM, "input": [user(PROMPT)], "tools": tools("read", "bash")}) == known


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [user("Another one.")], "system": SYSTEM, "tools": tools("read", "bash")},
        {"messages": [user(PROMPT)], "system": "Another one.", "tools": tools("read", "bash")},
        {"messages": [user(PROMPT)], "tools": tools("read", "bash")},
        {"messages": [user(PROMPT)], "system": SYSTEM, "tools": tools("read")},
        {"messages": [user(PROMPT)], "system": SYSTEM},
    ],
)
def test_another_beginning_is_another_conversation(other: dict[str, Any]) -> None:
    known = of({"messages": [user(PROMPT)], "system": SYSTEM, "tools": tools("read", "bash")})
    assert None not in (known, of(other))
    assert of(other) != known


def test_another_credential_is_another_conversation() -> None:
    assert of({"messages": [user(PROMPT)]}, b"Bearer 1") != of({"messages": [user(PROMPT)]}, b"Bearer 2")


def test_tools_that_are_found_later_and_what_describes_them_do_not_matter() -> None:
    first = [{"name": "read", "description": "It is noon."}, {"name": "bash", "description": "x" * 3000}]
    later = [{"name": "read", "description": "Lunch time"}, {"name": "bash", "description": "y" * 3000}]
    known = of({"messages": [user(PROMPT)], "tools": first})
    assert of({"messages": [user(PROMPT)], "tools": [*later, {"name": "mcp__found_later"}]}) == known


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": PROMPT},
        {"messages": []},
        {"messages": None},
        {"messages": 5},
        {"messages": {"role": "user", "content": PROMPT}},
        {"messages": [5]},
        {"messages": [{"role": 5, "content": PROMPT}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [PROMPT]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": [text(PROMPT)]}]}]},
        {"messages": [{"role": "assistant", "content": PROMPT}]},
        {"messages": [user(REMINDER)]},
        {"messages": [user("")]},
        {"messages": [user([{"type": "image_url", "image_url": {"url": "data:"}}])]},
        {"messages": [user(PROMPT)], "system": [5]},
        {"input": [user(PROMPT)], "previous_response_id": "resp_1"},
        {"input": [user(PROMPT)], "conversation": {"id": "conv_1"}},
    ],
)
def test_a_request_that_does_not_hold_how_it_began_has_none(body: dict[str, Any]) -> None:
    assert of(body) is None


def test_what_follows_the_users_text_is_not_decoded() -> None:
    whole = json.dumps([{"role": "system", "content": SYSTEM}, user(PROMPT)]).encode()
    cut = msgspec.Raw(whole[:-1] + b', {"role": "assistant", "cont')
    known = fingerprint({"messages": msgspec.Raw(whole)}, b"")
    assert known is not None
    assert fingerprint({"messages": cut}, b"") == known


def test_hostile_conversations_are_looked_at_within_bounds() -> None:
    assert of({"messages": [{}] * 1000 + [user(PROMPT)]}) is None
    assert of({"messages": [user([{}] * 1000), user(PROMPT)]}) is None
    assert of({"messages": [user([text(REMINDER)] * 1000 + [text(PROMPT)])]}) is None
    assert of({"messages": [user("x" * 1_000_000)]}) == of({"messages": [user("x" * 1_000_001)]})
    deep = b'[{"role":"user","content":' + b"[" * 100_000 + b"]" * 100_000 + b"}]"
    assert fingerprint({"messages": msgspec.Raw(deep)}, b"") is None
    assert fingerprint({"messages": msgspec.Raw(b'[{"role":"user","content":"\xff"}')}, b"") is not None


def test_one_reading_leaves_nothing_to_the_next() -> None:
    known = of({"messages": [user(PROMPT)]})
    for _ in range(100):
        assert of({"messages": [user([5])]}) is None
        assert of({"messages": [user(PROMPT)]}) == known


texts = st.text(max_size=30)
messages = st.lists(st.builds(lambda role, content: {"role": role, "content": content}, st.text(max_size=9), texts))


@given(texts.filter(str.strip), messages, st.lists(st.sampled_from(["bash", "read", "é"])), st.booleans())
def test_whatever_follows_the_beginning_stays(prompt: str, more: list[Any], names: list[str], escaped: bool) -> None:
    def began(body: dict[str, Any]) -> bytes | None:
        return fingerprint(decode_members(json.dumps(body, ensure_ascii=escaped).encode(errors="replace")), b"")

    first = {"system": SYSTEM, "messages": [user(prompt)], "tools": tools(*names)}
    known = began(first)
    assert began({**first, "messages": [user([text(prompt, **MARK), text(REMINDER)]), *more]}) == known
