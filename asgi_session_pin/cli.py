"""The command line: `asgi-session-pin demo | check FILE`."""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from . import __version__
from .config import Config, ConfigError
from .demo import run_demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that *arguments* name, by default those of the process, and return its exit code."""
    parser = argparse.ArgumentParser(prog="asgi-session-pin", description="Session pinning for LLM proxies.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("demo", help="an agent's five steps, without and with pinning")
    check = commands.add_parser("check", help="print the settings that a file makes, or all its faults")
    check.add_argument("file", metavar="FILE", help="a YAML file, as for SessionPinMiddleware(config=FILE)")
    chosen = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks "→" shows "?"
    try:
        return check_file(chosen.file) if chosen.command == "check" else 0 if run_demo() else 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def check_file(path: str) -> int:
    """Print the settings in force as YAML, or what is wrong with the file, and return the exit code."""
    try:
        config = Config.load(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    print(config.to_yaml(), end="", flush=True)
    return 0
