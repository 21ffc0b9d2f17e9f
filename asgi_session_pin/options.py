"""Options of a command that environment variables can give, too."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

PREFIX = "ASGI_SESSION_PIN_"

_SAID = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


class CommandOptions:
    """Adds options to *parser* and reads them: from the command line, or else the environment, or else the default.

    `--log-level` is `ASGI_SESSION_PIN_LOG_LEVEL`. A variable that is empty counts as one that is not set.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        self._readers: dict[str, Callable[[str], Any]] = {}
        self._defaults: dict[str, Any] = {}
        self._required: set[str] = set()
        self._sources: dict[str, str] = {}  # for messages

    def add(
        self,
        name: str,
        *,
        help: str,  # as argparse has it
        read: Callable[[str], Any] = str,
        default: Any = None,
        metavar: str | None = None,
        is_required: bool = False,
    ) -> None:
        """Add the option `--name`. *read* turns its text into a value, or raises `argparse.ArgumentTypeError`."""
        if is_required:
            self._required.add(name)
        self._parser.add_argument(f"--{name}", type=read, metavar=metavar, help=self._help(name, help, default))
        self._keep(name, read, default)

    def add_switch(self, name: str, *, help: str) -> None:
        """Add the option `--name`, which is off unless it is given; `--no-name` beats its variable."""
        action = argparse.BooleanOptionalAction
        self._parser.add_argument(f"--{name}", action=action, default=None, help=self._help(name, help, None))
        self._keep(name, _read_switch, False)

    def read(self, chosen: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, Any]:
        """Return the values, by names with `_` for `-`. What can't be used ends the program."""
        values: dict[str, Any] = {}
        for name, read in self._readers.items():
            key = name.replace("-", "_")
            value, text = getattr(chosen, key), environment.get(variable(name))
            self._sources[name] = f"argument --{name}" if value is not None or not text else variable(name)
            if value is None and text:
                try:
                    value = read(text)
                except argparse.ArgumentTypeError as error:
                    self.refuse(f"{name}: {error}")
            if value is None and name in self._required:
                self._parser.error(f"the following arguments are required: --{name}, or {variable(name)}")
            values[key] = self._defaults[name] if value is None else value
        return values

    def end(self, message: str) -> NoReturn:
        """End the program with a message."""
        self._parser.error(message)

    def refuse(self, fault: str) -> NoReturn:
        """End the program for a *fault* that begins with the name of an option, and tell how that was given."""
        name, _, rest = fault.partition(": ")
        self._parser.error(f"{self._sources.get(name, name)}: {rest}")

    def _keep(self, name: str, read: Callable[[str], Any], default: Any) -> None:
        self._readers[name] = read
        self._defaults[name] = default

    def _help(self, name: str, text: str, default: Any) -> str:
        told = f"{text} (default: {default})" if default is not None else text
        return f"{told} [{variable(name)}]"


def variable(name: str) -> str:
    """Return the environment variable of the option `--name`."""
    return PREFIX + name.replace("-", "_").upper()


def one_of(*choices: str) -> Callable[[str], str]:
    """Return what reads one of some words."""

    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected one of {', '.join(choices)}")
        return text

    return read


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return what reads a whole number from *least* to *most*."""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from {least} to {most}")
        return int(text)

    return read


def _read_switch(text: str) -> bool:
    try:
        return _SAID[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected true or false") from None
