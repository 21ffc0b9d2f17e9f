"""What holds whatever apps answer and clients do: random scripts of both, five sessions in parallel.

Time is virtual: a stall costs none, and where everybody waits for ever a test fails at once.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from enum import Enum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from answer_scripts import SIZE, Call, Choices, Client, Request, Routed, Shows, is_whole, read_client, read_script
from asgi_session_pin import Lapsed, MemoryStore, Pin, SessionPinMiddleware, get_session_pin
from asgi_session_pin.log import logger
from virtual_time import VirtualLoop, run

SESSIONS = 5
OURS = (b"x-session-pinned", b"x-session-model", b"x-session-pin-status")
HELD_SECONDS, HELD_BYTES = 1.0, 65_536
SOON = 0.05  # seconds
STORE_SECONDS = 0.1  # that a store has before a request goes on without it
SLOW = (0.02, 0.03)  # seconds of a store that is slow: three calls are in time
POLL_SECONDS = 0.25  # at most, between two looks for what another worker chose
LEASE_SECONDS = 5.0  # as long as requests wait for a decision
SERVED = bytes(SIZE)  # an answer as it should be, at once

any_choices = st.binary(min_size=512, max_size=512)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Thousands of warnings would be kept, to be shown with a failure."""
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


class Fate(Enum):
    """What becomes of an answer that is held back until it shows output."""

    GOES_OUT = "goes out"
    FAILS = "fails before anything of it went out"


class World:
    """A gateway behind the middleware in so many workers, and its clients."""

    def __init__(self, loop: VirtualLoop, store: "UnreliableStore | None" = None, workers: int = 1) -> None:
        self.loop = loop
        self.store = store
        self.requests: list[Request] = []
        self.apps = [SessionPinMiddleware(self._let_in, store=store, clock=loop.time) for _ in range(workers)]
        self.room: asyncio.Semaphore | None = None
        self.fresh_names = False

    def request(self, session: int, client: Client, pinned: bytes, routed: bytes) -> Request:
        request = Request(session, len(self.requests), client, pinned, routed)
        self.requests.append(request)
        return request

    async def ask(self, *requests: Request) -> None:
        async with asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(self.ask_one(request))

    async def ask_one(self, request: Request) -> None:
        await request.ask(self.apps[request.number % len(self.apps)])

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.room or contextlib.nullcontext():
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = self.requests[int(dict(scope["headers"])[b"x-number"])]
        assert all(call.ended is not None for call in request.calls), "called again before the first call has ended"
        pin = get_session_pin(scope)
        model = pin.model if pin is not None and pin.pinned else None
        if model is None:
            name = f"model-{request.session}" + (f"/{request.number}" if self.fresh_names else "")
            script = read_script(request.routed, name, is_pinned=False)
        else:
            script = read_script(request.pinned, model, is_pinned=True)
        call = Call(script, model, self.loop.time())
        request.calls.append(call)
        await call.play(receive, send)

    async def all_is_over(self, limit: float) -> None:
        """See that nothing is left, and that each session goes on within a time *limit* in seconds."""
        here = asyncio.current_task()
        ended = self.loop.time()
        at_rest = await self.loop.rest()
        assert asyncio.all_tasks() == {here}
        assert at_rest <= ended + HELD_SECONDS + limit, "a timer is left"
        if self.store is not None:
            self.store.manners = [0.0]
        sessions = {request.session for request in self.requests}
        last = [self.request(session, Client(), SERVED, SERVED) for session in sessions]
        await self.ask(*last)
        await self.loop.rest()
        for request in last:
            assert is_whole(request.got)
            assert request.got[0]["status"] == 200
            assert request.ended - request.began <= limit, "a turn is left"


class UnreliableStore(MemoryStore):
    """A shared store that is slow, or fails, as *choices* have it."""

    read_note = None  # type: ignore[assignment] # no operator has a note here, which is read again without end

    def __init__(self, loop: VirtualLoop, choices: Choices, manners: list[float | None]) -> None:
        super().__init__(timer=loop.time)
        self.manners = manners  # seconds that a call takes; None: it fails
        self._choices = choices
        self._loop = loop
        self._claims: dict[bytes, tuple[bytes, float]] = {}

    async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
        await self._behave()
        return await super().get(key)

    async def add(self, key: bytes, pin: Pin) -> Pin:
        await self._behave()
        return await super().add(key, pin)

    async def discard(self, key: bytes, pin: Pin) -> bool:
        await self._behave()
        return await super().discard(key, pin)

    async def claim(self, key: bytes, token: bytes, seconds: float) -> bool:
        owner, until = self._claims.get(key, (token, 0.0))
        is_free = owner == token or until <= self._loop.time()
        if is_free:
            self._claims[key] = token, self._loop.time() + seconds
        await self._behave()  # what fails or is given up may have been done
        return is_free

    async def release(self, key: bytes, token: bytes) -> None:
        await self._behave()
        if self._claims.get(key, (b"", 0.0))[0] == token:
            del self._claims[key]

    async def _behave(self) -> None:
        takes = self._choices.one_of(self.manners)
        if takes is None:
            raise ConnectionError("the store is out")
        if takes:
            await asyncio.sleep(takes)


def fate(call: Call) -> Fate | None:
    """Tell what becomes of an answer that is held back, whose call may be replaced; None: there is none yet."""
    begun: float | None = None
    size = 0
    shown: list[Shows] = []
    for at, message, shows in call.sent:
        if begun is None:
            begun = at
            if message["status"] != 200:
                return Fate.FAILS
            continue
        if at > begun + HELD_SECONDS:
            return Fate.GOES_OUT
        shown += shows
        size += len(message["body"])
        decisive = next((one for one in shown if one in (Shows.OUTPUT, Shows.ERROR)), None)
        if decisive is not None:
            return Fate.GOES_OUT if decisive is Shows.OUTPUT else Fate.FAILS
        if not message["more_body"]:
            return Fate.GOES_OUT if Shows.PRELUDE in shown else Fate.FAILS
        if size > HELD_BYTES:
            return Fate.GOES_OUT
    assert call.ended is not None
    return Fate.GOES_OUT if begun is not None and call.ended > begun + HELD_SECONDS else Fate.FAILS


def calls_for_routing(call: Call, is_proven: bool) -> bool | None:
    """Tell whether a pinned call failed so that the request has to be routed in its place; None: it may be."""
    assert call.ended is not None
    if fate(call) is Fate.GOES_OUT:
        return False
    if call.sent and call.ended > call.sent[0].at + HELD_SECONDS:
        return False
    if sum(len(message.get("body", b"")) for message in call.messages) > HELD_BYTES:
        return None
    status = call.messages[0]["status"] if call.sent else 200
    shows_error = status == 200 and any(Shows.ERROR in shows for _, _, shows in call.sent)
    if not (shows_error or call.is_whole):
        return status == 200 or call.error is not None or None
    routed = call.script.shape.routed
    return routed is Routed.ALWAYS or (routed is Routed.UNPROVEN and (None if is_proven else True))


def same(got: list[Message], sent: list[Message]) -> bool:
    """Tell whether the client got exactly what a call sent, but for our headers."""
    return [_without_ours(message) for message in got] == [_without_ours(message) for message in sent]


def _without_ours(message: Message) -> Message:
    if "headers" not in message:
        return message
    return {**message, "headers": [header for header in message["headers"] if header[0].lower() not in OURS]}


def check(request: Request, others: list[Request]) -> None:
    """Check what came of one request; *others* are those of its session."""
    calls = request.calls
    assert request.size == len(request.got), "something was sent when all was over"
    assert len(calls) <= 2
    assert all(message["type"].endswith("start" if i == 0 else "body") for i, message in enumerate(request.got))
    assert not any(is_whole([message]) for message in request.got[:-1]), "something came behind the end"
    for call in calls:
        if call.body is not None and call.model is None:
            assert call.body == request.content
        elif call.body is not None:
            assert json.loads(call.body) == {**json.loads(request.content), "model": call.model}
    if request.has_left:
        assert any(same(request.got, call.messages[: len(request.got)]) for call in calls) or not request.got
        assert request.error is None or isinstance(request.error, OSError) or request.error in [c.error for c in calls]
        return
    assert calls
    got = [call for call in calls if same(request.got, call.messages) and request.error is call.error]
    assert got, f"what the client got is neither call's: {[str(m)[:80] for m in request.got]} {request.error!r}"
    if len(calls) == 2:
        assert [call.model is None for call in calls] == [False, True]
        assert calls_for_routing(calls[0], is_proven=False) is not False, "called again without need"
        assert calls[fate(calls[1]) is Fate.GOES_OUT] in got
    elif calls[0].model is not None and not any(did_no_better(other) for other in others):
        assert not calls_for_routing(calls[0], has_served(calls[0].model, others))


def did_no_better(request: Request) -> bool:
    """Tell whether routing did no better than the pin, so that the pin is not routed around for a while."""
    return len(request.calls) == 2 and fate(request.calls[1]) is not Fate.GOES_OUT


def has_served(model: str, requests: list[Request]) -> bool:
    """Tell whether a name may have served under a pin by now."""
    calls = [call for request in requests for call in request.calls if call.model == model]
    return any(Shows.OUTPUT in shows for call in calls for _, _, shows in call.sent)


async def live(world: World, choices: Choices, limit: float) -> None:
    """Let five sessions live through their scripts."""
    world.fresh_names = choices.rarely(3)
    async with asyncio.TaskGroup() as group:
        for session in range(SESSIONS):
            group.create_task(_live(world, session, choices))
    await world.all_is_over(limit)
    for request in world.requests:
        others = [other for other in world.requests if other.session == request.session and other is not request]
        check(request, others)


async def _live(world: World, session: int, choices: Choices) -> None:
    served = choices.number(3)  # 0: it has no pin, 1: its pin has not served, 2: it has
    requests = [_read_request(world, session, choices) for _ in range(1 + choices.number(2))]
    for _ in range(served):
        await world.ask(world.request(session, Client(), SERVED, SERVED))
    await world.ask(*requests)


def _read_request(world: World, session: int, choices: Choices) -> Request:
    return world.request(session, read_client(choices), choices.take(SIZE), choices.take(SIZE))


def _unreliable(loop: VirtualLoop, choices: Choices, *manners: float | None) -> "UnreliableStore":
    return UnreliableStore(loop, Choices(choices.take(32)), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, *manners])


def examples(number: int) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    return settings(max_examples=number, derandomize=True, database=None, deadline=None)


@examples(500)
@given(any_choices)
def test_a_session_gets_what_one_call_gave_whatever_that_is(source: bytes) -> None:
    run(lambda loop: live(World(loop), Choices(source), SOON))


@examples(500)
@given(any_choices)
def test_so_it_does_from_an_app_that_lets_one_request_in_at_a_time(source: bytes) -> None:
    async def work(loop: VirtualLoop) -> None:
        world = World(loop)
        world.room = asyncio.Semaphore(1)
        await live(world, Choices(source), SOON)

    run(work)


@examples(500)
@given(any_choices)
def test_so_it_does_from_two_workers_with_a_store_that_is_slow(source: bytes) -> None:
    async def work(loop: VirtualLoop) -> None:
        choices = Choices(source)
        await live(World(loop, _unreliable(loop, choices, *SLOW), workers=2), choices, STORE_SECONDS + SOON)

    run(work)


@examples(500)
@given(any_choices)
def test_so_it_does_with_a_store_that_fails_now_and_then(source: bytes) -> None:
    async def work(loop: VirtualLoop) -> None:
        choices = Choices(source)
        await live(World(loop, _unreliable(loop, choices, 0.02, 0.5, None)), choices, LEASE_SECONDS + SOON)

    run(work)


async def leave(world: World, choices: Choices, rounds: int, limit: float) -> bool:
    """Cancel one of two requests of a session after so many rounds of the loop; tell whether it was still there."""
    served = choices.number(3)
    leaving, staying = (_read_request(world, 0, choices) for _ in range(2))
    for _ in range(served):
        await world.ask(world.request(0, Client(), SERVED, SERVED))
    task, other = (world.loop.create_task(world.ask_one(request)) for request in (leaving, staying))
    world.loop.cancel_after(rounds, task)
    await asyncio.wait([task])
    left_at, calls = world.loop.time(), len(leaving.calls)
    await other
    await world.all_is_over(limit)
    assert len(leaving.calls) == calls
    assert leaving.size == len(leaving.got), "something was sent when all was over"
    if staying.calls:
        assert staying.calls[0].began <= max(left_at, staying.began) + limit + POLL_SECONDS, (
            "it waited for who had left"
        )
    check(staying, [request for request in world.requests if request is not staying])
    return task.cancelled()


@examples(60)
@given(any_choices)
def test_who_leaves_at_any_point_leaves_nothing_behind(source: bytes) -> None:
    rounds = 1
    while run(lambda loop: leave(World(loop), Choices(source), rounds, SOON)):  # noqa: B023  # it is over by then
        rounds += 1


@examples(60)
@given(any_choices)
def test_who_leaves_at_any_point_leaves_nothing_in_a_shared_store(source: bytes) -> None:
    async def work(loop: VirtualLoop) -> bool:
        choices = Choices(source)
        world = World(loop, _unreliable(loop, choices, *SLOW), workers=1 + choices.number(2))
        return await leave(world, choices, rounds, STORE_SECONDS + SOON)

    rounds = 1
    while run(work):
        rounds += 1
