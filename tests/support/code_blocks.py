"""The code blocks of README and docs, which tests take from there and run."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


class Block(NamedTuple):
    """A fenced block, without its fence."""

    document: str
    language: str
    text: str


def blocks_of(path: Path) -> list[Block]:
    """Return the blocks of a document in their order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)
    return [Block(path.relative_to(ROOT).as_posix(), language, text) for language, text in found]


BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path)]


def block(document: str, opening: str) -> str:
    """Return the text of the one block of a document that begins with *opening*.

    Which blocks tests run is read from calls of this, so both are literals.
    """
    [found] = [block.text for block in BLOCKS if block.document == document and block.text.startswith(opening)]
    return found
