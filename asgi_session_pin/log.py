"""The package's logger, and what keeps requests out of anybody's."""

import logging

import msgspec

logger = logging.getLogger("asgi_session_pin")


def names_of(error: BaseException | None) -> str:
    """Return the names of an exception and of those that it came from: their texts may quote what a server sent."""
    names: dict[str, None] = {}
    while error is not None:
        names[type(error).__name__] = None
        error = error.__cause__ or error.__context__
    return " from ".join(names)


class Opaque(msgspec.Struct, eq=False):
    """Base of what lives as long as a request. Its repr shows no field: they hold prompts, ids and keys."""

    def __repr__(self) -> str:
        return object.__repr__(self)
