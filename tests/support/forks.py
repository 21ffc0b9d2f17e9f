"""Processes that are forked from the tests' own."""

import asyncio
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Coroutine

PATIENCE = 30


def fork(work: Callable[[], object]) -> int:
    """Do *work* in a forked process, and return its id; it ends with 0 if that went well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of forks beside threads, which are meant
        process = os.fork()
    if process:
        return process
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def run(work: Callable[..., Coroutine[object, object, None]], *arguments: object) -> None:
    asyncio.run(work(*arguments))


def all_went_well(processes: list[int]) -> None:
    """Wait until the processes end."""
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        while (ended := os.waitpid(process, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
            time.sleep(0.005)
        assert ended == (process, 0)
