"""The kinds of stores that the contract is run over."""

from pathlib import Path

from directory_store import DirectoryStore

from asgi_driver import Clock
from asgi_session_pin import MemoryStore, PinStore
from asgi_session_pin.testing import StoreCase

TTL = 10.0


def memory_case() -> StoreCase:
    clock = Clock()

    def open_store(sliding: bool = True) -> PinStore:
        return MemoryStore(ttl_seconds=TTL, sliding=sliding, timer=clock)

    return StoreCase(open_store, clock.wait, TTL)


def directory_case(path: Path) -> StoreCase:
    clock = Clock()

    def open_store(sliding: bool = True) -> PinStore:
        return DirectoryStore(path / "pins", ttl_seconds=TTL, sliding=sliding, clock=clock)

    return StoreCase(open_store, clock.wait, TTL)
