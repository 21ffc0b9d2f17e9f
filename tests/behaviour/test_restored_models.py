"""`restore_model`: the client reads the name that it asked for, and the pin is what the gateway said."""

import json
from typing import Any

import pytest
from starlette.types import Message, Send

from asgi_driver import (
    CHAT,
    SESSION,
    Gateway,
    answer_json,
    answer_stream,
    body_messages,
    call,
    http_scope,
    receive_from,
    respond,
)
from asgi_session_pin import Config, Endpoint, Failover, SessionPinMiddleware
from behaviour_document import Section, case

RESTORED = Config(restore_model=True)


@case(
    Section.RESPONSE,
    "`restore_model`",
    "the model that the client asked for, in JSON and events; the pin is what the gateway said",
)
@pytest.mark.parametrize("answer", [answer_json, answer_stream])
async def test_the_client_reads_the_name_that_it_asked_for(answer: Any) -> None:
    gateway = Gateway("routed", "other", answer=answer)
    app = SessionPinMiddleware(gateway, config=RESTORED)
    answers = [await call(app, {"model": "auto", "stream": answer is answer_stream}, SESSION) for _ in range(2)]
    assert gateway.asked == ["auto", "routed"]
    for told in answers:
        assert b'"auto"' in told.body
        assert b"routed" not in told.body
    assert answers[1].headers["x-session-model"] == "routed"


async def test_a_request_without_a_session_or_a_model_and_a_decision_are_answered_as_the_app_does() -> None:
    app = SessionPinMiddleware(Gateway("routed"), config=RESTORED)
    assert (await call(app, {"model": "auto"})).json["model"] == "routed"
    assert (await call(app, {}, SESSION)).json["model"] == "routed"
    decides = Config(restore_model=True, endpoints=(Endpoint(path=CHAT, kind="decision"),))
    app = SessionPinMiddleware(Gateway("routed"), config=decides)
    assert (await call(app, {"model": "auto"}, SESSION)).json["model"] == "routed"


async def test_an_answer_that_is_routed_again_names_what_was_asked_for() -> None:
    async def fail(send: Send, model: str) -> None:
        await respond(send, b"{}", status=503)

    gateway = Gateway("first", "second", serve=fail)
    app = SessionPinMiddleware(gateway, config=RESTORED)
    for status in ("miss", "reroute"):
        told = await call(app, {"model": "auto"}, SESSION)
        assert told.headers["x-session-pin-status"] == status
        assert told.json["model"] == "auto"


async def test_a_client_that_leaves_says_nothing_of_the_model() -> None:
    class Gone(Exception):
        pass

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise Gone

    gateway = Gateway("first", "second", answer=answer_stream)
    app = SessionPinMiddleware(gateway, config=Config(restore_model=True, failover=Failover(give_up_after=1)))
    body = {"model": "auto", "stream": True}
    await call(app, body, SESSION)
    for _ in range(2):
        with pytest.raises(Gone):
            await app(http_scope(SESSION), receive_from(body_messages(json.dumps(body).encode())), send)
    assert (await call(app, body, SESSION)).headers["x-session-model"] == "first"
