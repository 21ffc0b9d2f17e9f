"""The command line: `asgi-session-pin demo | check | schema | serve | probe | explain | pins`."""

import argparse
import asyncio
import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from . import __version__
from .check import check_file, print_faults
from .config import ConfigError
from .config.schema import make_schema
from .demo import run_demo
from .options import CommandOptions, one_of, whole
from .terminal import Style, styled, wrapped


class _Parser(argparse.ArgumentParser):
    """Wraps what is wrong with the arguments, at a terminal."""

    def error(self, message: str) -> NoReturn:
        """End the program, as argparse does, with the code 2."""
        self.print_usage(sys.stderr)
        self.exit(2, wrapped(f"{self.prog}: error: {message}", "    ", sys.stderr) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that *arguments* name, by default those of the process, and return its exit code."""
    parser = _Parser(prog="asgi-session-pin", description="Session pinning for LLM proxies.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    demo = commands.add_parser("demo", help="an agent's five steps, without and with pinning")
    demo.set_defaults(run=lambda chosen: 0 if run_demo() else 1)
    _add_check(commands)
    schema = commands.add_parser("schema", help="print a JSON schema of such a file, for editors")
    schema.set_defaults(run=_print_schema)
    _add_serve(commands)
    _add_probe(commands)
    _add_pins(commands)
    _add_explain(commands)
    chosen = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks "→" shows "?"
    try:
        code: int = chosen.run(chosen)
        return code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _add_check(commands: Any) -> None:
    check: argparse.ArgumentParser = commands.add_parser("check", help="print what a file sets, or all its faults")
    check.add_argument("file", metavar="FILE", help="a YAML file, as for SessionPinMiddleware(config=FILE)")
    check.add_argument("--all", action="store_true", help="print all settings, not only those that differ")
    connect = "open the store too, use each of its methods once, and say whether it answers"
    check.add_argument("--connect", action="store_true", help=connect)
    check.set_defaults(run=lambda chosen: check_file(chosen.file, show_all=chosen.all, connect=chosen.connect))


def _print_schema(chosen: argparse.Namespace) -> int:
    print(json.dumps(make_schema(), indent=2))
    return 0


def _add_serve(commands: Any) -> None:
    serve: argparse.ArgumentParser = commands.add_parser(
        "serve", help="pin sessions in front of a gateway: a reverse proxy with the middleware"
    )
    options = CommandOptions(serve)
    options.add("upstream", metavar="URL", is_required=True, help="the gateway, such as http://localhost:4000")
    options.add("config", metavar="FILE", help="a YAML file; without it the defaults hold")
    options.add("host", default="127.0.0.1", help="address to listen on")
    options.add("port", read=whole(1, 65_535), default=8080, help="port to listen on")
    options.add("uds", metavar="PATH", help="socket file to listen on, in place of an address and a port")
    options.add("workers", read=whole(1, 1_000), default=1, metavar="N", help="processes")
    options.add(
        "ssl-certfile", metavar="FILE", help="certificate and its chain (PEM), to speak TLS; SIGHUP reads it again"
    )
    options.add("ssl-keyfile", metavar="FILE", help="its key (PEM), if that is not in the same file")
    levels = ("debug", "info", "warning", "error", "critical")
    options.add("log-level", read=one_of(*levels), default="info", metavar="LEVEL", help=f"one of {', '.join(levels)}")
    options.add(
        "log-format", read=one_of("text", "json"), default="text", metavar="FORMAT", help="text, or json: objects"
    )
    options.add_switch("access-log", help="log each request, without its query, headers and session")
    serve.set_defaults(run=partial(serve_gateway, options))


def serve_gateway(options: CommandOptions, chosen: argparse.Namespace) -> int:
    """Serve until stopped and return the exit code."""
    values = options.read(chosen, os.environ)
    try:
        from .gateway.serve import ServeOptions, prepare
    except ImportError as error:
        options.end(f"{error.name} is missing: install asgi-session-pin[gateway]")
    try:
        run = prepare(ServeOptions(**values))
    except ConfigError as error:
        print_faults(ConfigError(values["config"] or "configuration", error.faults))
        return 1
    except ValueError as error:
        options.refuse(str(error))
    return run()


def _add_probe(commands: Any) -> None:
    probe: argparse.ArgumentParser = commands.add_parser(
        "probe",
        help="ask a live gateway how it names models, and say which settings it needs",
        description="Asks a live gateway a few tiny requests, at most as many as it says before, and tells whether its "
        "answers name the chosen model so that it can be sent back, the settings to use, and the command to type next. "
        "Exits with 0 if sessions can be pinned there by name, with 1 if not, with 2 if that could not be found out.",
    )
    probe.add_argument("--upstream", metavar="URL", required=True, help="the gateway, such as http://localhost:4000")
    named = "names to ask for: those that the router decides for, and a model's own to compare"
    probe.add_argument(
        "--model", metavar="NAME", dest="models", type=_name, nargs="+", action="extend", required=True, help=named
    )
    path = "of the endpoint, below --upstream (default: /v1/chat/completions; where that is not there, also "
    probe.add_argument("--path", help=f"{path}/v1/messages and /v1/responses)")
    key = probe.add_mutually_exclusive_group()
    key.add_argument("--key", help="sent as a bearer token, and to /v1/messages as x-api-key too")
    key.add_argument("--key-env", metavar="NAME", help="the environment variable that holds the key")
    probe.add_argument("--header", metavar="'K: V'", dest="headers", default=[], action="append", help="to be sent too")
    probe.add_argument(
        "--timeout", type=_seconds, default=60, metavar="SECONDS", help="for each answer (default: %(default)s)"
    )
    probe.add_argument("--output", metavar="FILE", help="write the settings into a new file")
    probe.add_argument("--overwrite", action="store_true", help="replace FILE, if it is there")
    probe.add_argument("--verbose", action="store_true", help="show what came back for each name as well")
    probe.add_argument("--json", action="store_true", help="print one JSON object, which has all of that")
    probe.set_defaults(run=partial(probe_gateway, probe))


def probe_gateway(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    """Probe a gateway and return the exit code."""
    from .probe import read_target, run_probe

    key = chosen.key
    if chosen.key_env is not None:
        key = os.environ.get(chosen.key_env)
        if not key:
            parser.error("argument --key-env: that environment variable is not set")
    try:
        target = read_target(chosen.upstream, chosen.path, key, chosen.headers, chosen.timeout)
    except ValueError as error:
        parser.error(f"argument --{error}")
    if chosen.output is not None and os.path.lexists(chosen.output) and not chosen.overwrite:
        parser.error(f"argument --output: {chosen.output} is there already; --overwrite replaces it")
    names = list(dict.fromkeys(chosen.models))
    printed = {"as_json": chosen.json, "verbose": chosen.verbose}
    return asyncio.run(run_probe(target, names, **printed, file=chosen.output, overwrites=chosen.overwrite))


def _add_pins(commands: Any) -> None:
    pins: argparse.ArgumentParser = commands.add_parser(
        "pins",
        help="list the pins of SQLite or Redis, drop one, or lead all off a model",
        description="Lists the pins that a shared store holds, or changes them, without a server: what it says holds "
        "in all processes within a second. Nothing of it is a use of a pin.",
    )
    pins.add_argument("--config", metavar="FILE", required=True, help="the YAML file, for its section store")
    does = pins.add_mutually_exclusive_group()
    does.add_argument("--model", metavar="NAME", help="list those on this model alone")
    does.add_argument("--drop", metavar="KEY", help="give a pin up: the session is routed at its next request")
    does.add_argument(
        "--retire", metavar="NAME", help="lead sessions off a model where a switch is safe, and make no pin of it"
    )
    does.add_argument("--restore", metavar="NAME", help="take a model back")
    pins.set_defaults(run=partial(steer_pins, pins))


def steer_pins(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    """List or change the pins of a store, and return the exit code."""
    from .operate.pins import run_pins

    changes = {"drop": chosen.drop, "retire": chosen.retire, "restore": chosen.restore}
    try:
        return run_pins(chosen.config, model=chosen.model, **changes)
    except ValueError as error:
        parser.error(f"argument --{error}")


def _add_explain(commands: Any) -> None:
    explain: argparse.ArgumentParser = commands.add_parser(
        "explain",
        help="say what becomes of a saved request, and which setting changes that",
        description="Puts a saved request through the middleware, twice in its session, and says step by step what "
        "becomes of it, and which settings change that. Exits with 0 if it is pinned, with 1 if not.",
    )
    explain.add_argument(
        "request", metavar="REQUEST", help="a file: a curl line, a HAR file, or a request as it is sent; - for stdin"
    )
    explain.add_argument("answer", metavar="ANSWER", nargs="?", help="a file: its answer, as `curl -i` shows it")
    explain.add_argument("--config", metavar="FILE", help="a YAML file; without it the defaults hold")
    explain.set_defaults(run=partial(explain_request, explain))


def explain_request(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    """Say what becomes of a saved request, and return the exit code."""
    from .config import Config, ConfigError
    from .explain import Explanation, read_answer, read_file, read_request

    try:
        config = Config.load(chosen.config)
        request, answer = read_request(read_file(chosen.request))
        if chosen.answer is not None:
            answer = read_answer(read_file(chosen.answer))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except ValueError as error:
        parser.error(str(error))
    explanation = Explanation(config, request, answer)
    verdict, steps = explanation.text(min(100, shutil.get_terminal_size().columns)).split("\n\n", 1)
    style = Style.GOOD if explanation.is_pinned else Style.BAD
    print(styled(verdict, style, sys.stdout), steps, sep="\n\n")
    return 0 if explanation.is_pinned else 1


def _name(text: str) -> str:
    if not text.isprintable() or not 1 <= len(text) <= 256 or "*" in text:
        raise argparse.ArgumentTypeError("expected the name of a model, of up to 256 characters, without *")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of seconds above 0, at most 3600")
    return seconds
