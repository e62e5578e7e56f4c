"""What calls in a group have come to is known although their worker has died."""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Callable, Iterator

import pytest
from interruptions import leaves_nothing_open

from parallel_exec import ParallelExecutor
from parallel_exec.backends.engine.call_group import CallGroup
from parallel_exec.backends.engine.executor import SubmittedGroup
from parallel_exec.backends.engine.group_journal import MOST_BYTES, GroupJournal, Journals, JournalWriter
from parallel_exec.backends.engine.grouping import CallPace
from parallel_exec.backends.engine.remote_call import AttemptInfo
from parallel_exec.backends.engine.remote_group import GroupedCall, run_group

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a worker finds the journal through /proc")


def _note(path: str, number: int) -> int:
    with open(path, "ab", buffering=0) as file:
        file.write(b"%d\n" % number)
    return number


def _noted(path: str) -> list[int]:
    with open(path) as file:
        return [int(line) for line in file]


def _calls(*called: tuple[Callable[..., Any], Any]) -> list[GroupedCall]:
    return [(fn, (argument,), {}, AttemptInfo(str(n), 1, None)) for n, (fn, argument) in enumerate(called)]


def _size(journal: GroupJournal) -> int:
    return os.fstat(journal.address.fd).st_size


@pytest.fixture
def journal() -> Iterator[GroupJournal]:
    """An empty journal."""
    journal = GroupJournal()
    yield journal
    journal.free()


@pytest.fixture
def broken() -> Future[Any]:
    """The future of a group whose worker has died."""
    future: Future[Any] = Future()
    future.set_exception(BrokenProcessPool("a worker has died"))
    return future


# ── the journal ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_that_dies_leaves_the_results(journal: GroupJournal) -> None:
    """Of the calls before the one that was running."""
    calls = _calls((abs, -1), (abs, -2), (os._exit, 1), (abs, -3))
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        assert isinstance(pool.submit(run_group, calls, journal.address).exception(30), BrokenProcessPool)
    findings = journal.close()
    assert findings.has_begun
    assert not findings.is_over
    assert len(findings.results) == 2


def test_an_end_is_recorded(journal: GroupJournal) -> None:
    """The results may be lost on their way."""
    results = run_group(_calls((abs, -1), (abs, -2)), journal.address)
    findings = journal.close()
    assert findings.results == results
    assert findings.is_over


def test_nothing_begins_once_it_is_closed(journal: GroupJournal) -> None:
    """The parent has called it not begun."""
    findings = []
    calls = _calls((abs, -1), (lambda _: findings.append(journal.close()), None), (abs, -2), (abs, -3))
    results = run_group(calls, journal.address)
    assert [result is not None for result in results] == [True, True, False, False]
    assert len(findings[0].results) == 1


def test_a_torn_record_is_none(journal: GroupJournal) -> None:
    """What a kill has cut short is not read."""
    run_group(_calls((abs, -1), (abs, -2)), journal.address)
    os.ftruncate(journal.address.fd, _size(journal) - 1)
    findings = journal.close()
    assert (len(findings.results), findings.is_over) == (2, False)
    os.ftruncate(journal.address.fd, _size(journal) - 20)
    assert len(journal.close().results) == 1


def test_a_large_result_is_the_last(journal: GroupJournal) -> None:
    """It is not recorded, and so nothing may begin after it."""
    results = run_group(_calls((abs, -1), (bytes, MOST_BYTES), (abs, -2)), journal.address)
    assert [result is not None for result in results] == [True, True, False]
    findings = journal.close()
    assert (len(findings.results), findings.is_over) == (1, False)


def test_a_lost_descriptor_ends_the_group(journal: GroupJournal) -> None:
    """What is not recorded is the last."""
    used: list[JournalWriter] = []

    class Writer(JournalWriter):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            used.append(self)

    def lose(_: Any) -> None:
        os.close(used[0]._fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("parallel_exec.backends.engine.remote_group.JournalWriter", Writer)
        results = run_group(_calls((abs, -1), (lose, None), (abs, -2)), journal.address)
    assert [result is not None for result in results] == [True, True, False]
    assert len(journal.close().results) == 1


def test_another_file_is_left_alone(journal: GroupJournal, tmp_path: Path) -> None:
    """The group runs without, and nothing is written."""
    with open(tmp_path / "theirs", "w+b") as theirs:
        theirs.write(b"x" * 100)
        theirs.flush()
        status = os.fstat(theirs.fileno())
        wrong = journal.address._replace(fd=theirs.fileno())
        for address in (wrong, wrong._replace(device=status.st_dev, inode=status.st_ino)):
            assert all(run_group(_calls((abs, -1), (abs, -2)), address))
        theirs.seek(0)
        assert theirs.read() == b"x" * 100
    assert all(run_group(_calls((abs, -1)), journal.address._replace(pid=1 << 30)))
    assert not journal.close().has_begun


def test_one_that_is_used_again_says_nothing_of_the_last_group(journal: GroupJournal) -> None:
    """Before the next has begun, and after."""
    run_group(_calls((abs, -1), (abs, -2)), journal.address)
    journal.renew()
    assert not journal.close().has_begun
    other = GroupJournal()
    run_group(_calls((abs, -1), (abs, -2)), other.address)
    other.renew()
    run_group(_calls((abs, -3)), other.address)
    assert len(other.close().results) == 1
    other.free()


def test_journals_are_used_again_and_let_go() -> None:
    """Those that are out when the executor is closed, too."""
    journals = Journals()
    first = journals.lend()
    assert first is not None
    run_group(_calls((abs, -1)), first.address)
    assert not journals.are_written
    journals.take_back(first, reusable=True)
    assert journals.are_written
    assert journals.lend() is first
    second = journals.lend()
    assert second is not None and not second.was_opened()
    journals.take_back(second, reusable=False)
    journals.close()
    journals.take_back(first, reusable=True)
    for journal in (first, second):
        with pytest.raises(OSError, match="descriptor"):
            journal.was_opened()


# ── the group ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _group(journal: GroupJournal | None, broken: Future[Any], count: int) -> tuple[CallGroup, list[Future[Any]]]:
    group = CallGroup(journal)
    submissions: list[Any] = [object() for _ in range(count)]
    futures: list[Future[Any]] = [group.add(submission) for submission in submissions]
    group.sent(broken)
    return group, futures


def test_what_ran_fails_alone(journal: GroupJournal, broken: Future[Any]) -> None:
    """Those before it keep their results, those behind it have not begun."""
    writer = JournalWriter(journal.address, "process 1")
    results = [result for result in run_group(_calls((abs, -1), (abs, -2))) if result is not None]
    for result in results:
        writer.record(result)
    os.close(writer._fd)
    group, futures = _group(journal, broken, 5)
    group.end(broken)
    assert [future.result().payload for future in futures[:2]] == [result.payload for result in results]
    assert futures[2].exception() is broken.exception()
    assert [future.result() for future in futures[3:]] == [None, None]


def test_an_error_of_an_executor_that_goes_on_says_as_little(journal: GroupJournal) -> None:
    """A worker's death is some error of its own there: what has begun does not run again."""
    writer = JournalWriter(journal.address, "process 1")
    for result in run_group(_calls((abs, -1))):
        assert result is not None
        writer.record(result)
    os.close(writer._fd)
    died: Future[Any] = Future()
    died.set_exception(ChildProcessError("a worker has died"))
    group, futures = _group(journal, died, 3)
    group.end(died)
    assert futures[0].result() is not None
    assert futures[1].exception() is died.exception()
    assert futures[2].result() is None


def test_one_that_is_stopped_finishes_all_but_the_call_that_runs(journal: GroupJournal) -> None:
    """Nothing begins behind that, and the journal serves no other group."""
    sent: Future[Any] = Future()
    group, futures = _group(journal, sent, 3)
    assert group.stop(0.0) is None  # no worker has it
    writer = JournalWriter(journal.address, "process 1")
    for result in run_group(_calls((abs, -1))):
        assert result is not None
        writer.record(result)
    assert group.stop(60.0) is None
    found = group.stop(0.0)
    assert found is not None and found[1] == "process 1"
    assert not writer.may_begin()
    os.close(writer._fd)
    assert [future.done() for future in futures] == [True, False, True]
    assert futures[2].result() is None
    assert group.stop(0.0) is None
    journals = Journals()
    journals.take_back(journal, reusable=True)
    assert journals.lend() is not journal
    journals.close()


def test_what_no_worker_has_opened_has_not_begun(journal: GroupJournal, broken: Future[Any]) -> None:
    """Where workers are known to open them; else nothing is known, and all fail."""
    group, futures = _group(journal, broken, 2)
    group.end(broken, tells_begin=True)
    assert [future.result() for future in futures] == [None, None]
    for nothing_known in (journal, None):
        group, futures = _group(nothing_known, broken, 2)
        group.end(broken)
        assert [future.exception() for future in futures] == [broken.exception()] * 2


# ── the executor ─────────────────────────────────────────────────────────────────────────────────────────────────────


class _NotedPool(ProcessPoolExecutor):
    groups = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.groups += isinstance(fn, SubmittedGroup)
        return super().submit(fn, *args, **kwargs)


def _in_groups_of_twenty(pace: CallPace, seconds: list[float]) -> None:
    pace.depth = 20


def test_a_crash_touches_its_own_task_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those behind it none has run; they end as the broken pool refuses them."""
    monkeypatch.setattr(CallPace, "observe", _in_groups_of_twenty)
    log = str(tmp_path / "log")
    with (
        _NotedPool(1, multiprocessing.get_context("forkserver")) as pool,
        ParallelExecutor(backend=pool, max_concurrency=1, retry_count=0) as executor,
    ):
        while not pool.groups:
            executor.submit(abs, -1).result(30)
        for number in range(20):
            if number == 10:
                executor.add_task(os._exit, 1)
            else:
                executor.add_task(_note, log, number)
        results = executor.execute_all()
    assert [result.result for result in results[:10]] == list(range(10))
    assert all(isinstance(result.error, BrokenProcessPool) for result in results[10:])
    assert {len(result.attempts) for result in results} == {1}
    assert _noted(log) == list(range(10))


def test_ctrl_c_as_a_journal_is_made() -> None:
    """Wherever it comes nothing stays open, although what was raised is kept."""
    assert leaves_nothing_open(GroupJournal, []) > 20
