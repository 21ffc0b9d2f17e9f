"""Pins in Redis or Valkey, for any number of processes and hosts. Needs `pip install asgi-session-pin[redis]`."""

import asyncio
import contextlib
import hashlib
import math
import re
import time
from binascii import hexlify
from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Any

from redis.asyncio import RedisCluster
from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from ..log import logger
from ..pin import Pin
from ._lru import ExpiringLRU
from ._redis_client import Client, Execute, OwnClient
from .base import Entry, Lapsed, Page

# The scripts are sent by EVAL: a server that was restarted or failed over has none. But for a look their digest goes
# first: the text makes it 600 bytes longer and takes the server a third more time.

# Before Redis 7 an error inside a script hides its code (READONLY, OOM) behind the place where it happened.
_WITH_CODE = """\
local function with_code(reply)
  local code = type(reply) == 'table' and reply.err and reply.err:match('%u%u+ .*')
  return code and {err = code} or reply
end
"""

# A pin lapses when its key has no more than the time left for which lapsed ones are kept. Returns the value and the
# milliseconds that it had left, and is a use of it, but for one that lapsed.
_USE_OR_TELL = f"""{_WITH_CODE}
local left = redis.call('PTTL', KEYS[1])
local has_lapsed = left >= 0 and left <= tonumber(ARGV[2])
local held
if has_lapsed or ARGV[1] == '' then held = redis.pcall('GET', KEYS[1])
else held = redis.pcall('GETEX', KEYS[1], 'PX', ARGV[1]) end
return type(held) == 'table' and with_code(held) or {{held, left}}"""

_USE_OR_TELL_DIGEST = hashlib.sha1(_USE_OR_TELL.encode(), usedforsecurity=False).hexdigest()

# Returns 1, or the value that is there and has not lapsed.
_SET_UNLESS_HELD = f"""{_WITH_CODE}
local left = redis.call('PTTL', KEYS[1])
local lapsed = left >= 0 and left <= tonumber(ARGV[3])
local set = lapsed and redis.pcall('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  or redis.pcall('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
if not set then return redis.pcall('GET', KEYS[1]) end
return set.ok and 1 or with_code(set)"""

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

# Looks at about as many keys as ARGV[3]; returns where it goes on, how many hold, and with ARGV[5] each of them: its
# name, its value and the milliseconds that it has left.
_SCAN = """
local found = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
local entries, number = {}, 0
for _, name in ipairs(found[2]) do
  local left = redis.call('PTTL', name)
  if left > tonumber(ARGV[4]) then
    number = number + 1
    local value = ARGV[5] == '1' and redis.pcall('GET', name)
    if type(value) == 'string' then entries[#entries + 1] = {name, value, left} end
  end
end
return {found[1], number, entries}"""

# Returns 1 if the note was what it is thought to be ('' for none) and is another one now.
_REPLACE_NOTE = f"""{_WITH_CODE}
if (redis.pcall('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
local set = redis.pcall('SET', KEYS[1], ARGV[2])
return set.ok and 1 or with_code(set)"""

# In the name of each key: a version of this package whose pins or claims mean something else has another number, so
# that two of them can share a server while a fleet is upgraded.
_VERSION = 1

_MOST_FRESH = 10_000
_MOST_AT_ONCE = 200  # keys that are looked at together
_glob_special = re.compile(rb"[*?\[\]\\]")
_FAILURES = (RedisError, RedisClusterException)  # which is no RedisError


class RedisStore:
    """Pins in Redis 6.2 or later, or in Valkey: one round trip for each call.

    - *client_or_url*: `redis://`, `rediss://` or `unix://`, `redis+sentinel://H1:26379,H2:26379/SERVICE/0`,
      `redis+cluster://H1:7000,H2:7001` (or `rediss+…`), with the options that redis-py knows (and `sentinel_username`,
      `sentinel_password`), or a client of `redis.asyncio`: `Redis`, `RedisCluster`, or what `Sentinel.master_for`
      returns.
    - *ttl_seconds*, *sliding*: a pin lapses so long after its last use, or after its decision if *sliding* is False.
    - *tool_loop_seconds*: a key stays for so long after its pin has lapsed.
    - *prefix*: of all keys. An ACL has to allow them for `GETEX`, `GET`, `SET`,
      `DEL`, `PTTL`, `EVAL` and `EVALSHA`; in a Cluster also `CLUSTER SLOTS` and `COMMAND`.
    - *timer*: seconds, monotonic; the server alone tells when a pin lapses.

    With a URL the store has connections of its own, 32 at most to a server (`?max_connections=`), and new ones in
    another event loop: it is for one at a time. A client that is given stays its owner's: it is bound to one event
    loop, has its own retries and limits, and is not closed here.

    A call goes on until it is answered or cancelled: whoever calls bounds it. `?socket_timeout=` bounds each answer
    too, but a hit then takes 1.4 times as long; in a Cluster it is always 0.5 seconds or what is given, so that a node
    that hangs is told from one that is slow. Errors of redis-py are raised without their texts.

    Raises ValueError for a URL or a client that can't be used, TypeError for anything else. Nothing is connected here.
    """

    def __init__(
        self,
        client_or_url: Client | str,
        *,
        ttl_seconds: float = 600,
        sliding: bool = True,
        tool_loop_seconds: float = 3600,
        prefix: str = "session-pin:",
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own: OwnClient | None = None
        self._execute: Execute
        if isinstance(client_or_url, str):
            self._own = OwnClient(client_or_url)
            self._name, self._execute = self._own.address, self._own.execute
        else:
            self._name, self._execute = type(client_or_url).__name__, _executor(client_or_url)
        self._kept = _milliseconds(tool_loop_seconds) if tool_loop_seconds else 0
        self._ttl = _milliseconds(ttl_seconds) + self._kept
        self._sliding = sliding
        self._timer = timer
        # Keys of pins that this process has used within their time. They can't have lapsed, by the server's clock or
        # anybody's, so that a look at them is one plain command.
        self._fresh = ExpiringLRU[bool](
            _MOST_FRESH, ttl_seconds=ttl_seconds, sliding=sliding, kept_seconds=0, timer=timer
        )
        self._pins = f"{prefix}{_VERSION}:".encode()
        self._claims = self._pins + b"claim:"
        self._note = self._pins + b"note"
        self._cluster = client_or_url if isinstance(client_or_url, RedisCluster) else None
        self._told = False

    def __repr__(self) -> str:
        """Return where the pins are, without credentials."""
        return f"<{type(self).__name__} {self._name}>"

    async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
        """Return the pin of *key*, or None; see `PinStore.get`."""
        name = _name(self._pins, key)
        began = self._timer()
        if not self._kept or self._fresh.find(key):
            data, left = await self._use(key, name), math.inf
        else:
            data, left = await self._use_or_tell(name)
        if data is None:
            return None
        pin = self._decode(data)
        if pin is None:
            with contextlib.suppress(*_FAILURES):  # a miss all the same, and no failure of the store
                await self._remove(name, data)
            return None
        if 0 <= left <= self._kept:
            return Lapsed(pin, (self._kept - left) / 1000)
        if self._kept < left < math.inf:
            spent = 0 if self._sliding else (self._ttl - left) / 1000
            self._fresh.put(key, True, spent + self._timer() - began)
        return pin

    async def add(self, key: bytes, pin: Pin) -> Pin:
        """Keep *pin* unless there is one that holds; see `PinStore.add`."""
        name = _name(self._pins, key)
        data = pin.encode()
        while True:
            began = self._timer()
            held = await self._held("EVAL", _SET_UNLESS_HELD, 1, name, data, self._ttl, self._kept)
            if held == 1:
                self._fresh.put(key, True, self._timer() - began)
                return pin
            in_force = self._decode(held)
            if in_force is not None:
                return in_force
            await self._remove(name, held)

    async def discard(self, key: bytes, pin: Pin) -> bool:
        """Give up *pin* if it still is there; see `PinStore.discard`."""
        return await self._delete(_name(self._pins, key), pin.encode())

    async def claim(self, key: bytes, token: bytes, seconds: float) -> bool:
        """Take the right to decide for *key*; see `ClaimingStore.claim`."""
        name = _name(self._claims, key)
        held = await self._ask("EVAL", _SET_IF_NONE, 1, name, token, _milliseconds(seconds))
        return held in (1, token)  # it is the token if a first answer was lost on its way

    async def release(self, key: bytes, token: bytes) -> None:
        """Give a claim back; see `ClaimingStore.release`."""
        await self._delete(_name(self._claims, key), token)

    def shard_of(self, key: bytes) -> str | None:
        """Return where the master of *key* is, in a Cluster; see `ShardedStore`."""
        cluster = self._cluster if self._own is None else self._own.cluster
        if cluster is None:
            return None
        try:
            node = cluster.get_node_from_key(_name(self._pins, key))  # type: ignore[arg-type] # bytes as they are
        except RedisClusterException:  # nobody has that slot, or no node has been asked yet
            return None
        return None if node is None else node.name

    async def peek(self, key: bytes) -> Entry | None:
        """Return the pin of *key*, if it holds; see `OperableStore.peek`."""
        name = _name(self._pins, key)
        left, data = await asyncio.gather(self._ask("PTTL", name), self._held("GET", name))
        return self._entry(name, data, left) if data and left > self._kept else None

    async def scan(self, after: str | None, limit: int) -> Page:
        """Return some pins, in a Cluster of one master after the other; see `OperableStore.scan`.

        Where a master has gone meanwhile, its place is none any more.
        """
        after, _, found = await self._scan(after, min(limit, _MOST_AT_ONCE), with_entries=True)
        entries = [entry for each in found if (entry := self._entry(*each)) is not None]
        return Page(entries, after)

    async def count(self) -> int:
        """Return how many pins hold; see `OperableStore.count`."""
        after, total, _ = await self._scan(None, _MOST_AT_ONCE, with_entries=False)
        while after is not None:
            after, number, _ = await self._scan(after, _MOST_AT_ONCE, with_entries=False)
            total += number
        return total

    async def read_note(self) -> bytes | None:
        """Return the note; see `OperableStore.read_note`."""
        note: bytes | None = await self._ask("GET", self._note)
        return note

    async def replace_note(self, old: bytes | None, new: bytes) -> bool:
        """Replace the note if it is *old*; see `OperableStore.replace_note`."""
        replaced: int = await self._ask("EVAL", _REPLACE_NOTE, 1, self._note, old or b"", new)
        return replaced == 1

    async def _scan(self, after: str | None, number: int, *, with_entries: bool) -> tuple[str | None, int, list[Any]]:
        """Look at about so many keys of one server; return where it goes on, how many hold, and these if asked for.

        A place is where that server is, if there are several, and what it calls the place.
        """
        masters = await self._masters()
        server, _, place = (f"{next(iter(masters))}/0" if after is None else after).rpartition("/")
        if server not in masters or not place.isdecimal():
            raise ValueError("no place of a listing")
        pattern = _glob_special.sub(rb"\\\g<0>", self._pins) + b"{*"
        command = ("EVAL", _SCAN, 0, place, pattern, number, self._kept, int(with_entries))
        found, held, entries = await self._ask(*command, **masters[server])
        place = found.decode()
        if place != "0":
            return (f"{server}/{place}" if server else place), held, entries
        others = [name for name in masters if name > server]
        return (f"{others[0]}/0" if others else None), held, entries

    async def _masters(self) -> dict[str, dict[str, Any]]:
        """Return the names of the servers that have pins, in their order, and the options that lead a command there."""
        cluster = self._cluster if self._own is None else self._own.cluster
        if cluster is None:
            return {"": {}}
        try:
            await cluster.initialize()
        except _FAILURES as error:
            _silence(error, self._name)
            raise
        masters = sorted(cluster.get_primaries(), key=lambda node: node.name)
        return {node.name: {"target_nodes": node} for node in masters}

    def _entry(self, name: bytes, data: bytes, left: int) -> Entry | None:
        try:
            key, pin = bytes.fromhex(name[len(self._pins) + 1 : -1].decode()), Pin.decode(data)
        except ValueError:  # no pin of ours: whoever asks for it deletes it
            return None
        return Entry(key, pin, max(0.0, (self._ttl - left) / 1000))

    async def aclose(self) -> None:
        """Close the connections that the store made itself. It opens new ones when it is used."""
        if self._own is not None:
            await self._own.aclose()

    async def examine_nodes(self) -> list[str]:
        """Return what is wrong with each Sentinel, or node of a Cluster, that the URL lists; see `ListingStore`."""
        return [] if self._own is None else await self._own.examine()

    async def _use(self, key: bytes, name: bytes) -> Any:
        """Return what a key holds, which is a use of it."""
        try:
            return await (self._held("GETEX", name, "PX", self._ttl) if self._sliding else self._held("GET", name))
        except BaseException:
            self._fresh.drop(key)  # nobody knows whether it was one
            raise

    async def _use_or_tell(self, name: bytes) -> tuple[Any, int]:
        """Return what a key holds and the milliseconds that it had left, which is a use unless it has lapsed."""
        arguments = (1, name, self._ttl if self._sliding else "", self._kept)
        try:
            found = await self._held("EVALSHA", _USE_OR_TELL_DIGEST, *arguments)
        except NoScriptError:
            found = await self._held("EVAL", _USE_OR_TELL, *arguments)
        return tuple(found) if found else (found, -1)

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
            return await self._execute(*command)
        except _FAILURES as error:
            if str(error).startswith("WRONGTYPE "):
                return b""
            _silence(error, self._name)
            raise

    async def _ask(self, *command: bytes | str | int, **options: Any) -> Any:
        """Send a command and return the answer. Errors are raised with the store's address in place of their texts."""
        try:
            return await self._execute(*command, **options)
        except _FAILURES as error:
            _silence(error, self._name)
            raise


def _name(prefix: bytes, key: bytes) -> bytes:
    """Return the name of a key in Redis: a Cluster keeps what has the same between its braces in one slot."""
    return b"%b{%b}" % (prefix, hexlify(key))


def _silence(error: BaseException | None, text: str) -> None:
    """Replace the texts of redis-py's errors: a server may quote what it was sent, the password first of all."""
    while error is not None:
        if isinstance(error, _FAILURES):
            error.args = (text,)
        error = error.__cause__ or error.__context__


def _executor(client: Client) -> Execute:
    """Return the function of a client that sends a command."""
    execute: Execute | None = getattr(client, "execute_command", None)
    if not iscoroutinefunction(execute):
        raise TypeError(f"found {type(client).__name__}, expected a URL or a client of redis.asyncio")
    if client.get_encoder().decode_responses:
        raise ValueError("a client with decode_responses=True can't be used: pins are bytes")
    return execute


def _milliseconds(seconds: float) -> int:
    if not 0 < seconds < math.inf:
        raise ValueError(f"found {seconds!r} seconds, expected a positive number")
    return max(1, round(seconds * 1000))
