"""Commands of the documents, pasted into a shell."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, STDOUT

PATIENCE = 120  # seconds until commands that end by themselves have to be done
SCRIPTS = Path(sys.executable).parent


def paste(commands: str, folder: Path, **environment: str) -> str:
    """Run commands in *folder* until the last one ends, end what they have started, and return what all printed."""
    with pasted(commands, folder, **environment) as shell:
        output, _ = shell.communicate(timeout=PATIENCE)
    return output


@contextlib.contextmanager
def pasted(commands: str, folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a shell in *folder* that runs commands; it and all that they have started end with the context."""
    path = f"{SCRIPTS}:{os.environ['PATH']}"
    local = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    shell = subprocess.Popen(
        ["bash", "-c", commands],
        cwd=folder,
        env={"PATH": path, "HOME": str(folder), **local, **environment},
        text=True,
        stdout=PIPE,
        stderr=STDOUT,
        start_new_session=True,
    )
    with shell:
        try:
            yield shell
        finally:
            end(shell)


def end(shell: subprocess.Popen[str]) -> None:
    """End a shell and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(shell.pid, signal.SIGTERM)


def read_until(shell: subprocess.Popen[str], text: str) -> str:
    """Return what a shell has printed when *text* is among it; AssertionError if that does not come."""
    assert shell.stdout is not None
    overdue = threading.Timer(PATIENCE, end, [shell])
    overdue.start()
    printed = ""
    while text not in printed:
        line = shell.stdout.readline()
        assert line, printed
        printed += line
    overdue.cancel()
    return printed
