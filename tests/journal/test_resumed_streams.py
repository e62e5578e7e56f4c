"""`stream(journal=...)`: a stream's journal is its own from the call until it has come to its end, whatever that is."""

from __future__ import annotations

import gc
import itertools
from typing import TYPE_CHECKING, Any, Iterator

import pytest
import work
from backend_kinds import OWN, over
from script import run as run_script

from parallel_exec import JournalError, Task
from parallel_exec._journal import recorder
from parallel_exec.journal import Journal

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def journal(tmp_path: Path) -> str:
    """Where the journal goes."""
    return str(tmp_path / "run.db")


def _numbered(count: int) -> Iterator[Task[int]]:
    return (Task(work.double, number, id=str(number)) for number in range(count))


def _last_run(journal: str) -> Any:
    return Journal(journal).summary().runs[-1]


def test_a_journal_that_cannot_be_used_is_refused_at_the_call(lab: Any, tmp_path: Path) -> None:
    """Not at the first result, and nothing was read by then."""
    other = tmp_path / "notes.txt"
    other.write_text("notes")
    tasks = _numbered(3)
    with pytest.raises(JournalError):
        lab.executor().stream(tasks, journal=other)
    assert len(list(tasks)) == 3
    assert other.read_text() == "notes"


def test_a_stream_that_is_never_read_lets_the_journal_go(lab: Any, journal: str) -> None:
    """It holds it from the call on, and not longer than it is there."""
    executor = lab.executor()
    results = executor.stream(_numbered(3), journal=journal)
    with pytest.raises(JournalError, match="under way"):
        executor.stream([], journal=journal)
    del results
    gc.collect()
    assert _last_run(journal).how == "interrupted"
    assert [result.unwrap() for result in executor.stream(_numbered(3), journal=journal, order="submitted")] == [
        0,
        2,
        4,
    ]
    assert _last_run(journal).how == "finished"


@over(OWN)
def test_a_stream_that_is_closed(lab: Any, journal: str) -> None:
    """What has ended is recorded, also if it was not yielded; the next one goes on from there."""
    executor = lab.executor(max_concurrency=2)
    results = executor.stream(
        (Task(work.double, number, id=str(number)) for number in itertools.count()), journal=journal
    )
    taken = [next(results).result for _ in range(5)]
    results.close()
    assert _last_run(journal).how == "interrupted"
    recorded = {result.result for result in Journal(journal)}
    assert recorded >= set(taken)
    again = list(executor.stream(_numbered(50), journal=journal))
    assert {result.result for result in again if result.resumed} == recorded & set(range(0, 100, 2))


def test_an_iterable_that_raises(lab: Any, journal: str) -> None:
    """Its error comes after all results before it, which are recorded."""

    def tasks() -> Iterator[Task[int]]:
        yield from _numbered(5)
        raise work.CodedError(3)

    results = lab.executor().stream(tasks(), journal=journal)
    assert len(list(itertools.islice(results, 5))) == 5
    with pytest.raises(work.CodedError):
        next(results)
    assert (_last_run(journal).how, _last_run(journal).succeeded) == ("failed", 5)


@pytest.mark.parametrize(("task", "words"), [(Task(int), "was given none"), (Task(int, id="1"), "two have the id '1'")])
def test_a_bad_id(lab: Any, journal: str, task: Task[int], words: str) -> None:
    """It ends the stream like an error of the iterable, after the results of what came before it."""
    results = lab.executor().stream([*_numbered(2), task, *_numbered(9)], journal=journal)
    assert len(list(itertools.islice(results, 2))) == 2
    with pytest.raises(ValueError, match=words):
        next(results)
    assert Journal(journal).summary().succeeded == 2


@over(("thread", "inline"))
@pytest.mark.parametrize("order", ["completed", "submitted"])
def test_what_becomes_of_a_result_is_not_recorded(lab: Any, journal: str, order: Any) -> None:
    """It is recorded as the task has returned it, however soon the caller changes it."""
    for result in lab.executor().stream(
        [Task(work.same, [1], id=str(n)) for n in range(50)], order=order, journal=journal
    ):
        result.result.clear()
    assert [result.result for result in Journal(journal)] == [[1]] * 50


def test_results_that_come_back_are_in_their_place(lab: Any, journal: str) -> None:
    """In order of the tasks if that is wanted; they wait for nothing else."""
    executor, gate = lab.executor(max_concurrency=2), lab.event()
    list(executor.stream(_numbered(3), journal=journal))
    tasks = [Task(gate.wait, id="slow"), *_numbered(3)]
    results = executor.stream(tasks, journal=journal)
    assert [next(results).unwrap() for _ in range(3)] == [0, 2, 4]
    gate.set()
    assert [result.task.id for result in results] == ["slow"]
    results = executor.stream(tasks, journal=journal, order="submitted")
    assert [result.resumed for result in results] == [True] * 4


def _kept() -> int:
    """Return of how many tasks the one run that there is keeps anything."""
    (run,) = recorder._alive
    return len(run._keys) + len(run._ended) + len(run._pending)


def test_a_disk_that_is_slow_holds_up_the_stream(lab: Any, journal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more results wait for it than some transactions' worth: the iterable is read as they are recorded."""
    monkeypatch.setattr("parallel_exec._journal.run._AHEAD", 10)
    monkeypatch.setattr(recorder, "AT_ONCE", 5)
    for _ in lab.executor().stream(_numbered(500), window=4, journal=journal):
        assert _kept() <= 50  # some are counted as ended, as pending, and by their key
    assert Journal(journal).summary().succeeded == 500


def test_a_long_stream_keeps_little(lab: Any, journal: str) -> None:
    """Nothing but a number is kept of each task."""
    executor = lab.executor(max_concurrency=2)
    results = executor.stream(_numbered(3000), window=4, journal=journal)
    for _ in itertools.islice(results, 2900):
        pass
    work.until(lambda: _kept() < 50)
    assert len(list(results)) == 100


def test_ctrl_c(tmp_path: Path) -> None:
    """It is raised within 2 s where the stream is waited for, and within 3 if the disk hangs; what had ended is recorded."""
    body = """
        from parallel_exec._journal.database import Database
        if sys.argv[1] == "hangs":
            write = Database.write
            Database.write = lambda *args: time.sleep(3) or write(*args)
        began = []
        def interrupt():
            work.until(lambda: executor.stats().succeeded == 50)
            time.sleep(0.1)
            began.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        try:
            with ParallelExecutor(max_concurrency=2, retry_count=0) as executor:
                tasks = [*[Task(int, id=str(number)) for number in range(50)], Task(interrupt, id="interrupts")]
                list(executor.stream(tasks, journal=sys.argv[2]))
        except KeyboardInterrupt:
            say(time.monotonic() - began[0] < (2 if sys.argv[1] == "works" else 3))
    """

    def is_in_time(disk: str, chance: int) -> bool:
        journal = str(tmp_path / f"{disk}-{chance}.db")
        said = run_script(tmp_path, body, disk, journal)
        run = _last_run(journal)
        assert run.how == "interrupted"
        assert disk == "hangs" or (run.succeeded, run.unfinished) == (50, 1)
        return said == "True"

    for disk in ("works", "hangs"):
        assert any(is_in_time(disk, chance) for chance in range(3))  # a machine may stall
