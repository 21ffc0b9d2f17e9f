"""Whether a pin that was found holds for a request: if it can wait, it ends where a switch of models is safe."""

from .events import Cause
from .exchange import Exchange
from .pin import Pin
from .request.turn import Step, carries_state, last_step
from .wire.json import Members

# On the requests of sub-agents, which have the session of their parent: what they are told first, no person has said.
_SUBAGENT_HEADERS = frozenset({b"x-claude-code-agent-id", b"x-openai-subagent"})


def ends_by(exchange: Exchange, members: Members, pin: Pin, overdue: float | None) -> Cause | None:
    """Return by what *pin* ends at a request; None: it holds. The last items are read only where it depends on them.

    *overdue* is how many seconds ago the pin has lapsed; None: it has not.
    """
    runtime = exchange.runtime
    routing = runtime.config.routing
    if pin.by_operator and overdue is None:
        return None
    if exchange.is_void(pin):
        return "reset" if exchange.resets else "refused"
    cause: Cause | None = None
    if overdue is not None:
        if overdue >= routing.tool_loop_seconds:
            return "lapsed"
        cause = "lapsed"
    elif runtime.rules.is_retired(pin.model) or pin.model in runtime.steering.retired:
        cause = "retired"
    elif runtime.pins.now() - pin.created > runtime.max_age:
        cause = "lapsed"
    elif routing.release == "never":
        return None
    step = last_step(members)
    if step is Step.TOOL or carries_state(members):  # another model might not go on with what is there
        return None
    if cause is None and step is Step.HUMAN and not _is_subagents(exchange):
        cause = "released"
    return cause


def _is_subagents(exchange: Exchange) -> bool:
    return any(name.lower() in _SUBAGENT_HEADERS for name, _ in exchange.headers)
