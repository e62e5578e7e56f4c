"""Tiny calls that go to an executor together: as one call of the executor's, of which theirs is a fraction.

    feeder ── add ──► CallGroup ──► executor ──► `remote_group.run_group`
                          │ GroupedFuture, one for each: what the runner sees
    settler ◄── finish ◄──┴── results, "it did not begin", the executor's error

Guarantees:
    A group is small: as many calls as take `AHEAD` seconds, by the latest that were seen. As long as none was seen, and
    after a group that was held up, each goes alone.
    What can be told not to have begun goes back, uncharged. When the executor fails, as at a worker's death, those that had
    ended keep their results and the one that may have been running fails with the executor's error (`group_journal.py`).
    Where the worker could not open the journal, all fail if the error says that a worker has died; another one is taken to
    say that the group could not be sent.
    A call of which the worker cannot tell that it runs long, as it lets no other thread run, is found by the journal (`stop`).
"""

from __future__ import annotations

import math
import threading
from concurrent.futures import BrokenExecutor, Future
from typing import TYPE_CHECKING, Any, Optional, Sequence

from parallel_exec._sync.clock import time
from parallel_exec.backends.engine.grouping import CallPace, fail, finish
from parallel_exec.backends.engine.remote_call import CallResult
from parallel_exec.backends.engine.remote_group import LONG

if TYPE_CHECKING:
    from parallel_exec.backends.engine.group_journal import Findings, GroupJournal
    from parallel_exec.backends.engine.submission import Submission

AHEAD = 0.002  # seconds of work in a group; a guess: some round trips through a process pool
SOON = 0.0005  # seconds; calls that take longer each, `OVERHEAD` included, gain little in a group
OVERHEAD = 30e-6  # seconds that an attempt takes beside the call; measured on one machine
MOST_CALLS = 64


class GroupedFuture(Future[Optional[CallResult]]):
    """The engine's future of one attempt in a group: a result, or None if it did not begin and never will.

    Attributes:
        group: in which it travels.
    """

    def __init__(self, group: CallGroup) -> None:
        super().__init__()
        self.group = group


class CallGroup:
    """Attempts in the order in which they are to begin.

    Attributes:
        submissions: the feeder adds to them until the group is sent.
        journal: what tells of them if the worker dies; None if there is none to be had.
        place: the index of the worker that runs them, as it is seen from here.
    """

    def __init__(self, journal: GroupJournal | None = None, place: int = 0) -> None:
        self.submissions: list[Submission] = []
        self.place = place
        self.journal = journal
        self._engine_future: Future[Any] | None = None  # the executor's, once it is sent; written by the feeder
        self._is_taken_back = False  # whether we have had the executor cancel it
        self._sent_at = 0.0
        self._lock = threading.RLock()  # held to read the journal: once the group has ended that is another group's
        self._has_ended = False
        self._futures: list[GroupedFuture] = []

    def add(self, submission: Submission) -> GroupedFuture:
        """Add an attempt, and return its future."""
        future = GroupedFuture(self)
        self.submissions.append(submission)
        self._futures.append(future)
        return future

    def sent(self, engine_future: Future[Any]) -> None:
        """Note the executor's future, before that leads here."""
        self._sent_at = time.monotonic()
        self._engine_future = engine_future

    def is_live(self) -> bool:
        """Return whether an attempt of it may be live: it was not settled."""
        return any(submission.slot is not None for submission in self.submissions)

    def waiting_priority(self) -> float:
        """Return the highest priority of what has yet to begin behind another attempt; -inf if nothing does."""
        unsettled = [submission.known_job for submission in self.submissions if submission.slot is not None]
        return max((job.priority for job in unsettled[1:] if job is not None), default=-math.inf)

    def take_back(self) -> bool:
        """Cancel it in the executor; returns whether none of it ever begins."""
        engine_future = self._engine_future
        if engine_future is None:
            return False
        self._is_taken_back = True
        return engine_future.cancel()

    def finish_before(self, submission: Submission, results: Sequence[CallResult]) -> None:
        """Finish all but an attempt that runs long: these are the results of those before it, the rest never begins."""
        futures = self._futures
        for future, result in zip(futures, results):
            finish(future, result)
        for future in futures[self.submissions.index(submission) + 1 :]:
            finish(future, None)

    def stop(self, age: float) -> tuple[Submission, str] | None:
        """Let a group that was sent `age` seconds ago or earlier begin no further call, and finish all but the one that runs.

        Returns:
            That one, and where it runs; None if none is known to.
        """
        with self._lock:
            journal = self.journal
            if journal is None or journal.is_closed or self._has_ended or self._engine_future is None:
                return None
            if time.monotonic() < self._sent_at + age or not journal.read().has_begun:
                return None
            findings = journal.close()
        if findings.is_over or len(findings.results) >= len(self.submissions):
            return None
        running = self.submissions[len(findings.results)]
        self.finish_before(running, findings.results)
        return running, findings.worker

    def end(self, engine_future: Future[Any], *, tells_begin: bool = False) -> None:
        """Finish all of it, as the executor has done with it, and let go of all.

        `tells_begin`: workers open the journal, and so what is in an empty one has not begun.
        """
        with self._lock:
            self._has_ended = True
            was_sent = self._engine_future is not None
            futures, self._futures, self._engine_future = self._futures, [], None
        error = None if engine_future.cancelled() else engine_future.exception()
        if engine_future.cancelled() and not self._is_taken_back:
            for future in futures:
                future.cancel()
        elif error is not None:
            findings = self.journal.close() if self.journal is not None and was_sent else None
            is_known = findings is not None and (findings.has_begun or tells_begin)
            _end_by_error(futures, error, findings if is_known else None)
        elif engine_future.cancelled():
            for future in futures:
                finish(future, None)
        else:
            for future, result in zip(futures, engine_future.result()):
                finish(future, result)


def _end_by_error(futures: list[GroupedFuture], error: BaseException, findings: Findings | None) -> None:
    """Finish a group that the executor has failed; `findings` if it is known what has begun."""
    if findings is not None:
        _end_by_findings(futures, findings, error)
    elif isinstance(error, BrokenExecutor) or not isinstance(error, Exception):
        for future in futures:
            fail(future, error)
    else:  # one cannot be sent, so none was: each goes alone
        for future in futures:
            finish(future, None)


def _end_by_findings(futures: list[GroupedFuture], findings: Findings, error: BaseException) -> None:
    """Finish a group with which a worker has died: only what may have been running fails."""
    ended = len(findings.results)
    for future, result in zip(futures, findings.results):
        finish(future, result)
    if findings.has_begun and not findings.is_over and ended < len(futures):
        fail(futures[ended], error)
        ended += 1
    for future in futures[ended:]:
        finish(future, None)


def make_pace() -> CallPace:
    """Return the pace of an executor's calls; `observe` is told what they take in all."""
    pace = CallPace(ahead=AHEAD, most=MOST_CALLS, alone_from=SOON, overhead=0.0, longest=2 * LONG)
    pace.forget()
    return pace
