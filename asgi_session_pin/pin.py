"""A pin: which model a session is on, as it is kept."""

from __future__ import annotations

import math
import re
from typing import NamedTuple, TypeGuard

import msgspec

TENANT_BYTES = 6
"""So much of a key tells whose pin it is, where that is to be told (`limits.max_pins_per_credential`)."""

is_model_name = re.compile(r"[\x21-\x7e]{1,256}").fullmatch
"""Matches what can be sent as a model and shown in a header: visible ASCII of a usual length."""


class NamedModel(NamedTuple):
    """What a response names as its model.

    - `name`: as it is written there.
    - `model`: what it means, after aliases and without the date of a snapshot; None if it can't be a choice.
    - `source`: where it was found, as in `decisions.sources`.
    - `kind`: of the response: `json`, `events` or None.
    """

    name: str
    model: str | None
    source: str
    kind: str | None


class Pin(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A router's choice that is kept.

    - `model`: the name to send to the gateway.
    - `created`: when it was chosen, in seconds of the wall clock.
    - `decision`: the JSON object by which a decision endpoint stated it, if it did.
    - `answered`: what the response that made it named, to compare later ones with; None if it tells nothing.
    - `by_operator`: whether an operator set it: then it stays until it is deleted or lapses.
    """

    model: str
    created: float
    decision: bytes | None = None
    answered: NamedModel | None = None
    by_operator: bool = False

    def encode(self) -> bytes:
        """Return the pin as bytes (MessagePack), for a store to keep; equal pins give equal bytes."""
        return _encode(self)

    @staticmethod
    def decode(data: bytes) -> Pin:
        """Return the pin that `encode` made these bytes of; raises ValueError for any others."""
        pin = _decode(data)
        if not is_pin(pin):
            raise ValueError("a model that can't be sent, or no time")
        return pin


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Pin).decode


def is_pin(value: object) -> TypeGuard[Pin]:
    """Tell whether *value* is a pin that can be used: whoever makes one in Python may put anything into its fields."""
    return (
        isinstance(value, Pin)
        and type(value.created) in (float, int)
        and math.isfinite(value.created)
        and type(value.model) is str
        and is_model_name(value.model) is not None
        and (value.decision is None or type(value.decision) is bytes)
        and (value.answered is None or type(value.answered) is NamedModel)
        and type(value.by_operator) is bool
    )
