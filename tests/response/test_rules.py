"""Which names are choices of the router, and which two are the same model."""

from typing import Any

import pytest

from asgi_session_pin import Config
from asgi_session_pin.pin import NamedModel
from asgi_session_pin.response.rules import ModelRules, is_answer_to, is_dated, is_same_model, read_source
from asgi_session_pin.wire.json import decode_members


def rules(**sections: Any) -> ModelRules:
    return ModelRules(Config.load(sections))


def model_of(name: str, asked: str | None = "auto", **sections: Any) -> str | None:
    found = rules(**sections).find_model({b"x-m": name.encode("latin-1")}, None, asked, None)
    assert found is not None
    assert found.name == name
    return found.model


HEADER = {"sources": ["header:x-m"]}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("gpt-4o", "gpt-4o"),
        (" gpt-4o\t", "gpt-4o"),
        ("x" * 256, "x" * 256),
        ("x" * 257, None),
        ("None", None),
        ("NONE", None),
        (" ", None),
        ("a b", None),
        ("\xe9", None),
        ("router/x", None),
        ("auto", None),
    ],
)
def test_a_name_is_a_choice_if_it_can_be_sent_and_the_router_does_not_decide_for_it(
    name: str, model: str | None
) -> None:
    assert model_of(name, decisions=HEADER, routing={"router_models": ["auto", "router/*"]}) == model


def test_an_alias_turns_the_name_of_a_response_into_one_to_send() -> None:
    decisions = HEADER | {"aliases": {"provider/*": "group-*", "odd": "auto"}}
    assert model_of("provider/a", decisions=decisions) == "group-a"
    assert model_of("odd", decisions=decisions, routing={"router_models": ["auto"]}) is None


@pytest.mark.parametrize(
    ("asked", "answered", "model"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", "gpt-4o"),
        ("claude-haiku-4-5", "claude-haiku-4-5@20251001", "claude-haiku-4-5"),
        ("gpt-4o:free", "gpt-4o", "gpt-4o:free"),
        ("gpt-4o-high", "gpt-4o-2024-08-06", "gpt-4o-high"),
        ("gpt-4o(high)", "gpt-4o", "gpt-4o(high)"),
        ("gpt-4o[1m]", "gpt-4o", "gpt-4o[1m]"),
        ("gpt-4o@preset/x", "gpt-4o", "gpt-4o@preset/x"),
        ("@preset/x", "gpt-4o", "@preset/x"),
        ("gpt-4o", "gpt-4o-mini", "gpt-4o-mini"),
        ("gpt-4o.1", "gpt-4o", "gpt-4o"),
        ("auto-fast", "auto", "auto"),
        (None, "gpt-4o-2024-08-06", "gpt-4o-2024-08-06"),
    ],
)
def test_an_answer_to_the_name_asked_for_is_that_name(asked: str | None, answered: str, model: str) -> None:
    routing = {"router_models": ["auto-fast"]}
    assert model_of(answered, asked, decisions=HEADER, routing=routing) == model


@pytest.mark.parametrize(
    ("answered", "other", "same"),
    [
        ("gpt-4o", "gpt-4o", True),
        ("gpt-4o", "openai/gpt-4o", True),
        ("azure/gpt-4o", "openai/gpt-4o-2024-08-06", True),
        ("gpt-4o-2024-08-06", "gpt-4o-2024-11-20", True),
        ("gpt-4o:free", "gpt-4o", True),
        ("gpt-4o(high)", "gpt-4o[1m]", True),
        ("gpt-4o-mini", "gpt-4o", False),
        ("gpt-4o", "gpt-4", False),
        (":free", ":fast", False),
        ("-2024-08-06", "-2024-11-20", False),
    ],
)
def test_two_answers_name_the_same_model(answered: str, other: str, same: bool) -> None:
    assert is_same_model(answered, other) is is_same_model(other, answered) is same


def test_a_date_is_one_of_a_snapshot() -> None:
    assert is_dated("gpt-4o-2024-08-06", "gpt-4o")
    assert is_dated("claude@20251001", "claude")
    assert not is_dated("gpt-4o-mini", "gpt-4o")
    assert not is_dated("gpt-4o", "gpt-4o")
    assert not is_answer_to("gpt-4o-2024-08-06", "gpt-4")


def test_the_first_source_with_a_usable_name_decides() -> None:
    found = rules(decisions={"sources": ["header:x-m", "body:model", "body:models.0", "header:x-n"]}).find_model
    members = decode_members(b'{"model":"none","models":["a"]}')
    assert found({b"x-m": b"b"}, None, None, "json") == NamedModel("b", "b", "header:x-m", "json")
    assert found({}, None, None, None) is None, "the body may name one"
    assert found({b"x-m": b"none"}, members, None, None) == NamedModel("a", "a", "body:models.0", None)
    assert found({b"x-n": b"c"}, decode_members(b'{"model":1,"models":[]}'), None, None) == NamedModel(
        "c", "c", "header:x-n", None
    )
    assert found({b"x-m": b"none"}, decode_members(b"{}"), None, None) == NamedModel("none", None, "header:x-m", None)
    assert found({}, decode_members(b"{}"), None, None) is None


def test_a_source_is_a_header_or_a_path() -> None:
    assert read_source("header:X-Model") == ("header:X-Model", b"x-model", ())
    assert read_source("body:models.0") == ("body:models.0", None, ("models", "0"))


def test_litellm_is_known_by_its_headers() -> None:
    plain, configured = rules(), rules(decisions={"sources": ["header:x-litellm-model-name"]})
    assert plain.hides_choices({b"x-litellm-call-id": b"1"})
    assert not plain.hides_choices({})
    assert not configured.hides_choices({b"x-litellm-call-id": b"1"})
    assert not plain.is_fallback({b"x-litellm-attempted-fallbacks": b"0"})
    assert plain.is_fallback({b"x-litellm-attempted-fallbacks": b"1"})


def test_what_a_router_states_is_usable_only_as_text() -> None:
    assert rules().is_usable("a")
    for name in (None, 1, b"a", "", "none"):
        assert not rules().is_usable(name)
