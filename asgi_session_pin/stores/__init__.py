"""Stores of pins."""

import time
from collections.abc import Callable
from typing import TypedDict

from ..config import Config, ConfigError
from .base import ClaimingStore, Entry, Lapsed, OperableStore, Page, PinStore, value_of
from .local_copy import LocalCopy
from .memory import MemoryStore
from .resilient import ResilientStore
from .trial import ListingStore, try_store

__all__ = [
    "ClaimingStore",
    "Entry",
    "Lapsed",
    "ListingStore",
    "MemoryStore",
    "OperableStore",
    "Page",
    "PinStore",
    "ResilientStore",
    "make_resilient",
    "open_store",
    "try_store",
    "value_of",
]


def open_store(config: Config, source: str = "configuration", timer: Callable[[], float] = time.monotonic) -> PinStore:
    """Return the store that *config* names; nothing is connected or written yet.

    Raises ConfigError where it can be seen already that it can't be used; *source* is where the settings come from, and
    *timer* tells the seconds of this process's own table.
    """
    url, routing, times = config.store.url, config.routing, _times(config)
    most = config.limits.max_pins_per_credential
    if most is not None and config.store.is_shared:
        fault = f"limits.max_pins_per_credential: found {most}, expected null: only memory:// knows whose a pin is"
        raise ConfigError(source, [fault])
    try:
        if config.store.is_redis:
            from .redis import RedisStore

            return RedisStore(url, **times)
        if url.startswith("sqlite"):
            from .sqlite import SQLiteStore

            return SQLiteStore(url.removeprefix("sqlite:///"), max_entries=routing.session_max_entries, **times)
    except ImportError:
        fault = f"store.url: found {config.store.shown_url!r}, which needs asgi-session-pin[redis] to be installed"
        raise ConfigError(source, [fault]) from None
    except ValueError as error:
        raise ConfigError(source, [f"store.url: {error}"]) from None
    return MemoryStore(max_entries=routing.session_max_entries, max_per_tenant=most, timer=timer, **times)


def make_resilient(store: PinStore, config: Config, timer: Callable[[], float]) -> ResilientStore | None:
    """Return what bounds and survives the failures of a store; None for this process's own table, which has none."""
    if type(store) is MemoryStore:
        return None
    copy = LocalCopy(max_entries=config.routing.session_max_entries, timer=timer, **_times(config))
    return ResilientStore(store, copy, timeout_seconds=config.store.timeout_seconds, timer=timer)


class _Times(TypedDict):
    ttl_seconds: float
    sliding: bool
    tool_loop_seconds: float


def _times(config: Config) -> _Times:
    routing = config.routing
    return {
        "ttl_seconds": routing.session_ttl_seconds,
        "sliding": routing.session_ttl_sliding,
        "tool_loop_seconds": routing.tool_loop_seconds,
    }
