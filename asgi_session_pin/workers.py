"""How many processes does the server run, as far as its command line tells?"""

import re
from itertools import pairwise
from pathlib import Path

_SERVERS = {"uvicorn", "gunicorn", "hypercorn", "granian", "fastapi"}


def count_workers(command: list[str], environment: str) -> int:
    """Return how many workers a server's command line or the variable WEB_CONCURRENCY asks for."""
    counts = [environment]
    program = Path(command[0]) if command else Path()
    if program.name in _SERVERS or (program.name == "__main__.py" and program.parent.name in _SERVERS):
        words = re.sub(r"(?:^|(?<= ))-w(?=\d)|=", " -w ", " ".join(command[1:])).split()
        counts += [value for option, value in pairwise(words) if option in ("--workers", "-w")]
    return max([1, *(int(count) for count in counts if count.isdecimal())])
