"""The sockets that `serve` listens on, bound before there are workers, which share them."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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


@contextlib.contextmanager
def bind_unix(path: str) -> Iterator[list[socket.socket]]:
    """Bind a socket file, which is gone in the end. Raises OSError.

    The file of a server that is dead is replaced; that of one that lives, and any other file, is not. Whoever reaches
    the folder may connect, as with uvicorn.
    """
    if os.path.lexists(path):
        _remove_dead(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        os.chmod(path, 0o666)  # noqa: S103 # a proxy in front is another user
        listener.listen(1024)  # or another server would take it for dead until the workers listen
        yield [listener]
    with contextlib.suppress(OSError):  # it is gone, or another server has come meanwhile
        _remove_dead(path)


def _remove_dead(path: str) -> None:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        else:
            raise OSError(errno.EADDRINUSE, "another server listens there")
