"""docs/behaviour.md, which is written from the tests: a row for each case that they are marked with.

`scripts/behaviour` writes it. Rows keep the order that the document has; a new one comes last in its section, and may
be moved by hand.
"""

import ast
import sys
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import NamedTuple, TypeVar

from written_documents import write_or_check

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs" / "behaviour.md"
TESTS = ROOT / "tests"

OPENING = """\
# What happens in the hard cases

What a client sees, case by case, and the test in `tests/` that shows it. Where nothing else is said the request goes to
the app as it came, the response to the client as it came, and the status is that of `X-Session-Pin-Status`.
"""
TABLE = "| case | what the client sees | shown by |\n| --- | --- | --- |\n"


class Section(Enum):
    """The sections in the order of reading, each with what holds for all of its cases."""

    SESSION = "The session", ""
    REQUEST = "The request's body", ""
    RESPONSE = "The response", ""
    PIN = "The pin", ""
    SHARED_STORE = (
        "A shared store",
        """\
SQLite, Redis, or one of your own. This process's copy of the pins that it has seen is read only where the store fails;
then the status says `reason=store-unavailable`.
""",
    )
    PARALLEL = "Several first requests at once", ""
    FAILURE = (
        "A pinned model that does not serve",
        """\
Nothing of it happens where the client asked for the pinned name itself: there is no other request to send. "Routed"
means: before anything of the failure went out, the app gets the request once more as the client sent it.
""",
    )
    DECISION_ENDPOINT = "Decision endpoints", ""
    WEBSOCKET = (
        "Websockets on an endpoint",
        """\
As the Responses API has them: the session is that of the upgrade's headers, a request is a `response.create`, and its
answer the events up to `response.completed` or a failure. The rules, the pins and the judgement are those of HTTP.
""",
    )
    GATEWAY = "The reverse proxy (`asgi-session-pin serve`)", ""
    OPERATORS = (
        "Operators",
        """\
Below `admin.path`, in `serve` and by `create_admin`.
""",
    )

    def __init__(self, heading: str, introduction: str) -> None:
        self.heading = heading
        self.introduction = introduction


Test = TypeVar("Test", bound=Callable[..., object])


def case(section: Section, situation: str, outcome: str, /) -> Callable[[Test], Test]:
    """Mark a test as the one that shows what happens in a *situation*.

    A test may show several cases, and a case with the same words be shown by several tests. The mark is read from the
    source, so its words are literals; they are Markdown, of one line.
    """
    return lambda test: test


class Mark(NamedTuple):
    section: Section
    situation: str
    outcome: str
    test: str


def read_marks(source: str, file: str) -> Iterable[Mark]:
    """Yield the marks of one file. Raises ValueError for what can't be read, or is not run by pytest."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for mark in node.decorator_list:
            match mark:
                case ast.Call(
                    ast.Name("case"), [ast.Attribute(attr=section), ast.Constant(situation), ast.Constant(outcome)]
                ):
                    if node not in tree.body or not node.name.startswith("test_"):
                        raise ValueError(f"{file}: {node.name} has a case, but is no test")
                    yield Mark(Section[section], str(situation), str(outcome), f"`{file}::{node.name}`")
                case ast.Call(ast.Name("case")):
                    raise ValueError(f"{file}: the case of {node.name} is not one of a section and two literal texts")


def write_document(marks: Iterable[Mark], before: str) -> str:
    """Return the document, its rows in the order of the one *before*. Raises ValueError if a case has two outcomes."""
    outcomes: dict[tuple[Section, str], str] = {}
    tests: dict[tuple[Section, str], list[str]] = {}
    for section, situation, outcome, test in marks:
        if outcomes.setdefault((section, situation), outcome) != outcome:
            raise ValueError(f"{test}: {situation!r} has another outcome elsewhere")
        tests.setdefault((section, situation), []).append(test)

    parts = [OPENING]
    for section in Section:
        old = before.partition(f"\n## {section.heading}\n")[2].partition("\n## ")[0]
        order = {line.split(" | ")[0]: number for number, line in enumerate(old.splitlines())}
        situations = [situation for other, situation in outcomes if other is section]
        situations.sort(key=lambda situation: order.get(f"| {situation}", len(order)))
        rows = [
            f"| {situation} | {outcomes[section, situation]} | {', '.join(tests[section, situation])} |\n"
            for situation in situations
        ]
        introduction = section.introduction and section.introduction + "\n"
        parts.append(f"\n## {section.heading}\n\n{introduction}{TABLE}{''.join(rows)}")
    return "".join(parts)


def main(arguments: list[str]) -> None:
    marks = [
        mark
        for path in sorted(TESTS.rglob("test_*.py"))
        for mark in read_marks(path.read_text(), path.relative_to(TESTS).as_posix())
    ]
    fault = "docs/behaviour.md is not what the tests are marked with; scripts/behaviour writes it"
    write_or_check(DOCUMENT, write_document(marks, DOCUMENT.read_text()), arguments, fault=fault)


if __name__ == "__main__":
    main(sys.argv[1:])
