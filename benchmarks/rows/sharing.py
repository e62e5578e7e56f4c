"""What many calls on one large array cost, which goes to the workers once: time, and the memory that all of them take."""

from __future__ import annotations

import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Callable

from benchmarks import _pools
from benchmarks._harness import OURS, REGISTRY, STDLIB_PROCESSES, Settings
from benchmarks.work import array_at, array_in_at, whoami_with_numpy

FULL, QUICK = 100_000_000, 4_000_000  # bytes
ONE_ARRAY = "one array"
Call = Callable[[Any, int], "list[float]"]


def _caller(side: str, pool: Any, array: Any) -> Call:
    """Return what calls a function so many times with the array and a number, in one side's best way."""
    if side == "joblib":
        delayed = import_module("joblib").delayed
        return lambda fn, count: list(pool(delayed(fn)(array, number) for number in range(count)))
    given = pool.share(array) if side == OURS else array
    return lambda fn, count: [future.result() for future in [pool.submit(fn, given, number) for number in range(count)]]


@REGISTRY.row(
    "share-time",
    what="calls on one 100 MB numpy array, each of which looks at a number of it: 1,000 of them, of the stdlib's 10",
    goals={"joblib": 1.0, STDLIB_PROCESSES: 0.02},
    per="a call",
    needs=("numpy",),
    title="many calls on one array",
)
def share_time(side: str, run: Settings) -> float:
    """Return seconds a call, all that is done for the array included; the stdlib pickles it for each."""
    array = import_module("numpy").ones(run.count(FULL, QUICK) // 8)
    count = 10 if side == STDLIB_PROCESSES else run.count(1_000, 20)
    with _pools.processes(side, run.workers, hold=whoami_with_numpy) as pool:
        start = time.monotonic()
        if _caller(side, pool, array)(array_at, count) != [1.0] * count:
            raise RuntimeError("the array did not arrive as it was sent")
        return (time.monotonic() - start) / count


@REGISTRY.row(
    "share-memory",
    what="what the caller and its workers take more of memory, after 1,000 calls that read all of a 100 MB numpy array",
    goals={ONE_ARRAY: 1.3},
    unit="B",
    needs=("numpy",),
)
def share_memory(side: str, run: Settings) -> float:
    """Return bytes; a page counts once, whoever maps it."""
    array = import_module("numpy").ones(run.count(FULL, QUICK) // 8)
    if side == ONE_ARRAY:
        return float(array.nbytes)
    with _pools.processes(side, run.workers, hold=whoami_with_numpy) as pool:
        before = _memory_of_all()
        call = _caller(side, pool, array)
        call(array_in_at, run.count(1_000, 10))
        grown = _memory_of_all() - before
        del call  # which has had it shared until now
        return float(grown)


def _memory_of_all() -> int:
    """Return the bytes of memory that this process and its descendants take together."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(map(_memory, ours))


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
