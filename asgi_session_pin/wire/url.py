"""The URL of the gateway behind `serve` and `probe`."""

import re
from collections.abc import Iterable
from itertools import accumulate
from urllib.parse import SplitResult, quote, urlsplit

# A name or an address; what this lets through can be looked up.
_host = re.compile(r"(?!-)[\w-]{1,63}(\.[\w-]{1,63})*\.?|[0-9a-f:.]*:[0-9a-f:.]*", re.ASCII | re.IGNORECASE).fullmatch


def read_upstream(upstream: str) -> SplitResult:
    """Return the parts of the URL. Raises ValueError if it is no http or https URL, or holds more than a base path."""
    try:
        parts = urlsplit(upstream)
        is_usable = parts.scheme in ("http", "https") and _host(parts.hostname or "") and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or parts.query or parts.fragment:
        raise ValueError("upstream: expected a URL such as http://localhost:4000")
    if parts.username is not None or parts.password is not None:
        raise ValueError("upstream: expected a URL without credentials; clients send theirs")
    return parts


def refuse_repeated(parts: SplitResult, paths: Iterable[str]) -> None:
    """Raise ValueError for a base path that ends with what one of the *paths* of requests begins with."""
    base = base_path(parts)
    for path in paths:
        for start in accumulate(f"/{segment}" for segment in path[1:].split("/")):
            if base.endswith(start):
                meant = f"{parts.scheme}://{parts.netloc}{base.removesuffix(start)}"
                raise ValueError(f"upstream: leave out {start} at its end, paths of requests begin with it: {meant}")


def base_path(parts: SplitResult) -> str:
    """Return what goes in front of each request's path, as it is sent."""
    return quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
