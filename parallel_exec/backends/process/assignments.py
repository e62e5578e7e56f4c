"""Which worker has which job: handing out, taking back, and what a dead worker leaves.

    hand_out ──► WorkerHandle.assigned ──► heard to have ended (`receiver.py`)
                        │
                        ├─ take_back: its permit was got back ──┐
                        └─ remove: its worker has died ─────────┴──► returned ──► the I/O thread ──► scheduler

Guarantees:
    The scheduler's lock guards all of it; where a docstring says so the caller holds it.
    A job that was taken back is given to the scheduler by the I/O thread, as that may run user code.
    Before a worker is killed for a call's sake, all its permits are taken back: nobody else's call can begin there.
    A job that workers keep dying of before it begins, while they read or unpickle it, is found to be the cause.
"""

from __future__ import annotations

import sys
from weakref import WeakKeyDictionary

from parallel_exec._core.map_chunk import MapChunk
from parallel_exec._core.phase import Phase
from parallel_exec._sync.clock import time
from parallel_exec.backends.process.wire import Running
from parallel_exec.backends.process.worker_handle import AT_WORK, POLL_AFTER, WorkerHandle
from parallel_exec.errors import TaskTimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NamedTuple

    from parallel_exec._core.job import AnyJob
else:
    from parallel_exec._typing import NamedTuple

_POISON = 3  # workers that a job may take along before it has begun; the first may have died of something else


class Interrupted(NamedTuple):
    """The job that a worker was running, or loading, when it died.

    Attributes:
        job: the job; None if there was none.
        running: which call of it.
        error: for what it was killed; None if it was not killed for this call's sake.
    """

    job: AnyJob | None
    running: Running
    error: BaseException | None


class Assignments:
    """The workers, and the jobs on their way to and from them.

    Attributes:
        handles: the workers, those included that are starting or closing.
        active: those that have, or had a moment ago, something to do: what is there to be done for each is done for these.
            Whose `poll_at` is not None is one of them.
            The latest that was given something is the last.
        done: chunks that have come to their end by being split; for the I/O thread.
        returned: what was taken back, for the scheduler; a set that keeps its order.
        worst: the key of the last in line of all that was handed out, None if nothing is. (It may be out of date, and
            then is too late in line: that costs a needless look, no more.)
        serial: the serial number of the next call that is handed out.
    """

    def __init__(self, lock: Any, wakeup: Callable[[], None]) -> None:
        self.handles: list[WorkerHandle] = []
        self.active: dict[WorkerHandle, None] = {}
        self.done: list[MapChunk] = []
        self.worst: tuple[int, int] | None = None
        self.serial = 1
        self._lock = lock
        self._wakeup = wakeup
        self.returned: dict[AnyJob, None] = {}
        self._bad_starts: WeakKeyDictionary[AnyJob, int] = WeakKeyDictionary()  # by job: workers that it took along

    def add(self, handle: WorkerHandle) -> None:
        """Know of a worker from now on."""
        with self._lock:
            self.handles.append(handle)

    def after_fork(self) -> None:
        """Close the copies of the parent's files, in a forked child: its workers are not ours."""
        for handle in self.handles:
            handle.files.close()
        self.handles = []
        self.active = {}

    def hand_out(self, handle: WorkerHandle, jobs: list[AnyJob]) -> None:
        """Send jobs to a worker. Called with the lock held."""
        self.active[handle] = None
        try:
            self.serial = handle.hand_out(self.serial, jobs)
        except OSError:  # dead, or no more descriptors in flight: then it is out of step with its segments
            self.take_back(handle)
            self.returned.update(dict.fromkeys(jobs))
            handle.tell_to_end()
            return
        self._note_worst(jobs[-1])

    def hand_over(self, job: AnyJob) -> bool:
        """Send a plain job to a worker that has nothing to do, if there is one. Called with the lock held.

        For any thread, whose signal handlers may raise. Nothing goes this way while other calls wait in a worker, or come
        back: these are ahead of it.
        """
        handle = None if self.returned else self._free_worker()
        if handle is None:
            return False
        serial = self.serial
        self.serial = serial + 1  # first: a number is never used again, whatever comes in between
        self._note_worst(job)
        self.active[handle] = None
        is_watched = handle.poll_at is not None
        try:
            is_sent = handle.hand_over(serial, job)
            if not is_watched or handle.outgoing:
                self._wakeup()
        except BaseException:  # a signal handler's: it may be on its way
            self._wakeup()
            raise
        return is_sent

    def _free_worker(self) -> WorkerHandle | None:
        """Return a worker that has nothing to do, the one rather that was given something last; None if calls wait."""
        free = None
        for handle in list(self.active):
            if handle.assigned.has_waiting():
                return None
            if handle.is_free:
                free = handle
        if free is None:
            for handle in self.handles:  # no generator: what a signal handler raises as one closes is lost
                if handle.is_free:
                    return handle
        return free

    def has_waiting(self) -> bool:
        """Return whether a call waits behind another in a worker."""
        for handle in list(self.active):  # noqa: SIM110  # `any` would be two calls more, in each turn of the loop
            if handle.assigned.has_waiting():
                return True
        return False

    def keep_watched(self, handle: WorkerHandle) -> None:
        """Count a worker as active if it is to be looked at: it may be none any more when it is heard of. In the I/O thread."""
        if handle.poll_at is not None:
            self.active[handle] = None

    def forget_idle(self, handle: WorkerHandle) -> None:
        """Count a worker as active no more, unless it has something to do after all."""
        with self._lock:
            if not handle.assigned and handle.poll_at is None:
                self.active.pop(handle, None)

    def _note_worst(self, last: AnyJob) -> None:
        key = (-last.priority, last.sequence + last.weight - 1)
        if self.worst is None or key > self.worst:
            self.worst = key

    def tell_to_end(self, handle: WorkerHandle) -> None:
        """Let a worker end once it has done what it was sent. Called with the lock held."""
        self.active[handle] = None
        handle.tell_to_end()

    def take_returned(self) -> list[AnyJob]:
        """Return what was taken back since the last call, for the scheduler. Called with the lock held."""
        returned, self.returned = list(self.returned), {}
        return returned

    def handed_out(self) -> list[AnyJob]:
        """Return what has not been begun. Called with the lock held."""
        waiting = [job for handle in self.handles for job in handle.assigned.jobs() if job.phase == Phase.HANDED_OUT]
        return [*waiting, *self.returned]

    def running_item(self, chunk: MapChunk) -> tuple[str, float] | None:
        """Return the id of the item of a chunk that runs, and since when; None if none does. Called with the lock held."""
        handle = chunk.slot
        if not isinstance(handle, WorkerHandle):
            return None
        running = handle.running()
        if running.loading or handle.assigned.get(running.serial) is not chunk:
            return None
        return chunk.item_id(chunk.index_of(running.serial)), running.since

    # ── taking back ─────────────────────────────────────────────────────────────────────────────────────────────────

    def take_back_all(self) -> None:
        """Take back everything that has not begun. Called with the lock held."""
        for handle in self.handles:
            self.take_back(handle)
        self.worst = None

    def take_back(self, handle: WorkerHandle, most: int | None = None) -> None:
        """Take back what a worker has not begun. Called with the lock held."""
        try:
            count = handle.take_back(most)
            self._reclaim(handle, count)
        except BaseException:  # a signal handler's: the permits and `assigned` may not agree any more
            handle.process.kill()
            raise
        if count:
            self._wakeup()

    def recall(self, job: AnyJob) -> bool:
        """Take a job back if it has not begun. Called with the lock held."""
        if job not in self.returned and isinstance(job.slot, WorkerHandle):
            self.take_back(job.slot)
        if job not in self.returned:
            return False
        del self.returned[job]
        return True

    def _reclaim(self, handle: WorkerHandle, count: int) -> None:
        """Note the last so many of `assigned` as taken back: they certainly did not begin."""
        while count > 0 and (last := handle.assigned.last()) is not None:
            serial, job = last
            taken = min(count, job.left) if type(job) is MapChunk else 1
            if type(job) is MapChunk and taken < job.weight:
                self._cut_off(job, taken)
                if job.left:
                    return
            else:
                self.returned[job] = None
            handle.assigned.remove(serial)  # last: if this is interrupted, it is done again when the worker is dead
            count -= taken

    def _cut_off(self, chunk: MapChunk, count: int) -> None:
        """Take back the last so many items of a chunk, the first of which has begun; that may be its end."""
        if count:
            self.returned[self.split(chunk, chunk.high - count)] = None
        if not chunk.left:
            self.done.append(chunk)

    # ── stopping ────────────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self, job: AnyJob, number: int, error: BaseException) -> None:
        """Kill the worker that runs a job; the rest is up to the I/O thread, once the worker is dead."""
        with self._lock:
            handle = job.slot
            if not isinstance(handle, WorkerHandle):
                return
            if isinstance(error, TaskTimeoutError) and (job.phase, job.attempt_number) != (Phase.LIVE, number):
                return  # that attempt is over, and this is another
            self.take_back(handle)
            serial = handle.running().serial
            if handle.assigned.get(serial) is not job:  # it is about to begin, or its end has not been heard of yet
                serial = handle.assigned.serial_of(job)
            if serial:
                handle.kill_when_running(serial, error)
            self._wakeup()

    def stop_item(self, handle: WorkerHandle, serial: int, error: BaseException) -> None:
        """Kill the worker for the sake of one item, if that is still what it is at; nobody else's time is up.

        A worker that has the permit of the next item is at that, though its journal does not say so yet: look again soon.
        """
        with self._lock:
            if handle.running().serial != serial:
                return
            self.take_back(handle)
            if handle.assigned.is_last(serial):
                handle.kill_when_running(serial, error)
            else:
                handle.timer.arm(time.monotonic() + POLL_AFTER)
            self._wakeup()

    def remove(self, handle: WorkerHandle, failure: BaseException | None = None) -> Interrupted:
        """Forget a dead worker, and take back the jobs that it had not begun; returns the one that it was at.

        Args:
            handle: the worker; its frames and its journal have been read.
            failure: what a job that it was at ends with, whatever else it was to be killed for.
        """
        with self._lock:
            self.handles.remove(handle)
            self.active.pop(handle, None)
            running = handle.running()
            if not running.serial and handle.state in AT_WORK and not handle.process.was_killed:
                running = Running(self._poison_job(handle), time.monotonic(), True)
            job = handle.assigned.get(running.serial)
            error = failure
            if error is None and handle.pending_kill is not None and handle.pending_kill[0] == running.serial:
                error = handle.pending_kill[1]
            if type(job) is MapChunk and not running.loading:
                handle.assigned.ended(running.serial)
            elif job is not None:  # of a chunk that is being loaded nothing has begun
                handle.assigned.remove(running.serial)
            self._reclaim(handle, sys.maxsize)
        return Interrupted(job, running, error)

    def split(self, chunk: MapChunk, at: int) -> MapChunk:
        """Cut off the tail of a chunk, which may be the cause of as many deaths. Called with the lock held."""
        tail = chunk.split(at)
        died = self._bad_starts.get(chunk, 0)
        if died:
            self._bad_starts[tail] = died
        return tail

    def _poison_job(self, handle: WorkerHandle) -> int:
        """Return the serial number of a job that workers keep dying of before it begins; or 0."""
        serial, job = handle.assigned.first() or (0, None)
        if job is None or (type(job) is MapChunk and job.next_serial != serial):  # of that chunk something has ended
            return 0
        self._bad_starts[job] = died = self._bad_starts.get(job, 0) + 1
        return serial if died >= _POISON else 0
