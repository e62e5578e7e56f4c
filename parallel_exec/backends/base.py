"""The seam between the scheduler and what runs attempts.

    Backend ── start ──► Runner        the user's settings ──► what runs the attempts of one executor

                 take(consumer) ──► job | None        None: the consumer is listed as idle
    Runner ◄───► begin(job, slot, worker)             an attempt starts to run: the timeout's clock starts
                 report(job, number, outcome, ...)    it ended

Work is pulled, never pushed. A *consumer* is anything that takes: a worker thread, the thread that feeds processes. One
that found nothing is idle, and `wake` is called on it when there may be something.

Guarantees of a runner:
    It takes only what it can start soon, and reports each attempt it began exactly once; what it took and never began it
    either begins or requeues. What was granted of the executor's limits is held from `take` on, so it takes what needs any only
    when that can begin at once; an attempt that goes on after it was settled keeps it (`keep_grant`) until it has ended, and one
    that is killed is reported when it is dead. `stop` and `wake` never block and run no user code.
    It opens no file and starts no thread before there is work: one that was not used leaves nothing in a forked child.
"""

from __future__ import annotations

import abc
import weakref
from concurrent.futures import CancelledError

from parallel_exec._dispatcher import logger
from parallel_exec._sync.weak import Upward
from parallel_exec.errors import TaskTimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from typing import Any, Callable, Iterable, Protocol, Sequence

    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.limits.grant import Grant
    from parallel_exec._dispatcher import Dispatcher
    from parallel_exec._outcome import Outcome
    from parallel_exec._sync.timers import Timers
    from parallel_exec.errors import ParallelExecError
else:
    from parallel_exec._typing import Protocol


def log_abandoned(error: BaseException, task_id: str, number: int, worker: str) -> None:
    """Say that a call goes on of which nobody will see the result: a warning, unless it was cancelled on purpose.

    Args:
        error: what its attempt ended as.
        task_id: the task's id.
        number: the attempt's number.
        worker: what it runs in, in words.
    """
    if isinstance(error, CancelledError):
        logger.info("attempt %d of task %r was cancelled, and its call still runs in %s", number, task_id, worker)
        return
    if isinstance(error, TaskTimeoutError):
        which, beside = "its call", " while the next attempt, if there is one, starts"
    else:
        which, beside = f"its call (attempt {number})", ""
    logger.warning(
        "%s; %s cannot be stopped, and still runs in %s%s. What must not run twice needs retry_count=0, "
        'or backend="process", where it is killed; a call that looks at current_task().check() can end by itself',
        error,
        which,
        worker,
        beside,
    )


def lowest_free(taken: Iterable[int]) -> int:
    """Return the lowest index, from 0, that no worker has: `taken` has those of all that there are, each once."""
    known = set(taken)
    if not known or max(known) < len(known):
        return len(known)
    return next(index for index in range(len(known)) if index not in known)


class Consumer(Protocol):
    """Whatever takes jobs from the scheduler."""

    def wake(self) -> None:
        """Come and take: there may be work. Called without locks held, from any thread; must not block.

        It stays listed as idle until it takes, declines or is unparked.
        """
        ...


class Slot(Protocol):
    """A place where one attempt at a time runs.

    Attributes:
        timer: due when the attempt outruns its timeout; armed by the scheduler.
    """

    timer: Any


class WorkerSlot(Slot, Consumer, Protocol):
    """A slot that takes its work itself."""


class SchedulerPort(Protocol):
    """What a back end sees of the scheduler. Thread-safe.

    Attributes:
        lock: guards the scheduler's state, and may guard the back end's: re-entrant, held only for moments.
        events: tells the hook.
        timers: the executor's clock.
        seed: the executor's, of which, with their ids, the tasks' seeds are made.
        drained: whether there is nothing left to do and nothing can be added: consumers end.
    """

    lock: threading.RLock
    events: Dispatcher
    timers: Timers
    seed: int

    @property
    def drained(self) -> bool:
        """Whether nothing is left to do."""
        ...

    # ── consumers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def park(self, consumer: Consumer, *, last: bool = False) -> None:
        """List a consumer as idle; it is woken if there is work. `last`: only after all others."""
        ...

    def unpark(self, consumer: Consumer) -> bool:
        """Forget an idle consumer; returns whether it was idle."""
        ...

    def decline(self, consumer: Consumer) -> None:
        """Forget a consumer that was woken and is not going to take, and wake another."""
        ...

    # ── from the queue, and back ────────────────────────────────────────────────────────────────────────────────────

    def backlog(self) -> int:
        """Return how many calls may be taken now; of those that wait for a limit only the next, if it can have it."""
        ...

    def waiting(self) -> int:
        """Return how many calls are in the queue of which attempts may begin, those among them that wait for a limit."""
        ...

    def first_priority(self) -> int | None:
        """Return the priority of the job that would be taken next; None if there is none. Called with the lock held.

        For a runner that sends jobs ahead: none of a lower priority may begin before those.
        """
        ...

    def first_is_limited(self) -> bool:
        """Return whether the job that would be taken next needs something of a limit, which it holds from then on.

        Called with the lock held.
        """
        ...

    def take(self, consumer: Consumer) -> AnyJob | None:
        """Return the first ready job; else list the consumer as idle (unless drained) and return None."""
        ...

    def take_many(self, consumer: Consumer, calls: int) -> list[AnyJob]:
        """Take the first ready jobs of one priority, until they stand for so many calls; for a runner with one consumer.

        If there are fewer, the consumer is listed as idle. What needs something of a limit is the last that is taken.
        """
        ...

    def requeue(self, jobs: Sequence[AnyJob]) -> list[AnyJob]:
        """Put back what was taken and never began, at its old place in the queue; may be called with the lock held.

        Returns:
            What must be given to `finish_overridden`, which must follow, without the lock.
        """
        ...

    def finish_overridden(self, overridden: Sequence[AnyJob]) -> None:
        """End what has to end instead of going back to the queue, and wake an idle consumer if there is something for it."""
        ...

    # ── what an attempt holds of the executor's limits: given back when it has been settled, or goes back to the queue ──

    def keep_grant(self, job: AnyJob, error: BaseException) -> Grant | None:
        """Keep what an attempt holds, which is about to be settled with `error` and yet goes on: until `end_kept`."""
        ...

    def end_kept(self, grant: Grant) -> None:
        """Give back what was kept: the attempt has really ended now. Called without the lock held."""
        ...

    def reject(self, job: AnyJob, error: BaseException) -> None:
        """End a job that was taken and cannot be run."""
        ...

    def fail_all(self, error: ParallelExecError) -> None:
        """Nothing can ever run again: end all that waits with `error`, and refuse what is added."""
        ...

    def finish_at_exit(self) -> None:
        """Refuse what is added, and wait until all there is has ended: what runs it is about to be closed by its own hook."""
        ...

    # ── attempts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(
        self, job: AnyJob, slot: Slot, worker: str, start: float, *, over: bool = False, begun: bool = False
    ) -> int:
        """Start an attempt at `start` (monotonic) and return its number; 0 if it must not run after all.

        `over`: it has ended already, which is to be reported next; its timeout needs no timer. `begun`: its call has begun, so it
        counts, also if the task is to end otherwise by now.
        """
        ...

    def expire(self, slot: Slot, job: AnyJob | None) -> None:
        """Time is up for what runs in `slot`: the callback of the slot's timer."""
        ...

    def report(
        self,
        job: AnyJob,
        number: int,
        outcome: Outcome,
        end: float,
        cpu_time: float | None = None,
        won: list[None] | None = None,
    ) -> bool:
        """`claim`, then `settle`; False if the attempt was claimed by another, and the outcome dropped.

        `cpu_time`: seconds of CPU that it used, if that is known. `won`: as for `claim`.
        """
        ...

    def claim(self, job: AnyJob, number: int, won: list[None] | None = None) -> bool:
        """Return whether the caller may settle this attempt: true for exactly one caller.

        For a thread whose signal handlers may raise: `won` is an empty list, which has one element once this is true.
        """
        ...

    def settle(self, job: AnyJob, outcome: Outcome, end: float) -> None:
        """Say how a claimed attempt ended, at `end` (monotonic)."""
        ...

    # ── the same in fewer turns of the lock ─────────────────────────────────────────────────────────────────────────

    def report_ran(self, slot: Slot, worker: str, ran: list[tuple[AnyJob, float, Outcome, float]]) -> None:
        """Begin (where that was not done) and report attempts, as (job, start, outcome, end)."""
        ...

    def report_ended(
        self, job: AnyJob, number: int, outcome: Outcome, end: float, cpu_time: float | None = None
    ) -> AnyJob | None:
        """Do as `report`, but raise nothing; what it returns must be given to `begin_next`, or to `account`."""
        ...

    def begin_next(self, slot: WorkerSlot, worker: str, ended: list[AnyJob | None]) -> tuple[AnyJob, int] | None:
        """Take and begin in one step: the first ready job and its attempt's number; None if there is none.

        `ended` has what `report_ended` returned last, if that was not counted yet. It is taken out: before CPython 3.11 what a
        function is called with is kept until it returns.
        """
        ...

    def account(self, ended: AnyJob) -> None:
        """Count what `report_ended` returned, in a worker that begins nothing more."""
        ...

    # ── for a runner in the caller's thread, which waits for backoffs itself ────────────────────────────────────────

    def pending(self) -> bool:
        """Return whether anything is ready to start, or will be after its backoff."""
        ...

    def recover(self, job: AnyJob | None, outcome: Outcome, won: list[None], *, was_held: bool) -> None:
        """Bring in order what an exception has torn apart between `take` and the end of `report` or `settle`.

        Args:
            job: what `take` has returned; None if it has not.
            outcome: how its attempt ends, if it has begun.
            won: as it was given to `claim` or `report`.
            was_held: whether the thread held the lock before all that.
        """
        ...

    def skip_backoff(self, sleep: Callable[[float], object]) -> bool:
        """Call `sleep` with the seconds until the first backoff is over, and let it be over then; False if there is none.

        The others last so much less, whether time has passed or not.
        """
        ...


class Backend(abc.ABC):
    """What the user chose to run attempts with, and its settings. An instance serves one executor.

    Attributes:
        name: what the user calls it.
        prefetches: whether its runner takes more than it can begin at once, and so must be told what comes before that.
        pickles_calls: whether `prepare` does anything.
        runs_chunks: whether its runner runs `MapChunk`s: items of a `map` in a row.
        runs_in_caller: whether the caller's own thread must run the work, by `Runner.drive`.
        reports_in_one_thread: whether one thread reports all outcomes: if that waits for one, it waits for ever.
        runs_here: whether every call runs in this process, with the very objects that were shared.
    """

    name = "?"
    prefetches = False
    pickles_calls = False
    runs_chunks = False
    runs_in_caller = False
    reports_in_one_thread = False
    runs_here = False
    _served: weakref.ref[SchedulerPort] | None = None

    def start(self, port: SchedulerPort, limit: int) -> Runner:
        """Return the runner of an executor, which is being made, or was not used before the process forked.

        Args:
            port: the executor's scheduler.
            limit: the most attempts at once.

        Raises:
            RuntimeError: it serves another executor already.
        """
        if self._served is not None and self._served() is not port:
            raise RuntimeError(f"this {type(self).__name__} serves another executor already: make a new one for each")
        runner = self.make_runner(port, limit)
        self._served = weakref.ref(port)
        return runner

    @abc.abstractmethod
    def make_runner(self, port: SchedulerPort, limit: int) -> Runner:
        """Return a new runner; called by `start`."""

    def auto_concurrency(self) -> int:
        """Return how many attempts at once suit what runs them: for each CPU that this process may use, one."""
        from parallel_exec._cpus import usable_cpus  # only who asks for it needs it

        return usable_cpus()

    def prepare(self, job: AnyJob) -> Any:
        """Return the call, ready to travel; called in the thread that adds it, and what it raises ends the task."""
        return None

    def check_limit(self, name: str, spec: Any) -> None:  # noqa: B027  # only where what is granted leaves this process
        """Refuse a limit that hands out what cannot be brought to the tasks; called before there is such a limit.

        Raises:
            TypeError: it does.
        """

    def store(self, content: Any) -> None:  # noqa: B027  # only where calls leave this process
        """Put something that is shared where workers find it; it is called once, in the thread that shares it.

        Raises:
            ParallelExecError: it cannot be brought to them.
        """

    def pack_row(self, call: Any, columns: list[list[Any]]) -> Any:
        """Return the calls of a chunk, ready to travel; called with the lock held, so it runs no user code.

        Only where it `runs_chunks`.

        Args:
            call: what `prepare` made of a call of the function without arguments.
            columns: the arguments: for each a list, with a number, text, bytes, None or a tuple of these for each item.
        """
        raise NotImplementedError

    def pack_pickled(self, call: Any, payloads: list[Any]) -> Any:
        """Do as `pack_row`, with what `prepare` made of calls of another function with the items."""
        raise NotImplementedError

    def works_after_fork(self) -> bool:
        """Return whether `start` may be called in a child that `os.fork` made, where no thread of the parent's came along."""
        return True


class Runner(abc.ABC):
    """Runs the attempts of one executor.

    Attributes:
        port: the scheduler, which keeps its runner.
    """

    port = Upward[SchedulerPort]()

    def __init__(self, port: SchedulerPort, limit: int) -> None:
        self.port = port
        self._limit = limit

    def drive(self) -> None:  # noqa: B027  # only for a back end that `runs_in_caller`
        """Run what is ready, in the calling thread, until nothing is left."""

    def accept(self, job: AnyJob) -> bool:
        """Take a job that comes before all others, if it can begin at once; returns whether it was taken.

        Called with the lock held, by the thread that adds the job: its signal handlers may raise. A job that is not taken is
        put in the queue.
        """
        return False

    def recheck(self) -> None:  # noqa: B027  # most have idle consumers, which are woken
        """Look again whether something is left to do; must not block, may be called with the lock held."""

    def recall(self, job: AnyJob) -> bool:
        """Take back a job that was handed out; True if it certainly never began. Called with the lock held."""
        return False

    def preempt(self, key: tuple[float, int]) -> None:  # noqa: B027
        """Something of this key is ready: take back what comes after it and has not begun. Called with the lock held."""

    def recall_all(self) -> None:  # noqa: B027
        """Take back all that has not begun. Called with the lock held."""

    def handed_out(self) -> list[AnyJob]:
        """Return what was taken and is not known to have begun. Called with the lock held."""
        return []

    def at_work(self, job: AnyJob) -> tuple[str, float] | None:
        """Return the id of what runs of a live job, and since when (monotonic); None if nothing does. With the lock held."""
        return job.id, job.started_at

    @abc.abstractmethod
    def stop(self, job: AnyJob, number: int, error: BaseException) -> None:
        """End attempt `number` as far as possible and report it as failed with `error`, unless it ends first.

        The caller's signal handlers may raise: the attempt ends like that all the same once it was claimed.
        """

    def terminate(self) -> None:  # noqa: B027  # only a process can be asked to end
        """Ask all workers to end, whatever they run. Does not wait."""

    @abc.abstractmethod
    def resize(self, limit: int) -> None:
        """Change the most attempts at once; running ones are left alone."""

    @abc.abstractmethod
    def join(self) -> None:
        """Wait until all workers have ended; called once the scheduler is drained. Returns at once in a worker."""

    @abc.abstractmethod
    def workers(self) -> int:
        """Return how many workers are alive."""

    def slots(self) -> int:
        """Return how many attempts can be live at once, as things are. Called with the lock held."""
        return self._limit

    def abandoned(self) -> int:
        """Return how many threads run an attempt that nobody waits for."""
        return 0

    def after_fork(self) -> None:  # noqa: B027
        """Drop what belongs to the parent; called in a child that `os.fork` made."""
