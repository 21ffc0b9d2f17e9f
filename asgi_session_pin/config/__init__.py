"""The configuration: YAML or a dict in, checked and frozen settings out."""

from .settings import (
    Admin,
    Config,
    ConfigError,
    Decisions,
    Endpoint,
    Failover,
    Gateway,
    Limits,
    Routing,
    Sessions,
    Store,
    source_name,
)

__all__ = [
    "Admin",
    "Config",
    "ConfigError",
    "Decisions",
    "Endpoint",
    "Failover",
    "Gateway",
    "Limits",
    "Routing",
    "Sessions",
    "Store",
    "source_name",
]
