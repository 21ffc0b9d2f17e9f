"""How docs/behaviour.md comes about."""

import pytest

from behaviour_document import Mark, Section, read_marks, write_document

HIT = Mark(Section.PIN, "a pin", "`hit`", "`test_a.py::test_hit`")


def rows_of(document: str) -> list[str]:
    rows = [line for line in document.splitlines() if line.startswith("| ")]
    return [row for row in rows if not row.startswith(("| case ", "| --- "))]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_test_has_the_cases_that_it_is_marked_with(kind: str) -> None:
    source = f"""
@case(Section.PIN, "a pin", "`hit`")
@case(
    Section.RESPONSE,
    "an answer "
    "of two lines",
    "as it is",
)
@pytest.mark.parametrize("a", [1, 2])
{kind} test_hit(a): ...

{kind} test_without_a_case(): ...
"""
    answer = Mark(Section.RESPONSE, "an answer of two lines", "as it is", HIT.test)
    assert list(read_marks(source, "test_a.py")) == [HIT, answer]


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('@case(Section.PIN, "a", "b")\ndef helper(): ...', "helper has a case, but is no test"),
        (
            'class TestA:\n    @case(Section.PIN, "a", "b")\n    def test_a(self): ...',
            "test_a has a case, but is no test",
        ),
        ('@case(Section.PIN, f"{a}", "b")\ndef test_a(): ...', "two literal texts"),
        ('@case(Section.PIN, "a", outcome="b")\ndef test_a(): ...', "two literal texts"),
    ],
)
def test_a_mark_that_would_show_nothing_is_refused(source: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        list(read_marks(source, "test_a.py"))


def test_a_case_that_several_tests_show_is_one_row() -> None:
    document = write_document([HIT, HIT._replace(test="`test_b.py::test_hit`")], before="")
    assert rows_of(document) == ["| a pin | `hit` | `test_a.py::test_hit`, `test_b.py::test_hit` |"]


def test_a_case_has_one_outcome() -> None:
    with pytest.raises(ValueError, match="'a pin' has another outcome"):
        write_document([HIT, HIT._replace(outcome="`miss`")], before="")


def test_rows_keep_their_order_and_new_ones_come_last() -> None:
    marks = [HIT._replace(situation=situation) for situation in "abc"]
    elsewhere = HIT._replace(section=Section.GATEWAY, situation="c")
    before = write_document([marks[2], marks[0], elsewhere], before="")
    assert [row[2] for row in rows_of(write_document([*marks, elsewhere], before))] == ["c", "a", "b", "c"]
    assert write_document([elsewhere, marks[0], marks[2]], before) == before
