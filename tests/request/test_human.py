"""What of a user's text a person has said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_session_pin.request.human import human_text, is_tool_result


@pytest.mark.parametrize(
    ("text", "human"),
    [
        ("Hello", "Hello"),
        (" Hello\n", "Hello"),
        ("<system-reminder>\nBe kind\n</system-reminder>\nHello", "Hello"),
        ("Hello\n<system-reminder>Be kind</system-reminder>", "Hello"),
        ("One<environment_details>x</environment_details> two", "One two"),
        ('<skill name="a">x</skill>', ""),
        ("<system-reminder>a</system-reminder>\n<system-reminder>b</system-reminder>\n", ""),
        ("<system-reminder>a</system-reminder><system-reminder>open", "<system-reminder>open"),
        ("<system-reminder><skill>x</skill> never closed", "<system-reminder> never closed"),
        ("<SYSTEM-REMINDER>a</SYSTEM-REMINDER>", "<SYSTEM-REMINDER>a</SYSTEM-REMINDER>"),
        ("<task>Write it</task>", "<task>Write it</task>"),
        ("# AGENTS.md instructions for /work\n\n<INSTRUCTIONS>\nBe kind\n</INSTRUCTIONS>", ""),
        ("What are # AGENTS.md instructions?", "What are # AGENTS.md instructions?"),
        ("[Request interrupted by user for tool use]", ""),
        ("They said: Stop hook feedback", "They said: Stop hook feedback"),
        ("", ""),
    ],
)
def test_what_a_harness_adds_is_left_out(text: str, human: str) -> None:
    assert human_text(text) == human


@given(st.text(), st.text(), st.sampled_from(["system-reminder", "environment_context", "skill"]))
def test_a_block_is_left_out_wherever_it_stands(before: str, after: str, tag: str) -> None:
    plain = human_text(before + after)
    if "<" not in before + after:
        assert human_text(f"{before}<{tag}>Be kind</{tag}>{after}") == plain


def test_results_of_tools_that_come_as_text_are_told() -> None:
    assert is_tool_result("[read_file for 'notes [1].txt'] Result:\n\nBe kind")
    assert is_tool_result("\n[list_files] Result:")
    assert not is_tool_result("[1] Result: none")
    assert not is_tool_result("See [read_file] Result:")
