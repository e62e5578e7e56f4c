"""What is cut off is no result: it is not recorded, and runs the next time."""

from __future__ import annotations

from pathlib import Path

import backend_kinds
import work

from parallel_exec import DeadlineExceededError, Journal, ParallelExecutor, Task


@backend_kinds.over(("thread", "process"))
def test_a_task_that_the_deadline_has_cut_off(kind: backend_kinds.Kind, tmp_path: Path) -> None:
    """What ran when the run's deadline passed has no record, also where failures count as done."""
    gate, started = work.Latch(tmp_path / "gate"), work.Latch(tmp_path / "started")
    journal = Journal(tmp_path / "run.db", retry_failed=False)
    task = Task(work.hold, started, gate, id="slow")
    with ParallelExecutor(backend=kind.make(), timeout=None, retry_count=0) as executor:
        executor.add_task(task)
        [result] = executor.execute_all(deadline=0.5, journal=journal)
        assert isinstance(result.error, DeadlineExceededError)
        assert journal.results() == []
        assert journal.summary().runs[-1].unfinished == 1
        gate.set()
        executor.add_task(task)
        [result] = executor.execute_all(journal=journal)
    assert (result.success, result.resumed) == (True, False)
