"""A memory of bounded size."""

from itertools import islice
from typing import TypeVar

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

MAX_REMEMBERED = 10_000


class Recent(dict[KeyT, ValueT]):
    """A dict that forgets the older half of its entries when they are too many, where `remember` puts them in."""

    def remember(self, key: KeyT, value: ValueT) -> None:
        """Put an entry in, as the youngest."""
        if key in self:
            del self[key]
        self[key] = value
        if len(self) > MAX_REMEMBERED:
            for old in list(islice(self, MAX_REMEMBERED // 2)):
                del self[old]
