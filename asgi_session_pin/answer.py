"""The response to one request on its way to the client: it gets our headers and is looked at for its decision."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

from starlette.types import Message, Send

from ._headers import HeaderPicker, header_list, without
from .response import RESPONSE_HEADERS, ResponseReader

if TYPE_CHECKING:
    from .exchange import Exchange

_ours = HeaderPicker(RESPONSE_HEADERS)


class Answer:
    """Stands between the app's `send` and the server's.

    `send` is a plain function that gives an awaitable: once there is nothing more to do, a message costs one check.
    """

    _reader: ResponseReader | None = None
    _settled = False

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self._exchange = exchange
        self._send = send

    def send(self, message: Message) -> Awaitable[None]:
        """The app's `send`."""
        if self._settled:
            return self._send(message)
        if message["type"] == "http.response.start":
            return self._start(message)
        reader = self._reader
        if reader is not None and message["type"] == "http.response.body":
            reader.feed(message.get("body", b""), message.get("more_body", False))
            if reader.finished or self._exchange.is_stated:
                return self._settle(reader, message)
        return self._send(message)

    def _start(self, message: Message) -> Awaitable[None]:
        exchange = self._exchange
        headers = header_list(message.get("headers", ()))
        if exchange.learns and 200 <= message["status"] < 300:
            rules = exchange.pinning.rules
            picked = rules.headers.pick(headers)
            self._reader = reader = ResponseReader(rules, picked, exchange.asked, whole=exchange.decides)
            if reader.finished or exchange.is_stated:
                return self._settle(reader, {**message, "headers": headers})
        else:
            self._settled = True
            picked = _ours.pick(headers)
        if exchange.pinning.tells:
            if picked and not RESPONSE_HEADERS.isdisjoint(picked):
                headers = without(headers, RESPONSE_HEADERS)
            message = {**message, "headers": headers + exchange.response_headers()}
        return self._send(message)

    async def _settle(self, reader: ResponseReader, message: Message) -> None:
        """Record the decision before the message that reveals it goes on."""
        self._reader = None
        await self._exchange.record(reader)
        if message["type"] == "http.response.start":
            self._exchange.learns = False
            await self._start(message)
        else:
            self._settled = True
            await self._send(message)
