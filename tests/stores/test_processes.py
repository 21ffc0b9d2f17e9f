"""Several processes on one store: every session has one model everywhere."""

import json
import subprocess
import sys
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

from asgi_session_pin.stores.sqlite import SQLiteStore
from behaviour_document import Section, case
from redis_servers import redis_server
from sqlite_files import KEY

PROCESSES = 4
SESSIONS = 1000


def ask_in_parallel(url: str) -> list[dict[str, Any]]:
    """Return what each of the processes saw that ask for the same new sessions at the same time."""
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "store_worker.py"), url, str(SESSIONS)]
    with ExitStack() as running:
        workers = [
            running.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(PROCESSES)
        ]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        told = [worker.communicate(timeout=120)[0] for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * PROCESSES
        return [json.loads(results) for results in told]


def check(results: list[dict[str, Any]]) -> None:
    models = [set(seen) for seen in zip(*(result["models"] for result in results), strict=True)]
    assert [len(seen) for seen in models] == [1] * SESSIONS
    assert sum(result["routed"] for result in results) == SESSIONS
    assert len([result for result in results if result["routed"]]) > 1, "several took part"


@case(Section.SHARED_STORE, "four processes, 1,000 sessions", "one model for each, one request to the router")
async def test_four_processes_agree_on_sqlite(tmp_path: Path) -> None:
    async with aclosing(SQLiteStore(tmp_path / "pins.db")) as store:
        await store.get(KEY)  # the file is made: where the disk is busy that takes longer than others wait for it
    check(ask_in_parallel(f"sqlite:///{tmp_path}/pins.db"))


@case(Section.SHARED_STORE, "four processes, 1,000 sessions", "one model for each, one request to the router")
def test_four_processes_agree_on_redis(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        check(ask_in_parallel(server.url))
