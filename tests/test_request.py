"""What the request's side does with scopes."""

from typing import Any

from asgi_session_pin.request import SCOPE_KEY, inner_scope


def test_what_is_set_inside_is_outside_at_once_but_for_headers_and_the_mark() -> None:
    outer: dict[str, Any] = {"type": "http", "path": "/", "headers": [(b"a", b"1")]}
    scope = inner_scope(outer, [(b"b", b"2")], "mark")
    assert scope == {"type": "http", "path": "/", "headers": [(b"b", b"2")], SCOPE_KEY: "mark"}
    scope["route"] = 1
    scope.update({"path": "/changed", "headers": []}, user=2)
    assert (scope.setdefault("auth", 3), scope.setdefault("auth", 4), scope.setdefault("session")) == (3, 3, None)
    scope |= {"endpoint": 5, SCOPE_KEY: "other"}
    added = {"route": 1, "path": "/changed", "user": 2, "auth": 3, "session": None, "endpoint": 5}
    assert outer == {"type": "http", "headers": [(b"a", b"1")], **added}
    assert scope == {"type": "http", "headers": [], SCOPE_KEY: "other", **added}


def test_a_copy_of_an_inner_scope_is_on_its_own() -> None:
    outer: dict[str, Any] = {"type": "http"}
    scope = inner_scope(outer, [], None)
    for copy in (dict(scope), {**scope}, scope.copy()):
        copy["route"] = 1
    assert outer == {"type": "http"}
