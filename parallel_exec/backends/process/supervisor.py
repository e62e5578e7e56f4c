"""The workers of a process pool from their start to their end.

    start ──► starting ──► ready ──► (told to end) ──► dead ──► reaped
                 └── late, failed: counted by `Launcher`

The pool is told by callbacks: `on_started`, a process is there, and may be heard of; `on_timeout`, what it runs outran its
timeout; `on_death`, its process has ended, or could not be made. What the dead worker leaves is the pool's to settle, which
then calls `reap`.

Guarantees:
    Nothing here waits: processes are started by threads of their own.
    A pool breaks only when it has no worker and none is starting: one that cannot have another goes on with what it has,
    and tries again later.
    All of this is the I/O thread's own, except `_started` (a starting thread's: it hands its worker over by a queue) and
    `_time_is_up` (the clock's, which may come before a worker is ready or after it has ended; both are looked at then).
"""

from __future__ import annotations

import queue
from functools import partial
from logging import INFO, WARNING

from parallel_exec._dispatcher import say
from parallel_exec._sync.clock import time
from parallel_exec._sync.weak import Upward
from parallel_exec.backends.base import lowest_free
from parallel_exec.backends.process.worker_handle import STOP_GRACE, WorkerState
from parallel_exec.errors import WorkerStartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.process.assignments import Assignments
    from parallel_exec.backends.process.io_loop import IoLoop
    from parallel_exec.backends.process.launcher import Launcher
    from parallel_exec.backends.process.worker_handle import WorkerHandle

_START_AGAIN = 5.0  # seconds until further workers are tried again, if they could not be started; a guess
_PAUSE = 0.05  # seconds until the next try once the system has refused a process, maybe for a moment only; a guess
_LAUNCHES = 2  # processes that are made at a time: one, and one that waits for its turn; more would be refused together


class Supervisor:
    """Starts and reaps workers, and says when a pool cannot have any.

    Attributes:
        launching: how many workers' processes are being made.
        started: workers of which the starting thread has said how their start went, for `register_started`.
        start_again: when further workers are tried again; None: any time.
    """

    _port = Upward["SchedulerPort"]()

    def __init__(
        self,
        port: SchedulerPort,
        io: IoLoop,
        assignments: Assignments,
        launcher: Launcher,
        on_started: Callable[[WorkerHandle], object],
        on_timeout: Callable[[WorkerHandle], object],
        on_death: Callable[[WorkerHandle], object],
    ) -> None:
        self._port = port
        self._io = io
        self._assignments = assignments
        self._launcher = launcher
        self._on_started = on_started
        self._on_timeout = on_timeout
        self._on_death = on_death
        self.started: queue.SimpleQueue[WorkerHandle] = queue.SimpleQueue()
        self.launching = 0
        self.start_again: float | None = None
        self._pauses = False  # whether `start_again` holds also for a pool without workers
        self._cannot_start: WorkerStartError | None = None  # holds, unless one that is starting becomes ready
        self._broken: WorkerStartError | None = None

    # ── the start ───────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, count: int) -> None:
        """Start up to so many workers, if it is time to; end what waits if there can be none."""
        if self._broken is not None:
            if not self._has_ready():
                self._port.fail_all(self._broken)  # of what has come back since
            return
        if self._cannot_start is not None or self.rests():
            return
        for _ in range(min(count, _LAUNCHES - self.launching)):
            index = lowest_free(handle.index for handle in self._assignments.handles)
            try:
                self._launcher.start(index, self._timer, self._keep, self._started)
            except WorkerStartError as error:
                self._cannot_start = error
            except Exception as error:  # no more descriptors, no space for a semaphore
                self._note_failure(self._launcher.failed("", error))
            else:
                continue
            self._judge()
            return

    def rests(self) -> bool:
        """Return whether it is too early to try again to start a worker; forgets a time that has come."""
        if self.start_again is not None and (
            time.monotonic() >= self.start_again or not (self._pauses or self._has_ready())
        ):
            self.start_again = None
            self._pauses = False
        return self.start_again is not None

    def _timer(self, handle: WorkerHandle) -> Any:
        """Return the timer of a worker: first for its start, then for its attempts."""
        timer = self._port.timers.timer(partial(self._time_is_up, handle))
        if self._launcher.startup_timeout is not None:
            timer.arm(time.monotonic() + self._launcher.startup_timeout)
        return timer

    def _time_is_up(self, handle: WorkerHandle) -> None:
        if handle.process.is_dying(handle.timer):
            return
        if handle.state != WorkerState.STARTING:
            self._on_timeout(handle)
        else:
            handle.took_too_long()

    def _keep(self, handle: WorkerHandle) -> None:
        self.launching += 1
        self._assignments.add(handle)

    def _started(self, handle: WorkerHandle, error: BaseException | None) -> None:
        """Hear from the starting thread."""
        if error is not None:
            handle.start_failed(error)
        self.started.put(handle)
        self._io.wakeup()

    def register_started(self) -> None:
        """Watch the workers that have been started, and have those reaped that could not be."""
        while not self.started.empty():
            handle = self.await_started()
            if not handle.process.pid:
                handle.files.close_theirs()
                self._on_death(handle)
                continue
            self._io.watch(handle.files.watch, partial(self._died, handle))
            self._on_started(handle)
            if handle.is_late:
                handle.process.kill()

    def await_started(self) -> WorkerHandle:
        """Return the next worker of which the starting thread has said how its start went; waits for that."""
        handle = self.started.get()
        self.launching -= 1
        return handle

    def note_ready(self, handle: WorkerHandle) -> None:
        """Note that a worker has said that it is ready; one that was late is on its way out, and counts as failed."""
        if handle.is_late:
            return
        handle.became_ready()
        self._launcher.succeeded()
        self._port.events.emit("WorkerStarted", handle.name)
        self._judge()

    # ── what becomes of failures ────────────────────────────────────────────────────────────────────────────────────

    def _note_failure(self, why: WorkerStartError | None) -> None:
        """Note that a worker could not be started, and what that means if it was once too often; else pause for a moment."""
        self._cannot_start = self._cannot_start or why
        if self._cannot_start is None and self.start_again is None:
            self.start_again = time.monotonic() + _PAUSE
            self._pauses = True

    def _judge(self) -> None:
        """Draw the conclusion once there can be no more workers, unless those that are just starting may yet prove it wrong.

        Then the pool goes on with the workers that there are; if there are none, that is its end.
        """
        error = self._cannot_start
        if error is None or (self._assignments.handles and not self._has_ready()):
            return
        self._cannot_start = None
        if self._assignments.handles:
            self.start_again = time.monotonic() + _START_AGAIN
            self._pauses = False
            say(WARNING, "%s; a pool goes on with fewer workers than it may have", error)
        elif self._broken is None:
            self._broken = error
            self._port.fail_all(error)

    def _has_ready(self) -> bool:
        return any(handle.state != WorkerState.STARTING for handle in self._assignments.handles)

    def give_up(self, failure: WorkerStartError) -> None:
        """Start no more workers: all that comes ends with `failure`."""
        self._broken = failure

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _died(self, handle: WorkerHandle) -> None:
        self._io.unwatch(handle.files.watch, handle.files.results, handle.files.tasks, handle.files.output)
        handle.process.kill_rest()
        self._on_death(handle)

    def reap(self, handle: WorkerHandle, exitcode: int | None) -> None:
        """Close what belongs to a dead worker that has nothing any more, and count it if it never was ready."""
        state, was_made = handle.state, handle.process.pid
        handle.close()
        if state != WorkerState.CLOSING:
            self._port.events.emit("WorkerDied", handle.name, f"exit code {exitcode}")
        elif handle.has_overstayed:
            say(
                INFO,
                "worker %s was told to end, and was killed as it had not ended within %g s: its finalizer, or what a task has "
                "left behind, still ran",
                handle.name,
                STOP_GRACE,
            )
        if self._port.drained:
            return
        if state == WorkerState.STARTING:
            traceback, stacks = handle.traceback, handle.process.stacks()
            why = self._launcher.failed(traceback, handle.start_error, handle.is_late, exitcode, stacks)
            if why is not None or not was_made:
                self._note_failure(why)
        self._judge()
