"""The jobs that are ready to run: highest priority first, equals in the order they were added.

    push ──► heap of (-priority, sequence, job) ──► pop
      │         ▲
      └─ needs ─┴─ a token, while the first of a line can have what it needs: `limits/lines.py`

Guarantees:
    Guarded by the executor's lock, which every caller holds. A signal handler that interrupts a method may call any other:
    each changes the heap in one step (of `heapq`, or an assignment). `_tidy` does not: what is pushed meanwhile is put aside.
    Jobs are never compared: no two have the same place in the order. (Tokens may, of which all but one stand for nothing.)

`gate.py` says when jobs may be taken, and `idle.py` which consumer is woken for them.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from parallel_exec._core.phase import Phase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable

    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.limits.grant import Grant
    from parallel_exec._core.limits.kind import Ending
    from parallel_exec._core.limits.limits import Limits
    from parallel_exec._core.limits.line import Line
    from parallel_exec._core.limits.needs import Needs


class ReadyQueue:
    """The queue of one executor, from which any job can be discarded.

    Discarding is lazy: the entry stays until it comes up, or until half of all entries are discarded and are thrown away
    together. So nothing that was discarded is in a queue that has nothing else.

    Attributes:
        heap: the entries, some of them discarded; changed in place.
        aside: those that were pushed in the middle of a `_tidy`.
        growing: the jobs in it that stand for more calls all the time: their `weight` is 0.
        limits: the executor's, which have the jobs that need something of them; None if it has none.
    """

    def __init__(self) -> None:
        self.limits: Limits | None = None
        self.heap: list[tuple[float, int, Any]] = []
        self._tokens = 0  # of lines, in the heap
        self._preempt: Callable[[tuple[float, int]], object] | None = None
        self._discarded: set[int] = set()  # places in the order
        self._tidying = False
        self.aside: list[tuple[float, int, Any]] = []
        self.growing: dict[AnyJob, None] = {}
        self._extra = 0  # calls, beyond one a job

    def __len__(self) -> int:
        waiting = 0 if self.limits is None else self.limits.count
        return self._untold() + waiting

    def _untold(self) -> int:
        """Return how many jobs are in the heap, of which no limit knows."""
        entries = len(self.heap) + len(self.aside) - self._tokens - len(self._discarded)
        return max(0, entries)  # less than 0 in the middle of a `_tidy`

    def calls(self) -> int:
        """Return how many calls the jobs stand for, those that wait for a limit among them."""
        waiting = 0 if self.limits is None else self.limits.count
        return self._calls_untold() + waiting

    def startable(self) -> int:
        """Return how many calls may be taken now, of each line at a limit no more than one."""
        return self._calls_untold() + self._tokens

    def _calls_untold(self) -> int:
        calls = self._untold() + self._extra
        for job in list(self.growing):
            calls += job.size()
        return calls

    def use(self, limits: Limits) -> None:
        """Give what needs something to these limits: before anything that does is in."""
        self.limits = limits

    def preempt_by(self, preempt: Callable[[tuple[float, int]], object]) -> None:
        """Call this with the place of what a limit lets in, for a runner that may have sent ahead what comes after it."""
        self._preempt = preempt

    def push(self, job: AnyJob) -> None:
        """Put a job in, at its own place; O(log n)."""
        limits = self.limits
        if limits is not None and job.settings.needs is not None:
            limits.push(job)
            if limits.tokens:
                self._show()
            return
        if job.weight != 1:
            self._extra += job.weight - 1
            if not job.weight:
                self.growing[job] = None
        entry = (-job.priority, job.sequence, job)
        if self._tidying:
            self.aside.append(entry)
        else:
            heappush(self.heap, entry)

    def _show(self) -> None:
        """Put the tokens in that the limits have given out."""
        assert self.limits is not None
        tokens = self.limits.tokens
        while tokens:
            token = tokens.pop()
            self._tokens += 1
            if self._tidying:
                self.aside.append(token)
            else:
                heappush(self.heap, token)
            if self._preempt is not None:
                self._preempt(token[:2])

    def pop(self) -> AnyJob | None:
        """Take the first job out, with what it needs, or return None; O(log n)."""
        heap, discarded = self.heap, self._discarded
        if discarded:
            self._tidy_if_due()
        while heap:
            order, sequence, job = heappop(heap)
            if not discarded or sequence not in discarded:
                if job.weight != 1:
                    if job.weight < 0:
                        job = self._redeem(job, order, sequence)
                        if job is None:
                            continue
                    else:
                        self._uncount(job)
                return job  # type: ignore[no-any-return]
            discarded.discard(sequence)
        return None

    def _redeem(self, line: Line, order: float, sequence: int) -> AnyJob | None:
        """Take the job that a token stands for, which has been taken out; None if it stands for none, or that must wait."""
        limits = self.limits
        assert limits is not None
        self._tokens -= 1
        job = limits.take(line, (order, sequence))
        if limits.tokens:
            self._show()
        return job

    def pop_of(self, priority: int) -> AnyJob | None:
        """Do as `pop`, but leave the first job in if it is of another priority, or needs something of a limit."""
        heap = self.heap
        if self._discarded:
            self.peek()  # throws away what stands before it
        return self.pop() if heap and heap[0][0] == -priority and heap[0][2].weight >= 0 else None

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
            order, sequence, job = heap[0]
            if job.weight < 0:
                if job.token == (order, sequence) and job.has_first():
                    return job.jobs[0][2]  # type: ignore[no-any-return]
                self._drop(heap[0])
                continue
            if sequence not in discarded:
                return job  # type: ignore[no-any-return]
            entry = heappop(heap)
            if entry[1] in discarded:
                discarded.discard(entry[1])
            else:  # a signal handler has put something else in front
                heappush(heap, entry)
        return None

    def _drop(self, token: tuple[float, int, Any]) -> None:
        """Take out a token that stands for nothing any more, if it still is the first."""
        entry = heappop(self.heap)
        if entry is token:
            self._tokens -= 1
        else:  # a signal handler has put something else in front
            heappush(self.heap, entry)

    def discard(self, job: AnyJob) -> None:
        """Take a job out that is in; O(1) on average."""
        limits = self.limits
        if limits is not None and job.settings.needs is not None:
            limits.discard(job)
            if limits.tokens:
                self._show()
            return
        self._uncount(job)
        self._discarded.add(job.sequence)
        self._tidy_if_due()

    def _tidy_if_due(self) -> None:
        """Throw away what was discarded if it is half of all."""
        if len(self._discarded) * 2 >= len(self.heap) and not self._tidying:
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
        waiting = [] if self.limits is None else self.limits.jobs()
        return [*self._jobs_untold(), *waiting]

    def _jobs_untold(self) -> list[AnyJob]:
        return [job for _, sequence, job in self.heap if job.weight >= 0 and sequence not in self._discarded]

    def first(self) -> AnyJob | None:
        """Return the first of all jobs, also if it waits for a limit; O(n) if any does."""
        if self.limits is None or not self.limits.count:
            return self.peek()
        waiting = [job for job in self.jobs() if job.phase != Phase.DONE]
        return min(waiting, key=lambda job: (-job.priority, job.sequence), default=None)

    def refusal(self, job: AnyJob) -> ValueError | None:
        """Return why a job can never have what it needs, as the limits are: they may have changed since it was made, or taken."""
        limits, needs = self.limits, job.settings.needs
        return None if limits is None or needs is None or limits.is_known(needs) else limits.error_of(needs)

    # ── limits ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def give_back(self, grant: Grant, ending: Ending, seconds: float) -> None:
        """Take back what an attempt was granted, which was `ending` after so many seconds; what can begin now is ready then."""
        assert self.limits is not None
        self.limits.give_back(grant, ending, seconds)
        if self.limits.tokens:
            self._show()

    def end(self, job: AnyJob, ending: Ending | None = None) -> None:
        """Take back what a job holds whose attempt is `ending` so, or did not begin; None: as the job has ended."""
        grant = job.surrender()
        if grant is not None:
            if job.attempt_number < grant.number:
                self.give_back(grant, "unused", 0.0)
            else:
                seconds = job.ended_at - job.started_at
                self.give_back(grant, ending or ("succeeded" if job.succeeded() else "failed"), seconds)

    def hold(self, name: str, needs: Needs | None, until: float) -> None:
        """Grant nothing of a limit, or of the key of it that is needed, until a time."""
        assert self.limits is not None
        self.change(self.limits.hold, name, needs, until)

    def exchange(self, ended: AnyJob, may_start: bool) -> AnyJob | None:
        """Do as `end`; and `pop` the first job if it may start, and is to have just what the ended one has held."""
        grant, limits = ended.grant, self.limits
        if may_start and grant is not None and limits is not None and grant.number <= ended.attempt_number:
            first = self.heap[0] if self.heap else None
            job = limits.hand_over(grant, None if first is None else first[:2])
            if job is not None:
                ended.surrender()
                if first is not None and first[2] is grant.line:
                    self._drop(first)
                if limits.tokens:
                    self._show()
                return job
        self.end(ended)
        return None

    def change(self, change: Callable[..., object], *args: Any) -> None:
        """Change the limits by one of their methods; what can begin then is ready."""
        change(*args)
        if self.limits is not None and self.limits.tokens:
            self._show()

    def repair(self, grants: Iterable[Grant]) -> None:
        """Bring the limits in order by what is held, in these grants, and all that waits."""
        if self.limits is not None:
            self.heap[:] = [entry for entry in self.heap if entry[2].weight >= 0]
            heapify(self.heap)
            self._tokens = 0
            self.change(self.limits.repair, grants)

    def holds(self, job: AnyJob) -> bool:
        """Return whether a job is in, whatever its phase says, and count the calls anew; O(n)."""
        jobs = self._jobs_untold()
        self._extra = sum(each.weight - 1 for each in jobs)  # which `push` and `discard` may have been kept from
        self.growing = {each: None for each in jobs if not each.weight}
        return any(each is job for each in jobs) or (self.limits is not None and job in self.limits.jobs())
