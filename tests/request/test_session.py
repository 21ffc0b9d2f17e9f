"""Sources of ids, and what makes two requests the same session."""

import json

import pytest

from asgi_driver import SESSION, Gateway, Header, call
from asgi_session_pin import Config, MemoryStore, Pin, SessionPinMiddleware, Sessions
from asgi_session_pin.request.session import PRESETS, asked_model
from asgi_session_pin.wire.json import decode_members
from behaviour_document import Section, case


class Recording(MemoryStore):
    """A store that keeps the keys and pins it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.added: list[tuple[bytes, Pin]] = []

    async def add(self, key: bytes, pin: Pin) -> Pin:
        self.added.append((key, pin))
        return await super().add(key, pin)


async def same_session(first: list[Header], second: list[Header], sessions: Sessions | None = None) -> bool:
    gateway = Gateway("a", "b")
    app = SessionPinMiddleware(gateway, config=Config(sessions=sessions or Sessions()))
    await call(app, {"model": "auto"}, *first)
    return (await call(app, {"model": "auto"}, *second)).pin_status == "hit"


async def test_the_first_source_that_is_present_counts() -> None:
    sessions = Sessions(sources=("header:X-First", "header:x-second"))
    both: list[Header] = [(b"x-second", b"2"), (b"x-first", b"1")]
    assert await same_session(both, [(b"x-first", b"1")], sessions)
    assert not await same_session(both, [(b"x-second", b"2")], sessions)
    assert await same_session([(b"x-second", b"1")], [(b"x-first", b"1")], sessions), "one id, whatever brought it"


async def test_white_space_around_an_id_is_not_part_of_it() -> None:
    assert await same_session([(b"x-session-id", b" a\t")], [(b"x-session-id", b"a")])
    assert not await same_session([(b"x-session-id", b"a a")], [(b"x-session-id", b"aa")])


@case(Section.SESSION, "the same id with another credential", "another session")
@pytest.mark.parametrize(
    "name",
    [
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"x-goog-api-key",
        b"x-litellm-api-key",
        b"ocp-apim-subscription-key",
    ],
)
async def test_an_id_of_another_credential_is_another_session(name: bytes) -> None:
    assert await same_session([SESSION, (name, b"key-1")], [(name, b"key-1"), SESSION])
    assert not await same_session([SESSION, (name, b"key-1")], [SESSION, (name, b"key-2")])
    assert not await same_session([SESSION, (name, b"key-1")], [SESSION])
    assert not await same_session([SESSION, (name, b"")], [SESSION])
    assert not await same_session([SESSION, (name, b"1"), (name, b"2")], [SESSION, (name, b"1")])


@case(Section.SESSION, "`Bearer`, `bearer` or `BEARER` before the same key", "the same session")
async def test_a_scheme_of_a_credential_is_the_same_in_any_case() -> None:
    first = [SESSION, (b"authorization", b"Bearer Key-1")]
    for scheme in (b"bearer", b"BEARER", b"Bearer"):
        assert await same_session(first, [SESSION, (b"authorization", scheme + b" Key-1")])
        assert not await same_session(first, [SESSION, (b"authorization", scheme + b" key-1")])
    assert await same_session(
        [SESSION, (b"authorization", b"basic eA==")], [SESSION, (b"authorization", b"Basic eA==")]
    )
    assert not await same_session(first, [SESSION, (b"authorization", b"Basic Key-1")])
    assert not await same_session([SESSION, (b"authorization", b"Key-1")], [SESSION, (b"authorization", b"key-1")])
    assert not await same_session([SESSION, (b"x-api-key", b"a b")], [SESSION, (b"x-api-key", b"A b")])


async def test_the_order_of_the_partition_is_the_senders_whim() -> None:
    parts = [(b"x-api-key", b"1"), (b"authorization", b"bearer 2"), (b"api-key", b"3")]
    assert await same_session([SESSION, *parts], [*reversed(parts), SESSION])


async def test_parts_of_the_key_never_run_into_each_other() -> None:
    sessions = Sessions(partition_by=("header:x-tenant", "header:x-user"))
    first = [SESSION, (b"x-tenant", b"ab"), (b"x-user", b"c")]
    assert not await same_session(first, [SESSION, (b"x-tenant", b"a"), (b"x-user", b"bc")], sessions)
    assert not await same_session(first, [SESSION, (b"x-tenant", b"c"), (b"x-user", b"ab")], sessions)


@case(
    Section.SESSION,
    "`pin_per: session`",
    "one model for the whole session, whatever it asks for; one warning in the log where that replaces another name",
)
async def test_with_one_pin_per_session_it_has_one_model() -> None:
    gateway = Gateway("a")
    app = SessionPinMiddleware(gateway, config=Config(sessions=Sessions(pin_per="session")))
    for model in ("auto", "gpt-4o", None):
        await call(app, {"model": model}, SESSION)
    assert gateway.asked == ["auto", "a", "a"]


@case(Section.SESSION, "the same id asking for another model", "a choice of its own, pinned apart")
async def test_naming_another_model_is_a_choice_of_its_own() -> None:
    gateway = Gateway("routed")
    app = SessionPinMiddleware(gateway)
    for model in ("auto", "gpt-4o", "gpt-4o-mini", "gpt-4o", "auto"):
        await call(app, {"model": model}, SESSION)
    assert gateway.asked == ["auto", "gpt-4o", "gpt-4o-mini", "gpt-4o", "routed"]


async def test_the_store_sees_neither_ids_nor_credentials() -> None:
    store = Recording()
    app = SessionPinMiddleware(Gateway("a"), store=store)
    await call(app, {"model": "auto"}, SESSION, (b"authorization", b"Bearer secret"))
    [(key, pin)] = store.added
    assert len(key) == 16
    assert b"session-1" not in key
    assert (pin.model, pin.decision) == ("a", None)


async def test_a_secret_changes_every_key_and_may_be_of_any_length() -> None:
    keys = set()
    for secret in (None, "s", "s" * 200, "\ud800"):
        store = Recording()
        app = SessionPinMiddleware(Gateway("a"), store=store, config=Config(sessions=Sessions(secret=secret)))
        await call(app, {"model": "auto"}, SESSION)
        keys.add(store.added[0][0])
    assert len(keys) == 4


CLAUDE_CODE = {"user_id": '{"device_id":"c9","session_id":"11111111-2222"}', "session_id": "s1"}


async def test_an_id_may_come_from_the_body() -> None:
    gateway = Gateway("a", "b")
    app = SessionPinMiddleware(gateway, config={"sessions": {"sources": ["body:metadata.session_id"]}})
    answers = [await call(app, {"model": "auto", "metadata": CLAUDE_CODE}) for _ in range(2)]
    assert [answer.pin_status for answer in answers] == ["miss", "hit"]
    padded = {"model": "auto", "metadata": {"session_id": " s1\t"}}
    assert (await call(app, padded)).pin_status == "hit"


@pytest.mark.parametrize("session_id", ["", "a\nb", "same\nsame", "a\x00"])
async def test_an_id_in_the_body_that_no_header_could_hold_is_ignored(session_id: str) -> None:
    app = SessionPinMiddleware(Gateway("a"), config={"sessions": {"sources": ["body:id"]}})
    answer = await call(app, {"model": "auto", "id": session_id})
    assert answer.pin_status == "ignored; reason=invalid-session-id"


@pytest.mark.parametrize("session_id", ["\ud800", "a\nb", "same\nsame"])
async def test_an_id_of_a_callable_that_no_header_could_hold_is_ignored(session_id: str) -> None:
    app = SessionPinMiddleware(Gateway("a"), session_id=lambda scope: session_id)
    assert (await call(app, {"model": "auto"})).pin_status == "ignored; reason=invalid-session-id"


@pytest.mark.parametrize(
    "content",
    [
        {"model": "auto"},
        {"model": "auto", "metadata": {"session_id": None}},
        {"model": "auto", "metadata": {"session_id": 5}},
        {"model": "auto", "metadata": "x"},
        b"not json",
        b'{"model":"%s"}' % (b"x" * 2000),
    ],
)
async def test_without_an_id_in_the_body_the_request_passes_untouched(content: object) -> None:
    gateway = Gateway("a", "b")
    config = {"sessions": {"sources": ["body:metadata.session_id"]}, "limits": {"max_request_bytes": 1000}}
    app = SessionPinMiddleware(gateway, config=config)
    bare = await call(Gateway("a"), content)
    answer = await call(app, content, (b"x-session-model", b"forged"))
    assert (answer.start["headers"], answer.body) == (bare.start["headers"], bare.body)
    assert gateway.bodies[0] == (content if isinstance(content, bytes) else gateway.bodies[0])
    assert (b"x-session-model", b"forged") not in gateway.scopes[0]["headers"]
    assert (await call(app, content, (b"x-session-pin", b"off"))).pin_status is None


async def test_header_and_body_sources_keep_their_order() -> None:
    body = {"model": "auto", "user": "from-body"}
    header = (b"x-session-id", b"from-header")
    for sources, counts in ((["body:user", "header:x-session-id"], body), (["header:x-session-id", "body:user"], None)):
        app = SessionPinMiddleware(Gateway("a", "b"), config={"sessions": {"sources": sources}})
        await call(app, body, header)
        second = await call(app, body) if counts else await call(app, {"model": "auto"}, header)
        assert second.pin_status == "hit"
        third = await call(app, {"model": "auto"}, header) if counts else await call(app, body)
        assert third.pin_status == "miss"


@pytest.mark.parametrize(
    "name",
    [
        b"x-session-id",
        b"x-claude-code-session-id",
        b"session-id",
        b"session_id",
        b"x-session-affinity",
        b"x-opencode-session",
        b"x-amp-thread-id",
        b"x-litellm-session-id",
        b"agent-session-id",
    ],
)
async def test_the_preset_knows_what_coding_agents_send(name: bytes) -> None:
    app = SessionPinMiddleware(Gateway("a"), config={"sessions": {"sources": ["preset:coding-agents"]}})
    statuses = [(await call(app, {"model": "auto"}, (name, b"ses_df97c4f8"))).pin_status for _ in range(2)]
    assert statuses == ["miss", "hit"]


async def test_the_preset_leaves_ids_that_change_with_each_request_alone() -> None:
    app = SessionPinMiddleware(Gateway("a"), config={"sessions": {"sources": ["preset:coding-agents"]}})
    assert (await call(app, {"model": "auto"}, (b"x-client-request-id", b"1"))).pin_status is None


@case(
    Section.SESSION,
    "ids that the APIs have in the body, with `preset:body-ids`: `conversation`, else `prompt_cache_key`",
    "the session is that one's",
)
async def test_the_preset_for_bodies_knows_conversations_and_keys_of_the_prompt_cache() -> None:
    app = SessionPinMiddleware(Gateway("a"), config={"sessions": {"sources": ["preset:body-ids"]}})

    async def status(**content: object) -> str | None:
        return (await call(app, {"model": "auto", "input": "hello", **content}, path="/v1/responses")).pin_status

    assert await status() is None
    assert [await status(prompt_cache_key="key-1") for _ in range(2)] == ["miss", "hit"]
    assert [await status(conversation="conv_1", prompt_cache_key="key-1") for _ in range(2)] == ["miss", "hit"]
    assert await status(conversation={"id": "conv_1"}) == "hit"
    assert await status(conversation={"id": "conv_2"}, prompt_cache_key="key-1") == "miss"
    assert await status(conversation=None, prompt_cache_key="key-1") == "hit"


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_take_each_preset(preset: str) -> None:
    assert Config.load({"sessions": {"sources": [preset]}}).sessions.sources == (preset,)


async def test_where_the_body_tells_nothing_a_header_source_behind_it_is_told_why() -> None:
    config = {"sessions": {"sources": ["body:user", "header:x-session-id"]}}
    app = SessionPinMiddleware(Gateway("a", "b"), config=config)
    assert (await call(app, b"no json", SESSION)).pin_status == "ignored; reason=body-not-json"
    assert (await call(app, {"user": "u"}, SESSION, (b"x-session-pin", b"off"))).pin_status == "off"


@pytest.mark.parametrize("model", ["x" * 257, "é" * 300])
def test_a_name_that_is_too_long_is_kept_as_its_digest(model: str) -> None:
    asked = asked_model(decode_members(json.dumps({"model": model}).encode()))
    assert isinstance(asked, bytes)
    assert len(asked) == 16
    assert asked != asked_model(decode_members(json.dumps({"model": model + "y"}).encode()))
    assert asked_model(decode_members(json.dumps({"model": model[:256]}).encode())) == model[:256]
