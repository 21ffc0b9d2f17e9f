"""What answers say about a pinned model: is it refused, is it out, is it another one that answers?"""

import re
from collections.abc import Iterable
from enum import Enum

from starlette.types import Message

from ..held import HELD_BYTES
from ..pins.table import NamedModel
from ..wire.compression import open_decoder
from ..wire.headers import HeaderPicker, is_identity
from ..wire.json import decode_members
from ..wire.messages import body_of
from .reader import is_dated

# OpenAI, Azure, GitHub Models; vLLM and OpenAI blame the parameter.
_says_so = re.compile(rb'"(?:model_not_found|unknown_model|DeploymentNotFound)"|"param"\s*:\s*"model"').search
_encoding = HeaderPicker([b"content-encoding"])


class Failure(Enum):
    """How a pinned model failed."""

    REFUSED = "refused"  # the gateway does not take its own name back, or so it seems: routing is an experiment
    NAMED = "named"  # a refusal, if the body names the model
    UNAVAILABLE = "unavailable"


def failure_of(status: int, *, may_be_refused: bool, has_served: bool) -> Failure | None:
    """Return what a response with *status* is; None if it tells nothing about the model."""
    if may_be_refused:
        if not has_served or status in (401, 402, 403, 404):
            return Failure.REFUSED
        if status == 400:
            return Failure.NAMED
    return Failure.UNAVAILABLE if status == 429 or status >= 500 else None


def names_model(messages: Iterable[Message], model: str) -> bool:
    """Tell whether a whole response is a JSON error that names *model*, or blames the request's `model`."""
    start, *rest = messages
    text = b"".join(body_of(message) for message in rest)
    encoding = _encoding.pick(start["headers"]).get(b"content-encoding", b"")
    try:
        if not is_identity(encoding):
            decoder = open_decoder(encoding)
            text = decoder.decode(text, HELD_BYTES) if decoder is not None else b""
        decode_members(text)
    except Exception:  # whatever a decoder does
        return False
    name = re.escape(model.encode())
    return _says_so(text) is not None or re.search(rb"(?<![\w./-])%s(?![\w/-]|[.:]\w)" % name, text) is not None


def begins_well(chunk: bytes) -> bool:
    """Tell at a glance whether the first chunk of a stream holds its first event whole, which is no error."""
    begin = chunk.find(b"data:")
    end = chunk.find(b"\n\n", begin) if begin >= 0 else -1
    return end >= 0 and chunk.find(b"error", 0, end) < 0 and chunk.find(b"failed", 0, end) < 0


def has_drifted(found: NamedModel | None, first: NamedModel | None, model: str) -> bool:
    """Tell whether an answer under the pin *model* names another one than the *first* answer did.

    Only like is compared with like: the same source and kind of response. The date of a snapshot makes no difference.
    """
    if found is None or first is None or found.model is None or found.model == model or first.model is None:
        return False
    if (found.source, found.kind) != (first.source, first.kind):
        return False
    return not (found.model == first.model or is_dated(found.model, first.model) or is_dated(first.model, found.model))
