"""The package's logger, what is told through it, and what keeps requests out of it."""

import logging
import time
from collections.abc import Callable, Hashable, Iterable

import msgspec

logger = logging.getLogger("asgi_session_pin")

_MAX_SUBJECTS = 100  # clients and upstreams choose names
MAX_SHOWN = 256
_QUIET_SECONDS = 60


class Opaque(msgspec.Struct, eq=False):
    """Base of what lives as long as a request. Its repr shows no field: they hold prompts, ids and keys."""

    def __repr__(self) -> str:
        return object.__repr__(self)


class Warnings:
    """What the operator is told: once for each subject, or now and then while something fails.

    Names come from outside: they are arguments of the message, shown by %r and cut to `MAX_SHOWN` characters.
    """

    def __init__(self, timer: Callable[[], float] = time.monotonic) -> None:
        self._timer = timer
        self._subjects: set[Hashable] = set()
        self._told_again: dict[str, float] = {}

    def once(self, subject: Hashable, message: str, *arguments: object) -> None:
        """Log a warning, if this is the first one about *subject*."""
        self._tell(logging.WARNING, subject, message, arguments)

    def notice(self, subject: Hashable, message: str, *arguments: object) -> None:
        """Do as `once`, for what may be right as it is."""
        self._tell(logging.INFO, subject, message, arguments)

    def _tell(self, level: int, subject: Hashable, message: str, arguments: Iterable[object]) -> None:
        if subject not in self._subjects and len(self._subjects) < _MAX_SUBJECTS:
            self._subjects.add(subject)
            logger.log(level, message, *(each[:MAX_SHOWN] if isinstance(each, str) else each for each in arguments))

    def failed(self, what: str) -> None:
        """Log something that is not ours and raised, just now: with its traceback, once a minute at most."""
        now = self._timer()
        if now >= self._told_again.get(what, now):
            self._told_again[what] = now + _QUIET_SECONDS
            logger.warning(what, exc_info=True)


def names_of(error: BaseException | None) -> str:
    """Return the names of an exception and of those that it came from: their texts may quote what a server sent."""
    names: dict[str, None] = {}
    left = 10  # a chain may be a circle
    while error is not None and left:
        names[type(error).__name__] = None
        error = error.__cause__ or error.__context__
        left -= 1
    return " from ".join(names)
