"""Lazy ways through the pool: `stream` for tasks, `in_order` for `map`.

    iterable ──► started, at once ──► Window: at most `size` tasks ──► ended ──► results

Guarantees:
    No more than the window's size are alive at once, so that an endless iterable runs in flat memory. Closing the generator
    cancels what waits, and stops what runs where the back end can. An error in the iterable, or in starting a task, after
    a shutdown say, is raised after all results of what came before it.
    What the iterable has yielded is on its way before it is asked for more: it may wait for what that does.
    A result is the caller's once the generator has yielded it, and in the window until then: where an exception comes in
    between, Ctrl-C's for one, it is found there. (So `handed` is set right before the `yield`, and a task leaves the window
    when the caller comes back: between the two no signal is heard.)
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import TimeoutError as WaitTimeout

from parallel_exec._sync.clock import time
from parallel_exec._sync.parking import TICK, Parker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from typing import Any, Callable, Generic, Iterator, Sequence, TypeVar

    from parallel_exec._core.job import AnyJob, Job
    from parallel_exec._core.journaling import RunJournal
    from parallel_exec.journal import Journal
    from parallel_exec.task import Task, TaskResult

    T = TypeVar("T")
else:
    from parallel_exec._typing import Generic


# Seconds of results that a window of its own size holds: ten times what a thread may keep the interpreter for.
AHEAD = 0.05
MOST = 4096  # tasks in a window of its own size; a guess: some 4 MB
_LAP = 64  # most results between two looks at the clock
_READ = 2  # tasks read for each result while the window grows: a slow iterable holds up no result for long


class Pace:
    """How large a window is: what is taken in `AHEAD` seconds, and between `least` and `most`, which may be the same.

    It grows as soon as results were taken fast enough for that, and shrinks by half at most each `AHEAD` seconds in which they
    were not: a consumer that pauses finds work done when it comes back. Slow tasks, a slow iterable and a slow consumer all keep
    it small, and so do large results, which take their time.

    Attributes:
        size: how many tasks.
    """

    def __init__(self, least: int, most: int = MOST) -> None:
        self.size = self._least = least
        self._most = most
        self._taken = 0
        self._next_look = 0
        self._since = 0.0

    def taken(self) -> None:
        """Note that a result was taken."""
        self._taken += 1
        if self._taken >= self._next_look:
            self._look(time.monotonic())

    def _look(self, now: float) -> None:
        seconds = now - self._since
        size, wanted = self.size, int(AHEAD * self._taken / seconds) if seconds > 0.0 else self._most
        if self._since == 0.0:  # the first, which may have waited for workers to start
            pass
        elif wanted > size:
            self.size = max(size, min(self._most, wanted, 2 * size))
        elif seconds > AHEAD:
            self.size = max(self._least, wanted, size // 2)
        else:  # too early to tell
            self._next_look = self._taken + min(self.size, _LAP)
            return
        self._since, self._taken, self._next_look = now, 0, min(self.size, _LAP)


class Window(Generic["T"]):
    """The tasks of a stream that were started and whose results were not yielded: what a job of the stream has as its batch.

    The jobs join and leave it with the executor's lock held, and `join` is called in the generator's thread alone, as is what has
    no note. The race between `leave`, which notes a job and then looks whether the generator waits, and `_wait`, which says that
    it waits and then looks for a job, is harmless: one of the two sees what the other has written.

    Attributes:
        futures: theirs, in the order read; and the one below.
        ended: those that have ended, in that order, if that is the order of the results; some of them may be gone since.
        handed: the one whose result was yielded last, until the next is asked for.
        pace: says how many there may be.
        journal: what is told of those that leave, if the stream has one; written before it begins.

    Args:
        pace: that.
        in_order: whether results are yielded in the order read.
    """

    def __init__(self, pace: Pace, *, in_order: bool) -> None:
        self.pace = pace
        self.journal: RunJournal | None = None
        self.futures: dict[Job[T], None] = {}
        self.ended: deque[Job[T]] = deque()
        self.handed: Job[T] | None = None
        self._line: deque[Job[T]] | None = deque() if in_order else None  # as `futures`, if the order matters
        self._parker = Parker()
        self._is_waiting = False

    @property
    def current(self) -> Window[T]:
        """This, for `Admission.add`."""
        return self

    # ── as a batch: with the executor's lock held ───────────────────────────────────────────────────────────────────

    def join(self, job: AnyJob) -> None:
        """Add a job."""
        self.futures[job] = None
        if self._line is not None:
            self._line.append(job)

    def forget(self, job: AnyJob) -> None:
        """Undo `join`, for a job that was not added after all."""
        if job not in self.ended:
            self.futures.pop(job, None)

    def leave(self, job: AnyJob, success: bool) -> Sequence[AnyJob]:
        """Note that a job has ended; nothing must be cancelled for it."""
        if self.journal is not None:
            self.journal.note(job)  # first, as it may be repeated: a signal handler may raise in between
        line = self._line
        if line is None:
            self.ended.append(job)
        if self._is_waiting and (line is None or self._is_first(job)):
            self._is_waiting = False
            self._parker.unpark()
        return ()

    def record_in(self, journal: RunJournal) -> None:
        """Have a journal told of the ends; before the stream begins."""
        self.journal = journal

    def _is_first(self, job: AnyJob) -> bool:
        """Return whether a job is first in line. Any thread may ask."""
        try:
            return self._line[0] is job  # type: ignore[index]
        except IndexError:  # the generator has just taken the last one
            return False

    # ── the generator ───────────────────────────────────────────────────────────────────────────────────────────────

    def next(self) -> Job[T] | None:
        """Take the job whose result is to be yielded next; None if it has not ended."""
        line = self._line
        if line is not None:
            while line and line[0] not in self.futures:  # it was not added after all
                line.popleft()
            return line.popleft() if line and line[0].done() else None
        while self.ended:
            job = self.ended.popleft()
            if job in self.futures:
                return job
        return None

    def wait(self) -> Job[T]:
        """Wait until there is a `next`, and take it.

        Raises:
            ParallelExecError: it would be for ever.
        """
        owner = next(iter(self.futures)).owner
        entered = owner.enter_wait(*self.futures)
        try:
            while True:
                self._is_waiting = True
                job = self.next()
                if job is not None:
                    self._is_waiting = False
                    return job
                self._parker.wait(TICK)
                if entered:
                    owner.enter_wait(*self.futures)
        finally:
            if entered:
                owner.leave_wait()

    def drop_handed(self) -> None:
        """Forget the one that the caller has."""
        handed = self.handed
        if handed is not None:
            self.futures.pop(handed, None)
            self.handed = None
            self.pace.taken()

    def finished(self) -> list[TaskResult[T]]:
        """Return the results of those that have ended, and were not cancelled. From any thread."""
        futures = [future for future in list(self.futures) if future is not self.handed]
        return [future.task_result() for future in futures if future.done() and not future.cancelled()]

    def close(self) -> None:
        """Cancel what waits, and stop what runs; what has ended stays."""
        self.drop_handed()
        # First what waits, or it would run now.
        running = [future for future in list(self.futures) if not future.cancel()]
        for future in running:
            future.abort()


def stream(
    start: Callable[[Any, Window[T]], object],
    tasks: Iterator[Task[T] | Callable[[], T]],
    window: Window[T],
    opened: Callable[[Window[T]], object],
) -> Iterator[TaskResult[T]]:
    """Yield the results of tasks that are started as the window has room; `opened` is told of the window first."""
    source = _Source(tasks, start)
    pace, futures = window.pace, window.futures
    opened(window)
    try:
        quota = pace.size  # first of all the window is filled
        while True:
            while quota > 0 and len(futures) < pace.size and source.start_next(window):
                quota -= 1
            future = window.next()
            if future is None:
                if not futures:
                    break
                if len(futures) < pace.size and source.start_next(window):
                    continue
                future = window.wait()
            if window.journal is not None:
                window.journal.seal(future)  # from here on the caller may change the result
            result = future.task_result()
            window.handed = future
            yield result
            window.drop_handed()
            del result, future
            quota = _READ
        source.raise_error()
    finally:
        window.close()


def journaled(
    results: Iterator[TaskResult[T]], window: Window[T], journal: Journal | str | os.PathLike[str]
) -> Iterator[TaskResult[T]]:
    """Return an iterator over the results of a stream with a journal, which is taken hold of now.

    Raises:
        JournalError: the journal cannot be used.
    """
    opened: Any = _journaled(results, window, journal)
    next(opened)
    return opened  # type: ignore[no-any-return]


def _journaled(
    results: Iterator[TaskResult[T]], window: Window[T], journal: Journal | str | os.PathLike[str]
) -> Iterator[TaskResult[T] | None]:
    """Yield None once the journal is open, so that it is closed however little is read, and then the results."""
    from parallel_exec._journal.run import JournaledRun  # few need it, and sqlite3

    with JournaledRun(journal, bounded=True) as run:
        run.begin()
        window.record_in(run)
        yield None
        yield from results


class _Source(Generic["T"]):
    """Reads tasks and starts them, until there are no more, or until one of the two raises."""

    def __init__(self, tasks: Iterator[Task[T] | Callable[[], T]], start: Callable[[Any, Window[T]], object]) -> None:
        self._tasks = tasks
        self._start = start
        self._is_over = False
        self._error: BaseException | None = None

    def raise_error(self) -> None:
        """Raise what starting a task has raised, if anything has."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del self, error  # the error's traceback holds this frame

    def start_next(self, window: Window[T]) -> bool:
        """Start the next task, which joins the window; returns whether there was one."""
        if self._is_over:
            return False
        try:
            self._start(next(self._tasks), window)
        except StopIteration:
            self._is_over = True
        except Exception as error:
            self._is_over, self._error = True, error
        return not self._is_over


def in_order(
    start: Callable[..., Job[T]], calls: Iterator[tuple[Any, ...]], timeout: float | None, buffersize: int | None
) -> Iterator[T]:
    """Return an iterator over the results of `start(*call)`, in order; the calls are started before it returns."""
    until = None if timeout is None else time.monotonic() + timeout
    futures: deque[Job[T]] = deque()
    for call in calls:
        futures.append(start(*call))
        if len(futures) == buffersize:
            break
    return _results(start, calls, futures, until, buffersize)


def _results(
    start: Callable[..., Job[T]],
    calls: Iterator[tuple[Any, ...]],
    futures: deque[Job[T]],
    until: float | None,
    buffersize: int | None,
) -> Iterator[T]:
    try:
        futures.reverse()  # so that a result is dropped as soon as it is taken
        while futures:
            if buffersize is not None:
                call = next(calls, None)
                if call is not None:
                    futures.appendleft(start(*call))
            yield _take(futures, until)
    finally:
        _turn_away(futures)
        del start, calls, futures  # an error's traceback holds this frame


def _turn_away(futures: deque[Job[T]]) -> None:
    """Cancel what is left, of which nobody wants to know."""
    for future in futures:
        future.cancel()
        future.mark_retrieved()


def _take(futures: deque[Job[T]], until: float | None) -> T:
    """Return the result of the next future, keeping no reference to either."""
    future = futures.pop()
    try:
        return future.result(None if until is None else until - time.monotonic())
    except WaitTimeout:
        if not future.done():
            future.cancel()
        raise
    finally:
        del future
