"""What the app's scope and the server's have of each other."""

import copy
import pickle
from typing import Any

from starlette.types import Receive, Scope, Send

from asgi_driver import JSON_TYPE, SESSION, call, http_scope, respond
from asgi_session_pin import SessionPinMiddleware, get_session_pin
from asgi_session_pin.request.scope import SCOPE_KEY, inner_scope, part_state, share

HEADERS = [(b"a", b"1")]


def test_what_is_put_into_the_apps_scope_is_shared_but_for_headers_and_the_mark() -> None:
    outer: dict[str, Any] = {"type": "http", "path": "/", "headers": HEADERS}
    scope = inner_scope(outer, [(b"b", b"2")], "mark")
    assert scope == {"type": "http", "path": "/", "headers": [(b"b", b"2")], SCOPE_KEY: "mark"}
    scope.update({"path": "/changed", "headers": [], "route": 1})
    assert outer == {"type": "http", "path": "/", "headers": HEADERS}, "nothing before it is shared"
    share(scope, outer)
    assert outer == {"type": "http", "path": "/changed", "headers": HEADERS, "route": 1}


def test_the_very_object_of_the_state_stays_and_has_what_the_app_put_in() -> None:
    state = {"lifespan": 1}
    outer: dict[str, Any] = {"type": "http", "headers": HEADERS, "state": state}
    replaced, scope = inner_scope(outer, [], None), inner_scope(outer, [], None)
    for each in (replaced, scope):
        part_state(each)
    replaced["state"]["of"] = "an attempt that is replaced"
    scope["state"]["of"] = "the answer that goes out"
    share(scope, outer)
    assert outer["state"] is state
    assert state == {"lifespan": 1, "of": "the answer that goes out"}


def test_a_state_of_another_kind_is_left_alone() -> None:
    state = object()
    outer: dict[str, Any] = {"type": "http", "headers": HEADERS, "state": state}
    scope = inner_scope(outer, [], None)
    part_state(scope)
    assert scope["state"] is state
    scope["state"] = "another"
    share(scope, outer)
    assert outer["state"] == "another"


async def test_a_scope_that_the_app_copies_deeply_or_pickles_is_no_trouble() -> None:
    copies: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        copies.append(copy.deepcopy(dict(scope)))
        copies.append(pickle.loads(pickle.dumps(dict(scope))))
        await respond(send, b'{"model":"a"}', headers=[JSON_TYPE])

    answer = await call(SessionPinMiddleware(app), {"model": "auto"}, scope=http_scope(SESSION))
    assert answer.pin_status == "miss"
    assert [get_session_pin(each) is None for each in copies] == [False, True]
