"""What agents' harnesses put around a user's text: reminders, environments, notes of their own commands.

Seen in the requests of Claude Code 2.1, Codex 0.169, OpenCode 1.18, Kilo 7.7 and qwen-code 0.24, and in their programs
and those of Cline, Roo and Copilot. What is not known here passes for the words of a person.
"""

import re

TAGS = (
    "system-reminder",
    "system_reminder",
    "local-command-caveat",
    "local-command-stdout",
    "local-command-stderr",
    "command-name",
    "command-message",
    "bash-input",
    "bash-stdout",
    "bash-stderr",
    "task-notification",
    "teammate-message",
    "cross-session-message",
    "user-prompt-submit-hook",
    "ide_opened_file",
    "ide_selection",
    "new-diagnostics",
    "environment_context",
    "environment_details",
    "environment_info",
    "workspace_info",
    "reminderInstructions",
    "user_instructions",
    "permissions instructions",
    "skills_instructions",
    "collaboration_mode",
    "turn_aborted",
    "user_shell_command",
    "subagent_notification",
    "spawned_subagent_result",
    "recommended_plugins",
    "model_switch",
    "skill",
    "info-msg",
)
"""Of `<tag>...</tag>`, as a harness writes it."""

TYPED_TAG = "command-args"
"""Of what a person typed behind a command: it does not tell a conversation, and still is a turn of a person's."""

FILE_TAG, FILE_HEADING = "INSTRUCTIONS", "# AGENTS.md instructions"
"""Of a file that Codex shows, below a line that begins so. The tag alone is anybody's."""

_BLANK = rb"(?:[ ]|\\[nrt]){0,64}"
_LESS, _GREATER = rb"(<|\\u003[cC])", rb"(?:>|\\u003[eE])"  # some encoders write JSON that HTML can hold
_HEADING = rb"(" + re.escape(FILE_HEADING).encode() + rb".{0,300}?)?"
_ANY_TAG = "|".join(map(re.escape, (*TAGS, TYPED_TAG))).encode()

_opening = re.compile(
    _BLANK + _HEADING + _LESS + rb"((?(1)" + FILE_TAG.encode() + rb"|(?:" + _ANY_TAG + rb"))" + _GREATER + rb")"
)
_line = re.compile(_BLANK + rb"x-anthropic-billing-header:[^\\]*")  # Claude Code's, another one in each request
_blank = re.compile(_BLANK)
_BLANKS = (b" ", rb"\n", rb"\r", rb"\t")
_behind = re.compile(rb"<(?:system-reminder|environment_details)>")
_LONGEST_BEHIND = len("<environment_details>")
_MARKS = b" \\<#x"  # what an addition, and white space, can begin with
_MOST = 16  # additions


def own_text(text: bytes, limit: int) -> bytes:
    """Return the first *limit* bytes of what is its sender's own in *text*; empty if nothing is.

    *text* is as it stands in JSON, between its quotes and with its escapes.
    Additions before it are passed over, those that harnesses put behind a text end it.
    """
    position = 0
    for _ in range(_MOST if text[:1] in _MARKS else 0):
        opening = _opening.match(text, position)
        if opening is not None:
            closing = b"%b/%b" % opening.group(2, 3)
            end = text.find(closing, opening.end())
            position = len(text) if end < 0 else end + len(closing)
        elif (line := _line.match(text, position)) is not None:
            position = line.end()
        else:
            break
        if position == len(text):
            return b""
    blank = _blank.match(text, position)
    assert blank is not None  # it matches the empty text too
    start = blank.end()
    behind = _behind.search(text, start, start + limit + _LONGEST_BEHIND)
    end = min(len(text) if behind is None else behind.start(), start + limit)
    while text.endswith(_BLANKS, start, end):
        end -= 1 if text[end - 1 : end] == b" " else 2
    return text[start:end]
