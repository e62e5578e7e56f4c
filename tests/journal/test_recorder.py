"""`parallel_exec._journal.recorder`: what has ended is written soon, once, and whatever the disk does."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import journaled
import pytest
import work
from script import run as run_script

from parallel_exec import Task
from parallel_exec._journal import recorder as module
from parallel_exec._journal.database import Database
from parallel_exec._journal.recorder import Recorder
from parallel_exec._journal.records import Codec
from parallel_exec._outcome import Failure, Success
from parallel_exec.errors import JournalError
from parallel_exec.journal import Journal

if TYPE_CHECKING:
    from pathlib import Path


class Disk:
    """A database that keeps what it is given, and fails when it is told to."""

    def __init__(self) -> None:
        self.written: list[list[str]] = []
        self.ended: Any = None
        self.closed = 0
        self.broken = threading.Event()
        self.tries = 0

    def write(self, records: Any, resumed: int) -> None:
        """Keep the ids."""
        self.tries += 1
        if self.broken.is_set():
            raise JournalError("run.db", "the disk is full")
        self.written.append([record.id for record in records])

    def end_run(self, how: str, *, resumed: int, unfinished: int) -> None:
        """Note how the run has ended."""
        if self.broken.is_set():
            raise JournalError("run.db", "the disk is full")
        self.ended = how, resumed, unfinished

    def close(self) -> None:
        """Count."""
        self.closed += 1

    def ids(self) -> list[str]:
        """Return what was written, in order."""
        return [id for ids in self.written for id in ids]


class Lab:
    """A recorder on such a disk."""

    def __init__(self, *, bounded: bool = False) -> None:
        self.disk: Any = Disk()
        self.keys: dict[Any, bytes] = {}
        self.ids: set[int] = set()
        self.recorder = Recorder(self.disk, Codec(), self.keys, self.ids, bounded=bounded)
        self.recorder.start()

    def job(self, id: str, value: Any = 1, error: BaseException | None = None) -> Any:
        """Return a job that was admitted and has ended."""
        job = journaled.ended_job(Success(value) if error is None else Failure(error), id=id)
        self.keys[job] = b"key"
        self.ids.add(hash(id))
        return job


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written is tried again soon."""
    monkeypatch.setattr(module, "RETRY", 0.01)


def test_what_has_ended_is_written_soon() -> None:
    """Within half a second, in the order of the ends, in one transaction."""
    took: list[float] = []
    while not took or (min(took) >= 0.45 and len(took) < 5):  # a machine may stall
        lab = Lab()
        began = time.monotonic()
        for number in range(5):
            lab.recorder.note(lab.job(str(number)))
        work.until(lambda lab=lab: lab.disk.written)  # type: ignore[misc]
        took.append(time.monotonic() - began)
        _check_that_all_is_written(lab)
    assert min(took) < 0.45


def _check_that_all_is_written(lab: Lab) -> None:
    assert lab.disk.written == [["0", "1", "2", "3", "4"]]
    assert lab.keys == {}
    assert lab.recorder.finish("finished")
    assert (lab.disk.ended, lab.disk.closed) == (("finished", 0, 0), 1)
    assert lab.recorder.missing() == 0


def test_each_is_recorded_once() -> None:
    """However often it is noted, or sealed; one that was not admitted never."""
    lab = Lab()
    job, other = lab.job("a"), journaled.ended_job(Success(1))
    for _ in range(3):
        lab.recorder.note(job)
        lab.recorder.seal(job)
    lab.recorder.note(other)
    lab.recorder.finish("finished")
    assert lab.disk.ids() == ["a"]


def test_a_sealed_result_is_as_it_was() -> None:
    """What becomes of it until it is written does not count."""
    lab = Lab()
    values: list[Any] = []
    lab.disk.write = lambda records, resumed: values.extend(record.result for record in records)
    job = lab.job("a", value := [1])
    lab.recorder.note(job)
    lab.recorder.seal(job)
    value.clear()
    lab.recorder.finish("finished")
    assert values == [Codec().record(journaled.ended_job(Success([1])), b"").result]


def test_a_long_backlog_goes_in_several_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is larger than the limit, so that none takes long."""
    monkeypatch.setattr(module, "AT_ONCE", 10)
    lab = Lab()
    for number in range(25):
        lab.recorder.note(lab.job(str(number)))
    lab.recorder.finish("finished")
    assert [len(ids) for ids in lab.disk.written if ids] == [10, 10, 5]


def test_large_results_go_in_small_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all of them are in memory twice; also while the disk is full."""
    monkeypatch.setattr(module, "BYTES", 1000)
    monkeypatch.setattr(module, "RETRY", 0.01)
    lab = Lab()
    lab.disk.broken.set()
    for number in range(9):
        lab.recorder.note(lab.job(str(number), "x" * 400))
    work.until(lambda: lab.disk.tries > 3)
    assert len(lab.recorder._pending) == 3
    lab.disk.broken.clear()
    lab.recorder.finish("finished")
    assert [len(ids) for ids in lab.disk.written if ids] == [3, 3, 3]


def test_a_stream_waits_for_large_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few they are."""
    monkeypatch.setattr(module, "BYTES", 1000)
    lab = Lab(bounded=True)
    for number in range(9):
        lab.recorder.seal(lab.job(str(number), "x" * 400))
    lab.recorder.keep_pace(100)
    assert len(lab.disk.ids()) == 9
    lab.recorder.finish("finished")


def test_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing ends for a while an empty transaction says that the run goes on."""
    monkeypatch.setattr(module, "HEARTBEAT", 0.3)
    lab = Lab()
    work.until(lambda: len(lab.disk.written) >= 2)
    assert lab.recorder.finish("finished")
    assert lab.disk.ids() == []


@pytest.mark.usefixtures("quick")
def test_a_disk_that_is_full_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """All is written in the end, in order; one warning tells of it."""
    lab = Lab()
    lab.disk.broken.set()
    for number in range(3):
        lab.recorder.note(lab.job(str(number)))
    work.until(lambda: lab.disk.tries > 3)
    assert lab.recorder.error
    lab.disk.broken.clear()
    work.until(lambda: lab.disk.written)
    lab.recorder.note(lab.job("3"))
    assert lab.recorder.finish("finished")
    assert lab.disk.ids() == ["0", "1", "2", "3"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the disk is full" in caplog.text


@pytest.mark.usefixtures("quick")
def test_a_disk_that_stays_full(caplog: pytest.LogCaptureFixture) -> None:
    """The end is not waited for; how many are missing is known, and why."""
    lab = Lab()
    lab.disk.broken.set()
    for number in range(3):
        lab.recorder.note(lab.job(str(number)))
    assert not lab.recorder.finish("finished")
    assert (lab.recorder.missing(), lab.disk.ended, lab.disk.closed) == (3, None, 1)
    assert "the disk is full" in lab.recorder.error
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("quick")
def test_what_waits_in_a_stream_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is dropped, and counted; nobody waits for a disk that fails."""
    monkeypatch.setattr(module, "LIMIT", 10)
    lab = Lab(bounded=True)
    lab.disk.broken.set()
    for number in range(25):
        lab.recorder.note(lab.job(str(number)))
    work.until(lambda: lab.disk.tries > 1 and not lab.keys)
    lab.recorder.keep_pace(5)
    lab.disk.broken.clear()
    work.until(lambda: lab.disk.written)
    assert not lab.recorder.error
    lab.recorder.finish("finished")
    assert lab.disk.ids() == [str(number) for number in range(15, 25)]
    assert lab.recorder.missing() == 15


@pytest.mark.usefixtures("quick")
def test_large_results_of_a_stream_are_bounded_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they cannot be written their size counts, too."""
    monkeypatch.setattr(module, "BYTES", 100)
    lab = Lab(bounded=True)
    lab.disk.broken.set()
    for number in range(25):
        lab.recorder.note(lab.job(str(number), "x" * 400))
    work.until(lambda: lab.disk.tries > 1 and not lab.keys)
    lab.disk.broken.clear()
    lab.recorder.finish("finished")
    assert lab.disk.ids() == ["22", "23", "24"]
    assert lab.recorder.missing() == 22


def test_the_end_can_be_waited_for_in_part() -> None:
    """Where the time is up the rest is recorded beside the caller."""
    lab = Lab()
    gate = threading.Event()
    write = lab.disk.write
    lab.disk.write = lambda records, resumed: (gate.wait(), write(records, resumed))
    lab.recorder.note(lab.job("a"))
    assert not lab.recorder.finish("interrupted", until=time.monotonic() + 0.1)
    gate.set()
    work.until(lambda: lab.disk.closed)
    assert (lab.disk.ids(), lab.disk.ended) == (["a"], ("interrupted", 0, 0))


def test_a_disk_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it for ever."""
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    lab = Lab()
    gate = threading.Event()
    lab.disk.write = lambda records, resumed: gate.wait()
    lab.recorder.note(lab.job("a"))
    assert not lab.recorder.finish("finished")
    assert lab.recorder.missing() == 1
    gate.set()


def test_what_is_unfinished() -> None:
    """What was admitted and has no result: cancelled, cut off, or not ended."""
    lab = Lab()
    lab.recorder.note(lab.job("a"))
    lab.recorder.note(lab.job("b", error=ValueError()))
    lab.recorder.note(lab.job("c", error=KeyboardInterrupt()))
    resumed = lab.job("d")
    resumed.resumed = True
    lab.recorder.note(resumed)
    lab.recorder.finish("failed")
    assert lab.disk.ids() == ["a", "b"]
    assert lab.disk.ended == ("failed", 1, 1)


def test_what_is_unfinished_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task counts once, whether it was encoded or not, if at least that can be recorded."""
    monkeypatch.setattr(module, "AT_ONCE", 1)
    lab = Lab()
    lab.disk.write = lambda records, resumed: 1 / 0
    for number in range(3):
        lab.recorder.note(lab.job(str(number)))
    assert not lab.recorder.finish("finished")
    assert lab.disk.ended == ("finished", 0, 3)
    assert lab.recorder.missing() == 3


def test_a_sign_of_life_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes nothing incomplete: what there was is recorded."""
    monkeypatch.setattr(module, "HEARTBEAT", 0.0)
    lab = Lab()
    lab.recorder.note(lab.job("a"))
    work.until(lambda: lab.disk.written)
    lab.disk.write = lambda records, resumed: 1 / 0
    work.until(lambda: lab.recorder.error)
    assert lab.recorder.finish("finished")
    assert lab.disk.ended == ("finished", 0, 0)


def test_a_thread_that_fails_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong, the run goes on, and its end is not waited for in vain."""
    lab = Lab()
    lab.recorder._codec = SimpleNamespace(record=lambda job, key: 1 / 0)  # type: ignore[assignment]
    lab.recorder.note(lab.job("a"))
    work.until(lambda: lab.disk.closed)
    assert not lab.recorder.finish("finished")
    assert lab.recorder.missing() == 1
    assert "the thread that records a journal failed" in caplog.text


# ── in a run ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_on_a_full_disk(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All results are there, and a warning at the end says how many the journal has not."""

    def fail(*_: Any) -> None:
        raise JournalError("run.db", "the disk is full")

    executor = lab.executor()
    for number in range(5):
        executor.add_task(Task(work.double, number, id=str(number)))
    monkeypatch.setattr(Database, "write", fail)
    with pytest.warns(RuntimeWarning, match="incomplete, 5 results are missing .* the disk is full") as warned:
        results = executor.execute_all(journal=tmp_path / "run.db")
    assert warned[0].filename == __file__
    assert [result.unwrap() for result in results] == [0, 2, 4, 6, 8]
    assert executor.results() == results
    with pytest.warns(RuntimeWarning, match="incomplete, 1 result is missing") as warned:
        assert len(list(executor.stream([Task(int, id="a")], journal=tmp_path / "run.db"))) == 1
    assert warned[0].filename == __file__
    monkeypatch.undo()
    assert [run.how for run in Journal(tmp_path / "run.db").summary().runs] == ["finished", "finished"]


def test_a_journal_that_is_deleted_meanwhile(lab: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning when it is seen, and one at the end."""
    path = tmp_path / "run.db"
    executor = lab.executor()
    executor.add_task(Task(os.remove, path, id="removes"))
    with pytest.warns(RuntimeWarning, match="incomplete.*deleted"):
        (result,) = executor.execute_all(journal=path)
    assert result.success
    assert len([record for record in caplog.records if "deleted" in record.getMessage()]) == 1


def test_what_was_dropped_is_told_with_its_reason(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, quick: None
) -> None:
    """Also once the disk takes what comes after it."""
    monkeypatch.setattr(module, "LIMIT", 1)
    write, broken, written = Database.write, threading.Event(), threading.Event()
    broken.set()

    def try_to_write(self: Database, records: Any, resumed: int = 0) -> None:
        if broken.is_set():
            raise JournalError("run.db", "the disk is full")
        write(self, records, resumed)
        written.set()

    monkeypatch.setattr(Database, "write", try_to_write)
    tasks = [Task(work.double, number, id=str(number)) for number in range(3)]
    results = lab.executor().stream(tasks, journal=tmp_path / "run.db")
    for _ in tasks:
        next(results)
    work.until(lambda: "full" in caplog.text)
    time.sleep(0.1)  # some tries more, each of which drops what is too much
    broken.clear()
    assert written.wait(work.PATIENCE)
    with pytest.warns(RuntimeWarning, match="incomplete, 2 results are missing .*: .*the disk is full"):
        assert list(results) == []


def test_a_run_that_nobody_waits_for_any_longer(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where recording takes very long a warning says that it goes on; and so it does."""
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    gate = threading.Event()

    def encode(value: int) -> str:
        gate.wait(work.PATIENCE)
        return str(value)

    executor = lab.executor()
    for number in range(2):
        executor.add_task(Task(work.double, number, id=str(number)))
    with pytest.warns(RuntimeWarning, match="incomplete so far, 2 results are still being recorded"):
        executor.execute_all(journal=Journal(tmp_path / "run.db", encode=encode, decode=int))
    gate.set()
    work.until(lambda: not module._alive)
    assert Journal(tmp_path / "run.db", encode=encode, decode=int).summary().succeeded == 2


def test_a_stream_that_the_recorder_lets_go(lab: Any, tmp_path: Path) -> None:
    """One that is collected in the recorder's thread ends at once: that thread does not wait for itself."""
    kept: list[Any] = []
    seconds: list[float] = []

    def encode(value: int) -> str:
        if kept and threading.current_thread().name == "parallel_exec-journal":
            began = time.monotonic()
            kept.clear()
            seconds.append(time.monotonic() - began)
        return str(value)

    tasks = [Task(work.double, number, id=str(number)) for number in range(20)]
    journal = Journal(tmp_path / "run.db", encode=encode, decode=int)
    results = lab.executor().stream(tasks, window=4, journal=journal)
    next(results)
    kept.append(results)
    del results
    work.until(lambda: not module._alive)
    assert seconds
    assert seconds[0] < work.PATIENCE / 2
    assert journal.summary().runs[0].how == "interrupted"


def test_a_forked_child_leaves_the_journal_alone(tmp_path: Path) -> None:
    """A child that a task forks neither writes to it nor ends the run, whatever it does; the run goes on."""
    body = f"""
        def fork(number):
            child = os.fork()
            if child == 0:
                gc.collect()
                with ParallelExecutor() as executor:
                    executor.add_task(Task(int, id="child"))
                    executor.execute_all(journal={str(tmp_path / "child.db")!r} + str(number))
                os._exit(7)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        with ParallelExecutor(max_concurrency=2) as executor:
            for number in range(6):
                executor.add_task(Task(fork, number, id=str(number)))
            say([result.result for result in executor.execute_all(journal={str(tmp_path / "run.db")!r})])
    """
    flags = ("-X", "faulthandler", "-W", "error", "-W", "ignore:This process:DeprecationWarning")
    assert run_script(tmp_path, body, flags=flags) == str([7] * 6)
    summary = Journal(tmp_path / "run.db").summary()
    assert (summary.succeeded, [run.how for run in summary.runs]) == (6, ["finished"])
    assert Journal(tmp_path / "child.db5").summary().succeeded == 1
