import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_session_pin.config.patterns import Alias, Patterns, compile_pattern


def glob(pattern: str, text: str) -> bool:
    if pattern.startswith("*"):
        return glob(pattern[1:], text) or (text != "" and glob(pattern, text[1:]))
    return pattern == text == "" or (pattern[:1] == text[:1] != "" and glob(pattern[1:], text[1:]))


# Few characters, so that stars have several ways to match.
patterns = st.text("ab*", max_size=7)
texts = st.text("ab\n", max_size=9)


@given(patterns, texts)
@settings(max_examples=500, deadline=None)
def test_a_pattern_matches_what_a_glob_matches(pattern: str, text: str) -> None:
    assert (compile_pattern(pattern).fullmatch(text) is not None) == glob(pattern, text)


@given(st.lists(patterns.filter(bool), max_size=3), texts)
@settings(max_examples=300, deadline=None)
def test_several_patterns_match_what_any_of_them_matches(several: list[str], text: str) -> None:
    assert Patterns(several).match(text) == any(glob(pattern, text) for pattern in several)


@given(patterns, texts)
@settings(max_examples=300, deadline=None)
def test_what_the_stars_stood_for_put_back_gives_the_name_again(pattern: str, name: str) -> None:
    assert Alias(pattern, pattern).apply(name) == (name if glob(pattern, name) else None)


@given(st.text(string.punctuation + string.whitespace + "aß\0", max_size=10), st.text(max_size=3))
@settings(max_examples=200, deadline=None)
def test_only_the_star_is_special(text: str, beside: str) -> None:
    literal = text.replace("*", "")
    assert Patterns([literal + "*"]).match(literal + beside)
    assert Patterns(["x", "*" + literal]).match(beside + literal)
    assert compile_pattern(literal).fullmatch(literal)
    assert compile_pattern(literal).fullmatch(literal + "x" + beside) is None


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("/v1/chat", "/v1/chat", True),
        ("/v1/chat", "/v1/chat/", False),
        ("/v1/chat", "/V1/chat", False),
        ("*/chat", "/chat", True),
        ("*/chat", "/a/b/c/chat", True),
        ("*/chat", "/chat/completions", False),
        ("/v1/*", "/v1/", True),
        ("/v1/*", "/v1/a/b", True),
        ("*/deployments/*", "/openai/deployments/x/chat/completions", True),
        ("*/deployments/*", "/deployments", False),
        ("a*b*c", "abc", True),
        ("a*b*c", "a/b/b/c", True),
        ("a*b*c", "acb", False),
        ("*ab*ab*", "abab", True),
        ("*ab*ab*", "aba", False),
        ("a**b", "ab", True),
        ("*", "", True),
        ("*", "line\nline", True),
        ("a*b", "a\nb", True),
        ("gpt-4.1", "gpt-401", False),
        ("a?", "ab", False),
        ("a|b", "a", False),
        ("a|b", "a|b", True),
        ("[ab]", "a", False),
        ("(?i)x", "x", False),
        ("$", "$", True),
        ("\\d", "1", False),
    ],
)
def test_a_pattern_is_about_the_whole_text(pattern: str, text: str, expected: bool) -> None:
    assert Patterns([pattern]).match(text) == expected
    assert Patterns(["other", pattern]).match(text) == expected
    assert Patterns([pattern, "other"]).match(text) == expected


@pytest.mark.parametrize("text", ["", "*", "a", "\n"])
def test_no_pattern_matches_nothing(text: str) -> None:
    assert not Patterns([]).match(text)


def test_a_long_text_that_almost_matches_many_stars_is_settled_without_trying_all_ways() -> None:
    # With backtracking these are 2,000 ** 20 ways: the test would never end.
    pattern = "a*" * 20 + "b"
    assert not Patterns([pattern]).match("a" * 2_000)
    assert Alias(pattern, "x").apply("a" * 2_000) is None


@pytest.mark.parametrize(
    ("name", "target", "given_name", "expected"),
    [
        ("gpt-4o", "openai/gpt-4o", "gpt-4o", "openai/gpt-4o"),
        ("gpt-4o", "openai/gpt-4o", "gpt-4o-mini", None),
        ("gpt-*", "openai/gpt-*", "gpt-4o", "openai/gpt-4o"),
        ("gpt-*", "openai/gpt-*", "gpt-", "openai/gpt-"),
        ("gpt-*", "openai/gpt-*", "claude", None),
        ("*", "proxy/*", "a/b", "proxy/a/b"),
        ("*-v*", "*@*", "claude-v2", "claude@2"),
        ("*-v*", "*", "claude-v2", "claude"),
        ("*-*", "*/*", "a-b-c", "a/b-c"),
        ("*-*-x", "*/*", "a-b-c-x", "a/b-c"),
        ("gpt-*", "default", "gpt-4o", "default"),
        ("a.c", "x", "abc", None),
        ("a*", r"\1\g<0>*", "ab", r"\1\g<0>b"),
        ("*", "<*>", "*", "<*>"),
        ("*-*", "*+*", "*-b", "*+b"),
    ],
)
def test_an_alias_carries_over_what_its_stars_stood_for(
    name: str, target: str, given_name: str, expected: str | None
) -> None:
    assert Alias(name, target).apply(given_name) == expected
