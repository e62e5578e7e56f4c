"""Who is where: the counts behind `stats()`, the attempts that are live, and the tasks that wait for their own pool.

Guarantees:
    All of it is guarded by the scheduler's lock, which every caller here holds; except that an attempt is taken out of
    `live` without: `set.remove` is atomic, and of two threads that want to settle an attempt one is refused.
    A task that would wait for its own pool for ever is told so: when every slot is taken by an attempt that waits for
    another task of the pool, nothing can ever end. (One whose awaited task has ended is about to go on: it only looks as
    if it waited, until its thread has woken up.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallel_exec._core.job import Phase
from parallel_exec.errors import ParallelExecError
from parallel_exec.events import ExecutorStats

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob


IN_CALLBACK = (
    "a callback or an event hook waits for a task of the executor whose thread it runs in, which would be for ever: "
    "add another callback to that task, or wait in a thread of your own"
)


class Registry:
    """Counts and sets, under the scheduler's lock.

    Attributes:
        unsettled: the futures that were added and have not ended. (A set, as its methods are one step each, and may be
            repeated: whatever a signal handler does in the middle, by adding a task or by raising, can be mended.)
        live: those with an attempt that is running, each with the attempt's number.
        waiting: those live ones that wait for the pool they run in, and for which tasks: any of them will do, and none
            stands for room in the queue.
        backing_off: those between two attempts.
        limit: the most attempts at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.unsettled: set[AnyJob] = set()
        self.live: set[tuple[AnyJob, int]] = set()
        self.waiting: dict[AnyJob, tuple[AnyJob, ...]] = {}
        self.backing_off: set[AnyJob] = set()
        self.succeeded = self.failed = self.cancelled = self.retried = self.timed_out = 0

    def ended(self, future: AnyJob) -> None:
        """Count the end of a future."""
        if future.succeeded():
            self.succeeded += future.weight
        elif future.cancelled():
            self.cancelled += future.weight
        else:
            self.failed += future.weight
        self.unsettled.discard(future)

    def would_deadlock(self, future: AnyJob) -> bool:
        """Return whether nothing could run any more if this live attempt waited, too."""
        if not self._is_live(future) or len(self.live) < self.limit:
            return False
        others = sum(
            other is not future and not any(one.phase == Phase.DONE for one in awaited)
            for other, awaited in self.waiting.items()
        )
        return others + 1 >= len(self.live)

    def _is_live(self, future: AnyJob) -> bool:
        return (future, future.attempt_number) in self.live

    def start_waiting(self, future: AnyJob, awaited: tuple[AnyJob, ...]) -> None:
        """Note that a live attempt waits for another task, or for any of several.

        Raises:
            ParallelExecError: all slots would wait then.
        """
        if self.would_deadlock(future):
            message = (
                f"task {future.id!r} would wait for ever for task {awaited[0].id!r}: both are of the same executor, and each of "
                f"its {self.limit} slots is taken by a task that waits; raise max_concurrency, use a second executor, "
                "or return instead of waiting"
            )
            del self, future, awaited  # the error's traceback holds this frame, and becomes the future's
            raise ParallelExecError(message)
        if self._is_live(future):
            self.waiting[future] = awaited

    def stats(self, queued: int, workers: int, abandoned: int) -> ExecutorStats:
        """Return a snapshot."""
        return ExecutorStats(
            queued=queued,
            running=len(self.live),
            waiting=len(self.backing_off),
            succeeded=self.succeeded,
            failed=self.failed,
            cancelled=self.cancelled,
            retried=self.retried,
            timed_out=self.timed_out,
            abandoned=abandoned,
            workers=workers,
        )
