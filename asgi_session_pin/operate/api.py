"""The operators' API: pins, models, what is retired, whether pinning is paused."""

import asyncio
import math
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..events import PinEvent
from ..log import names_of
from ..middleware import SERVERS, SessionPinMiddleware, count_workers
from ..pin import Pin, is_model_name
from ..stores import Entry, MemoryStore, OperableStore
from .answers import error, shown
from .census import Census

OTHER = "other"
MOST_MODELS = 1_000  # that are told apart: clients and upstreams choose names
MOST_BYTES = 65_536  # of a request's body
_BODY_SECONDS = 10.0
_STORE_SECONDS = 10.0
_AT_ONCE = 50  # pins that are asked for together: others have their turn in between, within a millisecond
_LOOKED_AT = 20  # times the pins of a page, that are looked at for it
_COUNTED_AT_ONCE = 200
_PATIENCE_SECONDS = 2.0  # with a census
_OURS = SERVERS | {"asgi-session-pin", "asgi_session_pin"}


class _Model(msgspec.Struct):
    model: str


class _Lookup(msgspec.Struct):
    session_id: str
    headers: dict[str, str] = {}
    model: str | None = None


class Refused(Exception):
    """A request that can't be done: *status*, *message* and *code* are those of the answer."""

    def __init__(self, status: int, message: str, code: str) -> None:
        self.answer = error(status, message, code)


class API:
    """Answers the requests to `api/…`, in one worker; pins, retired models and the pause are the store's."""

    def __init__(self, middleware: SessionPinMiddleware) -> None:
        self._middleware = middleware
        self._runtime = runtime = middleware.runtime
        self._store = runtime.store if isinstance(runtime.store, OperableStore) else None
        no_pins = Counter[str]()
        self._census = Census(self._count_pins, no_pins, runtime.timer, patience_seconds=_PATIENCE_SECONDS)
        self._requests: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._counts_requests = False
        workers = count_workers(sys.argv, os.environ.get("WEB_CONCURRENCY", ""), _OURS)
        self._is_alone = type(runtime.store) is MemoryStore and workers > 1

    def close(self) -> None:
        """Leave nothing behind."""
        self._census.close()

    async def answer(self, handle: Callable[..., Awaitable[Response]], request: Request, *parts: str) -> Response:
        """Answer a request by *handle*; a store that fails is told."""
        try:
            return await handle(request, *parts)
        except Refused as refused:
            return refused.answer
        except NotImplementedError:
            return error(501, "The pin store can't do this.", "not_supported")
        except Exception as failure:
            return error(503, f"The pin store failed: {names_of(failure)}.", "store_unavailable")

    # Pins

    async def list_pins(self, request: Request) -> Response:
        """Answer with some pins, of one model or of all, and where the list goes on."""
        query = request.query_params
        limit = query.get("limit", "100")
        if not _is_limit(limit):
            raise Refused(400, "limit: expected a whole number from 1 to 1000.", "invalid_request")
        model, after = query.get("model") or None, query.get("after") or None
        found: list[dict[str, Any]] = []
        for _ in range(math.ceil(_LOOKED_AT * int(limit) / _AT_ONCE)):
            try:
                async with asyncio.timeout(_STORE_SECONDS):
                    entries, after = await self._operable().scan(after, min(_AT_ONCE, int(limit) - len(found)))
            except ValueError:
                raise Refused(400, "after: expected what an earlier answer has as next.", "invalid_request") from None
            found += [_described(entry) for entry in entries if model is None or entry.pin.model == model]
            if after is None or len(found) >= int(limit):
                break
            await asyncio.sleep(0)  # memory waits for nothing
        return shown({"pins": found, "next": after})

    async def get_pin(self, request: Request, key: str) -> Response:
        """Answer with one pin."""
        entry = await self._peek(_key(key))
        return _no_pin() if entry is None else shown(_described(entry))

    async def put_pin(self, request: Request, key: str) -> Response:
        """Set a session's model."""
        name = (await _read(request, _Model)).model
        if not is_model_name(name):
            raise Refused(400, "model: expected a name of up to 256 visible ASCII characters.", "invalid_request")
        pin = Pin(name, self._runtime.pins.now(), by_operator=True)
        await self._runtime.pins.put(_key(key), pin)
        return shown(_described(Entry(_key(key), pin, 0.0)))

    async def delete_pin(self, request: Request, key: str) -> Response:
        """Give a pin up."""
        if not await self._runtime.pins.forget(_key(key)):
            return _no_pin()
        self._runtime.tell_change("forgotten")
        return Response(status_code=204)

    async def look_up(self, request: Request) -> Response:
        """Answer with the pin of a session, by its id and credential, of which nothing is kept."""
        asked = await _read(request, _Lookup)
        try:
            key = self._middleware.key_of(asked.session_id, asked.headers, asked.model)
        except ValueError:  # UnicodeEncodeError is one
            raise Refused(400, "headers: expected what a request can have.", "invalid_request") from None
        entry = await self._peek(key)
        return shown({"key": key.hex(), "pin": None if entry is None else _described(entry)})

    # Models

    async def list_models(self, request: Request) -> Response:
        """Answer with what is known of each model. Requests are counted from the first time that somebody asks."""
        if not self._counts_requests:
            self._counts_requests = True
            self._runtime.listeners.append(self._count_request)
        pins = await self._census.figures()
        retired = self._runtime.steering.retired
        models = [
            {
                "model": model,
                "pins": pins[model],
                "requests": self._requests[model],
                "failures": self._failures[model],
                "retired": model in retired,
            }
            for model in sorted({*pins, *self._requests, *retired})
        ]
        return shown({"models": models, "worker": os.getpid()})

    async def list_retired(self, request: Request) -> Response:
        """Answer with the names that are retired."""
        await self._read_note()
        return shown({"retired": sorted(self._runtime.steering.retired)})

    async def retire(self, request: Request, model: str) -> Response:
        """Have no session on a model any longer."""
        return await self._set_retired(model, True)

    async def restore(self, request: Request, model: str) -> Response:
        """Take a model back."""
        return await self._set_retired(model, False)

    async def get_pause(self, request: Request) -> Response:
        """Answer whether pinning is paused."""
        await self._read_note()
        return shown({"paused": self._runtime.steering.is_paused})

    async def pause(self, request: Request) -> Response:
        """Read and write no pin any longer."""
        self._refuse_alone()
        await self._runtime.steering.pause(True)
        return Response(status_code=204)

    async def resume(self, request: Request) -> Response:
        """Go on pinning."""
        self._refuse_alone()
        await self._runtime.steering.pause(False)
        return Response(status_code=204)

    async def _count_pins(self) -> Counter[str]:
        """Return how many pins each model has."""
        pins: Counter[str] = Counter()
        after: str | None = None
        while True:
            async with asyncio.timeout(_STORE_SECONDS):
                entries, after = await self._operable().scan(after, _COUNTED_AT_ONCE)
            for entry in entries:
                pins[_told_apart(entry.pin.model, pins)] += 1
            if after is None:
                return pins

    def _count_request(self, event: PinEvent) -> None:
        if event.model is not None:
            name = _told_apart(event.model, self._requests)
            self._requests[name] += 1
            self._failures[name] += event.verdict is not None and event.verdict != "client"

    async def _set_retired(self, model: str, is_retired: bool) -> Response:
        self._refuse_alone()
        if not is_model_name(model):
            raise Refused(400, "The model's name is none: up to 256 visible ASCII characters.", "invalid_request")
        try:
            await self._runtime.steering.retire(model, is_retired)
        except ValueError as fault:
            raise Refused(409, f"{fault}.", "too_many") from None
        return Response(status_code=204)

    async def _read_note(self) -> None:
        self._refuse_alone()
        await self._runtime.steering.read()

    def _refuse_alone(self) -> None:
        self._operable()
        if self._is_alone:
            message = "With memory:// each worker has pins of its own: this needs a store that they share."
            raise Refused(409, message, "not_shared")

    async def _peek(self, key: bytes) -> Entry | None:
        async with asyncio.timeout(_STORE_SECONDS):
            return await self._operable().peek(key)

    def _operable(self) -> OperableStore:
        if self._store is None:
            raise Refused(501, "The pin store has no methods for operators.", "not_supported")
        return self._store


async def _read(request: Request, kind: Any) -> Any:
    """Return the JSON body of a request as *kind*. Raises Refused."""
    body = b""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise Refused(413, f"The body is over {MOST_BYTES} bytes.", "too_large")
        return msgspec.json.decode(body, type=kind)
    except TimeoutError:
        raise Refused(408, "The body did not come in time.", "timeout") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        fields = ", ".join(kind.__struct_fields__)
        raise Refused(400, f"The body is no JSON object of {fields}.", "invalid_request") from None


def _told_apart(model: str, counted: Counter[str]) -> str:
    """Return the name under which a model counts beside those that are counted already."""
    return model if model in counted or len(counted) < MOST_MODELS else OTHER


def _is_limit(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= 1000


def _key(text: str) -> bytes:
    return bytes.fromhex(text)


def _no_pin() -> Response:
    return error(404, "There is no such pin.", "not_found")


def _described(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key.hex(),
        "model": entry.pin.model,
        "created": entry.pin.created,
        "idle_seconds": round(entry.idle_seconds, 3),
        "by": "operator" if entry.pin.by_operator else "router",
    }
