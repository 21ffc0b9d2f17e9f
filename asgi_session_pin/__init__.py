"""Session pinning for LLM proxies: one X-Session-Id, one model, as pure ASGI middleware."""

from .config import Config, ConfigError, Decisions, Endpoint, Limits, Routing, Sessions, Store
from .middleware import SessionPinMiddleware
from .pins import Pin
from .stores import MemoryStore, PinStore

__version__ = "0.1.0"

__all__ = [
    "Config",
    "ConfigError",
    "Decisions",
    "Endpoint",
    "Limits",
    "MemoryStore",
    "Pin",
    "PinStore",
    "Routing",
    "SessionPinMiddleware",
    "Sessions",
    "Store",
]
