"""What operators said, in a process that has just begun, and while requests are under way."""

import asyncio
from pathlib import Path

import pytest
from asgi_lifespan import LifespanManager
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Message, Receive, Scope, Send

from asgi_driver import SESSION, Clock, Gateway, answer_json, call, until
from asgi_session_pin import MemoryStore, SessionPinMiddleware
from asgi_session_pin.log import Warnings
from asgi_session_pin.pins.steering import Steering
from asgi_session_pin.stores.sqlite import SQLiteStore
from behaviour_document import Section, case

AUTO = {"model": "auto"}
HUMAN = {"role": "user", "content": "Go on."}
LOOP = {**AUTO, "messages": [HUMAN, {"role": "tool", "tool_call_id": "1", "content": "done"}]}
TURN = {**AUTO, "messages": [HUMAN]}


@case(Section.OPERATORS, "a new process that gets lifespan", "its first request knows what was said")
async def test_a_new_process_knows_what_was_said_before_its_first_request(tmp_path: Path) -> None:
    async def other_process() -> SQLiteStore:
        store = SQLiteStore(tmp_path / "pins.db")
        await Steering(store, Warnings(Clock())).pause(True)
        return store

    store = await other_process()
    pinned = SessionPinMiddleware(Starlette(routes=[Mount("/", Gateway("a"))]), store=store)
    async with LifespanManager(pinned):
        assert (await call(pinned, AUTO, SESSION)).pin_status == "off; reason=paused"


async def test_a_process_whose_store_hangs_starts_nevertheless(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(MemoryStore):
        async def read_note(self) -> bytes | None:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr("asgi_session_pin.pins.steering._PATIENCE_SECONDS", 0.01)
    pinned = SessionPinMiddleware(Starlette(routes=[Mount("/", Gateway("a"))]), store=Hanging())
    async with LifespanManager(pinned):
        assert (await call(pinned, AUTO, SESSION)).pin_status == "miss"


@case(
    Section.OPERATORS,
    "a model is retired while the first answer of a session comes from it",
    "the session's tool loop stays on it, as others do; its next human turn is routed anew",
)
async def test_a_choice_that_is_under_way_when_its_model_is_retired_keeps_its_tool_loop(clock: Clock) -> None:
    async def retire_and_answer(send: Send, model: str) -> None:
        if model == "goes":
            clock.now += 1
            await pinned.runtime.steering.retire("goes", True)
        await answer_json(send, model)

    pinned = SessionPinMiddleware(gateway := Gateway("goes", "goes", "stays"), clock=clock)
    gateway.route = retire_and_answer
    statuses = [(await call(pinned, content, SESSION)).pin_status for content in (TURN, LOOP)]
    assert statuses == ["miss", "hit"]
    gateway.route = answer_json
    assert (await call(pinned, TURN, SESSION)).json["model"] == "goes"  # by the router, which makes no pin any longer
    assert (await call(pinned, TURN, SESSION)).json["model"] == "stays"
    assert gateway.asked == ["auto", "goes", "auto", "auto"]


@case(
    Section.OPERATORS,
    "a process that gets no lifespan reads what was said while its first request is under way",
    "a retired model makes no pin there either",
)
async def test_what_was_retired_before_a_process_began_makes_no_pin_in_it() -> None:
    class Shared(MemoryStore):
        """Other processes write its note."""

    store = Shared()
    await Steering(store, Warnings(Clock())).retire("gone", True)

    async def answer_when_the_note_is_read(send: Send, model: str) -> None:
        await until(lambda: "gone" in pinned.runtime.steering.retired)
        await answer_json(send, model)

    gateway = Gateway("gone", answer=answer_when_the_note_is_read)
    pinned = SessionPinMiddleware(gateway, store=store)
    assert [(await call(pinned, AUTO, SESSION)).pin_status for _ in range(2)] == ["miss", "miss"]
    await pinned.aclose()


@pytest.mark.parametrize("here", [True, False])
async def test_the_very_first_retirement_breaks_no_choice_that_is_under_way(here: bool) -> None:
    class Shared(MemoryStore):
        """Other processes write its note."""

    clock, store = Clock(), Shared()
    steering, other = (Steering(store, Warnings(clock), clock) for _ in range(2))
    await steering.read()
    began = clock.now
    clock.now += 1
    await (steering if here else other).retire("gone", True)
    await steering.read()
    assert not steering.was_retired("gone", began)
    assert steering.was_retired("gone", clock.now)


class SharedNote(MemoryStore):
    """Other processes write its *note*, which it can lose. It waits after a read for *slow*, if there is any."""

    note: bytes | None = None
    slow: asyncio.Event | None = None

    async def read_note(self) -> bytes | None:
        found, slow = self.note, self.slow
        if slow is not None:
            await slow.wait()
        return found

    async def replace_note(self, old: bytes | None, new: bytes) -> bool:
        is_old = self.note == old
        if is_old:
            self.note = new
        return is_old


@case(
    Section.OPERATORS,
    "the store loses what was said last: all of it, or a replica takes over that had not got it",
    "it holds, in all processes, and the store has it again",
)
@pytest.mark.parametrize("has_a_replica", [True, False])
@pytest.mark.parametrize("has_seen_it", [True, False])
async def test_what_was_said_last_holds_where_the_store_has_lost_it(has_a_replica: bool, has_seen_it: bool) -> None:
    clock, store = Clock(), SharedNote()
    one, other = (Steering(store, Warnings(clock), clock, clock) for _ in range(2))
    await one.retire("old", True)
    replica = store.note
    await other.read()
    await one.pause(True)
    await one.retire("broken", True)
    if has_seen_it:
        await other.read()
    store.note = replica if has_a_replica else None
    for steering in (other, one, other):  # the first one may bring the older note back
        await steering.read()
    late = Steering(store, Warnings(clock), clock, clock)
    await late.read()
    for steering in (one, other, late):
        assert (steering.is_paused, set(steering.retired)) == (True, {"old", "broken"})


async def test_what_is_said_after_a_loss_is_the_last_word_whoever_says_it() -> None:
    clock, store = Clock(), SharedNote()
    one = Steering(store, Warnings(clock), clock, clock)
    for _ in range(5):
        await one.pause(True)
        await one.retire("gone", True)
    store.note = None
    clock.now += 1
    await Steering(store, Warnings(clock), clock, clock).retire("broken", True)  # another process, which knew nothing
    await one.read()
    assert (one.is_paused, set(one.retired)) == (False, {"broken"})


async def test_what_is_said_while_an_older_note_is_read_holds() -> None:
    clock, store = Clock(), SharedNote()
    steering = Steering(store, Warnings(clock), clock, clock)
    await steering.retire("gone", True)
    store.slow = asyncio.Event()
    reading = asyncio.create_task(steering.read())
    await asyncio.sleep(0)
    slow, store.slow = store.slow, None
    await steering.pause(True)
    slow.set()
    await reading
    assert steering.is_paused


@pytest.mark.parametrize("word", ["complete", "failed"])
def test_an_app_starts_in_an_event_loop_that_is_not_asyncios(word: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": f"lifespan.startup.{word}"})

    async def send(message: Message) -> None:
        sent.append(message["type"])

    async def receive() -> Message:
        raise AssertionError

    sent: list[str] = []
    with pytest.raises(StopIteration):  # it returned, without waiting for anything
        SessionPinMiddleware(app)({"type": "lifespan"}, receive, send).send(None)
    assert sent == [f"lifespan.startup.{word}"]


async def test_a_model_that_is_retired_again_is_so_from_then_on(clock: Clock) -> None:
    steering = Steering(MemoryStore(), Warnings(clock), clock)
    await steering.retire("a", True)
    began = clock.now
    clock.now += 5
    await steering.retire("b", True)
    assert (steering.was_retired("a", began), steering.was_retired("b", began)) == (True, False)
    await steering.retire("a", False)
    clock.now += 5
    await steering.retire("a", True)
    assert not steering.was_retired("a", began)
    assert steering.was_retired("a", clock.now)
