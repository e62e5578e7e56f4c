"""What a journal costs: while a run goes on, when it is taken up again, and on the disk.

The files lie in a temporary folder, whose disk is a part of what is measured.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator

from benchmarks import _pools
from benchmarks._fresh import run_fresh
from benchmarks._harness import OURS, REGISTRY, Settings
from benchmarks.work import nothing, pause

if TYPE_CHECKING:
    from collections.abc import Iterable

    from parallel_exec import Task

WITHOUT = "the same without a journal"
THE_LIMIT = "the limit set"

_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []  # what `_done` made; removed when the interpreter ends


@contextmanager
def _journal(side: str) -> Iterator[Path | None]:
    """Yield where the journal of one sample goes, None for the side that has none."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder, "run.db") if side == OURS else None


def _numbered(count: int) -> Iterable[Task]:
    """Return so many no-op tasks of different ids and arguments."""
    from parallel_exec import Task

    return (Task(nothing, number, id=f"item {number}") for number in range(count))


def _run_all(pool: Any, tasks: Iterable[Task], journal: Path | None) -> list[Any]:
    """Add the tasks and run them."""
    for task in tasks:
        pool.add_task(task)
    return [result.unwrap() for result in pool.execute_all(journal=journal)]


@REGISTRY.row(
    "journal-threads",
    what="100,000 no-op add_task with ids, then execute_all, on threads, with a journal",
    goals={WITHOUT: 1.6},
    per="a task",
)
def journal_threads(side: str, run: Settings) -> float:
    """Return seconds a task, the last commit included."""
    count = run.count(100_000, 1_000)
    with _journal(side) as journal, _pools.threads(OURS, run.workers) as pool:
        return _pools.seconds_each(
            lambda pool, count: _run_all(pool, _numbered(count), journal), pool, list(range(count))
        )


@REGISTRY.row(
    "journal-process",
    what="10,000 tasks of 1 ms with ids by execute_all, on processes, with a journal",
    goals={WITHOUT: 1.05},
    per="a task",
)
def journal_process(side: str, run: Settings) -> float:
    """Return seconds a task, the last commit included."""
    from parallel_exec import Task

    count = run.count(10_000, 200)
    tasks = [Task(pause, 0.001, id=f"item {number}") for number in range(count)]
    with _journal(side) as journal, _pools.processes(OURS, run.workers) as pool:
        return _pools.seconds_each(lambda pool, _: _run_all(pool, tasks, journal), pool, [None] * count)


@cache
def _done(count: int, workers: int) -> Path:
    """Return a journal in which so many tasks have succeeded; it is there until this process ends."""
    _FOLDERS.append(tempfile.TemporaryDirectory())
    path = Path(_FOLDERS[-1].name, "run.db")
    with _pools.threads(OURS, workers) as pool:
        if not all(result.success for result in pool.stream(_numbered(count), journal=path)):
            raise RuntimeError("a task that does nothing has failed")
    return path


def _resumed(run: Settings) -> tuple[float, float]:
    """Return the seconds and the bytes that a fresh interpreter needs until a new task of an old journal is done."""
    path = _done(run.count(1_000_000, 10_000), run.workers)
    code = f"from benchmarks.rows.journal import resume; resume({str(path)!r}, 'another {time.time_ns()}')"
    seconds, memory = run_fresh(code)[1].split()
    return float(seconds), float(memory)


def resume(path: str, name: str) -> None:
    """Run one task more by a journal, and print the seconds until it is done and this process's peak. Called in the child."""
    from parallel_exec import Task

    with _pools.open_ours("thread", 1) as pool:
        start = time.monotonic()
        next(iter(pool.stream([Task(nothing, id=name)], journal=path))).unwrap()
        print(time.monotonic() - start, peak())


def peak() -> int:
    """Return the most bytes of memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # there, as the other one counts what was held before the interpreter was executed
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    resource = import_module("resource")
    most: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)


@REGISTRY.row(
    "journal-resume",
    what="a journal of 1,000,000 done tasks opened again: until the first new task is done",
    goals={THE_LIMIT: 5.0},
    kind="absolute",
)
def journal_resume(side: str, run: Settings) -> float:
    """Return seconds."""
    return _resumed(run)[0]


@REGISTRY.row(
    "journal-resume-memory",
    what="the same: the most memory that the process has held, the interpreter's own included",
    goals={THE_LIMIT: 250e6},
    kind="absolute",
    unit="B",
)
def journal_resume_memory(side: str, run: Settings) -> float:
    """Return bytes."""
    return _resumed(run)[1]


@REGISTRY.row(
    "journal-size",
    what="size of a journal of 100,000 small results on the disk",
    goals={THE_LIMIT: 250.0},
    kind="absolute",
    unit="B",
    per="a task",
)
def journal_size(side: str, run: Settings) -> float:
    """Return bytes a task."""
    count = run.count(100_000, 5_000)
    return _done(count, run.workers).stat().st_size / count
