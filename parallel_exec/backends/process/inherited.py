"""What a process inherits from the one that starts it, and workers must have from this one, whoever forks them.

    here, at each start: Inherited.now() ──► pickled with the worker's configuration ──► apply(), first of all in the worker

The fork server's children would be as this process was when the server was started. And on Linux some of this is each
thread's own, such as niceness and processors: what a thread of ours forks or spawns would have what this process had when
the thread was started. So all of it travels with each start, by every method.

Guarantees:
    A worker has the environment, umask, niceness, processors, resource limits and ignored signals that the main thread of
    this process has when it is started. (The current folder and `sys.path` travel by `multiprocessing`.)
    What a worker may not set is left as it is; `is_beyond` says of a fork server whether that would be so. It costs 0.2 ms.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable, Iterator, NamedTuple
else:
    from parallel_exec._typing import NamedTuple

_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
# Not those that Python and we decide about in each process.
_SIGNALS = sorted(
    signal.valid_signals()
    - {signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU, signal.SIGKILL, signal.SIGSTOP}
    - {getattr(signal, "SIGXFSZ", signal.SIGPIPE)}
)
_READ_AT_START = ("PYTHON", "LD_", "MALLOC_", "GLIBC_TUNABLES")  # by the interpreter and the C library, and not again
_IDENTITY = (b"Uid:", b"Gid:", b"Groups:")


class Inherited(NamedTuple):
    """What is inherited.

    Attributes:
        environment: `os.environ`.
        umask: which permissions new files do not get; None where that cannot be asked without changing it.
        niceness: as `os.nice` tells.
        processors: those it may run on; None where there is no such choice.
        limits: soft and hard, by the number of the resource.
        ignored: the signals that are ignored.
        identity: users and groups, as the system words them.
    """

    environment: dict[str, str]
    umask: int | None
    niceness: int
    processors: set[int] | None
    limits: dict[int, tuple[int, int]]
    ignored: list[int]
    identity: list[bytes]

    @classmethod
    def now(cls) -> Inherited:
        """Return what this process has."""
        me = os.getpid()  # and not 0, which is the calling thread
        status = _status(me)
        return cls(
            dict(os.environ),
            next((int(line.split()[1], 8) for line in status if line.startswith(b"Umask:")), None),
            os.getpriority(os.PRIO_PROCESS, me),
            os.sched_getaffinity(me) if hasattr(os, "sched_getaffinity") else None,
            {kind: resource.getrlimit(kind) for kind in _LIMITS},
            [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_IGN],
            _identity(status),
        )

    def apply(self) -> None:
        """Set it in this process, as far as that is allowed. In the main thread."""
        mine = os.environ
        for name in [name for name in mine if name not in self.environment]:
            del mine[name]
        for name, value in self.environment.items():
            if mine.get(name) != value:
                mine[name] = value
        if self.umask is not None:
            os.umask(self.umask)
        with contextlib.suppress(OSError):
            if os.getpriority(os.PRIO_PROCESS, 0) != self.niceness:
                os.setpriority(os.PRIO_PROCESS, 0, self.niceness)
        with contextlib.suppress(OSError):
            if self.processors is not None and os.sched_getaffinity(0) != self.processors:
                os.sched_setaffinity(0, self.processors)
        for kind, limits in self.limits.items():
            _set_limits(kind, limits)
        for number in _SIGNALS:
            is_ignored = signal.getsignal(number) is signal.SIG_IGN
            if is_ignored != (number in self.ignored):
                signal.signal(number, signal.SIG_DFL if is_ignored else signal.SIG_IGN)

    def fixed(self) -> tuple[object, ...]:
        """Return what a process cannot set later, and has from whoever starts it."""
        hard = {kind: limits[1] for kind, limits in self.limits.items()}
        return self.identity, self.niceness, hard, _read_at_start(self.environment.items())

    def is_beyond(self, server: int) -> bool:
        """Return whether the children of process `server` could not set all of this, or would be another user's."""
        if _identity(_status(server)) != self.identity:
            return True
        try:
            return (
                os.getpriority(os.PRIO_PROCESS, server) > self.niceness
                or any(_is_more(hard, _limits_of(server, kind)[1]) for kind, (_, hard) in self.limits.items())
                or _read_at_start(_environment_of(server)) != _read_at_start(self.environment.items())
            )
        except OSError:  # it has ended, or the system does not tell
            return False


def _set_limits(kind: int, limits: tuple[int, int]) -> None:
    mine = resource.getrlimit(kind)
    if mine == limits:
        return
    soft, hard = [mine[1] if _is_more(limit, mine[1]) else limit for limit in limits]
    for wanted in (limits, (soft, hard)):  # the second, if it may not raise its hard limit
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, wanted)
            return


def _is_more(limit: int, than: int) -> bool:
    return than != resource.RLIM_INFINITY and (limit == resource.RLIM_INFINITY or limit > than)


def _limits_of(pid: int, kind: int) -> tuple[int, int]:
    return resource.prlimit(pid, kind) if hasattr(resource, "prlimit") else resource.getrlimit(kind)


def _identity(status: list[bytes]) -> list[bytes]:
    return [line for line in status if line.startswith(_IDENTITY)]


def _status(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return file.readlines()
    except FileNotFoundError:
        return []


def _environment_of(pid: int) -> Iterator[tuple[str, str]]:
    with open(f"/proc/{pid}/environ", "rb") as file:
        for entry in os.fsdecode(file.read()).split("\0"):
            name, equals, value = entry.partition("=")
            if equals:
                yield name, value


def is_read_at_start(name: str) -> bool:
    """Return whether a variable is read as a process starts, and not again."""
    return name.startswith(_READ_AT_START)


def _read_at_start(environment: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name: value for name, value in environment if is_read_at_start(name)}
