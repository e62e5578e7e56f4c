"""What the two drop-in executors share: the standard library's defaults and checks."""

from __future__ import annotations

import os
from concurrent.futures import Executor

from parallel_exec.executor import ParallelExecutor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator, TypeVar

    from typing_extensions import Never

    from parallel_exec.backends.base import Backend

    T = TypeVar("T")


def cpu_count() -> int:
    """Return how many CPUs this Python's own executors would count: since 3.13 those that the process may use."""
    count: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)
    return count() or 1


def check_max_workers(max_workers: float) -> None:
    """Refuse a number of workers as the standard library does.

    Raises:
        ValueError: it is not positive.
        TypeError: it is no number.
    """
    if max_workers <= 0:
        raise ValueError("max_workers must be greater than 0")


def check_initializer(initializer: object) -> None:
    """Refuse what cannot be called, as the standard library does.

    Raises:
        TypeError: it cannot.
    """
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")


class Pool(ParallelExecutor):
    """A `ParallelExecutor` with the standard library's settings: no time limit, and no retries.

    Attributes:
        _takes_chunks: whether `chunksize` has an effect; else any value will do, as in the standard library: 0, where a
            short input is divided.
    """

    _allows_lazy = True
    _takes_chunks = True

    def __init__(self, max_workers: int, backend: Backend) -> None:
        super().__init__(max_concurrency=max_workers, timeout=None, retry_count=0, backend=backend)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        **_misspelt: Never,
    ) -> Iterator[T]:
        """Do as `ParallelExecutor.map`; each call goes through `submit` where a subclass has one of its own."""
        if not self._takes_chunks:
            chunksize = 1
        if _misspelt or type(self).submit is Pool.submit:
            return super().map(fn, *iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize, **_misspelt)
        sizes: dict[str, Any] = {"chunksize": chunksize}
        if buffersize is not None:
            sizes["buffersize"] = buffersize
        return Executor.map(self, fn, *iterables, timeout=timeout, **sizes)
