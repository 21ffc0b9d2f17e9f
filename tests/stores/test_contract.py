"""What every store has to do, run over each of them."""

import os
from pathlib import Path

import pytest
from redis.asyncio import Redis, RedisCluster

from asgi_session_pin.stores import OperableStore
from asgi_session_pin.testing import (
    CHECKS,
    CLAIM_CHECKS,
    KEY,
    LAPSED_CHECKS,
    OPERATOR_CHECKS,
    SHARED_CHECKS,
    A,
    B,
    Check,
)
from cases import directory_case, memory_case, redis_case, sqlite_case
from redis_servers import Cluster, RedisServer, Sentinels


def name_of(check: Check) -> str:
    return check.__name__


every_check = pytest.mark.parametrize("check", CHECKS + LAPSED_CHECKS, ids=name_of)
every_check_of_shared_stores = pytest.mark.parametrize(
    "check", CHECKS + LAPSED_CHECKS + SHARED_CHECKS + CLAIM_CHECKS, ids=name_of
)


@every_check
async def test_the_memory_store_keeps_the_contract(check: Check) -> None:
    await check(memory_case())


@every_check_of_shared_stores
async def test_the_example_of_an_own_store_keeps_the_contract(check: Check, tmp_path: Path) -> None:
    await check(directory_case(tmp_path))


async def test_the_example_of_an_own_store_takes_a_file_that_is_no_pin_for_a_miss(tmp_path: Path) -> None:
    store = directory_case(tmp_path).open()
    await store.add(KEY, A)
    (tmp_path / "pins" / KEY.hex()).write_text("another program's")
    assert await store.get(KEY) is None
    assert await store.add(KEY, B) == B


@every_check_of_shared_stores
async def test_the_redis_store_keeps_the_contract(check: Check, shared_redis: RedisServer) -> None:
    async with Redis.from_url(shared_redis.url) as client:
        await check(redis_case(client, shared_redis.url))


@every_check_of_shared_stores
async def test_the_redis_store_keeps_the_contract_under_sentinel(check: Check, shared_sentinels: Sentinels) -> None:
    async with Redis.from_url(shared_sentinels.master.url) as client:
        await check(redis_case(client, shared_sentinels.url))


@every_check_of_shared_stores
async def test_the_redis_store_keeps_the_contract_in_a_cluster(check: Check, shared_cluster: Cluster) -> None:
    async with RedisCluster(host="127.0.0.1", port=shared_cluster.masters[0].port) as client:
        await check(redis_case(client, shared_cluster.url))


@every_check_of_shared_stores
async def test_the_sqlite_store_keeps_the_contract(check: Check, tmp_path: Path) -> None:
    await check(sqlite_case(tmp_path))


every_check_for_operators = pytest.mark.parametrize("check", OPERATOR_CHECKS, ids=name_of)


@every_check_for_operators
async def test_operators_see_what_is_in_memory(check: Check) -> None:
    await check(memory_case())


@every_check_for_operators
async def test_operators_see_what_is_in_a_file(check: Check, tmp_path: Path) -> None:
    await check(sqlite_case(tmp_path))


@every_check_for_operators
async def test_operators_see_what_is_in_redis(check: Check, shared_redis: RedisServer) -> None:
    async with Redis.from_url(shared_redis.url) as client:
        await check(redis_case(client, shared_redis.url))


@every_check_for_operators
async def test_operators_see_what_is_in_a_cluster(check: Check, shared_cluster: Cluster) -> None:
    async with RedisCluster(host="127.0.0.1", port=shared_cluster.masters[0].port) as client:
        await check(redis_case(client, shared_cluster.url))
        await check(redis_case(client, client))


async def test_a_place_that_no_listing_has_is_refused(tmp_path: Path) -> None:
    for store in (memory_case().open(), sqlite_case(tmp_path).open()):
        assert isinstance(store, OperableStore)
        with pytest.raises(ValueError, match=r"no place|fromhex"):
            await store.scan("x", 10)
        await store.aclose()


async def test_what_is_no_pin_is_not_listed(shared_redis: RedisServer) -> None:
    async with Redis.from_url(shared_redis.url) as client:
        store = redis_case(client, shared_redis.url).open()
        assert isinstance(store, OperableStore)
        key = os.urandom(16)  # other tests use the same server
        await store.add(key, A)
        [name] = [name async for name in client.scan_iter(f"*{key.hex()}*")]
        await client.set(name.replace(key.hex().encode(), b"0" * 32), b"no pin", px=10**9)
        await client.rpush(name.replace(key.hex().encode(), b"1" * 32), "no pin")
        found, after = await store.scan(None, 100)
        while after is not None:
            entries, after = await store.scan(after, 100)
            found += entries
        assert [entry.key for entry in found] == [key]
        await store.aclose()


async def test_a_table_of_fixed_times_forgets_all_when_it_is_closed() -> None:
    store = memory_case().open(sliding=False)
    await store.add(KEY, A)
    await store.aclose()
    assert await store.get(KEY) is None
