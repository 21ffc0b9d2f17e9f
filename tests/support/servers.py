"""Real servers on loopback, stopped when the test is over."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

PATIENCE = 60  # seconds until a server has to answer


def free_port() -> int:
    """Return a port that the kernel gives to no one who asks for any, for a minute.

    Tests that run at the same time take ports too. That one is held back where a connection has just been closed, and
    servers, which set SO_REUSEADDR, can still listen on it.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            listener.accept()[0].close()  # the side that closes first keeps the port
            client.recv(1)
        return port


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def wait_until_open(port: int) -> None:
    wait_until(lambda: is_open(port))


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def workers_of(pid: int) -> set[int]:
    """Return the worker processes of a supervisor that live."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children if b"spawn_main" in command_of(child)}


def command_of(pid: str) -> bytes:
    """Return the command line of a process, or nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@contextlib.contextmanager
def serve_script(script: Path) -> Iterator[str]:
    """Run `python SCRIPT PORT` as a user would, and yield its URL."""
    port = free_port()
    with subprocess.Popen([sys.executable, str(script), str(port)], stderr=subprocess.DEVNULL) as process:
        try:
            wait_until_open(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextlib.contextmanager
def serve_app(app: ASGIApp, **options: Any) -> Iterator[str]:
    """Serve *app* by uvicorn in a thread, and yield its URL."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="on", **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until_open(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    port = free_port()
    command = [sys.executable, "-m", "asgi_session_pin", "serve", "--port", str(port), *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until_open(port)
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()
