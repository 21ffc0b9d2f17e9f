"""`asgi-session-pin pins`: the pins of SQLite or Redis, listed, dropped and led off a model without a server."""

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from ..check import print_faults
from ..config import Config, ConfigError
from ..log import Warnings, names_of
from ..pin import is_model_name
from ..pins.steering import Steering
from ..stores import Entry, OperableStore, open_store
from ..terminal import Style, styled

PAGE = 500  # pins at a time
_STORE_SECONDS = 10.0  # for a page, or a change

_is_key = re.compile(r"[0-9a-f]{32}").fullmatch

Work = Callable[[OperableStore], Awaitable[int]]
"""What is done with the store; returns the exit code."""


def run_pins(path: str, *, model: str | None, drop: str | None, retire: str | None, restore: str | None) -> int:
    """List the pins, of one *model* or of all, or do what one of the others says. Return the exit code.

    *drop* is a key in hex, *retire* and *restore* are names of models. Raises ValueError for what can't be one.
    """
    if drop is not None and not _is_key(drop):
        raise ValueError(f"drop: found {drop!r}, expected a key as it is listed, of 32 characters")
    for name in (retire, restore):
        if name is not None and not is_model_name(name):
            raise ValueError("retire, --restore: expected a name of up to 256 visible ASCII characters")
    work: Work
    if drop is not None:
        work = _drop(bytes.fromhex(drop))
    elif retire is not None:
        work = _steer(retire, is_retired=True)
    elif restore is not None:
        work = _steer(restore, is_retired=False)
    else:
        work = _list(model)
    try:
        store = _open(path)
    except ConfigError as error:
        print_faults(error)
        return 1
    try:
        return asyncio.run(_use(store, work))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough: the caller's affair
        raise
    except Exception as error:  # its text may quote a password
        print(styled(f"the pin store failed: {names_of(error)}", Style.BAD, sys.stderr), file=sys.stderr)
        return 1


def _open(path: str) -> OperableStore:
    config = Config.load(path)
    file = config.store.url.partition("sqlite:///")[2]
    if file and not Path(file).exists():
        raise ConfigError(path, [f"store.url: there is no file {file} yet"])
    store = open_store(config, path)
    if not config.store.is_shared or not isinstance(store, OperableStore):
        fault = "found memory://, expected a store that is shared: these pins are in the process that serves"
        raise ConfigError(path, [f"store.url: {fault}"])
    return store


async def _use(store: OperableStore, work: Work) -> int:
    try:
        return await work(store)
    finally:
        with contextlib.suppress(Exception):  # what has failed may not close either
            await store.aclose()


def _list(model: str | None) -> Work:
    async def work(store: OperableStore) -> int:
        after: str | None = None
        listed: set[bytes] = set()  # a store may tell of a pin twice
        print(styled(f"{'KEY':<32}  {'IDLE':>9}  {'AGE':>9}  {'BY':<8}  MODEL", Style.STRONG, sys.stdout))
        while True:
            async with asyncio.timeout(_STORE_SECONDS):
                entries, after = await store.scan(after, PAGE)
            for entry in entries:
                if entry.key not in listed and model in (None, entry.pin.model):
                    listed.add(entry.key)
                    print(_line(entry))
            if after is None:
                if sys.stdout.isatty():
                    print("Next: --drop KEY gives a pin up, --retire MODEL leads sessions off a model.")
                return 0

    return work


def _line(entry: Entry) -> str:
    age = max(0.0, time.time() - entry.pin.created)
    by = "operator" if entry.pin.by_operator else "router"
    return f"{entry.key.hex()}  {entry.idle_seconds:>7.0f} s  {age:>7.0f} s  {by:<8}  {entry.pin.model}"


def _drop(key: bytes) -> Work:
    async def work(store: OperableStore) -> int:
        async with asyncio.timeout(_STORE_SECONDS):
            entry = await store.peek(key)
            is_dropped = entry is not None and await store.discard(key, entry.pin)
        print("dropped: the session's next request is routed" if is_dropped else "there is no such pin")
        return 0 if is_dropped else 1

    return work


def _steer(model: str, *, is_retired: bool) -> Work:
    async def work(store: OperableStore) -> int:
        try:
            await Steering(store, Warnings()).retire(model, is_retired)
        except ValueError as fault:
            print(fault, file=sys.stderr)
            return 1
        print("retired in all processes within a second" if is_retired else "restored in all processes within a second")
        return 0

    return work
