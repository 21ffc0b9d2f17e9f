"""The sockets that `serve` listens on."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from asgi_session_pin.gateway.listeners import bind, bind_unix
from behaviour_document import Section, case


def test_it_listens_on_all_addresses_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    tcp = socket.SOCK_STREAM, socket.IPPROTO_TCP, ""
    v6 = (socket.AF_INET6, *tcp, ("2001:db8::1", 0))  # for documentation: nobody has them
    v4 = (socket.AF_INET, *tcp, ("192.0.2.1", 0))
    here = (socket.AF_INET, *tcp, ("127.0.0.1", 0))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [v6, v4, here])
    (listener,) = bind("name", 0)
    with listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [v6, v4])
    with pytest.raises(OSError, match=r"assign requested address|not supported"):
        bind("name", 0)


async def test_chunks_do_not_wait_for_acknowledgements() -> None:
    accepted: asyncio.Queue[int] = asyncio.Queue()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        accepted.put_nowait(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    (listener,) = bind("127.0.0.1", 0)
    async with await asyncio.start_server(accept, sock=listener):
        _, client = await asyncio.open_connection(*listener.getsockname())
        assert await accepted.get() != 0
        client.close()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A short one: longer than 107 bytes none may be."""
    monkeypatch.chdir(tmp_path)
    return "pin.sock"


def test_a_socket_file_is_there_for_all_who_reach_it_and_goes_in_the_end(path: str) -> None:
    with bind_unix(path) as (listener,):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            listener.accept()[0].close()
        assert os.stat(path).st_mode & 0o777 == 0o666
    assert not os.path.exists(path)


@case(Section.GATEWAY, "there is a file at `--uds`", "a dead server's socket is replaced; anything else is refused")
def test_a_dead_servers_file_is_replaced_and_no_other(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with bind_unix(path):
        with pytest.raises(OSError, match="another server listens there") as raised, bind_unix(path):
            pass
        assert raised.value.errno == errno.EADDRINUSE
    makers: list[Callable[[], object]] = [Path(path).touch, Path(path).mkdir, lambda: Path(path).symlink_to("no")]
    for make in makers:
        make()
        with pytest.raises(FileExistsError, match="there is a file that is no socket"), bind_unix(path):
            pass
        assert os.path.lexists(path)
        (Path(path).rmdir if Path(path).is_dir() else Path(path).unlink)()


def test_the_file_of_a_server_that_came_meanwhile_stays(path: str) -> None:
    with ExitStack() as following:
        with bind_unix(path) as (listener,):
            listener.close()
            following.enter_context(bind_unix(path))
        assert os.path.exists(path)
    assert not os.path.exists(path)


def test_a_file_that_cannot_be_made_leaves_nothing(path: str) -> None:
    with pytest.raises(FileNotFoundError), bind_unix(f"missing/{path}"):
        pass
