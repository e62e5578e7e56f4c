"""Whether the kernel has killed a process because memory ran out, as far as its counters tell.

A process that is killed for that is killed like any other, by SIGKILL; but the kernel counts such kills first: for the group
of processes (cgroup) that the victim is in, by `memory.events` (cgroup v2) or `memory.oom_control` (v1), and for the machine by
`/proc/vmstat`. Workers are in this process's group, unless they leave it.
"""

from __future__ import annotations

from parallel_exec._sync.clock import time
from parallel_exec._sync.timers import NEVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator

_GROUPS = "/sys/fs/cgroup"
_MACHINE = "/proc/vmstat"
_SOON = 2.0  # seconds in which the deaths of workers that were killed together are heard of; a guess


class OomKills:
    """The count, from now on."""

    def __init__(self) -> None:
        self._file, self._count = _find()
        self._seen_at = NEVER  # when it was last found to have grown
        self._unexplained = 0  # such kills, of those seen then, that no death was explained by yet

    def explain(self) -> bool | None:
        """Return whether a death that was just heard of is such a kill; None if that cannot be known.

        Each kill explains one death, soon after it was counted: several workers may be killed at a time.
        """
        before, self._count = self._count, _read(self._file)
        if before is None or self._count is None:
            return None
        now = time.monotonic()
        if now - self._seen_at > _SOON:
            self._unexplained = 0
        if self._count > before:
            self._unexplained += self._count - before
            self._seen_at = now
        if not self._unexplained:
            return False
        self._unexplained -= 1
        return True


def _find() -> tuple[str, int | None]:
    """Return the file that says most, and the count in it; None if there is no such file."""
    for file in (*_files_of_group(), _MACHINE):
        count = _read(file)
        if count is not None:
            return file, count
    return "", None


def _files_of_group() -> Iterator[str]:
    """Yield the files that this process's group may have; in a container the group may be the root of what is mounted."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            yield from (f"{root}{path.rstrip('/')}/memory.events" for root in (_GROUPS, f"{_GROUPS}/unified"))
        elif "memory" in controllers.split(","):
            yield from (f"{_GROUPS}/memory{place}/memory.oom_control" for place in (path.rstrip("/"), ""))


def _read(file: str) -> int | None:
    """Return the count in a file; None if there is none."""
    try:
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    except (OSError, ValueError):
        pass
    return None
