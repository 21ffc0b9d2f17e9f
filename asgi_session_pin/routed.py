"""The answer of the router where a pinned model failed: the request goes to the app once more, as it came."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.types import Message, Scope

from .answer import Answer
from .held import nothing
from .log import logger
from .request.body import InnerScope, RequestBody, inner_scope, swap

# An app that lets only so many requests in, inside of us, may be waiting for this very request to leave.
START_SECONDS = 5.0


class RoutedAnswer(Answer, kw_only=True):
    """The second answer to a request. It runs inside the last `send` of the first one."""

    original: bytes  # the body that the client sent
    body: RequestBody  # of the first call
    before: Scope  # the server's scope as it was before the first call, with a copy of its `state`
    inner: InnerScope  # of the first call
    drops_failures: bool  # the client gets the first answer then
    on_drop: Callable[[], Awaitable[None]]
    dropped: bool = False
    whole: bool = False
    error: Exception | None = None  # of a response that has started
    request: RequestBody | None = None
    limit: asyncio.Timeout | None = None

    async def run(self) -> None:
        """Call the app."""
        exchange = self.exchange
        first = swap(exchange.scope, self.before)
        self.inner.outer = {}
        scope = inner_scope(exchange.scope, exchange.headers, exchange)
        if "state" in self.before:
            dict.__setitem__(scope, "state", self.before["state"])  # the first call goes on with its own
        original, self.original = self.original, b""
        self.request = RequestBody(
            self.body.server_receive, [{"type": "http.request", "body": original, "more_body": False}]
        )
        del original  # it may be large, and the answer take minutes
        self.body.replaced = asyncio.Event()
        try:
            async with asyncio.timeout(START_SECONDS) as self.limit:
                await exchange.pinning.app(scope, self._receive, self.send)
        except Exception as error:
            if self.started:
                self.error = error  # for the server, past the first call of the app
            else:
                logger.warning("a pinned model failed, and so did its request as it came", exc_info=error)
        finally:
            self.limit = None
            self.body.replaced.set()
            self.close()
            if not self.started:
                swap(exchange.scope, first)
                self.inner.outer = exchange.scope

    def send(self, message: Message) -> Awaitable[None]:
        """The app's `send`."""
        self._has_begun()
        self.whole = message["type"] == "http.response.body" and not message.get("more_body")
        if self.dropped:
            return self.on_drop() if self.whole else nothing()
        return super().send(message)

    def start(self, message: Message) -> Awaitable[None]:
        """Open the response, or drop it."""
        self.dropped = self.drops_failures and not 200 <= message["status"] < 300
        return nothing() if self.dropped else super().start(message)

    async def _receive(self) -> Message:
        self._has_begun()
        assert self.request is not None
        return await self.request.receive()

    def _has_begun(self) -> None:
        if self.limit is not None:
            self.limit.reschedule(None)
            self.limit = None
