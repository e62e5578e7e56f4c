"""Whether the kernel has killed a process because memory ran out, as far as its counters tell.

A process that is killed for that is killed like any other, by SIGKILL; but the kernel counts such kills first: for the group
of processes (cgroup) that the victim is in, by `memory.events` (cgroup v2) or `memory.oom_control` (v1), and for the machine by
`/proc/vmstat`. Workers are in this process's group, unless they leave it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator

_GROUPS = "/sys/fs/cgroup"
_MACHINE = "/proc/vmstat"


class OomKills:
    """The count, from now on."""

    def __init__(self) -> None:
        self._file, self._count = _find()

    def has_grown(self) -> bool | None:
        """Return whether there has been such a kill since it was asked last; None if that cannot be known."""
        before, self._count = self._count, _read(self._file)
        return None if before is None or self._count is None else self._count > before


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
        with open(file, encoding="ascii") as lines:
            for line in lines:
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    except (OSError, ValueError):
        pass
    return None
