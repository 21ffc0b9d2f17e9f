"""Sentinel and Cluster when a server goes down under load: no request fails, and sessions keep their model."""

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import redis
from test_store_faults import UNAVAILABLE, Replica, close

from behaviour_document import Section, case
from redis_servers import BINARIES, LEAVES_CONNECTIONS, SERVICE, Cluster, RedisServer, redis_cluster, redis_sentinels

SESSIONS = range(40)
NEW_SESSION = 1000  # its first request comes while the store is out
AT_A_TIME = 4
PATIENCE = 60  # seconds for what takes five on a machine with nothing else to do
# redis-py before 7.2 asks the first of the shards which commands there are, whatever it is asked for.
SHARDS_TO_DO_WITHOUT = [0, 2] if tuple(map(int, redis.__version__.split(".")[:2])) >= (7, 2) else [2]

pytestmark = LEAVES_CONNECTIONS


class Load:
    """Requests that go on in two replicas; each of them fails the test unless it gets its session's model."""

    def __init__(self, url: str) -> None:
        self.replicas = [Replica(url, name) for name in ("a", "b")]
        self.models: dict[int, str] = {}
        self.seen: Counter[str] = Counter()
        self.is_over = False

    async def until_it_is_out(self) -> None:
        async def is_out() -> bool:
            return self.seen.total() > self.seen["hit"]

        self.seen.clear()
        await until(is_out)

    async def until_all_are_hits(self) -> None:
        """Wait until every session is a hit at each replica, one after the other without a failure between."""
        for replica in self.replicas:

            async def are_hits(replica: Replica = replica) -> bool:
                return {await self._ask(replica, session) for session in self.models} == {"hit"}

            await until(are_hits)

    async def decide(self) -> None:
        for session in SESSIONS:
            self.models[session], _ = await self.replicas[session % 2].ask(session)
        await self.until_all_are_hits()

    async def ask_on(self, replica: Replica, session: int) -> None:
        while not self.is_over:
            session = (session + 7) % len(SESSIONS)
            self.seen[await self._ask(replica, session)] += 1
            await asyncio.sleep(0.005)

    async def _ask(self, replica: Replica, session: int) -> str:
        model, status = await replica.ask(session)
        assert model == self.models[session], status
        return status


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def load(url: str) -> AsyncIterator[Load]:
    load = Load(url)
    await load.decide()
    async with asyncio.TaskGroup() as group:
        for replica in load.replicas:
            for first in range(AT_A_TIME):
                group.create_task(load.ask_on(replica, first))
        try:
            yield load
        finally:
            load.is_over = True
    await close(*load.replicas)
    gc.collect()


def kill(server: RedisServer) -> None:
    server.kill()


def freeze(server: RedisServer) -> None:
    server.freeze()


faults = pytest.mark.parametrize(
    ("kind", "fault"), [*((kind, kill) for kind in BINARIES), (next(iter(BINARIES)), freeze)]
)


async def check_failover(url: str, go_down: Callable[[], None], taken_over: Callable[[], Awaitable[None]]) -> None:
    async with load(url) as requests:
        one, other = requests.replicas
        go_down()
        await requests.until_it_is_out()
        requests.models[NEW_SESSION], _ = await one.ask(NEW_SESSION)
        await taken_over()

        async def is_told() -> bool:
            return (await one.ask(NEW_SESSION))[1] == "hit"

        async def is_learnt() -> bool:  # where the other one asks the store, it has the decision of this one
            model, status = await other.ask(NEW_SESSION)
            assert UNAVAILABLE in status or model == requests.models[NEW_SESSION]
            return status == "hit"

        await until(is_told)
        await until(is_learnt)
        await requests.until_all_are_hits()


@case(
    Section.SHARED_STORE,
    "Sentinel's master, or a node of a Cluster, is killed or hangs",
    "`hit` from the copy until the replica takes over, which is told what it missed",
)
@faults
async def test_sentinels_replica_takes_over_from_a_master_that_goes_down(
    kind: str, fault: Callable[[RedisServer], None], tmp_path: Path
) -> None:
    with redis_sentinels(tmp_path, number=3, kind=kind) as service:

        async def taken_over() -> None:
            for sentinel in service.sentinels[1:]:
                port = f"'port', '{service.replica.port}'"
                await asyncio.to_thread(sentinel.wait_for, port, "SENTINEL", "MASTER", SERVICE)

        def go_down() -> None:
            service.sentinels[0].kill()  # the first of the list, too
            fault(service.master)

        await check_failover(service.url, go_down, taken_over)


@case(
    Section.SHARED_STORE,
    "Sentinel's master, or a node of a Cluster, is killed or hangs",
    "`hit` from the copy until the replica takes over, which is told what it missed",
)
@faults
async def test_a_clusters_replica_takes_over_from_a_node_that_goes_down(
    kind: str, fault: Callable[[RedisServer], None], tmp_path: Path
) -> None:
    with redis_cluster(tmp_path, with_replicas=True, kind=kind) as cluster:

        async def taken_over() -> None:
            await asyncio.to_thread(cluster.replicas[0].wait_for, "'role': 'master'", "INFO", "replication")

        await check_failover(cluster.url, lambda: fault(cluster.masters[0]), taken_over)


@case(
    Section.SHARED_STORE,
    "a shard of a Cluster is gone with its replicas, and the others go on (`cluster-require-full-coverage no`)",
    "only its sessions are on the copies; for those of the other shards nothing of it",
)
@pytest.mark.parametrize("kind", BINARIES)
@pytest.mark.parametrize("place", SHARDS_TO_DO_WITHOUT)
async def test_sessions_of_other_shards_go_on_without_one_that_is_gone(kind: str, place: int, tmp_path: Path) -> None:
    with redis_cluster(tmp_path, kind=kind) as cluster:
        for node in cluster.masters:
            node.call("CONFIG", "SET", "cluster-require-full-coverage", "no")
        living = [*cluster.masters]
        dead = living.pop(place)
        replica = Replica(f"{cluster.url}?socket_timeout={PATIENCE}", timeout_seconds=PATIENCE)
        pins = {session: await ask_and_find(replica, session, dead) for session in SESSIONS}
        lost = [session for session, (_, is_there) in pins.items() if is_there]
        others = [session for session in SESSIONS if session not in lost]
        assert lost
        assert others
        dead.kill()

        async def are_apart() -> bool:  # those that are lost come one after the other
            answers = {session: await replica.ask(session) for session in lost + others}
            assert {session: model for session, (model, _) in answers.items()} == {
                session: model for session, (model, _) in pins.items()
            }
            statuses = [status for _, status in answers.values()]
            return statuses == [f"hit; reason={UNAVAILABLE}"] * len(lost) + ["hit"] * len(others)

        await until(are_apart)
        assert await are_apart()
        new = Counter([(await replica.ask(session))[1] for session in range(NEW_SESSION, NEW_SESSION + 40)])
        assert set(new) == {"miss", f"miss; reason={UNAVAILABLE}"}
        assert sum(len(node.call("KEYS", "session-pin:1:{*}")) for node in living) == len(others) + new["miss"]
        await close(replica)
        gc.collect()


async def ask_and_find(replica: Replica, session: int, node: RedisServer) -> tuple[str, bool]:
    """Ask for the first time; return the model, and whether its pin is in *node*."""
    before = len(node.call("KEYS", "session-pin:1:{*}"))
    model, _ = await replica.ask(session)
    return model, len(node.call("KEYS", "session-pin:1:{*}")) > before


@case(Section.SHARED_STORE, "Sentinel changes the master on purpose", "`hit`, a few of them from the copy")
async def test_a_master_that_becomes_a_replica_is_left_for_the_new_one(tmp_path: Path) -> None:
    with redis_sentinels(tmp_path) as service:
        [sentinel] = service.sentinels
        async with load(service.url) as requests:
            sentinel.call("SENTINEL", "FAILOVER", SERVICE)
            port = f"'port', '{service.replica.port}'"
            await asyncio.to_thread(sentinel.wait_for, port, "SENTINEL", "MASTER", SERVICE)
            await asyncio.to_thread(service.master.wait_for, "'role': 'slave'", "INFO", "replication")
            await requests.until_all_are_hits()
            assert set(requests.seen) <= {"hit", f"hit; reason={UNAVAILABLE}"}


def node_of(cluster: Cluster, name: str) -> RedisServer:
    slot = cluster.masters[0].call("CLUSTER", "KEYSLOT", name)
    [node] = [node for node in cluster.masters if node.call("CLUSTER", "COUNTKEYSINSLOT", slot)]
    return node


def move_slot(cluster: Cluster, name: str) -> RedisServer:
    """Move the slot of a key to another node, key by key, and return that."""
    source = node_of(cluster, name)
    target = next(node for node in cluster.masters if node is not source)
    slot = source.call("CLUSTER", "KEYSLOT", name)
    identity = target.call("CLUSTER", "MYID")
    target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.call("CLUSTER", "MYID"))
    source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", identity)
    while names := source.call("CLUSTER", "GETKEYSINSLOT", slot, 10):
        for each in names:
            source.call("MIGRATE", "127.0.0.1", target.port, each, 0, 5000)
    for node in (target, source):
        node.call("CLUSTER", "SETSLOT", slot, "NODE", identity)
    return target


@case(Section.SHARED_STORE, "a slot of a Cluster moves to another node", "nothing of it")
@pytest.mark.parametrize("kind", BINARIES)
async def test_slots_that_move_under_load_are_followed(kind: str, tmp_path: Path) -> None:
    with redis_cluster(tmp_path, kind=kind) as cluster:
        async with load(cluster.url) as requests:
            names = [name for node in cluster.masters for name in node.call("KEYS", "session-pin:1:{*}")]
            assert len(names) == len(SESSIONS)
            for name in names[::4]:
                target = await asyncio.to_thread(move_slot, cluster, name)
                assert node_of(cluster, name) is target
            await requests.until_all_are_hits()
            assert set(requests.seen) <= {"hit", f"hit; reason={UNAVAILABLE}"}
