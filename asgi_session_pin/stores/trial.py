"""Whether a store can be used now: each of its methods is called once, as for a request."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, runtime_checkable

from ..log import names_of
from ..pin import Pin
from .base import ClaimingStore, PinStore

_SECONDS = 10.0  # for all calls together
_CLAIM_SECONDS = 1.0


@runtime_checkable
class ListingStore(Protocol):
    """A store that reaches its data by any of several nodes."""

    async def examine_nodes(self) -> list[str]:
        """Return a line for each node that is not what the store takes it for, without secrets."""
        ...


async def try_store(store: PinStore, seconds: float = _SECONDS) -> str | None:
    """Return None, or which method failed and how, by the names of exceptions: their texts may quote a password.

    It takes *seconds* at most, and leaves nothing in the store but, where that breaks off, what lapses by itself.
    """
    key, token = secrets.token_bytes(16), secrets.token_bytes(16)
    pin = Pin("check", time.time())
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "get": lambda: store.get(key),
        "add": lambda: store.add(key, pin),
        "discard": lambda: store.discard(key, pin),
    }
    if isinstance(store, ClaimingStore):
        claims = store
        calls["claim"] = lambda: claims.claim(key, token, _CLAIM_SECONDS)
        calls["release"] = lambda: claims.release(key, token)
    name = ""
    try:
        async with asyncio.timeout(seconds):
            for name, call in calls.items():
                if await call() is False:  # what was just added is gone
                    return f"{name}: nothing is kept"
    except Exception as error:
        return f"{name}: {names_of(error)}"
    return None
