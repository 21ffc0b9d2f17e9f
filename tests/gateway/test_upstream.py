"""The gateway behind the reverse proxy: is it there, and whom does one trust?"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from asgi_driver import Answer, body_messages, http_scope, receive_from
from asgi_session_pin import ConfigError, Gateway
from asgi_session_pin.gateway.connections import Connector
from asgi_session_pin.gateway.proxy import ReverseProxy, create_gateway
from behaviour_document import Section, case
from servers import free_port
from tcp_servers import tcp_server


class Server:
    """Answers each request with a head of its own, and counts them."""

    def __init__(self, status: int = 200, tls: ssl.SSLContext | None = None) -> None:
        self.heads: list[bytes] = []
        self.status = status
        self.tls = tls

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        async with tcp_server(self._serve, tls=self.tls) as port:
            yield f"https://localhost:{port}" if self.tls else f"http://127.0.0.1:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % self.status)
        await writer.drain()


async def get(proxy: ReverseProxy, path: str, method: str = "GET") -> Answer:
    answer = Answer()

    async def send(message: object) -> None:
        answer.messages.append(message)  # type: ignore[arg-type]

    await proxy(http_scope(path=path, method=method), receive_from(body_messages(b""), asyncio.Event()), send)
    return answer


@case(
    Section.GATEWAY,
    "`/-/session-pin/readyz`",
    "200 if the upstream answers over its own protocol, whatever it says, else 503; it is asked once a second at most",
)
@pytest.mark.parametrize("status", [200, 404, 503])
async def test_readiness_is_an_answer_of_the_upstream_and_asked_once_a_second(status: int) -> None:
    now = 100.0
    server = Server(status)
    async with server.running() as url:
        proxy = ReverseProxy(f"{url}/base", clock=lambda: now)
        assert await asyncio.gather(*(proxy.is_ready() for _ in range(5))) == [True] * 5
        assert [head.split(b"\r\n")[0] for head in server.heads] == [b"HEAD /base HTTP/1.1"]
        now += 0.9
        assert await proxy.is_ready()
        assert len(server.heads) == 1
        now += 0.2
        assert await proxy.is_ready()
        assert len(server.heads) == 2
    now += 1
    assert not await proxy.is_ready()
    await proxy.aclose()


async def test_an_open_port_that_says_nothing_is_not_ready() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with tcp_server(serve) as port:
        proxy = ReverseProxy(f"http://127.0.0.1:{port}", Gateway(connect_timeout_seconds=0.1))
        assert not await proxy.is_ready()
        await proxy.aclose()


@case(
    Section.GATEWAY,
    "the upstream's certificate is of an authority that neither the system nor SSL_CERT_FILE nor `gateway.ca_file` has",
    "502, and not ready",
)
@pytest.mark.parametrize("how", ["ca_file", "SSL_CERT_FILE", "not at all"])
async def test_authorities_are_the_systems_and_those_of_the_file(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, file = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    if how == "SSL_CERT_FILE":
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
    settings = Gateway(ca_file=str(file)) if how == "ca_file" else Gateway()
    async with Server(tls=context).running() as url:
        proxy = ReverseProxy(url, settings)
        found = await proxy.is_ready(), (await get(proxy, "/v1/models")).start["status"]
        await proxy.aclose()
    assert found == ((False, 502) if how == "not at all" else (True, 200))


def test_a_ca_file_that_cannot_be_used_fails_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"gateway\.ca_file: found '.*ca\.pem', which can't be read, expected"):
            create_gateway("http://host", {"gateway": {"ca_file": str(file)}})
        file.write_text("no certificate")


async def test_a_switch_of_protocols_that_nobody_asked_for_is_no_answer() -> None:
    async with Server(101).running() as url:
        proxy = ReverseProxy(url)
        assert (await get(proxy, "/")).start["status"] == 502
        await proxy.aclose()


def test_connections_are_made_anew_in_another_event_loop() -> None:
    async def ask(proxy: ReverseProxy) -> int:
        async with Server().running() as url:
            assert url
            return int((await get(proxy, "/")).start["status"])

    async def close(proxy: ReverseProxy) -> None:
        await proxy.aclose()
        await proxy.aclose()

    proxy = ReverseProxy(f"http://127.0.0.1:{free_port()}")
    assert [asyncio.run(ask(proxy)) for _ in range(2)] == [502, 502]
    asyncio.run(close(proxy))
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(ask(proxy)) == 502
    asyncio.run(close(proxy))  # not in that one's place
    loop.run_until_complete(close(proxy))
    loop.close()


def test_requests_that_are_the_first_ones_of_an_event_loop_share_its_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Connector] = []
    closed: list[Connector] = []
    make, close = Connector.__init__, Connector.close

    def remember(self: Connector, *arguments: Any, **options: Any) -> None:
        made.append(self)
        make(self, *arguments, **options)

    async def close_slowly(self: Connector, **options: Any) -> None:
        await asyncio.sleep(0)
        closed.append(self)
        await close(self, **options)

    async def ask_twice() -> None:
        answers = await asyncio.gather(get(proxy, "/"), get(proxy, "/"))
        assert [answer.start["status"] for answer in answers] == [502, 502]

    async def ask_twice_and_close() -> None:
        await ask_twice()
        await proxy.aclose()

    monkeypatch.setattr(Connector, "__init__", remember)
    monkeypatch.setattr(Connector, "close", close_slowly)
    proxy = ReverseProxy(f"http://127.0.0.1:{free_port()}")
    asyncio.run(ask_twice())
    asyncio.run(ask_twice_and_close())
    assert len(made) == 2
    assert closed == made
