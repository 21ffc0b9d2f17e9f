"""Who may use Redis, and over what: users of ACLs with no more rights than are documented, and TLS."""

import ssl
from contextlib import ExitStack, aclosing
from pathlib import Path

import pytest
import trustme

from asgi_session_pin.stores import try_store
from asgi_session_pin.stores.redis import RedisStore
from delaying_proxy import delaying_proxy
from redis_servers import BINARIES, SERVICE, redis_cluster, redis_sentinels, redis_server

RIGHTS = ["on", ">p@ss", "~session-pin:*", "+getex", "+get", "+set", "+del", "+pttl", "+eval", "+evalsha"]

every_kind = pytest.mark.parametrize("kind", BINARIES)


@pytest.fixture
def tls() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


@pytest.fixture
def authorities(tls: ssl.SSLContext, tmp_path: Path) -> str:
    """The file of the authority that the servers' certificate is of."""
    authority, path = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    return str(path)


async def failure_of(url: str) -> str | None:
    async with aclosing(RedisStore(url)) as store:
        return await try_store(store)


@every_kind
async def test_a_user_of_a_server_needs_few_rights(kind: str, tmp_path: Path) -> None:
    with redis_server(tmp_path, kind=kind) as server:
        server.call("ACL", "SETUSER", "ann", *RIGHTS)
        assert await failure_of(f"redis://ann:p%40ss@127.0.0.1:{server.port}") is None
        assert await failure_of(f"redis://ann:p%40ss@127.0.0.1:{server.port}/1") == "get: NoPermissionError"
        server.call("ACL", "SETUSER", "ann", "+select")
        assert await failure_of(f"redis://ann:p%40ss@127.0.0.1:{server.port}/1") is None


@every_kind
async def test_sentinels_have_users_of_their_own(kind: str, tmp_path: Path) -> None:
    with redis_sentinels(tmp_path, kind=kind) as service:
        service.master.call("ACL", "SETUSER", "ann", *RIGHTS)
        [sentinel] = service.sentinels
        sentinel.call("ACL", "SETUSER", "bob", "on", ">other", "+sentinel|masters")
        sentinel.call("ACL", "SETUSER", "default", "off")
        url = f"redis+sentinel://ann:p%40ss@127.0.0.1:{sentinel.port}/{SERVICE}"
        assert await failure_of(f"{url}?sentinel_username=bob&sentinel_password=other") is None
        assert str(await failure_of(url)).startswith("get: ")


@every_kind
async def test_a_user_of_a_cluster_may_also_ask_where_the_slots_are(kind: str, tmp_path: Path) -> None:
    with redis_cluster(tmp_path, kind=kind) as cluster:
        for node in cluster.masters:
            node.call("ACL", "SETUSER", "ann", *RIGHTS, "+cluster|slots", "+command")
        assert await failure_of(cluster.url.replace("://", "://ann:p%40ss@")) is None


async def test_tls_reaches_the_sentinels_and_the_master(tls: ssl.SSLContext, authorities: str, tmp_path: Path) -> None:
    with (
        redis_sentinels(tmp_path) as service,
        delaying_proxy(service.master.port, tls) as master,
        delaying_proxy(service.sentinels[0].port, tls) as sentinel,
    ):
        sentinel.rewrite = str(service.master.port).encode(), str(master.port).encode()
        url = f"rediss+sentinel://127.0.0.1:{sentinel.port}/{SERVICE}"
        assert await failure_of(f"{url}?ssl_ca_certs={authorities}") is None
        assert await failure_of(url) == "get: MasterNotFoundError"


async def test_tls_reaches_every_node_of_a_cluster(tls: ssl.SSLContext, authorities: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        proxies = []

        def announced(port: int) -> int:
            proxies.append(stack.enter_context(delaying_proxy(port, tls)))
            return proxies[-1].port

        stack.enter_context(redis_cluster(tmp_path, announced=announced))
        url = f"rediss+cluster://127.0.0.1:{proxies[0].port}"
        for _ in range(5):  # keys of other nodes
            assert await failure_of(f"{url}?ssl_ca_certs={authorities}") is None
        failure = await failure_of(url)
        assert failure is not None
        assert failure.startswith("get: RedisClusterException from ConnectionError")
