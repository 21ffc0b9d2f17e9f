"""The client of a Redis URL: of one server, of the master that Sentinel names, or of a Cluster."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio import ConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, ReadOnlyError, RedisClusterException, RedisError, ResponseError

from ..log import names_of
from ._redis_batches import Batches

Client: TypeAlias = Redis | RedisCluster
Execute: TypeAlias = Callable[..., Awaitable[Any]]
Close: TypeAlias = Callable[[], Awaitable[None]]

# At most, to a server or a node: a first burst does not have to open 500 of them.
_CONNECTIONS = 32
_CONNECT_SECONDS = 1.0
# A node that hangs must leave time to ask the next one, in the two seconds of a trial of the store.
_NODE_SECONDS = 0.5
_CLUSTER_OPTIONS = {
    "max_connections": 2**31,  # the calls are counted, not the connections that redis-py closes beside them
    "reinitialize_steps": 0,  # a slot that moved says where to; to ask for all of them cuts off the calls that go on
}

_FORMS = {
    "": "redis://USER:PASSWORD@HOST:PORT/DB?OPTION=VALUE (or rediss://, unix://)",
    "sentinel": "redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DB?OPTION=VALUE (or rediss+sentinel://)",
    "cluster": "redis+cluster://USER:PASSWORD@HOST:PORT,HOST:PORT?OPTION=VALUE (or rediss+cluster://)",
}
_DEFAULT_PORTS = {"sentinel": 26379, "cluster": 6379}
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")


class Opened(NamedTuple):
    """A client that is in use, for one event loop.

    - `execute`: sends a command and returns the answer.
    - `close`: closes it.
    - `cluster`: the client of a Cluster, if it is one.
    """

    execute: Execute
    close: Close
    cluster: RedisCluster | None = None


class Target(NamedTuple):
    """What a URL leads to.

    - `address`: where that is, without credentials.
    - `open`: makes a client; nothing is connected yet.
    - `examine`: returns what is wrong with each of the nodes that the URL lists; nothing for a single server.
    """

    address: str
    open: Callable[[], Opened]
    examine: Callable[[], Awaitable[list[str]]]


class OwnClient:
    """A client that is made at the first use, and anew in another event loop: its sockets belong to theirs.

    Raises ValueError for a URL that can't be used.
    """

    def __init__(self, url: str) -> None:
        self._target = read_url(url)
        self.address = self._target.address
        self.examine = self._target.examine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: Opened | None = None

    @property
    def cluster(self) -> RedisCluster | None:
        """The client of a Cluster, if it is one."""
        return self._open().cluster

    async def execute(self, *command: bytes | str | int, **options: Any) -> Any:
        """Send a command and return the answer; *options* are those of the client."""
        opened = self._open()
        try:
            return await opened.execute(*command, **options)
        except RedisClusterException:  # no node answers that it knows: those of the URL may have moved
            if self._opened is opened:
                self._loop = None
            await opened.close()
            raise

    def _open(self) -> Opened:
        loop = asyncio.get_running_loop()
        if self._opened is None or loop is not self._loop:
            self._opened = self._target.open()
            self._loop = loop
        return self._opened

    async def aclose(self) -> None:
        """Close the client; in another event loop nothing of it can be closed any more."""
        if self._opened is not None and self._loop is asyncio.get_running_loop():
            self._loop = None
            await self._opened.close()


def read_url(url: str) -> Target:
    """Return what a URL leads to. Raises ValueError, without any part of it, if it can't be used."""
    _, _, kind = url.partition("://")[0].partition("+")
    with contextlib.suppress(Exception):  # their messages quote parts of the URL
        parts = urlsplit(url)
        # A "#", "/" or "?" in a password ends the address: redis-py drops what follows, and connects elsewhere.
        if not parts.fragment and "@" not in parts.path + parts.query:
            return {"": _server, "sentinel": _sentinel, "cluster": _cluster}[kind](url)
    raise ValueError(
        f"a Redis URL can't be used: expected {_FORMS.get(kind, _FORMS[''])}, with special characters of its parts "
        "percent-encoded, and options that redis-py knows, but for decode_responses"
    )


def _server(url: str) -> Target:
    def open_client() -> Opened:
        return _open_batches(_pool(url))

    async def examine() -> list[str]:
        return []

    pool = _pool(url)
    options = pool.connection_kwargs
    place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    address = f"{urlsplit(url).scheme}://{place}/{options.get('db', 0)}"
    return Target(address, open_client, examine)


def _sentinel(url: str) -> Target:
    parts = urlsplit(url)
    service, _, database = parts.path.strip("/").partition("/")
    service = unquote(service)
    query = parse_qsl(parts.query, keep_blank_values=True)
    own = {name.removeprefix("sentinel_"): value for name, value in query if name in _SENTINEL_OPTIONS}
    rest = urlencode([pair for pair in query if pair[0] not in _SENTINEL_OPTIONS])
    nodes = _nodes(parts, "sentinel")
    options = _node_options(parts._replace(path=f"/{int(database or 0)}", query=rest))
    # The Sentinels' credentials are their own, what concerns the network is not.
    sentinel_options = {name: value for name, value in options.items() if name.partition("_")[0] in ("socket", "ssl")}
    sentinel_options |= {"socket_timeout": _NODE_SECONDS, "socket_connect_timeout": _NODE_SECONDS, "protocol": 2}
    sentinel_options |= {"retry": Retry(NoBackoff(), 1), **own}
    if not service:
        raise ValueError("no service")

    def open_client() -> Opened:
        manager: Any = Sentinel(nodes, sentinel_kwargs=sentinel_options)  # type: ignore[no-untyped-call]
        batches = _open_batches(manager.master_for(service, **options).connection_pool)

        async def close() -> None:
            await batches.close()
            for sentinel in manager.sentinels:
                await sentinel.aclose()

        return Opened(batches.execute, close)

    async def examine_node(client: Any) -> str | None:
        masters = await client.sentinel_masters()
        if service not in masters:
            return "knows no such service"
        return "takes its master for down" if masters[service]["is_sdown"] else None

    open_client()  # it is here that redis-py looks at some options
    address = f"{parts.scheme}://{_shown(nodes)}/{service}/{int(database or 0)}"
    examine = partial(_examine, nodes, sentinel_options, "Sentinel", examine_node)
    return Target(address, open_client, examine)


def _cluster(url: str) -> Target:
    parts = urlsplit(url)
    if parts.path not in ("", "/", "/0"):
        raise ValueError("a Cluster has one database")
    nodes = _nodes(parts, "cluster")
    options = _node_options(parts)
    calls = options.pop("max_connections")
    options |= {"socket_timeout": options["socket_timeout"] or _NODE_SECONDS, **_CLUSTER_OPTIONS}

    def open_client() -> Opened:
        startup_nodes = [ClusterNode(host, port) for host, port in nodes]
        client = RedisCluster(startup_nodes=startup_nodes, **options)
        slots = asyncio.Semaphore(calls)

        async def execute(*command: bytes | str | int, **options: Any) -> Any:
            async with slots:
                await client.initialize()  # redis-py would send what comes before it knows the slots to any node
                return await client.execute_command(*command, **options)

        async def close() -> None:
            await client.aclose()  # it leaves all open where it was about to look for the slots anew
            for known in ("nodes_cache", "startup_nodes"):
                await client.nodes_manager.aclose(known)

        return Opened(execute, close, client)

    async def examine_node(client: Any) -> str | None:
        await client.execute_command("CLUSTER SLOTS")
        return None

    open_client()
    node_options = {name: value for name, value in options.items() if name not in _CLUSTER_OPTIONS}
    examine = partial(_examine, nodes, node_options, "node of a Cluster", examine_node)
    return Target(f"{parts.scheme}://{_shown(nodes)}", open_client, examine)


def _open_batches(pool: ConnectionPool) -> Opened:
    batches = Batches(pool.make_connection, pool.max_connections)
    return Opened(batches.execute, batches.aclose)


def _pool(url: str) -> ConnectionPool:
    """Return a pool of connections to one server, none of them open yet."""
    pool = ConnectionPool.from_url(url, **_options(urlsplit(url).scheme))
    pool.connection_class(**pool.connection_kwargs)  # it is here that options are looked at
    if "decode_responses" in pool.connection_kwargs:
        raise ValueError("pins are bytes")
    return pool


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


def _node_options(parts: SplitResult) -> dict[str, Any]:
    """Return the options of connections to each node, but for its address; checked."""
    scheme = parts.scheme.partition("+")[0]
    credentials, at, _ = parts.netloc.rpartition("@")
    node = parts._replace(scheme=scheme, netloc=f"{credentials}{at}node").geturl()
    _pool(node)
    options: dict[str, Any] = _options(scheme) | dict(parse_url(node))
    for name in ("host", "port", "connection_class"):
        options.pop(name, None)
    return options | ({"ssl": True} if scheme == "rediss" else {})


def _nodes(parts: SplitResult, kind: str) -> list[tuple[str, int]]:
    """Return host and port of each node that a URL lists."""
    nodes = []
    for node in parts.netloc.rpartition("@")[2].split(","):
        address = urlsplit(f"//{node}")
        if not address.hostname:
            raise ValueError("a node without a name")
        nodes.append((address.hostname, address.port or _DEFAULT_PORTS[kind]))
    return nodes


def _shown(nodes: list[tuple[str, int]]) -> str:
    return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in nodes)


async def _examine(
    nodes: list[tuple[str, int]],
    options: dict[str, Any],
    kind: str,
    examine_node: Callable[[Any], Awaitable[str | None]],
) -> list[str]:
    """Return a line for each node that is not what the URL takes it for. Errors are told by their names alone."""
    faults = []
    for node in nodes:
        async with Redis(host=node[0], port=node[1], **options) as client:
            try:
                fault = await examine_node(client)
            except (RedisError, OSError) as error:
                fault = f"is no {kind}" if type(error) is ResponseError else names_of(error)
        if fault is not None:
            faults.append(f"{_shown([node])}: {fault}")
    return faults
