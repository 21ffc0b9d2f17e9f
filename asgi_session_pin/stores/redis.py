"""Pins in Redis or Valkey, for any number of processes and hosts. Needs `pip install asgi-session-pin[redis]`."""

import asyncio
import contextlib
import math
from binascii import hexlify
from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, ReadOnlyError, RedisError, ResponseError

from ..log import logger
from ..pin import Pin

Client: TypeAlias = Redis | RedisCluster
_Execute = Callable[..., Awaitable[Any]]

# Both scripts are sent by EVAL, not EVALSHA: a server that was restarted or failed over has no scripts, their text is
# short, and the difference can't be measured.

# Before Redis 7 an error inside a script hides its code (READONLY, OOM) behind the place where it happened.
_WITH_CODE = """\
local function with_code(reply)
  local code = type(reply) == 'table' and reply.err and reply.err:match('%u%u+ .*')
  return code and {err = code} or reply
end
"""

# Returns 1, or the value that is there. Unlike SET NX and GET it needs one round trip, and nothing lapses in between.
_SET_IF_NONE = f"""{_WITH_CODE}
local set = redis.pcall('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
if not set then return redis.pcall('GET', KEYS[1]) end
return set.ok and 1 or with_code(set)"""

_DELETE_IF_EQUAL = f"""{_WITH_CODE}
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return with_code(redis.pcall('DEL', KEYS[1]))"""

_DELETE_NO_PIN = f"""{_WITH_CODE}
local held = redis.pcall('GET', KEYS[1])
local is_other_type = type(held) == 'table' and held.err and held.err:find('WRONGTYPE')
if held ~= ARGV[1] and not is_other_type then return 0 end
return with_code(redis.pcall('DEL', KEYS[1]))"""

# 100 parallel calls are fastest over 16 to 32 connections, and a first burst does not have to open 500 of them.
_CONNECTIONS = 32
_CONNECT_SECONDS = 1.0

_URL_FORM = (
    "expected redis://USER:PASSWORD@HOST:PORT/DB?OPTION=VALUE (or rediss://, unix://), with special characters of its "
    "parts percent-encoded, and options that redis-py knows, but for decode_responses"
)


class RedisStore:
    """Pins in Redis 6.2 or later, or in Valkey: one round trip for each call.

    - *client_or_url*: `redis://`, `rediss://` or `unix://` with the options that redis-py knows, or a client of
      `redis.asyncio`: `Redis`, `RedisCluster`, or what `Sentinel.master_for` returns.
    - *ttl_seconds*, *sliding*: a pin lapses so long after its last use, or after its decision if *sliding* is False.
    - *prefix*: of all keys. An ACL has to allow them for `GETEX`, `GET`, `SET`, `DEL` and `EVAL`.

    With a URL the store has connections of its own, 32 at most (`?max_connections=`), and new ones in another event
    loop: it is for one at a time. A client that is given stays its owner's: it is bound to one event loop, has its own
    retries and limits, and is not closed here.

    A call goes on until it is answered or cancelled: whoever calls bounds it. `?socket_timeout=` bounds each answer
    too, but a hit then takes 1.4 times as long. Errors of redis-py are raised without their texts.

    Raises ValueError for a URL or a client that can't be used, TypeError for anything else. Nothing is connected here.
    """

    def __init__(
        self,
        client_or_url: Client | str,
        *,
        ttl_seconds: float = 600,
        sliding: bool = True,
        prefix: str = "session-pin:",
    ) -> None:
        self._execute: _Execute
        if isinstance(client_or_url, str):
            client = _OwnClient(client_or_url)
            self._name, self._execute, self._close = client.address, client.execute, client.aclose
        else:
            self._name, self._execute, self._close = type(client_or_url).__name__, _executor(client_or_url), _leave_open
        self._ttl = _milliseconds(ttl_seconds)
        self._sliding = sliding
        self._pins = prefix.encode()
        self._claims = self._pins + b"claim:"
        self._told = False

    def __repr__(self) -> str:
        """Return where the pins are, without credentials."""
        return f"<{type(self).__name__} {self._name}>"

    async def get(self, key: bytes) -> Pin | None:
        """Return the pin of *key*, or None; see `PinStore.get`."""
        name = self._pins + hexlify(key)
        data = await (self._held("GETEX", name, "PX", self._ttl) if self._sliding else self._held("GET", name))
        if data is None:
            return None
        pin = self._decode(data)
        if pin is None:
            with contextlib.suppress(RedisError):  # a miss all the same, and no failure of the store
                await self._remove(name, data)
        return pin

    async def add(self, key: bytes, pin: Pin) -> Pin:
        """Keep *pin* unless there is one; see `PinStore.add`."""
        name = self._pins + hexlify(key)
        data = pin.encode()
        while True:
            held = await self._held("EVAL", _SET_IF_NONE, 1, name, data, self._ttl)
            in_force = pin if held == 1 else self._decode(held)
            if in_force is not None:
                return in_force
            await self._remove(name, held)

    async def discard(self, key: bytes, pin: Pin) -> bool:
        """Give up *pin* if it still holds; see `PinStore.discard`."""
        return await self._delete(self._pins + hexlify(key), pin.encode())

    async def claim(self, key: bytes, token: bytes, seconds: float) -> bool:
        """Take the right to decide for *key*; see `ClaimingStore.claim`."""
        name = self._claims + hexlify(key)
        held = await self._ask("EVAL", _SET_IF_NONE, 1, name, token, _milliseconds(seconds))
        return held in (1, token)  # it is the token if a first answer was lost on its way

    async def release(self, key: bytes, token: bytes) -> None:
        """Give a claim back; see `ClaimingStore.release`."""
        await self._delete(self._claims + hexlify(key), token)

    async def aclose(self) -> None:
        """Close the connections that the store made itself. It opens new ones when it is used."""
        await self._close()

    async def _delete(self, name: bytes, data: bytes) -> bool:
        deleted: int = await self._ask("EVAL", _DELETE_IF_EQUAL, 1, name, data)
        return deleted == 1

    async def _remove(self, name: bytes, data: bytes) -> None:
        """Delete what is no pin, unless there is something else by now."""
        await self._ask("EVAL", _DELETE_NO_PIN, 1, name, data)

    def _decode(self, data: bytes) -> Pin | None:
        """Return the pin; None for what is no pin, which must not stand in a session's way and is to be deleted."""
        try:
            return Pin.decode(data)
        except ValueError:
            if not self._told:
                self._told = True
                logger.warning("a key of %r holds what is no pin of this version; such values are deleted", self)
            return None

    async def _held(self, *command: bytes | str | int) -> Any:
        """Return what a key holds; nothing (`b""`, which is no pin either) for a value that is of another type."""
        try:
            return await self._ask(*command)
        except _OtherType:
            return b""

    async def _ask(self, *command: bytes | str | int) -> Any:
        """Send a command and return the answer. Errors are raised with the store's address in place of their texts."""
        try:
            return await self._execute(*command)
        except RedisError as error:
            is_other_type = str(error).startswith("WRONGTYPE ")
            _silence(error, self._name)
            if is_other_type:
                raise _OtherType(self._name) from None
            raise


class _OtherType(ResponseError):
    """A key holds a list or another thing that is no string."""


class _OwnClient:
    """A client that is made at the first use, and anew in another event loop: its sockets belong to theirs."""

    def __init__(self, url: str) -> None:
        self._url = url
        options = _open_pool(url).connection_kwargs
        place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        self.address = f"{urlsplit(url).scheme}://{place}/{options.get('db', 0)}"
        """Where the client connects to, without credentials."""
        self._loop: asyncio.AbstractEventLoop | None = None

    async def execute(self, *command: bytes | str | int) -> Any:
        """Send a command and return the answer."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._open(loop)
        async with self._slots:
            return await self._send(*command)

    def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        pool = _open_pool(self._url)
        self._client = Redis.from_pool(pool)
        self._send: _Execute = self._client.execute_command
        # One for each connection: BlockingConnectionPool lets late callers overtake.
        self._slots = asyncio.Semaphore(pool.max_connections)
        self._loop = loop

    async def aclose(self) -> None:
        """Close the client; in another event loop nothing of it can be closed any more."""
        if self._loop is asyncio.get_running_loop():
            self._loop = None
            await self._client.aclose()


def _open_pool(url: str) -> ConnectionPool:
    """Return a pool of connections, none of them open yet."""
    with contextlib.suppress(Exception):  # their messages quote parts of the URL
        parts = urlsplit(url)
        # A "#", "/" or "?" in a password ends the address: redis-py drops what follows, and connects elsewhere.
        if not parts.fragment and "@" not in parts.path + parts.query:
            pool = ConnectionPool.from_url(url, **_options(parts.scheme))
            pool.connection_class(**pool.connection_kwargs)  # it is here that options are looked at
            if "decode_responses" not in pool.connection_kwargs:  # pins are bytes
                return pool
    raise ValueError(f"a Redis URL can't be used: {_URL_FORM}")


def _options(scheme: str) -> dict[str, Any]:
    # A command is repeated once, and at once: an idle connection may have died. READONLY comes from a master that has
    # become a replica; a new connection may lead to the new master.
    options = {
        "max_connections": _CONNECTIONS,
        "protocol": 2,  # RESP3 needs another round trip to connect, and offers nothing for these commands
        "retry": Retry(NoBackoff(), 1),
        "retry_on_error": [ConnectionError, ReadOnlyError],
        "socket_connect_timeout": _CONNECT_SECONDS,
        "socket_timeout": None,
        "health_check_interval": 0,
    }
    return options if scheme == "unix" else options | {"socket_keepalive": True}


def _silence(error: BaseException | None, text: str) -> None:
    """Replace the texts of redis-py's errors: a server may quote what it was sent, the password first of all."""
    while error is not None:
        if isinstance(error, RedisError):
            error.args = (text,)
        error = error.__cause__ or error.__context__


async def _leave_open() -> None:
    """A client that was given is its owner's to close."""


def _executor(client: Client) -> _Execute:
    """Return the function of a client that sends a command."""
    execute: _Execute | None = getattr(client, "execute_command", None)
    if not iscoroutinefunction(execute):
        raise TypeError(f"found {type(client).__name__}, expected a URL or a client of redis.asyncio")
    if client.get_encoder().decode_responses:
        raise ValueError("a client with decode_responses=True can't be used: pins are bytes")
    return execute


def _milliseconds(seconds: float) -> int:
    if not 0 < seconds < math.inf:
        raise ValueError(f"found {seconds!r} seconds, expected a positive number")
    return max(1, round(seconds * 1000))
