"""`asgi-session-pin serve`: the gateway app on uvicorn, in worker processes under a supervisor."""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import Config, ConfigError
from ..wire.url import read_upstream, refuse_repeated
from .proxy import create_gateway
from .supervisor import Supervisor
from .worker import Service, set_up_logging

_CLIENTS_PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions")


def prepare(
    upstream: str, config_path: str | None, host: str, port: int, workers: int, log_level: str
) -> Callable[[], int]:
    """Check everything, say what is going to be served, and return what serves it until it is stopped.

    What is returned gives the exit code. Raises ConfigError and ValueError for what can't be used.
    """

    def read_service() -> Service:
        service = Service(upstream, Config.load(config_path), log_level)
        create_gateway(upstream, service.config)  # each worker makes its own: this one shows that it can be made
        _announce(service, f"http://{host}:{port}", workers)
        return service

    def read_again() -> Service:
        if config_path is not None and Path(config_path).exists() and not Path(config_path).is_file():
            raise ConfigError(config_path, ["found what can be read only once, expected a regular file"])
        return read_service()

    def run() -> int:
        try:
            listeners = bind(host, port)
        except OSError as error:
            _tell(f"can't listen on {host}, port {port}: {error.strerror}")
            return 1
        return Supervisor(service, workers, listeners, read_again).run()

    refuse_repeated(read_upstream(upstream), _CLIENTS_PATHS)
    service = read_service()
    set_up_logging(log_level)
    return run


def bind(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each address of *host* that this machine has. Raises OSError."""
    listeners: list[socket.socket] = []
    missing: list[OSError] = []
    with contextlib.ExitStack() as on_failure:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                listeners.append(on_failure.enter_context(_bind_one(family, kind, protocol, address)))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing.append(error)
        if not listeners:
            raise missing[0]
        on_failure.pop_all()
    return listeners


def _bind_one(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    # With the protocol, which is TCP: where it is left out asyncio leaves Nagle's algorithm on, and chunks wait.
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name == "posix")  # steals ports elsewhere
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _announce(service: Service, url: str, workers: int) -> None:
    routing, store = service.config.routing, service.config.store
    since = "their last use" if routing.session_ttl_sliding else "their decision"
    _tell(
        f"{url} -> {service.upstream}, {workers} worker{'s' * (workers > 1)}, "
        f"pins in {store.shown_url} for {routing.session_ttl_seconds:g} s after {since}"
    )
    if workers > 1 and not store.is_shared:
        _tell(
            "warning: store.url is memory://, so each worker has its own pins, and a session can get a model for each "
            "of them"
        )


def _tell(text: str) -> None:
    print(f"asgi-session-pin: {text}", file=sys.stderr, flush=True)
