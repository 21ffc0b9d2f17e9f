"""What of a text is its sender's own."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_session_pin.request.harness import TAGS, own_text
from asgi_session_pin.request.human import human_text

LIMIT = 2048
REMINDER = "<system-reminder>\nToday's date is 2026-11-26.\n</system-reminder>"
FILE = "# AGENTS.md instructions for /home/ann/work\n\n<INSTRUCTIONS>\nBe kind.\n</INSTRUCTIONS>"
COMMAND = (
    "<command-name>/clear</command-name>\n   <command-message>clear</command-message>\n <command-args></command-args>\n"
)
ADDITIONS = [
    REMINDER,
    FILE,
    COMMAND,
    "<local-command-caveat>Not for you.</local-command-caveat>\n<local-command-stdout>noon</local-command-stdout>",
    "<environment_context>\n  <cwd>/work</cwd>\n</environment_context>",
    "\n\n<environment_details>\nMessage time: 2026-11-26T03:21:55Z\n</environment_details>",
    "<permissions instructions>\nread-only\n</permissions instructions>",
    "<user_instructions>\n\nBe kind.\n\n</user_instructions>\n<ide_selection>x</ide_selection>",
    "x-anthropic-billing-header: cc_version=2.1.332.164; cc_entrypoint=sdk-cli; cch=fa690;",
    "<system-reminder>cut off",
    "",
    " \n\t",
]


def in_json(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode()[1:-1]


@pytest.mark.parametrize("addition", ADDITIONS)
def test_an_addition_is_nobodys_own(addition: str) -> None:
    assert own_text(in_json(addition), LIMIT) == b""


@pytest.mark.parametrize("addition", [addition for addition in ADDITIONS if "cut off" not in addition])
def test_a_text_after_an_addition_is_its_senders_own(addition: str) -> None:
    separator = "\n" if addition.startswith("x-anthropic") else ""
    assert own_text(in_json(f"{addition}{separator}Fix the bug."), LIMIT) == b"Fix the bug."
    assert own_text(in_json(f"{REMINDER}\n{addition}{separator}\r\nFix the bug."), LIMIT) == b"Fix the bug."


@pytest.mark.parametrize("tag", TAGS)
def test_what_stands_under_a_tag_is_neither_its_senders_own_nor_a_persons(tag: str) -> None:
    addition = f"<{tag}>Be kind.</{tag}>"
    assert own_text(in_json(addition + "Fix it."), LIMIT) == b"Fix it."
    assert human_text(addition + "Fix it.") == "Fix it."
    assert human_text(addition) == ""


def test_what_is_typed_behind_a_command_is_a_persons_but_tells_no_conversation() -> None:
    typed = "<command-name>/review</command-name> <command-args>it all</command-args>"
    assert own_text(in_json(typed), LIMIT) == b""
    assert human_text(typed) != ""


@pytest.mark.parametrize(
    "text",
    [
        "Fix the bug.",
        "<task>\nFix the bug.\n</task>",
        "<INSTRUCTIONS>Fix the bug.</INSTRUCTIONS>",
        "# AGENTS.md is missing",
        "system-reminder",
        "x-anthropic-version: 5",
        "why does <system-reminder/> stand here?",
    ],
)
def test_what_a_user_writes_stays(text: str) -> None:
    assert own_text(in_json(text), LIMIT) == in_json(text)


@pytest.mark.parametrize(
    "behind", [f"\n\n{REMINDER}", "<environment_details>\nnoon\n</environment_details>", " \n", ""]
)
def test_what_is_put_behind_a_text_does_not_change_it(behind: str) -> None:
    assert own_text(in_json(f"Fix the bug.{behind}"), LIMIT) == b"Fix the bug."
    assert own_text(in_json("x" * 90 + behind), 100) == b"x" * 90
    assert own_text(in_json("x" * 200 + behind), 100) == b"x" * 100


def test_json_that_html_can_hold_is_read_too() -> None:
    escaped = in_json(f"{REMINDER}Fix <b>").replace(b"<", b"\\u003c").replace(b">", b"\\u003E")
    assert own_text(escaped, LIMIT) == b"Fix \\u003cb\\u003E"


def test_many_additions_and_much_white_space_are_looked_at_within_bounds() -> None:
    assert own_text(in_json(REMINDER * 100 + "x"), LIMIT).startswith(b"<system-reminder>") is False
    assert len(own_text(b" " * 1_000_000, LIMIT)) <= LIMIT
    assert len(own_text(b"\\n" * 1_000_000, LIMIT)) <= LIMIT


@given(st.lists(st.sampled_from([*ADDITIONS, "Fix", "the bug", "<", "\\", "\n"])), st.integers(1, 60))
def test_any_text_has_a_bounded_own_part(parts: list[str], limit: int) -> None:
    text = in_json("".join(parts))
    own = own_text(text, limit)
    assert len(own) <= limit
    assert own in text
