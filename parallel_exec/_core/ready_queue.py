"""The jobs that are ready to run: highest priority first, equals in the order they were added.

    push ──► heap of (-priority, sequence, job) ──► pop

Guarantees:
    Guarded by the executor's lock, which every caller holds. A signal handler that interrupts a method may call any other:
    each changes the heap in one step (of `heapq`, or an assignment). `_tidy` does not: what is pushed meanwhile is put aside.
    Jobs are never compared: no two have the same place in the order.

`gate.py` says when jobs may be taken, and `idle.py` which consumer is woken for them.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

TYPE_CHECKING = False
if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob


class ReadyQueue:
    """The queue of one executor, from which any job can be discarded.

    Discarding is lazy: the entry stays until it comes up, or until more than half of all entries are discarded and are
    thrown away together.

    Attributes:
        heap: the entries, some of them discarded; changed in place.
        aside: those that were pushed in the middle of a `_tidy`.
        growing: the jobs in it that stand for more calls all the time: their `weight` is 0.
    """

    def __init__(self) -> None:
        self.heap: list[tuple[int, int, AnyJob]] = []
        self._discarded: set[int] = set()  # places in the order
        self._tidying = False
        self.aside: list[tuple[int, int, AnyJob]] = []
        self.growing: dict[AnyJob, None] = {}
        self._extra = 0  # calls, beyond one a job

    def __len__(self) -> int:
        return max(0, len(self.heap) + len(self.aside) - len(self._discarded))  # less than 0 in the middle of a `_tidy`

    def calls(self) -> int:
        """Return how many calls the jobs stand for."""
        calls = max(0, len(self.heap) + len(self.aside) - len(self._discarded)) + self._extra
        for job in list(self.growing):
            calls += job.size()
        return calls

    def push(self, job: AnyJob) -> None:
        """Put a job in, at its own place; O(log n)."""
        if job.weight != 1:
            self._extra += job.weight - 1
            if not job.weight:
                self.growing[job] = None
        entry = (-job.priority, job.sequence, job)
        if self._tidying:
            self.aside.append(entry)
        else:
            heappush(self.heap, entry)

    def pop(self) -> AnyJob | None:
        """Take the first job out, or return None; O(log n)."""
        heap, discarded = self.heap, self._discarded
        while heap:
            _, sequence, job = heappop(heap)
            if not discarded or sequence not in discarded:
                if job.weight != 1:
                    self._uncount(job)
                return job
            discarded.discard(sequence)
        return None

    def pop_of(self, priority: int) -> AnyJob | None:
        """Do as `pop`, but leave the first job in if it is of another priority."""
        heap = self.heap
        if self._discarded:
            self.peek()  # throws away what stands before it
        return self.pop() if heap and heap[0][0] == -priority else None

    def _uncount(self, job: AnyJob) -> None:
        """Count the calls of a job no more."""
        if job in self.growing:
            del self.growing[job]
            self._extra += 1
        else:
            self._extra -= job.weight - 1

    def grown(self, job: AnyJob) -> None:
        """Know that a job grows no more, if it is in: its `weight` is final."""
        if job in self.growing:
            del self.growing[job]
            self._extra += job.weight

    def peek(self) -> AnyJob | None:
        """Return the first job without taking it out, or None."""
        heap, discarded = self.heap, self._discarded
        while heap:
            _, sequence, job = heap[0]
            if sequence not in discarded:
                return job
            entry = heappop(heap)
            if entry[1] in discarded:
                discarded.discard(entry[1])
            else:  # a signal handler has put something else in front
                heappush(heap, entry)
        return None

    def discard(self, job: AnyJob) -> None:
        """Take a job out that is in; O(1) on average."""
        self._uncount(job)
        self._discarded.add(job.sequence)
        if len(self._discarded) * 2 > len(self.heap) and not self._tidying:
            more = True
            while more:
                self._tidying = True
                try:
                    self._tidy()
                finally:
                    self._tidying = False
                more = bool(self.aside)

    def _tidy(self) -> None:
        # Not all that was discarded: some of it may be aside.
        gone = {entry[1] for entry in self.heap if entry[1] in self._discarded}
        kept = [entry for entry in self.heap if entry[1] not in gone]
        heapify(kept)
        self.heap[:] = kept
        self._discarded.difference_update(gone)
        while self.aside:
            heappush(self.heap, self.aside.pop())

    def jobs(self) -> list[AnyJob]:
        """Return all jobs, in no order, and leave them in."""
        return [job for _, sequence, job in self.heap if sequence not in self._discarded]

    def holds(self, job: AnyJob) -> bool:
        """Return whether a job is in, whatever its phase says, and count the calls anew; O(n)."""
        jobs = self.jobs()
        self._extra = sum(each.weight - 1 for each in jobs)  # which `push` and `discard` may have been kept from
        self.growing = {each: None for each in jobs if not each.weight}
        return any(each is job for each in jobs)
