"""What the tests ask gateways, and what comes back, to the last byte."""

import re
import uuid
from typing import Any, NamedTuple

import httpx

CHAT = "/v1/chat/completions"
EASY = "What is the capital of France?"
HARD = "HARD: analyze the trade-offs of a consensus algorithm, and implement it step by step as a class with tests."

OURS = {b"x-session-pinned", b"x-session-model", b"x-session-pin-status"}
# Headers of the connection, or of the moment; and what our proxy says of itself.
PASSING = {b"connection", b"transfer-encoding", b"date"}
FORWARDED = {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"}
_made_up = re.compile(rb'("id": ?"chatcmpl-)\w+|("created": ?)\d+')


class Exact(NamedTuple):
    """An answer as it came."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def apart(self) -> tuple["Exact", dict[bytes, bytes]]:
        """Return the answer without our headers, and our headers."""
        rest = [pair for pair in self.headers if pair[0] not in OURS]
        return self._replace(headers=rest), {name: value for name, value in self.headers if name in OURS}

    def lasting(self) -> "Exact":
        """Return the answer without what a gateway makes up for each one."""
        return self._replace(body=_made_up.sub(rb"\1\2", self.body))


def raw(client: httpx.Client, method: str, path: str, *, content: bytes | None = None, **headers: str) -> Exact:
    """Ask with one and the same request id, which gateways would make up else."""
    sent = {"x-request-id": "1", "content-type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    with client.stream(method, path, content=content, headers=sent) as response:
        body = b"".join(response.iter_raw())
    kept = [pair for pair in response.headers.raw if pair[0].lower() not in PASSING]
    return Exact(response.status_code, kept, body)


def chat(model: str, prompt: str, stream: bool = False) -> dict[str, Any]:
    """Return a chat request."""
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": prompt}]}


def new_session() -> dict[str, str]:
    """Return the headers of a session that nobody has used, with a credential that nobody has."""
    return {"x-session-id": str(uuid.uuid4()), "authorization": f"Bearer {uuid.uuid4()}"}


def take_requests(backend: httpx.Client) -> list[dict[str, Any]]:
    """Return what reached a routing backend, without what proxies say of themselves, and have it forget that."""
    requests: list[dict[str, Any]] = backend.delete("/requests").json()
    for request in requests:
        request["headers"] = [pair for pair in request["headers"] if pair[0] not in FORWARDED]
    return requests
