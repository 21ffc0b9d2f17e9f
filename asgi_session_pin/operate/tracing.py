"""Attributes of the span that a request is in. Needs `pip install asgi-session-pin[tracing]` and a span that records.

No span is made here: that of the server, or of the framework around, is the request's.
"""

from opentelemetry.trace import get_current_span

from ..events import PinEvent


def is_traced() -> bool:
    """Tell whether there is a span that records."""
    return get_current_span().is_recording()


def set_attributes(event: PinEvent) -> None:
    """Put what is known of a request onto its span. It is a listener, where `is_traced`.

    The names that begin with `gen_ai.` are OpenTelemetry's semantic conventions for generative AI.
    """
    attributes = {
        "gen_ai.request.model": event.asked,
        "gen_ai.response.model": event.model,
        "session_pin.status": event.status,
        "session_pin.reason": event.reason,
        "session_pin.key": event.key,
    }
    get_current_span().set_attributes({name: value for name, value in attributes.items() if value is not None})
