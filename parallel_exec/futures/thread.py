"""`ThreadPoolExecutor`, with the standard library's constructor and errors."""

from __future__ import annotations

import concurrent.futures.thread
import itertools
import math
from concurrent.futures.thread import BrokenThreadPool

from parallel_exec.backends.thread import ThreadBackend
from parallel_exec.futures.pool import Pool, check_initializer, check_max_workers, cpu_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable

__all__ = ["BrokenThreadPool", "ThreadPoolExecutor"]

_numbers = itertools.count()


class ThreadPoolExecutor(Pool, concurrent.futures.ThreadPoolExecutor):  # type: ignore[override]  # `_max_workers` is a property
    """Runs calls in threads: the standard library's `ThreadPoolExecutor`, and all that a `ParallelExecutor` has.

    Args:
        max_workers: most threads; default: as many as there are CPUs and four more, at most 32.
        thread_name_prefix: names the threads.
        initializer: called with `initargs` in each thread before its first call. If it raises, the pool is broken: what
            waits, and what is submitted then, raises `BrokenThreadPool`.
        initargs: its arguments.

    Raises:
        TypeError, ValueError: as the standard library's does.
    """

    _takes_chunks = False

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        if max_workers is None:
            max_workers = min(32, cpu_count() + 4)
        check_max_workers(max_workers)
        check_initializer(initializer)
        name = thread_name_prefix or f"ThreadPoolExecutor-{next(_numbers)}"
        # The standard library takes a float, such as half the CPUs, and starts threads while there are fewer.
        Pool.__init__(self, math.ceil(max_workers), ThreadBackend(initializer, tuple(initargs), name))
