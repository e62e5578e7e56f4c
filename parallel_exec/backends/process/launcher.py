"""Launching worker processes, and giving up when they keep dying before they are ready.

    start_server ──► a thread of its own, before the first call is pickled: the fork server
    start ──► a thread of its own: spawn ──► started(handle, error) ──► the supervisor
                                                    ├── ready ──► succeeded
                                                    └── dead before that, or never made ──► failed

Guarantees:
    A start never holds up the I/O thread. After a few failures in a row, or one that took the whole start-up time while
    none ever succeeded, there is one clear error, with the first traceback a worker left; never an endless retry.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from functools import partial
from logging import WARNING
from traceback import clear_frames

from parallel_exec._dispatcher import say
from parallel_exec._sync.threads import arrive, is_coming_up, launch
from parallel_exec.backends._descriptors import fill_standard
from parallel_exec.backends.process import log_relay, semaphore, spawn, start_method
from parallel_exec.backends.process.environment import THREADS, thread_variables, threads_of
from parallel_exec.backends.process.fork_server import PLAIN, Kind, servers
from parallel_exec.backends.process.inherited import is_read_at_start
from parallel_exec.backends.process.payload import Initializer, why_not_importable
from parallel_exec.backends.process.worker_handle import WorkerHandle
from parallel_exec.errors import WorkerStartError, how_ended, start_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Literal, NamedTuple

    from parallel_exec._stacks import Stacks
    from parallel_exec.backends.process.child.start import WorkerSettings
else:
    from parallel_exec._typing import NamedTuple

# Seconds that the first call waits for the fork server to be started; a guess. It is not needed yet, and a finalizer may have
# made that call, in a thread which the start waits for.
_SERVER_LIMIT = 1.0
_PRELOADING = "ImportError: cannot preload "  # what a worker says of that, as `child/housekeeping.py` words it
_MOST_FAILURES = 3  # failures in a row; the first may have been bad luck, such as the OOM killer's


class WorkerCare(NamedTuple):
    """What workers do for themselves, by the user's settings.

    Attributes:
        environment: variables that they have beside this process's.
        threads: threads that each library may have; "auto": the CPUs, divided by the workers; None: as many as it likes.
        preload: modules that they import before the first task.
        max_memory: bytes of resident memory after which one is replaced; None: never.
    """

    environment: dict[str, str] = {}  # noqa: RUF012  # read only
    threads: int | Literal["auto"] | None = None
    preload: tuple[str, ...] = ()
    max_memory: int | None = None


class Launcher:
    """Launches the workers of one pool; all but the starting threads is the I/O thread's.

    Attributes:
        startup_timeout: seconds that a worker has to become ready, and its call to be loaded; None: no limit.
        watches_memory: whether a worker may say that it has too much.
        finalizes: whether a worker closes what its initializer has opened.
        wants_server: whether `start_server` is still to be called; reset by any thread that prepares a call.
    """

    def __init__(
        self,
        context: Any,
        initializer: Initializer | None,
        memory_limit: int | None,
        startup_timeout: float | None,
        *,
        captures: bool = False,
        care: WorkerCare | None = None,
    ) -> None:
        self.startup_timeout = startup_timeout
        self.wants_server = context is None
        self._context = context
        self._initializer = initializer  # until the pool ends
        self._memory_limit = memory_limit
        self._captures = captures
        self._care = care or WorkerCare()
        self.watches_memory = self._care.max_memory is not None
        self.finalizes = initializer is not None and initializer.finalizes
        self._seed = 0
        self._workers = 1
        self._threads: int | None = None  # what `threads_of` has said for so many; None: it was not asked
        self._kind = PLAIN
        self._uses_kind = False  # whether this pool is counted among those that do; guarded by the lock of `spawn`
        # Now, as the main module has no `__file__` any more once its end is reached, when what is pending is still to be done.
        # Of one that cannot be imported everything travels by value: no worker may import it, though its name is seen.
        self._main = {} if start_method.forks(context) or why_not_importable() else start_method.main_module()
        self._names = itertools.count(1)
        self._failures = 0
        self._ever_succeeded = False
        self._first: tuple[str, BaseException | None] = ("", None)

    def open(self, seed: int, workers: int) -> None:
        """Launch those of a pool whose executor has this seed, and so many workers."""
        self._seed = seed
        self.resize(workers)
        if self._care.preload or any(map(is_read_at_start, self._care.environment)):
            environment = self._environment()[0]
            self._kind = Kind(self._care.preload, tuple(sorted(environment.items())))
            self.wants_server = False  # with the first worker: who has started none need not leave it

    def resize(self, workers: int) -> None:
        """Launch those of a pool that has so many workers from now on. Any thread."""
        self._workers = workers
        self._threads = None

    def start_server(self) -> None:
        """Start the fork server; called with the first call, as nothing takes longer than what the server has to import.

        Blocks for some milliseconds: whatever ran beside it would only hold it up. It is done by a thread, as Ctrl-C must not
        come in the middle of it. What fails is tried again by the first worker's start, which says why it failed.
        """
        self.wants_server = False
        if is_coming_up():  # a finalizer's call, in a thread that has the lock which the start needs
            return
        if (start_method.forbidden() or start_method.lacking(self._context)) is None:
            # Not a daemon: after Ctrl-C, at exit, nobody would wait for it, and its folder could stay behind.
            thread = threading.Thread(
                target=_start_server, args=(self._kind,), name="parallel_exec-start", daemon=False
            )
            with contextlib.suppress(RuntimeError, MemoryError):  # no more threads
                launch(thread)
                thread.join(_SERVER_LIMIT)

    def start(
        self,
        index: int,
        make_timer: Callable[[WorkerHandle], Any],
        keep: Callable[[WorkerHandle], None],
        started: Callable[[WorkerHandle, BaseException | None], None],
    ) -> None:
        """Start a worker, in a thread of its own.

        Args:
            index: the worker's.
            make_timer: makes the worker's timer.
            keep: is given the worker before it is started, by the calling thread.
            started: is given the worker by the starting thread in the end, with the error if there was one.

        Raises:
            OSError: there are no descriptors left, or no space for a semaphore.
            WorkerStartError: none can ever be started.
        """
        # Asked again, as a forked child may be daemonic.
        reason = start_method.forbidden() or start_method.lacking(self._context)
        if reason is not None:
            raise start_error("process", reason)
        fill_standard()
        with semaphore.lock:
            name = f"parallel_exec-worker-{next(self._names)}"
            handle = WorkerHandle(name, self._context, make_timer, index, captures=self._captures)
        keep(handle)  # before it is forked: the child closes what it knows of
        main = {**self._main, "sys_path": start_method.search_path()} if self._main else {}
        spawning = partial(self._spawn, handle, self._initializer, main)
        starting = partial(_start, spawning, partial(started, handle))
        try:
            launch(threading.Thread(target=starting, name="parallel_exec-start", daemon=True))
        except (RuntimeError, MemoryError):  # no more threads: the interpreter is ending, or the limit is reached
            starting()

    def _spawn(self, handle: WorkerHandle, initializer: Initializer | None, main: dict[str, Any]) -> None:
        """Make the process. In the starting thread."""
        with spawn.lock:  # for what that imports
            settings = self._settings(handle)
            config = handle.config(initializer, main, self._memory_limit, log_relay.levels())
            if self._kind != PLAIN and self._context is None and not self._uses_kind:
                self._uses_kind = True
                servers.join(self._kind)
        config = config._replace(settings=settings)
        is_wanted = handle.process.is_wanted
        handle.started(*spawn.start(self._context, config, handle.name, self._kind, is_wanted))

    def _settings(self, handle: WorkerHandle) -> WorkerSettings:
        """Return what a worker is told of the pool's settings."""
        from parallel_exec.backends.process.child.start import WorkerSettings  # when the fork server is on its way

        care = self._care
        environment, told = self._environment()
        if self._context is None and environment.items() <= dict(self._kind.environment).items():
            told = 0  # the server has loaded with these variables what it has
        return WorkerSettings(self._seed, handle.index, handle.name, environment, told, care.preload, care.max_memory)

    def _environment(self) -> tuple[dict[str, str], int]:
        """Return what workers have beside this process's environment, and how many threads loaded libraries are to have."""
        own = self._care.environment
        threads = self._threads
        if threads is None:
            threads = self._threads = threads_of(self._care.threads, self._workers)
        variables = thread_variables(threads, own) if threads else {}
        return {**variables, **own}, threads if len(variables) == len(THREADS) else 0

    def close(self) -> None:
        """Let go of what goes to workers with their start: there will be no more."""
        self._initializer = None
        if self._uses_kind:
            self._uses_kind = False
            spawn.leave_server(self._kind)

    def succeeded(self) -> None:
        """Note that a worker is ready."""
        self._failures = 0
        self._ever_succeeded = True

    def failed(
        self,
        traceback: str,
        error: BaseException | None,
        late: bool = False,
        exitcode: int | None = None,
        stacks: Stacks | None = None,
    ) -> WorkerStartError | None:
        """Note that a worker ended before it was ready, or could not be made; returns the error if that is the end of it.

        The first in a row is logged; what was raised here, which may have gone at the next try, only if that fails, too.

        Args:
            traceback: what it said.
            error: what was raised here.
            late: whether it was killed, as it took too long.
            exitcode: how its process ended.
            stacks: where that was then, if it has said so.
        """
        if error is not None:
            _clear(error)
        self._failures += 1
        if self._failures == 1:
            self._first = (traceback, error)
        if self._failures == (1 if error is None else 2):
            what = self._what(traceback, error, late) or f"it died ({how_ended(exitcode)}){_at(stacks)}"
            say(WARNING, "a worker process could not start: %s", what)
        if self._failures < _MOST_FAILURES and not (late and not self._ever_succeeded):
            return None
        traceback, cause = self._first
        what = self._what(traceback, cause, late) or self._how_all_died(exitcode)
        failed = start_error(
            "process", f"worker processes cannot start: {what}{_at(stacks)}", traceback or _text(stacks)
        )
        failed.__cause__ = cause
        self._failures = 0
        return failed

    def _what(self, traceback: str, cause: BaseException | None, late: bool) -> str:
        """Say what was wrong with a worker, if it is known."""
        if late:
            what = "what it preloads, or its initializer," if self._care.preload else "its initializer"
            return (
                f"one was not ready after startup_timeout={self.startup_timeout:g} s: does {what} hang? "
                "Raise ProcessBackend(startup_timeout=...) if it only needs longer"
            )
        if cause is not None:
            return f"{type(cause).__name__}: {cause}"
        if not traceback:
            return ""
        last = traceback.strip().splitlines()[-1]
        if last.startswith(_PRELOADING):
            return last.partition(": ")[2]
        what = "one failed" if self._initializer is None else "the initializer failed"
        return f"{what}: {last}" + (self._ask_for_limit() if last.startswith("MemoryError") else "")

    def _how_all_died(self, exitcode: int | None) -> str:
        killed = ". The system kills what takes its last memory" if exitcode == -signal.SIGKILL else ""
        return (
            f"{self._failures} in a row died while starting, the last by {how_ended(exitcode)}, and left no traceback; "
            f"what they said of it is on standard error{killed}{self._ask_for_limit()}"
        )

    def _ask_for_limit(self) -> str:
        return "" if self._memory_limit is None else f". Is memory_limit={self._memory_limit} enough to start with?"


def _at(stacks: Stacks | None) -> str:
    """Say where a worker was as it died, if that is known."""
    where = "" if stacks is None else stacks.where()
    return f"; it was at {where}" if where else ""


def _text(stacks: Stacks | None) -> str:
    return "" if stacks is None else stacks.text()


def _start_server(kind: Kind) -> None:
    try:
        with contextlib.suppress(Exception):
            spawn.start_server(kind)
    finally:
        arrive()  # not before: no finalizer that runs in here may wait for the pool


def _start(spawning: Callable[[], None], started: Callable[[BaseException | None], None]) -> None:
    """Do all that a starting thread does."""
    try:
        try:
            spawning()
        finally:
            arrive()  # not before: no finalizer that runs in here may wait for the pool
    except BaseException as error:
        _clear(error)  # here, as the collector may come to this very thread
        started(error)
    else:
        started(None)


def _clear(error: BaseException) -> None:
    """Let go of what the frames of an error hold, its worker's semaphore for one.

    Else the garbage collector would do so, in a thread that may just hold the resource tracker's lock, which the end of a
    semaphore takes.
    """
    each: BaseException | None = error
    while each is not None:
        clear_frames(each.__traceback__)
        each = each.__context__
