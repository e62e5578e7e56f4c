"""The workers of a process pool from their start to their end: the half of the I/O thread that is not about handing out.

    _start_workers ──► starting ──► ready ──► (told to end) ──► dead ──► buried
                          └── late, failed: counted by `Hire`

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

from parallel_exec._core.map_chunk import Part
from parallel_exec._sync.clock import time
from parallel_exec._sync.timers import NEVER
from parallel_exec._sync.weak import Upward, weakly
from parallel_exec.backends._descriptors import fill_standard, pipe
from parallel_exec.backends.process.assignments import Crew
from parallel_exec.backends.process.prefetch import Pace
from parallel_exec.backends.process.receiver import Hearing
from parallel_exec.backends.process.worker_handle import PEEK, Handle
from parallel_exec.errors import TaskTimeoutError, WorkerStartError
from parallel_exec.events import WorkerDied, logger
from parallel_exec.future import TaskFuture

if TYPE_CHECKING:
    from parallel_exec.backends.base import Source
    from parallel_exec.backends.process.launcher import Hire

AnyFuture = TaskFuture[Any]

FAREWELL = 2.0  # seconds that a worker has to end by itself once it was told to
_START_AGAIN = 5.0  # seconds until further workers are tried again, if they could not be started; a guess
_PAUSE = (
    0.05  # seconds until the next try after the system has refused a process, which may be a matter of moments; a guess
)
_LAUNCHES = (
    2  # processes that are made at a time: one, and one that waits for its turn; more would only be refused together
)


class Staff(abc.ABC):
    """Starts and buries workers. The I/O thread's own, except what says otherwise.

    Attributes:
        crew: the workers.
    """

    _source = Upward["Source"]()

    def __init__(self, source: Source, limit: int, hire: Hire, max_tasks: int | None) -> None:
        self.crew = Crew(source.lock, weakly(self._poke), weakly(source.came_apart))
        self._source = source
        self._limit = limit
        self._hire = hire
        self._max_tasks = max_tasks
        self._pace = Pace()
        self._hearing = Hearing(source, self.crew, self._pace, hire, weakly(self._somebody_is_free))
        self._listed = True  # whether the scheduler has us as idle
        self._poked = False
        self._broken: WorkerStartError | None = None
        self._start_again: float | None = None  # when further workers are tried again; None: any time
        self._pauses = False  # whether that is so also for a pool without workers
        self._gave_back = False
        self._doomed: list[AnyFuture] = []  # put back, and cancelled meanwhile
        self._births: queue.SimpleQueue[Handle] = queue.SimpleQueue()
        self._has_given_up = False  # guarded by the scheduler's lock
        self._launching = 0  # workers whose processes are being made
        self._verdict: WorkerStartError | None = (
            None  # why there can be no more workers, if those that start cannot either
        )
        self._selector: Any = None  # opened with the thread, as the next two; written with the lock held
        self._bell = self._rope = -1

    def _open_files(self) -> None:
        fill_standard()  # first: a selector cannot be moved
        self._bell, self._rope = pipe()
        os.set_blocking(self._rope, False)
        try:
            self._selector = selectors.DefaultSelector()
            self._selector.register(self._bell, selectors.EVENT_READ, self._hear)
        except OSError:
            self._close_files()
            raise

    def _close_files(self) -> None:
        with self._source.lock:
            bell, rope, selector = self._bell, self._rope, self._selector
            self._bell = self._rope = -1
            self._selector = None
            if selector is not None:
                selector.close()
            if rope >= 0:
                os.close(bell)
                os.close(rope)

    def _poke(self) -> None:
        if not self._poked:
            with self._source.lock:
                if self._rope >= 0:
                    self._poked = True
                    try:
                        os.write(self._rope, b"!")
                    except OSError as error:  # closed behind our back: the thread sleeps, and cannot be woken any more
                        self._replace_thread(error)

    def _watch_writing(self, handle: Handle) -> None:
        """Have the selector tell when the pipe takes more, as long as something waits for that."""
        wanted, watched = handle.has_more(), handle.tasks in self._selector.get_map()
        if wanted and not watched:
            self._selector.register(handle.tasks, selectors.EVENT_WRITE, lambda: self._flush(handle))
        elif watched and not wanted:
            self._selector.unregister(handle.tasks)

    def _flush(self, handle: Handle) -> None:
        handle.flush()
        self._watch_writing(handle)

    def _listen(self, handle: Handle) -> None:
        frames, eof = handle.read()
        if eof and handle.results in self._selector.get_map():
            self._selector.unregister(handle.results)  # its death is told by `watch`
        self._hearing.frames(handle, frames)
        now = time.monotonic()
        if not handle.assigned:
            handle.peek_at = handle.leave_by = now + FAREWELL if handle.closing else None
        elif handle.peek_at is None or any(frame.serial for frame in frames):
            handle.peek_at = now + PEEK

    def _retire(self, handle: Handle) -> None:
        with self._source.lock:
            self.crew.take_back(handle)
        handle.tell_to_end()
        self._watch_writing(handle)

    # ── starting and ending workers ─────────────────────────────────────────────────────────────────────────────────

    def _start_workers(self) -> None:
        """Start a worker for each task that none is free for, up to the limit, and hear of the next if there is room."""
        rests = self._rests()
        starting = sum(not handle.ready for handle in self.crew.handles)
        room = self._limit - len(self.crew.handles)
        if self._broken is not None:
            if starting == len(self.crew.handles) and self._source.backlog():
                self._source.break_down(self._broken)  # of what has come back since
            return
        if self._verdict is not None:
            self._judge()
            return
        if room <= 0 or rests:
            return
        if not self._listed and not self._source.backlog():
            with self._source.lock:
                self._put_back(self._take(1))  # to be listed as idle: the next task is to be heard of
            self._carry_out()
        # Who has nothing to do takes what has come since it was asked.
        idle = sum(
            each.ready and not each.assigned and not each.closing and not each.draining for each in self.crew.handles
        )
        for _ in range(min(room, self._source.backlog() - starting - idle, _LAUNCHES - self._launching)):
            try:
                self._hire.start(self._timer, self._keep, self._started)
            except WorkerStartError as error:
                self._verdict = error
            except Exception as error:  # no more descriptors, no space for a semaphore
                self._note_failure(self._hire.failed("", error))
            else:
                continue
            self._judge()
            return

    def _keep(self, handle: Handle) -> None:
        self._launching += 1
        with self._source.lock:
            self.crew.handles.append(handle)

    def _note_failure(self, verdict: WorkerStartError | None) -> None:
        """Note that a worker could not be started, and what that means if it was once too often; else pause for a moment."""
        self._verdict = self._verdict or verdict
        if self._verdict is None and self._start_again is None:
            self._start_again = time.monotonic() + _PAUSE
            self._pauses = True

    def _judge(self) -> None:
        """Act on the verdict, unless those that are just starting may yet prove it wrong."""
        if self._verdict is not None and (self._at_work() or not self.crew.handles):
            verdict, self._verdict = self._verdict, None
            self._cannot_start(verdict)

    def _at_work(self) -> bool:
        return any(handle.ready for handle in self.crew.handles)

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
            self._source.break_down(error)

    def _timer(self, handle: Handle) -> Any:
        """Return the timer of a worker: first for its start, then for its attempts."""
        timer = self._source.timers.timer(lambda: self._time_is_up(handle))
        if self._hire.startup_timeout is not None:
            timer.arm(time.monotonic() + self._hire.startup_timeout)
        return timer

    def _time_is_up(self, handle: Handle) -> None:
        if not handle.ready:
            handle.late = True
            handle.kill()
            return
        serial, start = handle.running()
        future = handle.assigned.get(serial)
        if type(future) is Part:
            self._item_is_late(handle, future, serial, start)
        else:
            self._source.expire(handle, future)

    def _item_is_late(self, handle: Handle, part: Part, serial: int, start: float) -> None:
        """Stop an item that outran its timeout, or a part that cannot be loaded in time; look again later if neither is so."""
        timeout, now = part._settings.timeout, time.monotonic()
        if timeout is None:
            return
        loading = start <= 0
        due = -start + (self._hire.startup_timeout or NEVER) if loading else start + timeout
        if now < due:
            handle.timer.arm(now + PEEK if loading else due)
        else:
            item = part.item_id(part.index_of(serial))
            self.crew.stop_item(handle, serial, TaskTimeoutError(item, timeout, 1))

    def _started(self, handle: Handle, error: BaseException | None) -> None:
        """Hear from the starting thread."""
        handle.start_error = error
        self._births.put(handle)
        self._poke()

    def _welcome(self) -> None:
        """Listen to workers that have been started, and bury those that could not be."""
        while not self._births.empty():
            handle = self._births.get()
            self._launching -= 1
            if handle.process is None:
                handle.close_theirs()
                self._bury(handle)
                continue
            self._selector.register(handle.results, selectors.EVENT_READ, lambda handle=handle: self._listen(handle))
            self._selector.register(handle.watch, selectors.EVENT_READ, lambda handle=handle: self._bury(handle))
            if handle.late:
                handle.kill()

    def _dismiss(self, farewell: float) -> bool:
        """Let all workers end, those that take too long by force; returns whether all have."""
        self._welcome()
        for handle in self.crew.handles:
            if time.monotonic() >= farewell or not handle.ready:
                handle.kill()
            elif not handle.closing:
                self._retire(handle)
        return not self.crew.handles

    def _bury(self, handle: Handle) -> None:
        """Settle what a dead worker leaves: what it had finished, what it was running, what it had not begun."""
        if handle.process is not None:
            for fd in (handle.watch, handle.results, handle.tasks):
                if fd in self._selector.get_map():
                    self._selector.unregister(fd)
            handle.kill_rest()
            self._listen(handle)
            self._hearing.frames(handle, handle.unread())
        handle.timer.cancel()
        exitcode = handle.exitcode()
        with self._source.lock:
            self.crew.handles.remove(handle)
            culprit, start = handle.running()
            if not culprit and handle.ready and not handle.killed and not handle.closing:
                culprit, start = self._suspect(handle), -time.monotonic()
            victim = handle.assigned.get(culprit)
            if type(victim) is Part and start < 0:  # nothing of it has begun
                handle.forget(victim)
            elif victim is not None:
                del handle.assigned[culprit]
            self.crew.reclaim(handle, list(handle.assigned))
        handle.close()
        if not handle.closing:
            self._source.events.emit(WorkerDied, handle.name, f"exit code {exitcode}")
        if not handle.ready and not self._source.drained:
            self._count_failed_start(handle, exitcode)
        if victim is not None:
            self._hearing.victim(handle, culprit, victim, start, exitcode)

    def progress(self) -> tuple[int, ...]:
        """Return numbers one of which changes whenever the pool has got anywhere."""
        return len(self.crew.handles), self.crew.serial(), self._hearing.heard, self._launching

    def _give_up(self, failure: WorkerStartError, cause: BaseException | None) -> None:
        """End all tasks with `failure`, and kill the workers: this thread cannot serve them any more."""
        failure.__cause__ = cause
        with self._source.lock:
            if self._has_given_up:
                return
            self._has_given_up, self._broken = True, failure
        closed = isinstance(cause, OSError) and cause.errno == errno.EBADF  # the numbers may be others' files by now
        self._guarded(lambda: self._source.break_down(failure))
        while self._launching:  # whoever starts one says so in any case
            self._births.get()
            self._launching -= 1
        for handle in list(self.crew.handles):
            self._guarded(partial(self._drop, handle, failure))
            if not closed:
                self._guarded(handle.exitcode)
                self._guarded(handle.close)
        with self._source.lock:
            self._put_back(self.crew.returned())
        self._guarded(self._carry_out)
        if not closed:
            self._close_files()
        self._rope = -1

    def _drop(self, handle: Handle, failure: WorkerStartError) -> None:
        """Kill a worker and end its tasks; what its journal says of them counts."""
        handle.kill()
        handle.timer.disarm()
        self._hearing.frames(handle, handle.unread())
        with self._source.lock:
            self.crew.handles.remove(handle)
            serial, start = handle.running()
            victim = handle.assigned.pop(serial, None)
            handle.doomed = (serial, failure)
            self.crew.reclaim(handle, list(handle.assigned))
        if victim is not None:
            self._hearing.victim(handle, serial, victim, start, None)

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

    def _suspect(self, handle: Handle) -> int:
        """Return the serial of a task that workers keep dying of before it begins: while they read or unpack it; or 0."""
        serial = next(iter(handle.assigned), 0)
        future = handle.assigned.get(serial)
        if future is None or (type(future) is Part and future.serial != serial):  # of that part something has ended
            return 0
        future._bad_starts += 1
        return serial if future._bad_starts >= 3 else 0

    def _count_failed_start(self, handle: Handle, exitcode: int | None) -> None:
        verdict = self._hire.failed(handle.traceback, handle.start_error, handle.late, exitcode)
        if handle.process is None or verdict is not None:
            self._note_failure(verdict)
        self._judge()

    def _somebody_is_free(self) -> bool:
        """Return whether a task that waits behind another would be begun elsewhere at once."""
        handles = self.crew.handles
        return len(handles) < self._limit or any(handle.ready and not handle.assigned for handle in handles)

    def _put_back(self, futures: list[AnyFuture]) -> None:
        """Give futures back to the scheduler; `_carry_out` must follow. Called with the lock held."""
        if futures:
            self._gave_back = True
            self._doomed += self._source.put_back(futures)

    def _carry_out(self) -> None:
        """Do what `_put_back` must not, as it runs user code: end what was cancelled meanwhile. Called without the lock."""
        if self._gave_back:
            self._gave_back = False
            doomed, self._doomed = self._doomed, []
            try:
                self._source.carry_out(doomed)
            finally:
                self._source.wake_one()

    @abc.abstractmethod
    def _take(self, calls: int) -> list[AnyFuture]:
        """Take up to so many calls from the scheduler."""
