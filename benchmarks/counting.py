"""The figures of several workers against what their clients count, over many requests with faults mixed in.

    python benchmarks/counting.py [--requests 100000] [--workers 4]

Upstreams fail, break off and refuse names, clients leave while they send, before the answer and in the midst of it,
bodies are none or too large, and half-way new workers take over. Each series that clients can know has to be what they
counted, and the pins that came and went those in the store. What differs is told, and ends it with 1.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import counted_clients


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=4)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong, seen = asyncio.run(counted_clients.run(Path(folder), **vars(chosen)))
    print(f"{chosen.workers} workers: {seen}")
    print("\n".join(wrong) or "the figures are those of the clients")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
