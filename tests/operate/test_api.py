"""The operators' API, over each kind of store that one process can have."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Send

from asgi_driver import SESSION, Answer, Clock, Gateway, Header, answer_json, call, http_scope, respond, until
from asgi_session_pin import Config, Lapsed, MemoryStore, Pin, PinEvent, Routing, SessionPinMiddleware, Store
from asgi_session_pin.config import Admin
from asgi_session_pin.operate.admin import AdminApp, create_admin
from asgi_session_pin.operate.api import MOST_BYTES
from asgi_session_pin.pins.steering import MOST_RETIRED, READ_SECONDS
from asgi_session_pin.stores.sqlite import SQLiteStore
from behaviour_document import Section, case

TOKEN = "0123456789abcdef"
BEARER: Header = (b"authorization", f"Bearer {TOKEN}".encode())
ALICE: Header = (b"authorization", b"Bearer alice")
AUTO = {"model": "auto"}
LOOP = {**AUTO, "messages": [{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "1", "content": "y"}]}


class Operated:
    """A gateway behind the middleware, and the operators' app."""

    def __init__(self, *models: str, **options: Any) -> None:
        self.gateway = Gateway(*models)
        self.events: list[PinEvent] = []
        settings = Config(
            admin=Admin(token=TOKEN), routing=options.pop("routing", Routing()), store=Store(timeout_seconds=5)
        )
        self.app = SessionPinMiddleware(self.gateway, config=settings, listeners=[self.events.append], **options)
        self.admin: ASGIApp = create_admin(self.app)

    async def chat(self, content: Any = AUTO, *headers: Header) -> tuple[str | None, Any]:
        answer = await call(self.app, content, *(headers or (SESSION,)))
        return answer.pin_status, answer.json["model"]

    async def ask(self, path: str, method: str = "GET", content: Any = b"") -> Answer:
        path, _, query = path.partition("?")
        length = (b"content-type", b"application/json")
        scope_path = f"/api/{path}"
        scope = {**http_scope(BEARER, length, path=scope_path, method=method), "query_string": query.encode()}
        return await call(self.admin, content, scope=scope)

    async def get(self, path: str) -> Any:
        answer = await self.ask(path)
        assert answer.start["status"] == 200, answer.body
        return answer.json

    async def do(self, method: str, path: str, content: Any = b"") -> int:
        return int((await self.ask(path, method, content)).start["status"])


@pytest.fixture(params=["memory", "sqlite"])
async def operated(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Operated]:
    store = None if request.param == "memory" else SQLiteStore(tmp_path / "pins.db")
    made = Operated("a", "b", "c", store=store)
    yield made
    await made.app.aclose()


async def only_pin(operated: Operated) -> Any:
    [pin] = (await operated.get("pins"))["pins"]
    return pin


@case(Section.OPERATORS, "`GET api/pins`", "those that hold, page by page, of one model or of all; it renews none")
async def test_pins_are_listed_page_by_page(operated: Operated) -> None:
    operated.gateway.models = ["a"] * 10 + ["b"] * 20
    for number in range(25):
        await operated.chat(AUTO, (b"x-session-id", b"%d" % number))
    seen: list[Any] = []
    answer = await operated.get("pins?limit=10")
    while True:
        seen += answer["pins"]
        if answer["next"] is None:
            break
        answer = await operated.get(f"pins?limit=10&after={answer['next']}")
    assert len({pin["key"] for pin in seen}) == 25 == len(seen)
    assert {pin["model"] for pin in seen} == {"a", "b"}
    assert len((await operated.get("pins?model=a&limit=1000"))["pins"]) == 10
    assert set(seen[0]) == {"key", "model", "created", "idle_seconds", "by"}


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after=-1", "after=%27", "limit=-5"])
async def test_a_listing_that_cannot_be_is_refused(operated: Operated, query: str) -> None:
    answer = await operated.ask(f"pins?{query}")
    assert (answer.start["status"], answer.json["error"]["code"]) == (400, "invalid_request")


@case(Section.OPERATORS, "`GET`, `DELETE api/pins/{key}`", "the pin; after it is deleted the session is routed anew")
async def test_a_pin_is_shown_and_deleted(operated: Operated) -> None:
    assert await operated.chat() == ("miss", "a")
    pin = await only_pin(operated)
    assert pin["model"], pin["by"] == ("a", "router")
    assert (await operated.get(f"pins/{pin['key']}"))["model"] == "a"
    assert await operated.do("DELETE", f"pins/{pin['key']}") == 204
    assert await operated.do("DELETE", f"pins/{pin['key']}") == 404
    assert await operated.do("GET", f"pins/{pin['key']}") == 404
    assert await operated.chat() == ("miss", "b")


@pytest.mark.parametrize("key", ["x", "0" * 31, "0" * 33, "A" * 32, "../pins", "%2e%2e"])
async def test_what_is_no_key_is_nothing(key: str) -> None:
    assert await Operated("a").do("GET", f"pins/{key}") == 404


@case(
    Section.OPERATORS,
    "`PUT api/pins/{key}`",
    "the session is on that model until the pin is deleted or lapses: failures are routed around, `reset` does nothing",
)
async def test_a_pin_by_an_operator_stays(operated: Operated) -> None:
    await operated.chat()
    key = (await only_pin(operated))["key"]
    answer = await operated.ask(f"pins/{key}", "PUT", {"model": "mine"})
    assert (answer.json["model"], answer.json["by"]) == ("mine", "operator")
    assert await operated.chat() == ("hit", "mine")

    async def refuse(send: Send, model: str) -> None:
        await respond(send, b'{"error":{"code":"model_not_found"}}', status=404)

    operated.gateway.serve = refuse
    for _ in range(5):
        assert (await operated.chat())[0] == "reroute"
    operated.gateway.serve = answer_json
    assert await operated.chat() == ("hit", "mine")
    await call(operated.app, AUTO, SESSION, (b"x-session-pin", b"reset"))
    assert await operated.do("PUT", "retired/mine") == 204
    assert await operated.chat() == ("hit", "mine")
    assert (await only_pin(operated))["by"] == "operator"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        ({"model": 5}, 400),
        ({"model": ""}, 400),
        ({"model": "x" * 257}, 400),
        ({"model": "a b"}, 400),
        ({"model": "a\n"}, 400),
        ({}, 400),
        (b"[" * 60_000, 400),
        (b'{"model":"' + b"x" * MOST_BYTES + b'"}', 413),
    ],
)
async def test_a_model_that_cannot_be_is_refused(content: Any, status: int) -> None:
    assert await Operated("a").do("PUT", f"pins/{'0' * 32}", content) == status


@case(Section.OPERATORS, "`POST api/lookup`", "the pin of a session by its id and credential, of which nothing is kept")
async def test_a_session_is_looked_up_by_its_id_and_credential(
    operated: Operated, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    await operated.chat(AUTO, SESSION, ALICE)
    asked = {"session_id": "session-1", "headers": {"Authorization": "Bearer alice"}, "model": "auto"}
    found = (await operated.ask("lookup", "POST", asked)).json
    assert found["pin"]["model"] == "a"
    assert found["pin"]["key"] == found["key"] == (await only_pin(operated))["key"]
    assert (await operated.ask("lookup", "POST", {**asked, "model": "other"})).json["pin"] is None
    assert (await operated.ask("lookup", "POST", {**asked, "headers": {"authorization": "ä€"}})).start["status"] == 400
    assert "alice" not in str(found)
    assert "alice" not in caplog.text


@case(Section.OPERATORS, "`PUT api/retired/{model}`", "no human turn goes there any longer; a tool loop stays on it")
async def test_a_retired_model_is_left_at_the_next_turn_that_is_no_tool_loop(operated: Operated) -> None:
    operated.gateway.models = ["a/1", "a/1", "b"]
    assert await operated.chat() == ("miss", "a/1")
    assert await operated.do("PUT", "retired/a/1") == 204
    assert (await operated.get("retired"))["retired"] == ["a/1"]
    assert await operated.chat(LOOP) == ("hit", "a/1")
    assert await operated.chat() == ("miss", "a/1")  # the router's choice, which is no decision
    assert await operated.chat() == ("miss", "b")
    assert await operated.chat() == ("hit", "b")
    assert [event.changes for event in operated.events][2:4] == [("retired",), ("made",)]
    assert await operated.do("DELETE", "retired/a/1") == 204
    assert (await operated.get("retired"))["retired"] == []


@case(Section.OPERATORS, "`PUT api/pause`", "every request passes, `off; reason=paused`, until `DELETE api/pause`")
async def test_while_paused_no_pin_is_read_or_written(operated: Operated) -> None:
    await operated.chat()
    assert await operated.get("pause") == {"paused": False}
    assert await operated.do("PUT", "pause") == 204
    assert await operated.get("pause") == {"paused": True}
    assert await operated.chat() == ("off; reason=paused", "b")
    assert await operated.chat(AUTO, (b"x-session-id", b"2")) == ("off; reason=paused", "c")
    assert len((await operated.get("pins"))["pins"]) == 1
    assert await operated.do("DELETE", "pause") == 204
    assert await operated.chat() == ("hit", "a")


async def test_models_are_told_with_their_pins_and_requests(operated: Operated) -> None:
    await operated.get("models")
    for number in range(2):
        await operated.chat(AUTO, (b"x-session-id", b"%d" % number))
        await operated.chat(AUTO, (b"x-session-id", b"%d" % number))
    await operated.do("PUT", "retired/z")
    operated.app.runtime.listeners[-1](PinEvent("reroute", None, "*", model="b", verdict="unavailable"))
    other = create_admin(operated.app)  # which has no census yet
    scope_answer = await call(other, b"", BEARER, path="/api/models", method="GET")
    assert {each["model"]: each["pins"] for each in scope_answer.json["models"]} == {"a": 1, "b": 1, "z": 0}
    found = await operated.get("models")
    told = {each["model"]: (each["requests"], each["failures"], each["retired"]) for each in found["models"]}
    assert told == {"a": (2, 0, False), "b": (3, 1, False), "z": (0, 0, True)}
    assert isinstance(found["worker"], int)


@case(Section.OPERATORS, "`retired` and `pause` with `memory://` and several workers", "409")
async def test_workers_with_pins_of_their_own_cannot_be_steered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["asgi-session-pin", "serve", "--workers", "2"])
    operated = Operated("a")
    for method, path in [("PUT", "pause"), ("DELETE", "pause"), ("PUT", "retired/a"), ("GET", "pause")]:
        answer = await operated.ask(path, method)
        assert (answer.start["status"], answer.json["error"]["code"]) == (409, "not_shared")


async def test_a_store_without_methods_for_operators_says_so() -> None:
    class Own:
        def __init__(self) -> None:
            self.inner = MemoryStore()
            self.get, self.add, self.discard, self.aclose = (
                self.inner.get,
                self.inner.add,
                self.inner.discard,
                self.inner.aclose,
            )

    operated = Operated("a", store=Own())
    assert isinstance(operated.admin, AdminApp)
    operated.admin.close()
    for path in ("pins", "pause", "retired", f"pins/{'0' * 32}"):
        answer = await operated.ask(path)
        assert (answer.start["status"], answer.json["error"]["code"]) == (501, "not_supported")
    assert (await operated.get("models"))["models"] == []


async def test_a_store_that_fails_is_told_without_its_words() -> None:
    class Broken(MemoryStore):
        async def scan(self, after: str | None, limit: int) -> Any:
            raise OSError("redis://:password@host")

        async def count(self) -> int:
            raise OSError

    operated = Operated("a", store=Broken())
    answer = await operated.ask("pins")
    assert (answer.start["status"], answer.json["error"]["code"]) == (503, "store_unavailable")
    assert "password" not in answer.body.decode()
    assert (await operated.get("models"))["models"] == []
    metrics = await call(operated.admin, b"", BEARER, path="/metrics", method="GET")
    assert metrics.start["status"] == 200


async def test_the_number_of_pins_is_a_figure(operated: Operated) -> None:
    await operated.chat()
    metrics = await call(operated.admin, b"", BEARER, path="/metrics", method="GET")
    assert "session_pin_pins 1.0" in metrics.body.decode().splitlines()


async def test_no_more_models_are_retired_than_a_note_holds(operated: Operated) -> None:
    steering = operated.app.runtime.steering
    note = operated.app.runtime.store
    assert isinstance(note, MemoryStore | SQLiteStore)
    names = ",".join(f'"m{number}"' for number in range(MOST_RETIRED))
    assert await note.replace_note(None, f'{{"generation":1,"retired":[{names}]}}'.encode())
    await steering.read()
    assert await operated.do("PUT", "retired/one-more") == 409
    assert await operated.do("DELETE", "retired/m1") == 204


# Several processes


async def test_other_processes_follow_within_a_second(tmp_path: Path) -> None:
    first, second = (Operated("a", "b", store=SQLiteStore(tmp_path / "pins.db")) for _ in range(2))
    await second.chat()
    await asyncio.sleep(0)
    assert await first.do("PUT", "pause") == 204
    steering = second.app.runtime.steering
    await until(lambda: steering.is_paused)
    assert (await second.chat())[0] == "off; reason=paused"
    assert await first.do("DELETE", "pause") == 204
    assert await first.do("PUT", "retired/a") == 204
    await until(lambda: not steering.is_paused and "a" in steering.retired)
    assert (await second.chat())[0] == "miss"
    await asyncio.gather(*(each.do("PUT", f"retired/x{n}") for n, each in enumerate([first, second] * 3)))
    assert len((await first.get("retired"))["retired"]) == 7
    for each in (first, second):
        await each.app.aclose()


async def test_in_an_outage_the_last_note_holds_and_a_lost_one_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(MemoryStore):
        is_down = False

        async def read_note(self) -> bytes | None:
            if self.is_down:
                raise OSError("down")
            return await super().read_note()

    store = Failing()
    operated = Operated("a", store=store)
    assert await operated.do("PUT", "pause") == 204
    store.is_down = True
    assert await operated.do("GET", "pause") == 503
    assert (await operated.chat())[0] == "off; reason=paused"
    await asyncio.sleep(0.01)
    assert "the operators' note in the pin store can't be read" in caplog.text
    store.is_down = False
    assert await store.replace_note(await store.read_note(), b"") is True
    store._note = None  # it has lost it
    assert await operated.get("pause") == {"paused": True}
    assert await store.read_note() is not None
    await operated.app.aclose()


async def test_evicted_and_forgotten_pins_are_counted(clock: Clock) -> None:
    operated = Operated("a", routing=Routing(session_max_entries=1), clock=clock)
    for number in range(3):
        await operated.chat(AUTO, (b"x-session-id", b"%d" % number))
    assert await operated.app.forget("2", model="auto")
    metrics = (await call(operated.admin, b"", BEARER, path="/metrics", method="GET")).body.decode().splitlines()
    assert 'session_pin_changes_total{cause="evicted"} 2.0' in metrics
    assert 'session_pin_changes_total{cause="forgotten"} 1.0' in metrics


def test_a_pin_of_before_is_by_the_router() -> None:
    assert Pin.decode(Pin("a", 1.0).encode()).by_operator is False
    assert isinstance(Lapsed(Pin("a", 1.0), 1), tuple)


async def test_what_a_store_has_no_way_to_do_is_told() -> None:
    class Unlisted(MemoryStore):
        async def scan(self, after: str | None, limit: int) -> Any:
            raise NotImplementedError

    answer = await Operated("a", store=Unlisted()).ask("pins")
    assert (answer.start["status"], answer.json["error"]["code"]) == (501, "not_supported")


async def test_a_body_that_does_not_come_in_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_session_pin.operate.api._BODY_SECONDS", 0.01)
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await Operated("a").admin(http_scope(BEARER, path="/api/lookup", method="POST"), receive, send)
    assert sent[0]["status"] == 408


async def test_requests_of_more_models_than_are_told_apart_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_session_pin.operate.api.MOST_MODELS", 2)
    operated = Operated("a")
    await operated.get("models")
    for model in ("a", "b", "c", "d", None):
        operated.app.runtime.listeners[-1](PinEvent("hit", None, "*", model=model))
    told = {each["model"]: each["requests"] for each in (await operated.get("models"))["models"]}
    assert told == {"a": 1, "b": 1, "other": 2}


async def test_pins_on_more_models_than_are_told_apart_are_on_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_session_pin.operate.api.MOST_MODELS", 2)
    operated = Operated("a", store=MemoryStore())
    for number, model in enumerate(["a", "b", "c", "d", "a"]):
        await operated.app.runtime.store.add(number.to_bytes(16, "big"), Pin(model, 1.0))
    told = {each["model"]: each["pins"] for each in (await operated.get("models"))["models"]}
    assert told == {"a": 2, "d": 1, "other": 2}


async def test_a_note_that_others_always_change_first_is_given_up() -> None:
    class Contended(MemoryStore):
        async def replace_note(self, old: bytes | None, new: bytes) -> bool:
            return False

    assert await Operated("a", store=Contended()).do("PUT", "pause") == 503


async def test_a_pin_that_others_always_decide_first_is_not_set() -> None:
    class Contended(MemoryStore):
        async def add(self, key: bytes, pin: Pin) -> Pin:
            return Pin("other", 1.0)

    assert await Operated("a", store=Contended()).do("PUT", f"pins/{'0' * 32}", {"model": "mine"}) == 503


async def test_a_listing_looks_past_what_has_lapsed(clock: Clock) -> None:
    store = MemoryStore(ttl_seconds=10, timer=clock)
    for number in range(1200):
        await store.add(number.to_bytes(16, "big"), Pin("a", 1.0))
    clock.now += 11
    assert (await store.scan(None, 10)).entries == []
    await store.add(bytes(15) + b"\1", Pin("b", 1.0))
    entries, after = await store.scan(None, 2000)
    assert [entry.pin.model for entry in entries] == ["b"]
    assert after is None
    assert await store.count() == 1


async def test_pins_of_a_rare_model_are_looked_for_within_bounds() -> None:
    operated = Operated("a", store=MemoryStore())
    store = operated.app.runtime.store
    for number in range(3000):
        await store.add(number.to_bytes(16, "big"), Pin("rare" if number == 0 else "a", 1.0))
    pages = 0
    found: list[Any] = []
    after: str | None = ""
    while after is not None:
        answer = await operated.get(f"pins?model=rare&limit=50&after={after}")
        found, after, pages = found + answer["pins"], answer["next"], pages + 1
    assert [pin["model"] for pin in found] == ["rare"]
    assert 2 <= pages <= 5
    models = (await operated.get("models"))["models"]
    assert {each["model"]: each["pins"] for each in models} == {"a": 2999, "rare": 1}


async def test_a_count_that_goes_on_ends_with_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(MemoryStore):
        async def scan(self, after: str | None, limit: int) -> Any:
            await asyncio.Event().wait()

    monkeypatch.setattr("asgi_session_pin.operate.api._PATIENCE_SECONDS", 0.01)
    operated = Operated("a", store=Endless())
    before = asyncio.all_tasks()
    assert (await operated.get("models"))["models"] == []
    others = asyncio.all_tasks() - before
    assert others
    assert isinstance(operated.admin, AdminApp)
    operated.admin.close()
    await asyncio.wait(others, timeout=5)
    assert all(task.done() for task in others)


@pytest.mark.parametrize("name", [" ", "a b", "ä", "x" * 257])
async def test_a_name_that_no_model_has_is_not_retired(name: str) -> None:
    assert await Operated("a").do("PUT", f"retired/{name}") == 400


async def test_a_note_is_read_no_more_after_the_end_and_in_another_loop_again(tmp_path: Path) -> None:
    operated = Operated("a", store=SQLiteStore(tmp_path / "pins.db"))
    await operated.app.aclose()
    await operated.chat()
    await operated.app.aclose()
    assert await operated.do("PUT", "pause") == 204
    await operated.chat()
    await asyncio.sleep(0)
    await operated.app.aclose()


def test_each_event_loop_has_a_reading_of_its_own(tmp_path: Path) -> None:
    operated = Operated("a", store=SQLiteStore(tmp_path / "pins.db"))

    async def chat() -> tuple[str | None, Any]:
        answer = await operated.chat()
        await asyncio.sleep(0.05)
        return answer

    assert [asyncio.run(chat())[0] for _ in range(2)] == ["miss", "hit"]
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(chat())[0] == "hit"
    asyncio.run(operated.app.aclose())
    loop.run_until_complete(asyncio.sleep(READ_SECONDS + 0.1))  # when it would be read again
    loop.close()


async def test_a_note_that_is_being_read_is_let_go_at_the_end() -> None:
    class Hanging(MemoryStore):
        async def read_note(self) -> bytes | None:
            await asyncio.Event().wait()
            return None

    operated = Operated("a", store=Hanging())
    before = asyncio.all_tasks()
    await operated.chat()
    [reading] = asyncio.all_tasks() - before
    await operated.app.aclose()
    await asyncio.wait([reading], timeout=5)
    assert reading.cancelled()
