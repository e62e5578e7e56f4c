"""Where the jobs of an executor are, and the counts behind `stats()`.

Guarantees:
    All of it is guarded by the executor's lock, which every caller holds; except that an attempt is taken out of `live`
    without: `set.remove` is atomic, and of two threads that want to settle an attempt one is refused.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass, field
    from typing import Mapping, Sequence

    from parallel_exec._core.job import AnyJob
    from parallel_exec.limits import LimitStats
else:
    from parallel_exec._dataclasses import dataclass, field


@dataclass(frozen=True)
class ExecutorStats:
    """What an executor has done and is doing; a snapshot.

    Attributes:
        queued: tasks waiting for a free slot, or for a limit.
        running: attempts that have a slot now.
        waiting: tasks in backoff.
        succeeded: tasks that returned.
        failed: tasks whose last attempt failed.
        cancelled: tasks that were cancelled or aborted.
        retried: attempts beyond the first.
        timed_out: attempts that outran their timeout.
        abandoned: threads that still run an attempt nobody waits for.
        workers: workers alive now, the abandoned not among them.
        limits: how it stands with the executor's limits, by their names.
    """

    queued: int = 0
    running: int = 0
    waiting: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    timed_out: int = 0
    abandoned: int = 0
    workers: int = 0
    limits: Mapping[str, LimitStats] = field(default_factory=dict, hash=False)

    def __init__(  # a signal handler may be the first to have one made: see `_dataclasses`
        self,
        queued: int = 0,
        running: int = 0,
        waiting: int = 0,
        succeeded: int = 0,
        failed: int = 0,
        cancelled: int = 0,
        retried: int = 0,
        timed_out: int = 0,
        abandoned: int = 0,
        workers: int = 0,
        limits: Mapping[str, LimitStats] | None = None,
    ) -> None:
        counts = {**locals(), "limits": {} if limits is None else limits}
        del counts["self"]
        vars(self).update(counts)


class Registry:
    """Where jobs are that are not in the queue, and the counts. Guarded by the executor's lock.

    Attributes:
        unsettled: the jobs that were added and have not ended. (A set, as its methods are one step each, and may be
            repeated: whatever a signal handler does in the middle, by adding a task or by raising, can be repaired.)
        live: those with an attempt that is running, each with the attempt's number.
        reserved: those that are being added, where the queue has only so much room.
        backing_off: those between two attempts.
        limit: the most attempts at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.unsettled: set[AnyJob] = set()
        self.live: set[tuple[AnyJob, int]] = set()
        self.reserved: set[AnyJob] = set()
        self.backing_off: set[AnyJob] = set()
        self.succeeded = self.failed = self.cancelled = self.retried = self.timed_out = 0

    def resize(self, limit: int) -> None:
        """Change the most attempts at once."""
        self.limit = limit

    def back_off(self, job: AnyJob) -> None:
        """Note that a job will be retried."""
        self.retried += 1
        self.backing_off.add(job)

    def count_timeout(self) -> None:
        """Count an attempt that outran its timeout."""
        self.timed_out += 1

    def account(self, job: AnyJob) -> Sequence[AnyJob]:
        """Count a settled job; returns what must be cancelled for it: `Completion.follow_up` must be given that."""
        rest: Sequence[AnyJob] = () if job.batch is None else job.leave_batch()
        if job.succeeded():
            self.succeeded += job.weight
        elif job.cancelled():
            self.cancelled += job.weight
        else:
            self.failed += job.weight
        self.unsettled.discard(job)  # last: until then it can be seen that this is still to be done
        return rest

    def stats(
        self, queued: int, workers: int, abandoned: int, limits: Mapping[str, LimitStats] | None
    ) -> ExecutorStats:
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
            limits=limits,
        )
