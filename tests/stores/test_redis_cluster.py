"""The Redis store in a Redis Cluster."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from redis.asyncio import RedisCluster
from redis.exceptions import RedisClusterException

from asgi_session_pin import Lapsed, Pin
from asgi_session_pin.stores.redis import RedisStore
from delaying_proxy import delaying_proxy
from redis_servers import Cluster, redis_cluster

KEYS = [number.to_bytes(16, "big") for number in range(60)]
MOVED = bytes(range(16))  # no other test has a key in its slot


async def test_pins_are_spread_over_the_nodes(shared_cluster: Cluster) -> None:
    async with RedisCluster(host="127.0.0.1", port=shared_cluster.masters[0].port) as client:
        store = RedisStore(client, prefix="spread:")
        pins = {key: Pin(f"model-{number}", float(number)) for number, key in enumerate(KEYS)}
        for key, pin in pins.items():
            await store.add(key, pin)
        assert {key: await store.get(key) for key in KEYS} == pins
    counts = [len(node.call("KEYS", "spread:*")) for node in shared_cluster.masters]
    assert sum(counts) == len(KEYS)
    assert all(counts)


async def test_a_slot_that_moves_to_another_node_is_followed(shared_cluster: Cluster) -> None:
    async with RedisCluster(host="127.0.0.1", port=shared_cluster.masters[0].port) as client:
        store = RedisStore(client, prefix="moved:")
        pin = Pin("model-a", 1.0)
        await store.add(MOVED, pin)
        name = f"moved:1:{{{MOVED.hex()}}}"
        slot = shared_cluster.masters[0].call("CLUSTER", "KEYSLOT", name)
        [source] = [node for node in shared_cluster.masters if node.call("CLUSTER", "COUNTKEYSINSLOT", slot)]
        target = next(node for node in shared_cluster.masters if node is not source)
        identity = target.call("CLUSTER", "MYID")
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", identity)
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.call("CLUSTER", "MYID"))
        assert await store.get(MOVED) == pin
        source.call("MIGRATE", "127.0.0.1", target.port, name, 0, 5000)
        assert await store.get(MOVED) == pin  # by ASK
        assert await store.add(MOVED, Pin("model-b", 2.0)) == pin
        for node in (target, source):
            node.call("CLUSTER", "SETSLOT", slot, "NODE", identity)
        assert await store.get(MOVED) == pin  # by MOVED
        assert await store.discard(MOVED, pin) is True


async def test_where_all_nodes_are_new_those_of_the_url_are_asked_again(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    with redis_cluster(tmp_path) as before, delaying_proxy(before.masters[0].port) as proxy:
        async with aclosing(RedisStore(f"redis+cluster://127.0.0.1:{proxy.port}", prefix="anew:")) as store:
            pin = Pin("model-a", 1.0)
            await store.add(KEYS[0], pin)
            for node in before.masters:
                node.kill()
            proxy.target_port = shared_cluster.masters[0].port  # as a name does
            proxy.cut()

            async def get(key: bytes) -> Pin | Lapsed[Pin] | None:
                try:
                    return await store.get(key)
                except RedisClusterException:  # each of the nodes that it knew was tried
                    return await store.get(key)

            assert set(await asyncio.gather(*map(get, KEYS))) == {None}
            assert await store.add(KEYS[0], pin) == pin


async def test_a_listing_goes_on_where_it_was_while_its_master_is_there(shared_cluster: Cluster) -> None:
    async with aclosing(RedisStore(shared_cluster.url, prefix="listed:")) as store:
        for key in KEYS:
            await store.add(key, Pin("model-a", 1.0))
        found: list[bytes] = []
        places: list[str] = []
        entries, after = await store.scan(None, 5)
        while after is not None:
            found += [entry.key for entry in entries]
            places.append(after.partition("/")[0])
            entries, after = await store.scan(after, 5)
        found += [entry.key for entry in entries]
        assert set(found) == set(KEYS)
        assert set(places) == {f"127.0.0.1:{node.port}" for node in shared_cluster.masters}
        assert places == sorted(places)
        for place in ("0", "127.0.0.1:1/0", places[0]):
            with pytest.raises(ValueError, match="no place of a listing"):
                await store.scan(place, 5)


async def test_where_no_node_is_there_a_listing_fails_without_a_text() -> None:
    async with aclosing(RedisStore("redis+cluster://:hunter2@127.0.0.1:1")) as store:
        for listing in (store.scan(None, 5), store.count()):
            with pytest.raises(RedisClusterException, match=r"^redis\+cluster://127\.0\.0\.1:1$"):
                await listing
        assert store.shard_of(KEYS[0]) is None


async def test_calls_that_find_no_node_fail_each_by_itself() -> None:
    async with aclosing(RedisStore("redis+cluster://127.0.0.1:1")) as store:

        async def fail() -> None:
            for _ in range(3):
                with pytest.raises(RedisClusterException, match=r"^redis\+cluster://127\.0\.0\.1:1$"):
                    await store.get(KEYS[0])

        await asyncio.gather(*(fail() for _ in range(10)))
