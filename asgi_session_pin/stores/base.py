"""What a store of pins has to do."""

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
    - Nothing is called before the first request, so a store may bind to the running event loop then. It is for one
      event loop at a time, and makes anew what is bound to one when the loop is another.
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
