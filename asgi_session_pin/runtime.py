"""What all requests of one middleware share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp

from .config import Config
from .events import Cause, Counter, Listener, Tracing
from .hold_timer import HoldTimer
from .log import Warnings
from .pin import Pin
from .pins.health import Health
from .pins.steering import Steering
from .pins.table import PinTable
from .request.buffers import Buffers
from .request.session import AskedModel, SessionReader
from .response.decision import RememberedDecisions
from .response.rules import ModelRules
from .stores import Lapsed, PinStore
from .wire.headers import NameMemory


@dataclass(frozen=True, slots=True)
class Runtime:
    """What all exchanges of one middleware share; nothing of it changes but what its parts keep."""

    app: ASGIApp
    config: Config
    sessions: SessionReader
    rules: ModelRules
    is_routed: Callable[[AskedModel], bool] | None  # None: the router decides for any model
    pins: PinTable
    # Looks a pin up where the store can't fail.
    find: Callable[[bytes], Pin | Lapsed[Pin] | None] | None
    health: Health
    buffers: Buffers
    remembered: RememberedDecisions
    hold_timer: HoldTimer
    warn: Warnings
    steering: Steering
    store: PinStore  # itself, for operators; what a request needs of it `pins` has
    listeners: list[Listener]  # which come and go
    counters: list[Counter]  # beside them
    tracing: Tracing | None  # where OpenTelemetry is installed
    timer: Callable[[], float]  # seconds
    max_age: float  # seconds of the wall clock after which a pin is decided afresh
    renew_after: float  # seconds of an answer after which a sliding pin is renewed at its end
    max_request_bytes: int
    nothing_to_heed: NameMemory  # names of headers of responses that are none of ours, and say nothing of the model
    change_listeners: list[Callable[[Cause], None]] = field(default_factory=list)

    def tell_change(self, cause: Cause) -> None:
        """Tell of a change of a pin that no request made."""
        for listener in self.change_listeners:
            listener(cause)
