"""No block of the documents is shown that nobody has run."""

import ast
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from asgi_session_pin import Config
from asgi_session_pin.cli import main
from code_blocks import BLOCKS, DOCUMENTS, ROOT, Block

NOT_RUN = {
    ("CONTRIBUTING.md", "asgi_session_pin/"): "a drawing: the tree",
    ("docs/architecture.md", "asgi_session_pin/"): "a drawing: the tree, whose names a test looks up",
    ("docs/architecture.md", "middleware "): "a drawing: the way of a request",
}


class Name(NamedTuple):
    """How a test names a block: its document, and how it begins."""

    document: str
    opening: str

    def is_of(self, block: Block) -> bool:
        return block.document == self.document and block.text.startswith(self.opening)


def names_in(path: Path) -> list[Name]:
    """Return the blocks that a file of tests takes."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(ast.Name("block"), [ast.Constant(str(document)), ast.Constant(str(opening))]):
                names.append(Name(document, opening))
    return names


RUN = [name for path in (ROOT / "tests").rglob("*.py") for name in names_in(path)]
SETTINGS = [block for block in BLOCKS if block.language == "yaml"]


def test_every_block_is_run_or_said_to_be_none_that_can_be() -> None:
    names = [*RUN, *(Name(*key) for key in NOT_RUN)]
    assert [block for block in BLOCKS if block not in SETTINGS and not any(name.is_of(block) for name in names)] == []


def test_every_block_that_a_test_names_is_there_once() -> None:
    counts = Counter(name for name in {*RUN, *(Name(*key) for key in NOT_RUN)} for block in BLOCKS if name.is_of(block))
    assert [name for name in {*RUN, *(Name(*key) for key in NOT_RUN)} if counts[name] != 1] == []


def test_no_block_is_both_run_and_said_to_be_none_that_can_be() -> None:
    assert [key for key in NOT_RUN if Name(*key) in RUN] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_are_fenced_and_say_their_language(path: Path) -> None:
    outside = re.sub(r"^```\w+\n.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert "```" not in outside
    assert re.findall(r"(?:\A|\n)\n(?: {4}|\t)\S.*", outside) == []


@pytest.mark.parametrize("shown", SETTINGS, ids=lambda shown: shown.document)
def test_settings_load_and_set_something(shown: Block, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"\$\{(\w+)\}", shown.text):
        monkeypatch.setenv(name, "from-the-environment")
    file.write_text(shown.text)
    assert Config.load(file) != Config()


WITHIN = re.compile(r"`(asgi-session-pin [^`]+)`")
COMMANDS = sorted({" ".join(each.split()) for path in DOCUMENTS for each in WITHIN.findall(path.read_text())})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_within_sentences_have_the_options_that_are_named(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, *words = command.split()
    name = [words[0]] if not words[0].startswith("-") else []
    with pytest.raises(SystemExit, match="0"):
        main([*name, "--help"])
    known = re.findall(r"--[\w-]+", capsys.readouterr().out)
    assert [word for word in words if word.startswith("--") and word not in known] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_of_the_tree_that_are_named_are_there(path: Path) -> None:
    named = set(re.findall(r"`((?:scripts|benchmarks|examples|deploy|tests)/[\w./-]+)", path.read_text()))
    if path.name != "CHANGELOG.md":  # which tells of what was
        assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_drawing_of_the_tree_names_what_is_there() -> None:
    [drawing] = [each.text for each in BLOCKS if Name("docs/architecture.md", "asgi_session_pin/").is_of(each)]
    package = ROOT / "asgi_session_pin"
    assert set(re.findall(r"\b\w+\.py\b", drawing)) <= {path.name for path in package.rglob("*.py")}
    top = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert [name for name in top if name not in drawing] == []
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert [name for name in folders if f"\n  {name}/ " not in drawing] == []
