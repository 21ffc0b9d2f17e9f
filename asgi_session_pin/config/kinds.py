"""The kinds of values that settings have, each with what it takes in words, for the message about a wrong one."""

from typing import Annotated, Literal, TypeVar

from msgspec import Meta

from ..wire.headers import NAME

_MAX_SECONDS = 1_000_000_000  # thirty years: whatever is longer is a mistake
# Our own headers are no source of anything.
_HEADER = rf"header:(?!(?i:x-session-pin|x-session-pinned|x-session-model)\Z){NAME}"
_BODY = r"body:[^.\s]+(\.[^.\s]+)*"

Seconds = Annotated[
    float, Meta(gt=0, le=_MAX_SECONDS, description="a number of seconds above 0, at most 1,000,000,000")
]
Count = Annotated[int, Meta(ge=1, le=10**9, description="a whole number from 1 to 1,000,000,000")]
Bytes = Annotated[int, Meta(ge=1, le=10**12, description="a whole number of bytes from 1 to 1,000,000,000,000")]
ItemT = TypeVar("ItemT")
AtLeastOne = Annotated[tuple[ItemT, ...], Meta(min_length=1)]
Name = Annotated[str, Meta(min_length=1, description="a name or a pattern with *")]
RouterModel = Annotated[str, Meta(pattern=r"[^*]", description="a name or a pattern with *, but not * alone")]
SessionSource = Annotated[
    str,
    Meta(
        pattern=f"^({_HEADER}|{_BODY}|preset:coding-agents)\\Z",
        description='"header:NAME", "body:PATH.TO.ID" or "preset:coding-agents"',
    ),
]
PartitionPart = Annotated[str, Meta(pattern=f"^({_HEADER}|model)\\Z", description='"header:NAME" or "model"')]
DecisionSource = Annotated[
    str, Meta(pattern=f"^({_HEADER}|{_BODY})\\Z", description='"header:NAME" or "body:PATH.TO.NAME"')
]
PathPattern = Annotated[str, Meta(pattern=r"^[/*]", description='a path pattern that starts with "/" or "*"')]


StoreURL = Annotated[
    str,
    Meta(
        pattern=r"^(memory://|sqlite:///[^\x00]+|rediss?://\S+)\Z",
        description='"memory://", "sqlite:///FILE", "redis://HOST:PORT/DB" or "rediss://HOST:PORT/DB"',
    ),
]
OnFailure = Literal["reroute", "pass"]
