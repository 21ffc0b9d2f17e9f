"""A worker process of `asgi-session-pin serve`: uvicorn on sockets that are bound already, led by a supervisor."""

import asyncio
import contextlib
import importlib
import signal
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection
from typing import Any

import uvicorn

from ..config import Config
from .logs import AccessLog, Logs, quieten_uvicorn, set_up_logging
from .proxy import create_gateway
from .server_protocol import ServerProtocol
from .silent_clients import SilentClients
from .websocket import MAX_MESSAGE_BYTES

_TICKS_A_SECOND = 10  # of uvicorn's main loop


@dataclass(frozen=True)
class Certificate:
    """The files (PEM) of a chain and its key, which may be in the same one. Each new worker reads them."""

    file: str
    key_file: str | None = None

    def check(self) -> None:
        """Raise ValueError for what can't be used."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.file, self.key_file, password="")
        except OSError as error:  # ssl.SSLError is one
            found = self.file if self.key_file is None else f"{self.file} and {self.key_file}"
            reason = getattr(error, "reason", None) or error.strerror
            raise ValueError(
                f"ssl-certfile: found {found}, which can't be used ({reason}), expected files (PEM) of a certificate "
                "and of its key, without a password"
            ) from error


@dataclass(frozen=True, eq=False)
class Service:
    """What a worker serves, with the settings as they were read: whoever starts it anew starts the same."""

    upstream: str
    config: Config
    logs: Logs
    certificate: Certificate | None = None


@dataclass(frozen=True)
class Limits:
    """How long what a worker does may take, in seconds; the last three count from the order to stop."""

    start: float = 60
    handshakes: float = 5  # of TLS, which go on when the settings change
    retired: float = 3600  # of streams that were there when the settings changed
    uploads: float = 10
    streams: float = 25
    stop: float = 28  # and up to a second more, until that is seen


class Order(Enum):
    """What a supervisor tells a worker."""

    RETIRE = "accept nothing new, and end with the last connection"
    STOP = "end within the limits"


READY = "ready"


def run_worker(
    service: Service,
    limits: Limits,
    sockets: list[socket.socket],
    supervisor: "Connection[object, Order]",
    figures: str | None = None,
    number: int = 0,
) -> None:
    """Serve on *sockets* until the supervisor says otherwise, or is gone.

    *figures* is the folder in which all workers count for their metrics, each under a *number* of its own.
    """
    # Both go to the whole group, where a terminal is closed and by Ctrl+C. uvicorn follows the latter, and raises it
    # once more at its end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(AttributeError):  # Windows has no such signal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    set_up_logging(service.logs)
    if figures is not None and service.config.admin.token is not None and service.config.admin.metrics:
        with contextlib.suppress(ImportError):
            importlib.import_module("asgi_session_pin.operate.metrics").share(figures, number)
    gateway = create_gateway(service.upstream, service.config)
    tls: dict[str, Any] = {}
    if service.certificate is not None:
        tls = {"ssl_certfile": service.certificate.file, "ssl_keyfile": service.certificate.key_file}
    # The upstream's `server` and `date` go through as they are. Who the client is, the proxy writes down itself.
    config = uvicorn.Config(
        AccessLog(gateway) if service.logs.access else gateway,
        http=ServerProtocol,
        **tls,
        log_config=None,
        log_level=service.logs.level,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_ping_timeout=None,  # clients that run a tool may not answer for long
        ws_per_message_deflate=False,
        timeout_keep_alive=service.config.gateway.client_keepalive_seconds,  # type: ignore[arg-type] # as below
        timeout_graceful_shutdown=limits.streams,  # type: ignore[arg-type] # it goes to asyncio as it is
    )
    quieten_uvicorn()
    _Server(config, limits, supervisor).run(sockets)


class _Server(uvicorn.Server):
    """Says when it serves, and follows the orders of its supervisor."""

    def __init__(self, config: uvicorn.Config, limits: Limits, supervisor: "Connection[object, Order]") -> None:
        super().__init__(config)
        self._limits = limits
        self._supervisor = supervisor
        self._order: Order | None = None
        self._stays_until = 0.0  # at least, on the event loop's clock
        self._silent = SilentClients()

    async def main_loop(self) -> None:
        """Serve, having told the supervisor so."""
        with contextlib.suppress(OSError):  # `on_tick` sees that it is gone
            self._supervisor.send(READY)
        await super().main_loop()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to shut down. uvicorn asks ten times a second."""
        is_idle = not self.server_state.connections and asyncio.get_running_loop().time() >= self._stays_until
        is_done = self._order is Order.RETIRE and is_idle  # before the order is read: no connection was just accepted
        try:
            while self._order is not Order.STOP and self._supervisor.poll():
                self._follow(self._supervisor.recv())
        except (EOFError, OSError):
            self._follow(Order.STOP)
        if counter % _TICKS_A_SECOND == 0:
            self._silent.drop(self._connections())
        if self._order is Order.RETIRE:
            for connection in self._connections():
                connection.retire()
        return await super().on_tick(counter) or self._order is Order.STOP or is_done

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what runs within the limits."""
        cutting = asyncio.get_running_loop().call_later(self._limits.uploads, self._cut_uploads)
        await super().shutdown(sockets)
        cutting.cancel()

    def _follow(self, order: Order) -> None:
        self._order = order
        if order is Order.RETIRE:
            for server in self.servers:
                server.close()
            if self.config.is_ssl:  # whoever is in a handshake is no connection yet
                self._stays_until = asyncio.get_running_loop().time() + self._limits.handshakes

    def _cut_uploads(self) -> None:
        for connection in self._connections():
            if getattr(connection.cycle, "more_body", False):  # without a request there is no cycle
                connection.transport.abort()

    def _connections(self) -> Sequence[ServerProtocol]:
        return [each for each in self.server_state.connections if isinstance(each, ServerProtocol)]
