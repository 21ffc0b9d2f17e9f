"""`asgi-session-pin check FILE`: the settings that a file makes, or all its faults."""

import asyncio
import contextlib
import json
import sys
from typing import Any

from .config import Config, ConfigError
from .config.yaml import dump_yaml
from .stores import ListingStore, PinStore, open_store, try_store
from .terminal import Style, styled, wrapped

KEYS = "docs/configuration.md, or `asgi-session-pin schema` for editors."
_SHOWN = 40  # a longer default is looked up


def check_file(path: str, *, show_all: bool = False, connect: bool = False) -> int:
    """Print as YAML the settings that differ from the defaults, or all, or what is wrong. Return the exit code.

    *connect*: use the store, too, and say whether it answers.
    """
    try:
        config = Config.load(path)
        store = open_store(config, path)
    except ConfigError as error:
        print_faults(error)
        print(wrapped("Next: mend the file and check it again. Its keys: " + KEYS, "  ", sys.stderr), file=sys.stderr)
        return 1
    lines = _report(config, path, show_all)
    if connect:
        failure, faults = asyncio.run(_connect(store))
        if failure is not None:
            print_faults(ConfigError(path, [f"store.url: {config.store.shown_url}: {failure}", *faults]))
            return 1
        for fault in faults:  # the store answers nevertheless
            print(styled(f"{path}: {fault}", Style.BAD, sys.stderr), file=sys.stderr)
        lines.insert(1, styled(f"# {config.store.shown_url} answers", Style.GOOD, sys.stdout))
    print("\n".join(lines), flush=True)
    return 0


async def _connect(store: PinStore) -> tuple[str | None, list[str]]:
    """Use the store; return what failed, and what is wrong with the nodes that its URL lists."""
    failure = await try_store(store)
    faults = await store.examine_nodes() if isinstance(store, ListingStore) else []
    with contextlib.suppress(Exception):  # what has failed may not close either
        await store.aclose()
    return failure, [f"store.url: {fault}" for fault in faults]


def print_faults(error: ConfigError) -> None:
    """Print what is wrong to standard error."""
    first, *faults = str(error).splitlines()
    print(styled(first, Style.BAD, sys.stderr), file=sys.stderr)
    for fault in faults:
        print(wrapped(fault, "    ", sys.stderr), file=sys.stderr)


def _report(config: Config, path: str, show_all: bool) -> list[str]:
    """Return the lines of what `Config.load` takes, but for secrets."""
    defaults = Config().to_dict()
    lines: list[str] = []
    differing = 0
    for name, section in config.to_dict().items():
        below: list[str] = []
        is_section = isinstance(section, dict)
        for key, value in section.items() if is_section else [(name, section)]:
            default = defaults[name][key] if is_section else defaults[name]
            differing += value != default
            if show_all or value != default:
                below += _setting(key, value, default)
        if is_section and below:
            below = [f"{name}:", *(f"  {line}" for line in below)]
        lines += below
    verdict = styled(f"# {path}: ok", Style.GOOD, sys.stdout)
    count = "1 setting differs" if differing == 1 else f"{differing or 'no'} settings differ"
    rest = [] if show_all else ["", f"# All:  asgi-session-pin check --all {path}"]
    serve = f"# Next: asgi-session-pin serve --config {path} --upstream URL"
    return [f"{verdict}, {count} from the defaults", *lines, *rest, serve]


def _setting(key: str, value: Any, default: Any) -> list[str]:
    first, *others = dump_yaml({key: value}).splitlines()
    if value == default:
        return [first, *others]
    shown = json.dumps(default)
    mark = f"# default: {shown}" if len(shown) <= _SHOWN else "# differs"
    return [f"{first}  {styled(mark, Style.QUIET, sys.stdout)}", *others]
