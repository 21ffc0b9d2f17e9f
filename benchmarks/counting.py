"""The figures of several workers against what their clients count, over many requests with faults mixed in, and over
SQLite and Redis.

    python benchmarks/counting.py [--requests 100000] [--workers 4]

Upstreams fail, break off and refuse names, clients leave while they send, before the answer and in the midst of it,
bodies are none or too large, and half-way new workers take over. Each series that clients can know has to be what they
counted, and the pins that came and went those in the store. What differs is told, and ends it with 1.
"""

import argparse
import asyncio
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import counted_clients
from redis_servers import redis_server


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=4)
    chosen = parser.parse_args()
    faults = 0
    for kind in ("SQLite", "Redis"):
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            folder = Path(name)
            url = f"sqlite:///{name}/pins.db" if kind == "SQLite" else stack.enter_context(redis_server(folder)).url
            wrong, seen = asyncio.run(counted_clients.run(folder, url, **vars(chosen)))
        print(f"{kind}, {chosen.workers} workers: {seen}")
        print("\n".join(wrong) or "the figures are those of the clients", flush=True)
        faults += len(wrong)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
