"""The Redis store in a Redis Cluster."""

from redis.asyncio import RedisCluster

from asgi_session_pin import Pin
from asgi_session_pin.stores.redis import RedisStore
from redis_servers import Cluster

KEYS = [number.to_bytes(16, "big") for number in range(60)]


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
        await store.add(KEYS[0], pin)
        name = f"moved:1:{{{KEYS[0].hex()}}}"
        slot = shared_cluster.masters[0].call("CLUSTER", "KEYSLOT", name)
        [source] = [node for node in shared_cluster.masters if node.call("CLUSTER", "COUNTKEYSINSLOT", slot)]
        target = next(node for node in shared_cluster.masters if node is not source)
        identity = target.call("CLUSTER", "MYID")
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", identity)
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.call("CLUSTER", "MYID"))
        assert await store.get(KEYS[0]) == pin
        source.call("MIGRATE", "127.0.0.1", target.port, name, 0, 5000)
        assert await store.get(KEYS[0]) == pin  # by ASK
        assert await store.add(KEYS[0], Pin("model-b", 2.0)) == pin
        for node in (target, source):
            node.call("CLUSTER", "SETSLOT", slot, "NODE", identity)
        assert await store.get(KEYS[0]) == pin  # by MOVED
        assert await store.discard(KEYS[0], pin) is True
