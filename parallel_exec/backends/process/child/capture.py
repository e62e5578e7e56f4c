"""What a worker writes to its standard output and error goes to its parent: `output.py` says how that tells attempts apart.

Imported only where a pool captures output.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys

from parallel_exec.backends.process.output import SERIAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

_LINE_BUFFERED = 1  # `_IOLBF`, of Linux and macOS
_STDOUT = ("stdout", "__stdoutp")  # what C's standard output is called there


class Capture:
    """Standard output and error, as one pipe; the main thread's.

    Python's streams and C's are flushed with each line, so that what a task has printed is not lost with the worker.
    """

    def __init__(self, fd: int, token: bytes) -> None:
        self._fd = fd
        self._token = token
        os.set_inheritable(fd, False)
        for number in (1, 2):
            os.dup2(fd, number)
        sys.stdout, sys.stderr = self._streams = _stream(sys.stdout, 1), _stream(sys.stderr, 2)
        self._flush_c = _flush_of_c()

    def mark(self, serial: int) -> None:
        """Have what was written so far be that of a call which has ended; of none, if it is HEARD or UNHEARD."""
        for stream in (sys.stdout, sys.stderr, *self._streams):
            with contextlib.suppress(Exception):  # what a task has put there, or has closed
                stream.flush()
        self._flush_c()
        marker = self._token + SERIAL.pack(serial)
        with contextlib.suppress(OSError):  # a task has closed all that it found; or the parent is gone
            try:
                os.write(self._fd, marker)
            except BlockingIOError:  # a subprocess has left it like that, and it is full
                os.set_blocking(self._fd, True)
                os.write(self._fd, marker)


def _stream(current: Any, fd: int) -> Any:
    """Return a stream that writes to a descriptor: the one that there is, if it does."""
    with contextlib.suppress(Exception):  # it is closed, or somebody's own
        if type(current) is io.TextIOWrapper and current.fileno() == fd:
            current.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
            return current
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _flush_of_c() -> Callable[[], object]:
    """Return what flushes C's standard output, which is flushed with each line from now on."""
    c = ctypes.CDLL(None)
    for name in _STDOUT:
        with contextlib.suppress(ValueError):  # another name
            stdout = ctypes.c_void_p.in_dll(c, name)
            c.fflush(stdout)
            c.setvbuf(stdout, None, _LINE_BUFFERED, ctypes.c_size_t(0))
            return lambda: c.fflush(stdout)
    return lambda: c.fflush(None)
