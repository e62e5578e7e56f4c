"""How many CPUs this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """Return how many CPUs this process may use: those it may run on, and no more than its cgroups pay for.

    A quota of two and a half CPUs counts as three. At least 1.
    """
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cpus = os.cpu_count() or 1
    return max(1, min([cpus, *map(math.ceil, _quotas())]))


def _quotas() -> Iterator[float]:
    """Yield the limits, in CPUs, of this process's cgroups and of those around them, of both versions of cgroups."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounted = CGROUPS
        elif "cpu" in controllers.split(","):
            mounted = CGROUPS / controllers
        else:
            continue
        inner = Path(path.lstrip("/"))  # which a container may not see: then only its own root is there
        for group in (inner, *inner.parents):
            quota = _quota(mounted / group)
            if quota is not None:
                yield quota


def _quota(group: Path) -> float | None:
    """Return the limit of one cgroup in CPUs; None if it has none."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        cpus = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such group; "max"
        return None
    return cpus if cpus > 0 else None  # version 1 writes -1 for no limit
