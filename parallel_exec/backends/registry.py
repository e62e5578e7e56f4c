"""From what a user writes as `backend=` to a `Backend`."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

from parallel_exec.backends.base import Backend

NAMES = ("thread", "process", "inline")


def make_backend(wanted: Any) -> Backend:
    """Return the back end for a name, a back end, an executor or a dask `Client`.

    Raises:
        TypeError, ValueError: it is none of these.
    """
    if isinstance(wanted, Backend):
        return wanted
    if isinstance(wanted, str):
        return _by_name(wanted)
    if isinstance(wanted, Executor):
        from parallel_exec.backends.foreign import ExecutorBackend

        return ExecutorBackend(wanted)
    if type(wanted).__module__.partition(".")[0] == "distributed":
        from parallel_exec.backends.dask import DaskBackend

        return DaskBackend(wanted)
    raise TypeError(
        f"backend takes one of {', '.join(map(repr, NAMES))}, a Backend object, a concurrent.futures.Executor "
        f"or a dask Client, not {wanted!r}" + (": make an instance of it" if isinstance(wanted, type) else "")
    )


def _by_name(name: str) -> Backend:
    # Imported here: a thread pool must not pay for multiprocessing.
    if name == "thread":
        from parallel_exec.backends.thread import ThreadBackend

        return ThreadBackend()
    if name == "process":
        from parallel_exec.backends.process import ProcessBackend

        return ProcessBackend()
    if name == "inline":
        from parallel_exec.backends.inline import InlineBackend

        return InlineBackend()
    import difflib

    close = difflib.get_close_matches(name, NAMES, 1)
    meant = f": did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"backend takes one of {', '.join(map(repr, NAMES))}, not {name!r}{meant}")
