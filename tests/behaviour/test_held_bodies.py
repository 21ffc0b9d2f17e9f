"""Bodies that are held before the app: how many bytes, for how long, and when they are let go."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from asgi_driver import SESSION, Answer, Gateway, Header, body_messages, call, http_scope, read_body, respond
from asgi_session_pin import Config, Limits, PinEvent, SessionPinMiddleware
from behaviour_document import Section, case
from virtual_time import VirtualLoop, run

AUTO = {"model": "auto"}
OTHER: Header = (b"x-session-id", b"session-2")


class Client:
    """Sends one request, message by message, when it is told to."""

    def __init__(self, app: Any, *headers: Header) -> None:
        self.answer = Answer()
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.request = asyncio.create_task(app(http_scope(*headers), self.messages.get, self.send))

    async def send(self, message: Message) -> None:
        self.answer.messages.append(message)

    def upload(self, chunk: bytes, more: bool = True) -> None:
        self.messages.put_nowait({"type": "http.request", "body": chunk, "more_body": more})

    def leave(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})

    async def end(self) -> None:
        """Have the server cancel the request."""
        self.request.cancel()
        await asyncio.wait([self.request])

    @property
    def status(self) -> str | None:
        return self.answer.pin_status if self.answer.messages else None


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def limited(app: Any, **limits: float) -> SessionPinMiddleware:
    return SessionPinMiddleware(app, config=Config(limits=Limits(**limits)))  # type: ignore[arg-type]


def pieces(size: int) -> list[bytes]:
    """A body of so many bytes that comes in pieces."""
    content = json.dumps(AUTO | {"x": ""})
    whole = content.replace('"x": ""', f'"x": "{"x" * (size - len(content))}"').encode()
    return [whole[at : at + 100] for at in range(0, size, 100)]


@case(
    Section.REQUEST,
    "bodies that come in pieces are over `max_buffered_bytes`, all together, or over a quarter of it in one session",
    "`ignored; reason=no-room`; it streams to the app",
)
async def test_one_session_gets_a_quarter_of_the_room() -> None:
    app = limited(Gateway("a"), max_buffered_bytes=4000)
    stalled = [Client(app, SESSION) for _ in range(2)]
    for client in stalled:
        for piece in pieces(1000)[:4]:
            client.upload(piece)
    await settle()
    assert (await call(app, pieces(300), SESSION)).pin_status == "ignored; reason=no-room"
    assert (await call(app, pieces(200), SESSION)).pin_status == "miss"
    assert (await call(app, pieces(900), OTHER)).pin_status == "miss", "others have their own part"
    await asyncio.gather(*(client.end() for client in stalled))
    assert (await call(app, pieces(1000), SESSION)).pin_status == "hit", "the room is free again"


async def test_all_sessions_together_get_no_more_than_the_room() -> None:
    gateway = Gateway("a")
    app = limited(gateway, max_buffered_bytes=4000)
    stalled = [Client(app, (b"x-session-id", b"%d" % number)) for number in range(4)]
    for client in stalled:
        for piece in pieces(1000)[:9]:
            client.upload(piece)
    await settle()
    body = pieces(500)
    assert (await call(app, body, SESSION)).pin_status == "ignored; reason=no-room"
    assert gateway.bodies == [b"".join(body)], "not a byte is lost"
    assert (await call(app, b"".join(body), SESSION)).pin_status == "miss", "what comes whole needs no room"
    await asyncio.gather(*(client.end() for client in stalled))
    assert (await call(app, body, SESSION)).pin_status == "hit"


async def test_what_is_over_the_room_streams_on() -> None:
    received: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive()).get("more_body"):
            received.append(len(message["body"]))
        await respond(send, b'{"model":"a"}')

    client = Client(limited(app, max_buffered_bytes=1000), SESSION)
    for _ in range(4):
        client.upload(b"x" * 100)
        await settle()
    assert received == [300, 100], "at once, not when it is whole"
    client.upload(b"", more=False)
    await client.request
    assert client.status == "ignored; reason=no-room"


async def test_a_body_that_is_with_the_app_takes_no_room() -> None:
    answering = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        await answering.wait()
        await respond(send, b'{"model":"a"}')

    middleware = limited(app, max_buffered_bytes=4000)
    requests = []
    for number in range(9):
        header = (b"x-session-id", b"%d" % number)
        requests.append(asyncio.create_task(call(middleware, pieces(1000), header)))
        await settle()
    answering.set()
    assert {answer.pin_status for answer in await asyncio.gather(*requests)} == {"miss"}


async def test_an_app_that_takes_no_body_frees_its_room_in_the_end() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b'{"model":"a"}')

    middleware = limited(app, max_buffered_bytes=4000)
    assert [(await call(middleware, pieces(900), SESSION)).pin_status for _ in range(3)] == ["miss", "hit", "hit"]


async def test_the_session_of_a_body_that_names_it_is_its_credentials() -> None:
    app = SessionPinMiddleware(
        Gateway("a"), config={"sessions": {"sources": ["body:session"]}, "limits": {"max_buffered_bytes": 4000}}
    )
    key, another = (b"authorization", b"Bearer 1"), (b"authorization", b"Bearer 2")
    client = Client(app, key)
    client.upload(b"{" + b" " * 900)
    await settle()
    body = [b'{"model":"auto",', b'"session":"s"', b" " * 200 + b"}"]
    assert (await call(app, body, another)).pin_status == "miss"
    assert (await call(app, body, key)).pin_status is None, "what is not read tells no session"
    await client.end()


def test_the_room_is_whole_again_in_another_event_loop() -> None:
    app = limited(Gateway("a"), max_buffered_bytes=4000)

    async def stall() -> Client:
        client = Client(app, SESSION)
        client.upload(b"x" * 1000)
        await settle()
        return client

    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(stall())
    assert asyncio.run(call(app, pieces(1000), SESSION)).pin_status == "miss"
    loop.run_until_complete(client.end())
    loop.close()
    assert asyncio.run(call(app, pieces(1000), SESSION)).pin_status == "hit"


@case(
    Section.REQUEST,
    "not whole within `body_seconds`",
    "`ignored; reason=body-too-slow`; what has come and what follows streams to the app",
)
def test_a_body_that_takes_too_long_streams_on() -> None:
    async def upload(loop: VirtualLoop) -> None:
        received: list[tuple[float, bytes]] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            more = True
            while more:
                message = await receive()
                received.append((loop.time(), message["body"]))
                more = message["more_body"]
            await respond(send, b'{"model":"a"}')

        events: list[PinEvent] = []
        client = Client(SessionPinMiddleware(app, listeners=[events.append]), SESSION)
        for chunk in (b"{", b'"model":', b'"auto"'):
            client.upload(chunk)
            await asyncio.sleep(12)
        client.upload(b",")
        client.upload(b'"x":1}', more=False)
        await client.request
        assert received == [(30, b'{"model":"auto"'), (36, b","), (36, b'"x":1}')]
        assert client.status == "ignored; reason=body-too-slow"
        assert [event.reason for event in events] == ["body-too-slow"]

    run(upload)


def after_30_seconds(app: Any, *, ends: Iterable[str]) -> list[Any]:
    """Return what becomes of a request whose body stalled, and how it ended, with the task that was left."""

    async def stall(loop: VirtualLoop) -> list[Any]:
        outcomes: list[Any] = []
        for end in ends:
            tasks = asyncio.all_tasks()
            client = Client(SessionPinMiddleware(app), SESSION)
            client.upload(b"{")
            await asyncio.sleep(31)
            if end == "leaves":
                client.leave()
            elif end == "cancelled":
                client.request.cancel()
            outcomes += await asyncio.gather(client.request, return_exceptions=True)
            assert asyncio.all_tasks() == tasks, "nothing is left behind"
            assert client.request.cancelling() == (end == "cancelled"), "timeouts of the server count that"
        return outcomes

    return run(stall)


def test_an_app_that_answers_without_the_rest_of_a_stalled_body_is_done() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"{}", status=401)

    assert after_30_seconds(refuse, ends=["not"]) == [None]


def test_a_client_that_stalls_and_leaves_is_the_apps_affair() -> None:
    messages: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        messages.extend([await receive(), await receive()])

    assert after_30_seconds(app, ends=["leaves"]) == [None]
    assert messages == [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]


def test_a_request_that_is_cancelled_after_it_has_stalled_leaves_nothing_behind() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await receive()

    (outcome,) = after_30_seconds(app, ends=["cancelled"])
    assert isinstance(outcome, asyncio.CancelledError)


@pytest.mark.parametrize("late", [False, True])
def test_what_the_servers_receive_raises_comes_out(late: bool) -> None:
    async def upload(loop: VirtualLoop) -> None:
        messages = body_messages(b"{", b"")[:1]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await asyncio.sleep((31 if late else 1) - loop.time())
            raise OSError("gone")

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await read_body(receive)

        async def send(message: Message) -> None: ...

        with pytest.raises(OSError, match="gone"):
            await SessionPinMiddleware(app)(http_scope(SESSION), receive, send)
        assert loop.time() == (31 if late else 1)

    run(upload)


def test_an_app_that_gives_up_waiting_for_a_stalled_body_loses_none_of_it() -> None:
    async def upload(loop: VirtualLoop) -> None:
        received: list[bytes] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            received.append((await receive())["body"])
            try:
                async with asyncio.timeout(1):
                    received.append((await receive())["body"])
            except TimeoutError:
                received.append(b"late")
            both = await asyncio.gather(receive(), receive())
            received.extend(message["body"] for message in both)
            await respond(send, b"{}")

        client = Client(SessionPinMiddleware(app), SESSION)
        client.upload(b"{")
        await asyncio.sleep(35)
        client.upload(b'"a":')
        client.upload(b"1}", more=False)
        await client.request
        assert received == [b"{", b"late", b'"a":', b"1}"]

    run(upload)
