"""What a worker process is told at its start, and how that travels.

by `multiprocessing`     Start, pickled with the process ──► `_arrive`
by the fork server       dumps ──► a pipe, and descriptors with the request ──► loads
by a fork                Start, as it is
"""

from __future__ import annotations

import io
import os
import pickle

from parallel_exec.backends._descriptors import Descriptor
from parallel_exec.backends._platform import lead_group
from parallel_exec.backends.process.inherited import Inherited  # noqa: TC001  # here, so that the fork server has it

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, NamedTuple, Sequence
else:
    from parallel_exec._typing import NamedTuple


class Started(NamedTuple):
    """What a process is told of where it comes from, by the one that has it started.

    Attributes:
        name: its own.
        identity: the parent's, and the worker's number among all that the parent has started, `multiprocessing`'s own included.
        parent_name, parent_pid: who has it started; not who has forked it.
        authkey: the parent's.
        path, argv, folder, orig_folder: of the parent: `sys.path`, `sys.argv`, the current folder (None: it is gone), and the
            one in which it was started, if that is known.
    """

    name: str
    identity: tuple[int, ...]
    parent_name: str
    parent_pid: int
    authkey: bytes
    path: list[str]
    argv: list[str]
    folder: str | None
    orig_folder: str | None


class WorkerSettings(NamedTuple):
    """What a worker has of its pool's settings, beside those that its start needs.

    Attributes:
        seed: the executor's.
        number, name: the worker's own; `current_worker()` shows the first as its index.
        environment: what to set, before anything of the user's is imported.
        threads: how many threads libraries may have that read no environment any more; 0: as many as they like.
        preload: modules to import before the first task.
        max_memory: bytes of resident memory beyond which it is to be replaced; None: never.
    """

    seed: int = 0
    number: int = 0
    name: str = ""
    environment: dict[str, str] = {}  # noqa: RUF012  # read only
    threads: int = 0
    preload: tuple[str, ...] = ()
    max_memory: int | None = None


class WorkerConfig(NamedTuple):
    """What a worker is told at its start: filled in by `WorkerHandle.config`, the last by `spawn.start`.

    Attributes:
        tasks, results, lifeline, journal: `Descriptor`s.
        channel: the `Descriptor` of a Unix socket for descriptors.
        permits: a `multiprocessing` semaphore; None: the worker has it already.
        initializer: pickled `(initializer, initargs, finalizer)`; b"" for none.
        initargs: those in place of the pickled ones, if they could not be pickled beforehand, or None; when the fork server
            is told, pickled.
        main: what `multiprocessing` needs to import the parent's main module, when a task asks for it.
        memory_limit: bytes, or None.
        log_levels: the parent's loggers' levels, by name.
        others: the `Descriptor`s that go with the initializer.
        inherited: what the parent has at the moment of the start, as the next.
        output: `Descriptor`s of its standard output and error, if they may be others here.
        started: what `multiprocessing` tells its own processes; None: it has done so.
        settings: the pool's.
        captured: the `Descriptor` of what becomes its standard output and error; None: it keeps those that it has.
        marker: what markers begin with there.
    """

    tasks: Any
    results: Any
    lifeline: Any
    journal: Any
    channel: Any
    permits: Any
    initializer: bytes
    initargs: tuple[Any, ...] | bytes | None
    main: dict[str, Any]
    memory_limit: int | None
    log_levels: dict[str, int]
    others: tuple[Any, ...] = ()
    inherited: Inherited | None = None
    output: tuple[Any, ...] = ()
    started: Started | None = None
    settings: WorkerSettings = WorkerSettings()
    captured: Any = None
    marker: bytes = b""


class Start:
    """What `multiprocessing` gives to `main`: the configuration. It brings along what is to happen as soon as it arrives.

    Attributes:
        is_copy: whether the process was forked, with the parent's objects, and nothing was pickled.
    """

    def __init__(self, config: WorkerConfig, *, is_copy: bool = True) -> None:
        self.config = config
        self.is_copy = is_copy

    def __reduce__(self) -> Any:
        permits = self.config.permits
        return _arrive, (type(permits), permits.__getstate__(), self.config._replace(permits=None))


def _arrive(kind: Any, state: Any, config: WorkerConfig) -> Start:
    """Be in the new process. From here on Ctrl-C at a terminal passes by, and `multiprocessing` need not print it."""
    lead_group()
    permits: Any = kind.__new__(kind)
    try:
        permits.__setstate__(state)
    except FileNotFoundError:  # the parent is ending, and has let go of it
        os._exit(1)
    return Start(config._replace(permits=permits), is_copy=False)


# ── by the fork server ──────────────────────────────────────────────────────────────────────────────────────────────


def dumps(config: WorkerConfig, fds: list[int]) -> bytes:
    """Return the configuration, pickled; adds the descriptors that must go along."""
    if config.initargs is not None:
        config = config._replace(initargs=_dumps_inherited(config.initargs, fds))
    buffer = io.BytesIO()
    _Pickler(buffer, fds).dump(config)
    return buffer.getvalue()


def loads(data: bytes, fds: Sequence[int]) -> WorkerConfig:
    """Return the configuration; `fds` came along.

    Raises:
        EOFError: it is not complete.
    """
    config: WorkerConfig = _Unpickler(data, fds).load()
    InheritedFd.fds = fds
    return config


def _dumps_inherited(value: Any, fds: list[int]) -> bytes:
    """Pickle what only travels to a process while it is started, such as locks of `multiprocessing`."""
    from multiprocessing import reduction
    from multiprocessing.context import set_spawning_popen

    popen: Any = _Spawning(fds)
    set_spawning_popen(popen)
    try:
        return bytes(reduction.ForkingPickler.dumps(value))
    finally:
        set_spawning_popen(None)


class _Pickler(pickle.Pickler):
    """Replaces descriptors by their places in `fds`."""

    def __init__(self, file: io.BytesIO, fds: list[int]) -> None:
        super().__init__(file, 5)
        self._fds = fds

    def persistent_id(self, obj: Any) -> int | None:
        """Return the place of a descriptor; None for anything else."""
        if type(obj) is not Descriptor:
            return None
        self._fds.append(obj.fd)
        return len(self._fds) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, fds: Sequence[int]) -> None:
        super().__init__(io.BytesIO(data))
        self._fds = fds

    def persistent_load(self, pid: Any) -> Descriptor:
        """Return the descriptor that came in this place."""
        return Descriptor(self._fds[pid])


class _Spawning:
    """What `multiprocessing` finds while something is pickled for a process that is being started: it asks for descriptors."""

    def __init__(self, fds: list[int]) -> None:
        self._fds = fds

    def duplicate_for_child(self, fd: int) -> int:
        """Have a descriptor go along; returns its place."""
        self._fds.append(fd)
        return len(self._fds) - 1

    def DupFd(self, place: int) -> InheritedFd:  # noqa: N802  # its name there
        """Return what is pickled in its place."""
        return InheritedFd(place)


class InheritedFd:
    """What `multiprocessing` pickles in place of a descriptor that goes to a process with its start."""

    fds: ClassVar[Sequence[int]] = ()  # those that came with this process's start

    def __init__(self, place: int) -> None:
        self.place = place

    def detach(self) -> int:
        """Return the descriptor."""
        return self.fds[self.place]
