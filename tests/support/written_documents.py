"""Documents that are written from the code: a script writes them, and `--check` fails where they are not that."""

import difflib
import sys
from pathlib import Path


def write_or_check(path: Path, text: str, arguments: list[str], *, fault: str) -> None:
    """Write *text* into a document, or with `--check` end the program with the difference and the *fault*."""
    before = path.read_text() if path.exists() else ""
    if arguments != ["--check"]:
        path.write_text(text)
    elif text != before:
        difference = difflib.unified_diff(before.splitlines(), text.splitlines(), "docs", "code", n=0, lineterm="")
        sys.exit("\n".join([*difference, fault]))
