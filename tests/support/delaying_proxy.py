"""A TCP proxy that stands for a bad network: slow, cut, or leading to another server than before."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator

from servers import PATIENCE


class DelayingProxy:
    """Forwards connections on `port` to `target_port`. What is set holds from then on, in all connections."""

    def __init__(self, target_port: int, tls: ssl.SSLContext | None) -> None:
        self.port = 0
        self.target_port = target_port
        self.seconds = 0.0
        """How long each piece of an answer takes longer. A question is never held."""
        self.rewrite = b"", b""
        """What is replaced in answers by something of the same length."""
        self._tls = tls
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        self._ready = threading.Event()

    def cut(self) -> None:
        """Break off all connections. New ones are taken."""
        self._loop.call_soon_threadsafe(self._abort)

    def stop(self) -> None:
        """Break off all connections and take no more."""
        self._loop.call_soon_threadsafe(self._stopped.set)

    def wait_until_ready(self) -> None:
        """Wait until `port` takes connections."""
        assert self._ready.wait(PATIENCE), "the proxy did not start"

    async def serve(self) -> None:
        """Serve until it is stopped."""
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopped.wait()
        server.close()
        for _ in range(5):  # what was just taken has a handler, and a connection to the target, only some rounds later
            self._abort()
            await asyncio.sleep(0.01)
        await asyncio.gather(*self._tasks)

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)  # at once: the proxy may be stopped while it connects
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            return
        self._writers.add(far_writer)
        pumps = [self._pump(reader, far_writer, delay=False), self._pump(far_reader, writer, delay=True)]
        self._tasks |= {asyncio.create_task(pump) for pump in pumps}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, delay: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if delay:
                    await self._wait(self.seconds)
                    data = data.replace(*self.rewrite)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()


@contextlib.contextmanager
def delaying_proxy(target_port: int, tls: ssl.SSLContext | None = None) -> Iterator[DelayingProxy]:
    """Run a proxy to a port of this host in a thread of its own; with *tls* it speaks TLS to its clients."""
    proxy = DelayingProxy(target_port, tls)
    thread = threading.Thread(target=lambda: asyncio.run(proxy.serve()))
    thread.start()
    proxy.wait_until_ready()
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(PATIENCE)
