"""Connections of clients: uvicorn's protocol over httptools, without what makes it unfit for a proxy.

Over h11 uvicorn serves half as many requests. But httptools tells trailers as headers, takes the body of a request that
offers an upgrade for another protocol, and lets heads in that are of any size and name several hosts or none.
"""

import asyncio
from enum import Enum
from typing import Any
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

STATUS_LINE.update((status, b"HTTP/1.1 %d \r\n" % status) for status in range(600, 1000))  # an upstream may send them

_MAX_HEAD_BYTES = 65_536  # of a request's head, and of all else that httptools keeps until it is whole, as trailers
_MAX_PIPELINED = 100


class _Part(Enum):
    """What of a request comes next."""

    BEGINNING = "its first byte"
    HEAD = "the rest of its head"
    BODY = "its body, and its trailers"
    NONE = "nothing more: what came can't be understood, and what comes is ignored"


class ServerProtocol(HttpToolsProtocol):
    """One connection of a client.

    Where it relies on how uvicorn works inside, `tests/gateway/test_server_protocol.py` shows that it still does.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._part = _Part.BEGINNING
        self._is_declining = False
        self._may_stay = True  # after the next answer
        self._unparsed = 0  # bytes since the parser told of anything but headers
        self._unanswered: list[_Cycle] = []  # in their order: the first one runs

    @property
    def is_answered_early(self) -> bool:
        """Tell whether the client still sends the body of a request that is answered: it may read only after that."""
        return self._part is _Part.BODY and not self._unanswered

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        self._unset_keepalive_if_required()
        self._unparsed += len(data)
        try:
            if self._part is not _Part.NONE:
                self._parse(data)
        except HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        else:
            if self._unparsed > _MAX_HEAD_BYTES:
                self.send_400_response("The head of the request is too large.")
            elif self.is_answered_early:
                self._wait_for_more()

    def _wait_for_more(self) -> None:
        """Keep the connection as after an answer: uvicorn would wait for good, since something came after that."""
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                return self.parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                if self._should_upgrade():
                    return self.handle_websocket_upgrade()
                data = data[upgrade.args[0] :]
            self._decline_upgrade()
        return None

    def _should_upgrade(self) -> bool:
        """Tell whether a request opens a websocket (RFC 6455, section 4.1) that comes in the midst of no answer."""
        return self.scope["method"] == "GET" and not self._unanswered and super()._should_upgrade()

    def _decline_upgrade(self) -> None:
        """Go on with a parser that knows of no offer, and takes what follows for the body that it is."""
        framing = [each for each in self.headers if each[0] in (b"content-length", b"transfer-encoding")]
        self.parser = HttpRequestParser(self)
        self._is_declining = True
        self.parser.feed_data(b"".join([b"POST / HTTP/1.1\r\n", *(b"%s: %s\r\n" % each for each in framing), b"\r\n"]))
        self._is_declining = False

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._part = _Part.HEAD

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer, which is dropped."""
        if self._part is _Part.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Call the app, as soon as all requests before this one are answered."""
        self._unparsed = 0
        if self._is_declining:
            self._part = _Part.BODY
            return
        self.scope["method"] = self.parser.get_method().decode()
        if self.parser.should_upgrade() and self._should_upgrade():
            return
        version = self.parser.get_http_version()
        self._check(version)
        self._part = _Part.BODY
        raw_path, _, query = self.url.partition(b"?")
        self.scope["http_version"] = version
        self.scope["path"] = self.root_path + unquote(raw_path.decode("ascii"))
        self.scope["raw_path"] = self.root_path.encode("ascii") + raw_path
        self.scope["query_string"] = query
        self.cycle = cycle = self._make_cycle(version == "1.1" and self._may_stay and self.parser.should_keep_alive())
        self._unanswered.append(cycle)
        if len(self._unanswered) == 1:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _check(self, version: str) -> None:
        """Raise ValueError for what h11 refuses, too."""
        names = [name for name, _ in self.headers]
        hosts = names.count(b"host")
        if version not in ("1.0", "1.1") or hosts > 1 or hosts < (version == "1.1"):
            raise ValueError("a request of 1.0 or 1.1 that names its host")
        codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):  # what is gzip, too, would arrive as if it were not
            raise ValueError("chunks without any other coding")
        if len(self._unanswered) > _MAX_PIPELINED:
            raise ValueError("fewer requests at once")

    def _make_cycle(self, may_stay: bool) -> "_Cycle":
        return _Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=may_stay,
            on_response=self.on_response_complete,
        )

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request, unless the parser only says so as it takes what follows for another protocol."""
        is_rest, self._part = self.is_answered_early, _Part.BEGINNING
        self._unparsed = 0
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        if is_rest:
            self._wait_for_more()

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        self._unanswered.pop(0)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the apps: uvicorn tells only the one whose request came last."""
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def retire(self) -> None:
        """Close the connection when it is idle. One that was just made is to be used: its request is answered first."""
        cycle: Any = self.cycle  # None before the first one
        if cycle is None or self._part is _Part.HEAD or self.is_answered_early:  # whose answer would be lost
            self._may_stay = False
        else:
            self.shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse what came, and close the connection: requests that came whole before it are answered first."""
        self.logger.warning(msg)
        if self._part in (_Part.BODY, _Part.NONE):
            self.transport.close()  # what is said now would come in the midst of another answer, or behind one
        elif self._unanswered:
            self._part = _Part.NONE
            self._unanswered[-1].keep_alive = False
        else:
            super().send_400_response(msg)


class _Cycle(RequestResponseCycle):
    """A request and its answer, which comes in chunks only if the client knows them, and with no body if it has none.

    An answer to HTTP/1.0 ends with the connection. One of 204 or 304 has none, whatever its `content-length` says.
    """

    _is_empty = False

    async def send(self, message: Any) -> None:
        """Send a part of the answer (ASGI)."""
        is_old = self.scope["http_version"] == "1.0"
        if message["type"] == "http.response.start":
            self._is_empty = message["status"] in (204, 304)
            if is_old:
                self.chunked_encoding = False
        elif self._is_empty:
            self.expected_content_length = 0
        elif is_old:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)
