"""A Redis on its bad days, behind the middleware: no request fails, and sessions keep their model."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from asgi_driver import Answer, Gateway, Header, call
from asgi_session_pin import Config, Lapsed, Pin, PinEvent, PinStore, SessionPinMiddleware, Store
from asgi_session_pin.stores._breakers import FAILURES_TO_REST
from asgi_session_pin.stores.redis import RedisStore
from behaviour_document import Section, case
from delaying_proxy import delaying_proxy
from redis_servers import LEAVES_CONNECTIONS, RedisServer, redis_server

AUTO = {"model": "auto"}
UNAVAILABLE = "store-unavailable"

pytestmark = LEAVES_CONNECTIONS


class Replica:
    """One process of a fleet, with a gateway that never names a model twice."""

    def __init__(self, url: str, name: str = "a", timeout_seconds: float = 2, store: PinStore | None = None) -> None:
        self.gateway = Gateway(*(f"{name}-{number}" for number in range(1000)))
        self.events: list[PinEvent] = []
        config = Config(store=Store(url=url, timeout_seconds=timeout_seconds))
        self.app = SessionPinMiddleware(self.gateway, config=config, store=store, listeners=[self.events.append])

    async def ask(self, session: int = 1, *headers: Header) -> tuple[str, str]:
        """Return the model that a session got, and the status of its pin."""
        answer: Answer = await call(self.app, AUTO, (b"x-session-id", b"session-%d" % session), *headers)
        assert answer.start["status"] == 200
        return answer.json["model"], str(answer.pin_status)

    async def wait_for_the_store(self) -> None:
        """Make requests of another session until the store answers again."""
        async with asyncio.timeout(30):
            while UNAVAILABLE in (await self.ask(999))[1]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


async def close(*replicas: Replica) -> None:
    for replica in replicas:
        await replica.app.aclose()


async def test_replicas_agree(server: RedisServer) -> None:
    one, other = Replica(server.url, "a"), Replica(server.url, "b")
    assert await one.ask() == ("a-0", "miss")
    assert await other.ask() == ("a-0", "hit")
    assert await other.ask(2) == ("b-0", "miss")
    assert await one.ask(2) == ("b-0", "hit")
    assert await one.ask(2, (b"x-session-pin", b"reset")) == ("a-1", "miss")
    assert await other.ask(2) == ("a-1", "hit")
    await close(one, other)


@case(Section.SHARED_STORE, "it is killed", "`hit` from the copy; new sessions are routed and stay in their process")
@case(
    Section.SHARED_STORE,
    "it comes back, empty",
    "replicas agree again, on the first decision that is told: a session's next request tells its process's",
)
async def test_a_killed_server_is_done_without_and_learns_what_it_missed(server: RedisServer) -> None:
    one, other = Replica(server.url, "a"), Replica(server.url, "b")
    assert await one.ask(1) == ("a-0", "miss")
    server.kill()
    for _ in range(3):
        assert await one.ask(1) == ("a-0", f"hit; reason={UNAVAILABLE}")
    assert await one.ask(2) == ("a-1", f"miss; reason={UNAVAILABLE}")
    assert await one.ask(2) == ("a-1", f"hit; reason={UNAVAILABLE}")
    assert await other.ask(2) == ("b-0", f"miss; reason={UNAVAILABLE}")
    server.start()  # empty
    await one.wait_for_the_store()
    await other.wait_for_the_store()
    assert await one.ask(1) == ("a-0", "hit")
    assert await other.ask(1) == ("a-0", "hit")
    adopted = {await replica.ask(2) for replica in (one, other, one)}
    assert adopted in ({("a-1", "hit")}, {("b-0", "hit")}), "the first one that was told"
    await close(one, other)


@case(Section.SHARED_STORE, "it hangs", "three requests wait `store.timeout_seconds`, the next ones don't ask")
async def test_a_frozen_server_costs_its_time_a_few_times_and_then_next_to_nothing(server: RedisServer) -> None:
    replica = Replica(server.url, timeout_seconds=1)
    assert await replica.ask() == ("a-0", "miss")
    server.freeze()
    replica.events.clear()
    for _ in range(20):
        assert await replica.ask() == ("a-0", f"hit; reason={UNAVAILABLE}")
    waited = [event.store_seconds for event in replica.events]
    assert waited[0] >= 0.9
    assert len([seconds for seconds in waited if seconds > 0.5]) <= FAILURES_TO_REST
    server.thaw()
    await replica.wait_for_the_store()
    assert await replica.ask() == ("a-0", "hit")
    await close(replica)


@case(Section.SHARED_STORE, "it hangs while many ask", "they wait at the same time")
async def test_many_requests_at_the_freeze_wait_at_the_same_time(server: RedisServer) -> None:
    replica = Replica(server.url, timeout_seconds=1)
    sessions = range(50)
    before = await asyncio.gather(*(replica.ask(session) for session in sessions))
    server.freeze()
    async with asyncio.timeout(20):
        during = await asyncio.gather(*(replica.ask(session) for session in sessions))
    assert [model for model, _ in during] == [model for model, _ in before]
    server.thaw()
    await replica.wait_for_the_store()
    after = await asyncio.gather(*(replica.ask(session) for session in sessions))
    assert after == [(model, "hit") for model, _ in before]
    await close(replica)


@case(Section.SHARED_STORE, "connections are reset, or break off", "nothing of it")
async def test_connections_that_are_reset_cost_nothing(server: RedisServer) -> None:
    replica = Replica(server.url)
    assert await replica.ask() == ("a-0", "miss")
    for _ in range(5):
        server.call("CLIENT", "KILL", "TYPE", "normal")
        assert await replica.ask() == ("a-0", "hit")
    await close(replica)


@case(Section.SHARED_STORE, "it is full", "`hit` as before; new sessions stay in their process until there is room")
async def test_a_full_server_still_answers_and_new_sessions_stay_in_their_process(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory-policy", "noeviction") as server:
        one, other = Replica(server.url, "a"), Replica(server.url, "b")
        assert await one.ask(1) == ("a-0", "miss")
        server.call("CONFIG", "SET", "maxmemory", "1")
        assert await other.ask(1) == ("a-0", "hit")
        assert await one.ask(2) == ("a-1", f"miss; reason={UNAVAILABLE}")
        assert await one.ask(2) == ("a-1", f"hit; reason={UNAVAILABLE}")
        assert await one.ask(1) == ("a-0", "hit"), "reads go on"
        server.call("CONFIG", "SET", "maxmemory", "0")
        assert await one.ask(2) == ("a-1", "hit")
        assert await other.ask(2) == ("a-1", "hit")
        await close(one, other)


@case(Section.SHARED_STORE, "the password is wrong", "as if it were out; the log does not have it")
async def test_a_wrong_password_is_told_without_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with redis_server(tmp_path, "--requirepass", "right") as server:
        replica = Replica(server.url.replace("redis://", "redis://:hunter2@"))
        assert await replica.ask() == ("a-0", f"miss; reason={UNAVAILABLE}")
        assert await replica.ask() == ("a-0", f"hit; reason={UNAVAILABLE}")
        await close(replica)
    assert "the pin store failed" in caplog.text
    assert "hunter2" not in caplog.text
    assert "session-1" not in caplog.text


@case(
    Section.SHARED_STORE,
    "it holds what is no pin, of whatever type",
    "`miss`: that is deleted, and told once in the log; other sessions see nothing of it",
)
@pytest.mark.parametrize("command", [("SET", "no pin"), ("RPUSH", "a", "b")])
async def test_a_value_that_is_no_pin_is_a_miss_for_its_session_and_nothing_for_others(
    server: RedisServer, command: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    one = Replica(server.url)
    assert await one.ask(1) == ("a-0", "miss")
    [name] = server.call("KEYS", f"session-pin:1:{{{'?' * 32}}}")
    assert await one.ask(2) == ("a-1", "miss")
    server.call("DEL", name)
    server.call(command[0], name, *command[1:])
    other = Replica(server.url, "b")
    assert [await other.ask(1) for _ in range(4)] == [("b-0", "miss")] + [("b-0", "hit")] * 3
    assert await other.ask(2) == ("a-1", "hit")
    assert server.call("TYPE", name) == "string"
    assert caplog.text.count("what is no pin") == 1
    await close(one, other)


@case(Section.SHARED_STORE, "the password is wrong", "as if it were out; the log does not have it")
async def test_a_server_that_quotes_the_password_in_its_error_has_it_in_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server(tmp_path, "--rename-command", "AUTH", "") as server:
        replica = Replica(server.url.replace("redis://", "redis://ann:hunter2@"))
        assert await replica.ask() == ("a-0", f"miss; reason={UNAVAILABLE}")
        await close(replica)
    assert f"redis.exceptions.ResponseError: redis://127.0.0.1:{server.port}/0" in caplog.text
    assert "hunter2" not in caplog.text


@case(Section.SHARED_STORE, "the network is slow", "all calls before the app share `store.timeout_seconds`")
async def test_over_a_slow_network_all_calls_before_the_app_share_one_time(server: RedisServer) -> None:
    with delaying_proxy(server.port) as proxy:
        replica = Replica(f"redis://127.0.0.1:{proxy.port}/0", timeout_seconds=0.3)
        assert await replica.ask(1) == ("a-0", "miss")
        proxy.seconds = 0.12
        assert await replica.ask(1) == ("a-0", "hit"), "one call"
        replica.events.clear()
        assert await replica.ask(2) == ("a-1", f"miss; reason={UNAVAILABLE}"), "three are too many"
        proxy.seconds = 0
        await replica.wait_for_the_store()
        assert await replica.ask(2) == ("a-1", "hit")
        await close(replica)


async def test_a_network_that_breaks_off_costs_nothing(server: RedisServer) -> None:
    with delaying_proxy(server.port) as proxy:
        replica = Replica(f"redis://127.0.0.1:{proxy.port}/0")
        assert await replica.ask() == ("a-0", "miss")
        proxy.cut()
        assert await replica.ask() == ("a-0", "hit")
        await close(replica)


async def test_a_reset_while_the_server_does_not_answer_holds_when_it_is_back(server: RedisServer) -> None:
    one, other = Replica(server.url, "a"), Replica(server.url, "b", timeout_seconds=0.1)
    assert await one.ask() == ("a-0", "miss")
    server.freeze()
    for model in ("b-0", "b-1"):  # by a replica that does not know the pin
        assert await other.ask(1, (b"x-session-pin", b"reset")) == (model, f"miss; reason={UNAVAILABLE}")
    assert await other.ask() == ("b-1", f"hit; reason={UNAVAILABLE}")
    server.thaw()
    await other.wait_for_the_store()
    assert await other.ask() == ("b-1", "hit")
    assert await one.ask() == ("b-1", "hit")
    await close(one, other)


@case(
    Section.SHARED_STORE, "it has become a replica (`READONLY`)", "as if it were out, until it leads to the new master"
)
async def test_a_replica_is_done_without_until_its_address_leads_to_the_new_master(
    server: RedisServer, tmp_path: Path
) -> None:
    with redis_server(tmp_path) as successor, delaying_proxy(server.port) as proxy:
        replica = Replica(f"redis://127.0.0.1:{proxy.port}/0")
        assert await replica.ask(1) == ("a-0", "miss")
        server.call("REPLICAOF", "127.0.0.1", successor.port)
        server.wait_for("0", "DBSIZE")  # it has taken over the content of the other, which is empty
        assert await replica.ask(1) == ("a-0", f"hit; reason={UNAVAILABLE}")
        assert await replica.ask(2) == ("a-1", f"miss; reason={UNAVAILABLE}")
        proxy.target_port = successor.port
        await replica.wait_for_the_store()
        assert await replica.ask(2) == ("a-1", "hit")
        await close(replica)


@case(Section.SHARED_STORE, "`FLUSHALL`", "`miss` once: each session is decided afresh, for all replicas")
async def test_after_a_flush_sessions_are_decided_afresh_once(server: RedisServer) -> None:
    one, other = Replica(server.url, "a"), Replica(server.url, "b")
    assert await one.ask() == ("a-0", "miss")
    assert await other.ask() == ("a-0", "hit")
    server.call("FLUSHALL")
    assert await other.ask() == ("b-0", "miss")
    assert await one.ask() == ("b-0", "hit")
    await close(one, other)


@case(
    Section.SHARED_STORE,
    "another version of the program keeps pins of another form in it",
    "each version reads and writes its own: a session gets a model of each",
)
async def test_pins_of_another_version_are_neither_read_nor_deleted(server: RedisServer) -> None:
    replica = Replica(server.url)
    assert await replica.ask() == ("a-0", "miss")
    [name] = server.call("KEYS", "session-pin:1:{*}")
    server.call("DEL", name)
    digest = name.partition("{")[2].rstrip("}")
    others = [f"session-pin:{digest}", f"session-pin:2:{{{digest}}}"]
    for other in others:
        server.call("SET", other, "a pin of another form")
    assert [await replica.ask() for _ in range(2)] == [("a-1", "miss"), ("a-1", "hit")]
    assert [server.call("GET", other) for other in others] == ["a pin of another form"] * 2
    await close(replica)


class Skewed(RedisStore):
    """The store of a host whose clock is so many seconds before the others': pins are decided at other times there."""

    def __init__(self, url: str, seconds: float) -> None:
        super().__init__(url)
        self._seconds = seconds

    async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
        found = await super().get(key)
        return replace(found, created=found.created + self._seconds) if isinstance(found, Pin) else found

    async def add(self, key: bytes, pin: Pin) -> Pin:
        held = await super().add(key, replace(pin, created=pin.created - self._seconds))
        return replace(held, created=held.created + self._seconds)

    async def discard(self, key: bytes, pin: Pin) -> bool:
        return await super().discard(key, replace(pin, created=pin.created - self._seconds))


@case(Section.SHARED_STORE, "the clocks of two hosts differ by a minute", "nothing of it")
async def test_a_clock_that_is_a_minute_off_changes_nothing(server: RedisServer) -> None:
    replicas = [
        Replica(server.url, name, store=Skewed(server.url, seconds))
        for name, seconds in (("a", 0), ("b", 60), ("c", -60))
    ]
    for session, replica in enumerate(replicas):
        model, status = await replica.ask(session)
        assert status == "miss"
        assert {await each.ask(session) for each in replicas} == {(model, "hit")}
        for each in replicas:
            model, status = await each.ask(session, (b"x-session-pin", b"reset"))
            assert status == "miss"
            assert {await other.ask(session) for other in replicas} == {(model, "hit")}
    await close(*replicas)
