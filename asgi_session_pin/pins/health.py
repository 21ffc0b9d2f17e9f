"""What this process has seen of the pinned models: which names served or were refused, which pins failed."""

import time
from collections.abc import Callable
from itertools import cycle

from ..config import Config
from .recent import MAX_REMEMBERED, Recent
from .table import NamedModel

REST_SECONDS = 60
LOOK_EVERY = 100


class Health:
    """Remembers, within bounds, how names and pins have done. All of it is this process's own.

    A name is refused for one credential: another one may be allowed to use it.
    """

    def __init__(
        self, config: Config, timer: Callable[[], float] = time.monotonic, look_every: int = LOOK_EVERY
    ) -> None:
        self._ttl = config.routing.session_ttl_seconds
        self._give_up_after = config.failover.give_up_after
        self._timer = timer
        self.served: Recent[str, None] = Recent()
        self.fresh: dict[bytes, NamedModel] = {}
        """By key, what the answer that made a pin named, until the first pinned answer is compared with it."""
        self.refused: Recent[tuple[bytes, str], float] = Recent()  # until when
        self._resting: Recent[bytes, float] = Recent()  # until when
        self.failures: Recent[bytes, int] = Recent()
        self.glances = cycle([False] * (look_every - 1) + [True])
        """Tells for one answer after the other whether to have a look at it, where nothing else asks for it."""

    def begin(self, key: bytes, answered: NamedModel | None) -> None:
        """Know nothing of a pin but what the answer that made it named."""
        if self.failures or self._resting:
            self.failures.pop(key, None)
            self._resting.pop(key, None)
        if answered is not None:
            self.expect(key, answered)
        elif key in self.fresh:
            del self.fresh[key]

    def expect(self, key: bytes, answered: NamedModel) -> None:
        """Remember what the first pinned answer is to be compared with."""
        if len(self.fresh) >= MAX_REMEMBERED:  # every new pin comes by here: all at once costs it the least
            self.fresh.clear()
        self.fresh[key] = answered

    def serves(self, credential: bytes, model: str) -> None:
        """Remember that *model* has answered under a pin."""
        self.served[model] = None
        self.refused.pop((credential, model), None)

    def refuse(self, credential: bytes, model: str) -> None:
        """Remember for a pin's time to live that the gateway does not take *model* back."""
        self.refused[credential, model] = self._timer() + self._ttl

    def is_refused(self, credential: bytes, model: str) -> bool:
        """Tell whether *model* was refused lately."""
        return self.refused.get((credential, model), 0) > self._timer()

    def rest(self, key: bytes) -> None:
        """Try no other model for this pin for a while: the last attempt did no better."""
        self._resting[key] = self._timer() + REST_SECONDS

    def is_resting(self, key: bytes) -> bool:
        """Tell whether an attempt without the pin was in vain lately."""
        return self._resting.get(key, 0) > self._timer()

    def succeeded(self, key: bytes) -> None:
        """Forget the failures of a pin."""
        self.failures.pop(key, None)

    def gives_up(self, key: bytes) -> bool:
        """Tell whether one more failure of this pin is one too many."""
        return 0 < self._give_up_after <= self.failures.get(key, 0) + 1

    def failed(self, key: bytes) -> None:
        """Count a failure of a pin."""
        self.failures[key] = self.failures.get(key, 0) + 1
