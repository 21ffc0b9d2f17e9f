"""Text for people: at a terminal in colours and within its width, else as it is."""

import os
import shutil
import textwrap
from enum import Enum
from typing import TextIO


class Style(Enum):
    """How a text looks: an ANSI code (ECMA-48, "select graphic rendition")."""

    STRONG = "1"
    QUIET = "2"
    BAD = "31"
    GOOD = "32"


def styled(text: str, style: Style, stream: TextIO) -> str:
    """Return *text* for *stream*, in colours at a terminal where NO_COLOR is not set (no-color.org)."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{style.value}m{text}\033[0m"


def wrapped(line: str, indent: str, stream: TextIO) -> str:
    """Return *line*, which at a terminal goes on behind *indent* where it is too long; no word is cut."""
    if not stream.isatty():
        return line
    width = shutil.get_terminal_size().columns
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
