"""What a request goes on from. The classes stand in turns.yaml, apart from the code."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from asgi_session_pin.request.turn import MAX_ITEMS_BACK, MAX_MARKS, Step, carries_state, last_step
from asgi_session_pin.wire.json import Members, decode_members


class Body(NamedTuple):
    name: str
    content: bytes
    step: Step
    has_state: bool


LONG = "All is well, and so on. " * 4_000
HISTORIES: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {"role": "user", "content": LONG},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c0", "function": {"arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c0", "content": 'said "[{," and } \\'},
        {"role": "assistant", "content": "Done."},
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": LONG}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t0", "name": "f", "input": {"a": [1, {}]}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t0", "content": 'said "[{," and } \\'}]},
        {"role": "assistant", "content": "Done."},
    ],
    "responses": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": LONG}]},
        {"type": "function_call", "call_id": "c0", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c0", "output": 'said "[{," and } \\'},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done."}]},
    ],
}
HISTORY = {"chat": "messages", "messages": "messages", "responses": "input"}


def bodies() -> list[Body]:
    """Each case behind three histories, with and without spaces."""
    found = []
    for api, cases in yaml.safe_load(Path(__file__).with_name("turns.yaml").read_text()).items():
        for number, case in enumerate(cases):
            items = case["items"]
            histories = [[]] if isinstance(items, str) else [[], HISTORIES[api], 2 * HISTORIES[api]]
            for length, history in enumerate(histories):
                value = items if isinstance(items, str) else history + items
                body = {"model": "auto", HISTORY[api]: value, "tools": [{"signature": "none"}]}
                for indent in (None, 1):
                    content = json.dumps(body, indent=indent, ensure_ascii=indent is None).encode()
                    name = f"{api}-{number}-{length}-{indent}"
                    found.append(Body(name, content, Step(case["step"]), case.get("state", False)))
    return found


def members(**body: Any) -> Members:
    return decode_members(json.dumps(body).encode())


def test_there_are_many_bodies() -> None:
    assert len(bodies()) > 500
    assert {body.step for body in bodies()} == set(Step)


@pytest.mark.parametrize("body", bodies(), ids=lambda body: body.name)
def test_each_body_is_classed_right(body: Body) -> None:
    read = decode_members(body.content)
    assert last_step(read) is body.step
    assert carries_state(read) is body.has_state


@pytest.mark.parametrize("name", ["previous_response_id", "conversation"])
def test_what_the_provider_keeps_is_state(name: str) -> None:
    assert carries_state(members(input="Hello", **{name: "resp_1"}))
    assert not carries_state(members(input="Hello", **{name: None}))


def test_a_body_without_a_history_goes_on_from_nothing() -> None:
    assert last_step(members(model="auto", prompt="Hello")) is Step.OTHER
    assert not carries_state(members(model="auto", prompt="Hello"))


@pytest.mark.parametrize(
    "history",
    [
        {},
        17,
        None,
        ["Hello"],
        [{"role": "user", "content": 17}],
        [{"role": "user", "content": {"type": "text", "text": "Hello"}}],
        [{"role": "user", "content": ["Hello"]}],
        [{"role": "user", "content": "x" * 1_048_576}],
        [{"role": "user", "content": "x" * 600_000}] * 2,
        [{"role": "user", "content": [{"type": "text", "text": "x" * 600_000}] * 2}],
        [{"role": "user", "content": [{"type": "text", "text": "x" * 1_048_576}]}],
        [0] * 100_001,
    ],
    ids=lambda history: repr(history)[:40],
)
def test_what_cannot_be_told_is_taken_for_a_tool_loop(history: Any) -> None:
    assert last_step(members(messages=history)) is Step.TOOL


@pytest.mark.parametrize("part", [{"type": "text"}, {"type": "text", "text": 1}, {"type": "image", "text": "x"}])
def test_a_part_without_text_says_nothing(part: dict[str, Any]) -> None:
    assert last_step(members(messages=[{"role": "user", "content": [part]}])) is Step.OTHER


def test_a_lone_surrogate_hides_nothing() -> None:
    for text in (b"cut off: \\ud83d", b"\\ud83d <system-reminder>x</system-reminder>"):
        for content, step in (
            (b'"%s"' % text, Step.HUMAN),
            (b'[{"type":"tool_result","content":"%s"}]' % text, Step.TOOL),
        ):
            body = b'{"messages":[{"role":"assistant","content":"\\ud83d"},{"role":"user","content":%s}]}' % content
            assert last_step(decode_members(body)) is step


def test_only_so_many_items_of_a_harness_are_passed_over() -> None:
    reminder = {"role": "user", "content": "<system-reminder>Be kind</system-reminder>"}
    result = {"role": "tool", "content": "done"}
    assert last_step(members(messages=[result] + [reminder] * (MAX_ITEMS_BACK - 1))) is Step.TOOL
    assert last_step(members(messages=[result] + [reminder] * MAX_ITEMS_BACK)) is Step.OTHER


def test_marks_without_a_value_are_looked_at_so_many_times() -> None:
    tool = {"type": "tool_use", "input": {"signature": 1}}
    assert not carries_state(members(messages=[tool] * MAX_MARKS))
    assert carries_state(members(messages=[tool] * (MAX_MARKS + 1)))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "type", "content", "text", "signature"]) | st.text(max_size=3), inner
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["messages", "input", "conversation"]), values))
def test_whatever_a_request_holds_is_no_error(body: dict[str, Any]) -> None:
    read = members(**body)
    assert last_step(read) in Step
    assert carries_state(read) in (True, False)


def test_large_requests_are_read_in_a_time_that_grows_with_them() -> None:
    def seconds(body: dict[str, Any]) -> float:
        read = members(**body)
        times = []
        for _ in range(3):
            started = time.process_time()
            last_step(read)
            carries_state(read)
            times.append(time.process_time() - started)
        return min(times)

    reminders = "<system-reminder>" * 50_000
    hostile: list[Any] = [
        [{"role": "user", "content": reminders}],
        [{"role": "user", "content": "<skill " * 100_000}],
        [{"role": "user", "content": "[" + "x for " * 100_000}],
        [{"role": "user", "content": "# AGENTS.md instructions for " * 30_000}],
        [{"role": "user", "content": [{"type": "text", "text": ""}] * 30_000}],
        [{"signature": 1}] * 30_000,
        [[]] * 90_000,
    ]
    assert max(seconds({"messages": history}) for history in hostile) < 0.5  # mostly a tenth of it
