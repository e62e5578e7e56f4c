"""What a test must not leave behind: threads, processes, descriptors. Linux only, as it reads /proc."""

from __future__ import annotations

import ctypes  # noqa: F401  # now, as some loaders keep its library's file open: NumPy would load it amid a test
import gc
import os
import sys
import threading
import time
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from parallel_exec.backends.process import fork_server

resource_tracker.ensure_running()  # or the fork server would have it run, as a child of its own

GRACE = 20.0  # seconds in which what is ending may end


NOTHING: frozenset[tuple[int, str]] = frozenset()


class Census(NamedTuple):
    """Who and what is there."""

    threads: frozenset[threading.Thread]
    processes: frozenset[tuple[int, str]]
    descriptors: frozenset[tuple[int, str]]

    def newer_than(self, before: Census) -> list[str]:
        """Name what was not there before."""
        return [
            *(f"thread {thread.name}" for thread in self.threads - before.threads),
            *(f"process {pid} ({command})" for pid, command in self.processes - before.processes),
            *(f"descriptor {number} ({target})" for number, target in self.descriptors - before.descriptors),
        ]


def take(*, ours_only: bool) -> Census:
    """Count; `ours_only` what bears our name."""
    threads = threading.enumerate()
    if ours_only:
        return Census(frozenset(each for each in threads if each.name.startswith("parallel_exec")), NOTHING, NOTHING)
    return Census(frozenset(threads), frozenset(_processes()), frozenset(_descriptors()))


def wait_for_none(before: Census, *, ours_only: bool) -> list[str]:
    """Return what is left over after the grace, [] as soon as there is nothing."""
    until = time.monotonic() + GRACE
    while left := take(ours_only=ours_only).newer_than(before):
        if time.monotonic() > until:
            return left
        gc.collect()  # an executor may be waiting to be collected
        time.sleep(0.01)
    return []


def _service(module: str, name: str, attribute: str) -> Any:
    """Return an attribute of one of multiprocessing's services, which are started once and stay; None if it is not there."""
    return getattr(getattr(sys.modules.get(module), name, None), attribute, None)


_TRACKERS = ("multiprocessing.resource_tracker", "loky.backend.resource_tracker")


def _processes() -> list[tuple[int, str]]:
    services = {_service(module, "_resource_tracker", "_pid") for module in _TRACKERS}
    services.add(_service("multiprocessing.forkserver", "_forkserver", "_forkserver_pid"))
    services.add(None if fork_server.servers.current is None else fork_server.servers.current.pid)
    fork_server.reap()  # as the next start would: one that took long to end is a zombie
    # Not from /proc/.../children, which misses some of them while others end.
    found = [child.pid for child in psutil.Process().children(recursive=True)]
    return [(pid, _command(pid)) for pid in found if pid not in services]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "ended"


def _descriptors() -> list[tuple[int, str]]:
    services = {_service(module, "_resource_tracker", "_fd") for module in _TRACKERS}
    services.add(_service("multiprocessing.forkserver", "_forkserver", "_forkserver_alive_fd"))
    services.add(None if fork_server.servers.current is None else fork_server.servers.current.requests.fileno())
    found = []
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # the one that listed them
        if number not in services:
            found.append((number, target))
    return found
