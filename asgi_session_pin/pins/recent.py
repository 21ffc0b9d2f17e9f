"""A memory of bounded size."""

from typing import TypeVar

from cachetools import LRUCache

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

MAX_REMEMBERED = 10_000


class Recent(LRUCache[KeyT, ValueT]):
    """Keeps what was put in or read last; asking with `in` does not count."""

    def __init__(self) -> None:
        super().__init__(MAX_REMEMBERED)
