"""`current_worker()`: what a task may know of the worker that runs it, and keep there."""

from __future__ import annotations

import os

from parallel_exec._current import current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class CurrentWorker:
    """What a task may know of the worker that runs it; made by `current_worker()`.

    Attributes:
        index: 0 for the first, and so on: no two workers of an executor have the same at the same time, and one that takes
            another's place takes over its index. It is less than `max_concurrency`, unless that was lowered meanwhile.
        name: the worker's name.
        pid: its process.
        state: a dict of the worker's own, for what `initializer` opens, tasks use and `finalizer` closes.
    """

    __slots__ = ("index", "name", "pid", "state")

    def __init__(self, index: int, name: str, pid: int, state: dict[str, Any]) -> None:
        self.index = index
        self.name = name
        self.pid = pid
        self.state = state

    def __repr__(self) -> str:
        return f"CurrentWorker({self.index}, {self.name!r}, pid={self.pid})"


def current_worker() -> CurrentWorker:
    """Return a view of the worker that the calling thread is: in a task, an `initializer` or a `finalizer`.

    Never blocks; cheap. Works in every back end. In somebody else's executor, and on a dask cluster, `index` is the place among
    those that run at the same time, and `state` belongs to the thread; another attempt in that may have another index.

    Raises:
        RuntimeError: the calling thread is no worker.
    """
    serving = current.worker
    if serving is None:
        raise RuntimeError(
            "current_worker() is for code that runs in a worker of a ParallelExecutor: a task, an initializer or a finalizer, "
            "in its own thread"
        )
    index, name, state = serving
    return CurrentWorker(index, name, os.getpid(), state)
