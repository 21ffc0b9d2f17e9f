"""One SQLite file of several processes: forked ones, ones that are killed."""

import asyncio
import os
import random
import select
import signal
import sqlite3
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from functools import partial
from hashlib import blake2b
from itertools import count
from pathlib import Path

import pytest

from asgi_driver import SESSION, Gateway, call
from asgi_session_pin import Pin, SessionPinMiddleware
from asgi_session_pin.stores.sqlite import SQLiteStore
from behaviour_document import Section, case
from forks import PATIENCE, all_went_well, fork, run
from sqlite_files import KEY, A, files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pins.db"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy disk others may write for longer than requests wait."""
    monkeypatch.setattr("asgi_session_pin.stores._sqlite_file._BUSY_SECONDS", 30)


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


CALLS: list[Callable[[SQLiteStore], Coroutine[object, object, object]]] = [
    lambda store: store.get(KEY),
    lambda store: store.add(KEY, A),
    lambda store: store.aclose(),
]


async def refuses(store: SQLiteStore) -> None:
    for asking in CALLS:
        with pytest.raises(RuntimeError, match=r"pins\.db was open when this process was forked"):
            await asking(store)


@case(
    Section.SHARED_STORE,
    "a process is forked while its SQLite file is open",
    "the child goes on as if the store were out; the parent has nothing of it",
)
def test_a_store_that_is_open_at_a_fork_goes_on_in_the_parent_alone(path: Path) -> None:
    store = SQLiteStore(path)
    asyncio.run(add_and_check(store, KEY))

    async def child() -> None:
        await refuses(store)
        app = SessionPinMiddleware(Gateway("model-b"), store=store)
        assert (await call(app, {"model": "auto"}, SESSION)).pin_status == "miss; reason=store-unavailable"
        assert (await call(app, {"model": "auto"}, SESSION)).pin_status == "hit; reason=store-unavailable"

    all_went_well([fork(partial(run, child)) for _ in range(4)])
    for number in range(5):
        asyncio.run(add_and_check(store, key_of(number)))
    asyncio.run(store.aclose())
    assert files(path) == [path]


async def test_a_process_is_known_by_its_id(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SQLiteStore(path)
    await store.add(KEY, A)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: 0)
        await refuses(store)
    await store.aclose()
    monkeypatch.setattr(os, "getpid", lambda: 0)
    assert await store.get(KEY) == A
    await store.aclose()


def test_a_store_that_was_closed_before_a_fork_serves_all_children_and_goes_on(path: Path) -> None:
    store = SQLiteStore(path)
    asyncio.run(add_and_check(store, KEY))
    asyncio.run(store.aclose())
    children = [fork(partial(run, add_and_check, store, key_of(number))) for number in range(4)]
    asyncio.run(add_and_check(store, key_of(4)))
    all_went_well(children)
    for number in range(5):
        asyncio.run(add_and_check(store, key_of(number)))
    asyncio.run(store.aclose())
    assert files(path) == [path]


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
