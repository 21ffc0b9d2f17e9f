"""Redis URLs: where they lead, what is refused, and what is told of the nodes that they list."""

import asyncio
import gc
from contextlib import aclosing
from pathlib import Path

import pytest
from redis import exceptions

from asgi_session_pin import Pin
from asgi_session_pin.stores.redis import RedisStore
from redis_servers import (
    LEAVES_CONNECTIONS,
    SERVICE,
    Cluster,
    RedisServer,
    Sentinels,
    redis_cluster,
    redis_sentinels,
    redis_server,
)
from servers import free_port

KEYS = [number.to_bytes(16, "big") for number in range(100)]
KEY = KEYS[0]
A = Pin("model-a", 1.0)

pytestmark = LEAVES_CONNECTIONS


async def use(url: str) -> list[Pin]:
    """Add pins of many keys at once with a store that is new."""
    async with aclosing(RedisStore(url, prefix=f"{url}:")) as store:
        return await asyncio.gather(*(store.add(key, A) for key in KEYS))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis+sentinel://h1:26379,h2:26380/pins/2", "redis+sentinel://h1:26379,h2:26380/pins/2"),
        ("rediss+sentinel://ann:pw@h1/pins?client_name=x", "rediss+sentinel://h1:26379/pins/0"),
        ("redis+sentinel://:p%2Cw@[::1]:5,h2/a%20b", "redis+sentinel://[::1]:5,h2:26379/a b/0"),
        ("redis+sentinel://h1/pins?sentinel_username=bob&sentinel_password=pw", "redis+sentinel://h1:26379/pins/0"),
        ("redis+cluster://h1:7000,h2:7001", "redis+cluster://h1:7000,h2:7001"),
        ("redis+cluster://ann:pw@h1/0?socket_timeout=2&max_connections=5", "redis+cluster://h1:6379"),
        ("rediss+cluster://ann:pw@[::1]:5/?ssl_check_hostname=False", "rediss+cluster://[::1]:5"),
    ],
)
async def test_a_url_may_list_several_nodes_and_is_shown_without_credentials(url: str, shown: str) -> None:
    async with aclosing(RedisStore(url)) as store:
        assert repr(store) == f"<RedisStore {shown}>"


@pytest.mark.parametrize(
    "rest",
    [
        "sentinel://ann:hunter2@h1:26379",
        "sentinel://ann:hunter2@h1:26379/",
        "sentinel://ann:hunter2@h1:26379,/pins",
        "sentinel://ann:hunter2@h1:port/pins",
        "sentinel://ann:hunter2@h1/pins/hunter2",
        "sentinel://ann:hunter2@h1/pins?sentinel_colour=hunter2",
        "sentinel://ann:hunter2@h1/pins?colour=hunter2",
        "sentinel://ann:hunter2@h1/pins?decode_responses=True",
        "sentinel://:hunter2/3@h1/pins",
        "cluster://ann:hunter2@",
        "cluster://ann:hunter2@h1:7000,",
        "cluster://ann:hunter2@h1:7000/1",
        "cluster://ann:hunter2@h1:7000?read_from_replicas=True",
        "cluster://ann:hunter2@h1:7000?colour=hunter2",
        "cluster://:hunter2#@h1",
        "server://ann:hunter2@h1",
    ],
)
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_url_that_cannot_be_used_is_refused_with_the_form_of_its_kind(scheme: str, rest: str) -> None:
    form = rf"redis\+{rest.partition(':')[0]}://USER:PASSWORD@HOST:PORT,HOST:PORT"
    if rest.startswith("server"):
        form = "redis://USER:PASSWORD@HOST:PORT/DB"
    with pytest.raises(ValueError, match=f"^a Redis URL can't be used: expected {form}") as caught:
        RedisStore(f"{scheme}+{rest}")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


async def test_a_burst_of_first_calls_finds_all_nodes_of_a_cluster(shared_cluster: Cluster) -> None:
    assert await use(shared_cluster.url) == [A] * len(KEYS)
    assert await use(f"redis+cluster://127.0.0.1:{shared_cluster.masters[2].port}") == [A] * len(KEYS)


async def test_a_burst_of_first_calls_finds_the_master(shared_sentinels: Sentinels) -> None:
    assert await use(shared_sentinels.url) == [A] * len(KEYS)
    assert await use(shared_sentinels.url.replace(f"/{SERVICE}", f"/{SERVICE}/3")) == [A] * len(KEYS)
    assert "db3" in shared_sentinels.master.call("INFO", "keyspace")


async def test_nodes_that_do_not_answer_are_passed_over(
    shared_cluster: Cluster, shared_sentinels: Sentinels, shared_redis: RedisServer
) -> None:
    nobody, other = f"127.0.0.1:{free_port()}", f"127.0.0.1:{shared_redis.port}"
    assert await use(shared_sentinels.url.replace("://", f"://{nobody},")) == [A] * len(KEYS)
    assert await use(shared_cluster.url.replace("://", f"://{nobody},{other},")) == [A] * len(KEYS)


async def test_what_is_wrong_with_each_node_is_told(
    shared_cluster: Cluster, shared_sentinels: Sentinels, shared_redis: RedisServer, tmp_path: Path
) -> None:
    nobody, other = f"127.0.0.1:{free_port()}", f"127.0.0.1:{shared_redis.port}"
    sentinel, node = (f"127.0.0.1:{server.port}" for server in (*shared_sentinels.sentinels, shared_cluster.masters[0]))
    refused = "ConnectionError from ConnectionRefusedError"
    with redis_server(tmp_path, password="right") as guarded:
        locked = f"127.0.0.1:{guarded.port}"
        faults = {
            f"redis+sentinel://{sentinel}/{SERVICE}": [],
            f"redis+sentinel://{sentinel}/other": [f"{sentinel}: knows no such service"],
            f"redis+sentinel://{nobody},{other}/{SERVICE}": [f"{nobody}: {refused}", f"{other}: is no Sentinel"],
            f"redis+sentinel://{locked}/{SERVICE}": [f"{locked}: AuthenticationError"],
            f"redis+cluster://{node}": [],
            f"redis+cluster://{nobody},{other}": [f"{nobody}: {refused}", f"{other}: is no node of a Cluster"],
            f"redis+cluster://{locked}": [f"{locked}: AuthenticationError"],
            shared_redis.url: [],
        }
        for url, told in faults.items():
            async with aclosing(RedisStore(url)) as store:
                assert await store.examine_nodes() == told


async def test_a_master_that_is_down_is_told(tmp_path: Path) -> None:
    with redis_sentinels(tmp_path) as service:
        service.replica.kill()
        service.master.kill()
        [sentinel] = service.sentinels
        sentinel.wait_for("s_down", "SENTINEL", "MASTER", SERVICE)
        async with aclosing(RedisStore(service.url)) as store:
            assert await store.examine_nodes() == [f"127.0.0.1:{sentinel.port}: takes its master for down"]


async def test_sentinels_may_have_a_password_of_their_own(tmp_path: Path) -> None:
    with redis_sentinels(tmp_path, password="hunter2", sentinel_password="hunter3") as service:
        url = service.url.replace("://", "://:hunter2@")
        assert await use(f"{url}?sentinel_password=hunter3") == [A] * len(KEYS)
        with pytest.raises(exceptions.ConnectionError) as caught:
            await use(url)
    assert "hunter" not in str(caught.value)


async def test_the_nodes_of_a_cluster_may_have_a_password(tmp_path: Path) -> None:
    with redis_cluster(tmp_path, password="hunter2") as cluster:
        assert await use(cluster.url.replace("://", "://:hunter2@")) == [A] * len(KEYS)


def test_a_store_serves_one_event_loop_after_another(shared_cluster: Cluster, shared_sentinels: Sentinels) -> None:
    for url in (shared_cluster.url, shared_sentinels.url):
        store = RedisStore(url, prefix="loops:")

        async def use_and_close(store: RedisStore = store) -> None:
            async with aclosing(store):
                assert await store.get(KEY) == A

        asyncio.run(store.add(KEY, A))
        asyncio.run(store.aclose())  # there is nothing to close in this one
        asyncio.run(use_and_close())
        asyncio.run(use_and_close())
        gc.collect()
