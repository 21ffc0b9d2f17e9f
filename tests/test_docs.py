"""What the documents say is there, and what they show works."""

import ast
import re
from pathlib import Path

import pytest

from asgi_session_pin import Config

ROOT = Path(__file__).parent.parent
DOCUMENTS = {"placement.md": "behaviour/test_placement.py", "behaviour.md": "behaviour/test_hard_cases.py"}


def names_of_tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_statement_of_a_document_names_a_test_that_is_there(document: str) -> None:
    text = (ROOT / "docs" / document).read_text()
    references = re.findall(r"`(?:([\w/]+\.py)::)?(test_\w+)`", text)
    assert len(references) > 15
    for file, name in references:
        assert name in names_of_tests(ROOT / "tests" / (file or DOCUMENTS[document])), (file, name)


def test_every_row_and_point_has_its_test() -> None:
    rows = [line for line in (ROOT / "docs" / "behaviour.md").read_text().splitlines() if line.startswith("|")]
    cases = [row for row in rows if not row.startswith(("| case", "| ---"))]
    assert len(cases) > 40
    assert [row for row in cases if "test_" not in row.split("|")[3]] == []
    points = re.findall(
        r"^- (.+?)(?=\n- |\n\n|\Z)", (ROOT / "docs" / "placement.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert len(points) > 15
    assert [point for point in points if "test_" not in point] == []


@pytest.mark.parametrize(
    "document", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        if anchor:
            lines = linked.read_text().splitlines()
            assert anchor in {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in lines}


YAML_BLOCKS = [
    (path.name, text)
    for path in sorted((ROOT / "docs").glob("*.md"))
    for text in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)
]


@pytest.mark.parametrize(("document", "settings"), YAML_BLOCKS)
def test_the_settings_that_documents_show_load(
    document: str, settings: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIN_SECRET", "REDIS_PASSWORD"):
        monkeypatch.setenv(name, "from-the-environment")
    file.write_text(settings)
    assert Config.load(file) != Config(), document


README = (ROOT / "README.md").read_text()


def test_the_readme_is_short_and_its_yaml_loads(tmp_path: Path) -> None:
    assert len(README.splitlines()) < 200
    [settings] = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "session_pin.yaml"
    path.write_text(settings)
    config = Config.load(path)
    assert config.routing.router_models == ("auto",)
    assert config.decisions.aliases == {"gpt-*": "openai/gpt-*"}


def test_the_readme_tells_of_every_status() -> None:
    code = "".join(path.read_text() for path in (ROOT / "asgi_session_pin").rglob("*.py"))
    reasons = set(re.findall(r'b"((?:body|model|store|invalid)-[a-z-]+)"', code))
    assert len(reasons) == 7
    assert [reason for reason in reasons if reason not in README] == []


def test_the_readme_shows_what_a_bad_file_says(tmp_path: Path) -> None:
    path = tmp_path / "session_pin.yaml"
    path.write_text("routing: {session_ttl_second: 5, session_max_entries: 0}")
    with pytest.raises(ValueError, match="2 faults") as error:
        Config.load(path)
    for line in str(error.value).splitlines()[1:]:
        assert line.strip() in README
