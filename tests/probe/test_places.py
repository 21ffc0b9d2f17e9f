"""Where a reply may name a model, and what can be a name."""

import json

import msgspec
import pytest

from asgi_session_pin.probe.places import may_be_name, names_in_body, names_in_headers, rank, undated


def test_headers_and_members_that_tell_are_found() -> None:
    headers = {
        b"x-model": b" gpt-4o ",
        b"x-chosen": b"listed",
        b"x-other": b"unlisted",
        b"x-model-version": b"v1.2",
        b"x-model-region": b"two words",
        b"x-session-model": b"gpt-4o",
        b"x-route\xff": b"gpt-4o",
        b"x-azure-deployment": b"none",
        b"x-litellm-complexity-router-tier": b"SIMPLE",
    }
    found = names_in_headers(headers, frozenset({"listed"}))
    assert found == {"header:x-model": "gpt-4o", "header:x-chosen": "listed"}
    body = {
        "models": ["m0"],
        "modelVersion": "gemini-2",
        "model_used": "a",
        "provider": {"model": "b", "name": "c"},
        "model size": "d",
        "odd.key": {"model": "e"},
        "bad": {"model": 1},
        "choices": [{"model": "f"}],
    }
    members = {key: msgspec.Raw(json.dumps(value).encode()) for key, value in body.items()}
    assert names_in_body(members) == {
        "body:models.0": "m0",
        "body:modelVersion": "gemini-2",
        "body:model_used": "a",
        "body:provider.model": "b",
    }


def test_sources_are_ranked_from_the_usual_to_the_unlikely() -> None:
    sources = ["header:x-vsr-selected-model", "body:model", "header:x-litellm-model-name", "header:x-litellm-model-id"]
    sources += ["header:x-the-model", "header:x-model-id", "header:x-deployment", "body:model_used", "header:x-route"]
    turned = sources[::-1]
    assert sorted(turned, key=rank) == sources


@pytest.mark.parametrize("text", ["", "none", "True", "1.106.2", "v3", "2024-08-06", "http://a/b", "gpt-*", "a b", "é"])
def test_what_can_be_no_model(text: str) -> None:
    assert not may_be_name(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gpt-4o-2024-08-06", "gpt-4o"), ("claude-4-20250514", "claude-4"), ("c@20250514", "c"), ("gpt-4o", None)],
)
def test_the_date_of_a_snapshot_is_taken_off(name: str, expected: str | None) -> None:
    assert undated(name) == expected
