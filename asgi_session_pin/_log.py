"""The package's logger, and warnings that are given once."""

import logging
from collections.abc import Hashable

logger = logging.getLogger("asgi_session_pin")

_MAX_SUBJECTS = 100


class WarnOnce:
    """Logs a warning once for each subject, and for a bounded number of them: clients and upstreams choose names."""

    def __init__(self) -> None:
        self._subjects: set[Hashable] = set()

    def __call__(self, subject: Hashable, message: str, *args: object) -> None:
        if subject in self._subjects or len(self._subjects) >= _MAX_SUBJECTS:
            return
        self._subjects.add(subject)
        logger.warning(message, *args)
