"""The command line: `asgi-session-pin demo | check FILE | serve --upstream URL`."""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from . import __version__
from .config import Config, ConfigError
from .demo import run_demo
from .stores import open_store


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that *arguments* name, by default those of the process, and return its exit code."""
    parser = argparse.ArgumentParser(prog="asgi-session-pin", description="Session pinning for LLM proxies.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("demo", help="an agent's five steps, without and with pinning")
    check = commands.add_parser("check", help="print the settings that a file makes, or all its faults")
    check.add_argument("file", metavar="FILE", help="a YAML file, as for SessionPinMiddleware(config=FILE)")
    serve = commands.add_parser("serve", help="pin sessions in front of a gateway: a reverse proxy with the middleware")
    serve.add_argument("--upstream", metavar="URL", required=True, help="the gateway, such as http://localhost:4000")
    serve.add_argument("--config", metavar="FILE", help="a YAML file; without it the defaults hold")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=_port, default=8080, help="port to listen on (default: %(default)s)")
    serve.add_argument("--workers", type=_workers, default=1, metavar="N", help="processes (default: %(default)s)")
    serve.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error", "critical"), default="info", metavar="LEVEL"
    )
    chosen = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks "→" shows "?"
    try:
        if chosen.command == "serve":
            return serve_gateway(serve, chosen)
        return check_file(chosen.file) if chosen.command == "check" else 0 if run_demo() else 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def serve_gateway(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    """Serve until stopped and return the exit code."""
    try:
        from .serve import prepare
    except ImportError as error:
        parser.error(f"{error.name} is missing: install asgi-session-pin[gateway]")
    try:
        run = prepare(chosen.upstream, chosen.config, chosen.host, chosen.port, chosen.workers, chosen.log_level)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except ValueError as error:
        parser.error(f"argument --{error}")
    run()
    return 0


def _port(text: str) -> int:
    return _whole(text, 1, 65_535)


def _workers(text: str) -> int:
    return _whole(text, 1, 1_000)


def _whole(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from {least} to {most}")
    return int(text)


def check_file(path: str) -> int:
    """Print the settings in force as YAML, or what is wrong with the file, and return the exit code."""
    try:
        config = Config.load(path)
        open_store(config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    print(config.to_yaml(), end="", flush=True)
    return 0
