"""From what a user writes as `backend=`, checked by `ParallelConfig`, to a `Backend`."""

from __future__ import annotations

from concurrent.futures import Executor

from parallel_exec.backends.base import Backend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def make_backend(wanted: Any) -> Backend:
    """Return the back end for a name, a back end, an executor or a dask `Client`; what the name needs is imported now."""
    if isinstance(wanted, Backend):
        return wanted
    if isinstance(wanted, str):
        return _by_name(wanted)
    if isinstance(wanted, Executor):
        from parallel_exec.backends.engine.executor import ExecutorBackend

        return ExecutorBackend(wanted)
    from parallel_exec.backends.engine.dask import DaskBackend

    return DaskBackend(wanted)


def _by_name(name: str) -> Backend:
    # Imported here: a thread pool must not pay for multiprocessing.
    if name == "process":
        from parallel_exec.backends.process.backend import ProcessBackend

        return ProcessBackend()
    if name == "inline":
        from parallel_exec.backends.inline import InlineBackend

        return InlineBackend()
    from parallel_exec.backends.thread import ThreadBackend

    return ThreadBackend()
