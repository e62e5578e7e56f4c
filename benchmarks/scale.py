"""How cost and memory grow with the number of tasks: `python -m benchmarks.scale`.

    1,000 ─► 10,000 ─► 100,000 ─► 1,000,000 no-op tasks      each size in a fresh interpreter, through
                                                             execute_all in threads, and stream in processes

The tasks of `execute_all` are all there at once, and so are their results: memory grows with their number. Those of a
`stream` come from a generator and are dropped once seen: memory must not grow.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from typing import TYPE_CHECKING

from benchmarks import _pools
from benchmarks._fresh import run_fresh
from benchmarks._harness import OURS
from benchmarks._report import show
from benchmarks.work import nothing

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZES = (1_000, 10_000, 100_000, 1_000_000)
QUICK = (100, 1_000)
WAYS = ("execute_all", "stream")
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of `ru_maxrss`, in bytes


def run_execute_all(count: int, workers: int) -> float:
    """Return the seconds from the first of `count` tasks to the last result, in threads."""
    with _pools.threads(OURS, workers) as pool:
        start = time.monotonic()
        for _ in range(count):
            pool.add_task(nothing)
        done = len(pool.execute_all())
        elapsed = time.monotonic() - start
    check(done, count)
    return elapsed


def run_stream(count: int, workers: int) -> float:
    """Return the seconds that a stream of `count` tasks takes in processes."""
    with _pools.processes(OURS, workers) as pool:
        start = time.monotonic()
        done = sum(result.success for result in pool.stream(nothing for _ in range(count)))
        elapsed = time.monotonic() - start
    check(done, count)
    return elapsed


def check(done: int, count: int) -> None:
    """Refuse a figure of a run that lost something.

    Raises:
        RuntimeError: other than `count` results.
    """
    if done != count:
        raise RuntimeError(f"{done} results of {count} tasks")


def measure_here(way: str, count: int, workers: int) -> None:
    """Print the seconds, and the peak of this process' memory in bytes. Called in the fresh interpreter."""
    seconds = {"execute_all": run_execute_all, "stream": run_stream}[way](count, workers)
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.scale", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="of each pool (default: 2)")
    args = parser.parse_args(argv)
    print(f"{'way':12} {'tasks':>10} {'seconds':>9} {'a task':>9} {'growth':>7} {'peak memory':>12}")
    for way in WAYS:
        least = 0.0
        for count in QUICK if args.quick else SIZES:
            code = f"from benchmarks.scale import measure_here; measure_here({way!r}, {count}, {args.workers})"
            seconds, peak = map(float, run_fresh(code)[1].split())
            each = seconds / count
            least = least or each
            memory = f"{peak / 1e6:.0f} MB"
            print(
                f"{way:12} {count:10,} {seconds:9.3f} {show(each, 's'):>9} {each / least:7.2f} {memory:>12}", flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
