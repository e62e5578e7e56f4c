"""Lone calls, streams and maps mixed with kills and crashes, for minutes: `python -m benchmarks.soak --minutes 10`.

    a round ──► in executors that live through all rounds, and in one that lives for the round
            ──► counted now and then: memory of this process and of its workers, threads, descriptors, processes

Nothing may grow. The first quarter of the time is for warming up: what is there then is what the end is held against.
Linux only, as it reads `/proc`.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.work import nothing, pause, tiny

if TYPE_CHECKING:
    from collections.abc import Sequence

    from parallel_exec import ParallelExecutor

LIMIT = 0.1  # seconds for each attempt
MEMORY_SLACK = 8.0  # MB that the end may be above the reference: allocators keep what they once had; a guess
_PAGE = os.sysconf("SC_PAGE_SIZE") / 1e6  # MB


class Count(NamedTuple):
    """What a process holds, its children included where that is said.

    Attributes:
        memory: MB resident, of this process.
        workers: MB resident, of its worker processes together.
        threads, files: of this process.
        children: how many processes it has started that are alive.
    """

    memory: float
    workers: float
    threads: int
    files: int
    children: int


def count() -> Count:
    """Return what is held now."""
    gc.collect()
    workers = descendants()
    files = len(os.listdir("/proc/self/fd"))
    return Count(resident(os.getpid()), sum(map(resident, workers)), threading.active_count(), files, len(workers))


def resident(pid: int) -> float:
    """Return the resident memory of a process in MB, 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0.0


def descendants() -> list[int]:
    """Return the ids of the processes below this one."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [os.getpid()]
    for pid in found:
        found += parents.get(pid, [])
    return found[1:]


def lone_calls(pool: ParallelExecutor, calls: int) -> None:
    """Wait for one call after the other."""
    for number in range(calls):
        if pool.submit(nothing, number).result() != number:
            raise RuntimeError("another call's result")


def streams(pool: ParallelExecutor, tasks: int) -> None:
    """Run a stream to its end, and leave another in the middle."""
    done = sum(result.success for result in pool.stream(nothing for _ in range(tasks)))
    if done != tasks:
        raise RuntimeError(f"{done} results of {tasks} tasks")
    with_rest = pool.stream(nothing for _ in range(tasks))
    next(with_rest)
    with_rest.close()
    if sum(pool.map(tiny, range(tasks))) != sum(pool.map(tiny, iter(range(tasks)))):
        raise RuntimeError("the items of a map are other ones")


def kills(pool: ParallelExecutor) -> None:
    """Have a call outrun its timeout among others, and with processes another one kill its worker."""
    hangs = [pool.submit(pause, LIMIT * 2.5), *([pool.submit(os._exit, 3)] if pool.config.backend == "process" else [])]
    others = [pool.submit(nothing, number) for number in range(50)]
    if [future.result() for future in others] != list(range(50)):
        raise RuntimeError("results beside a kill are lost")
    for future in hangs:
        if future.exception() is None:
            raise RuntimeError("a call outlived its timeout, or its process")


def run_round(pools: Sequence[ParallelExecutor], calls: int) -> None:
    """Do all of it once."""
    for pool in pools:
        lone_calls(pool, calls)
        streams(pool, calls)
        kills(pool)
    for backend in ("thread", "process"):
        with new_pool(backend) as pool:
            lone_calls(pool, 2)


def new_pool(backend: str) -> ParallelExecutor:
    """Return an executor whose attempts end soon, one way or the other."""
    from parallel_exec import ParallelExecutor  # here, so that --help works without

    return ParallelExecutor(max_concurrency=2, backend=backend, timeout=LIMIT, retry_count=0)


def soak(seconds: float, calls: int) -> bool:
    """Run rounds for so many seconds, printing what is held now and then; returns whether something has grown."""
    start = said = time.monotonic()
    reference: Count | None = None
    rounds = 0
    print(f"{'seconds':>8} {'rounds':>7} {'MB':>7} {'workers':>8} {'threads':>8} {'files':>6} {'children':>9}")
    with new_pool("thread") as in_threads, new_pool("process") as in_processes:
        while True:
            run_round((in_threads, in_processes), calls)
            rounds += 1
            now = time.monotonic()
            if reference is None and now - start >= seconds / 4:
                reference = settled()
            if now - said >= seconds / 20 or now - start >= seconds:
                said, held = now, settled()
                print(f"{now - start:8.0f} {rounds:7} {held.memory:7.1f} {held.workers:8.1f} ", end="")
                print(f"{held.threads:8} {held.files:6} {held.children:9}", flush=True)
            if now - start >= seconds:
                break
    return has_grown(reference or held, held)


def settled() -> Count:
    """Return what is held once abandoned threads and killed workers have gone."""
    time.sleep(LIMIT * 4)
    return count()


def has_grown(before: Count, after: Count) -> bool:
    """Say, and return, whether there is more than there was."""
    grown = [
        f"{name}: {then} → {now}"
        for name, then, now in zip(Count._fields, before, after)
        if now > then + (MEMORY_SLACK if isinstance(now, float) else 0)
    ]
    print("grown: " + ", ".join(grown) if grown else "nothing has grown")
    return bool(grown)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 1 if something has grown."""
    parser = argparse.ArgumentParser("python -m benchmarks.soak", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="how long (default: 10)")
    parser.add_argument("--calls", type=int, default=500, metavar="N", help="of each kind in a round (default: 500)")
    args: Any = parser.parse_args(argv)
    logging.getLogger("parallel_exec").setLevel(logging.ERROR)  # each timeout of a thread is a warning
    return int(soak(args.minutes * 60, args.calls))


if __name__ == "__main__":
    sys.exit(main())
