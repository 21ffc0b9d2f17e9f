"""`asgi-session-pin serve`: the gateway app on uvicorn."""

import logging
import os
import sys

import uvicorn

from .config import Config
from .gateway import ReverseProxy, create_gateway
from .middleware import SessionPinMiddleware

# How the workers, which are processes of their own, learn what to serve.
_UPSTREAM = "ASGI_SESSION_PIN_UPSTREAM"
_CONFIG = "ASGI_SESSION_PIN_CONFIG"
_LOG_LEVEL = "ASGI_SESSION_PIN_LOG_LEVEL"


def serve(upstream: str, config_path: str | None, host: str, port: int, workers: int, log_level: str) -> None:
    """Serve until stopped; streams that run then are finished.

    Raises ConfigError and ValueError, before it listens, for a configuration or an upstream that can't be used.
    """
    config = Config.load(config_path)
    ReverseProxy(upstream, config.gateway)
    os.environ.update({_UPSTREAM: upstream, _CONFIG: config_path or "", _LOG_LEVEL: log_level})
    routing = config.routing
    since = "their last use" if routing.session_ttl_sliding else "their decision"
    print(
        f"asgi-session-pin: http://{host}:{port} -> {upstream}, {workers} worker{'s' * (workers > 1)}, "
        f"pins in {config.store.url} for {routing.session_ttl_seconds:g} s after {since}",
        file=sys.stderr,
        flush=True,
    )
    if workers > 1:
        print(
            "asgi-session-pin: warning: store.url is memory://, so each worker has its own pins, and a session can get "
            "a model for each of them",
            file=sys.stderr,
            flush=True,
        )
    # The upstream's `server` and `date` go through as they are. Who the client is, the proxy writes down itself.
    uvicorn.run(
        "asgi_session_pin.serve:create_app",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        log_level=log_level,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="none",
    )


def create_app() -> SessionPinMiddleware:
    """Return the app of one worker."""
    logging.basicConfig(format="%(levelname)s: %(name)s: %(message)s", level=os.environ[_LOG_LEVEL].upper())
    return create_gateway(os.environ[_UPSTREAM], os.environ[_CONFIG] or None)
