"""One request's way: what the client asks for by X-Session-Pin, what it is told, and what the app gets."""

import asyncio
import gc
import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from asgi_driver import (
    CHAT,
    JSON_TYPE,
    SESSION,
    Gateway,
    Header,
    answer_json,
    answer_stream,
    body_messages,
    call,
    http_scope,
    read_body,
    receive_from,
    respond,
)
from asgi_session_pin import Config, Lapsed, MemoryStore, Pin, Routing, SessionPinMiddleware
from asgi_session_pin.exchange import Exchange
from behaviour_document import Section, case


@pytest.mark.parametrize("answer", [answer_json, answer_stream])
async def test_every_later_request_of_a_session_gets_the_first_ones_model(answer: Any) -> None:
    gateway = Gateway("a", "b", answer=answer)
    app = SessionPinMiddleware(gateway)
    answers = [await call(app, {"model": "auto", "n": n}, SESSION) for n in range(3)]
    assert gateway.asked == ["auto", "a", "a"]
    assert [json.loads(body)["n"] for body in gateway.bodies] == [0, 1, 2]
    ours = [{name: value for name, value in a.headers.items() if name.startswith("x-session-")} for a in answers]
    hit = {"x-session-pinned": "true", "x-session-model": "a", "x-session-pin-status": "hit"}
    assert ours == [{"x-session-pinned": "false", "x-session-pin-status": "miss"}, hit, hit]


async def test_the_response_is_what_it_would_be_without_the_middleware() -> None:
    for answer in (answer_json, answer_stream):
        bare = await call(Gateway("a", answer=answer), {"model": "auto"}, SESSION)
        routed = await call(SessionPinMiddleware(Gateway("a", answer=answer)), {"model": "auto"}, SESSION)
        ours = (b"x-session-pinned", b"x-session-pin-status", b"x-session-model")
        routed.start["headers"] = [header for header in routed.start["headers"] if header[0] not in ours]
        assert routed.messages == bare.messages


async def test_the_app_is_told_of_a_pin_and_the_session_goes_on_as_it_came() -> None:
    gateway = Gateway("a")
    app = SessionPinMiddleware(gateway)
    accept: Header = (b"accept", b"*/*")
    await call(app, {"model": "auto"}, SESSION, accept)
    await call(app, {"model": "auto"}, SESSION, accept)
    assert gateway.scopes[1]["headers"] == [
        (b"host", b"test"),
        (b"content-length", b"13"),
        SESSION,
        accept,
        (b"x-session-pinned", b"true"),
        (b"x-session-model", b"a"),
    ]


@case(Section.REQUEST, "sent in chunks, with any framing headers", "a changed body has one `content-length`")
@pytest.mark.parametrize(
    "framing",
    [
        [(b"transfer-encoding", b"chunked")],
        [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"17")],
        [(b"Content-Length", b"17")],
        [(b"content-length", b"17"), (b"content-length", b"17")],
        [(b"content-length", b"17"), (b"x-session-pinned", b"true"), (b"x-session-model", b"forged")],
        [],
    ],
)
async def test_a_changed_body_has_exactly_one_framing_header(framing: list[Header]) -> None:
    gateway = Gateway("some-model")
    app = SessionPinMiddleware(gateway)
    await call(app, {"model": "auto"}, SESSION)
    scope = http_scope(*framing, SESSION)
    original = list(scope["headers"])
    await call(app, [b'{"model":', b'"auto"}'], scope=scope)
    assert sorted(gateway.scopes[1]["headers"]) == [
        (b"content-length", b"%d" % len(gateway.bodies[1])),
        SESSION,
        (b"x-session-model", b"some-model"),
        (b"x-session-pinned", b"true"),
    ]
    assert scope["headers"] == original, "the server's own list is left alone"


@case(Section.SESSION, "`X-Session-Pin: off`", "`off`; neither read nor written")
@pytest.mark.parametrize("value", [b"off", b" OFF ", b"Off"])
async def test_off_neither_reads_nor_writes(value: bytes) -> None:
    gateway = Gateway("a", "b", "c")
    app = SessionPinMiddleware(gateway)
    off = (b"x-session-pin", value)
    answers = [
        await call(app, {"model": "auto"}, SESSION, *control) for control in ([off], [], [off], [])
    ]  # fmt: skip
    assert [answer.pin_status for answer in answers] == ["off", "miss", "off", "hit"]
    assert gateway.asked == ["auto", "auto", "auto", "b"]


async def test_off_leaves_the_body_to_the_app() -> None:
    seen: list[Receive] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(receive)
        await respond(send, b"{}")

    async def send(message: Message) -> None: ...

    receive = receive_from([])
    await SessionPinMiddleware(app)(http_scope(SESSION, (b"x-session-pin", b"off")), receive, send)
    assert seen == [receive]


@case(Section.SESSION, "`X-Session-Pin: reset`", "`miss`; the pin is forgotten and decided afresh")
@pytest.mark.parametrize("value", [b"reset", b"RESET"])
async def test_reset_forgets_the_pin_and_decides_afresh(value: bytes) -> None:
    gateway = Gateway("a", "b")
    app = SessionPinMiddleware(gateway)
    reset = (b"x-session-pin", value)
    answers = [await call(app, {"model": "auto"}, SESSION, *control) for control in ([], [reset], [])]
    assert [answer.pin_status for answer in answers] == ["miss", "miss", "hit"]
    assert gateway.asked == ["auto", "auto", "b"]


@case(Section.SESSION, "`X-Session-Pin` with any other value", "as if absent")
@pytest.mark.parametrize("value", [b"", b"on", b"off, reset", b"offf"])
async def test_any_other_control_value_is_as_if_absent(value: bytes) -> None:
    gateway = Gateway("a")
    app = SessionPinMiddleware(gateway)
    statuses = [(await call(app, {"model": "auto"}, SESSION, (b"x-session-pin", value))).pin_status for _ in range(2)]
    assert statuses == ["miss", "hit"]


@case(Section.SESSION, "a model that `routing.router_models` does not name", "`ignored; reason=model-not-routed`")
async def test_with_router_models_other_models_pass_untouched() -> None:
    gateway = Gateway("a", "b")
    app = SessionPinMiddleware(gateway, config=Config(routing=Routing(router_models=("auto", "smart-*"))))
    answers = [await call(app, {"model": "gpt-4o"}, SESSION) for _ in range(2)]
    assert [answer.pin_status for answer in answers] == ["ignored; reason=model-not-routed"] * 2
    assert gateway.bodies == [b'{"model": "gpt-4o"}'] * 2
    assert (await call(app, b'{"model":["auto"]}', SESSION)).pin_status == "ignored; reason=model-not-routed"
    assert (await call(app, {"model": "auto"}, SESSION)).pin_status == "miss"
    assert (await call(app, {"model": "smart-x"}, SESSION)).pin_status == "miss"
    assert (await call(app, {"n": 1}, SESSION)).pin_status == "miss", "naming none is no choice of another"


async def test_response_headers_of_ours_replace_the_apps_and_can_be_turned_off() -> None:
    async def claims(send: Send, model: str) -> None:
        stale = [(b"X-Session-Pinned", b"yes"), (b"x-session-model", b"z"), (b"x-session-pin-status", b"z")]
        await respond(send, json.dumps({"model": model}).encode(), headers=[JSON_TYPE, *stale])

    app = SessionPinMiddleware(Gateway("a", answer=claims))
    assert "x-session-model" not in (await call(app, {"model": "auto"}, SESSION)).headers
    assert (await call(app, {"model": "auto"}, SESSION)).headers["x-session-model"] == "a"

    gateway = Gateway("a")
    silent = SessionPinMiddleware(gateway, config=Config(response_headers=False))
    for _ in range(2):
        assert (await call(silent, {"model": "auto"}, SESSION)).headers == {"content-type": "application/json"}
    assert gateway.asked == ["auto", "a"]


@pytest.mark.parametrize("headers", [{}, {"headers": ()}, {"headers": iter([])}])
async def test_a_response_start_with_any_kind_of_headers_gets_ours(headers: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        await send({"type": "http.response.start", "status": 204, **headers})
        await send({"type": "http.response.body"})

    answer = await call(SessionPinMiddleware(app), {"model": "auto"}, SESSION)
    assert answer.headers == {"x-session-pinned": "false", "x-session-pin-status": "miss"}


async def test_aliases_turn_the_answered_name_into_the_one_to_send() -> None:
    gateway = Gateway("gpt-4o-mini")
    aliases = {"gpt-*": "openai/gpt-*", "gpt-4o-mini": "never reached"}
    app = SessionPinMiddleware(gateway, config={"decisions": {"aliases": aliases}})
    await call(app, {"model": "auto"}, SESSION)
    await call(app, {"model": "auto"}, SESSION)
    assert gateway.asked == ["auto", "openai/gpt-4o-mini"]


async def test_a_name_from_a_header_is_told_at_once() -> None:
    async def chosen(send: Send, model: str) -> None:
        await respond(send, b"{}", headers=[(b"x-vsr-selected-model", model.encode())])

    answer = await call(SessionPinMiddleware(Gateway("a", answer=chosen)), {"model": "auto"}, SESSION)
    assert (answer.pin_status, answer.headers["x-session-model"]) == ("miss", "a")


async def test_after_the_body_the_app_gets_the_servers_own_messages() -> None:
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.append(await receive())
        await answer_json(send, "a")
        received.append(await receive())

    middleware = SessionPinMiddleware(app)
    for _ in range(2):
        await call(middleware, [b'{"model":', b'"auto"}'], SESSION)
    assert [message["type"] for message in received] == ["http.request", "http.disconnect"] * 2
    assert [message.get("body") for message in received[::2]] == [b'{"model":"auto"}', b'{"model":"a"}']


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_a_starlette_stream_is_whole_whatever_the_spec_version(spec_version: str) -> None:
    from starlette.responses import StreamingResponse

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        chunks = (f"data: {n}\n\n" for n in range(3))
        await StreamingResponse(chunks, media_type="text/event-stream")(scope, receive, send)

    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    left = body_messages(b'{"model":"auto"}')

    async def receive() -> Message:
        if left:
            return left.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    scope = http_scope(SESSION)
    scope["asgi"]["spec_version"] = spec_version
    await SessionPinMiddleware(app)(scope, receive, send)
    assert b"".join(message.get("body", b"") for message in messages) == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


async def test_parallel_first_requests_agree_from_the_first_answer_on() -> None:
    gateway = Gateway("a", "b", "c")
    app = SessionPinMiddleware(gateway)
    await asyncio.gather(*(call(app, {"model": "auto"}, SESSION) for _ in range(3)))
    answers = [await call(app, {"model": "auto"}, SESSION) for _ in range(3)]
    assert [answer.json["model"] for answer in answers] == ["a"] * 3


@case(Section.PIN, "a main and a small model in one session, at the same time", "each keeps its own")
async def test_a_title_on_a_small_model_beside_the_main_model_keeps_both() -> None:
    """As OpenCode works: two calls at the same time, one session id, two models."""
    gateway = Gateway(answer=answer_stream)
    app = SessionPinMiddleware(gateway)
    headers: list[Header] = [
        (b"x-session-id", b"ses_df97c4f89ffek8L1myVQnkvs5Z"),
        (b"x-session-affinity", b"ses_df97c4f89ffek8L1myVQnkvs5Z"),
    ]
    for status in ("miss", "hit"):
        small, main = await asyncio.gather(
            call(app, {"model": "gpt-4o-mini", "stream": True}, *headers),
            call(app, {"model": "gpt-4o", "stream": True}, *headers),
        )
        assert (small.pin_status, main.pin_status) == (status, status)
        assert b'"model": "gpt-4o-mini"' in small.body
        assert b'"model": "gpt-4o",' in main.body


class Failing(MemoryStore):
    """A store that is down, for the methods named."""

    def __init__(self, *down: str) -> None:
        super().__init__()
        self.down = down

    async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
        if "get" in self.down:
            raise OSError("down")
        return await super().get(key)

    async def add(self, key: bytes, pin: Pin) -> Pin:
        if "add" in self.down:
            raise OSError("down")
        return await super().add(key, pin)


@case(Section.SHARED_STORE, "the store can't be read", "`miss; reason=store-unavailable`; the router decides")
async def test_a_store_that_cannot_be_read_leaves_the_request_to_the_router() -> None:
    gateway = Gateway("a", "b")
    app = SessionPinMiddleware(gateway, store=Failing("get"))
    for control in ([], [(b"x-session-pin", b"reset")]):
        answer = await call(app, {"model": "auto"}, SESSION, *control)
        assert answer.pin_status == "miss; reason=store-unavailable"
        assert answer.headers["x-session-pinned"] == "false"
    assert gateway.asked == ["auto", "auto"]


@case(
    Section.SHARED_STORE,
    "the store can't be written",
    "this process keeps the pin: the next answer is `hit; reason=store-unavailable`",
)
async def test_a_store_that_cannot_be_written_leaves_the_pin_to_this_process(caplog: pytest.LogCaptureFixture) -> None:
    app = SessionPinMiddleware(Gateway("a", "b"), store=Failing("add"))
    answers = [await call(app, {"model": "auto"}, SESSION) for _ in range(2)]
    assert [answer.json["model"] for answer in answers] == ["a", "a"]
    assert [answer.pin_status for answer in answers] == ["miss", "hit; reason=store-unavailable"]
    assert "the pin store failed" in caplog.text
    assert "session-1" not in caplog.text


async def test_a_store_that_fails_before_the_response_starts_is_told() -> None:
    async def chosen(send: Send, model: str) -> None:
        await respond(send, b"{}", headers=[(b"x-vsr-selected-model", model.encode())])

    app = SessionPinMiddleware(Gateway("a", answer=chosen), store=Failing("add"))
    answer = await call(app, {"model": "auto"}, SESSION)
    assert answer.pin_status == "miss; reason=store-unavailable"
    assert answer.headers["x-session-model"] == "a"


@pytest.mark.parametrize("answer", [answer_json, answer_stream])
async def test_a_request_that_is_over_waits_for_no_collection_of_garbage(answer: Any) -> None:
    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        await answer(send, "a")

    app = SessionPinMiddleware(route)
    await call(app, {"model": "auto"}, SESSION)
    gc.collect()
    gc.disable()
    try:
        await call(app, {"model": "auto"}, SESSION)
        await call(app, {"model": "auto"}, (b"x-session-id", b"another"))
        assert not [left for left in gc.get_objects() if type(left) is Exchange]
    finally:
        gc.enable()


async def test_the_first_decision_wins_over_a_later_one() -> None:
    store = MemoryStore()
    gateway = Gateway("late")
    seen: list[bytes] = []

    class Raced(MemoryStore):
        async def add(self, key: bytes, pin: Pin) -> Pin:
            seen.append(key)
            await store.add(key, Pin("early", pin.created))
            return await store.add(key, pin)

        async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
            return await store.get(key)

    app = SessionPinMiddleware(gateway, store=Raced())
    await call(app, {"model": "auto"}, SESSION, path=CHAT)
    assert (await call(app, {"model": "auto"}, SESSION)).headers["x-session-model"] == "early"


async def test_whoever_logs_what_the_app_is_called_with_logs_nothing_of_ours() -> None:
    shown: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        shown.append(f"{scope['asgi_session_pin']!r} {receive!r} {send!r}")
        await read_body(receive)
        await answer_json(send, "a")

    middleware = SessionPinMiddleware(app)
    for _ in range(2):
        await call(middleware, {"model": "auto", "prompt": "hush"}, SESSION, (b"authorization", b"Bearer sk-1"))
    for secret in ("session-1", "hush", "sk-1"):
        assert secret not in "".join(shown)
    assert "Exchange object" in shown[0]
