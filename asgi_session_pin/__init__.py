"""Session pinning for LLM proxies: one X-Session-Id, one model, as pure ASGI middleware."""

from .config import Admin, Config, ConfigError, Decisions, Endpoint, Failover, Gateway, Limits, Routing, Sessions, Store
from .events import PinEvent, StoreCall, Tokens
from .middleware import SessionPinMiddleware, get_pinning
from .pin import Pin
from .session_pin import SessionPin, get_session_pin
from .stores import ClaimingStore, Lapsed, MemoryStore, PinStore

__version__ = "0.1.0"

__all__ = [
    "Admin",
    "ClaimingStore",
    "Config",
    "ConfigError",
    "Decisions",
    "Endpoint",
    "Failover",
    "Gateway",
    "Lapsed",
    "Limits",
    "MemoryStore",
    "Pin",
    "PinEvent",
    "PinStore",
    "Routing",
    "SessionPin",
    "SessionPinMiddleware",
    "Sessions",
    "Store",
    "StoreCall",
    "Tokens",
    "get_pinning",
    "get_session_pin",
]
