"""What happened to one request, for whoever listens: metrics, tracing, audits."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PinEvent:
    """One request with a session, given to each of the middleware's `listeners` when the app is done with it.

    - `status`: `hit`, `miss`, `wait`, `reroute`, `off` or `ignored`, as in the header `X-Session-Pin-Status`.
    - `reason`: why it was ignored, also `client-disconnected` (while it sent its body), or `store-unavailable`; None
      otherwise.
    - `endpoint`: the pattern of the configured endpoint: a bounded set, unlike the path.
    - `model`: the model that the session is pinned to, as far as it is known: text that an upstream chose.
    - `key`: the digest under which the pin is kept, in hex; None where it was not made. Never the session's id.
    - `store_seconds`: how long the pin store took, over all calls.
    - `waited_seconds`: how long the request waited for another one's decision.
    - `drift`: whether the answer names another model than the one that made the pin. While there are listeners every
      answer is looked at for it, otherwise one in a hundred.
    """

    status: str
    reason: str | None
    endpoint: str
    model: str | None
    key: str | None
    store_seconds: float
    waited_seconds: float = 0.0
    drift: bool = False


Listener = Callable[[PinEvent], None]
