"""What a worker does beside running calls, if it is told to: imports beforehand, threads of libraries, a look at its memory.

Imported by those workers alone that need it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable

_EVERY = 0.001  # seconds: memory is looked at once in so many, which costs some microseconds


def preload(modules: Iterable[str]) -> None:
    """Import modules.

    Raises:
        ImportError: one cannot be imported, for whatever reason; the parent knows the words.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except BaseException as error:  # `sys.exit` among them
            raise ImportError(f"cannot preload {name!r}: {type(error).__name__}: {error}", name=name) from error


def settle_loaded(threads: int) -> None:
    """Set right what came along with modules that this process, or the one that has forked it, has loaded by now.

    NumPy's own random generator would be in the same state in each worker. (Python sees to `random` itself.) And libraries that
    are loaded have read already how many threads to start: threadpoolctl, where it is installed, tells them; 0: it need not.
    """
    random: Any = sys.modules.get("numpy.random")
    if random is not None:
        with contextlib.suppress(
            AttributeError, TypeError
        ):  # it is being imported; the user has put in another generator
            random.seed()
    if threads:
        with contextlib.suppress(
            Exception
        ):  # it is not installed, or cannot cope with a library: then that is as it was
            threadpoolctl: Any = importlib.import_module("threadpoolctl")
            threadpoolctl.threadpool_limits(threads)


class MemoryWatch:
    """Looks now and then how much memory this process has of its own: what is shared with it a replacement would have, too.

    Args:
        most: bytes of resident memory that it should have.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._next = 0.0
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._file = -1
        with contextlib.suppress(OSError):  # not Linux
            self._file = os.open("/proc/self/statm", os.O_RDONLY)

    def exceeded(self, now: float) -> int:
        """Return how many bytes it has if that is too many; else 0, and mostly without a look."""
        if now < self._next:
            return 0
        self._next = now + _EVERY
        resident = self._resident()
        if resident > self._most:
            resident -= _shared_bytes()  # which takes five times as long, and so comes second
        return resident if resident > self._most else 0

    def _resident(self) -> int:
        if self._file >= 0:
            return int(os.pread(self._file, 128, 0).split()[1]) * self._page
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _shared_bytes() -> int:
    """Return how many resident bytes are in shared memory; 0 where that is not known."""
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"RssShmem:"):
                return int(line.split()[1]) * 1024
    return 0
