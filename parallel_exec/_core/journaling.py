"""What the core knows of a run's journal: that jobs are admitted to it before they run, and that it is told of their ends.

    execute_all, stream, add_task ──► admit(job) ──► Restored ──► it ends as it did in an earlier run; never in the queue
                                             └─────► None ──────► it runs as ever ──► it leaves its batch ──► note(job)

The journal itself is `_journal/run.py`. While a run has none, this module is for type checkers alone.

Guarantees:
    A job joins the batch of a run with a journal only after that has admitted it: `Admission.add` refuses it else, with the
    executor's lock held, as the run may have begun while the job was being made.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NamedTuple, Protocol

    from parallel_exec._outcome import Outcome
    from parallel_exec.task import Attempt
else:
    from parallel_exec._typing import NamedTuple, Protocol


class Restored(NamedTuple):
    """How a task ended in an earlier run.

    Attributes:
        outcome: what it returned or raised.
        attempts: as a `TaskResult`'s.
        queued_for: as a `TaskResult`'s.
        duration: as a `TaskResult`'s.
    """

    outcome: Outcome
    attempts: tuple[Attempt, ...]
    queued_for: float
    duration: float


class RunJournal(Protocol):
    """One run's side of a journal."""

    def admit(self, job: Any) -> Restored | None:
        """Take a job in; returns how it ended in an earlier run, if that counts. Runs users' code, so without the lock.

        Raises:
            ValueError: its id is none of the user's own, or another task's.
        """
        ...

    def has_admitted(self, job: Any) -> bool:
        """Return whether it has taken a job in, and has not recorded its end. With the executor's lock held."""
        ...

    def note(self, job: Any, /) -> object:
        """Note that a job has ended. In one step, with the executor's lock held; may be repeated."""
        ...

    def seal(self, job: Any) -> None:
        """See to it that nothing that becomes of a job's result from now on is recorded. Without the lock."""
        ...
