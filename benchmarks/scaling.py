"""What a session costs in memory, commands and bytes, and how far one machine and a fleet go.

    python benchmarks/scaling.py [--pins 10000 100000 1000000] [--processes 1 2 4 8] [--seconds 2] [--rounds 3]

It starts a Redis and a Cluster of three of its own, on loopback. Three tables are measured, the best of some rounds:
memory for so many pins; what a hit and a first request send; the processor time of a hit with so many processes, each
with the whole middleware and 16 requests at a time. Beside the figures stands what a model of few numbers says, and by
how much that is off. The last table is that model, for fleets.
"""

import argparse
import asyncio
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, aclosing
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from overhead import CHAT, FRESH, answer_json, request_body, resident_bytes, seconds_per_request

from asgi_session_pin import Config, MemoryStore, Pin, PinStore, SessionPinMiddleware, Store
from asgi_session_pin.stores.redis import RedisStore
from asgi_session_pin.stores.sqlite import SQLiteStore
from redis_servers import BINARIES, RedisServer, redis_cluster, redis_server

BODY = request_body(1_000)
AT_A_TIME = 16  # requests in one process
SESSIONS = 200  # of one process, while it is measured
LOADING = 200  # pins that are written at a time

# What a fleet is planned with, beside what is measured.
BUSY = 0.5  # share of a Redis thread that is used: the rest is for failovers, peaks and slower machines
CALLS = 1.4  # of the store for a request, where a session has ten: five for the first, one for each of the others
SHARD_BYTES = 8e9  # of pins in one shard: a larger one takes too long to copy to a new replica
FLEETS = [(1e4, 1e2), (1e5, 1e3), (1e6, 1e4), (1e7, 1e5), (1e8, 1e5)]  # sessions that are kept, requests a second


class Speed(NamedTuple):
    """What some processes did: hits a second, and the CPU seconds of a hit in a process and in all servers."""

    hits: float
    process: float
    servers: float

    def total(self) -> float:
        return self.process + self.servers


async def fill(store: PinStore, pins: int) -> None:
    async def add(first: int) -> None:
        for number in range(first, pins, LOADING):
            await store.add(number.to_bytes(16, "big"), Pin("openai/gpt-4o", time.time()))

    async with aclosing(store):
        await asyncio.gather(*(add(first) for first in range(LOADING)))


def memory_of(kind: str, pins: int) -> float:
    """Return the bytes that so many pins take: in a process, on disk, or in all servers."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder)
        if kind == "process":
            command = [sys.executable, __file__, "--fill", str(pins)]
            return float(subprocess.run(command, capture_output=True, check=True).stdout)
        if kind == "SQLite":
            asyncio.run(fill(SQLiteStore(path / "pins.db", max_entries=pins), pins))
            return float((path / "pins.db").stat().st_size)
        url, servers = start(stack, kind, path)
        before = sum(used_memory(server) for server in servers)
        asyncio.run(fill(RedisStore(url, ttl_seconds=86_400), pins))
        return float(sum(used_memory(server) for server in servers) - before)


def start(stack: ExitStack, kind: str, path: Path) -> tuple[str, list[RedisServer]]:
    if kind == "Cluster of 3":
        cluster = stack.enter_context(redis_cluster(path))
        return cluster.url, cluster.masters
    server = stack.enter_context(redis_server(path))
    return server.url, [server]


def used_memory(server: RedisServer) -> int:
    return int(server.call("INFO", "memory")["used_memory"])


def cpu_of(server: RedisServer) -> float:
    used = server.call("INFO", "cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


async def traffic_of(server: RedisServer) -> dict[str, tuple[float, float, float]]:
    """Return the commands, and the bytes to and from the server, of a hit and of a first request."""
    found: dict[str, tuple[float, float, float]] = {}
    app = SessionPinMiddleware(answer_json, config=Config(store=Store(url=server.url, timeout_seconds=10)))
    ids = [next(FRESH) for _ in range(1000)]
    await seconds_per_request(app, 10, BODY, CHAT, [next(FRESH)])  # connects
    for name in ("first request", "hit"):
        before = server.call("INFO", "stats")
        await seconds_per_request(app, len(ids), BODY, CHAT, ids)
        await asyncio.sleep(0.2)  # claims that are given back
        after = server.call("INFO", "stats")
        names = ("total_commands_processed", "total_net_input_bytes", "total_net_output_bytes")
        commands, received, sent = ((after[name] - before[name]) / len(ids) for name in names)
        found[name] = commands, received, sent
    await app.aclose()
    return found


async def work(url: str, seconds: float) -> None:
    """Be one of several processes: make hits for so many seconds, once a line comes in, and print what was done."""
    app = SessionPinMiddleware(answer_json, config=Config(store=Store(url=url, timeout_seconds=10)))
    ids = [b"%d-" % os.getpid() + next(FRESH) for _ in range(SESSIONS)]
    await seconds_per_request(app, SESSIONS, BODY, CHAT, ids)
    print("ready", flush=True)
    sys.stdin.readline()
    used, until = time.process_time(), time.monotonic() + seconds
    hits = 0

    async def go_on() -> None:
        nonlocal hits
        while time.monotonic() < until:
            await seconds_per_request(app, 20, BODY, CHAT, ids)
            hits += 20

    await asyncio.gather(*(go_on() for _ in range(AT_A_TIME)))
    print(json.dumps([hits, time.process_time() - used]))
    await app.aclose()


def speed_of(url: str, servers: list[RedisServer], processes: int, seconds: float) -> Speed:
    command = [sys.executable, __file__, "--work", url, "--seconds", str(seconds)]
    with ExitStack() as stack:
        workers = []
        for _ in range(processes):
            pipes = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            workers.append(stack.enter_context(pipes))
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        before = sum(map(cpu_of, servers))
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        told = [json.loads(worker.communicate()[0]) for worker in workers]
    hits = sum(hits for hits, _ in told)
    return Speed(hits / seconds, sum(used for _, used in told) / hits, (sum(map(cpu_of, servers)) - before) / hits)


def show_memory(numbers: list[int]) -> dict[str, float]:
    """Print the memory for so many pins; return the bytes of one, of the largest number, by kind."""
    print("bytes a pin, of so many pins")
    print(f"{'':<16}" + "".join(f"{pins:>12,}" for pins in numbers) + f"{'foretold':>12}{'off by':>8}")
    found: dict[str, float] = {}
    for kind in ("process", "SQLite", "Redis", "Cluster of 3"):
        each = [memory_of(kind, pins) / pins for pins in numbers]
        # The model: a pin costs what it did at the number before the last.
        foretold = each[-2] if len(each) > 1 else each[-1]
        figures = "".join(f"{figure:12.0f}" for figure in each)
        print(f"{kind:<16}{figures}{foretold:12.0f}{foretold / each[-1] - 1:8.0%}", flush=True)
        found[kind] = each[-1]
    return found


def show_traffic() -> None:
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as server:
        print(f"\n{'Redis':<16}{'commands':>12}{'bytes to it':>14}{'bytes from it':>14}")
        for name, (commands, received, sent) in asyncio.run(traffic_of(server)).items():
            print(f"{name:<16}{commands:12.1f}{received:14.0f}{sent:14.0f}")


def show_speed(numbers: list[int], seconds: float, rounds: int) -> dict[str, Speed]:
    """Print what a hit takes beside the model's; return what one process does alone, by kind.

    The model: however many processes there are, a hit takes the processor time that it takes with one of them. Hits a
    second follow from it where nothing else needs the cores; here they are what was left for them.
    """
    print(f"\n{AT_A_TIME} requests at a time in each process; processor time of a hit; {os.cpu_count()} cores")
    print(f"{'':<16}{'processes':>10}{'hits/s':>10}{'µs process':>12}{'µs servers':>12}{'model':>8}{'off by':>8}")
    found: dict[str, Speed] = {}
    for kind in ("memory", "SQLite", "Redis", "Cluster of 3"):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            urls = {"memory": "memory://", "SQLite": f"sqlite:///{folder}/pins.db"}
            url, servers = (urls[kind], []) if kind in urls else start(stack, kind, Path(folder))
            for processes in numbers:
                best = min((speed_of(url, servers, processes, seconds) for _ in range(rounds)), key=Speed.total)
                model = found.setdefault(kind, best).total()
                costs = f"{best.process * 1e6:12.0f}{best.servers * 1e6:12.0f}"
                off = model / best.total() - 1
                print(f"{kind:<16}{processes:10}{best.hits:10.0f}{costs}{model * 1e6:8.0f}{off:8.0%}", flush=True)
    return found


def fleets(bytes_of_a_pin: float, hit: Speed) -> Iterator[str]:
    """Yield a row for each size: on paper, from what one pin and one hit cost here."""
    for sessions, requests in FLEETS:
        memory, calls = sessions * bytes_of_a_pin, requests * CALLS
        by_memory, by_rate = memory / SHARD_BYTES, calls * hit.servers / BUSY
        shards = max(1, math.ceil(max(by_memory, by_rate)))
        cores = requests * hit.process / BUSY
        yield f"{sessions:>14,.0f}{requests:>12,.0f}{memory / 1e9:>12.3f}{shards:>9}{cores:>12.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pins", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--fill", metavar="PINS", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return asyncio.run(work(arguments.work, arguments.seconds))
    if arguments.fill:
        before, store = resident_bytes(), MemoryStore(max_entries=arguments.fill)
        asyncio.run(fill_and_keep(store, arguments.fill))
        print(resident_bytes() - before)
        return None
    packages = ", ".join(f"{name} {version(name)}" for name in ("redis", "msgspec"))
    print(f"Python {platform.python_version()}, {packages}, {next(iter(BINARIES))}; {os.cpu_count()} cores\n")
    memory = show_memory(arguments.pins)
    show_traffic()
    speed = show_speed(arguments.processes, arguments.seconds, arguments.rounds)
    print(f"\non paper, with {BUSY:.0%} of each thread and core in use and {SHARD_BYTES / 1e9:.0f} GB of pins a shard")
    print(f"{'sessions':>14}{'requests/s':>12}{'GB of pins':>12}{'shards':>9}{'own cores':>12}")
    # What nodes of a Cluster do beside calls is not for each call: a single server tells better what that takes.
    hit = Speed(0, speed["Cluster of 3"].process, speed["Redis"].servers)
    print("\n".join(fleets(memory["Cluster of 3"], hit)))
    return None


async def fill_and_keep(store: MemoryStore, pins: int) -> None:
    for number in range(pins):
        await store.add(number.to_bytes(16, "big"), Pin("openai/gpt-4o", time.time()))


if __name__ == "__main__":
    main()
