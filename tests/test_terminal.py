"""What people see at a terminal, and what a file gets."""

import io
import shutil

import pytest

from asgi_session_pin.terminal import Style, styled, wrapped


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def colourful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_terminal_shows_colours() -> None:
    assert styled("ok", Style.GOOD, Terminal()) == "\033[32mok\033[0m"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_shall_show_no_colours_gets_none(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert styled("ok", Style.GOOD, Terminal()) == "ok"


def test_a_file_gets_the_text_alone_in_lines_of_any_length() -> None:
    assert styled("ok", Style.GOOD, io.StringIO()) == "ok"
    assert wrapped("word " * 100, "  ", io.StringIO()) == "word " * 100


def test_a_line_is_wrapped_at_the_terminals_width_and_no_word_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert shutil.get_terminal_size().columns == 20
    line = "  one two three four-and-a-half sqlite:////var/lib/pins.db"
    assert wrapped(line, "    ", Terminal()).splitlines() == [
        "  one two three",
        "    four-and-a-half",
        "    sqlite:////var/lib/pins.db",
    ]
