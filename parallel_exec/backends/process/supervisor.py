"""The workers of a process pool from their start to their end: the half of the I/O thread that is not about handing out.

    _start_workers ──► starting ──► ready ──► (told to end) ──► dead ──► buried
                          └── late, failed: counted by `Launcher`

Guarantees:
    Nothing here waits: processes are started by threads of their own.
    After a worker's death its pipe is read, then its journal; only then is anything called lost.
    A pool breaks only when it has no worker and none is starting: one that cannot have another goes on with what it has,
    and tries again later.
"""

from __future__ import annotations

import abc
import errno
import os
import queue
import selectors
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from parallel_exec._core.map_chunk import MapChunk
from parallel_exec._sync.clock import time
from parallel_exec._sync.timers import NEVER
from parallel_exec._sync.weak import Upward, weakly
from parallel_exec.backends._descriptors import fill_standard, pipe
from parallel_exec.backends.process.assignments import Assignments
from parallel_exec.backends.process.prefetch import Prefetch
from parallel_exec.backends.process.receiver import Receiver
from parallel_exec.backends.process.wire import Running
from parallel_exec.backends.process.worker_handle import POLL_AFTER, WorkerHandle
from parallel_exec.errors import TaskTimeoutError, WorkerStartError
from parallel_exec.events import WorkerDied, logger

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.process.launcher import Launcher

STOP_GRACE = 2.0  # seconds that a worker has to end by itself once it was told to
_START_AGAIN = 5.0  # seconds until further workers are tried again, if they could not be started; a guess
_PAUSE = (
    0.05  # seconds until the next try after the system has refused a process, which may be a matter of moments; a guess
)
_LAUNCHES = (
    2  # processes that are made at a time: one, and one that waits for its turn; more would only be refused together
)


class Supervisor(abc.ABC):
    """Starts and buries workers. The I/O thread's own, except what says otherwise.

    Attributes:
        crew: the workers.
    """

    _source = Upward["SchedulerPort"]()

    def __init__(self, source: SchedulerPort, limit: int, launcher: Launcher, max_tasks: int | None) -> None:
        self.assignments = Assignments(source.lock, weakly(self._wakeup), weakly(source.add_split))
        self._source = source
        self._limit = limit
        self._launcher = launcher
        self._max_tasks = max_tasks
        self._prefetch = Prefetch()
        self._receiver = Receiver(source, self.assignments, self._prefetch, launcher, weakly(self._somebody_is_free))
        self._listed = True  # whether the scheduler has us as idle
        self._wakeup_pending = False
        self._broken: WorkerStartError | None = None
        self._start_again: float | None = None  # when further workers are tried again; None: any time
        self._pauses = False  # whether that is so also for a pool without workers
        self._gave_back = False
        self._overridden: list[AnyJob] = []  # put back, and cancelled meanwhile
        self._started_workers: queue.SimpleQueue[WorkerHandle] = queue.SimpleQueue()
        self._has_given_up = False  # guarded by the scheduler's lock
        self._launching = 0  # workers whose processes are being made
        self._verdict: WorkerStartError | None = (
            None  # why there can be no more workers, if those that start cannot either
        )
        self._selector: Any = None  # opened with the thread, as the next two; written with the lock held
        self._wakeup_r = self._wakeup_w = -1

    def _open_files(self) -> None:
        fill_standard()  # first: a selector cannot be moved
        self._wakeup_r, self._wakeup_w = pipe()
        os.set_blocking(self._wakeup_w, False)
        try:
            self._selector = selectors.DefaultSelector()
            self._selector.register(self._wakeup_r, selectors.EVENT_READ, self._hear)
        except OSError:
            self._close_files()
            raise

    def _close_files(self) -> None:
        with self._source.lock:
            bell, rope, selector = self._wakeup_r, self._wakeup_w, self._selector
            self._wakeup_r = self._wakeup_w = -1
            self._selector = None
            if selector is not None:
                selector.close()
            if rope >= 0:
                os.close(bell)
                os.close(rope)

    def _wakeup(self) -> None:
        if not self._wakeup_pending:
            with self._source.lock:
                if self._wakeup_w >= 0:
                    self._wakeup_pending = True
                    try:
                        os.write(self._wakeup_w, b"!")
                    except OSError as error:  # closed behind our back: the thread sleeps, and cannot be woken any more
                        self._replace_thread(error)

    def _watch_writing(self, handle: WorkerHandle) -> None:
        """Have the selector tell when the pipe takes more, as long as something waits for that."""
        wanted, watched = handle.has_more(), handle.tasks in self._selector.get_map()
        if wanted and not watched:
            self._selector.register(handle.tasks, selectors.EVENT_WRITE, lambda: self._flush(handle))
        elif watched and not wanted:
            self._selector.unregister(handle.tasks)

    def _flush(self, handle: WorkerHandle) -> None:
        handle.flush()
        self._watch_writing(handle)

    def _listen(self, handle: WorkerHandle) -> None:
        frames, eof = handle.read()
        if eof and handle.results in self._selector.get_map():
            self._selector.unregister(handle.results)  # its death is told by `watch`
        self._receiver.frames(handle, frames)
        now = time.monotonic()
        if not handle.assigned:
            handle.poll_at = handle.leave_by = now + STOP_GRACE if handle.closing else None
        elif handle.poll_at is None or any(frame.serial for frame in frames):
            handle.poll_at = now + POLL_AFTER

    def _retire(self, handle: WorkerHandle) -> None:
        with self._source.lock:
            self.assignments.take_back(handle)
        handle.tell_to_end()
        self._watch_writing(handle)

    # ── starting and ending workers ─────────────────────────────────────────────────────────────────────────────────

    def _start_workers(self) -> None:
        """Start a worker for each task that none is free for, up to the limit, and hear of the next if there is room."""
        rests = self._rests()
        starting = sum(not handle.ready for handle in self.assignments.handles)
        room = self._limit - len(self.assignments.handles)
        if self._broken is not None:
            if starting == len(self.assignments.handles) and self._source.backlog():
                self._source.fail_all(self._broken)  # of what has come back since
            return
        if self._verdict is not None:
            self._judge()
            return
        if room <= 0 or rests:
            return
        if not self._listed and not self._source.backlog():
            with self._source.lock:
                self._put_back(self._take(1))  # to be listed as idle: the next task is to be heard of
            self._finish_overridden()
        # Who has nothing to do takes what has come since it was asked.
        idle = sum(
            each.ready and not each.assigned and not each.closing and not each.draining
            for each in self.assignments.handles
        )
        for _ in range(min(room, self._source.backlog() - starting - idle, _LAUNCHES - self._launching)):
            try:
                self._launcher.start(self._timer, self._keep, self._started)
            except WorkerStartError as error:
                self._verdict = error
            except Exception as error:  # no more descriptors, no space for a semaphore
                self._note_failure(self._launcher.failed("", error))
            else:
                continue
            self._judge()
            return

    def _keep(self, handle: WorkerHandle) -> None:
        self._launching += 1
        with self._source.lock:
            self.assignments.handles.append(handle)

    def _note_failure(self, verdict: WorkerStartError | None) -> None:
        """Note that a worker could not be started, and what that means if it was once too often; else pause for a moment."""
        self._verdict = self._verdict or verdict
        if self._verdict is None and self._start_again is None:
            self._start_again = time.monotonic() + _PAUSE
            self._pauses = True

    def _judge(self) -> None:
        """Act on the verdict, unless those that are just starting may yet prove it wrong."""
        if self._verdict is not None and (self._at_work() or not self.assignments.handles):
            verdict, self._verdict = self._verdict, None
            self._cannot_start(verdict)

    def _at_work(self) -> bool:
        return any(handle.ready for handle in self.assignments.handles)

    def _rests(self) -> bool:
        """Return whether it is too early to try again to start a worker."""
        if self._start_again is not None and (
            time.monotonic() >= self._start_again or not (self._pauses or self._at_work())
        ):
            self._start_again = None
            self._pauses = False
        return self._start_again is not None

    def _cannot_start(self, error: WorkerStartError) -> None:
        """Go on with the workers that there are; if there are none, that is the end of the pool."""
        if self._at_work():
            self._start_again = time.monotonic() + _START_AGAIN
            self._pauses = False
            logger.warning("%s; a pool goes on with fewer workers than it may have", error)
        elif self._broken is None:
            self._broken = error
            self._source.fail_all(error)

    def _timer(self, handle: WorkerHandle) -> Any:
        """Return the timer of a worker: first for its start, then for its attempts."""
        timer = self._source.timers.timer(lambda: self._time_is_up(handle))
        if self._launcher.startup_timeout is not None:
            timer.arm(time.monotonic() + self._launcher.startup_timeout)
        return timer

    def _time_is_up(self, handle: WorkerHandle) -> None:
        if not handle.ready:
            handle.late = True
            handle.kill()
            return
        running = handle.running()
        future = handle.assigned.get(running.serial)
        if type(future) is MapChunk:
            self._item_is_late(handle, future, running)
        else:
            self._source.expire(handle, future)

    def _item_is_late(self, handle: WorkerHandle, part: MapChunk, running: Running) -> None:
        """Stop an item that outran its timeout, or a part that cannot be loaded in time; look again later if neither is so."""
        timeout, now = part.settings.timeout, time.monotonic()
        if timeout is None:
            return
        due = running.since + ((self._launcher.startup_timeout or NEVER) if running.loading else timeout)
        if now < due:
            handle.timer.arm(now + POLL_AFTER if running.loading else due)
        else:
            item = part.item_id(part.index_of(running.serial))
            self.assignments.stop_item(handle, running.serial, TaskTimeoutError(item, timeout, 1))

    def _started(self, handle: WorkerHandle, error: BaseException | None) -> None:
        """Hear from the starting thread."""
        handle.start_error = error
        self._started_workers.put(handle)
        self._wakeup()

    def _register_started(self) -> None:
        """Listen to workers that have been started, and bury those that could not be."""
        while not self._started_workers.empty():
            handle = self._started_workers.get()
            self._launching -= 1
            if handle.process is None:
                handle.close_theirs()
                self._reap(handle)
                continue
            self._selector.register(handle.results, selectors.EVENT_READ, lambda handle=handle: self._listen(handle))
            self._selector.register(handle.watch, selectors.EVENT_READ, lambda handle=handle: self._reap(handle))
            if handle.late:
                handle.kill()

    def _dismiss(self, stop_deadline: float) -> bool:
        """Let all workers end, those that take too long by force; returns whether all have."""
        self._register_started()
        for handle in self.assignments.handles:
            if time.monotonic() >= stop_deadline or not handle.ready:
                handle.kill()
            elif not handle.closing:
                self._retire(handle)
        return not self.assignments.handles

    def _reap(self, handle: WorkerHandle) -> None:
        """Settle what a dead worker leaves: what it had finished, what it was running, what it had not begun."""
        if handle.process is not None:
            for fd in (handle.watch, handle.results, handle.tasks):
                if fd in self._selector.get_map():
                    self._selector.unregister(fd)
            handle.kill_rest()
            self._listen(handle)
            self._receiver.frames(handle, handle.unread())
        handle.timer.cancel()
        exitcode = handle.exitcode()
        with self._source.lock:
            self.assignments.handles.remove(handle)
            running = handle.running()
            if not running.serial and handle.ready and not handle.killed and not handle.closing:
                running = Running(self._poison_job(handle), time.monotonic(), True)
            interrupted = handle.assigned.get(running.serial)
            if type(interrupted) is MapChunk and running.loading:  # nothing of it has begun
                handle.forget(interrupted)
            elif interrupted is not None:
                del handle.assigned[running.serial]
            self.assignments.reclaim(handle, list(handle.assigned))
        handle.close()
        if not handle.closing:
            self._source.events.emit(WorkerDied, handle.name, f"exit code {exitcode}")
        if not handle.ready and not self._source.drained:
            self._count_failed_start(handle, exitcode)
        if interrupted is not None:
            self._receiver.interrupted(handle, running, interrupted, exitcode)

    def progress(self) -> tuple[int, ...]:
        """Return numbers one of which changes whenever the pool has got anywhere."""
        return len(self.assignments.handles), self.assignments.serial(), self._receiver.heard, self._launching

    def _give_up(self, failure: WorkerStartError, cause: BaseException | None) -> None:
        """End all tasks with `failure`, and kill the workers: this thread cannot serve them any more."""
        failure.__cause__ = cause
        with self._source.lock:
            if self._has_given_up:
                return
            self._has_given_up, self._broken = True, failure
        closed = isinstance(cause, OSError) and cause.errno == errno.EBADF  # the numbers may be others' files by now
        self._guarded(lambda: self._source.fail_all(failure))
        while self._launching:  # whoever starts one says so in any case
            self._started_workers.get()
            self._launching -= 1
        for handle in list(self.assignments.handles):
            self._guarded(partial(self._drop, handle, failure))
            if not closed:
                self._guarded(handle.exitcode)
                self._guarded(handle.close)
        with self._source.lock:
            self._put_back(self.assignments.returned())
        self._guarded(self._finish_overridden)
        if not closed:
            self._close_files()
        self._wakeup_w = -1

    def _drop(self, handle: WorkerHandle, failure: WorkerStartError) -> None:
        """Kill a worker and end its tasks; what its journal says of them counts."""
        handle.kill()
        handle.timer.disarm()
        self._receiver.frames(handle, handle.unread())
        with self._source.lock:
            self.assignments.handles.remove(handle)
            running = handle.running()
            interrupted = handle.assigned.pop(running.serial, None)
            handle.pending_kill = (running.serial, failure)
            self.assignments.reclaim(handle, list(handle.assigned))
        if interrupted is not None:
            self._receiver.interrupted(handle, running, interrupted, None)

    @staticmethod
    def _guarded(act: Callable[[], object]) -> None:
        """Do one thing of several, of which the others must be done, too."""
        try:
            act()
        except BaseException:  # from a callback: the stdlib's futures let what is no Exception through
            logger.exception("raised while a process pool broke")

    @abc.abstractmethod
    def _replace_thread(self, error: OSError) -> None:
        """Have another thread end everything. Called with the lock held."""

    @abc.abstractmethod
    def _hear(self) -> None:
        """Take the wake-up out of the pipe."""

    def _poison_job(self, handle: WorkerHandle) -> int:
        """Return the serial of a task that workers keep dying of before it begins: while they read or unpack it; or 0."""
        serial = next(iter(handle.assigned), 0)
        future = handle.assigned.get(serial)
        if future is None or (type(future) is MapChunk and future.serial != serial):  # of that part something has ended
            return 0
        future.bad_starts += 1
        return serial if future.bad_starts >= 3 else 0

    def _count_failed_start(self, handle: WorkerHandle, exitcode: int | None) -> None:
        verdict = self._launcher.failed(handle.traceback, handle.start_error, handle.late, exitcode)
        if handle.process is None or verdict is not None:
            self._note_failure(verdict)
        self._judge()

    def _somebody_is_free(self) -> bool:
        """Return whether a task that waits behind another would be begun elsewhere at once."""
        handles = self.assignments.handles
        return len(handles) < self._limit or any(handle.ready and not handle.assigned for handle in handles)

    def _put_back(self, futures: list[AnyJob]) -> None:
        """Give futures back to the scheduler; `_finish_overridden` must follow. Called with the lock held."""
        if futures:
            self._gave_back = True
            self._overridden += self._source.put_back(futures)

    def _finish_overridden(self) -> None:
        """Do what `_put_back` must not, as it runs user code: end what was cancelled meanwhile. Called without the lock."""
        if self._gave_back:
            self._gave_back = False
            pending_kill, self._overridden = self._overridden, []
            try:
                self._source.finish_overridden(pending_kill)
            finally:
                self._source.wake_one()

    @abc.abstractmethod
    def _take(self, calls: int) -> list[AnyJob]:
        """Take up to so many calls from the scheduler."""
