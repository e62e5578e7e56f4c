"""The runs of a journal: when, where and how each ended, and whether the process of one that has not is still there.

A process is known by its host, the host's boot, its pid namespace, its pid, and the time when it began: a pid alone may have
gone to another process since. Where a run is seen from another host, boot or namespace, nothing can be asked about its
pid, and it counts as alive while it gives a sign of life every few seconds.

Guarantees:
    A run whose process is dead, or is a zombie, is never taken for alive: after `STALE` seconds at most, and at once in the
    same host and namespace.
    In the process that asks, a run is alive exactly between `hold` and `let_go`: also after an `exec`, which keeps the pid.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NamedTuple

from parallel_exec._sync.clock import time

STALE = 30.0  # seconds without a sign of life; a guess: six of those that a run gives

RUNNING, KILLED = "running", "killed"


class JournalRun(NamedTuple):
    """One run of a journal.

    Attributes:
        number: from 1.
        how: how it ended: "finished", "interrupted", "failed" (by an error that was no task's), "killed"; or "running".
        started_at: `time.time()` when it began.
        ended_at: the same when it ended; of one that was killed, its last sign of life; None: it is running.
        host: where.
        pid: its process.
        python: the version of Python.
        library: the version of this library.
        version: the `version` that it was given.
        succeeded: how many tasks it ran that returned.
        failed: how many tasks it ran that failed.
        resumed: how many results it had from the journal.
        unfinished: how many tasks came to no end; None: unknown, as it was killed or is running.
    """

    number: int
    how: str
    started_at: float
    ended_at: float | None
    host: str
    pid: int
    python: str
    library: str
    version: str
    succeeded: int
    failed: int
    resumed: int
    unfinished: int | None


JournalRun.__module__ = "parallel_exec.journal"  # where its users know it from


class Process(NamedTuple):
    """What a process is known by.

    Attributes:
        host: its host's name.
        place: the host's boot and the pid namespace; parts of it are empty where the system does not tell.
        pid: its number there.
        birth: when it began, in the system's own terms; "" where it does not tell.
    """

    host: str
    place: str
    pid: int
    birth: str


def this_process() -> Process:
    """Return what the calling process is known by."""
    pid = os.getpid()
    boot = _read("/proc/sys/kernel/random/boot_id").strip()
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return Process(os.uname().nodename, f"{boot} {namespace}", pid, _birth_of(pid) or "")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _birth_of(pid: int) -> str | None:
    """Return when a process began, "" of a zombie; None if the system does not tell, or there is none."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()  # the name before that may contain anything
    if len(fields) < 20:
        return None
    return "" if fields[0] in ("Z", "X") else fields[19]


_held: set[tuple[str, int]] = set()  # the runs of this process: the path of the file, and the number


def hold(path: str, number: int) -> None:
    """Note that this process has a run under way."""
    _held.add((path, number))


def let_go(path: str, number: int) -> None:
    """Note that it has not any more."""
    _held.discard((path, number))


def is_alive(path: str, number: int, process: Process, seen_at: float) -> bool:
    """Return whether a run that has not ended is still under way.

    Args:
        path: its file.
        number: its number.
        process: what was noted of its process.
        seen_at: `time.time()` of its last sign of life.
    """
    here = this_process()
    is_fresh = abs(time.time() - seen_at) < STALE  # a clock may have been set back
    if (process.host, process.place) != (here.host, here.place):
        return is_fresh
    if process.pid == here.pid:
        return (path, number) in _held
    birth = _birth_of(process.pid) if process.birth else None
    if birth is not None:
        return birth == process.birth
    return is_fresh and _is_there(process.pid)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def python_version() -> str:
    """Return this Python's version, as "3.11.4"."""
    return ".".join(map(str, sys.version_info[:3]))


def library_version() -> str:
    """Return this library's version."""
    import parallel_exec  # which has nothing but its version and names that it hands on

    return parallel_exec.__version__
