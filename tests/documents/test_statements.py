"""What the documents say is there, and what they show works."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACEMENT = (ROOT / "docs" / "placement.md").read_text()


def names_of_tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_point_about_placement_names_its_test() -> None:
    points = re.findall(r"^- (.+?)(?=\n- |\n\n|\Z)", PLACEMENT, re.DOTALL | re.MULTILINE)
    assert points
    assert [point for point in points if "test_" not in point] == []


def test_every_test_that_placement_names_is_there() -> None:
    references = re.findall(r"`(?:([\w/]+\.py)::)?(test_\w+)`", PLACEMENT)
    assert references
    for file, name in references:
        assert name in names_of_tests(ROOT / "tests" / (file or "behaviour/test_placement.py")), (file, name)


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https:)([^)]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        if anchor:
            lines = linked.read_text().splitlines()
            assert anchor in {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in lines}


def test_the_headers_page_tells_of_every_status_and_reason() -> None:
    told = (ROOT / "docs" / "headers.md").read_text()
    code = "".join(path.read_text() for path in (ROOT / "asgi_session_pin").rglob("*.py"))
    reasons = set(re.findall(r'b"((?:body|model|store|invalid)-[a-z-]+)"', code))
    assert reasons
    statuses = {"hit", "miss", "wait", "reroute", "off", "ignored", "websocket"}
    assert [word for word in reasons | statuses if f"`{word}" not in told and f"reason={word}" not in told] == []
