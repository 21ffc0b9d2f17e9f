"""What is known of one request. It knows facts; what follows from them is for others."""

from typing import NamedTuple

from starlette.types import Receive, Scope, Send

from .config import Endpoint
from .events import PinEvent
from .log import MAX_SHOWN, Opaque
from .pin import Pin
from .pins.health import PinHealth
from .pins.slot import Slot
from .request.body import RequestBody
from .request.buffers import Share
from .request.scope import SCOPE_KEY, show
from .request.session import AskedModel
from .response.decision import remember_route
from .response.judge import Verdict
from .response.usage import UsageReader
from .runtime import Runtime
from .wire.headers import Headers


class Stated(NamedTuple):
    """A choice that the app's own router stated, with the object to keep of it."""

    model: str
    decision: bytes | None


class Exchange(Opaque):
    """One request on one of our endpoints, with a session as far as its headers tell."""

    runtime: Runtime
    endpoint: Endpoint
    scope: Scope  # the server's
    receive: Receive  # the server's
    send: Send  # to the client
    headers: Headers  # for the app
    picked: dict[bytes, bytes]
    unusual: bool  # its headers need a second look
    session_id: bytes | None
    decides: bool  # whether the endpoint only says which model it would use
    inner: Scope | None = None  # the app's scope, of the call that is under way
    shown: Scope | None = None  # what of it is in the server's
    body: RequestBody | None = None  # of that call
    status: bytes = b"miss"
    reason: bytes | None = None
    coding: bytes = b""  # of its body, which is to be decoded
    resets: bool = False  # the client has its pin forgotten
    source: str | None = None  # of the id, where the body was looked at for it
    key: bytes = b""  # empty until the request is known to be one that is pinned
    asked: AskedModel = None
    streams: bool = False  # whether it asks for a stream
    slot: Slot | None = None  # its place in the pin table, once it needs one
    learns: bool = False  # whether its answer is looked at for a choice
    stated: Stated | None = None
    is_stated: bool = False  # and the answer, if it is 2xx, is not waited for
    # The one that its answer uses or has made; None before, and from where a failure was counted, or it was no 2xx.
    pin: Pin | None = None
    model: str | None = None  # the pinned one
    replaces: tuple[Pin, Verdict] | None = None  # the pin whose failure its answer is to replace, until it does
    health: PinHealth | None = None  # what is known of the pin
    called: float = 0.0  # when the app was called, or the pin made, on the timer
    verdict: str | None = None  # of a failure of the pinned model
    has_drifted: bool = False
    unpinned: str | None = None  # why its answer made no pin
    is_fallback: bool = False  # the gateway says that another model than the pinned one answered
    began: float | None = None  # on the timer, if somebody listens
    first_byte_seconds: float | None = None
    usage: UsageReader | None = None
    server_send: Send | None = None  # where `send` is not the server's itself
    again: "Exchange | None" = None  # the request as it is sent to the app once more, in place of a failure

    def __deepcopy__(self, memo: object) -> "Exchange":
        return self  # the app may copy its scope, where this is the mark

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # it is of use in this process and request only

    @property
    def credential(self) -> bytes:
        """A digest of the client's credential."""
        return self.runtime.sessions.credential(self.picked)

    @property
    def has_turn(self) -> bool:
        """Whether it is to decide, while others may wait."""
        return self.slot is not None and self.slot.turn is not None

    @property
    def client_left(self) -> bool:
        """Whether the app was told so."""
        return self.body is not None and self.body.gone

    def open_scope(self, headers: Headers) -> Scope:
        """Return the scope for a call of the app: a copy with *headers*, which has this under its mark."""
        self.inner = inner = {**self.scope, "headers": headers, SCOPE_KEY: self}
        self.shown = inner.copy()
        return inner

    def show_scope(self) -> None:
        """Show outer middleware what the app has put into its scope."""
        if self.inner is not None and self.shown is not None:
            show(self.inner, self.scope, self.shown)

    def close_scope(self) -> None:
        """Let go of the scope, which has this under its mark: a circle would keep the body until it is collected."""
        self.inner = self.shown = None

    def count_tokens(self) -> None:
        """Read the tokens that the answer reports."""
        self.usage = UsageReader()
        self.server_send = self.send
        self.send = self.usage.watch(self.send)

    def place(self) -> Slot:
        """Return its place in the pin table."""
        if self.slot is None:
            self.slot = Slot(self.key)
        return self.slot

    def open_share(self) -> Share:
        """Return its share of the bodies that are held."""
        sessions = self.runtime.sessions
        return self.runtime.buffers.open(sessions.key(self.session_id or b"", self.picked, None))

    def hold(self) -> bool:
        """Have its body count among those that are held; tell whether there is room for it, so that it can wait."""
        assert self.body is not None
        return self.body.share is not None or self.body.hold(self.open_share())

    def use(self, pin: Pin) -> None:
        """Take the model from a pin."""
        self.pin = pin
        self.model = pin.model
        self.status = b"wait" if self.slot is not None and self.slot.has_waited else b"hit"

    def is_void(self, pin: Pin) -> bool:
        """Tell whether a pin is over for this request: by the client, or since the gateway refuses its name."""
        return self.resets or (self.runtime.health.has_refused and self._is_refused(pin.model))

    def may_end(self, pin: Pin) -> bool:
        """Tell whether a pin that holds may be over for this request."""
        return not pin.by_operator and (self.is_void(pin) or pin.model in self.runtime.steering.retired)

    def _is_refused(self, model: str) -> bool:
        """Tell whether a name was refused that never served: one that has stays in use where it is pinned."""
        health, credential = self.runtime.health, self.credential
        return health.is_refused(credential, model) and not health.is_proven(credential, model)

    def state(self, model: str, route: str | None) -> None:
        """Take the choice from the app's own router, unless the answer has settled it."""
        if not self.runtime.rules.is_usable(model):
            self.warn_of_an_unusable_name(str(model))
        elif self.learns:
            self.stated = Stated(model, remember_route(model, route))
            self.is_stated = not self.decides

    def warn_of_an_unusable_name(self, name: str) -> None:
        """Tell the operator that a response, or the app's own router, names what can't be a choice."""
        if self.runtime.rules.is_retired(name):
            return
        message = "the model was named %r, which is no decision, so nothing is pinned; see decisions.sources"
        self.runtime.warn.once(("unusable", name[:MAX_SHOWN]), message, name)

    def reason_now(self) -> bytes | None:
        """Return what stands behind the status."""
        return b"store-unavailable" if self.slot is not None and self.slot.failed else self.reason

    def tell_listeners(self) -> None:
        """Give the event of this request to each listener."""
        runtime = self.runtime
        listeners = runtime.listeners
        for counter in runtime.counters:
            if self.slot is None and self.usage is None and not self.has_drifted:  # a hit in this process, mostly
                counter.count_plain(self.endpoint.path, self.status, self.reason, self.model)
            else:
                listeners = [*listeners, counter.count]
        if runtime.tracing is not None and runtime.tracing.is_traced():
            listeners = [*listeners, runtime.tracing.set_attributes]
        if not listeners:
            return
        event = self._event()
        for listener in tuple(listeners):
            try:
                listener(event)
            except Exception:
                self.runtime.warn.failed("a listener failed")

    def _event(self) -> PinEvent:
        reason, slot = self.reason_now(), self.slot
        return PinEvent(  # without the names of its fields, which cost ten times as much
            self.status.decode(),
            None if reason is None else reason.decode(),
            self.endpoint.path,
            self.source or self.runtime.sessions.find_source(self.picked) or "callable",
            self.asked if isinstance(self.asked, str) else None,
            self.model,
            self.status in (b"hit", b"wait"),
            self.verdict,
            () if slot is None else slot.changes,
            self.has_drifted,
            self.key.hex() if self.key else None,
            self.first_byte_seconds,
            0.0 if slot is None else slot.waited_seconds,
            () if slot is None else slot.calls,
            None if self.usage is None else self.usage.read(),
            self.unpinned if self.pin is None and self.status in (b"miss", b"reroute") else None,
        )
