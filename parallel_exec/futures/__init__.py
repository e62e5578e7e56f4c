"""The standard library's `concurrent.futures`, on our pools: change the import, and nothing else.

    from parallel_exec.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed

The two executors have the constructors, the numbers of workers and the errors of those that they stand in for, no time
limit and no retries; they are instances of them, too. All else here *is* the standard library's, handed on.

What differs: a worker process that dies costs the one task it was running, whose error (`WorkerCrashedError`) is a
`BrokenProcessPool`, and the pool goes on. `options(priority=..., timeout=...)`, `stats()`, the futures' `abort()`, and all
that a `ParallelExecutor` has, are there. Processes are never forked from this one unless `mp_context` says so.

The executors are loaded when they are first used: who wants threads does not pay for `multiprocessing`.
"""

from __future__ import annotations

import concurrent.futures
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    InvalidStateError,
    TimeoutError,  # noqa: A004  # another than the builtin one before 3.11
    as_completed,
    wait,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from parallel_exec.futures.process import ProcessPoolExecutor
    from parallel_exec.futures.thread import ThreadPoolExecutor

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "BrokenExecutor",
    "CancelledError",
    "Executor",
    "Future",
    "InvalidStateError",
    "ProcessPoolExecutor",
    "ThreadPoolExecutor",
    "TimeoutError",
    "as_completed",
    "wait",
]

_HOMES = {"ProcessPoolExecutor": "process", "ThreadPoolExecutor": "thread"}


def __getattr__(name: str) -> object:
    """Load an executor when it is first used (PEP 562)."""
    home = _HOMES.get(name)
    if name == "InterpreterPoolExecutor":  # of the standard library, since 3.14; it may not be there
        return getattr(concurrent.futures, name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
