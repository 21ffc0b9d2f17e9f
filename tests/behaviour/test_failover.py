"""A pinned model that does not serve: what the client gets, what becomes of the pin, and in which order."""

import asyncio
import gzip
import json
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from asgi_driver import (
    JSON_TYPE,
    SESSION,
    SSE_TYPE,
    Clock,
    Gateway,
    Header,
    Serve,
    answer_json,
    answer_stream,
    asked_model,
    body_messages,
    call,
    http_scope,
    read_body,
    receive_from,
    respond,
)
from asgi_session_pin import Config, Failover, MemoryStore, Pin, PinEvent, SessionPinMiddleware, get_session_pin
from behaviour_document import Section, case

AUTO = {"model": "auto", "n": 1}
ALICE: Header = (b"authorization", b"Bearer alice")
BOB: Header = (b"authorization", b"Bearer bob")
OTHER: Header = (b"x-session-id", b"session-2")
UNAVAILABLE = b'{"error":{"message":"overloaded","type":"server_error","param":null,"code":null}}'
REFUSED = b'{"error":{"message":"no such model","type":"invalid_request_error","code":"model_not_found"}}'


def failing(status: int, body: bytes = UNAVAILABLE, headers: Iterable[Header] = (JSON_TYPE,)) -> Serve:
    async def fail(send: Send, model: str) -> None:
        await respond(send, body, status=status, headers=headers)

    return fail


async def raising(send: Send, model: str) -> None:
    raise RuntimeError("no such model")


async def pinned(gateway: Gateway, *headers: Header, **settings: Any) -> SessionPinMiddleware:
    """Return the middleware with a session that is pinned to the first of the gateway's models, which has served."""
    serve, gateway.serve = gateway.serve, answer_json
    app = SessionPinMiddleware(gateway, **settings)
    assert [(await call(app, AUTO, SESSION, *headers)).pin_status for _ in range(2)] == ["miss", "hit"]
    gateway.serve = serve
    gateway.bodies.clear()
    gateway.scopes.clear()
    return app


async def statuses(app: SessionPinMiddleware, *headers: Header, count: int = 1) -> list[str | None]:
    return [(await call(app, AUTO, *(headers or (SESSION,)))).pin_status for _ in range(count)]


# Refused names


@case(
    Section.FAILURE,
    "another 4xx of a name that has never served, but 408, 409, 413, 425 and 429",
    "the routed answer, `reroute`; if that is 2xx the pin is given up; the second time the name counts as refused",
)
@pytest.mark.parametrize("serve", [failing(status) for status in (400, 401, 402, 403, 404, 405, 422)])
async def test_a_name_that_never_served_and_fails_is_routed_and_given_up(serve: Serve) -> None:
    gateway = Gateway("a", "b", serve=serve)
    app = SessionPinMiddleware(gateway)
    await call(app, AUTO, SESSION)
    answer = await call(app, [b'{"model" : "auto",', b' "n": 1e0}'], SESSION)
    assert (answer.start["status"], answer.json["model"]) == (200, "b")
    assert answer.headers["x-session-pinned"] == "false"
    assert answer.pin_status == "reroute"
    assert "x-session-model" not in answer.headers
    assert gateway.asked == ["auto", "a", "auto"]
    assert gateway.bodies[2] == b'{"model" : "auto", "n": 1e0}', "the body as the client sent it"
    gateway.serve = answer_json
    answer = await call(app, AUTO, SESSION)
    assert (answer.pin_status, answer.json["model"]) == ("hit", "b"), "the routed answer is the new decision"


# What gateways answer to a model that they do not know, or that the key may not use.
REFUSALS = [
    # OpenAI, chat completions: rd-1-2022/ai-openai-helloworld issue 9.
    (
        404,
        '{"error":{"message":"The model `a` does not exist or you do not have access to it.",'
        '"type":"invalid_request_error","param":null,"code":"model_not_found"}}',
    ),
    # OpenAI, responses: skorokithakis/sysaidmin issue 9.
    (
        400,
        '{"error":{"message":"The requested model \'a\' does not exist.","type":"invalid_request_error",'
        '"param":"model","code":"model_not_found"}}',
    ),
    # OpenAI, a project without access: cursor/cursor issue 2953.
    (
        403,
        '{"error":{"message":"Project `proj_x` does not have access to model `a`","type":"invalid_request_error",'
        '"param":null,"code":"model_not_found"}}',
    ),
    # Anthropic: anthropics/claude-code issue 5349.
    (404, '{"type":"error","error":{"type":"not_found_error","message":"model: a"}}'),
    # LiteLLM: ProxyModelNotFoundError in litellm/proxy/route_llm_request.py; as an object: BerriAI/litellm issue 8821.
    (
        400,
        '{"error":{"message":"{\'error\': \'/chat/completions: Invalid model name passed in model=a. Call `/v1/models` '
        'to view available models for your key.\'}","type":"None","param":"None","code":"400"}}',
    ),
    (
        400,
        '{"error":{"message":{"error":"/chat/completions: Invalid model name passed in model=a. Call `/v1/models` to '
        'view available models for your key."},"type":"None","param":"None","code":"400"}}',
    ),
    # LiteLLM, a key without access: winfunc/opcode issue 358 (401), BerriAI/litellm pull request 39660 (403).
    (
        401,
        '{"error":{"message":"key not allowed to access model. This key can only access models=[\'b\']. Tried to '
        'access a","type":"key_model_access_denied","param":"model","code":"401"}}',
    ),
    # vLLM: vllm-project/vllm issue 3485, and OpenAIModelRegistry.check_model in vllm/entrypoints/openai.
    (
        404,
        '{"object":"error","message":"The model `a` does not exist.","type":"NotFoundError","param":null,"code":404}',
    ),
    (
        404,
        '{"error":{"message":"The model `a` does not exist.","type":"NotFoundError","param":"model","code":404}}',
    ),
    # Azure: chatboxai/chatbox issue 646, lobehub/lobehub issue 14450.
    (
        404,
        '{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist. If you '
        'created the deployment within the last 5 minutes, please wait a moment and try again."}}',
    ),
    (400, '{"error":{"code":"unknown_model","message":"Unknown model: A","details":"Unknown model: A"}}'),
    # OpenRouter: sipeed/picoclaw issue 1790.
    (400, '{"error":{"message":"a is not a valid model ID","code":400},"user_id":"user_x"}'),
]


@case(
    Section.FAILURE,
    "refused: a 400, 401, 402, 403, 404 or 422 that says that it is the model",
    "the routed answer, `reroute`; if that is 2xx the pin is given up, and no other is made of this name and "
    "credential for `session_ttl_seconds`, ten minutes at most",
)
@pytest.mark.parametrize(("status", "body"), REFUSALS)
@pytest.mark.parametrize("kind", [JSON_TYPE, SSE_TYPE])  # vllm-router types errors of streams like the stream
async def test_a_name_that_served_and_is_refused_is_routed(status: int, body: str, kind: Header) -> None:
    gateway = Gateway("a", "b", serve=failing(status, body.encode(), [kind]))
    app = await pinned(gateway)
    answer = await call(app, AUTO, SESSION)
    assert (answer.pin_status, answer.json["model"]) == ("reroute", "b")
    assert gateway.asked == ["a", "auto"]


# RouteLLM takes "router-NAME-THRESHOLD" only: create_chat_completion and _parse_model_name in lm-sys/RouteLLM.
@case(
    Section.FAILURE,
    "a gateway that never takes its own names back",
    "as without pins, for two calls more a name where it answers 4xx, `give_up_after` where it answers 5xx",
)
@pytest.mark.parametrize(
    ("status", "body", "calls"),
    [
        (404, REFUSED, 2),
        (400, b'{"object":"error","message":"Threshold mini must be a float."}', 4),
        (500, b"Internal Server Error", 6),
    ],
)
async def test_a_gateway_that_never_accepts_its_own_names_costs_few_calls_more_for_each(
    status: int, body: bytes, calls: int
) -> None:
    gateway = Gateway(*["gpt-4o-mini"] * 50, *["gpt-4"] * 50, serve=failing(status, body))
    app = SessionPinMiddleware(gateway)
    for session in range(10):
        for _ in range(10):
            answer = await call(app, AUTO, (b"x-session-id", b"%d" % session))
            assert answer.start["status"] == 200
    assert gateway.asked.count("auto") == 100
    assert len(gateway.asked) == 100 + calls


async def test_a_refused_name_is_refused_for_its_credential_only_and_for_a_while(clock: Clock) -> None:
    async def serve(send: Send, model: str) -> None:
        allowed = dict(gateway.scopes[-1]["headers"])[b"authorization"] == BOB[1]
        await (answer_json if allowed else failing(403, REFUSED))(send, model)

    gateway = Gateway("a", serve=serve)
    app = SessionPinMiddleware(gateway)
    assert await statuses(app, SESSION, ALICE, count=4) == ["miss", "reroute", "miss", "miss"]
    assert await statuses(app, SESSION, BOB, count=3) == ["miss", "hit", "hit"]
    assert await statuses(app, SESSION, ALICE) == ["miss"]
    clock.now += 601
    gateway.serve = answer_json
    assert await statuses(app, OTHER, ALICE, count=2) == ["miss", "hit"]


async def test_a_pin_on_a_name_that_was_refused_elsewhere_is_given_up_without_another_try() -> None:
    gateway = Gateway("a", serve=failing(404, REFUSED))
    app = SessionPinMiddleware(gateway)
    assert await statuses(app) == ["miss"]
    assert await statuses(app, OTHER) == ["miss"]
    assert await statuses(app, OTHER) == ["reroute"]
    assert await statuses(app, count=2) == ["miss", "miss"]
    assert gateway.asked == ["auto", "auto", "a", "auto", "auto", "auto"]


async def test_a_refused_name_that_serves_later_may_be_pinned_again() -> None:
    gateway = Gateway("a", serve=failing(404, REFUSED))
    app = await pinned(gateway)
    assert await statuses(app, OTHER, count=2) == ["miss", "reroute"]
    gateway.serve = answer_json
    assert await statuses(app, OTHER) == ["miss"]
    assert await statuses(app) == ["hit"], "a name that has served before stays in use where it is pinned"
    assert await statuses(app, OTHER, count=2) == ["miss", "hit"]


@case(
    Section.FAILURE,
    "the routed request fails too",
    "the first answer, `hit`; the pin stays and is not tried like this again for a minute",
)
@pytest.mark.parametrize("status", [400, 404, 500])
async def test_where_routing_fails_too_the_client_gets_the_first_answer_and_the_pin_stays(
    status: int, clock: Clock
) -> None:
    gateway = Gateway("a", serve=failing(status, b'{"error":"first"}'), route=answer_json)
    app = SessionPinMiddleware(gateway)
    await call(app, AUTO, SESSION)
    gateway.route = failing(503, b'{"error":"second"}')
    answer = await call(app, AUTO, SESSION)
    assert (answer.start["status"], answer.body) == (status, b'{"error":"first"}')
    assert (answer.pin_status, answer.headers["x-session-model"]) == ("hit", "a")
    assert gateway.asked == ["auto", "a", "auto"]
    gateway.serve = failing(404)
    await call(app, AUTO, SESSION)
    assert gateway.asked[3:] == ["a"], "no other experiment for a minute"
    clock.now += 61
    await call(app, AUTO, SESSION)
    assert gateway.asked[4:] == ["a", "auto"]
    gateway.serve = answer_json
    assert await statuses(app) == ["hit"]


async def test_where_routing_raises_the_client_gets_the_first_answer(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway("a", serve=failing(404, b"{}"))
    app = await pinned(gateway)
    gateway.route = raising
    answer = await call(app, AUTO, SESSION)
    assert (answer.start["status"], answer.pin_status) == (404, "hit")
    assert "a pinned model failed, and so did its request as it came" in caplog.text
    assert "as it came: RuntimeError\n" in caplog.text


async def test_where_both_raise_the_first_exception_comes_out() -> None:
    async def route(send: Send, model: str) -> None:
        raise ValueError("second")

    gateway = Gateway("a", serve=raising)
    app = await pinned(gateway)
    gateway.route = route
    with pytest.raises(RuntimeError, match="no such model"):
        await call(app, AUTO, SESSION)
    gateway.serve = answer_json
    assert await statuses(app) == ["hit"]


async def test_on_refused_pass_leaves_it_at_the_refusal() -> None:
    gateway = Gateway("a", serve=failing(404, REFUSED))
    app = await pinned(gateway, config=Config(failover=Failover(on_refused="pass")))
    for _ in range(5):
        answer = await call(app, AUTO, SESSION)
        assert (answer.start["status"], answer.pin_status) == (404, "hit")
    assert gateway.asked == ["a"] * 5


# 400s that tell nothing about the name, though they speak of models: OpenAI's context and parameters
# (mckaywrigley/chatbot-ui issue 102, fish2018/YPrompt issue 26), vLLM's context (vllm-project/vllm issue 12886).
@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"This model\'s maximum context length is 4097 tokens. However, you requested 4120.",'
        b'"type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}',
        b'{"error":{"message":"Unsupported parameter: \'max_tokens\' is not supported with this model.",'
        b'"type":"invalid_request_error","param":"max_tokens","code":"unsupported_parameter"}}',
        b'{"object":"error","message":"This model\'s maximum context length is 2048 tokens.","type":"BadRequestError",'
        b'"param":null,"code":400}',
        b'{"error":{"message":"try gpt-4o-mini, other/gpt-4o, gpt-4o.1 or xgpt-4o"}}',
        b"<html>gpt-4o</html>",
        b"",
    ],
)
async def test_a_400_that_does_not_name_the_model_passes(body: bytes) -> None:
    gateway = Gateway("gpt-4o", serve=failing(400, body))
    app = await pinned(gateway)
    answer = await call(app, AUTO, SESSION)
    assert (answer.start["status"], answer.body, answer.pin_status) == (400, body, "hit")
    assert gateway.asked == ["gpt-4o"]


async def test_headers_that_can_be_read_once_are_not_lost() -> None:
    headers: list[Header] = [JSON_TYPE, (b"x-app", b"1")]
    for status in (200, 422, 503):

        async def serve(send: Send, model: str, status: int = status) -> None:
            await send({"type": "http.response.start", "status": status, "headers": iter(headers)})
            await send({"type": "http.response.body", "body": b"{}"})

        app = await pinned(Gateway("a", serve=serve), config=Config(failover=Failover(on_unavailable="pass")))
        assert (await call(app, AUTO, SESSION)).headers["x-app"] == "1"


@case(
    Section.FAILURE,
    "401, 402, 403 or 404 without a word on the model, of a name that has served",
    "the routed answer, `reroute`; the pin stays, and it counts as a failure of this pin",
)
@pytest.mark.parametrize("status", [401, 402, 403, 404])
async def test_a_model_that_is_closed_to_a_request_stays_pinned(status: int) -> None:
    gateway = Gateway("a", "b", serve=failing(status, b'{"error":{"message":"no","code":null}}'))
    app = await pinned(gateway)
    assert await statuses(app, count=3) == ["reroute"] * 3
    assert await statuses(app, OTHER) == ["miss"]
    gateway.serve = answer_json
    assert (await call(app, AUTO, SESSION)).json["model"] == "b", "given up at the third failure in a row"


async def test_on_refused_pass_counts_what_is_closed_to_the_request() -> None:
    gateway = Gateway("a", "b", serve=failing(403))
    app = await pinned(gateway, config=Config(failover=Failover(on_refused="pass")))
    assert [(await call(app, AUTO, SESSION)).start["status"] for _ in range(3)] == [403] * 3
    assert await statuses(app) == ["miss"]


@case(Section.FAILURE, "other 4xx", "as it is; the pin stays")
@pytest.mark.parametrize("status", [302, 400, 405, 409, 413, 422, 425, 499])
async def test_other_client_errors_leave_a_pin_that_has_served(status: int) -> None:
    gateway = Gateway("a", serve=failing(status))
    app = await pinned(gateway)
    for _ in range(4):
        answer = await call(app, AUTO, SESSION)
        assert (answer.start["status"], answer.pin_status) == (status, "hit")
    assert gateway.asked == ["a"] * 4


@pytest.mark.parametrize(
    "footer",
    [
        "Received Model Group=a\nAvailable Model Group Fallbacks=['c']\nmaximum context length of c",
        "LiteLLM: model group 'a' failed with the error above. Fallback to c also failed: maximum context length of c",
    ],
    ids=["old", "new"],
)
async def test_what_litellm_says_below_an_error_of_its_groups_and_their_fallbacks_is_no_part_of_it(footer: str) -> None:
    gateway = Gateway(
        "a", "b", serve=failing(503, json.dumps({"error": {"message": f"overloaded\n\n{footer}"}}).encode())
    )
    app = await pinned(gateway)
    answer = await call(app, AUTO, SESSION)
    assert (answer.start["status"], answer.pin_status) == (200, "reroute")


async def test_where_the_client_asked_for_the_pinned_name_there_is_nothing_else_to_send() -> None:
    gateway = Gateway("a", serve=answer_json)
    app = SessionPinMiddleware(gateway)
    await call(app, {"model": "a"}, SESSION)
    gateway.serve = failing(404)
    answer = await call(app, {"model": "a"}, SESSION)
    assert (answer.start["status"], answer.pin_status) == (404, "hit")
    gateway.serve = raising
    with pytest.raises(RuntimeError):
        await call(app, {"model": "a"}, SESSION)
    assert gateway.asked == ["a"] * 3


async def test_a_refusal_is_told_once_and_names_the_way_out(caplog: pytest.LogCaptureFixture) -> None:
    app = SessionPinMiddleware(Gateway("a", serve=failing(404, REFUSED)))
    await statuses(app, count=2)
    await statuses(app, (b"x-session-id", b"2"), ALICE, count=2)
    assert caplog.text.count("the gateway refuses the model 'a', which it named itself") == 1
    assert "decisions.aliases" in caplog.text


async def test_a_store_that_fails_while_a_pin_is_given_up_does_not_hurt() -> None:
    class Failing(MemoryStore):
        async def discard(self, key: bytes, pin: Pin) -> bool:
            raise OSError("down")

    gateway = Gateway("a", "b", serve=failing(404))
    events: list[PinEvent] = []
    app = SessionPinMiddleware(gateway, store=Failing(), listeners=[events.append])
    await call(app, AUTO, SESSION)
    answer = await call(app, AUTO, SESSION)
    assert (answer.pin_status, answer.json["model"]) == ("reroute", "b")
    assert (events[1].status, events[1].reason) == ("reroute", "store-unavailable")
    assert await statuses(app) == ["reroute; reason=store-unavailable"], "b is refused too"


# Holding


async def test_an_error_over_64_kib_passes_on_as_it_is() -> None:
    async def serve(send: Send, model: str) -> None:
        await respond(send, b"x" * 40_000, b"y" * 40_000, b"z", status=404)

    gateway = Gateway("a", serve=serve)
    app = await pinned(gateway)
    answer = await call(app, AUTO, SESSION)
    assert (answer.start["status"], answer.pin_status) == (404, "hit")
    assert answer.body == b"x" * 40_000 + b"y" * 40_000 + b"z"
    assert gateway.asked == ["a"]
    assert await statuses(app) == ["hit"]


async def test_an_error_that_takes_long_passes_on_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_session_pin.hold_timer.HOLD_SECONDS", 0.01)
    received = asyncio.Event()

    async def serve(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": iter([JSON_TYPE])})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        await received.wait()  # the client gets these two before the app goes on
        await send({"type": "http.response.body", "body": b"}", "more_body": True})
        await send({"type": "http.response.body"})

    gateway = Gateway("a", serve=serve)
    app = await pinned(gateway)
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)
        if message.get("body") == b"{":
            received.set()

    await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
    assert [message.get("status", message.get("body")) for message in messages] == [503, b"{", b"}", None]
    assert gateway.asked == ["a"]


async def test_what_is_sent_while_a_late_release_runs_keeps_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_session_pin.hold_timer.HOLD_SECONDS", 0.01)
    starting, go_on = asyncio.Event(), asyncio.Event()

    async def serve(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await starting.wait()
        asyncio.get_running_loop().call_later(0.01, go_on.set)
        await send({"type": "http.response.body", "body": b"late"})

    app = await pinned(Gateway("a", serve=serve))
    messages: list[Message] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            starting.set()
            await go_on.wait()
        messages.append(message)

    await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
    assert [message.get("status", message.get("body")) for message in messages] == [503, b"late"]


async def test_an_app_that_returns_while_a_late_release_runs_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asgi_session_pin.hold_timer.HOLD_SECONDS", 0.01)
    starting = asyncio.Event()

    async def serve(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await starting.wait()

    app = await pinned(Gateway("a", serve=serve))
    messages: list[Message] = []

    async def send(message: Message) -> None:
        starting.set()
        await asyncio.sleep(0.01)
        messages.append(message)

    tasks = asyncio.all_tasks()
    await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
    assert [message["status"] for message in messages] == [503]
    assert asyncio.all_tasks() == tasks


async def test_an_error_that_is_no_plain_body_passes_on() -> None:
    async def serve(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.pathsend", "path": "/error.json"})

    app = await pinned(Gateway("a", serve=serve))
    answer = await call(app, AUTO, SESSION)
    assert [message["type"] for message in answer.messages] == ["http.response.start", "http.response.pathsend"]


async def test_an_error_that_the_app_does_not_finish_is_routed_when_it_returns() -> None:
    async def serve(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})

    app = await pinned(Gateway("a", "b", serve=serve))
    answer = await call(app, AUTO, SESSION)
    assert (answer.pin_status, answer.json["model"]) == ("reroute", "b")


# Outages


@case(
    Section.FAILURE,
    "429, 5xx or an exception of a name that has served",
    "the routed answer, `reroute`; the pin stays",
)
@pytest.mark.parametrize("serve", [failing(429), failing(500), failing(503), raising])
async def test_a_model_that_is_out_is_routed_around_and_stays_pinned(serve: Serve) -> None:
    gateway = Gateway("a", "b", serve=serve)
    app = await pinned(gateway)
    answer = await call(app, AUTO, SESSION)
    assert (answer.start["status"], answer.json["model"]) == (200, "b")
    assert answer.pin_status == "reroute"
    assert (answer.headers["x-session-pinned"], answer.headers["x-session-model"]) == ("false", "a")
    assert gateway.asked == ["a", "auto"]
    gateway.serve = answer_json
    assert await statuses(app) == ["hit"]
    assert gateway.asked[-1] == "a"


async def test_a_500_that_is_also_raised_is_one_failure_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def serve(send: Send, model: str) -> None:
        await failing(500)(send, model)
        raise RuntimeError("logged")

    app = await pinned(Gateway("a", "b", serve=serve), config=Config(failover=Failover(give_up_after=2)))
    assert await statuses(app) == ["reroute"]
    assert "a pinned model failed and its request was routed; the app raised RuntimeError\n" in caplog.text
    gateway = app.app
    assert isinstance(gateway, Gateway)
    gateway.serve = answer_json
    assert await statuses(app) == ["hit"]


async def test_an_exception_after_a_failure_that_was_passed_on_comes_out() -> None:
    async def serve(send: Send, model: str) -> None:
        await failing(500)(send, model)
        raise RuntimeError("seen")

    app = await pinned(Gateway("a", serve=serve), config=Config(failover=Failover(on_unavailable="pass")))
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    with pytest.raises(RuntimeError, match="seen"):
        await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
    assert messages[0]["status"] == 500


@case(
    Section.FAILURE,
    "everything is out",
    "the first failure, `hit`; counts for nothing, and is not routed around again for a minute",
)
async def test_an_outage_of_everything_counts_for_nothing_and_doubles_no_load() -> None:
    gateway = Gateway("a", serve=failing(503, b"first"))
    app = await pinned(gateway)
    gateway.route = failing(503, b"second")
    for _ in range(5):
        answer = await call(app, AUTO, SESSION)
        assert (answer.start["status"], answer.body, answer.pin_status) == (503, b"first", "hit")
    assert gateway.asked == ["a", "auto", "a", "a", "a", "a"]
    gateway.serve = answer_json
    assert await statuses(app) == ["hit"]


async def test_a_router_that_answers_with_an_error_and_status_200_counts_for_nothing() -> None:
    gateway = Gateway("a", serve=failing(503))
    app = await pinned(gateway)
    gateway.route = failing(200, b'data: {"error":{"message":"all are out"}}\n\n', [SSE_TYPE])
    assert await statuses(app, count=5) == ["hit"] * 5
    gateway.serve = answer_json
    assert await statuses(app) == ["hit"]


@case(
    Section.FAILURE,
    "`give_up_after` such failures in a row, the routed answers being 2xx",
    "the pin is given up, and the routed answer decides",
)
async def test_the_third_failure_in_a_row_gives_the_pin_up(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway("a", "b", serve=failing(503))
    app = await pinned(gateway)
    assert await statuses(app, count=2) == ["reroute"] * 2
    gateway.serve = answer_json
    assert await statuses(app) == ["hit"], "which starts the count again"
    gateway.serve = failing(503)
    answers = [await call(app, AUTO, SESSION) for _ in range(3)]
    assert [answer.headers.get("x-session-model") for answer in answers] == ["a", "a", None]
    gateway.serve = answer_json
    answer = await call(app, AUTO, SESSION)
    assert (answer.pin_status, answer.json["model"]) == ("hit", "b"), "what the router chose then"
    assert "the model 'a' failed failover.give_up_after times in a row" in caplog.text


async def test_with_give_up_after_0_a_pin_is_kept_through_any_outage() -> None:
    gateway = Gateway("a", "b", serve=failing(503))
    app = await pinned(gateway, config=Config(failover=Failover(give_up_after=0)))
    assert await statuses(app, count=10) == ["reroute"] * 10
    gateway.serve = answer_json
    assert (await call(app, AUTO, SESSION)).json["model"] == "a"


async def test_a_router_that_chooses_the_pinned_model_again_shows_that_it_is_back() -> None:
    gateway = Gateway("a", serve=failing(503))
    app = await pinned(gateway)
    assert await statuses(app, count=5) == ["reroute"] * 5
    gateway.serve = answer_json
    assert await statuses(app) == ["hit"]


@case(Section.FAILURE, "`on_refused: pass`, `on_unavailable: pass`", "the failure; with the latter each one counts")
async def test_on_unavailable_pass_leaves_it_at_the_failure_until_it_is_one_too_many() -> None:
    gateway = Gateway("a", "b", serve=failing(503))
    app = await pinned(gateway, config=Config(failover=Failover(on_unavailable="pass")))
    answers = [await call(app, AUTO, SESSION) for _ in range(3)]
    assert [(answer.start["status"], answer.pin_status) for answer in answers] == [(503, "hit")] * 3
    assert gateway.asked == ["a"] * 3
    assert await statuses(app) == ["miss"]


async def test_on_unavailable_pass_counts_exceptions_too() -> None:
    app = await pinned(Gateway("a", serve=raising), config=Config(failover=Failover(on_unavailable="pass")))
    for _ in range(3):
        with pytest.raises(RuntimeError):
            await call(app, AUTO, SESSION)
    assert await statuses(app) == ["miss"]


# Streams

ERROR_EVENT = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'


@case(Section.FAILURE, "a stream whose first chunk is an error", "as an outage or a refusal")
@pytest.mark.parametrize("ending", ["with it", "after it"])
@pytest.mark.parametrize("has_served", [True, False])
async def test_a_stream_that_begins_with_an_error_is_routed(ending: str, has_served: bool) -> None:
    async def serve(send: Send, model: str) -> None:
        await respond(send, ERROR_EVENT, *([b""] if ending == "after it" else []), headers=[SSE_TYPE])

    gateway = Gateway("a", "b", serve=serve, route=answer_stream)
    if has_served:
        app = await pinned(gateway)
    else:
        app = SessionPinMiddleware(gateway)
        await call(app, AUTO, SESSION)
    answer = await call(app, AUTO, SESSION)
    assert answer.pin_status == "reroute"
    assert b'"model": "b"' in answer.body
    assert b"Overloaded" not in answer.body
    gateway.serve = answer_stream
    assert b'"model": "a"' in (await call(app, AUTO, SESSION)).body or not has_served


@pytest.mark.parametrize("coding", ["gzip", "identity", "unknown"])
async def test_a_compressed_stream_is_looked_at_where_its_coding_is_known(coding: str) -> None:
    content = gzip.compress(ERROR_EVENT) if coding == "gzip" else ERROR_EVENT
    headers = [SSE_TYPE, (b"content-encoding", coding.encode())]
    app = await pinned(Gateway("a", "b", serve=failing(200, content, headers)))
    answer = await call(app, AUTO, SESSION)
    assert answer.pin_status == ("hit" if coding == "unknown" else "reroute")
    assert answer.body == (ERROR_EVENT if coding == "unknown" else b'{"id": "1", "model": "b"}')


async def test_an_error_event_that_is_cut_is_one_too() -> None:
    async def serve(send: Send, model: str) -> None:
        await respond(send, ERROR_EVENT[:20], ERROR_EVENT[20:], headers=[SSE_TYPE])

    gateway = Gateway("a", "b", serve=serve)
    app = await pinned(gateway)
    assert await statuses(app) == ["reroute"]
    assert gateway.asked == ["a", "auto"]


async def test_a_stream_passes_from_its_first_output_on() -> None:
    passed: list[int] = []

    async def serve(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [SSE_TYPE]})
        for chunk in (b": ping\n\n", b'data: {"mod', b'el": "a"}\n\n', b"data: {}\n\n", b""):
            await send({"type": "http.response.body", "body": chunk, "more_body": bool(chunk)})
            passed.append(len(answer))

    app = await pinned(Gateway("a", serve=serve))
    answer: list[Message] = []

    async def send(message: Message) -> None:
        answer.append(message)

    await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
    assert passed == [0, 0, 4, 5, 6]


@case(
    Section.FAILURE,
    "a stream that sends its headers long before its first event",
    "the headers wait for a second at most, nothing else does",
)
async def test_the_start_of_a_stream_waits_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_session_pin.hold_timer.HOLD_SECONDS", 0.01)
    started = asyncio.Event()

    async def serve(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [SSE_TYPE]})
        await started.wait()
        await send({"type": "http.response.body", "body": b"data: {}\n\n"})

    app = await pinned(Gateway("a", serve=serve))
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)
        started.set()

    await app(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
    assert [message["type"] for message in messages] == ["http.response.start", "http.response.body"]


# Order


async def test_the_second_call_starts_when_the_first_one_has_ended() -> None:
    order: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        order.append(f"called for {asked}")
        if asked == "auto":
            await respond(send, b'{"model":"a"}')
            return
        await send({"type": "http.response.start", "status": 503, "headers": [JSON_TYPE]})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        order.append("not whole yet")
        await send({"type": "http.response.body", "body": b"}"})
        order.append("background work")
        await send({"type": "http.response.body", "body": b"dropped"})

    middleware = SessionPinMiddleware(app)
    await call(middleware, AUTO, SESSION)
    answer = await call(middleware, AUTO, SESSION)
    assert order == ["called for auto", "called for a", "not whole yet", "background work", "called for auto"]
    assert answer.body == b'{"model":"a"}'


async def test_the_second_call_begins_with_the_scope_as_it_was_and_outer_middleware_sees_its_additions() -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        seen.append({**scope, "state": dict(scope["state"])})
        scope[f"added for {asked}"] = True
        scope["state"][f"added for {asked}"] = True
        scope["path"] = "/changed"
        await (respond(send, b'{"model":"a"}') if asked == "auto" else respond(send, b"", status=503))
        scope["late"] = asked

    middleware = SessionPinMiddleware(app)
    await call(middleware, AUTO, SESSION)
    scope = http_scope(SESSION)
    state = scope["state"] = {"lifespan": 1}
    await call(middleware, AUTO, scope=scope)
    second = seen[2]
    assert {key: value for key, value in second.items() if key != "asgi_session_pin"} == {
        **http_scope(SESSION),
        "state": {"lifespan": 1},
    }
    assert get_session_pin(second) is not None
    assert scope["state"] is state == {"lifespan": 1, "added for auto": True}
    assert (scope["path"], scope["late"], scope["added for auto"]) == ("/changed", "auto", True)
    assert "added for a" not in scope


async def test_a_scope_without_state_is_restored_too() -> None:
    app = await pinned(Gateway("a", "b", serve=failing(503)))
    scope = http_scope(SESSION)
    del scope["state"]
    assert (await call(app, AUTO, scope=scope)).pin_status == "reroute"
    assert "state" not in scope


async def test_a_router_in_the_app_is_told_that_the_second_call_is_not_pinned() -> None:
    told: list[tuple[bool, str | None]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        pin = get_session_pin(scope)
        assert pin is not None
        told.append((pin.pinned, pin.model))
        if pin.pinned:
            await respond(send, b"", status=404)
        else:
            pin.record(f"model-{len(told)}")
            await respond(send, b"{}")

    middleware = SessionPinMiddleware(app)
    await call(middleware, AUTO, SESSION)
    answer = await call(middleware, AUTO, SESSION)
    assert answer.pin_status == "reroute"
    await call(middleware, AUTO, SESSION)
    assert told[:4] == [(False, None), (True, "model-1"), (False, None), (True, "model-3")]


async def test_the_second_call_gets_the_disconnect_that_the_server_has() -> None:
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        if asked == "auto":
            await respond(send, b'{"model":"a"}')
            got.append(await receive())
        else:
            await respond(send, b"", status=503)

    middleware = SessionPinMiddleware(app)
    await call(middleware, AUTO, SESSION)
    await call(middleware, AUTO, SESSION)
    assert got == [{"type": "http.disconnect"}] * 2


def unfinished(*messages: Message, error: Exception | None = None) -> Serve:
    """Return an app that is done before its answer is: it returns, or raises."""

    async def serve(send: Send, model: str) -> None:
        for message in messages:
            await send(message)
        if error is not None:
            raise error

    return serve


def start(status: int, *headers: Header) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


PRELUDE: Message = {
    "type": "http.response.body",
    "body": b'data: {"type": "response.created", "response": {"model": "a"}}\n\n',
    "more_body": True,
}
UNFINISHED = [
    unfinished(),
    unfinished(start(200, JSON_TYPE)),
    unfinished(start(200, SSE_TYPE), PRELUDE),
    unfinished(start(409, JSON_TYPE), error=RuntimeError("broken off")),
]


@case(
    Section.FAILURE,
    "an answer that the app leaves unfinished before any output, by an exception or by returning",
    "as if the model were out",
)
@pytest.mark.parametrize("serve", UNFINISHED)
async def test_an_answer_that_is_left_unfinished_before_its_output_is_routed(serve: Serve) -> None:
    gateway = Gateway("a", "b", serve=serve)
    app = await pinned(gateway)
    answer = await call(app, AUTO, SESSION)
    assert (answer.pin_status, answer.json["model"]) == ("reroute", "b")


@pytest.mark.parametrize("route", UNFINISHED)
async def test_a_routed_answer_that_is_left_unfinished_before_its_output_is_replaced_by_the_first_one(
    route: Serve,
) -> None:
    gateway = Gateway("a", serve=failing(503))
    app = await pinned(gateway)
    gateway.route = route
    answer = await call(app, AUTO, SESSION)
    assert (answer.start["status"], answer.pin_status) == (503, "hit")


async def test_a_routed_answer_that_breaks_off_before_its_output_is_replaced_by_the_first_one() -> None:
    async def route(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [JSON_TYPE]})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        raise ValueError("broken off")

    gateway = Gateway("a", serve=failing(503))
    app = await pinned(gateway)
    gateway.route = route
    answer = await call(app, AUTO, SESSION)
    assert (answer.start["status"], answer.pin_status) == (503, "hit")


async def test_a_routed_answer_that_breaks_off_after_its_output_raises() -> None:
    async def route(send: Send, model: str) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [SSE_TYPE]})
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        raise ValueError("broken off")

    gateway = Gateway("a", serve=failing(503))
    app = await pinned(gateway)
    gateway.route = route
    with pytest.raises(ValueError, match="broken off"):
        await call(app, AUTO, SESSION)


async def test_a_cancellation_during_the_second_call_comes_out() -> None:
    reached = asyncio.Event()

    async def route(send: Send, model: str) -> None:
        reached.set()
        await asyncio.Event().wait()

    gateway = Gateway("a", serve=failing(503))
    app = await pinned(gateway)
    gateway.route = route
    task = asyncio.create_task(call(app, AUTO, SESSION))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gateway.serve = answer_json
    assert await statuses(app) == ["hit"]


# Clients that leave


async def test_a_client_that_left_is_not_routed_for() -> None:
    for fails in (failing(503), raising):

        async def app(scope: Scope, receive: Receive, send: Send, fails: Serve = fails) -> None:
            if asked_model(await read_body(receive)) == "auto":
                return await answer_json(send, "a")
            assert (await receive())["type"] == "http.disconnect"
            return await fails(send, "a")

        middleware = SessionPinMiddleware(app)
        await call(middleware, AUTO, SESSION)
        messages: list[Message] = []

        async def send(message: Message, messages: list[Message] = messages) -> None:
            messages.append(message)

        try:
            await middleware(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
        except RuntimeError:
            assert messages == []
        else:
            assert messages[0]["status"] == 503


async def test_a_client_that_leaves_during_the_second_call_says_nothing_of_the_pin() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = asked_model(await read_body(receive))
        if asked != "auto" and is_out:
            await failing(503)(send, asked)
        elif is_out and len(left) < 1:
            left.append((await receive())["type"])
        else:
            await answer_json(send, "a")

    left: list[str] = []
    is_out = False
    middleware = SessionPinMiddleware(app)
    await statuses(middleware, count=2)
    is_out = True
    receive = receive_from(body_messages(b'{"model":"auto"}'))

    async def send(message: Message) -> None:
        """Nobody is there."""

    await middleware(http_scope(SESSION), receive, send)
    assert left == ["http.disconnect"]
    assert await statuses(middleware) == ["reroute"]


@case(Section.FAILURE, "the client left", "nothing is routed; after 30 s without a response it counts as a failure")
@pytest.mark.parametrize("how", ["cancelled", "told"])
@pytest.mark.parametrize(("seconds", "given_up"), [(29, False), (31, True)])
async def test_a_client_that_leaves_after_30_seconds_without_a_response_is_a_failure(
    clock: Clock, how: str, seconds: float, given_up: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if asked_model(await read_body(receive)) == "auto" or serves:
            return await answer_json(send, "a")
        clock.now += seconds
        if how == "cancelled":
            await asyncio.Event().wait()
        assert (await receive())["type"] == "http.disconnect"
        return None

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    serves = True
    middleware = SessionPinMiddleware(app)
    assert await statuses(middleware, count=2) == ["miss", "hit"]
    serves = False
    for _ in range(3):
        task: asyncio.Future[None] = asyncio.ensure_future(
            middleware(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto","n":1}')), send)
        )
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) if how == "cancelled" else nullcontext():
            await task
    serves = True
    assert await statuses(middleware) == ["miss" if given_up else "hit"]


async def test_an_outage_of_one_of_two_models_costs_no_request_and_no_session_its_model() -> None:
    async def serve(send: Send, model: str) -> None:
        await (failing(503)(send, model) if model == out else answer_json(send, model))

    async def route(send: Send, model: str) -> None:
        await answer_json(send, "b" if out == "a" else model)

    out: str | None = None
    gateway = Gateway(*["a", "b"] * 25, "b", serve=serve, route=route)
    app = SessionPinMiddleware(gateway)
    sessions: list[Header] = [(b"x-session-id", b"%d" % n) for n in range(50)]
    before = [(await call(app, AUTO, session)).json["model"] for session in sessions]
    assert before == ["a", "b"] * 25
    await asyncio.gather(*(call(app, AUTO, session) for session in sessions))
    out = "a"
    for number, session in enumerate(sessions):
        for _ in range(4 if number < 10 else 2):
            answer = await call(app, AUTO, session)
            assert (answer.start["status"], answer.json["model"]) == (200, "b")
    out = None
    after = [(await call(app, AUTO, session)).json["model"] for session in sessions]
    assert after[:10] == ["b"] * 10, "those that asked often enough had given up"
    assert after[10:] == before[10:], "all others are back"


async def test_a_client_that_left_without_a_response_tells_that_the_model_was_unavailable(clock: Clock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if asked_model(await read_body(receive)) == "auto":
            return await answer_json(send, "a")
        clock.now += 40
        assert (await receive())["type"] == "http.disconnect"
        return None

    async def send(message: Message) -> None:
        """Nobody is there."""

    events: list[PinEvent] = []
    middleware = SessionPinMiddleware(app, listeners=[events.append])
    assert await statuses(middleware) == ["miss"]
    await middleware(http_scope(SESSION), receive_from(body_messages(b'{"model":"auto"}')), send)
    assert [event.verdict for event in events] == [None, "unavailable"]
