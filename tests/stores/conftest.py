"""Servers for the tests of stores, which each take keys of their own in them."""

from collections.abc import Iterator

import pytest

from redis_servers import RedisServer, redis_cluster, redis_server


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    """The nodes of a Redis Cluster."""
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes
