"""What the operator is told: once for each subject, or now and then while something fails."""

import os
import re
import sys
import time
from collections.abc import Hashable
from itertools import pairwise
from pathlib import Path

from .config import Config
from .log import logger
from .request.session import AskedModel

_MAX_SUBJECTS = 100  # clients and upstreams choose names
_MAX_SHOWN = 256
_QUIET_SECONDS = 60
_SERVERS = {"uvicorn", "gunicorn", "hypercorn", "granian", "fastapi"}


class Warnings:
    """Logs each warning once. Names come from outside, so they are shown escaped and cut."""

    def __init__(self, config: Config) -> None:
        self._sources = ", ".join(config.decisions.sources)
        self._subjects: set[Hashable] = set()
        self._told_again: dict[str, float] = {}
        self._has_router_models = bool(config.routing.router_models)
        sessions = config.sessions
        self._has_strong_keys = sessions.secret is not None or any(part != "model" for part in sessions.partition_by)

    def unnamed(self) -> None:
        """A response names no model."""
        self._warn(
            "unnamed",
            "a response names no model where decisions.sources look for it (%s), so nothing is pinned",
            self._sources,
        )

    def unusable(self, name: str) -> None:
        """A response, or the app's own router, names something that can't be a decision."""
        name = name[:_MAX_SHOWN]
        message = "the model was named %r, which is no decision, so nothing is pinned; see decisions.sources"
        self._warn(("unusable", name), message, name)

    def hidden(self) -> None:
        """LiteLLM answers under the name that was asked for, whatever it chose."""
        self._warn(
            "hidden",
            "LiteLLM hides the model that it chose: the pin is the name that was asked for, which pins nothing; "
            'add "header:x-litellm-model-name" to the front of decisions.sources, and decisions.aliases from its '
            "values back to the names of your model groups",
        )

    def refused(self, model: str) -> None:
        """The gateway does not take back a name that it gave."""
        self._warn(
            ("refused", model),
            "the gateway refuses the model %r, which it named itself; its requests are routed again, without a pin "
            "for it; decisions.aliases maps the names of responses to names that the gateway takes",
            model,
        )

    def misunderstood(self, model: str, answered: str) -> None:
        """The gateway takes a name that it gave for another one."""
        self._warn(
            ("misunderstood", model),
            "the gateway was asked for the model %r, which it had named itself, and answered as %r, so the pin was "
            "given up; decisions.aliases maps the names of responses to names that the gateway takes",
            model,
            answered[:_MAX_SHOWN],
        )

    def drifted(self, model: str, answered: str) -> None:
        """A session got another model than its pin, later on."""
        message = "requests that are pinned to the model %r are also answered as %r"
        self._warn(("drifted", model, answered[:_MAX_SHOWN]), message, model, answered[:_MAX_SHOWN])

    def given_up(self, model: str) -> None:
        """A pinned model failed so often that its session was routed anew."""
        self._warn(
            ("given up", model),
            "the model %r failed failover.give_up_after times in a row in a session, whose pin was given up",
            model,
        )

    def overridden(self, asked: AskedModel, model: str) -> None:
        """A pin replaces another model that the client named, because a session has one model for all names."""
        if isinstance(asked, str) and not self._has_router_models:
            self._warn(
                "overridden",
                'sessions.partition_by lacks "model": the pin %r replaces the model %r that a client named; with the '
                "router's own names in routing.router_models other models pass untouched",
                model,
                asked[:_MAX_SHOWN],
            )

    def workers(self) -> None:
        """Several workers each have a table of their own, where that can be seen."""
        if count_workers(sys.argv, os.environ.get("WEB_CONCURRENCY", "")) > 1:
            self._warn(
                "workers",
                "store.url is memory:// and the server runs several workers: each one has its own pins, so a session "
                "can get a model for each of them",
            )

    def guessable(self) -> None:
        """Whoever can read a shared store can test ids against it that they can guess."""
        if not self._has_strong_keys:
            self._warn(
                "guessable",
                "sessions.partition_by has no credential: whoever can read the pins' shared store can find out which "
                "session ids it holds, if these can be guessed; set sessions.secret, the same in all processes",
            )

    def failed(self, what: str) -> None:
        """Something that is not ours raised, just now: told with its traceback, once a minute at most."""
        now = time.monotonic()
        if now >= self._told_again.get(what, now):
            self._told_again[what] = now + _QUIET_SECONDS
            logger.warning(what, exc_info=True)

    def _warn(self, subject: Hashable, message: str, *arguments: object) -> None:
        if subject not in self._subjects and len(self._subjects) < _MAX_SUBJECTS:
            self._subjects.add(subject)
            logger.warning(message, *arguments)


def count_workers(command: list[str], environment: str) -> int:
    """Return how many workers a server's command line or the variable WEB_CONCURRENCY asks for."""
    counts = [environment]
    program = Path(command[0]) if command else Path()
    if program.name in _SERVERS or (program.name == "__main__.py" and program.parent.name in _SERVERS):
        words = re.sub(r"(?:^|(?<= ))-w(?=\d)|=", " -w ", " ".join(command[1:])).split()
        counts += [value for option, value in pairwise(words) if option in ("--workers", "-w")]
    return max([1, *(int(count) for count in counts if count.isdecimal())])
