"""What the request's side does with scopes."""

import copy
import pickle
from typing import Any

import pytest

from asgi_session_pin.request.body import SCOPE_KEY, inner_scope


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


def test_what_is_taken_out_inside_is_out_outside_too() -> None:
    outer: dict[str, Any] = {"type": "http", "path": "/", "headers": [(b"a", b"1")]}
    scope = inner_scope(outer, [], "mark")
    scope.update(a=1, b=2, c=3)
    del scope["a"]
    assert (scope.pop("b"), scope.pop("b", None)) == (2, None)
    assert outer == {"type": "http", "path": "/", "headers": [(b"a", b"1")], "c": 3}
    scope.clear()
    assert (scope, outer) == ({}, {"headers": [(b"a", b"1")]})
    with pytest.raises(KeyError):
        scope.popitem()


def test_a_copy_of_an_inner_scope_is_a_dict_on_its_own() -> None:
    outer: dict[str, Any] = {"type": "http"}
    scope = inner_scope(outer, [], lambda: "a mark that nobody can copy")
    copies = [dict(scope), {**scope}, scope.copy(), copy.copy(scope), copy.deepcopy(scope)]
    for each in [*copies, pickle.loads(pickle.dumps(scope))]:
        assert type(each) is dict
        each["route"] = 1
    assert outer == {"type": "http"}
    assert copies[3][SCOPE_KEY] is scope[SCOPE_KEY]
    assert copies[4][SCOPE_KEY] is None
