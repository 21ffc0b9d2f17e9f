"""One SQLite file of several processes and threads: forked ones, ones that are killed."""

import asyncio
import os
import random
import select
import signal
import sqlite3
import threading
import time
from contextlib import closing
from functools import partial
from hashlib import blake2b
from itertools import count
from pathlib import Path

import pytest

from asgi_driver import Clock
from asgi_session_pin import Pin
from asgi_session_pin.stores.sqlite import SQLiteStore
from forks import PATIENCE, all_went_well, fork, run
from sqlite_files import KEY, A, files, last_use


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pins.db"


def key_of(number: int) -> bytes:
    return blake2b(str(number).encode(), digest_size=16).digest()


def model_of(key: bytes) -> str:
    """Each key has a model of its own."""
    return f"model-{key.hex()}"


async def add_and_check(store: SQLiteStore, key: bytes) -> None:
    pin = Pin(model_of(key), 1.0)
    assert await store.add(key, pin) == pin
    assert await store.get(key) == pin


def test_a_store_made_before_a_fork_serves_all_children(path: Path) -> None:
    store = SQLiteStore(path)
    all_went_well([fork(partial(run, add_and_check, store, key_of(number))) for number in range(4)])


def test_a_store_used_before_a_fork_serves_all_children_and_goes_on(path: Path) -> None:
    store = SQLiteStore(path)
    asyncio.run(add_and_check(store, KEY))

    def child(number: int) -> None:
        assert not is_open(path)
        assert asyncio.run(store.get(KEY)) == Pin(model_of(KEY), 1.0)
        asyncio.run(add_and_check(store, key_of(number)))

    assert is_open(path)
    children = [fork(partial(child, number)) for number in range(4)]
    asyncio.run(add_and_check(store, key_of(4)))
    all_went_well(children)
    for number in range(5):
        asyncio.run(add_and_check(store, key_of(number)))
    asyncio.run(store.aclose())
    assert files(path) == [path]


def is_open(path: Path) -> bool:
    """Tell whether this process has the file open, without opening it."""
    wanted = path.stat()
    for descriptor in os.listdir("/dev/fd"):
        try:
            found = os.fstat(int(descriptor))
        except OSError:  # the one by which the list was read
            continue
        if os.path.samestat(found, wanted):
            return True
    return False


def test_forks_while_threads_read_and_write(path: Path) -> None:
    store = SQLiteStore(path, clock=lambda: time.time() * 60)  # so uses are written every second
    is_over = threading.Event()

    async def work(first: int) -> None:
        for number in count(first, 2):
            await store.add(key_of(number), A)
            for other in range(10):
                await store.get(key_of(other))
            if is_over.is_set():
                return

    threads = [threading.Thread(target=asyncio.run, args=[work(first)]) for first in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(40):
            all_went_well([fork(partial(run, add_and_check, store, key_of(-1 - number)))])
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    asyncio.run(add_and_check(store, KEY))
    assert store.failed_renewals == 0
    asyncio.run(store.aclose())


async def test_uses_that_are_queued_are_written_before_a_fork(path: Path) -> None:
    clock = Clock()
    store = SQLiteStore(path, ttl_seconds=10, clock=clock)
    await store.add(KEY, A)
    await clock.wait(5)
    may_go_on = threading.Event()
    store._file._call(may_go_on.wait)  # the thread is busy
    await store.get(KEY)

    def child() -> None:
        assert last_use(path) == 1005
        clock.now += 5
        asyncio.run(store.get(KEY))
        asyncio.run(store.aclose())
        assert last_use(path) == 1010

    all_went_well([fork(child)])
    may_go_on.set()
    await store.aclose()


def test_processes_that_add_the_same_keys_agree(path: Path) -> None:
    async def add_all(worker: int) -> None:
        store = SQLiteStore(path)
        found = [await store.add(key_of(number), Pin(f"model-{worker}", 1.0)) for number in range(1000)]
        await store.aclose()
        (path.parent / f"worker-{worker}").write_text("\n".join(pin.model for pin in found))

    all_went_well([fork(partial(run, add_all, worker)) for worker in range(4)])
    answers = [(path.parent / f"worker-{worker}").read_text() for worker in range(4)]
    assert answers == [answers[0]] * 4
    assert len(answers[0].split()) == 1000


def test_processes_that_start_at_the_same_time_make_one_file(path: Path) -> None:
    for attempt in range(5):
        file = path.with_name(f"{attempt}.db")
        start = time.monotonic() + 0.05

        def child(number: int, file: Path = file, start: float = start) -> None:
            store = SQLiteStore(file)
            while time.monotonic() < start:
                pass
            asyncio.run(add_and_check(store, key_of(number)))

        all_went_well([fork(partial(child, number)) for number in range(6)])
        with closing(sqlite3.connect(file)) as connection:
            assert list(connection.execute("SELECT number FROM pin_count")) == [(6,)]


def test_event_loops_in_two_threads_share_a_store(path: Path) -> None:
    store = SQLiteStore(path)
    results: dict[str, list[Pin]] = {}

    async def add_all(name: str) -> None:
        adding = (store.add(key_of(number), Pin(name, 1.0)) for number in range(300))
        results[name] = list(await asyncio.gather(*adding))
        for number, pin in enumerate(results[name]):
            assert await store.get(key_of(number)) == pin
        await store.aclose()  # while the other one may still be at work

    threads = [threading.Thread(target=asyncio.run, args=[add_all(name)]) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert results["a"] == results["b"]
    asyncio.run(store.aclose())


def write_for_ever(path: Path, started: int, seed: int) -> None:
    """Add, use, discard and claim, as fast as it goes."""
    numbers = random.Random(seed)

    async def write() -> None:
        store = SQLiteStore(path, ttl_seconds=0.01, max_entries=200)
        for turn in count():
            key = key_of(numbers.randrange(300))
            pin = Pin(model_of(key), float(turn))
            claim = store.claim(key, numbers.randbytes(16), 0.01)
            pins = await asyncio.gather(store.add(key, pin), store.get(key), claim)
            if numbers.random() < 0.3:
                await store.discard(key, pins[0])
            if turn == 0:
                os.write(started, b"1")

    asyncio.run(write())


def test_a_process_that_is_killed_leaves_a_whole_file_and_no_wrong_model(path: Path) -> None:
    numbers = random.Random(1)
    found = 0
    for attempt in range(100):
        is_new = attempt % 5 == 0  # of these some are killed while they make the file
        if is_new:
            file = path.with_name(f"{attempt}.db")
        started, tell_started = os.pipe()
        process = fork(partial(write_for_ever, file, tell_started, attempt))
        os.close(tell_started)
        if not is_new:
            assert select.select([started], [], [], PATIENCE)[0]
        time.sleep(numbers.uniform(0, 0.03))
        os.kill(process, signal.SIGKILL)
        assert os.waitpid(process, 0)[1] == signal.SIGKILL
        os.close(started)
        found += look_through(file)
    assert found > 200  # a hundred are of the check itself


def look_through(file: Path) -> int:
    """Check the file and every pin in it, and that it goes on; return how many pins there are."""
    store = SQLiteStore(file, ttl_seconds=1000)
    asyncio.run(add_and_check(store, KEY))
    with closing(sqlite3.connect(file)) as connection:
        assert list(connection.execute("PRAGMA integrity_check")) == [("ok",)]
        rows = list(connection.execute("SELECT key, pin FROM pins"))
        assert list(connection.execute("SELECT number FROM pin_count")) == [(len(rows),)]
    for key, data in rows:
        assert Pin.decode(data).model == model_of(key)
    assert asyncio.run(store.discard(KEY, Pin(model_of(KEY), 1.0)))
    asyncio.run(store.aclose())
    return len(rows)
