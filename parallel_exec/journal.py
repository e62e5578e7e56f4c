"""`Journal`: the file that a run leaves behind, as something to resume from and to read.

    execute_all(journal="run.db") ──► the file ──► Journal("run.db").results(), .failed(), .summary()

Guarantees:
    To make a `Journal` checks its settings and touches no file. Reading changes nothing, and can be done while a run goes on:
    it sees the moment at which it began.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable, Iterator, NamedTuple, Sequence, cast

from parallel_exec._checks import check_flag
from parallel_exec._journal.records import FAILED, SUCCEEDED, VALUELESS, Codec, Record, UndecodableError
from parallel_exec._journal.runs import JournalRun
from parallel_exec._outcome import Failure
from parallel_exec._sync.clock import time
from parallel_exec.errors import JournalError
from parallel_exec.task import NotKept, TaskResult, checked_task

if TYPE_CHECKING:
    from parallel_exec._journal.database import Database

__all__ = ["Journal", "JournalRun", "JournalSummary"]

_KEPT = (SUCCEEDED, FAILED)
_make_result: Callable[..., TaskResult[Any]] = cast("Any", TaskResult)  # for type checkers it is two classes


class Journal:
    """A journal of runs: a SQLite file in which each task that has ended is recorded under its id.

    Args:
        path: the file; it is made by the first run.
        retry_failed: whether a task that has failed is run again by the next run; if not, its error comes back.
        version: of the tasks, for what their arguments do not show: under another version all are run again.
        encode: returns a string or bytes for what a task returned, as `json.dumps`; default: it is pickled.
        decode: undoes that, as `json.loads`.

    Attributes:
        path: the file, as a string.

    Raises:
        TypeError, ValueError: a setting is wrong.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        retry_failed: bool = True,
        version: str = "",
        encode: Callable[[Any], str | bytes] | None = None,
        decode: Callable[[Any], Any] | None = None,
    ) -> None:
        self.path = _check_path(path)
        self.retry_failed = check_flag("retry_failed", retry_failed)
        self.version = _check_version(version)
        self.encode, self.decode = _check_pair(encode, decode)

    def __repr__(self) -> str:
        return f"Journal({self.path!r})"

    def codec(self) -> Codec:
        """Return what encodes and decodes for one run."""
        return Codec(self.encode, self.decode)

    def __iter__(self) -> Iterator[TaskResult[Any]]:
        """Iterate over the results, in the order in which the tasks ended; in flat memory.

        A result that was recorded without its value, as that could not be encoded, is left out. One that cannot be read back
        fails with a `JournalError` that says why.

        Raises:
            JournalError: the journal cannot be read, or needs `decode`.
        """
        return self._results(_KEPT)

    def results(self) -> list[TaskResult[Any]]:
        """Return what iteration yields.

        Raises:
            JournalError: the journal cannot be read, or needs `decode`.
        """
        return list(self._results(_KEPT))

    def failed(self) -> list[TaskResult[Any]]:
        """Return the results of those tasks that have failed.

        Raises:
            JournalError: the journal cannot be read, or needs `decode`.
        """
        return list(self._results((FAILED,)))

    def _results(self, states: Sequence[int]) -> Iterator[TaskResult[Any]]:
        codec, database = self.codec(), self._open()
        try:
            if database.is_encoded not in (None, codec.is_own):
                how = (
                    "with encode=: give it decode= as well"
                    if database.is_encoded
                    else "by pickle: open it without decode="
                )
                raise JournalError(self.path, f"its values were recorded {how}")
            for record in database.records(states):
                yield self._result_of(record, codec)
        finally:
            database.close()

    def _result_of(self, record: Record, codec: Codec) -> TaskResult[Any]:
        task = checked_task(NotKept(record.id), record.id, 0, {})
        try:
            outcome, *rest = codec.restore(record)
        except UndecodableError as error:
            failed = JournalError(self.path, str(error))
            failed.__cause__ = error.__cause__
            return _make_result(task, False, None, failed, (), record.queued_for, record.duration)
        if isinstance(outcome, Failure):
            return _make_result(task, False, None, outcome.error, *rest)
        return _make_result(task, True, outcome.value, None, *rest)

    def summary(self) -> JournalSummary:
        """Return how many tasks have ended in which way, and the runs.

        Raises:
            JournalError: the journal cannot be read.
        """
        database = self._open()
        try:
            counts = database.counts()
            succeeded, failed, valueless = (counts.get(state, 0) for state in (SUCCEEDED, FAILED, VALUELESS))
            return JournalSummary(succeeded, failed, valueless, tuple(database.runs()))
        finally:
            database.close()

    def _open(self) -> Database:
        from parallel_exec._journal.database import Database  # it imports sqlite3

        return Database.open(self.path, write=False)


def _check_path(path: str | os.PathLike[str]) -> str:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path takes the path of a file, not {path!r}")
    text = os.fsdecode(path)
    if not text or "\0" in text:
        raise ValueError(f"path takes the path of a file, not {path!r}")
    return text


def _check_version(version: str) -> str:
    if not isinstance(version, str):
        raise TypeError(f"version takes a string, not {version!r}: write version=str(...)")
    try:
        version.encode()
    except UnicodeEncodeError:
        raise ValueError(f"version takes text, and {version!r} has surrogates") from None
    return version


def _check_pair(encode: Any, decode: Any) -> tuple[Any, Any]:
    for name, function in (("encode", encode), ("decode", decode)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} takes a function, not {function!r}")
    if (encode is None) is not (decode is None):
        given, other = ("decode", "encode") if encode is None else ("encode", "decode")
        raise ValueError(
            f"{given} was given without {other}: they come together, as encode=json.dumps, decode=json.loads"
        )
    return encode, decode


class JournalSummary(NamedTuple):
    """What is in a journal; as a string, a line for the tasks and one for each run.

    Attributes:
        succeeded: how many tasks have returned, and have their values.
        failed: how many tasks have failed.
        valueless: how many tasks have returned what could not be encoded; they are run again.
        runs: the runs, the first one first.
    """

    succeeded: int
    failed: int
    valueless: int
    runs: tuple[JournalRun, ...]

    def __str__(self) -> str:
        valueless = f", {self.valueless} without a value" if self.valueless else ""
        return "\n".join([f"{self.succeeded} succeeded, {self.failed} failed{valueless}", *map(_line, self.runs)])


def _line(run: JournalRun) -> str:
    """Return a run in words."""
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.started_at))
    took = "" if run.ended_at is None else f" after {run.ended_at - run.started_at:.1f} s"
    counts = f"{run.succeeded} succeeded, {run.failed} failed, {run.resumed} resumed"
    if run.unfinished:
        counts += f", {run.unfinished} unfinished"
    version = f", version {run.version!r}" if run.version else ""
    return f"run {run.number}: {began}, {run.how}{took}, process {run.pid} on {run.host}{version}: {counts}"
