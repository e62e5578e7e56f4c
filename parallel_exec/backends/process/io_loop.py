"""The I/O thread of a process pool: its loop, and how it hands out work.

    select ──► listen (`receiver.py`), welcome and bury (`supervisor.py`) ──► pump: take back, put back, take, hand out ──► select

Guarantees:
    What is taken back by other threads is given to the scheduler by this one, as that may run user code.
    No future is in nobody's hands while the scheduler's lock is free: taking and handing out are one turn of the lock.
    Nothing here waits: pipes are non-blocking.
    What is raised in the loop is logged, and the loop goes on; what is raised twice in a row while nothing moves (no frame
    heard, nothing handed out, no worker more or less) breaks the pool: every task ends with that, nothing is logged for ever.
"""

from __future__ import annotations

import itertools
import os
import threading
from typing import TYPE_CHECKING, Any

from parallel_exec._current import current
from parallel_exec._sync.clock import time
from parallel_exec._sync.threads import arrive, launch
from parallel_exec._sync.timers import NEVER
from parallel_exec.backends.process.prefetch import AHEAD, fitting
from parallel_exec.backends.process.supervisor import STOP_GRACE, Supervisor
from parallel_exec.errors import start_error
from parallel_exec.events import logger

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.process.launcher import Launcher
    from parallel_exec.backends.process.worker_handle import WorkerHandle


class _LastingError(Exception):
    """The I/O thread cannot go on: the cause would be raised for ever."""


class IoLoop(Supervisor):
    """Serves the workers; started by the first `wake`, and its files are opened then.

    Attributes:
        crew: the workers.
    """

    def __init__(self, source: SchedulerPort, limit: int, launcher: Launcher, max_tasks: int | None) -> None:
        super().__init__(source, limit, launcher, max_tasks)
        self._thread: threading.Thread | None = None
        self._stop_deadline: float | None = None  # until when workers have time to end; the thread's own, as the next
        self._raised: tuple[Any, ...] | None = None  # what the last turn raised, and how far all was then
        source.park(self)

    # ── from other threads ──────────────────────────────────────────────────────────────────────────────────────────

    def wake(self) -> None:
        """Have the I/O thread come and take."""
        self._listed = False
        if self._thread is None:
            try:
                self._start()
            except (OSError, RuntimeError, MemoryError) as error:  # no file can be opened, or no thread started
                self._source.fail_all(start_error("process", f"no worker process can be started: {error}"))
        self._wakeup()

    def _start(self) -> None:
        if self._source.drained:  # nobody ever needed it
            return
        with self._source.lock:
            if self._thread is not None:
                return
            self._source.timers.start()
            self._open_files()
            thread = threading.Thread(target=self._serve, name="parallel_exec-io", daemon=True)
            try:
                launch(thread)
                self._thread = thread
            except BaseException as error:  # a signal handler's: it runs nevertheless, or was never touched
                if isinstance(error, (RuntimeError, MemoryError)) or thread.ident is None:
                    self._close_files()
                else:
                    self._thread = thread
                raise

    def resize(self, limit: int) -> None:
        """Change the limit."""
        self._limit = limit
        self.recheck()

    def recheck(self) -> None:
        """Have the I/O thread look again, if there is one."""
        if self._thread is not None:
            self._wakeup()

    def join(self) -> None:
        """Wait until all workers have ended."""
        thread = self._thread
        if thread is None:
            self._launcher.close()
        elif thread is not threading.current_thread():
            thread.join()

    def after_fork(self) -> None:
        """Close the copies of what belongs to the parent, in a forked child."""
        for handle in self.assignments.handles:
            handle.close_files()
        self.assignments.handles = []
        self._close_files()

    # ── the loop ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        current.pool = self._source
        arrive()
        try:
            while self._turn():
                pass
            self._close_files()
        except _LastingError as lasting:
            self._break(lasting.__cause__ or lasting)
        finally:
            self._launcher.close()

    def _break(self, error: BaseException) -> None:
        why = f"the process pool has broken: {type(error).__name__}: {error}"
        logger.critical(why, exc_info=error)
        self._give_up(start_error("process", why), error)

    def _replace_thread(self, error: OSError) -> None:
        """Have another thread end everything. Called with the lock held."""
        self._wakeup_w = -1
        self._thread = threading.Thread(target=self._break, args=(error,), name="parallel_exec-io", daemon=True)
        self._thread.start()

    def _turn(self) -> bool:
        """Do all that there is to do, and wait for more; returns whether anything is left.

        Raises:
            _LastingError: it raises what it raised the last time, and nothing has moved in between.
        """
        try:
            if self._source.drained:
                self._stop_deadline = self._stop_deadline or time.monotonic() + STOP_GRACE
                if self._dismiss(self._stop_deadline):
                    return False
            else:
                self._pump()
            for key, _ in self._selector.select(self._nap()):
                if self._selector.get_map().get(key.fd) is key:  # else it was closed by one of those before it
                    key.data()
            self._poll_journals()
        except BaseException as error:  # of a callback: the stdlib's futures let what is no Exception through; or ours
            raised, self._raised = self._raised, (type(error), self._source.backlog(), *self.progress())
            if raised == self._raised:
                raise _LastingError from error
            logger.exception("raised in the I/O thread of a process pool, which goes on")
        else:
            self._raised = None
        return True

    def _hear(self) -> None:
        os.read(self._wakeup_r, 512)
        self._wakeup_pending = False

    def _nap(self) -> float | None:
        due = [handle.poll_at for handle in self.assignments.handles if handle.poll_at is not None]
        other = self._start_again if self._stop_deadline is None else self._stop_deadline
        if other is not None:
            due.append(other)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _pump(self) -> None:
        """Give work to whoever wants it, start workers for what is left, and share out what lies with one."""
        self._register_started()
        assignments = [handle for handle in self.assignments.handles if handle.ready and not handle.closing]
        if len(assignments) > 1 and not all(handle.assigned for handle in assignments):
            self._rebalance(assignments)  # first: what comes back is ahead of what waits in the queue
        with self._source.lock:  # nothing is in nobody's hands in between
            self._put_back(self.assignments.returned())
        self._finish_overridden()
        while self.assignments.done:
            self._receiver.close_part(self.assignments.done.pop())
        assignments = [handle for handle in self.assignments.handles if handle.ready and not handle.closing]
        while len(assignments) > self._limit:
            self._retire(assignments.pop())
        assignments.sort(key=lambda handle: len(handle.assigned))
        for handle in assignments:
            with self._source.lock:  # here neither
                if self._higher_priority_is_prefetched():
                    break
                futures = self._take(
                    self._prefetch.want(handle, self._source.backlog(), len(assignments), self._max_tasks)
                )
                if futures:
                    self._hand_out(handle, futures)
        self._finish_overridden()
        self._start_workers()

    def _take(self, count: int) -> list[AnyJob]:
        """Take up to `count` calls; a part that has more is split, and the rest stays in the queue. Called with the lock held."""
        if count <= 0 or self._listed:
            return []
        self._listed = True  # first: the wake-up may come before we are back
        futures = self._source.take_some(self, count)
        calls = sum(future.weight for future in futures)
        fits = fitting(futures)
        self._put_back(futures[fits:])
        if calls >= count or self._source.backlog():
            self._listed = False
        if fits < len(futures):
            return futures[:fits]
        if calls <= count:
            return futures
        last: Any = futures[-1]
        if self._max_tasks is not None or last.payload.is_light():  # else whole: its tail can still be taken back
            tail = last.split(last.high - (calls - count))
            self._source.add_split(tail)
            self._put_back([tail])
        return futures

    def _hand_out(self, handle: WorkerHandle, futures: list[AnyJob]) -> None:
        self.assignments.hand_out(handle, futures)
        if self._max_tasks is not None and handle.sent >= self._max_tasks:
            handle.tell_to_end()
        self._watch_writing(handle)

    def _higher_priority_is_prefetched(self) -> bool:
        """Return whether a worker has yet to begin what has a higher priority than what is first in the queue.

        Then nothing of lower priority may begin elsewhere. It is a matter of moments: what a worker was sent are tiny
        tasks, or else it is found to be stuck and they are taken back. Called with the lock held.
        """
        priority = self._source.first_priority()
        seconds = (
            next(itertools.islice(handle.assigned.values(), 1, None), None) for handle in self.assignments.handles
        )
        return priority is not None and any(future is not None and future.priority > priority for future in seconds)

    def _rebalance(self, assignments: list[WorkerHandle]) -> None:
        """Take back half of what waits behind a running task while another worker is idle, and all of it if it is stuck."""
        with self._source.lock:
            nothing_else = not self._source.backlog()
            for handle in assignments:
                waiting = len(handle.assigned) - 1
                running = handle.running()
                stuck = waiting > 0 and running.serial > 0 and time.monotonic() - running.since > AHEAD / 2
                if (
                    not handle.draining
                    and waiting > 0
                    and (stuck or (nothing_else and self._prefetch.long_enough(waiting)))
                ):
                    self.assignments.take_back(handle, None if stuck else (waiting + 1) // 2)

    # ── listening ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _poll_journals(self) -> None:
        now = time.monotonic()
        for handle in list(self.assignments.handles):
            if handle.leave_by is not None and handle.leave_by <= now:
                handle.kill()  # its last task left something behind that does not end
                handle.poll_at, handle.leave_by = None, NEVER
            elif handle.poll_at is not None and handle.poll_at <= now:
                self._receiver.poll_journal(handle, now)
            if handle.closing and not handle.assigned and handle.leave_by is None:  # wherever its last was heard of
                handle.poll_at = handle.leave_by = now + STOP_GRACE
