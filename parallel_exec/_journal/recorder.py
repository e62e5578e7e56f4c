"""The thread that records what has ended: the only one of a run that writes to its journal.

    a job leaves its batch ── note: one append ──► ended ── every 0.2 s: Codec.record ──► pending ── one transaction ──► file
    before a stream yields ── seal ───────────────────────► Codec.record, at once ──────────▲

Guarantees:
    `note` does no I/O and takes no lock. What was noted is on disk some 0.2 s later, as long as the disk does its part; each
    job is recorded once, however often it is noted.
    While the file cannot be written what is to be recorded waits, and is tried again each second and at the end; one warning
    says so. Nobody waits for that but `finish`, which gives up once nothing has been written for a while.
    What waits is bounded in a stream, which lets its results go: beyond, what is oldest is dropped, and counted.
    In a forked child, which has no such thread, nothing is recorded and nothing waited for.
    When the interpreter ends, what has ended by then is recorded.

The race between `seal` (in a stream's thread) and the recorder's own thread, which may both want to record a job: whoever is
first does it, under a lock of its own; the other waits for that, and finds no key of the job.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

from parallel_exec import _forks
from parallel_exec._dispatcher import logger
from parallel_exec._sync.clock import time
from parallel_exec._sync.locks import call_whole
from parallel_exec._sync.parking import TICK, Parker
from parallel_exec._sync.threads import arrive, launch
from parallel_exec.errors import DeadlineExceededError, ParallelExecError, TaskSerializationError

if TYPE_CHECKING:
    from collections.abc import Sized

    from parallel_exec._core.job import AnyJob
    from parallel_exec._journal.database import Database
    from parallel_exec._journal.records import Codec, Record

INTERVAL = 0.2  # seconds between two transactions: less than half of what a kill may cost
HEARTBEAT = 5.0  # seconds between two signs of life
RETRY = 1.0  # seconds until what could not be written is tried again
PATIENCE = 30.0  # seconds without progress after which `finish` gives up; a guess: SQLite itself waits ten for a lock
AT_ONCE = 10_000  # most records of a transaction, so that none takes long; a guess: some 50 ms
BYTES = 1 << 24  # of results, likewise, as all that are encoded are in memory twice
LIMIT = 100_000  # most that wait to be recorded in a stream; a guess

_alive: weakref.WeakSet[Recorder] = weakref.WeakSet()


class Recorder:
    """Records the ends of one run's jobs. Thread-safe.

    Attributes:
        note: notes that a job has ended. One step, so that it may be called with any lock held, and by signal handlers.
        error: why the file cannot be written just now, in words; else "". Written by the thread.
        latest_error: why it could not be written last, in words; "" if it always could. Written by the thread.

    Args:
        database: open, with a run begun. Only the thread writes to it, and closes it.
        codec: makes the records.
        keys: of the jobs that are to be recorded once they have ended; each is taken out then.
        ids: one for each task of the run; they grow in number.
        bounded: whether no more than `LIMIT` may wait.
    """

    def __init__(
        self, database: Database, codec: Codec, keys: dict[AnyJob, bytes], ids: Sized, *, bounded: bool
    ) -> None:
        self._database = database
        self._keys = keys
        self._ids = ids
        self._codec = codec
        self._most = LIMIT if bounded else None
        self._ended: deque[AnyJob] = deque()
        self.note = self._ended.append
        self._encoding = threading.RLock()  # what encodes may take a result of the same stream
        self._pending: deque[Record] = deque()
        self._parker = Parker()  # of the thread
        self._waiter = Parker()  # of who waits for its end
        self._how = ""  # how the run has ended, once it has
        self._is_over = False
        self._born = _forks.generation
        self._resumed = self._recorded = self._written = self._dropped = 0
        self._bytes = 0  # of results that were encoded since the last transaction
        self._has_warned = False
        self.error = self.latest_error = ""
        self._thread = threading.Thread(target=self._run, name="parallel_exec-journal", daemon=True)

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: no thread can be started.
        """
        _alive.add(self)
        launch(self._thread)

    def has_started(self) -> bool:
        """Return whether the thread was started; if not, the database is still the caller's."""
        return self._thread.ident is not None

    # ── any thread ──────────────────────────────────────────────────────────────────────────────────────────────────

    def seal(self, job: AnyJob) -> None:
        """Record a job that has ended, with its result as it is now. Runs users' code."""
        if self._born == _forks.generation:
            call_whole(self._encoding, self._encode, job)  # after Ctrl-C the thread would wait for the lock for ever

    def _waiting(self) -> int:
        return len(self._ended) + len(self._pending)

    def missing(self) -> int:
        """Return how many results were not recorded, once the run is over."""
        left = sum(job in self._keys and _has_result(job) for job in list(self._ended))
        return self._dropped + len(self._pending) + left

    def keep_pace(self, most: int) -> None:
        """Wait while more than `most` wait, or large ones, and are being recorded; not for a file that cannot be written."""
        while self._waiting() > most or self._bytes > 2 * BYTES:
            if self.error or self._is_over or self._born != _forks.generation:
                return
            self._parker.unpark()
            time.sleep(0.005)

    def finish(self, how: str, until: float | None = None) -> bool:
        """Have the rest recorded and the run ended, and wait for that.

        Args:
            how: how the run has ended.
            until: wait no longer than until this `time.monotonic()`; the thread goes on beside the caller.

        Returns:
            Whether all that is done; False also if it is tried no more.
        """
        if self._born != _forks.generation:
            return True  # it is the parent's business
        self._how = self._how or how
        written, give_up = -1, 0.0
        while not self._is_over:
            self._parker.unpark()
            now = time.monotonic()
            if written != self._written:
                written, give_up = self._written, now + PATIENCE
            left = (give_up if until is None else until) - now
            if left <= 0:
                return False
            self._waiter.wait(min(left, TICK))
        return not self.error

    def let_go(self, how: str = "interrupted") -> None:
        """Have the run end like this, if nobody has said how it has ended; does not wait."""
        self._how = self._how or how
        self._parker.unpark()

    def is_own_thread(self) -> bool:
        """Return whether the calling thread is the one that records, which must not wait for itself."""
        return threading.get_ident() == self._thread.ident

    # ── its thread ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        arrive()
        try:
            beat = time.monotonic()
            while not self._how:
                self._parker.wait(RETRY if self.error else INTERVAL)
                is_due = time.monotonic() - beat > HEARTBEAT
                if self._record_all() or (is_due and self._write()):
                    beat = time.monotonic()
            self._end()
        except BaseException:
            logger.exception("the thread that records a journal failed")
            self.error = self.latest_error = self.error or "the thread that records it failed"
        finally:
            self._database.close()
            self._is_over = True
            _alive.discard(self)
            self._waiter.unpark()

    def _end(self) -> None:
        """Record what is left, as far as possible, and end the run."""
        self._record_all()
        self._codec.tell_rest()
        unfinished = len(self._ids) - self._resumed - self._recorded + self._dropped + len(self._pending)
        try:
            self._database.end_run(self._how, resumed=self._resumed, unfinished=unfinished)
        except Exception as error:
            self._fail(error)
        else:
            if not self.missing():  # it was a sign of life that could not be written
                self.error = ""

    def _record_all(self) -> bool:
        """Record all that has ended; returns whether anything was written."""
        written = False
        while self._ended or self._pending:
            while self._ended and len(self._pending) < AT_ONCE and self._bytes < BYTES:
                self._encode(self._ended[0])
                self._ended.popleft()  # only now: until then it is seen to wait
            if self._pending:
                if not self._write():
                    self._drop()
                    return False
                written = True
        return written

    def _encode(self, job: AnyJob) -> None:
        with self._encoding:
            key = self._keys.get(job)
            if key is None:
                return
            if _has_result(job):
                record = self._codec.record(job, key)
                self._bytes += len(record.result or "")
                self._pending.append(record)
                self._recorded += 1
            elif job.resumed:
                self._resumed += 1
            self._keys.pop(job, None)

    def _write(self) -> bool:
        """Write the oldest records, in one transaction; without any it is a sign of life. Returns whether that went well."""
        records = list(self._pending)[:AT_ONCE]
        try:
            self._database.write(records, self._resumed)
        except Exception as error:
            self._fail(error)
            return False
        for _ in records:
            self._pending.popleft()
        self._bytes = 0
        self._written += 1
        self.error = ""
        return True

    def _fail(self, error: Exception) -> None:
        """Note that the file cannot be written, and tell it once."""
        self.error = self.latest_error = str(error)
        if not self._has_warned:
            self._has_warned = True
            logger.warning("%s; the run goes on, and what has ended is recorded once that is possible", error)

    def _drop(self) -> None:
        """Let go what is oldest of what cannot be written, if there is too much of it."""
        if self._most is not None:
            while self._ended:  # as each keeps its result
                self._encode(self._ended[0])
                self._ended.popleft()
            size = sum(len(record.result or "") for record in list(self._pending))
            while len(self._pending) > self._most or size > 16 * BYTES:
                size -= len(self._pending.popleft().result or "")
                self._dropped += 1


def _has_result(job: AnyJob) -> bool:
    """Return whether what a job has ended with is a result of its own, and not from the journal.

    A task that was cancelled, cut off by the run's deadline, or refused because nothing could run any more has none.
    """
    if job.succeeded():
        return not job.resumed
    if job.resumed or job.cancelled():
        return False
    error, attempts = job.task_result().error, job.attempts()
    if isinstance(error, (KeyboardInterrupt, DeadlineExceededError)):
        return False
    if not attempts:
        return isinstance(error, TaskSerializationError)
    return error is attempts[-1].error or not isinstance(error, ParallelExecError)


def _at_exit() -> None:
    for recorder in list(_alive):
        if recorder.has_started():
            recorder.finish("interrupted")


atexit.register(_at_exit)  # that is after the executors' work has come to its end
