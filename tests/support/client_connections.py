"""A client's connection to uvicorn, without a socket."""

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from asgi_session_pin.gateway.server_protocol import ServerProtocol


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def connect(app: ASGIApp, http: type[asyncio.Protocol] = ServerProtocol, **options: Any) -> tuple[Any, Transport]:
    """Return a new connection of a client, to be closed by `connection_lost`, and where its answers are written."""
    options = {"ws": "none", "lifespan": "off", "log_level": "critical", "proxy_headers": False, **options}
    config = uvicorn.Config(app, http=http, **options)
    config.load()
    make: Any = config.http_protocol_class
    connection, transport = make(config, uvicorn.Server(config).server_state, {}), Transport()
    connection.connection_made(transport)
    return connection, transport


async def settle() -> None:
    """Let the apps go as far as they can, if they wait for nothing but what they got."""
    for _ in range(20):
        await asyncio.sleep(0)
