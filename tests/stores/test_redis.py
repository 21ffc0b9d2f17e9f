"""What is the Redis store's own: its keys and values, its URLs and clients."""

import asyncio
import logging
import ssl
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import trustme
from redis import Redis as SyncRedis
from redis import exceptions
from redis.asyncio import Redis

from asgi_driver import DECISION, Clock, Gateway, call, until
from asgi_session_pin import Config, Lapsed, Pin, SessionPinMiddleware, Store
from asgi_session_pin.stores.redis import RedisStore
from delaying_proxy import delaying_proxy
from redis_servers import RedisServer, redis_server

KEY = bytes(range(16))
PIN_NAME = f"session-pin:1:{{{KEY.hex()}}}"
A = Pin("model-a", 1.0)
B = Pin("model-b", 2.0)
TOKEN = b"token"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


async def read_all(url: str) -> dict[bytes, Any]:
    async with Redis.from_url(url) as client:
        return {name: await client.get(name) async for name in client.scan_iter()}


@pytest.mark.parametrize(
    ("sliding", "tool_loop_seconds", "command"),
    [(True, 0, "getex"), (False, 0, "get"), (True, 60, "getex"), (False, 60, "get")],
)
async def test_a_hit_is_one_plain_command(
    server: RedisServer, sliding: bool, tool_loop_seconds: float, command: str
) -> None:
    async with aclosing(RedisStore(server.url, sliding=sliding, tool_loop_seconds=tool_loop_seconds)) as store:
        await store.add(KEY, A)
        before, sent = server.calls_of("total"), server.calls_of(command)
        for _ in range(100):
            assert await store.get(KEY) == A
        assert server.calls_of("total") - before < 120  # the test asks too
        assert server.calls_of(command) - sent == 100


@pytest.mark.parametrize(("sliding", "command"), [(True, "getex"), (False, "get")])
async def test_a_process_asks_only_at_its_first_look_whether_a_pin_has_lapsed(
    server: RedisServer, sliding: bool, command: str
) -> None:
    clock = Clock()
    times: dict[str, Any] = {"sliding": sliding, "ttl_seconds": 600, "timer": clock}
    async with aclosing(RedisStore(server.url, **times)) as one, aclosing(RedisStore(server.url, **times)) as other:
        await one.add(KEY, A)
        assert await other.get(KEY) == A
        before = server.calls_of("evalsha"), server.calls_of(command)
        for _ in range(10):
            assert await other.get(KEY) == A
        assert (server.calls_of("evalsha"), server.calls_of(command)) == (before[0], before[1] + 10)
        await clock.wait(600)
        assert await other.get(KEY) == A  # another process may have used it meanwhile
        assert server.calls_of("evalsha") == before[0] + 1


async def test_a_use_that_failed_is_none(server: RedisServer) -> None:
    clock = Clock()
    async with aclosing(RedisStore(server.url, ttl_seconds=10, tool_loop_seconds=40, timer=clock)) as store:
        await store.add(KEY, A)
        await clock.wait(6)
        server.call("ACL", "SETUSER", "default", "-getex")
        with pytest.raises(exceptions.NoPermissionError):
            await store.get(KEY)
        server.call("ACL", "SETUSER", "default", "+getex")
        await clock.wait(6)
        server.call("PEXPIRE", PIN_NAME, 38_000)
        found = await store.get(KEY)
        assert isinstance(found, Lapsed)
        assert 2 <= found.overdue_seconds < 20


async def test_a_pin_lapses_in_the_server_and_use_renews_it(server: RedisServer) -> None:
    async with aclosing(RedisStore(server.url, ttl_seconds=0.02, tool_loop_seconds=0.03)) as store:
        await store.add(KEY, A)
        server.wait_for("0", "DBSIZE")
        assert await store.get(KEY) is None
    async with aclosing(RedisStore(server.url, ttl_seconds=90, tool_loop_seconds=0.5)) as store:
        await store.add(KEY, A)
        server.call("PEXPIRE", PIN_NAME, 1000)
        assert await store.get(KEY) == A
        assert 80_000 < server.call("PTTL", PIN_NAME) <= 90_500


async def test_nothing_in_redis_can_be_read_but_the_model(server: RedisServer) -> None:
    secrets = ["the-session-of-alice", "sk-secret-key", "what is the plan"]
    headers = [(b"x-session-id", secrets[0].encode()), (b"authorization", b"Bearer " + secrets[1].encode())]
    request = {"model": "auto", "messages": [{"role": "user", "content": secrets[2]}]}
    store = RedisStore(server.url)
    config = Config(store=Store(timeout_seconds=30))
    async with aclosing(SessionPinMiddleware(Gateway("model-a", "model-b"), store=store, config=config)) as app:
        assert [(await call(app, request, *headers)).pin_status for _ in range(2)] == ["miss", "hit"]
        assert (await call(app, {"model": "other"}, *headers, path=DECISION)).pin_status == "miss"
        assert await store.claim(KEY, TOKEN, 60) is True
        await until(lambda: server.call("DBSIZE") == 3)  # the middleware has given its own claims back
    content = await read_all(server.url)
    assert len(content) == 3
    assert {name.rpartition(b":")[0] for name in content} == {b"session-pin:1", b"session-pin:1:claim"}
    assert any(b"model-a" in value for value in content.values())
    assert not any(secret.encode() in name + value for secret in secrets for name, value in content.items())


NO_PINS = [
    b"",
    b"5",
    b"a secret of another program",
    b"\x82\xa5model\x01",
    b"\x82\xa5model\xa5a b c\xa7created\xcb" + b"\0" * 8,
    b"\x82\xa5model\xa1a\xa7created\xcb" + b"\xff" * 8,
]


@pytest.mark.parametrize("value", NO_PINS)
async def test_a_value_that_is_no_pin_stands_in_nobodys_way(
    server: RedisServer, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with aclosing(RedisStore(server.url)) as store, Redis.from_url(server.url) as client:
        await client.set(PIN_NAME, value)
        assert await store.get(KEY) is None
        assert await client.exists(PIN_NAME) == 0
        await client.set(PIN_NAME, value)
        assert await store.add(KEY, A) == A
        assert await store.get(KEY) == A
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().startswith("a key of <RedisStore ")
    assert "secret" not in caplog.text


async def test_a_value_of_another_type_stands_in_nobodys_way(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    for sliding in (True, False):
        async with aclosing(RedisStore(server.url, sliding=sliding)) as store:
            server.call("RPUSH", PIN_NAME, "a secret of another program")
            assert await store.get(KEY) is None
            assert server.call("EXISTS", PIN_NAME) == 0
            server.call("HSET", PIN_NAME, "a", "b")
            assert await store.add(KEY, A) == A
            assert await store.get(KEY) == A
            assert await store.discard(KEY, A) is True
    assert len(caplog.messages) == 2, "once for each store"
    assert "secret" not in caplog.text


async def test_a_value_that_is_no_pin_and_must_not_be_deleted_is_a_miss(server: RedisServer) -> None:
    server.call("ACL", "SETUSER", "ann", "on", ">hunter2", "~session-pin:*", "+getex", "+pttl", "+eval", "+evalsha")
    server.call("SET", PIN_NAME, "another program's")
    async with aclosing(RedisStore(f"redis://ann:hunter2@127.0.0.1:{server.port}")) as store:
        assert await store.get(KEY) is None
    assert server.call("EXISTS", PIN_NAME) == 1


class Overtaken(Redis):
    """A client that is told of a value only when another process has put a pin in its place."""

    async def execute_command(self, *command: Any, **options: Any) -> Any:
        execute: Any = super().execute_command
        answer = await execute(*command, **options)
        if command[0] == "EVAL" and "GETEX" in command[1]:
            await execute("SET", PIN_NAME, A.encode())
        return answer


async def test_what_took_the_place_of_a_value_that_is_no_pin_is_not_deleted(server: RedisServer) -> None:
    server.call("SET", PIN_NAME, "another program's")
    async with Overtaken.from_url(server.url) as client:
        assert await RedisStore(client).get(KEY) is None
        assert await client.get(PIN_NAME) == A.encode()


async def test_a_claim_whose_answer_is_lost_is_still_its_owners(server: RedisServer) -> None:
    with delaying_proxy(server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        async with aclosing(RedisStore(url)) as store, aclosing(RedisStore(server.url)) as other:
            await store.get(KEY)
            proxy.seconds = 3600
            claim = asyncio.create_task(store.claim(KEY, TOKEN, 60))
            await asyncio.to_thread(server.wait_for, "'cmdstat_set'", "INFO", "commandstats")
            proxy.seconds = 0
            proxy.cut()
            assert await claim is True
            assert await other.claim(KEY, b"other token", 60) is False
            await store.release(KEY, TOKEN)
            assert await other.claim(KEY, b"other token", 60) is True


async def test_the_url_names_user_and_database(server: RedisServer) -> None:
    commands = ("+getex", "+set", "+get", "+del", "+pttl", "+eval", "+evalsha")
    server.call("ACL", "SETUSER", "ann", "on", ">p@ss/#", "~session-pin:*", *commands)
    async with aclosing(RedisStore(f"redis://ann:p%40ss%2F%23@127.0.0.1:{server.port}")) as store:
        assert await store.add(KEY, A) == A
        assert await store.add(KEY, B) == A
        assert await store.get(KEY) == A
        assert await store.claim(KEY, TOKEN, 60) is True
        await store.release(KEY, TOKEN)
        assert await store.discard(KEY, A) is True
    async with aclosing(RedisStore(f"redis://127.0.0.1:{server.port}/3")) as store:
        await store.add(KEY, A)
    assert await read_all(f"redis://127.0.0.1:{server.port}/3")
    assert not await read_all(server.url)


async def test_a_unix_socket_will_do(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis_server(tmp_path, "--unixsocket", str(path)):
        async with aclosing(RedisStore(f"unix://{path}?db=1")) as store:
            assert await store.add(KEY, A) == A
            assert repr(store) == f"<RedisStore unix://{path}/1>"


async def test_tls_is_checked(server: RedisServer, tmp_path: Path) -> None:
    authority, certificates = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(certificates))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with delaying_proxy(server.port, context) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}"
        async with aclosing(RedisStore(f"{url}?ssl_ca_certs={certificates}")) as store:
            assert await store.add(KEY, A) == A
            assert await store.get(KEY) == A
        async with aclosing(RedisStore(url)) as store:
            with pytest.raises(exceptions.ConnectionError, match=f"^rediss://127.0.0.1:{proxy.port}/0$"):
                await store.get(KEY)


URLS = [
    "http://ann:hunter2@host",
    "ann:hunter2@host:6379",
    "redis://ann:hunter2@host:port",
    "redis://ann:hunter2@host:99999",
    "redis://:hunter2/3@host",
    "redis://:6379/hunter2@host",
    "redis://:6379#hunter2@host",
    "redis://host?password=hunter2#hunter2",
    "redis://:6379?hunter2@host",
    "redis://ann:hunter2@[host",
    "redis://ann@host?password=hunter2&colour=hunter2",
    "redis://ann@host?db=hunter2",
    "redis://ann@host?max_connections=-1&password=hunter2",
    "redis://ann@host?retry=hunter2",
    "rediss://ann@host?ssl_cert_reqs=hunter2",
    "redis://ann:hunter2@host?decode_responses=True",
    "redis://ann:hunter2@host?decode_responses=False",  # redis-py takes the text for true
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_that_cannot_be_used_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r"^a Redis URL can't be used: ") as caught:
        RedisStore(url)
    assert "hunter2" not in str(caught.value)
    assert "ann" not in str(caught.value).replace("can", "")
    assert caught.value.__context__ is None


def test_the_representation_shows_no_credentials() -> None:
    shown = repr(RedisStore("rediss://ann:hunter2@host:6380/2?ssl_keyfile=hunter2&client_name=hunter2"))
    assert shown == "<RedisStore rediss://host:6380/2>"
    assert repr(RedisStore("redis://")) == "<RedisStore redis://localhost:6379/0>"
    assert repr(RedisStore(Redis(password="hunter2"))) == "<RedisStore Redis>"


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_time_to_live_is_a_positive_number(seconds: float) -> None:
    with pytest.raises(ValueError, match="expected a positive number"):
        RedisStore("redis://", ttl_seconds=seconds)


def test_a_client_has_to_be_one_of_asyncio_that_leaves_bytes_alone() -> None:
    with pytest.raises(ValueError, match="decode_responses=True can't be used"):
        RedisStore(Redis(decode_responses=True))
    for client in (SyncRedis(), None):
        with pytest.raises(TypeError, match=r"expected a URL or a client of redis\.asyncio"):
            RedisStore(client)  # type: ignore[arg-type]


async def test_a_client_that_is_given_is_its_owners_to_close(shared_redis: RedisServer) -> None:
    async with Redis.from_url(shared_redis.url) as client:
        store = RedisStore(client, prefix="given:")
        await store.add(KEY, A)
        [before] = await client.client_list(_type="normal")
        await store.aclose()
        assert await store.get(KEY) == A
        [after] = await client.client_list(_type="normal")
        assert after["id"] == before["id"]


async def test_a_server_that_has_lost_its_scripts_is_given_them_again(server: RedisServer) -> None:
    async with aclosing(RedisStore(server.url)) as store:
        await store.add(KEY, A)
        for _ in range(2):
            assert await store.get(KEY) == A
            server.call("SCRIPT", "FLUSH")
        assert await asyncio.gather(*(store.get(KEY) for _ in range(50))) == [A] * 50
        before = server.calls_of("eval")
        assert await store.get(KEY) == A
        assert server.calls_of("eval") == before, "the text of a script is sent once"


async def test_a_place_that_no_listing_has_is_refused_before_the_server_is_asked() -> None:
    store = RedisStore("redis://127.0.0.1:1/0")
    for place in ("x", "", "/", "other/0"):
        with pytest.raises(ValueError, match="no place of a listing"):
            await store.scan(place, 10)
    await store.aclose()
