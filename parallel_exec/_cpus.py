"""How many CPUs this process may really use."""

from __future__ import annotations

import math
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator

CGROUPS = "/sys/fs/cgroup"
OWN_CGROUPS = "/proc/self/cgroup"
MORE_THREADS = 4  # threads beyond the CPUs, as the standard library has: some wait for something else
MOST_THREADS = 32  # as it has, too


def usable_cpus() -> int:
    """Return how many CPUs this process may use: those it may run on, and no more than its cgroups pay for.

    A quota of two and a half CPUs counts as three. At least 1. What the user says by `PYTHON_CPU_COUNT` or `-X cpu_count` goes
    before all of that, on every Python. Costs some system calls.
    """
    said = _said()
    if said is not None:
        return said
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cpus = os.cpu_count() or 1
    return max(1, min([cpus, *map(math.ceil, _quotas())]))


def usable_threads() -> int:
    """Return how many threads suit these CPUs: a few more than there are, as some wait for something else."""
    return min(usable_cpus() + MORE_THREADS, MOST_THREADS)


def _said() -> int | None:
    """Return how many CPUs the user says there are; None if nothing is said, or that what there is counts."""
    said = sys._xoptions.get("cpu_count")
    if said is None and not sys.flags.ignore_environment:
        said = os.environ.get("PYTHON_CPU_COUNT")
    try:
        return max(1, int(said)) if isinstance(said, str) else None
    except ValueError:  # "default"
        return None


def _quotas() -> Iterator[float]:
    """Yield the limits, in CPUs, of this process's cgroups and of those around them, of both versions of cgroups."""
    try:
        with open(OWN_CGROUPS, "rb") as file:
            lines = os.fsdecode(file.read()).splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = os.path.join(CGROUPS, controllers)
        group = group.strip("/")  # which a container may not see: then only its own root is there
        while True:
            quota = _quota(os.path.join(mounted, group))
            if quota is not None:
                yield quota
            if not group:
                break
            group = group.rpartition("/")[0]


def _quota(folder: str) -> float | None:
    """Return the limit of one cgroup in CPUs; None if it has none."""
    try:
        try:
            quota, period = _read(folder, "cpu.max").split()
        except FileNotFoundError:
            quota, period = _read(folder, "cpu.cfs_quota_us"), _read(folder, "cpu.cfs_period_us")
        cpus = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such group; "max"
        return None
    return cpus if cpus > 0 else None  # version 1 writes -1 for no limit


def _read(folder: str, name: str) -> bytes:
    with open(os.path.join(folder, name), "rb") as file:
        return file.read()
