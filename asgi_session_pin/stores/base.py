"""What a store of pins has to do."""

from collections.abc import Hashable
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from ..pin import Pin

ValueT = TypeVar("ValueT")


class Lapsed(NamedTuple, Generic[ValueT]):
    """What has lapsed and is kept nevertheless: a pin, for a request that goes on in a tool loop.

    - `value`: the pin.
    - `overdue_seconds`: how long ago its time was over.
    """

    value: ValueT
    overdue_seconds: float


def value_of(found: ValueT | Lapsed[ValueT]) -> ValueT:
    """Return what was found, lapsed or not."""
    return found.value if isinstance(found, Lapsed) else found


class Entry(NamedTuple):
    """A pin that holds, as it is listed.

    - `key`, `pin`: as they were added.
    - `idle_seconds`: since its last use, as far as the store writes that down.
    """

    key: bytes
    pin: Pin
    idle_seconds: float


class Page(NamedTuple):
    """Some of the pins that hold, and where the listing goes on; None: that was the end."""

    entries: list[Entry]
    after: str | None


class PinStore(Protocol):
    """Keeps pins by key. Keys are opaque: 16 bytes, a digest.

    What holds for every method:

    - When a pin lapses, and how many there are, is the store's own affair: `routing.session_ttl_seconds` and
      `routing.session_max_entries` are for the stores that `store.url` names.
    - A pin that lapsed is kept for a while (`tool_loop_seconds`). Until then it is told as `Lapsed`, and holds no more:
      `add` puts another one, or the same one anew, in its place. It goes first where there is no room. A store that
      keeps none is fine: then a tool loop ends with its pin.
    - A pin may be gone at any time (lapsed, pushed out, lost in a restart): that is a miss, not a failure.
    - What is there and is no pin (`Pin.decode` raises ValueError) is a miss too, and is deleted: as a failure it would
      count against the whole store.
    - A failure is raised, whatever its class, and the request goes on as if there were no pin. It is never turned into
      a miss silently.
    - Nothing is called before lifespan's startup or the first request, so a store may bind to the running event loop
      then. It is for one event loop at a time, and makes anew what is bound to one when the loop is another.
    """

    async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
        """Return the pin of *key*, which is a use of it: a sliding time to live starts again, atomically.

        Or the pin that has lapsed, of which it is no use; or None.
        """
        ...

    async def add(self, key: bytes, pin: Pin) -> Pin:
        """Keep *pin* unless *key* has one that holds; return the pin in force. The first writer wins, atomically."""
        ...

    async def discard(self, key: bytes, pin: Pin) -> bool:
        """Give up the pin of *key*, lapsed or not, if it still equals *pin*, atomically; tell whether it did."""
        ...

    async def aclose(self) -> None:
        """Free what the store holds. It may be called twice."""
        ...


@runtime_checkable
class ClaimingStore(PinStore, Protocol):
    """A store that several processes share, and by which they agree on who decides for a session.

    A store that lacks these two methods is fine: then processes that get the first requests of a session at the same
    time each ask the router, and the first decision that is added wins.
    """

    async def claim(self, key: bytes, token: bytes, seconds: float) -> bool:
        """Take the right to decide for *key*, atomically, unless somebody with another *token* has it; tell whether it
        was taken.

        It ends by itself after so many *seconds*. It is apart from pins: neither touches the other.
        """
        ...

    async def release(self, key: bytes, token: bytes) -> None:
        """Give a claim back, atomically, if *token* is its owner's; else do nothing."""
        ...


@runtime_checkable
class ShardedStore(PinStore, Protocol):
    """A store whose keys are spread over servers that fail each by itself.

    Where one of them does not answer, only the sessions in it are on the copies of their processes. A store that lacks
    this method is fine: it fails as a whole.
    """

    def shard_of(self, key: bytes) -> Hashable:
        """Return what tells the server of *key* from the others, as far as it is known; None otherwise."""
        ...


@runtime_checkable
class OperableStore(PinStore, Protocol):
    """A store whose pins operators can list, and that keeps a note of theirs for all processes.

    A store that lacks these methods is fine: then there is no list of its pins, and nothing can be retired or paused.
    No method is a use of a pin, none tells of what has lapsed, and none holds the event loop for long.
    """

    async def peek(self, key: bytes) -> Entry | None:
        """Return the pin of *key*, if it holds."""
        ...

    async def scan(self, after: str | None, limit: int) -> Page:
        """Return about *limit* pins, at most, from where an earlier page says, or from the beginning.

        Going on until `after` is None tells of each pin that is there all the while at least once. Raises ValueError
        for an *after* that no page has.
        """
        ...

    async def count(self) -> int:
        """Return how many pins hold. It may take a while."""
        ...

    async def read_note(self) -> bytes | None:
        """Return the note, if there is one. It never lapses."""
        ...

    async def replace_note(self, old: bytes | None, new: bytes) -> bool:
        """Put *new* in the place of the note if that still is *old*, atomically; tell whether it was."""
        ...
