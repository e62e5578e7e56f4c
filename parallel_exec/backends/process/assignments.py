"""The workers of a process pool, and what was handed out to them: the part that any thread may ask.

Guarantees:
    All of it is guarded by the scheduler's lock, which the callers of what says so hold.
    What is taken back here is given to the scheduler by the I/O thread, as that may run user code.
    Before a worker is killed for a task's sake, all its permits are taken back: nobody else's task can begin there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from parallel_exec._core.job import Phase
from parallel_exec._core.map_chunk import MapChunk
from parallel_exec._sync.clock import time
from parallel_exec.backends.process.worker_handle import WorkerHandle
from parallel_exec.errors import TaskTimeoutError

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob


class Assignments:
    """The workers, and the tasks on their way to and from them.

    Attributes:
        handles: the workers, those included that are starting or ending.
        done: parts that have come to their end by being split; for the I/O thread.
        worst: the key of the last in line of all that was handed out, None if nothing is. (It may be out of date, and
            then is too late in line: that costs a needless look, no more.)
    """

    def __init__(self, lock: Any, wakeup: Callable[[], None], add_split: Callable[[AnyJob], None]) -> None:
        self.handles: list[WorkerHandle] = []
        self.worst: tuple[int, int] | None = None
        self._lock = lock
        self._wakeup = wakeup
        self._came_apart = add_split
        self.done: list[MapChunk] = []
        self._returned: dict[AnyJob, None] = {}  # a set that keeps its order
        self._serial = 1

    def serial(self) -> int:
        """Return the serial number of the next call that is handed out."""
        return self._serial

    def hand_out(self, handle: WorkerHandle, futures: list[AnyJob]) -> None:
        """Send futures to a worker."""
        last = futures[-1]
        key = (-last.priority, last.sequence + last.weight - 1)
        with self._lock:
            try:
                self._serial = handle.hand_out(self._serial, futures)
            except OSError:  # dead, or no more descriptors in flight: then it is out of step with its segments
                self._returned.update(dict.fromkeys(futures))
                handle.closing = True
                handle.kill()
                return
            if self.worst is None or key > self.worst:
                self.worst = key

    def returned(self) -> list[AnyJob]:
        """Return what was taken back since the last call, for the scheduler."""
        if not self._returned:
            return []
        with self._lock:
            returned, self._returned = list(self._returned), {}
        return returned

    def take_back_all(self) -> None:
        """Take back everything that has not begun. Called with the lock held."""
        for handle in self.handles:
            self.take_back(handle)
        self.worst = None

    def take_back(self, handle: WorkerHandle, most: int | None = None) -> None:
        """Take back what a worker has not begun. Called with the lock held."""
        try:
            serials = handle.take_back(most)
            self.reclaim(handle, serials)
        except BaseException:  # a signal handler's: permits and books may not agree any more
            handle.kill()
            raise
        if serials:
            self._wakeup()

    def reclaim(self, handle: WorkerHandle, serials: list[int]) -> None:
        """Note calls as to be given back that certainly did not begin: the last of `assigned`. Called with the lock held."""
        for serial in serials:
            future = handle.assigned[serial]
            if type(future) is not MapChunk:
                self._returned[future] = None
            elif serial == future.serial:
                self._returned[future] = None  # the whole of it
                future.left = 0
            elif serial < future.serial + future.weight:  # where it comes apart; the rest of the tail goes with it
                tail = future.split(future.index_of(serial))
                self._came_apart(tail)
                self._returned[tail] = None
                future.left -= tail.weight
                if not future.left:
                    self.done.append(future)
            del handle.assigned[serial]

    def recall(self, future: AnyJob) -> bool:
        """Take a future back if it has not begun. Called with the lock held."""
        if future not in self._returned and isinstance(future.slot, WorkerHandle):
            self.take_back(future.slot)
        if future not in self._returned:
            return False
        del self._returned[future]
        return True

    def handed_out(self) -> list[AnyJob]:
        """Return what has not been begun. Called with the lock held."""
        waiting = {f: None for handle in self.handles for f in handle.assigned.values() if f.phase == Phase.HANDED_OUT}
        return [*waiting, *self._returned]

    def stop(self, future: AnyJob, number: int, error: BaseException) -> None:
        """Kill the worker that runs a future; the rest is up to the I/O thread, once the worker is dead."""
        with self._lock:
            handle = future.slot
            if not isinstance(handle, WorkerHandle):
                return
            if isinstance(error, TaskTimeoutError) and (future.phase, future.attempt_number) != (Phase.LIVE, number):
                return  # that attempt is over, and this is another
            self.take_back(handle)
            serial = handle.running().serial
            if handle.assigned.get(serial) is not future:  # it is about to begin, or its end has not been heard of yet
                serial = next((serial for serial, other in handle.assigned.items() if other is future), 0)
            if serial:
                self._doom(handle, serial, error)
            self._wakeup()

    def stop_item(self, handle: WorkerHandle, serial: int, error: BaseException) -> None:
        """Kill the worker for the sake of one item, if that is still what it is at; nobody else's time is up."""
        with self._lock:
            if handle.running().serial != serial:
                return
            self.take_back(handle)
            self._doom(handle, serial, error)
            self._wakeup()

    def _doom(self, handle: WorkerHandle, serial: int, error: BaseException) -> None:
        """Have a worker killed for what it is, or will be, running. Called with the lock held."""
        handle.pending_kill = (serial, error)
        handle.poll_at = time.monotonic()
        self.kill_doomed(handle)

    def kill_doomed(self, handle: WorkerHandle) -> None:
        """Kill a worker if it is running what it is doomed for: it may be just before the start, or after the end."""
        if handle.pending_kill is not None and handle.running().serial == handle.pending_kill[0]:
            handle.kill()
