"""The executor of `map`, which records in a journal what comes one by one.

    items, one by one ──► start ──► admit ──► done in an earlier run: it ends at once, as it did there
                                          └─► not done: it runs ──► it has ended: note
    items, all of them ──► add_task, execute_all(journal=...)

`stream` does the same, and hands out results: but the writer wants futures, and a source of items that is slow would hold up
the results that are there.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from typing import TYPE_CHECKING, Any, Callable, Sequence, TextIO

from parallel_exec.executor import ParallelExecutor
from parallel_exec.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from parallel_exec._core.batch import Batch
    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.journaling import RunJournal
    from parallel_exec.cli.reader import Call
    from parallel_exec.future import TaskFuture
    from parallel_exec.journal import Journal

GRACE = 1.0  # seconds for what is left to be recorded after Ctrl-C
INCOMPLETE = "the journal .*is incomplete"


class Recording:
    """A run that is recorded: what the jobs that are admitted to it join, and leave when they have ended.

    It keeps none of them. Attributes and methods are as `Collector` says.
    """

    ended: Sequence[Any] = ()

    def __init__(self, journal: RunJournal) -> None:
        self.journal: RunJournal | None = journal
        self._note = journal.note

    @property
    def current(self) -> Recording:
        """This, for `Admission`."""
        return self

    def join(self, job: Any) -> None:
        """Add a job."""

    def forget(self, job: Any) -> None:
        """Undo `join`."""

    def leave(self, job: Any, success: bool) -> Sequence[Any]:
        """Note that a job has ended; nothing must be cancelled for it."""
        self._note(job)
        return ()


class MapExecutor(ParallelExecutor):
    """Runs the calls of a `map`."""

    def start(self, call: Call, recording: Recording | None) -> TaskFuture[Any]:
        """Start a call, which is recorded if a recording is given."""
        if recording is None:
            return self.options(id=call.id, needs=call.needs).submit(call.execute)
        return self._start_task(Task(call.execute, id=call.id, needs=call.needs), recording)

    def run_all(
        self, tell: Callable[[], object], *, deadline: float | None, fail_fast: bool, journal: Journal | None
    ) -> None:
        """Run all tasks that were added.

        Args:
            tell: called once the journal is known to be good, before the first task starts.
            deadline: as for `execute_all`.
            fail_fast: likewise.
            journal: likewise.

        Raises:
            JournalError: the journal cannot be used.
        """
        self._tell = tell
        self.execute_all(deadline=deadline, fail_fast=fail_fast, journal=journal)

    def _run(self, *how: Any, **named: Any) -> Batch[AnyJob]:
        self._tell()
        return super()._run(*how, **named)


@contextlib.contextmanager
def recording(journal: Journal | None) -> Iterator[Recording | None]:
    """Record in a journal what is started in this block, in which all of it ends.

    Raises:
        JournalError: the journal cannot be used.
    """
    if journal is None:
        yield None
        return
    from parallel_exec._journal.run import JournaledRun  # few runs need it, and sqlite3

    with JournaledRun(journal, bounded=True) as run:
        run.begin()
        try:
            yield Recording(run)
        except BaseException:
            run.hurry(GRACE)
            raise


@contextlib.contextmanager
def noting_incomplete() -> Iterator[list[str]]:
    """Note what is warned of a journal that is incomplete, so that it is told like all else that went wrong."""
    found: list[str] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("always", INCOMPLETE, RuntimeWarning)
        show = warnings.showwarning

        def note(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if re.match(INCOMPLETE, str(message)):
                found.append(str(message))
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = note
        yield found
