"""Patterns of the configuration: only `*` is special, and stands for any characters, "/" among them."""

import re
from collections.abc import Iterable


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return an expression for `fullmatch` with one group for each `*`.

    Each `*` takes the least that lets the next literal follow and never gives it back (atomic groups), so that matching
    is linear in the text's length for every star, whatever a client sends.
    """
    first, *rest = map(re.escape, pattern.split("*"))
    if not rest:
        return re.compile(first)
    middle = "".join(f"(?>(.*?){literal})" for literal in rest[:-1])
    return re.compile(f"{first}{middle}(.*){rest[-1]}", re.DOTALL)


class Patterns:
    """Several patterns, asked as one."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._match = re.compile("|".join(compile_pattern(p).pattern for p in patterns) or r"(?!)", re.DOTALL).fullmatch

    def match(self, text: str) -> bool:
        """Tell whether any of the patterns matches the whole of *text*."""
        return self._match(text) is not None


class Alias:
    """A name and what to send for it: `"gpt-*": "openai/gpt-*"` carries over what the star stood for."""

    def __init__(self, name: str, target: str) -> None:
        self._match = compile_pattern(name).fullmatch
        self._target = target.split("*")

    def apply(self, name: str) -> str | None:
        """Return the name to send for *name*, or None if this alias is not about it."""
        found = self._match(name)
        if found is None:
            return None
        first, *rest = self._target
        return first + "".join(carried + literal for carried, literal in zip(found.groups(), rest, strict=False))
