"""`asgi-session-pin serve`: the gateway app on uvicorn."""

import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from ._upstream import read_upstream, refuse_repeated
from .config import Config
from .gateway import create_gateway
from .middleware import SessionPinMiddleware

# How the workers, which are processes of their own, learn what to serve.
_UPSTREAM = "ASGI_SESSION_PIN_UPSTREAM"
_CONFIG = "ASGI_SESSION_PIN_CONFIG"
_LOG_LEVEL = "ASGI_SESSION_PIN_LOG_LEVEL"

_CLIENTS_PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions")


def prepare(
    upstream: str, config_path: str | None, host: str, port: int, workers: int, log_level: str
) -> Callable[[], None]:
    """Check everything, say what is going to be served, and return what serves it until it is stopped.

    Streams that run then are finished. Raises ConfigError and ValueError for what can't be used.
    """
    config = Config.load(config_path)
    refuse_repeated(read_upstream(upstream), _CLIENTS_PATHS)
    app: Any = create_gateway(upstream, config)
    if workers > 1:  # each of them reads the file for itself
        if config_path is not None and not Path(config_path).is_file():
            raise ValueError(f"config: found {config_path!r}, expected a regular file where there are several workers")
        os.environ.update({_UPSTREAM: upstream, _CONFIG: config_path or "", _LOG_LEVEL: log_level})
        app = "asgi_session_pin.serve:create_app"
    set_up_logging(log_level)
    routing = config.routing
    since = "their last use" if routing.session_ttl_sliding else "their decision"
    _tell(
        f"http://{host}:{port} -> {upstream}, {workers} worker{'s' * (workers > 1)}, "
        f"pins in {config.store.shown_url} for {routing.session_ttl_seconds:g} s after {since}"
    )
    if workers > 1 and not config.store.is_shared:
        _tell(
            "warning: store.url is memory://, so each worker has its own pins, and a session can get a model for each "
            "of them"
        )
    # The upstream's `server` and `date` go through as they are. Who the client is, the proxy writes down itself.
    return partial(
        uvicorn.run,
        app,
        factory=workers > 1,
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
    """Return the app of one of several workers."""
    set_up_logging(os.environ[_LOG_LEVEL])
    return create_gateway(os.environ[_UPSTREAM], os.environ[_CONFIG] or None)


def set_up_logging(level: str) -> None:
    """Log to stderr. What httpx tells at the level of debugging holds headers, and those hold secrets."""
    logging.basicConfig(format="%(levelname)s: %(name)s: %(message)s", level=level.upper())
    for name in ("httpcore", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _tell(text: str) -> None:
    print(f"asgi-session-pin: {text}", file=sys.stderr, flush=True)
