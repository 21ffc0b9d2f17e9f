"""What happened to one request, for whoever listens: metrics, tracing, audits."""

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

Cause = Literal["made", "lapsed", "evicted", "refused", "outage", "reset", "forgotten", "retired", "released"]
"""Why a pin came or went:

- `made`: a choice was recorded.
- `lapsed`: its time was over.
- `evicted`: there was no room for it.
- `refused`: the gateway does not take its name, or answers it as another one.
- `outage`: its model failed `failover.give_up_after` times in a row.
- `reset`: the client said so, by `X-Session-Pin: reset`.
- `forgotten`: the operator said so, by the API or `forget`.
- `retired`: its model is one of the retired ones.
- `released`: a human turn was routed anew, as `routing.release` says.
"""

Operation = Literal["get", "add", "discard", "claim"]


class StoreCall(msgspec.Struct, frozen=True, gc=False):
    """A call of the pin store: which one, how many seconds it took, and whether it failed."""

    operation: Operation
    seconds: float
    failed: bool


class Tokens(msgspec.Struct, frozen=True, gc=False):
    """The tokens that an answer reports: of the *input*, those of it that were *cached*, and of the *output*."""

    input: int
    cached: int
    output: int


class PinEvent(msgspec.Struct, frozen=True, gc=False):
    """One request with a session, given to each of the middleware's `listeners` when the app is done with it.

    All words are of closed sets, but for the names of models, which are text that clients and upstreams chose.

    - `status`: `hit`, `miss`, `wait`, `reroute`, `off` or `ignored`, as in the header `X-Session-Pin-Status`.
    - `reason`: why it was ignored, as in that header, also `client-disconnected` (while it sent its body); or
      `store-unavailable`; None otherwise.
    - `endpoint`: the pattern of the configured endpoint, unlike the path.
    - `source`: which of `sessions.sources` the session's id came from; `callable` where `session_id=` gave it.
    - `asked`: the model that the request asks for; None where that is not known, or no name.
    - `model`: the model that the session is pinned to, as far as it is known.
    - `pinned`: whether the model of this answer came from the pin.
    - `verdict`: what the answer under the pin said of the pinned model, if it was a failure: `client` (the request
      itself is at fault), `refused`, `unproven`, `no-access`, `unavailable`, or `late`, after output had gone out.
      With the status `reroute` it is why the request was routed again.
    - `changes`: how the session's pin changed, in order; `Cause` has the words.
    - `unpinned`: why a routed answer pinned nothing: `status` (no 2xx), `error`, `fallback` (the gateway's own),
      `unless` (a rule of `decisions.unless`), `unread`, `no-model`, `unusable-model` or `refused-model`; else None.
    - `drift`: whether the answer names another model than the one that made the pin. While there are listeners every
      answer is looked at for it, otherwise one in a hundred.
    - `key`: the digest under which the pin is kept, in hex; None where it was not made. Never the session's id.
    - `first_byte_seconds`: from the request's start to that of the answer; None where there was no answer.
    - `waited_seconds`: how long the request waited for another one's decision.
    - `tokens`: that the answer reports; None where it reports none, and unless `admin.tokens` is on.
    - `store_calls`: what the pin store was asked, and how long it took; looking into this process's own table is none.
    """

    status: str
    reason: str | None
    endpoint: str
    source: str | None = None
    asked: str | None = None
    model: str | None = None
    pinned: bool = False
    verdict: str | None = None
    changes: tuple[Cause, ...] = ()
    drift: bool = False
    key: str | None = None
    first_byte_seconds: float | None = None
    waited_seconds: float = 0.0
    store_calls: tuple[StoreCall, ...] = ()
    tokens: Tokens | None = None
    unpinned: str | None = None

    @property
    def store_seconds(self) -> float:
        """How long the pin store took, over all calls."""
        return sum(call.seconds for call in self.store_calls)


Listener = Callable[[PinEvent], None]


class Counter(Protocol):
    """What only counts requests, and needs no event for most of them."""

    def count(self, event: PinEvent) -> None:
        """Count a request. It is a listener."""
        ...

    def count_plain(self, endpoint: str, status: bytes, reason: bytes | None, model: str | None) -> None:
        """Count a request of which an event would tell no more than this, as the headers of its answer do."""
        ...


class Tracing(Protocol):
    """What puts events onto spans: the module `operate.tracing`."""

    def is_traced(self) -> bool:
        """Tell whether there is a span that records."""
        ...

    def set_attributes(self, event: PinEvent) -> None:
        """Put what is known of a request onto its span."""
        ...
