"""What an attempt in a worker has used: seconds of CPU, and memory.

    rest (nothing to do) ──► begin (a batch has come) ──► read (a task has ended) ──► read ...

The clock of a process costs as much as a tenth of a tiny task, so only what took a millisecond is measured, at its end; where
the CPU stood before it is known from the last measurement. What tiny tasks have used in between is taken to be the time
they took.

The most memory that was resident is the kernel's own note (`getrusage`), which only ever grows. It is set back after an
attempt that has raised it, where the kernel allows that (Linux); else an attempt that did not raise it says nothing.
"""

from __future__ import annotations

import contextlib
import math
import sys

from parallel_exec._sync.clock import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

with contextlib.suppress(ImportError):  # no POSIX
    import resource

LONG = 0.001  # seconds from which on an attempt is measured
UNKNOWN = -1.0  # stands for memory that is not known

_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of what `ru_maxrss` counts
_RISE = 1 << 20  # bytes by which an attempt must have raised the note for that to be set back


class UsageMeter:
    """Measures; the worker's main thread's."""

    def __init__(self) -> None:
        self._cpu = 0.0  # seconds of CPU that the process had used
        self._since = -math.inf  # when that was (monotonic): from then on what takes time is taken to use CPU
        self._resting_since = 0.0
        self._low = 0  # bytes: what the kernel's note has not been less than since it was set back
        self._can_reset: bool | None = None  # whether the note can be set back; None: that was not tried
        # Whether the note is about this program, and not the one that the process ran before; None: nobody has looked.
        self._has_own: bool | None = None
        self.rest()

    def rest(self) -> None:
        """Note that there is nothing to do; and where the CPU stands, unless that was noted just now."""
        self._resting_since = now = time.monotonic()
        if now - self._since >= LONG:
            self._cpu, self._low = _usage()
            self._since = now

    def begin(self) -> None:
        """Note that there is something to do: the rest took time, and no CPU."""
        self._since += time.monotonic() - self._resting_since

    def restart(self, now: float) -> None:
        """Forget what was used until now: it was for loading a call."""
        self._cpu, _ = _usage()
        self._since = now

    def read(self, start: float, end: float) -> tuple[float, float]:
        """Return what a task has used, between these times: seconds of CPU, and the most bytes that were resident."""
        cpu, peak = _usage()
        seconds = max(0.0, cpu - self._cpu - (start - self._since))
        self._cpu, self._since = cpu, end
        return seconds, self._memory(peak)

    def _memory(self, peak: int) -> float:
        if self._has_own is None:
            self._has_own = _is_own(peak)
        if not self._has_own:
            return UNKNOWN
        before, self._low = self._low, peak
        if peak > before + _RISE and self._can_reset is not False:
            self._can_reset = _reset_peak()
            _, self._low = _usage()
        return UNKNOWN if self._can_reset is False and peak <= before else float(peak)


def _usage() -> tuple[float, int]:
    """Return the seconds of CPU that this process has used, and the most bytes that were resident."""
    usage: Any = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _UNIT


def _is_own(peak: int) -> bool:
    """Return whether the kernel's note is about this program alone; where that cannot be known, it is taken to be."""
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError), open("/proc/self/status", "rb") as file:
        line = next(line for line in file if line.startswith(b"VmHWM"))
        return int(line.split()[1]) * 1024 + _RISE > peak
    return True


def _reset_peak() -> bool:
    """Set back the kernel's note; returns whether that went."""
    try:
        with open("/proc/self/clear_refs", "wb", buffering=0) as file:
            file.write(b"5")
    except OSError:  # another system, or a sandbox
        return False
    return True
