"""What the middleware is given in Python: what can't work is refused, with a sentence that says what can."""

from collections.abc import Callable, Iterable
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any

from .config.reading import kind_of


def check_store(store: Any) -> None:
    """Raise TypeError for what has not the methods of a `PinStore`."""
    if isinstance(store, type):
        raise TypeError(f"store: found the class {store.__name__}, expected a store that is made of it")
    methods = ("get", "add", "discard", "aclose")
    if not all(callable(getattr(store, name, None)) for name in methods):
        raise TypeError(
            f"store: found {_found(store)}, expected an object with {', '.join(methods)}, such as MemoryStore(); a URL "
            'goes into the setting store.url: config={"store": {"url": "sqlite:///pins.db"}}'
        )


def read_listeners(listeners: Any) -> tuple[Callable[..., None], ...]:
    """Return the listeners. Raises TypeError for what is no list of plain functions."""
    if callable(listeners) or not isinstance(listeners, Iterable):
        raise TypeError(f"listeners: found {_found(listeners)}, expected a list of functions: listeners=[function]")
    functions = tuple(listeners)
    for function in functions:
        _check_function("listeners", function, "one that is called with a PinEvent and only takes note of it")
    return functions


def check_session_id(session_id: Any) -> None:
    """Raise TypeError for what is no plain function."""
    _check_function(
        "session_id",
        session_id,
        "one that returns a scope's session id or None; names of headers belong into sessions.sources",
    )


def _check_function(argument: str, function: Any, wanted: str) -> None:
    if not callable(function):
        raise TypeError(f"{argument}: found {_found(function)}, expected a function, {wanted}")
    if any(
        check(each) for check in (iscoroutinefunction, isasyncgenfunction) for each in (function, function.__call__)
    ):
        name = getattr(function, "__qualname__", type(function).__name__)
        raise TypeError(
            f"{argument}: found the async function {name}, which nobody awaits; expected a plain one, {wanted}"
        )


def _found(value: object) -> str:
    return "a function" if callable(value) else kind_of(value)  # not what is in it: a URL may hold a password
