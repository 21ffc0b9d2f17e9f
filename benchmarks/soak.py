"""Many streams at once through `asgi-session-pin serve`: nothing is lost, and nothing is left.

    python benchmarks/soak.py [--streams 1000] [--seconds 60] [--every 1]

Each client asks for one stream, half of them with a session of their own, and the upstream says an event *every* so
many seconds. The clients see that all events come, in their order, and that the stream ends; afterwards the upstream
counts the connections that are still there, and of the worker there are the open files and the memory, before, during
and after. Exits with 1 if anything was lost or is left.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections import Counter
from pathlib import Path

from gateway import free_port, running
from gateway import gateway as serve_command

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
BODY = b'{"model": "auto", "stream": true}'


class Upstream:
    """Says numbered events to each request, and counts its connections."""

    def __init__(self, count: int, every: float) -> None:
        self._count = count
        self._every = every
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0))
                writer.write(HEAD)
                for number in range(self._count):
                    event = b'data: {"model": "large", "number": %d}\n\n' % number
                    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                    await writer.drain()
                    await asyncio.sleep(self._every)
                writer.write(b"0\r\n\r\n")
        self.connections -= 1
        writer.close()


async def ask(port: int, number: int, count: int) -> str:
    """Ask for a stream, and return how it went."""
    await asyncio.sleep(number / 500)  # so many come in a second
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        session = b"X-Session-Id: session-%d\r\n" % number if number % 2 else b""
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" + session
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        if not (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 "):
            return "refused"
        events = b""
        while size := int(await reader.readline(), 16):
            events += (await reader.readexactly(size + 2))[:-2]
        writer.close()
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        return type(error).__name__
    expected = b"".join(b'data: {"model": "large", "number": %d}\n\n' % number for number in range(count))
    return "whole" if events == expected else "other events"


def look(worker: int) -> tuple[int, float]:
    """Return a process's open files and its memory in MB."""
    pages = int(Path(f"/proc/{worker}/statm").read_text().split()[1])
    return len(os.listdir(f"/proc/{worker}/fd")), pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def worker_of(pid: int) -> int:
    """Return the one worker of a supervisor."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes())


async def soak(streams: int, seconds: float, every: float) -> bool:
    """Run them, print what happened, and return whether all is well."""
    count = max(1, round(seconds / every))
    upstream = Upstream(count, every)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, backlog=streams)
    port = free_port()
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with running(port, *serve_command(port, address)) as pid:
        worker = worker_of(pid)
        before = look(worker)
        began = time.monotonic()
        asking = asyncio.gather(*(ask(port, number, count) for number in range(streams)))
        await asyncio.sleep(streams / 500 + seconds / 2)
        most, during = upstream.connections, look(worker)
        results = Counter(await asking)
        took = time.monotonic() - began
        await asyncio.sleep(5)  # `gateway.keepalive_seconds` and one more, and some for a busy machine
        after = look(worker)
    print(f"{streams} streams of {count} events in {took:.0f} s, {most} at once: {dict(results)}")
    for name, (files, memory) in {"before": before, "during": during, "after": after}.items():
        print(f"  {name:<8}{files:6} open files {memory:8.1f} MB")
    print(f"  connections to the upstream that are left: {upstream.connections}")
    return results == {"whole": streams} and upstream.connections == 0 and after[0] <= before[0] + 1


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--every", type=float, default=1)
    chosen = parser.parse_args()
    return 0 if asyncio.run(soak(chosen.streams, chosen.seconds, chosen.every)) else 1


if __name__ == "__main__":
    sys.exit(main())
