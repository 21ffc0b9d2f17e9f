"""TCP servers in the test's own event loop, for words that no HTTP server would say."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


@contextlib.asynccontextmanager
async def tcp_server(serve: Serve, tls: ssl.SSLContext | None = None, limit: int = 2**16) -> AsyncIterator[int]:
    """Have *serve* talk with each client, and yield the port.

    A client that leaves ends it. In the end what still talks is cancelled and all connections are closed, and what went
    wrong in *serve* is raised: an event loop that ends would leave open what has not seen yet that its client is gone.
    """
    talks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            await serve(reader, writer)
        writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks[asyncio.create_task(talk(reader, writer))] = writer

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls, limit=limit)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.sleep(0.01)  # a connection that was just taken is told some rounds later
        for task, writer in talks.items():
            task.cancel()
            writer.transport.abort()
        results = await asyncio.gather(*talks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
