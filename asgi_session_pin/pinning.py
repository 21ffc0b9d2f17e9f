"""What all requests of one middleware have in common."""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp

from .config import Config
from .events import Listener
from .pins.health import Health
from .pins.table import Pin, PinTable
from .pins.turns import Turns
from .request.session import AskedModel, SessionReader
from .response.reader import DecisionRules
from .ticker import Ticker
from .warnings import Warnings
from .wire.headers import NameMemory


@dataclass(frozen=True, slots=True)
class Pinning:
    """What all exchanges of one middleware share."""

    app: ASGIApp
    config: Config
    sessions: SessionReader
    rules: DecisionRules
    is_routed: Callable[[AskedModel], bool] | None  # None: the router decides for any model
    table: PinTable
    warn: Warnings
    turns: Turns
    health: Health
    ticker: Ticker
    listeners: tuple[Listener, ...]
    find: Callable[[bytes], Pin | None] | None  # looks a pin up where the store can't fail and nobody listens
    timer: Callable[[], float]  # seconds
    renew_after: float  # seconds of an answer after which a sliding pin is renewed at its end
    max_request_bytes: int
    tells: bool  # whether responses get our headers
    foreign: NameMemory  # headers of responses that are none of ours
