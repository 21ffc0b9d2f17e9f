"""What agents' harnesses put around a user's text: reminders, environments, notes of their own commands.

Texts are looked at as they stand in JSON, between their quotes and with their escapes.
"""

import re

# Whose content no user wrote: by Claude Code (also in an editor), OpenCode, Codex, Cline and its kin, Copilot.
_TAGS = (
    rb"system-reminder|local-command-(?:caveat|stdout|stderr)|command-(?:name|message|args)|ide_(?:opened_file|selection)"
    rb"|environment_context|user_instructions|permissions instructions|skills_instructions|collaboration_mode"
    rb"|environment_details|environment_info|workspace_info|reminderInstructions"
)
_BLANK = rb"(?:[ ]|\\[nrt]){0,64}"
_LESS, _GREATER = rb"(<|\\u003[cC])", rb"(?:>|\\u003[eE])"  # some encoders write JSON that HTML can hold
_TITLE = rb"(# AGENTS\.md instructions.{0,300}?)?"  # Codex gives it to a file that it shows

_opening = re.compile(_BLANK + _TITLE + _LESS + rb"((?(1)INSTRUCTIONS|(?:" + _TAGS + rb"))" + _GREATER + rb")")
_line = re.compile(_BLANK + rb"x-anthropic-billing-header:[^\\]*")  # Claude Code's, another one in each request
_blank = re.compile(_BLANK)
_BLANKS = (b" ", rb"\n", rb"\r", rb"\t")
_behind = re.compile(rb"<(?:system-reminder|environment_details)>")
_LONGEST_BEHIND = len("<environment_details>")
_MARKS = b" \\<#x"  # what an addition, and white space, can begin with
_MOST = 16  # additions


def own_text(text: bytes, limit: int) -> bytes:
    """Return the first *limit* bytes of what is its sender's own in *text*; empty if nothing is.

    Additions before it are passed over, those that harnesses put behind a text end it.
    """
    position = 0
    for _ in range(_MOST if text[:1] in _MARKS else 0):
        opening, line = _opening.match(text, position), _line.match(text, position)
        if opening is not None:
            closing = b"%b/%b" % opening.group(2, 3)
            end = text.find(closing, opening.end())
            position = len(text) if end < 0 else end + len(closing)
        elif line is not None:
            position = line.end()
        else:
            break
    blank = _blank.match(text, position)
    assert blank is not None  # it matches the empty text too
    start = blank.end()
    behind = _behind.search(text, start, start + limit + _LONGEST_BEHIND)
    end = min(len(text) if behind is None else behind.start(), start + limit)
    while text.endswith(_BLANKS, start, end):
        end -= 1 if text[end - 1 : end] == b" " else 2
    return text[start:end]
