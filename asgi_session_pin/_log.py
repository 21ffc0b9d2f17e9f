"""The package's logger, and what keeps requests out of anybody's."""

import logging

import msgspec

logger = logging.getLogger("asgi_session_pin")


class Opaque(msgspec.Struct, eq=False):
    """Base of what lives as long as a request. Its repr shows no field: they hold prompts, ids and keys."""

    def __repr__(self) -> str:
        return object.__repr__(self)
