"""Options on the command line and in the environment."""

import argparse
from typing import Any

import pytest

from asgi_session_pin.options import CommandOptions, one_of, variable, whole


def read(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    return read_by(command(), arguments, environment)


def command() -> tuple[argparse.ArgumentParser, CommandOptions]:
    parser = argparse.ArgumentParser(prog="command")
    options = CommandOptions(parser)
    options.add("up-stream", is_required=True, help="where to")
    options.add("port", read=whole(1, 9), default=8, help="100%% of them")
    options.add("level", read=one_of("low", "high"), help="how much")
    options.add_switch("log", help="whether")
    return parser, options


def read_by(
    made: tuple[argparse.ArgumentParser, CommandOptions], arguments: list[str], environment: dict[str, str]
) -> dict[str, Any]:
    parser, options = made
    return options.read(parser.parse_args(arguments), environment)


UP = {"ASGI_SESSION_PIN_UP_STREAM": "u"}


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["--up-stream", "u"], {}, {}),
        ([], {**UP, "ASGI_SESSION_PIN_PORT": "7"}, {"port": 7}),
        (["--port", "6"], {**UP, "ASGI_SESSION_PIN_PORT": "7"}, {"port": 6}),
        (["--port", "6"], {**UP, "ASGI_SESSION_PIN_PORT": "no number"}, {"port": 6}),
        ([], {**UP, "ASGI_SESSION_PIN_PORT": "", "ASGI_SESSION_PIN_LOG": ""}, {}),
        ([], {**UP, "ASGI_SESSION_PIN_LEVEL": "high"}, {"level": "high"}),
        (["--log"], UP, {"log": True}),
        ([], {**UP, "ASGI_SESSION_PIN_LOG": "True"}, {"log": True}),
        ([], {**UP, "ASGI_SESSION_PIN_LOG": "0"}, {"log": False}),
        (["--no-log"], {**UP, "ASGI_SESSION_PIN_LOG": "1"}, {"log": False}),
    ],
)
def test_the_command_line_wins_over_the_environment_and_that_over_the_default(
    arguments: list[str], environment: dict[str, str], expected: dict[str, Any]
) -> None:
    defaults = {"up_stream": "u", "port": 8, "level": None, "log": False}
    assert read(arguments, environment) == {**defaults, **expected}


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (["--port", "10"], {}, "argument --port: found '10', expected a whole number from 1 to 9"),
        ([], {"ASGI_SESSION_PIN_PORT": "x"}, "ASGI_SESSION_PIN_PORT: found 'x', expected a whole number from 1 to 9"),
        ([], {"ASGI_SESSION_PIN_LEVEL": "x"}, "ASGI_SESSION_PIN_LEVEL: found 'x', expected one of low, high"),
        ([], {"ASGI_SESSION_PIN_LOG": "x"}, "ASGI_SESSION_PIN_LOG: found 'x', expected true or false"),
        ([], {"up": "u"}, "the following arguments are required: --up-stream, or ASGI_SESSION_PIN_UP_STREAM"),
    ],
)
def test_what_cannot_be_used_is_told_by_the_name_it_was_given_by(
    arguments: list[str], environment: dict[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read(arguments, environment if "up" in environment else UP | environment)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"command: error: {told}"


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (["--up-stream", "u"], UP, "argument --up-stream: no URL"),
        ([], UP, "ASGI_SESSION_PIN_UP_STREAM: no URL"),
    ],
)
def test_what_is_found_out_later_is_told_so_too(
    arguments: list[str], environment: dict[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser, options = command()
    read_by((parser, options), arguments, environment)
    with pytest.raises(SystemExit):
        options.refuse("up-stream: no URL")
    assert capsys.readouterr().err.splitlines()[-1] == f"command: error: {told}"


def test_the_help_tells_each_variable() -> None:
    text = " ".join(command()[0].format_help().split())
    assert "--port PORT 100% of them (default: 8) [ASGI_SESSION_PIN_PORT]" in text
    assert all(f"[{variable(name)}]" in text for name in ("up-stream", "level", "log"))
