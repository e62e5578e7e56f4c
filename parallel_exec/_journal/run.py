"""One run with a journal: which of its tasks are done already, and who is told of the ends of the others.

    JournaledRun(journal) ─► begin: each task that is staged has a key, and the file is this run's
        ─► resume_done, admit: what is done already ─► note: what has ended since ─► close: all is on disk

`execute_all` gives what is staged to `begin`; what comes later is given to `admit`, one by one.

Guarantees:
    No task is done by another's record: the record's key is compared, which stands for the id, the call and the version.
    What is recorded, and cannot be read back, is not done: the task runs again, and a warning says why.
    A run that nobody closes is closed when it is collected, or when the interpreter ends.
"""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING, Any, Callable, Mapping

from parallel_exec import _forks
from parallel_exec._dispatcher import logger
from parallel_exec._journal.database import Database
from parallel_exec._journal.keys import key_of
from parallel_exec._journal.recorder import Recorder
from parallel_exec._journal.records import FAILED, SUCCEEDED, UndecodableError
from parallel_exec._outcome import Terminated
from parallel_exec._sync.clock import time
from parallel_exec.errors import JournalError
from parallel_exec.journal import Journal

if TYPE_CHECKING:
    import os

    from typing_extensions import Self

    from parallel_exec._core.batch import Batches
    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.journaling import Restored

_AHEAD = (
    10_000  # most results of a stream that wait to be recorded before it starts more tasks; a guess: a few transactions
)
_GRACE = 1.0  # seconds that the end of a stream takes at most after Ctrl-C; a guess: half of what we promise
_TOLD = 5  # warnings for records that cannot be read back; a guess: then they are counted
_NOTHING: Mapping[str, Any] = {}


class JournaledRun:
    """One run's side of a journal. Thread-safe.

    Attributes:
        note: the recorder's, once the run has begun.
        path: the journal's.

    Args:
        journal: it, or its path.
        bounded: whether the run's results are let go as it goes on, as a stream's: then not too many may wait to be recorded.

    Raises:
        TypeError, ValueError: it is neither.
        JournalError: the file is no journal, or cannot be used.
    """

    def __init__(self, journal: Journal | str | os.PathLike[str], *, bounded: bool = False) -> None:
        if not isinstance(journal, Journal):
            journal = Journal(journal)
        self.path = journal.path
        self._version = journal.version
        self._states = (SUCCEEDED,) if journal.retry_failed else (SUCCEEDED, FAILED)
        self._codec = journal.codec()
        self._bounded = bounded
        self._lock = threading.Lock()
        self._ids: set[int] = (
            set()
        )  # their hashes, as there may be millions: two are alike once in 10^7 runs of a million
        self._keys: dict[AnyJob, bytes] = {}  # of what has not been recorded
        self._done: set[bytes] = set()
        self._unreadable = 0
        self._recorder: Recorder | None = None
        self.note: Callable[[AnyJob], object] = id
        self._born = _forks.generation
        self._until: float | None = None
        self._database = Database.open(journal.path, write=True)
        self._is_closed = False  # last: what could not be opened need not be closed

    def begin(self, staged: Batches[Any] | None = None) -> None:
        """Take hold of the file, once all that is staged is registered; its batch tells this run of its ends from then on.

        Raises:
            JournalError: another run has it; or it cannot be used.
            ValueError: a task's id is none of the user's own, or another's.
        """
        jobs = () if staged is None else list(staged.current.jobs)
        for job in jobs:
            if not job.cancelled():
                self._register(job)
        self._begin()
        while staged is not None and (left := staged.record_in(self)):  # what was added meanwhile
            for job in left:
                self._register(job)

    def _begin(self) -> None:
        database = self._database
        database.begin_run(self._version, is_encoded=self._codec.is_own)
        self._done = database.keys(self._states)
        recorder = Recorder(database, self._codec, self._keys, self._ids, bounded=self._bounded)
        self.note, self._recorder = recorder.note, recorder  # first: once it has started, it is to be told of the end
        recorder.start()

    # ── tasks ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _register(self, job: AnyJob) -> bytes:
        """Take in a job; returns its key. Runs users' code, if its arguments are not plain values.

        Raises:
            ValueError: its id is none of the user's own, or another task's.
        """
        id = job.id  # noqa: A001  # it is one
        if not job.has_own_id():
            raise ValueError(
                f"a journal knows tasks by their ids, and task {id!r} was given none: give it one, Task(..., id=...)"
            )
        fn, kwargs, args = job.fn, job.kwargs, job.args  # `args` last, as they are the first to be let go
        if args is None:  # it has succeeded before the run began, and its call was let go: no other has this key
            fn, args = JournaledRun, ()
        key = key_of(self._version, id, fn, args, kwargs or _NOTHING)
        number = hash(id)
        with self._lock:
            if number in self._ids:
                raise ValueError(f"a journal knows tasks by their ids, and two have the id {id!r}: give each its own")
            self._ids.add(number)
        self._keys[job] = key
        return key

    def has_admitted(self, job: AnyJob) -> bool:
        """Return whether a job was taken in, and its end not recorded yet."""
        return job in self._keys

    def _restore(self, id: str, key: bytes | None) -> Restored | None:
        """Return how a task ended in an earlier run; None if it must run."""
        if key not in self._done or self._recorder is None:
            return None
        try:
            record = self._database.find(id)
            if record is None or record.key != key or record.state not in self._states:
                return None
            restored = self._codec.restore(record)
        except (JournalError, UndecodableError) as error:
            self._tell(id, error)
            return None
        return restored

    def resume_done(self, jobs: list[AnyJob], resume: Callable[[AnyJob, Restored], object]) -> None:
        """End those jobs that are done, by `resume`, as they ended in an earlier run."""
        done = self._done
        for job in [job for job in list(jobs) if self._keys.get(job) in done] if done else ():
            restored = self._restore(job.id, self._keys.get(job))
            if restored is not None:
                resume(job, restored)

    def _tell(self, id: str, error: Exception) -> None:
        self._unreadable += 1
        if self._unreadable <= _TOLD:
            logger.warning("task %r runs again: %s", id, error)

    def admit(self, job: AnyJob) -> Restored | None:
        """Take in a job of a run that has begun; returns how it ended in an earlier run, if it did.

        In a stream it waits while the disk is too slow for the results that there are.

        Raises:
            ValueError: its id is none of the user's own, or another task's.
        """
        if self._bounded and self._recorder is not None:
            self._recorder.keep_pace(_AHEAD)
        return self._restore(job.id, self._register(job))

    def seal(self, job: AnyJob) -> None:
        """Record a job that has ended, with its result as it is now. Runs users' code."""
        if self._recorder is not None:
            self._recorder.seal(job)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def hurry(self, seconds: float) -> None:
        """Let the end of the run wait no longer than some seconds from now for what is still to be recorded."""
        self._until = time.monotonic() + seconds

    def close(self, error: BaseException | None = None) -> str:
        """End the run, when all that it has recorded is on disk; lets the file go.

        Args:
            error: what has ended it; None if it has come to its end.

        Returns:
            "", or in what the journal is incomplete.
        """
        recorder = self._recorder
        if recorder is None or not recorder.has_started():
            self._database.close()
            self._is_closed = True
            return ""
        how = _how(error)
        recorder.let_go(how)  # first: the run ends, whatever a signal handler raises from here on
        self._is_closed, self._recorder = True, None
        self._ids, self._done = set(), set()
        if self._unreadable > _TOLD:
            logger.warning("%d more tasks run again, as their records cannot be read", self._unreadable - _TOLD)
        if recorder.is_own_thread():  # it has let go a stream that nobody closed
            return ""
        is_over = recorder.finish(how, self._until)
        return "" if self._born != _forks.generation else self._incomplete(recorder, is_over)

    def _incomplete(self, recorder: Recorder, is_over: bool) -> str:
        """Return in what the journal is incomplete, as far as the recorder was waited for; or ""."""
        missing = recorder.missing()
        count = "1 result is" if missing == 1 else f"{missing} results are"
        if not is_over and not recorder.error:  # the recorder is at it still
            if self._until is not None or not missing:
                return ""
            return f"the journal is incomplete so far, {count} still being recorded: `encode`, or the disk, takes very long"
        if missing:
            return f"the journal is incomplete, {count} missing and will be worked out again: {recorder.latest_error}"
        # Else the run's end could not be recorded; or the file is gone, and all that was in it.
        return f"the journal is incomplete: {recorder.error}" if recorder.error else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: object, error: BaseException | None, *_: object) -> None:
        hurries = isinstance(error, KeyboardInterrupt) or (type(error) is Terminated and error.hurries)
        if hurries and self._until is None:
            self.hurry(_GRACE)
        incomplete = self.close(error)
        if incomplete and error is None:
            warnings.warn(incomplete, RuntimeWarning, stacklevel=3 if self._bounded else 4)
        elif incomplete:
            logger.warning("%s", incomplete)

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            if self._recorder is None or not self._recorder.has_started():
                self._database.close()
            else:
                self._recorder.let_go()


def _how(error: BaseException | None) -> str:
    """Return how a run has ended, by what has ended it."""
    if error is None:
        return "finished"
    return "interrupted" if isinstance(error, (KeyboardInterrupt, GeneratorExit, Terminated)) else "failed"
