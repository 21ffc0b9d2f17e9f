"""Stores of pins."""

from ..config import Config
from .base import ClaimingStore, PinStore
from .memory import MemoryStore

__all__ = ["ClaimingStore", "MemoryStore", "PinStore", "open_store"]


def open_store(config: Config) -> PinStore:
    """Return the store that *config* names; nothing is connected or written yet."""
    routing = config.routing
    return MemoryStore(
        ttl_seconds=routing.session_ttl_seconds,
        sliding=routing.session_ttl_sliding,
        max_entries=routing.session_max_entries,
    )
