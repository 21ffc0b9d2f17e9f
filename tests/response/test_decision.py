"""Decision endpoints: services that only say which model they would use."""

import asyncio
import json
import time
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from asgi_driver import (
    CHAT,
    DECISION,
    JSON_TYPE,
    SESSION,
    SSE_TYPE,
    Answer,
    Clock,
    Gateway,
    Header,
    call,
    read_body,
    respond,
)
from asgi_session_pin import Config, Limits, MemoryStore, Pin, Routing, SessionPinMiddleware
from asgi_session_pin.response.decision import MAX_MEMORY_BYTES, MAX_REMEMBERED_BYTES, RememberedDecisions
from behaviour_document import Section, case

SESSION_2: Header = (b"x-session-id", b"2")
TRACEPARENT: Header = (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


class Router:
    """A decision service that answers with the next of its contents."""

    def __init__(self, *contents: Any, headers: list[Header] | None = None, status: int = 200, cut: int = 0) -> None:
        self.contents = [c if isinstance(c, bytes) else json.dumps(c).encode() for c in contents]
        self.headers = [JSON_TYPE] if headers is None else headers
        self.status = status
        self.cut = cut
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append({**scope, "headers": list(scope["headers"])})
        await read_body(receive)
        content = self.contents.pop(0)
        chunks = [content[: self.cut], content[self.cut :]] if self.cut else [content]
        length = (b"content-length", b"%d" % len(content))
        await respond(send, *chunks, status=self.status, headers=[*self.headers, length])


async def decide(app: Any, *headers: Header, model: str = "auto") -> Answer:
    return await call(app, {"model": model}, *headers, path=DECISION)


DECIDED = {"models": ["a", "b"], "route": None, "trace_id": "t1", "score": 0.5}


@case(Section.DECISION_ENDPOINT, "miss", "the app's object with `session_id` and `pinned: false`")
@pytest.mark.parametrize("cut", [0, 1, 20])
async def test_a_miss_tells_the_session_and_that_it_is_not_pinned(cut: int) -> None:
    answer = await decide(SessionPinMiddleware(Router(DECIDED, cut=cut)), SESSION)
    assert answer.json == {**DECIDED, "session_id": "session-1", "pinned": False}
    assert answer.headers["content-length"] == str(len(answer.body))
    assert (answer.pin_status, answer.headers["x-session-pinned"]) == ("miss", "false")


@case(
    Section.DECISION_ENDPOINT,
    "hit",
    "the remembered object with `pinned: true` and a fresh `trace_id`; the app is not called",
)
async def test_a_hit_replays_the_decision_without_calling_the_app() -> None:
    router = Router(DECIDED)
    app = SessionPinMiddleware(router)
    await decide(app, SESSION)
    answer = await decide(app, SESSION, TRACEPARENT)
    assert answer.json == {
        **DECIDED,
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "session_id": "session-1",
        "pinned": True,
    }
    assert len(router.scopes) == 1
    assert answer.headers == {
        "content-type": "application/json",
        "content-length": str(len(answer.body)),
        "x-session-pinned": "true",
        "x-session-model": "a",
        "x-session-pin-status": "hit",
    }


@pytest.mark.parametrize("traceparent", [[], [(b"traceparent", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01")]])
async def test_without_a_usable_traceparent_the_trace_id_is_random(traceparent: list[Header]) -> None:
    app = SessionPinMiddleware(Router(DECIDED))
    await decide(app, SESSION)
    ids = {(await decide(app, SESSION, *traceparent)).json["trace_id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(len(id) == 32 and int(id, 16) for id in ids)


@case(Section.DECISION_ENDPOINT, "the app has members of these names", "they stay on a miss")
async def test_members_of_the_apps_own_stay_on_a_miss_and_ours_answer_on_a_hit() -> None:
    app = SessionPinMiddleware(Router({"model": "a", "pinned": None, "session_id": "own"}))
    assert (await decide(app, SESSION)).json == {"model": "a", "pinned": None, "session_id": "own"}
    assert (await decide(app, SESSION)).json == {"model": "a", "pinned": True, "session_id": "session-1"}


async def test_a_decision_that_names_its_model_in_a_header_is_remembered_whole() -> None:
    app = SessionPinMiddleware(Router({"route": "code"}, headers=[JSON_TYPE, (b"x-vsr-selected-model", b"a")]))
    await decide(app, SESSION)
    assert (await decide(app, SESSION)).json == {"route": "code", "session_id": "session-1", "pinned": True}


@case(Section.DECISION_ENDPOINT, "the object is over 8 KiB", "a hit has `model`, `session_id`, `pinned`")
async def test_a_decision_over_8_kib_is_remembered_by_its_model() -> None:
    app = SessionPinMiddleware(Router({"model": "a", "why": "x" * 9000}))
    assert len((await decide(app, SESSION)).json["why"]) == 9000
    assert (await decide(app, SESSION)).json == {"model": "a", "session_id": "session-1", "pinned": True}


async def test_a_pin_made_here_serves_chat_and_the_other_way_round() -> None:
    gateway = Gateway("decided", "chosen", "other")
    app = SessionPinMiddleware(gateway)
    await decide(app, SESSION)
    assert (await call(app, {"model": "auto"}, SESSION, path=CHAT)).json["model"] == "decided"
    await call(app, {"model": "auto"}, SESSION_2, path=CHAT)
    assert (await decide(app, SESSION_2)).json["model"] == "chosen"
    assert gateway.asked == ["auto", "decided", "auto", "auto"]


@case(
    Section.DECISION_ENDPOINT,
    "the pin was made by a completion",
    "the app is asked once; its object comes back, and is remembered, with the pin's model and `pinned: true`",
)
async def test_for_a_pin_of_a_completion_the_app_is_asked_once() -> None:
    router = Router({"model": "a"}, {"route": "code", "models": ["b", "c"], "trace_id": "t1"})
    app = SessionPinMiddleware(router)
    await call(app, {"model": "auto"}, SESSION)
    first, second = await decide(app, SESSION), await decide(app, SESSION, TRACEPARENT)
    expected = {"route": "code", "models": ["a", "c"], "model": "a", "session_id": "session-1", "pinned": True}
    assert first.json == {**expected, "trace_id": "t1"}
    assert second.json == {**expected, "trace_id": "0af7651916cd43dd8448eb211c80319c"}
    assert len(router.scopes) == 2
    assert (first.headers["content-length"], first.pin_status) == (str(len(first.body)), "hit")
    assert (first.headers["x-session-model"], first.headers["x-session-pinned"]) == ("a", "true")
    assert {(b"x-session-pinned", b"true"), (b"x-session-model", b"a")} <= set(router.scopes[1]["headers"])


@pytest.mark.parametrize("decided", [{"model": "b", "route": 1}, {"route": 1}, {"route": 1, "model": "a"}])
async def test_whatever_the_app_decides_for_a_session_with_a_pin_its_model_is_the_pins(decided: Any) -> None:
    app = SessionPinMiddleware(Router({"model": "a"}, decided))
    await call(app, {"model": "auto"}, SESSION)
    assert (await decide(app, SESSION)).json == {"route": 1, "model": "a", "session_id": "session-1", "pinned": True}


@case(
    Section.DECISION_ENDPOINT,
    "the app has not answered for `session_ttl_seconds`, whatever hits there were",
    "it is asked again; a key that was revoked gets its 401. The pin stays",
)
async def test_hits_do_not_keep_a_decision_from_being_asked_for_again() -> None:
    clock = Clock()
    router = Router({"model": "a", "n": 1}, {"model": "b", "n": 2}, {"model": "a"})
    app = SessionPinMiddleware(router, clock=clock)

    async def later(seconds: float) -> Answer:
        clock.now += seconds
        return await decide(app, SESSION)

    await later(0)
    assert [(await later(seconds)).json["n"] for seconds in (300, 299, 1, 599)] == [1, 1, 2, 2]
    assert len(router.scopes) == 2
    clock.now += 400
    router.status = 401
    refused = await later(1)
    assert (refused.start["status"], refused.json) == (401, {"model": "a"})
    assert (refused.pin_status, refused.headers["x-session-pinned"]) == ("miss", "false")
    router.contents = [b'{"model":"b"}'] * 2
    router.status = 200
    assert (await later(599)).json["model"] == "a"


@pytest.mark.parametrize(
    ("content", "headers"), [(b'{"error":"x"}', [JSON_TYPE]), (b"x", [JSON_TYPE]), (b'{"model":"b"}', [SSE_TYPE])]
)
async def test_an_answer_that_is_no_decision_passes_also_where_there_is_a_pin(
    content: bytes, headers: list[Header]
) -> None:
    router = Router({"model": "a"}, content, content)
    app = SessionPinMiddleware(router)
    await call(app, {"model": "auto"}, SESSION)
    router.headers = headers
    answers = [await decide(app, SESSION) for _ in range(2)]
    assert [answer.body for answer in answers] == [content] * 2
    assert [answer.pin_status for answer in answers] == ["miss"] * 2


async def test_a_decision_of_another_process_is_repeated_while_it_is_young() -> None:
    store = MemoryStore()
    router = Router(DECIDED, {"model": "b", "n": 2})
    await decide(SessionPinMiddleware(router, store=store), SESSION)
    assert (await decide(SessionPinMiddleware(router, store=store), SESSION)).json["models"] == ["a", "b"]
    config = Config(routing=Routing(session_ttl_seconds=1e-9))
    assert (await decide(SessionPinMiddleware(router, store=store, config=config), SESSION)).json["n"] == 2


async def test_what_is_remembered_of_a_pin_is_nothing_of_the_next_one() -> None:
    router = Router({"model": "a", "n": 1}, {"model": "b"}, {"model": "b", "n": 3})
    app = SessionPinMiddleware(router)
    await decide(app, SESSION)
    await call(app, {"model": "auto"}, SESSION, (b"x-session-pin", b"reset"))
    assert (await decide(app, SESSION)).json["n"] == 3


async def test_of_two_decisions_the_first_is_repeated() -> None:
    both, router = asyncio.Barrier(2), Router({"model": "a", "n": 1}, {"model": "b", "n": 2})

    async def together(scope: Scope, receive: Receive, send: Send) -> None:
        if len(router.scopes) < 2:
            await both.wait()
        await router(scope, receive, send)

    app = SessionPinMiddleware(together, config=Config(routing=Routing(decision_wait_seconds=0)))
    await asyncio.gather(decide(app, SESSION), decide(app, SESSION))
    assert (await decide(app, SESSION)).json["n"] == 1


def test_what_is_remembered_is_bounded_in_bytes() -> None:
    remembered = RememberedDecisions(600, time.monotonic, time.time)
    pin = Pin("a", 0.0)
    number = MAX_MEMORY_BYTES // MAX_REMEMBERED_BYTES
    for n in range(number):
        remembered.keep(b"%d" % n, pin, b"x" * MAX_REMEMBERED_BYTES)
    assert remembered.find(b"0", pin) is None
    assert remembered.find(b"%d" % (number - 1), pin) is not None


async def test_without_a_session_it_passes_untouched() -> None:
    router = Router(DECIDED)
    answer = await decide(SessionPinMiddleware(router), (b"accept-encoding", b"gzip"))
    assert answer.json == DECIDED
    assert answer.pin_status is None
    assert (b"accept-encoding", b"gzip") in router.scopes[0]["headers"]


async def test_the_app_is_asked_for_an_answer_that_can_be_edited() -> None:
    router = Router(DECIDED)
    await decide(SessionPinMiddleware(router), SESSION, (b"accept-encoding", b"gzip, br"))
    encodings = [value for name, value in router.scopes[0]["headers"] if name == b"accept-encoding"]
    assert encodings == [b"identity"]


@case(Section.DECISION_ENDPOINT, "an invalid body", "the app judges it, pin or no pin")
async def test_an_invalid_body_goes_to_the_app_even_where_a_pin_exists() -> None:
    router = Router(DECIDED, {"error": "bad"})
    app = SessionPinMiddleware(router)
    await decide(app, SESSION)
    answer = await call(app, b"{", SESSION, path=DECISION)
    assert answer.json == {"error": "bad"}
    assert answer.pin_status == "ignored; reason=body-not-json"


@case(
    Section.DECISION_ENDPOINT,
    "an answer that can't be edited: an error, a stream, compressed, signed, too large",
    "passes as it is",
)
@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b'{"error":1}', [JSON_TYPE], 400),
        (b"[1]", [JSON_TYPE], 200),
        (b"{", [JSON_TYPE], 200),
        (b'{"model":"a"}', [], 200),
        (b'data: {"model":"a"}\n\n', [SSE_TYPE], 200),
        (b'{"model":"a"}', [JSON_TYPE, (b"content-encoding", b"gzip")], 200),
        (b'{"model":"a"}', [JSON_TYPE, (b"content-digest", b"x")], 200),
        (b'{"model":"a","x":"%s"}' % (b"x" * 100), [JSON_TYPE], 200),
    ],
)
async def test_an_answer_that_cannot_be_edited_passes(content: bytes, headers: list[Header], status: int) -> None:
    config = Config(limits=Limits(max_inspected_response_bytes=100))
    for cut in (0, 5):
        router = Router(content, headers=headers, status=status, cut=cut)
        answer = await decide(SessionPinMiddleware(router, config=config), SESSION)
        assert answer.body == content
        assert (answer.start["status"], answer.headers["content-length"]) == (status, str(len(content)))


async def test_an_answer_of_unknown_length_is_let_go_at_the_limit() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        await respond(send, b'{"x":"', b"x" * 60, b"x" * 60, b'"}')

    config = Config(limits=Limits(max_inspected_response_bytes=100))
    answer = await decide(SessionPinMiddleware(app, config=config), SESSION)
    assert answer.body == b'{"x":"' + b"x" * 120 + b'"}'
    assert [len(message.get("body", b"")) for message in answer.messages] == [0, 126, 2]


async def test_a_message_of_another_kind_ends_the_holding() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [JSON_TYPE]})
        await send({"type": "http.response.pathsend", "path": "decision.json"})

    answer = await decide(SessionPinMiddleware(app), SESSION)
    assert [message["type"] for message in answer.messages] == ["http.response.start", "http.response.pathsend"]


async def test_an_edited_answer_has_one_framing_header() -> None:
    app = SessionPinMiddleware(Router(DECIDED, headers=[JSON_TYPE, (b"transfer-encoding", b"chunked")]))
    answer = await decide(app, SESSION)
    assert answer.headers["content-length"] == str(len(answer.body))
    assert "transfer-encoding" not in answer.headers


@case(Section.DECISION_ENDPOINT, "the service answers, but not in JSON", "passes as it is; nothing is pinned")
async def test_a_service_that_does_not_answer_in_json_is_not_pinned() -> None:
    for media_type in (SSE_TYPE, (b"content-type", b"text/plain")):
        chosen = (b"x-vsr-selected-model", b"a")
        router = Router(*[b'data: {"model":"a"}\n\n'] * 2, headers=[media_type, chosen])
        app = SessionPinMiddleware(router)
        answers = [await decide(app, SESSION) for _ in range(2)]
        assert [answer.pin_status for answer in answers] == ["miss", "miss"]
        assert answers[0].body == answers[1].body


async def test_what_is_held_is_sent_when_the_app_returns_before_its_answer_is_whole() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [JSON_TYPE]})
        await send({"type": "http.response.body", "body": b'{"mod', "more_body": True})

    answer = await decide(SessionPinMiddleware(app), SESSION)
    assert (answer.start["status"], answer.body) == (200, b'{"mod')


async def test_headers_of_an_answer_may_come_as_an_iterator() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        headers = iter([JSON_TYPE, (b"x-app", b"1")])
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"model":"a"}'})

    answer = await decide(SessionPinMiddleware(app), SESSION)
    assert (answer.headers["x-app"], answer.json["pinned"]) == ("1", False)


async def test_with_header_sources_alone_the_object_is_remembered_all_the_same() -> None:
    chosen = (b"x-model", b"a")
    config = {"decisions": {"sources": ["header:x-model"]}}
    app = SessionPinMiddleware(Router({"model": "own", "route": "r"}, headers=[JSON_TYPE, chosen]), config=config)
    await decide(app, SESSION)
    answer = await decide(app, SESSION)
    assert answer.json == {"model": "own", "route": "r", "session_id": "session-1", "pinned": True}
    assert answer.headers["x-session-model"] == "a"
    failing = SessionPinMiddleware(Router(*[{"error": "x"}] * 2, headers=[JSON_TYPE, chosen]), config=config)
    assert [(await decide(failing, SESSION)).pin_status for _ in range(2)] == ["miss", "miss"]


async def test_a_store_that_gives_back_nonsense_is_answered_by_the_model_alone() -> None:
    class Broken(MemoryStore):
        async def get(self, key: bytes) -> Pin | None:
            return Pin("a", time.time(), b"{broken")

    answer = await decide(SessionPinMiddleware(Router(), store=Broken()), SESSION)
    assert answer.json == {"model": "a", "session_id": "session-1", "pinned": True}
