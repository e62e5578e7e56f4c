"""The process pool of one executor: takes jobs from the scheduler, hands them out to workers, and takes them back.

    a turn of the I/O thread:  journals that are due ──► workers that were started ──► what was taken back ──► scheduler
                               take ──► hand out ──► start workers for what is left ──► sleep until something is due

Guarantees:
    What other threads take back is given to the scheduler by the I/O thread, as that may run user code.
    No job is in nobody's hands while the scheduler's lock is free: taking and handing out are one turn of the lock.
    After a worker's death its pipe is read, then its journal; only then is anything called lost.
    Nothing here waits: pipes are non-blocking.

A lone call takes a shorter way: the thread that adds it sends it itself (`accept`), and the I/O thread sleeps until the result
is there. It need not be woken if it is going to look into that worker's journal anyway: that is what `WorkerHandle.poll_at` says.
What the two threads share is changed with the lock held: `assigned`, the permits, the pipe and its buffer, `poll_at` from and
to None.

Everything is the I/O thread's own but `wake` and what is said to be called with the lock held. The race between `wake` (any
thread: resets `_parked`, then wakes the loop) and `_take` (sets `_parked`, then looks into the queue) is harmless: what
came before the look is taken, and what comes after it has the loop take another turn.
"""

from __future__ import annotations

import errno
from functools import partial

from parallel_exec._core.job import Job
from parallel_exec._core.map_chunk import MapChunk
from parallel_exec._current import current
from parallel_exec._dispatcher import logger
from parallel_exec._sync.clock import time
from parallel_exec._sync.guarded import guarded
from parallel_exec._sync.timers import NEVER
from parallel_exec._sync.weak import weakly
from parallel_exec.backends.base import Runner
from parallel_exec.backends.process.assignments import Assignments
from parallel_exec.backends.process.deaths import Deaths
from parallel_exec.backends.process.io_loop import ENDED, WRITABLE, IoLoop
from parallel_exec.backends.process.prefetch import Prefetch, fitting
from parallel_exec.backends.process.receiver import Receiver
from parallel_exec.backends.process.supervisor import Supervisor
from parallel_exec.backends.process.worker_handle import AT_WORK, POLL_AFTER, STOP_GRACE, WorkerState
from parallel_exec.errors import TaskTimeoutError, start_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.process.idle_workers import IdleWorkers
    from parallel_exec.backends.process.launcher import Launcher
    from parallel_exec.backends.process.releases import Releases
    from parallel_exec.backends.process.wire import Running
    from parallel_exec.backends.process.worker_handle import WorkerHandle

_BREAKING = "raised while a process pool broke"


class ProcessPool(Runner):
    """Runs one executor's attempts in worker processes; its thread is started by the first `wake`.

    Attributes:
        assignments: the workers, and which job is where.
    """

    def __init__(
        self,
        port: SchedulerPort,
        limit: int,
        launcher: Launcher,
        max_tasks: int | None,
        releases: Releases,
        idle: IdleWorkers | None,
    ) -> None:
        super().__init__(port, limit)
        self._lock = port.lock
        self._max_tasks = max_tasks
        self._idle = idle  # None: workers stay, however long they have nothing to do
        self._launcher = launcher
        launcher.open(port.seed, limit)
        self._releases = releases
        self._io = IoLoop(port.lock, weakly(self._break))
        releases.tell(weakly(self._io.wakeup))
        self.assignments = Assignments(port.lock, self._io.wakeup)
        events = (weakly(self._on_started), weakly(self._on_timeout), weakly(self._on_death))
        self._supervisor = Supervisor(port, self._io, self.assignments, launcher, *events)
        self._prefetch = Prefetch(self.assignments, weakly(self._can_grow))
        self._deaths = Deaths()
        heard = (self._supervisor.note_ready, weakly(self._on_outgrown))
        self._receiver = Receiver(port, self.assignments, self._prefetch, launcher, self._deaths, *heard)
        self._parked = True  # whether the scheduler has us as idle
        self._overridden: list[AnyJob] | None = None  # requeued, and cancelled meanwhile; None: nothing was requeued
        self._due: float | None = None  # when the next turn has something to do even if nothing is heard
        self._stop_deadline: float | None = None  # until when workers have time to end
        self._has_given_up = False  # guarded by the lock
        port.park(self)

    # ── from other threads ──────────────────────────────────────────────────────────────────────────────────────────

    def wake(self) -> None:
        """Have the I/O thread come and take; it is started by the first call."""
        self._parked = False
        if self._io.thread is None:
            try:
                self._start()
            except (OSError, RuntimeError, MemoryError) as error:  # no file can be opened, or no thread started
                self.port.fail_all(start_error("process", f"no worker process can be started: {error}"))
        self._io.wakeup()

    def _start(self) -> None:
        if self.port.drained:  # nobody ever needed it
            return
        with self._lock:
            if self._io.thread is None:
                self.port.timers.start()
                self._io.start(self._serve)

    def accept(self, job: AnyJob) -> bool:
        """Send a job to a worker that has nothing to do, without the I/O thread. Called with the lock held."""
        if type(job) is not Job or self._max_tasks is not None or len(self.assignments.handles) > self._limit:
            return False
        payload = job.payload
        if payload.item is not None or payload.has_descriptors():
            return False
        return self.assignments.hand_over(job)

    def preempt(self, key: tuple[float, int]) -> None:
        """Take back what comes after `key`. Called with the lock held."""
        self._prefetch.preempt(key)

    def recall_all(self) -> None:
        """Take back everything that has not begun. Called with the lock held."""
        self.assignments.take_back_all()

    def recall(self, job: AnyJob) -> bool:
        """Take a job back if it has not begun. Called with the lock held."""
        return self.assignments.recall(job)

    def handed_out(self) -> list[AnyJob]:
        """Return what has not been begun. Called with the lock held."""
        return self.assignments.handed_out()

    def at_work(self, job: AnyJob) -> tuple[str, float] | None:
        """Return what runs of a job; of a chunk that is an item. Called with the lock held."""
        if type(job) is not MapChunk:
            return super().at_work(job)
        return self.assignments.running_item(job)

    def stop(self, job: AnyJob, number: int, error: BaseException) -> None:
        """Kill the worker that runs the attempt; what the worker has not begun goes back first."""
        self.assignments.stop(job, number, error)

    def terminate(self) -> None:
        """Send each worker SIGTERM; a task that it ends fails like one whose worker crashed. Not those that still start."""
        with self._lock:
            for handle in self.assignments.handles:
                if handle.state != WorkerState.STARTING:
                    handle.process.terminate()

    def resize(self, limit: int) -> None:
        """Change the limit; workers beyond it end when they are free."""
        self._limit = limit
        self._launcher.resize(limit)
        self._io.wakeup()

    def recheck(self) -> None:
        """Have the I/O thread look whether it is time to end."""
        self._io.wakeup()

    def join(self) -> None:
        """Wait until all workers have ended."""
        if self._io.thread is None:
            self._launcher.close()
        else:
            self._io.join()

    def workers(self) -> int:
        """Return how many workers there are."""
        return sum(handle.state != WorkerState.STARTING for handle in self.assignments.handles)

    def after_fork(self) -> None:
        """Close the copies of what belongs to the parent, in a forked child."""
        self.assignments.after_fork()
        self._io.close()

    # ── the I/O thread ──────────────────────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        current.work_for(self.port)  # which keeps it, and so this
        self._deaths.begin()
        try:
            error = self._io.run(self._turn, self._progress)
            if error is None:
                self._io.close()
            else:
                self._break(error)
                del error  # its traceback leads here
        finally:
            self._launcher.close()

    def _turn(self) -> float | None:
        """Do all that there is to do; returns for how many seconds there will be no more unless something is heard."""
        port, now = self.port, time.monotonic()
        if self._due is not None and now >= self._due:
            self._poll_journals(now)
        if not self._supervisor.started.empty():
            self._supervisor.register_started()
        if self._supervisor.start_again is not None:
            self._supervisor.rests()  # forgets a time that has come, also if no worker is wanted: a sleep would end at once
        if self._releases.numbers:
            self._tell_releases()
        if port.drained:
            if self._dismiss(now):
                return ENDED
        else:
            if self._idle is not None:
                for handle in self._idle.ripe(self.assignments.handles, now):
                    self._retire(handle)
            if self._has_work():
                self._pump(port)
        return self._nap()

    def _tell_releases(self) -> None:
        """Have the workers forget what was shared and is gone."""
        numbers = self._releases.take()
        for handle in self.assignments.handles:
            if handle.state in AT_WORK:
                with self._lock:
                    handle.forget(numbers)
                if handle.outgoing:
                    self._watch_writing(handle)

    def _has_work(self) -> bool:
        """Return whether there may be anything for `_pump` to do. What this costs does not grow with the idle workers."""
        assignments = self.assignments
        if not self._parked or assignments.returned or assignments.done or self._overridden is not None:
            return True
        return len(assignments.handles) > self._limit or assignments.has_waiting()

    def _progress(self) -> tuple[int, ...]:
        """Return numbers one of which changes whenever the pool has got anywhere."""
        assignments = self.assignments
        backlog, launching = self.port.backlog(), self._supervisor.launching
        return backlog, len(assignments.handles), assignments.serial, self._receiver.heard, launching

    def _nap(self) -> float | None:
        now = time.monotonic()
        due = self._supervisor.start_again if self._stop_deadline is None else self._stop_deadline
        for handle in list(self.assignments.active):
            if handle.state == WorkerState.CLOSING:
                handle.check_end(now)  # also if its last call was heard of by the journal
            if handle.outgoing:  # of a call that another thread has sent
                self._watch_writing(handle)
            poll_at = handle.poll_at
            if poll_at is None:
                self.assignments.forget_idle(handle)
            elif due is None or poll_at < due:
                due = poll_at
        if self._idle is not None and self._idle.next_at is not None:
            due = self._idle.next_at if due is None else min(due, self._idle.next_at)
        self._due = due
        return None if due is None else max(0.0, due - now)

    def _pump(self, port: SchedulerPort) -> None:
        """Rebalance the calls that wait in workers, hand jobs out, and start workers for those that are left."""
        assignments = self.assignments
        ready: list[WorkerHandle] = []
        idle = 0
        for handle in assignments.handles:
            if handle.state in AT_WORK:
                ready.append(handle)
                idle += not handle.assigned
        if idle and len(ready) > 1:
            with self._lock:  # first: what comes back is ahead of what waits in the queue
                self._prefetch.rebalance(nothing_else=not port.backlog())
        if assignments.returned:
            with self._lock:
                self._requeue(port, assignments.take_returned())
        while assignments.done:
            self._receiver.close_chunk(assignments.done.pop())
        while len(ready) > self._limit:
            self._retire(ready.pop())
        if not self._parked:
            self._feed(port, ready)
        if len(assignments.handles) < self._limit:
            self._start_workers(port)
        if self._overridden is not None:
            self._finish_overridden(port)

    def _feed(self, port: SchedulerPort, ready: list[WorkerHandle]) -> None:
        """Hand out to each worker what it wants, as long as there is something; who has least comes first."""
        several = len(self.assignments.handles) > 1
        if several:
            ready.sort(key=lambda handle: len(handle.assigned))
        for handle in ready:
            with self._lock:  # from taking to handing out
                count = self._prefetch.want(handle, port.backlog(), len(ready), self._max_tasks)
                if count > 0:
                    if several and self._prefetch.must_wait(port):
                        break
                    if handle.assigned and port.first_is_limited():
                        break  # it is for a worker that begins it at once: nothing that waits holds a limit
                    jobs = self._take(port, count)
                    if jobs:
                        self.assignments.hand_out(handle, jobs)
                        if self._max_tasks is not None and handle.sent >= self._max_tasks:
                            self.assignments.tell_to_end(handle)
            if handle.outgoing:
                self._watch_writing(handle)
            if self._parked:  # the queue is empty
                break

    def _take(self, port: SchedulerPort, count: int) -> list[AnyJob]:
        """Take up to `count` calls; of a chunk that has more the rest stays in the queue. Called with the lock held."""
        self._parked = True  # first: the wake-up may come before we are back
        jobs = port.take_many(self, count)
        calls = 0
        for job in jobs:
            calls += job.weight
        fits = fitting(jobs) if len(jobs) > 1 else 1
        if fits < len(jobs):
            self._requeue(port, jobs[fits:])
            self._parked = False
            return jobs[:fits]
        if calls >= count or port.backlog() or (jobs and jobs[0].grant is not None):  # which is taken alone
            self._parked = False
        if calls > count:
            last: Any = jobs[-1]
            # Else whole: its tail can still be taken back.
            if self._max_tasks is not None or self._launcher.watches_memory or last.payload.is_light():
                self._requeue(port, [self.assignments.split(last, last.high - (calls - count))])
        return jobs

    def _start_workers(self, port: SchedulerPort) -> None:
        """Start a worker for each task that none is free for, and hear of the next task if there is room for more."""
        missing = port.backlog()
        if not missing and not self._parked:
            with self._lock:
                jobs = self._take(port, 1)  # to be listed as idle: the next task is to be heard of
                if jobs:  # it has just come
                    self._requeue(port, jobs)
            missing = len(jobs)
        if missing:
            handles = self.assignments.handles
            for handle in handles:
                # Who has nothing to do takes what has come since it was asked.
                if handle.state == WorkerState.STARTING or (handle.state == WorkerState.READY and not handle.assigned):
                    missing -= 1
            if missing > 0:
                self._supervisor.start(min(missing, self._limit - len(handles)))

    def _can_grow(self) -> bool:
        """Return whether another worker may be started."""
        return len(self.assignments.handles) < self._limit

    def _requeue(self, port: SchedulerPort, jobs: list[AnyJob]) -> None:
        """Give jobs back to the scheduler; `_finish_overridden` must follow. Called with the lock held."""
        overridden = port.requeue(jobs)
        self._overridden = overridden if self._overridden is None else self._overridden + overridden

    def _finish_overridden(self, port: SchedulerPort) -> None:
        """End the jobs that were cancelled before a `_requeue`, which runs user code. Called without the lock."""
        overridden, self._overridden = self._overridden, None
        port.finish_overridden(overridden or ())

    # ── its files ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_started(self, handle: WorkerHandle) -> None:
        # (For its death the supervisor watches.)
        self._io.watch(handle.files.results, partial(self._receiver.receive, handle))
        if handle.output is not None:
            self._io.watch(handle.files.output, handle.output.read)

    def _poll_journals(self, now: float) -> None:
        for handle in list(self.assignments.active):
            if handle.poll_at is not None and handle.poll_at <= now:
                self._receiver.poll_journal(handle, now)

    def _watch_writing(self, handle: WorkerHandle) -> None:
        """Have what waits written when the pipe takes more."""
        self._io.watch(handle.files.tasks, partial(self._flush, handle), WRITABLE)

    def _flush(self, handle: WorkerHandle) -> bool:
        with self._lock:
            return handle.flush()

    # ── time is up ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_timeout(self, handle: WorkerHandle) -> None:
        """Stop what a worker runs, if it outran its timeout. Called by the clock."""
        running = handle.running()
        job = handle.assigned.get(running.serial)
        if type(job) is MapChunk:
            self._stop_late_item(handle, job, running)
        else:
            self.port.expire(handle, job)

    def _stop_late_item(self, handle: WorkerHandle, chunk: MapChunk, running: Running) -> None:
        """Stop an item that outran its timeout, or a chunk that cannot be loaded in time; else look again later."""
        timeout, now = chunk.settings.timeout, time.monotonic()
        if timeout is None:
            return
        due = running.since + ((self._launcher.startup_timeout or NEVER) if running.loading else timeout)
        if now < due:
            handle.timer.arm(now + POLL_AFTER if running.loading else due)
        else:
            item = chunk.item_id(chunk.index_of(running.serial))
            self.assignments.stop_item(handle, running.serial, TaskTimeoutError(item, timeout, 1))

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_outgrown(self, handle: WorkerHandle) -> None:
        """Let a worker end that has too much memory, and so begins nothing more."""
        if handle.state in AT_WORK:
            self._retire(handle)
            self._io.wakeup()

    def _retire(self, handle: WorkerHandle) -> None:
        with self._lock:
            self.assignments.take_back(handle)
            self.assignments.tell_to_end(handle)
        if handle.outgoing:
            self._watch_writing(handle)

    def _dismiss(self, now: float) -> bool:
        """Let all workers end, those that take too long by force; returns whether all have.

        One that is starting is killed, unless it may have opened what its finalizer closes: then it becomes ready first.
        """
        if self._stop_deadline is None:
            self._stop_deadline = now + STOP_GRACE
        is_late = now >= self._stop_deadline
        for handle in self.assignments.handles:
            if handle.state == WorkerState.STARTING:
                if is_late or not self._launcher.finalizes:
                    handle.process.kill()
            elif is_late:
                handle.overstayed()
            elif handle.state != WorkerState.CLOSING:
                self._retire(handle)
        return not self.assignments.handles

    def _on_death(self, handle: WorkerHandle) -> None:
        """Settle what a dead worker leaves: what it had finished, what it was running, what it had not begun."""
        if handle.process.pid:
            self._receiver.receive(handle)
            self._receiver.frames(handle, handle.unread())
        handle.timer.cancel()
        exitcode = handle.process.exitcode()
        if handle.output is not None:
            handle.output.drain()
        interrupted = self.assignments.remove(handle)
        was_starting = handle.state == WorkerState.STARTING
        self._supervisor.reap(handle, exitcode)
        if interrupted.job is None and not was_starting:
            self._deaths.tell_of_idle(handle, exitcode)
        self._receiver.interrupted(handle, interrupted, exitcode)
        if handle.output is not None:
            handle.output.pass_on_rest()

    # ── when it breaks ──────────────────────────────────────────────────────────────────────────────────────────────

    def _break(self, error: BaseException) -> None:
        """End all tasks with an error, and kill the workers: the I/O thread cannot serve them any more."""
        why = f"the process pool has broken: {type(error).__name__}: {error}"
        logger.critical(why, exc_info=error)
        failure = start_error("process", why)
        failure.__cause__ = error
        with self._lock:
            if self._has_given_up:
                return
            self._has_given_up = True
            self._supervisor.give_up(failure)
        closed = isinstance(error, OSError) and error.errno == errno.EBADF  # the numbers may be others' files by now
        guarded(self.port.fail_all, failure, said=_BREAKING)
        for handle in self.assignments.handles:
            if handle.state == WorkerState.STARTING:  # else its start may go on waiting for the fork server
                handle.process.kill()
        while self._supervisor.launching:  # whoever starts one says so in any case
            self._supervisor.await_started()
        for handle in list(self.assignments.handles):
            guarded(self._drop, handle, failure, said=_BREAKING)
            if not closed:
                guarded(handle.process.exitcode, said=_BREAKING)
                guarded(handle.close, said=_BREAKING)
        with self._lock:
            self._requeue(self.port, self.assignments.take_returned())
        guarded(self._finish_overridden, self.port, said=_BREAKING)
        if closed:
            self._io.forget()
        else:
            self._io.close()

    def _drop(self, handle: WorkerHandle, failure: BaseException) -> None:
        """Kill a worker and end its tasks; what its journal says of them counts."""
        handle.process.kill()
        handle.timer.disarm()
        self._receiver.frames(handle, handle.unread())
        self._receiver.interrupted(handle, self.assignments.remove(handle, failure), None)
