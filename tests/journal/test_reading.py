"""`Journal`: what a run has left behind is read without running anything, and without a trace."""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
import signal
import subprocess
import textwrap
import tracemalloc
from pathlib import Path
from typing import Any, Iterator

import journaled
import processes
import pytest
import script
from journaled import FAILED, VALUELESS, record

from parallel_exec import Journal, JournalError, ParallelExecutor, TaskResult
from parallel_exec._journal import runs
from parallel_exec.journal import JournalRun, JournalSummary

WRITER = """
import journaled
with journaled.run(sys.argv[1]) as database:
    for number in range(50):
        database.write([journaled.record(str(number), number)])
    say("READY")
    {}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal goes: in a folder of its own."""
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "run.db"


def _start(folder: Path, path: Path, end: str) -> subprocess.Popen[str]:
    process = script.start(folder, WRITER.format(end), str(path))
    assert process.stdout is not None
    assert process.stdout.readline() == "READY\n"
    return process


@pytest.fixture
def killed(path: Path, tmp_path: Path) -> Path:
    """A journal whose run was killed: all that it has is in its log."""
    script.finish(_start(tmp_path, path, "os.kill(os.getpid(), signal.SIGKILL)"))
    assert path.with_name("run.db-wal").stat().st_size > 100_000
    return path


@pytest.fixture
def running(path: Path, tmp_path: Path) -> Iterator[Path]:
    """A journal whose run goes on in another process."""
    process = _start(tmp_path, path, "time.sleep(60)")
    yield path
    process.kill()
    process.communicate()


def _fifty(results: list[TaskResult[Any]]) -> bool:
    return [(each.task.id, each.result) for each in results] == [(str(number), number) for number in range(50)]


# ── results ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_results(path: Path) -> None:
    """Results come in the order in which the tasks ended, with all that a result has."""
    journaled.write(path, record("a", {"x": 1}), record("b", state=FAILED))
    first, second = Journal(path).results()
    assert (first.task.id, first.success, first.result, first.error) == ("a", True, {"x": 1}, None)
    assert (first.queued_for, first.duration, first.cancelled) == (0.5, 0.25, False)
    assert [each.worker for each in first.attempts] == ["w1"]
    assert (second.task.id, second.success, second.result) == ("b", False, None)
    assert "no" in str(second.error)
    assert second.attempts[0].error is second.error
    assert first.unwrap() == {"x": 1}


def test_failed(path: Path) -> None:
    """Those that have failed can be had alone."""
    journaled.write(path, record("a"), record("b", state=FAILED), record("c"))
    assert [each.task.id for each in Journal(path).failed()] == ["b"]


def test_valueless(path: Path) -> None:
    """What was recorded without its value is no result; it is counted."""
    journaled.write(path, record("a"), record("b", state=VALUELESS))
    assert [each.task.id for each in Journal(path).results()] == ["a"]
    assert Journal(path).summary()[:3] == (1, 0, 1)


def test_what_cannot_be_read_back(path: Path) -> None:
    """A value of a class that is gone is a failure that says so, and the others are there."""
    journaled.write(path, record("a")._replace(result=b"cnowhere\nThing\n."), record("b", 2))
    first, second = Journal(path).results()
    assert not first.success
    assert isinstance(first.error, JournalError)
    assert "task 'a' cannot be read back: ModuleNotFoundError" in str(first.error)
    assert second.result == 2


def test_a_task_of_a_journal_cannot_be_run(path: Path) -> None:
    """A journal has no calls; to run the task of a result again is refused when it is added."""
    journaled.write(path, record("a"))
    (result,) = Journal(path).results()
    with (
        ParallelExecutor() as executor,
        pytest.raises(RuntimeError, match="'a' was read from a journal, which keeps no calls"),
    ):
        executor.add_task(result.task)
    with pytest.raises(RuntimeError, match="keeps no calls"):
        result.task.execute()


def test_results_travel(path: Path) -> None:
    """A result that was read pickles like any."""
    journaled.write(path, record("a"), record("b", state=FAILED))
    for result in Journal(path):
        other = pickle.loads(pickle.dumps(result))
        assert (other.task.id, other.success, other.attempts[0].worker) == (result.task.id, result.success, "w1")


def test_flat_memory(path: Path) -> None:
    """Iteration has one result at a time in memory."""
    journaled.write(path, *[record(str(number), os.urandom(10_000)) for number in range(2_000)])
    tracemalloc.start()
    try:
        count = sum(1 for _ in Journal(path))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert count == 2_000


def test_iteration_that_is_not_finished(path: Path) -> None:
    """Whoever stops in the middle leaves nothing open."""
    journaled.write(path, *[record(str(number)) for number in range(100)])
    before = sorted(os.listdir("/proc/self/fd"))
    results = iter(Journal(path))
    next(results)
    assert len(os.listdir("/proc/self/fd")) > len(before)
    del results
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_one_moment(path: Path) -> None:
    """Who iterates while a run goes on sees the moment at which it began."""
    with journaled.run(path) as database:
        database.write([record("a", 1), record("b", 1)])
        results = iter(Journal(path))
        seen = [next(results)]
        database.write([record("a", 2), record("b", 2), record("c", 2)])
        seen += results
    assert [(each.task.id, each.result) for each in seen] == [("a", 1), ("b", 1)]
    assert [(each.task.id, each.result) for each in Journal(path)] == [("a", 2), ("b", 2), ("c", 2)]


def test_a_slow_reader_holds_up_no_run(path: Path) -> None:
    """A run begins, writes and ends while somebody is amid iterating."""
    journaled.write(path, *[record(str(number)) for number in range(100)])
    results = iter(Journal(path))
    next(results)
    journaled.write(path, record("new"))
    assert len([*results]) == 99
    assert len(Journal(path).results()) == 101
    assert list(journaled.files(path.parent)) == ["run.db"]


# ── encodings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def encoded(path: Path) -> Path:
    """A journal with values encoded by the user."""
    with journaled.run(path, is_encoded=True) as database:
        database.write([record("a")._replace(result='{"x": 1}')])
    return path


def test_decode(encoded: Path) -> None:
    """Values are decoded by what the user gives."""
    assert Journal(encoded, encode=json.dumps, decode=json.loads).results()[0].result == {"x": 1}


def test_without_decode(encoded: Path) -> None:
    """Without it the results are refused; the summary needs none."""
    with pytest.raises(JournalError, match="recorded with encode=: give it decode= as well"):
        Journal(encoded).results()
    assert Journal(encoded).summary().succeeded == 1


def test_with_decode_in_vain(path: Path) -> None:
    """A journal of pickles is refused where nothing is to be unpickled."""
    journaled.write(path, record("a"))
    with pytest.raises(JournalError, match="recorded by pickle: open it without decode="):
        Journal(path, encode=json.dumps, decode=json.loads).results()


@pytest.mark.parametrize("is_encoded", [True, False])
def test_one_encoding_a_file(path: Path, is_encoded: bool) -> None:
    """A later run cannot record in another way: the file could not be read by either."""
    with journaled.run(path, is_encoded=is_encoded):
        pass
    with pytest.raises(JournalError, match="open it in the same way"), journaled.run(path, is_encoded=not is_encoded):
        pass


# ── the summary ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_summary(path: Path) -> None:
    """It counts the tasks, and tells of the runs; as text for people."""
    journaled.write(path, record("a"), record("b", state=FAILED), record("c", state=VALUELESS))
    with journaled.run(path, how="interrupted"):
        running = Journal(path).summary()
    summary = Journal(path).summary()
    assert isinstance(summary, JournalSummary)
    assert all(isinstance(each, JournalRun) for each in summary.runs)
    assert [run.how for run in running.runs] == ["finished", "running"]
    assert running.runs[1].ended_at is None
    assert [run.how for run in summary.runs] == ["finished", "interrupted"]
    first, *lines = str(summary).splitlines()
    assert first == "1 succeeded, 1 failed, 1 without a value"
    assert lines[0].startswith("run 1: 2")
    assert f"process {os.getpid()} on {os.uname().nodename}: 2 succeeded, 1 failed, 0 resumed" in lines[0]
    assert "interrupted after" in lines[1]


def test_runs_are_known_by_their_public_name(path: Path) -> None:
    """A summary pickles, by the module that users know."""
    journaled.write(path)
    summary = Journal(path).summary()
    assert pickle.loads(pickle.dumps(summary)) == summary
    assert b"_journal" not in pickle.dumps(summary)
    assert runs.JournalRun.__module__ == "parallel_exec.journal"


# ── without a trace ───────────────────────────────────────────────────────────────────────────────────────────────────


def _read_all(path: Path) -> list[TaskResult[Any]]:
    journal = Journal(path)
    journal.summary()
    journal.failed()
    return journal.results()


def test_a_finished_run(path: Path) -> None:
    """After reading, the folder is as it was."""
    journaled.write(path, *[record(str(number), number) for number in range(50)])
    before = journaled.files(path.parent)
    assert _fifty(_read_all(path))
    assert journaled.files(path.parent) == before


def test_a_killed_run(killed: Path) -> None:
    """What a killed run has left in its log is read, and stays there."""
    before = journaled.files(killed.parent)
    assert _fifty(_read_all(killed))
    assert Journal(killed).summary().runs[0].how == "killed"
    after = journaled.files(killed.parent)
    assert list(after) == list(before)
    assert (after["run.db"], after["run.db-wal"]) == (before["run.db"], before["run.db-wal"])


def test_a_copy_without_the_index_of_its_log(killed: Path, tmp_path: Path) -> None:
    """The file and its log are all that needs to be copied; neither is changed by reading."""
    for name in ("run.db", "run.db-wal"):
        shutil.copy(killed.with_name(name), tmp_path / name)
    before = {name: (tmp_path / name).read_bytes() for name in ("run.db", "run.db-wal")}
    assert _fifty(_read_all(tmp_path / "run.db"))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_running_one(running: Path) -> None:
    """A run that goes on is read, and goes on."""
    assert _fifty(_read_all(running))
    assert Journal(running).summary().runs[0].how == "running"


def test_many_readers_of_one_run(running: Path) -> None:
    """Any number of programs can read it at the same time."""
    readers = [iter(Journal(running)) for _ in range(5)]
    first = [next(reader) for reader in readers]
    assert all(_fifty([result, *reader]) for result, reader in zip(first, readers))


READER = """
import sys, os
from parallel_exec import Journal
sys.path.pop(0)
if os.getuid() == 0:  # whom no permission stops
    import pwd, parallel_exec.journal, parallel_exec._journal.database, parallel_exec.backends._culprit
    os.setgid(65534); os.setuid(65534)
print(len(Journal(sys.argv[1]).results()))
"""


@pytest.mark.parametrize("names", [["run.db"], ["run.db", "run.db-wal", "run.db-shm"]], ids=["finished", "killed"])
def test_read_only(killed: Path, names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """A journal on a disk that cannot be written is read; one that was killed needs the index of its log."""
    if len(names) == 1:
        journaled.write(killed)  # which takes over what is in the log
    folder = tmp_path_factory.mktemp("disk")
    for parent in [*folder.parents][:3]:
        if parent.owner() == killed.owner():
            parent.chmod(parent.stat().st_mode | 0o055)
    for name in names:
        shutil.copy(killed.with_name(name), folder / name)
        (folder / name).chmod(0o444)
    folder.chmod(0o555)
    before = journaled.files(folder)
    with processes.python("-c", textwrap.dedent(READER), str(folder / "run.db")) as reader:
        assert reader.communicate(timeout=30) == ("50\n", "")
    assert journaled.files(folder) == before
    if len(names) > 1:
        folder.chmod(0o755)
        (folder / "run.db-shm").unlink()
        folder.chmod(0o555)
        with processes.python("-c", textwrap.dedent(READER), str(folder / "run.db")) as reader:
            assert "read-only, and has its log 'run.db-wal': copy both" in reader.communicate(timeout=30)[1]
    folder.chmod(0o755)


def test_a_run_that_ends_while_it_is_read(path: Path, tmp_path: Path) -> None:
    """The end of a run does not wait for readers; what it leaves then is whole, and the next run tidies up."""
    process = _start(tmp_path, path, "time.sleep(0.5)")
    results = iter(Journal(path))
    seen = [next(results)]
    script.finish(process)
    assert process.returncode == 0
    seen += results
    assert _fifty(seen)
    assert _fifty(_read_all(path))
    journaled.write(path)
    assert list(journaled.files(path.parent)) == ["run.db"]


def test_a_reader_that_is_killed(path: Path, tmp_path: Path) -> None:
    """It leaves nothing that matters."""
    journaled.write(path, *[record(str(number), number) for number in range(50)])
    body = """
    from parallel_exec import Journal
    results = iter(Journal(sys.argv[1]))
    next(results)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    process = script.start(tmp_path, body, str(path))
    script.finish(process)
    assert process.returncode == -signal.SIGKILL
    assert _fifty(_read_all(path))
    assert list(journaled.files(path.parent)) == ["run.db"]


# ── settings ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_file_is_touched(path: Path) -> None:
    """To make a `Journal` neither looks for its file nor makes it, nor imports sqlite3."""
    Journal(path)
    assert not path.exists()
    code = "import sys; from parallel_exec import Journal; Journal('run.db'); print('sqlite3' in sys.modules)"
    with processes.python("-c", code) as process:
        assert process.communicate(timeout=30) == ("False\n", "")


def test_paths(path: Path) -> None:
    """A path may be a string or a path; the journal says which it is."""
    assert Journal(path).path == Journal(str(path)).path == str(path)
    assert repr(Journal("run.db")) == "Journal('run.db')"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"path": 3}, TypeError, "path takes the path of a file, not 3"),
        ({"path": ""}, ValueError, "path takes the path of a file, not ''"),
        ({"path": "a\0b"}, ValueError, "path takes the path of a file"),
        ({"retry_failed": 1}, TypeError, "retry_failed takes True or False, not 1"),
        ({"version": 3}, TypeError, r"version takes a string, not 3: write version=str\(...\)"),
        ({"version": "\udc80"}, ValueError, "version takes text"),
        ({"encode": 3, "decode": json.loads}, TypeError, "encode takes a function, not 3"),
        ({"encode": json.dumps, "decode": 3}, TypeError, "decode takes a function, not 3"),
        ({"encode": json.dumps}, ValueError, "encode was given without decode: they come together"),
        ({"decode": json.loads}, ValueError, "decode was given without encode"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    """A wrong setting is refused at once, and the message says what to write."""
    with pytest.raises(error, match=message):
        Journal(**{"path": "run.db", **settings})
