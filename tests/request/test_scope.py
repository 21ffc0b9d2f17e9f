"""What the app's scope and the server's have of each other."""

import copy
import pickle
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from asgi_driver import JSON_TYPE, SESSION, call, http_scope, respond
from asgi_session_pin import SessionPinMiddleware, get_session_pin
from asgi_session_pin.request.scope import SCOPE_KEY, copy_of_state, put_state, show

HEADERS = [(b"a", b"1")]


def test_what_the_app_puts_into_its_scope_is_shown_but_for_headers_and_the_mark() -> None:
    outer: dict[str, Any] = {"type": "http", "path": "/", "headers": HEADERS}
    shown = {**outer, "headers": [(b"b", b"2")], SCOPE_KEY: "mark"}
    scope = {**shown, "path": "/changed", "headers": [], "route": 1}
    show(scope, outer, shown)
    assert outer == {"type": "http", "path": "/changed", "headers": HEADERS, "route": 1}


def test_what_outer_middleware_puts_in_meanwhile_stays() -> None:
    outer: dict[str, Any] = {"type": "http", "headers": HEADERS, "user": None}
    shown = {**outer, "headers": [], SCOPE_KEY: None}
    scope = {**shown, "route": 1}
    show(scope, outer, shown)
    outer["user"] = "known"
    scope["endpoint"] = 2
    show(scope, outer, shown)
    assert outer == {"type": "http", "headers": HEADERS, "user": "known", "route": 1, "endpoint": 2}


def test_what_the_app_takes_out_of_its_scope_stays_in_the_servers() -> None:
    outer: dict[str, Any] = {"type": "http", "headers": HEADERS, "user": "known"}
    shown = {**outer, "headers": [], SCOPE_KEY: None}
    scope = {**shown, "route": 1}
    del scope["user"]
    show(scope, outer, shown)
    assert outer == {"type": "http", "headers": HEADERS, "user": "known", "route": 1}


def test_values_that_cannot_be_compared_are_shown() -> None:
    class Array:
        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

        __hash__ = None  # type: ignore[assignment]

    outer: dict[str, Any] = {"user": Array()}
    found = Array()
    show({"user": found}, outer, dict(outer))
    assert outer["user"] is found


def test_the_very_object_of_the_state_stays_and_has_what_the_answer_put_in_that_goes_out() -> None:
    state = {"lifespan": 1}
    scope: dict[str, Any] = {"state": state}
    before = copy_of_state(scope)
    state["of"] = 1
    after = copy_of_state(scope)
    put_state(scope, before)
    assert state == {"lifespan": 1}, "the second call begins with the state as it was"
    put_state(scope, after)
    assert scope["state"] is state
    assert state == {"lifespan": 1, "of": 1}


@pytest.mark.parametrize("scope", [{"state": object()}, {}])
def test_a_state_of_another_kind_is_left_alone(scope: dict[str, Any]) -> None:
    before = dict(scope)
    put_state(scope, copy_of_state(scope))
    assert scope == before


async def test_a_scope_that_the_app_copies_deeply_or_pickles_is_no_trouble() -> None:
    copies: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        copies.append(copy.deepcopy(dict(scope)))
        copies.append(pickle.loads(pickle.dumps(dict(scope))))
        await respond(send, b'{"model":"a"}', headers=[JSON_TYPE])

    answer = await call(SessionPinMiddleware(app), {"model": "auto"}, scope=http_scope(SESSION))
    assert answer.pin_status == "miss"
    assert [get_session_pin(each) is None for each in copies] == [False, True]
