"""LiteLLM's list of its deployments: groups, aliases, and lists that are none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_session_pin.probe.litellm import (
    Deployment,
    auto_routers,
    group_aliases,
    read_deployments,
    read_listed,
    shorten,
)


def test_groups_have_aliases_only_where_they_say_which_model() -> None:
    deployments = [
        Deployment("smart", "auto_router/complexity_router", "r"),
        Deployment("mixed", "openai/a", "1"),
        Deployment("mixed", "openai/b", "2"),
        Deployment("one", "openai/c", "3"),
        Deployment("one", "openai/c", "4"),
        Deployment("same", "same", "5"),
        Deployment("wild/*", "openai/*", "6"),
        Deployment("all", "vertex/*", "7"),
    ]
    by_model, by_id = group_aliases(deployments, ())
    assert by_model == {"openai/c": "one", "openai/*": "wild/*"}
    assert by_id == {"3": "one", "4": "one", "5": "same"}
    assert auto_routers(deployments) == ["smart"]


def test_aliases_become_a_pattern_only_if_it_is_right_for_all() -> None:
    pairs = [Deployment("a", "openai/a", ""), Deployment("b", "openai/b", "")]
    aliases = {each.model: each.group for each in pairs}
    assert shorten(aliases, pairs) == {"openai/*": "*"}
    assert shorten(aliases, [*pairs, Deployment("d", "openai/c", "")]) == aliases
    assert shorten({"openai/a": "a"}, pairs) == {"openai/a": "a"}
    assert shorten({"my-a": "a", "my-b": "b"}, pairs) == {"my-a": "a", "my-b": "b"}
    assert shorten(aliases | {"azure/c": "c"}, pairs) == aliases | {"azure/c": "c"}


ODD_LISTS = [b"", b"[]", b'{"data": 1}', b'{"data": [1, {"model_name": 1}, {"id": "a b"}]}', b"[" * 100_000]


@pytest.mark.parametrize("body", ODD_LISTS)
def test_odd_lists_are_empty(body: bytes) -> None:
    assert read_deployments(body) == ()
    assert read_listed(body) == frozenset()


@settings(deadline=None)
@given(st.binary())
def test_any_bytes_are_a_list(body: bytes) -> None:
    read_deployments(body)
    read_listed(body)
