"""Agents loop through `serve` while an operator retires their model, and pauses pinning: who follows, and how soon.

    python benchmarks/steering.py [--pins 100000] [--workers 4] [--agents 60] [--seconds 5]

Once over SQLite and once over a Redis of its own, with so many pins that live, half of them on the model that is
retired. A second after the operator's request no person's turn may go to that model, while no tool loop breaks and no
request fails, also as new workers take over; while it is paused none may be pinned, and afterwards all are as before.
What is not so is told, and ends it with 1.
"""

import argparse
import asyncio
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import steered_agents
from redis_servers import redis_server


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pins", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--agents", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=5)
    chosen = parser.parse_args()
    is_wrong = False
    for kind in ("SQLite", "Redis"):
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            folder = Path(name)
            url = f"sqlite:///{name}/pins.db" if kind == "SQLite" else stack.enter_context(redis_server(folder)).url
            wrong, seen = asyncio.run(steered_agents.run(folder, url, follows=1, **vars(chosen)))
        print(f"{kind}, {chosen.pins:,} pins, {chosen.workers} workers: {seen}", flush=True)
        print("\n".join(f"  {fault}" for fault in wrong[:10]) or "  all as it should be", flush=True)
        is_wrong = is_wrong or bool(wrong)
    return 1 if is_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
