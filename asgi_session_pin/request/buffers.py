"""How much of request bodies is held before the app, of all sessions together and of one."""

import asyncio

from msgspec import Struct, field

from ..log import Opaque


class _Ledger(Struct, eq=False):
    """What is held in one event loop, in bytes."""

    total: int = 0
    by_session: dict[bytes, int] = field(default_factory=dict)


class Share(Opaque):
    """What one request holds of its session's part."""

    session: bytes
    max_bytes: int
    ledger: _Ledger
    size: int = 0

    def take(self, size: int) -> bool:
        """Hold so many bytes more; tell whether there is room for them, else nothing changes."""
        ledger = self.ledger
        held = ledger.by_session.get(self.session, 0) + size
        if ledger.total + size > self.max_bytes or held > self.max_bytes // 4:
            return False
        ledger.by_session[self.session] = held
        ledger.total += size
        self.size += size
        return True

    def give_back(self) -> None:
        """Hold nothing any longer."""
        if self.size:
            ledger = self.ledger
            ledger.total -= self.size
            ledger.by_session[self.session] -= self.size
            if not ledger.by_session[self.session]:
                del ledger.by_session[self.session]
            self.size = 0


class Buffers:
    """At most *max_bytes*, and a quarter of it for one session: stalled uploads of one leave room for the others."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ledger = _Ledger()

    def open(self, session: bytes) -> Share:
        """Return the share of a request, which holds nothing yet."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # whatever was held in another one is gone with it
            self._loop = loop
            self._ledger = _Ledger()
        return Share(session, self._max_bytes, self._ledger)
