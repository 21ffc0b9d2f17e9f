"""In front of a gateway: a reverse proxy with the middleware inside."""

from .proxy import create_gateway

__all__ = ["create_gateway"]
