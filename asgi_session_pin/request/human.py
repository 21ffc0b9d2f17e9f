"""What of a user's text a person has said: without reminders, the environment, files, and a harness's own words.

What is added and not known makes a human turn of a request that is none: with `routing.release: user_turn` it is routed
then, where that is safe.
"""

import re

from .harness import FILE_HEADING, FILE_TAG, TAGS

_opened = re.compile(rf"<({'|'.join(map(re.escape, (*TAGS, FILE_TAG)))})(?:\s[^<>]{{0,500}})?>").search

# How texts begin that are a harness's own from their first word to the last.
_is_own = re.compile(
    r"""\s*(?:
    \[Request\ interrupted\ by\ user
    | \[SUGGESTION\ MODE
    | \[TASK\ RESUMPTION\]
    | \[ERROR\]\ You\ did\ not\ use\ a\ tool
    | Stop\ hook\ feedback
    | Continue\ from\ where\ you\ left\ off
    | Continue\ if\ you\ have\ next\ steps,\ or\ stop
    | This\ session\ is\ being\ continued\ from\ a\ previous\ conversation
    | Another\ language\ model\ started\ to\ solve\ this\ problem
    | You\ are\ performing\ a\ CONTEXT\ CHECKPOINT\ COMPACTION
    | CRITICAL:\ Respond\ with\ TEXT\ ONLY
    | Your\ task\ is\ to\ create\ a\ detailed\ summary
    | Create\ a\ new\ anchored\ summary
    | What\ did\ we\ do\ so\ far\?\s*\Z
    | Summarize\ the\ task\ tool\ output\ above
    | Generate\ a\ title\ for\ this\ conversation
    | Called\ the\ \w+\ tool\ with\ the\ following\ input
    | The\ following\ tool\ was\ executed\ by\ the\ user
    | Attached\ image\(s\)\ from\ tool\ result
    | This\ is\ the\ (?:Qwen\ Code|Gemini\ CLI)\.\ We\ are\ setting\ up\ the\ context
    | Managed\ memory\ (?:directory:|has\ TWO\ directories)
    )""",
    re.VERBOSE,
).match

# Cline, Roo and their kin send the result of a tool as text of the user: `[read_file for 'notes.txt'] Result:`.
_is_result = re.compile(r"\s*\[\w{2,64}(?: for [^\n]{0,4096}?)?\] Result:").match


def is_tool_result(text: str) -> bool:
    """Tell whether the text of a user is the result of a tool."""
    return _is_result(text) is not None


def human_text(text: str) -> str:
    """Return what of a user's text is not a harness's, which may stand before it, behind it or in between."""
    kept: list[str] = []
    unclosed: set[str] = set()  # it is looked for once, so that the time grows with the text and no more
    start = position = 0
    while (tag := _opened(text, position)) is not None:
        name = tag[1]
        end = -1 if name in unclosed else text.find(f"</{name}>", tag.end())
        if end < 0:
            unclosed.add(name)
            position = tag.end()
        else:
            kept.append(_without_heading(text[start : tag.start()], name))
            start = position = end + len(name) + 3
    kept.append(text[start:])
    human = "".join(kept).strip()
    return "" if _is_own(human) else human


def _without_heading(text: str, tag: str) -> str:
    lines, _, last = text.rstrip().rpartition("\n")
    return lines if tag == FILE_TAG and last.startswith(FILE_HEADING) else text
