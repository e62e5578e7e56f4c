"""`execute_all(journal=...)`: what an earlier run has done is not done again, on any back end, and comes back as it was."""

from __future__ import annotations

import pickle
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, NoReturn

import pytest
import script
import work
from backend_kinds import ALL, OWN, over
from script import run as run_script

from parallel_exec import (
    DeadlineExceededError,
    JournalError,
    Task,
    TaskCancelled,
    TaskFinished,
    TaskQueued,
    TaskResult,
    TaskStarted,
    TaskTimeoutError,
)
from parallel_exec._core.batch import Batches
from parallel_exec._journal.run import JournaledRun
from parallel_exec.journal import Journal

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def journal(tmp_path: Path) -> str:
    """Where the journal goes."""
    return str(tmp_path / "run.db")


def _note_and_double(log: work.Log, number: int) -> int:
    log.write(number)
    return 2 * number


def _fail(log: work.Log, number: int) -> NoReturn:
    log.write(number)
    raise work.CodedError(number)


def _tasks(log: work.Log, count: int, failing: int = -1) -> list[Task[int]]:
    """Return tasks that note that they run; one of them fails."""
    functions: list[Callable[..., int]] = [_fail if number == failing else _note_and_double for number in range(count)]
    return [Task(function, log, number, id=f"task {number}") for number, function in enumerate(functions)]


def _run(executor: Any, tasks: list[Task[Any]], journal: Any, **how: Any) -> list[TaskResult[Any]]:
    for task in tasks:
        executor.add_task(task)
    return executor.execute_all(journal=journal, **how)  # type: ignore[no-any-return]


# ── on every back end ───────────────────────────────────────────────────────────────────────────────────────────────


@over(ALL)
def test_what_has_succeeded_is_not_run_again(lab: Any, journal: str) -> None:
    """Its result, its attempts and its times are those of the earlier run; what has failed and what is new runs."""
    log = lab.log()
    first = _run(lab.executor(retry_count=1), _tasks(log, 5, failing=3), journal)
    assert [result.resumed for result in first] == [False] * 5
    assert sorted(log.lines()) == ["0", "1", "2", "3", "3", "4"]
    second = _run(lab.executor(retry_count=1), _tasks(log, 6), journal)
    assert sorted(log.lines()[6:]) == ["3", "5"]
    assert [result.resumed for result in second] == [True, True, True, False, True, False]
    assert [result.unwrap() for result in second] == [0, 2, 4, 6, 8, 10]
    assert [result.task.id for result in second] == [f"task {number}" for number in range(6)]
    for before, after in zip(first[:3], second[:3]):
        assert [_facts(attempt) for attempt in after.attempts] == [_facts(attempt) for attempt in before.attempts]
        assert after.duration == pytest.approx(before.duration)
        assert after.queued_for == pytest.approx(before.queued_for, abs=1e-3)


def _facts(attempt: Any) -> Any:
    return attempt.number, pytest.approx(attempt.started_at, abs=0.1), attempt.duration, attempt.worker


@over(ALL)
@pytest.mark.parametrize("order", ["completed", "submitted"])
def test_a_stream_goes_on(lab: Any, journal: str, order: Any) -> None:
    """As `execute_all` does, and one can take up what the other has left."""
    log = lab.log()
    _run(lab.executor(), _tasks(log, 4), journal)
    results = list(lab.executor().stream(_tasks(log, 12), window=3, order=order, journal=journal))
    assert sorted(result.unwrap() for result in results) == [2 * number for number in range(12)]
    assert sum(result.resumed for result in results) == 4
    assert len(log.lines()) == 12
    if order == "submitted":
        assert [result.unwrap() for result in results] == [2 * number for number in range(12)]
    again = _run(lab.executor(), _tasks(log, 12), journal)
    assert all(result.resumed for result in again)
    assert len(log.lines()) == 12


@over(ALL)
def test_errors_come_back(lab: Any, journal: str) -> None:
    """Without `retry_failed` a failure is a result like others, with its attempts' errors and the traceback."""
    log = lab.log()
    (before,) = _run(lab.executor(retry_count=1), _tasks(log, 1, failing=0), journal)
    kept = Journal(journal, retry_failed=False)
    (after,) = _run(lab.executor(retry_count=1), _tasks(log, 1, failing=0), kept)
    assert len(log.lines()) == 2
    assert after.resumed
    assert type(after.error) is work.CodedError
    assert after.error.code == 0
    assert "_fail" in str(after.error.__cause__)
    assert [(type(attempt.error), attempt.number) for attempt in after.attempts] == [
        (type(attempt.error), attempt.number) for attempt in before.attempts
    ]
    assert after.attempts[-1].error is after.error


@over(OWN)
def test_a_task_that_a_task_adds(lab: Any, journal: str) -> None:
    """It joins the run, and its journal: done in an earlier run it ends at once, and is waited for as ever."""
    log = lab.log()

    def go_on(executor: Any) -> list[TaskResult[Any]]:
        future = executor.add_task(_tasks(log, 1)[0])
        future.add_done_callback(lambda _: executor.add_task(Task(_note_and_double, log, 7, id="seven")))
        return executor.execute_all(journal=journal)  # type: ignore[no-any-return]

    assert [result.resumed for result in go_on(lab.executor())] == [False, False]
    again = go_on(lab.executor())
    assert [(result.resumed, result.unwrap()) for result in again] == [(True, 0), (True, 14)]
    assert log.lines() == ["0", "7"]


# ── what counts as the same task ────────────────────────────────────────────────────────────────────────────────────


def test_another_call_under_the_same_id_runs_again(lab: Any, journal: str) -> None:
    """Other arguments, another function or another version; and its record is the new one then."""
    log = lab.log()
    executor = lab.executor()
    assert not _run(executor, [Task(work.double, 1, id="a")], journal)[0].resumed
    assert not _run(executor, [Task(work.double, 2, id="a")], journal)[0].resumed
    assert not _run(executor, [Task(work.square, 2, id="a")], journal)[0].resumed
    assert not _run(executor, [Task(work.square, 2, id="a")], Journal(journal, version="2"))[0].resumed
    assert not _run(executor, [Task(work.square, 2, id="a")], Journal(journal, version="3"))[0].resumed
    assert _run(executor, [Task(partial(work.square, 2), id="a")], Journal(journal, version="3"))[0].resumed
    assert len(Journal(journal).results()) == 1
    assert log.lines() == []


def test_a_priority_and_settings_do_not_count(lab: Any, journal: str) -> None:
    """How a task is run is not what it does."""
    executor = lab.executor()
    _run(executor, [Task(work.double, 1, id="a")], journal)
    assert _run(executor, [Task(work.double, 1, id="a", priority=3, timeout=1, retry_count=7)], journal)[0].resumed


@pytest.mark.parametrize(
    "add",
    [
        lambda executor: executor.add_task(Task(int)),
        lambda executor: executor.add_task(int),
        lambda executor: executor.add_task(int).id,
        lambda executor: executor.add_task(_asked(Task(int))),
    ],
)
def test_an_id_of_ours_is_refused(lab: Any, journal: str, add: Callable[[Any], object]) -> None:
    """Numbers mean another task in another run. Nothing has begun then: all is staged, and the journal is free."""
    executor = lab.executor()
    future = executor.add_task(Task(int, id="mine"))
    add(executor)
    with pytest.raises(ValueError, match=r"int-(new-)?\d+' was given none: give it one, Task\(\.\.\., id=\.\.\.\)"):
        executor.execute_all(journal=journal)
    assert not future.done()
    assert executor.stats().queued == 2
    assert _run(lab.executor(), [Task(int, id="mine")], journal)[0].success
    assert [result.success for result in executor.execute_all()] == [True, True]


def _asked(task: Task[Any]) -> Task[Any]:
    assert task.id
    return task


def test_an_id_that_is_not_unique_is_refused(lab: Any, journal: str) -> None:
    """The message names it; and once one of the two is cancelled the run can begin."""
    executor = lab.executor()
    executor.add_task(Task(work.double, 1, id="twice"))
    other = executor.add_task(Task(work.double, 2, id="twice"))
    with pytest.raises(ValueError, match="two have the id 'twice'"):
        executor.execute_all(journal=journal)
    other.cancel()
    assert [result.success for result in executor.execute_all(journal=journal)] == [True, False]
    assert [result.result for result in Journal(journal)] == [2]


def test_a_bad_id_during_the_run_is_the_adders_error(lab: Any, journal: str) -> None:
    """Whoever adds the task is told, and the run goes on."""
    executor = lab.executor()
    executor.add_task(Task(executor.add_task, int, id="adds"))
    executor.add_task(Task(work.double, 1, id="a"))
    added, doubled = executor.execute_all(journal=journal)
    assert isinstance(added.error, ValueError)
    assert doubled.unwrap() == 2


def test_a_task_that_is_added_while_the_run_begins(lab: Any, journal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is staged after the others were looked at is looked at, too."""
    executor = lab.executor()
    _run(executor, [Task(work.double, 1, id="late")], journal)
    begin = JournaledRun._begin

    def begin_late(run: JournaledRun) -> None:
        begin(run)
        executor.add_task(Task(work.double, 1, id="late"))

    monkeypatch.setattr(JournaledRun, "_begin", begin_late)
    early, late = _run(executor, [Task(work.double, 1, id="early")], journal)
    assert (early.resumed, late.resumed) == (False, True)


# ── what is no result ───────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_cut_off_is_not_recorded(lab: Any, journal: str) -> None:
    """Cancelled, aborted, past the deadline: it runs again, and what was recorded of it stays."""
    executor, gate = lab.executor(max_concurrency=4, retry_count=0), lab.event()
    kept = Journal(journal, retry_failed=False)
    _run(executor, [Task(gate.is_set, id="late"), Task(int, id="a")], Journal(journal, version="old"))
    executor.add_task(Task(int, id="cancelled")).cancel()
    aborted = executor.add_task(Task(gate.wait, id="aborted"))
    executor.add_task(Task(gate.wait, id="late"))
    executor.add_task(Task(int, id="a"))
    executor.add_task(Task(_abort_when_running, aborted, id="aborts"))
    results = executor.execute_all(journal=kept, deadline=2)
    assert [result.cancelled for result in results] == [True, True, False, False, False]
    assert isinstance(results[2].error, DeadlineExceededError)
    assert sorted(result.task.id for result in Journal(journal)) == ["a", "aborts", "late"]
    assert [result.success for result in Journal(journal)] == [True] * 3
    summary = Journal(journal).summary()
    assert (summary.runs[1].succeeded, summary.runs[1].unfinished) == (2, 2)


def _abort_when_running(future: Any) -> None:
    work.until(future.running)
    future.abort()


def test_a_timeout_is_a_result(lab: Any, journal: str) -> None:
    """An attempt that outran its limit has failed."""
    executor, gate = lab.executor(retry_count=0, timeout=0.1), lab.event()
    _run(executor, [Task(gate.wait, id="slow")], journal)
    (result,) = Journal(journal).failed()
    assert isinstance(result.error, TaskTimeoutError)


@over(("process",))
def test_a_call_that_cannot_be_sent_is_a_result(lab: Any, journal: str) -> None:
    """It fails as it is added, each time; it is recorded, though no attempt was made."""
    import threading

    _run(lab.executor(), [Task(work.same, threading.Lock(), id="lock")], journal)
    (result,) = Journal(journal).failed()
    assert result.attempts == ()
    assert "lock" in str(result.error)


def test_fail_fast(lab: Any, journal: str) -> None:
    """A failure that comes back is a failure: the rest is cancelled, and not recorded."""
    log = lab.log()
    _run(lab.executor(retry_count=0), _tasks(log, 1, failing=0), journal)
    kept = Journal(journal, retry_failed=False)
    results = _run(lab.executor(retry_count=0), _tasks(log, 3, failing=0), kept, fail_fast=True)
    assert results[0].resumed
    assert [result.cancelled for result in results] == [False, True, True]
    assert log.lines() == ["0"]


# ── how a result that comes back shows ──────────────────────────────────────────────────────────────────────────────


def test_what_fail_fast_cancels_is_not_counted_as_resumed(lab: Any, journal: str) -> None:
    """Though an earlier run has it: this one has let it go."""
    log = lab.log()
    for fails_fast in (False, True):
        executor, again = lab.executor(retry_count=0), Journal(journal, retry_failed=False)
        _run(executor, _tasks(log, 4, failing=0), again, fail_fast=fails_fast)
    assert [(run.resumed, run.unfinished) for run in Journal(journal).summary().runs] == [(0, 0), (1, 3)]


def test_a_resumed_task_ends_like_any_other(lab: Any, journal: str) -> None:
    """Its future, its callbacks, the events, the counts, `results()`; but it is never started."""
    log, events = lab.log(), []
    _run(lab.executor(), _tasks(log, 2), journal)
    executor = lab.executor(on_event=events.append)
    futures = [executor.add_task(task) for task in _tasks(log, 3)]
    called: list[Any] = []
    for future in futures:
        future.add_done_callback(called.append)
    results = executor.execute_all(journal=journal, order="completed")
    assert [result.task.id for result in results] == ["task 0", "task 1", "task 2"]
    assert called == futures
    assert [future.result() for future in futures] == [0, 2, 4]
    assert executor.stats().succeeded == 3
    assert executor.results() == results
    ids = {kind: [event.task_id for event in events if type(event) is kind] for kind in (TaskQueued, TaskStarted)}
    assert ids == {TaskQueued: ["task 0", "task 1", "task 2"], TaskStarted: ["task 2"]}
    ended = [event for event in events if type(event) is TaskFinished]
    assert [(event.task_id, event.attempt, event.success) for event in ended] == [
        (f"task {number}", 1, True) for number in range(3)
    ]
    assert not [event for event in events if type(event) is TaskCancelled]


def test_a_result_says_that_it_comes_back(lab: Any, journal: str) -> None:
    """In its repr, and in a copy; and what was pickled before there was a journal can still be read."""
    (fresh,) = _run(lab.executor(), [Task(work.double, 1, id="a")], journal)
    (result,) = _run(lab.executor(), [Task(work.double, 1, id="a")], journal)
    assert repr(result).endswith(" s, resumed)")
    assert not repr(fresh).endswith("resumed)")
    assert pickle.loads(pickle.dumps(result)).resumed
    assert not pickle.loads(pickle.dumps(fresh)).resumed
    cls, fields = fresh.__reduce__()
    assert not cls(*fields[:-1]).resumed


def test_a_small_queue_has_room_for_what_is_done(lab: Any, journal: str) -> None:
    """What comes back needs no place in a queue of a limited size."""
    log = lab.log()
    executor = lab.executor(queue_size=3)
    _run(executor, _tasks(log, 3), journal)
    executor = lab.executor(queue_size=1)

    def add_all() -> None:
        for task in _tasks(log, 3):
            executor.add_task(task)

    executor.add_task(Task(add_all, id="adds"))
    assert [result.resumed for result in executor.execute_all(journal=journal)] == [False, True, True, True]


def test_a_pool_that_was_started_before(lab: Any, journal: str) -> None:
    """`submit` starts what is staged: what has ended before the run began is recorded; nothing ends twice."""
    executor, gate = lab.executor(max_concurrency=1), lab.event()
    _run(executor, [Task(work.double, 1, id="a"), Task(work.double, 2, id="b")], journal)
    held = executor.submit(int)
    held.result()
    early = executor.add_task(Task(work.double, 1, id="a"))
    early.result()
    executor.add_task(Task(gate.wait, id="gate"))
    resumed = executor.add_task(Task(work.double, 2, id="b"))
    lab.thread(lambda: work.until(resumed.done) or gate.set())
    results = executor.execute_all(journal=journal)
    assert [result.unwrap() for result in results] == [2, True, 4]
    assert [result.resumed for result in results] == [False, False, True]
    assert sorted(result.task.id for result in Journal(journal)) == ["a", "b", "gate"]


def test_a_run_without_a_journal_in_between(lab: Any, journal: str) -> None:
    """The same executor runs with and without one, in turn."""
    log = lab.log()
    executor = lab.executor()
    _run(executor, _tasks(log, 2), journal)
    assert [result.resumed for result in _run(executor, _tasks(log, 2), None)] == [False, False]
    executor.add_task(int)
    assert executor.execute_all()[0].success
    assert [result.resumed for result in _run(executor, _tasks(log, 2), journal)] == [True, True]


def test_a_journal_that_needs_no_pickle(lab: Any, journal: str) -> None:
    """With `encode` and `decode` of one's own."""
    import json

    kept = Journal(journal, encode=json.dumps, decode=json.loads)
    _run(lab.executor(), [Task(work.same, {"a": [1]}, id="a")], kept)
    (result,) = _run(lab.executor(), [Task(work.same, {"a": [1]}, id="a")], kept)
    assert result.resumed
    assert result.result == {"a": [1]}


def test_what_cannot_be_read_back_runs_again(lab: Any, journal: str, caplog: pytest.LogCaptureFixture) -> None:
    """One warning for each of a few tasks, then a count."""

    def refuse(data: Any) -> NoReturn:
        raise ZeroDivisionError

    tasks = [Task(str, number, id=f"task {number}") for number in range(8)]
    _run(lab.executor(), tasks, Journal(journal, encode=str, decode=refuse))
    results = _run(lab.executor(), tasks, Journal(journal, encode=str, decode=refuse))
    assert not any(result.resumed for result in results)
    messages = [record.getMessage() for record in caplog.records]
    assert len([message for message in messages if "runs again" in message]) == 5
    assert "3 more tasks run again" in messages[-1]


# ── who may use it ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_run_at_a_time(lab: Any, journal: str) -> None:
    """A second is refused while the first goes on; its tasks stay staged, for later."""
    first, second, gate = lab.executor(), lab.executor(), lab.event()
    started = lab.event()
    first.add_task(Task(lambda: started.set() or gate.wait(), id="gate"))
    runner = lab.thread(partial(first.execute_all, journal=journal))
    started.wait()
    second.add_task(Task(int, id="a"))
    with pytest.raises(JournalError, match="under way"):
        second.execute_all(journal=journal)
    with pytest.raises(JournalError, match="under way"):
        second.stream([], journal=journal)
    with pytest.raises(RuntimeError, match="running already"):
        first.execute_all(journal=journal)
    gate.set()
    runner.join()
    assert second.execute_all(journal=journal)[0].success


@pytest.mark.parametrize(("journal", "error"), [(3, TypeError), ("", ValueError), ({"path": 1}, TypeError)])
def test_what_is_no_journal_is_refused(lab: Any, journal: Any, error: type[Exception]) -> None:
    """At once, and nothing has begun."""
    executor = lab.executor()
    future = executor.add_task(Task(int, id="a"))
    with pytest.raises(error):
        executor.execute_all(journal=journal)
    with pytest.raises(error):
        executor.stream([], journal=journal)
    assert not future.done()
    assert executor.execute_all()[0].success


def test_a_run_that_is_interrupted_before_it_begins(lab: Any, journal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tasks stay staged, and know no more of its journal."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    executor, tasks = lab.executor(), _tasks(lab.log(), 1)
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            _run(executor, tasks, journal)
    executor.add_task(int)
    assert [result.unwrap() for result in executor.execute_all()] == [0, 0]
    assert [run.how for run in Journal(journal).summary().runs] == ["interrupted"]


# ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ctrl_c(tmp_path: Path) -> None:
    """It is raised within 2 s, what had ended is recorded, and the next run goes on from there."""
    body = """
        def task(number):
            if number == 30:
                ready()
            time.sleep(0.01 if number < 30 or len(sys.argv) > 2 else 60)
            return number

        def tasks():
            return [Task(task, number, id=str(number)) for number in range(40)]

        with ParallelExecutor(max_concurrency=2, backend=sys.argv[1], retry_count=0) as executor:
            for each in tasks():
                executor.add_task(each)
            try:
                results = executor.execute_all(journal="run.db")
            except KeyboardInterrupt:
                say("LATE" if time.monotonic() - float(open("at").read()) > 2 else "IN TIME", len(executor.results()))
            else:
                say(sum(result.resumed for result in results), [result.unwrap() for result in results] == list(range(40)))
    """
    body = body.replace('"run.db"', repr(str(tmp_path / "run.db"))).replace('"at"', repr(str(tmp_path / "at")))
    process = script.start(tmp_path, body, "thread")
    assert process.stdout is not None
    assert process.stdout.readline() == "READY\n"
    (tmp_path / "at").write_text(str(time.monotonic()))
    process.send_signal(signal.SIGINT)
    out, err = script.finish(process)
    assert out == "IN TIME 30\n", err
    summary = Journal(tmp_path / "run.db").summary()
    assert (summary.succeeded, summary.runs[0].how, summary.runs[0].unfinished) == (30, "interrupted", 10)
    assert run_script(tmp_path, body, "thread", "go on") == "READY\n30 True"


def test_a_program_that_ends_with_a_stream_half_read(tmp_path: Path) -> None:
    """What has ended by then is recorded, and nothing is left behind."""
    body = f"""
        tasks = (Task(work.double, number, id=str(number)) for number in range(100))
        results = ParallelExecutor().stream(tasks, window=4, journal={str(tmp_path / "run.db")!r})
        globals()["kept"] = [next(results) for _ in range(10)], results
    """
    run_script(tmp_path, body)
    summary = Journal(tmp_path / "run.db").summary()
    assert summary.succeeded >= 10
    assert summary.runs[0].how == "interrupted"


def test_without_a_journal_nothing_of_it_is_imported(tmp_path: Path) -> None:
    """Neither SQLite nor what this library has for journals, with a run and a stream."""
    body = """
        with ParallelExecutor() as executor:
            executor.add_task(int)
            executor.execute_all()
            list(executor.stream([Task(int)]))
        say([name for name in sys.modules if "sqlite" in name or "_journal." in name or name.endswith(".journal")])
    """
    assert run_script(tmp_path, body) == "[]"
