"""`parallel_exec._journal.database`: what was written is there, whoever was killed, and one run at a time has the file."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import textwrap
import threading
from functools import partial
from pathlib import Path
from typing import Iterator

import journaled
import processes
import pytest
import script
from journaled import FAILED, SUCCEEDED, VALUELESS, record

from parallel_exec import Journal, JournalError
from parallel_exec._journal import file as module
from parallel_exec._journal import runs
from parallel_exec._journal.database import Database

# A run that says that it has begun, and waits; or does what its argument says.
HOLDER = """
import journaled
with journaled.run(sys.argv[1]) as database:
    database.write([journaled.record("a")])
    say("READY")
    {}
"""
WAITS = "time.sleep(60)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal goes."""
    return tmp_path / "run.db"


@pytest.fixture
def holder(path: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has a run under way; it is killed at the end."""
    process = script.start(tmp_path, HOLDER.format(WAITS), str(path))
    assert process.stdout is not None
    assert process.stdout.readline() == "READY\n"
    yield process
    process.kill()
    process.communicate()


def _ids(path: Path) -> list[str]:
    with journaled.reading(path) as database:
        return [each.id for each in database.records()]


def _hows(path: Path) -> list[str]:
    return [run.how for run in Journal(path).summary().runs]


# ── records ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_written_is_found(path: Path) -> None:
    """A record is found by its id, during the run and after it."""
    records = [record("a"), record("b", state=FAILED), record("c", state=VALUELESS)]
    with journaled.run(path) as database:
        database.write(records)
        assert [database.find(each.id) for each in records] == records
        assert database.find("d") is None
    with journaled.reading(path) as database:
        assert list(database.records()) == records
        assert list(database.records((FAILED,))) == records[1:2]
        assert database.counts() == {SUCCEEDED: 1, FAILED: 1, VALUELESS: 1}


def test_keys(path: Path) -> None:
    """Only the keys of tasks in the states asked for are read."""
    with journaled.run(path) as database:
        database.write([record(str(state), state=state)._replace(key=bytes([state]) * 16) for state in range(3)])
        assert database.keys((SUCCEEDED, FAILED)) == {bytes(16), b"\1" * 16}
        assert database.keys(()) == set()


def test_an_id_has_one_record(path: Path) -> None:
    """A later record replaces the earlier one, and has its place in the order anew; in the same transaction, too."""
    with journaled.run(path) as database:
        database.write([record("a", 1), record("b", 1)])
        database.write([record("a", 2), record("c"), record("a", 3)])
        assert database.find("a") == record("a", 3)._replace(started_at=database.find("a").started_at)  # type: ignore[union-attr]
    assert _ids(path) == ["b", "c", "a"]


@pytest.mark.parametrize("id", ["", "a'b", "a\0b", "ü", "\udc80", "a\ud800", "☃" * 1000, "1", "NULL"])
def test_any_string_is_an_id(path: Path, id: str) -> None:
    """Also one that is no text, as some paths are."""
    journaled.write(path, record(id), record("other"))
    with journaled.reading(path) as database:
        assert database.find(id).id == id  # type: ignore[union-attr]
    assert _ids(path) == [id, "other"]


@pytest.mark.parametrize("count", [1, 98, 99, 100, 1234])
def test_many_records(path: Path, count: int) -> None:
    """Any number of records is written, however many go into one statement."""
    journaled.write(path, *[record(str(number)) for number in range(count)])
    assert _ids(path) == [str(number) for number in range(count)]


def test_any_sqlite_takes_the_statement(path: Path) -> None:
    """No statement has more variables than the smallest limit that SQLite was ever built with."""
    with journaled.run(path) as database:
        if sys.version_info >= (3, 11):
            database._writing.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)  # type: ignore[union-attr]
        database.write([record(str(number)) for number in range(1000)])


def test_all_or_nothing(path: Path) -> None:
    """Of records that cannot all be written none is, and the next try is as if there had been none."""
    with journaled.run(path) as database:
        wrong = record("x")._replace(state=None)  # type: ignore[arg-type]
        with pytest.raises(JournalError, match="NOT NULL"):
            database.write([*[record(str(number)) for number in range(200)], wrong])
        assert list(database.records()) == []
        database.write([record("a")])
    assert _ids(path) == ["a"]
    assert Journal(path).summary().runs[0].succeeded == 1


def test_small_results_take_few_bytes(path: Path) -> None:
    """A small result takes at most 250 bytes of the file."""
    records = [record(f"parse-{number}", number)._replace(key=os.urandom(16)) for number in range(20_000)]
    journaled.write(path, *records)
    assert path.stat().st_size <= 250 * len(records)


def test_many_threads_read(path: Path) -> None:
    """Any thread finds records while another writes; each has a connection to itself meanwhile."""
    wrong: list[object] = []
    with journaled.run(path) as database:
        database.write([record(str(number), number) for number in range(100)])

        def look() -> None:
            for number in [*range(100)] * 3:
                found = database.find(str(number))
                if found is None or found.id != str(number):
                    wrong.append(found)

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(20):
            database.write([record(f"new-{number}")])
        for thread in threads:
            thread.join()
    assert not wrong


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_its_user_may_read_it(path: Path) -> None:
    """The file and its log are made for their user alone, whatever the umask says."""
    before = os.umask(0)
    try:
        with journaled.run(path):
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["run.db", "run.db-wal", "run.db-shm"], 0o600)


def test_it_stands_alone_after_a_run(path: Path) -> None:
    """After a run there is one file, which can be copied by itself."""
    journaled.write(path, record("a"))
    assert [each.name for each in path.parent.iterdir()] == ["run.db"]


def test_each_commit_is_on_disk(path: Path) -> None:
    """The connection that writes waits for the disk at each commit."""
    with journaled.run(path) as database:
        assert database._writing.execute("PRAGMA synchronous").fetchone() == (2,)  # type: ignore[union-attr]


def test_names_that_mean_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is a path, also where SQLite, or a URI, would take it for something else."""
    monkeypatch.chdir(tmp_path)
    names = [":memory:", "a?mode=memory", "file:b", "c#d", "e%20f", "g h", "ü\udc80"]
    for name in names:
        journaled.write(name, record("a"))
        assert _ids(Path(name)) == ["a"]
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_a_link_leads_to_it(path: Path, tmp_path: Path) -> None:
    """By a symbolic link it is the same journal, with one log, and one holder."""
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with journaled.run(link) as database:
        database.write([record("a")])
        assert (tmp_path / "run.db-wal").exists()
        with pytest.raises(JournalError, match="run with it under way"), journaled.run(path):
            pass
    assert _ids(path) == _ids(link) == ["a"]


def test_a_deleted_file(path: Path) -> None:
    """It is noticed that the file is gone: what would be written to it would be lost."""
    database = Database.open(str(path), write=True)
    database.begin_run("", is_encoded=False)
    path.unlink()
    for call in (
        partial(database.write, [record("b")]),
        partial(database.end_run, "finished", resumed=0, unfinished=0),
    ):
        with pytest.raises(JournalError, match="was deleted while the run went on"):
            call()
    database.close()


def test_a_replaced_file(path: Path, tmp_path: Path) -> None:
    """The same if there is another one in its place."""
    database = Database.open(str(path), write=True)
    database.begin_run("", is_encoded=False)
    (tmp_path / "other").write_bytes(b"")
    (tmp_path / "other").rename(path)
    with pytest.raises(JournalError, match="another file was put in its place"):
        database.write([record("b")])
    database.close()
    assert path.read_bytes() == b""


def test_nothing_is_open_after_a_refusal(path: Path, tmp_path: Path) -> None:
    """What could not be opened leaves no descriptor open, and no lock."""
    path.write_bytes(b"not a journal")
    before = set(os.listdir("/proc/self/fd"))
    for write in (True, False):
        with pytest.raises(JournalError):
            Database.open(str(path), write=write)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_look_keeps_the_locks(path: Path) -> None:
    """To look at a journal that this process writes to does not drop the locks by which others know that."""
    with journaled.run(path) as database:
        database.write([record("a")])
        inode = f":{path.stat().st_ino} "
        before = [line for line in Path("/proc/locks").read_text().splitlines() if inode in line]
        assert len(before) == 1
        Journal(path).results()
        with pytest.raises(JournalError), journaled.run(path):
            pass
        after = [line for line in Path("/proc/locks").read_text().splitlines() if inode in line]
        assert len(after) == 1


# ── runs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_runs_are_numbered(path: Path) -> None:
    """Each run has a row: when, where, and how it ended."""
    with journaled.run(path) as database:
        database.write([record("a"), record("b", state=FAILED)])
        database.write([record("c", state=VALUELESS)])
    database = Database.open(str(path), write=True)
    assert database.begin_run("v2", is_encoded=False) == 2
    database.write([record("b")], resumed=2)
    database.end_run("interrupted", resumed=2, unfinished=5)
    database.close()
    first, second = Journal(path).summary().runs
    assert first[:2] == (1, "finished")
    assert (first.succeeded, first.failed, first.resumed, first.unfinished) == (2, 1, 0, 0)
    assert second[:2] == (2, "interrupted")
    assert (second.succeeded, second.failed, second.resumed, second.unfinished) == (1, 0, 2, 5)
    assert second.started_at >= (first.ended_at or 0.0) >= first.started_at
    assert (second.pid, second.host, second.version) == (os.getpid(), os.uname().nodename, "v2")
    assert second.python == sys.version.split()[0].partition("a")[0].partition("b")[0].partition("rc")[0]


def test_one_run_at_a_time(path: Path, holder: subprocess.Popen[str]) -> None:
    """A second run is refused, and told who has the file; reading is not."""
    with (
        pytest.raises(
            JournalError, match=rf"process {holder.pid} on .* has a run with it under way since 20"
        ) as caught,
        journaled.run(path),
    ):
        pass
    assert (caught.value.pid, caught.value.host) == (holder.pid, os.uname().nodename)
    assert _ids(path) == ["a"]
    assert _hows(path) == ["running"]


def test_a_killed_holder_blocks_nobody(path: Path, holder: subprocess.Popen[str]) -> None:
    """The next run takes over at once, and the one before counts as killed, at its last sign of life."""
    processes.kill(holder.pid)
    holder.wait()
    (killed,) = Journal(path).summary().runs
    assert killed.how == "killed"
    assert killed.ended_at is not None
    assert killed.succeeded == 1
    journaled.write(path, record("b"))
    assert _ids(path) == ["a", "b"]
    assert _hows(path) == ["killed", "finished"]
    assert Journal(path).summary().runs[0] == killed


def test_a_zombie_is_dead(path: Path, holder: subprocess.Popen[str]) -> None:
    """A holder that was killed blocks nobody, although its parent has not noticed."""
    processes.kill(holder.pid)
    assert processes.settled(lambda: processes.is_alive(holder.pid), 0.05) is False
    assert holder.returncode is None
    journaled.write(path, record("b"))
    assert _hows(path) == ["killed", "finished"]


def test_a_stopped_holder_is_alive(path: Path, holder: subprocess.Popen[str]) -> None:
    """A process that is only stopped still has its run, however old its last sign of life is."""
    os.kill(holder.pid, signal.SIGSTOP)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE runs SET seen_at = 0")
    connection.close()
    with pytest.raises(JournalError, match="under way"), journaled.run(path):
        pass


def test_a_pid_that_came_again(path: Path, holder: subprocess.Popen[str]) -> None:
    """A process that has a dead holder's pid does not count as that."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE runs SET birth = '1'")
    connection.close()
    journaled.write(path, record("b"))
    assert _hows(path) == ["killed", "finished"]


def _move(path: Path, age: float) -> None:
    """Have a run seem to be that of another host, and to have given its last sign of life some seconds ago."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE runs SET place = 'elsewhere', pid = 1, seen_at = seen_at - ?", (age,))
    connection.close()


def test_a_holder_elsewhere_is_alive(path: Path) -> None:
    """A run on another host, or in another container, counts as alive as long as it gives signs of life."""
    with journaled.run(path):
        _move(path, 1.0)
        with pytest.raises(JournalError, match="under way"), journaled.run(path):
            pass


@pytest.mark.parametrize("age", [1000.0, -1000.0], ids=["silent", "of the future"])
def test_a_holder_elsewhere_is_dead(path: Path, age: float) -> None:
    """Without one for long it counts as dead; should it be there after all, it writes nothing more."""
    with journaled.run(path) as database:
        database.write([record("a")])
        _move(path, age)
        journaled.write(path, record("b"))
        with pytest.raises(JournalError, match="no sign of life"):
            database.write([record("c")])
    assert _ids(path) == ["a", "b"]
    assert _hows(path) == ["killed", "finished"]


def test_without_proc(path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not tell when a process began, it is alive if there is one, and it gives signs of life."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE runs SET birth = ''")
    connection.close()
    with pytest.raises(JournalError, match="under way"), journaled.run(path):
        pass
    monkeypatch.setattr(runs, "STALE", 0.0)
    journaled.write(path, record("b"))
    assert _hows(path) == ["killed", "finished"]


def test_a_process_that_may_not_be_looked_at(
    path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where the system hides other people's processes."""
    read = runs._read
    monkeypatch.setattr(runs, "_read", lambda path: "" if path == f"/proc/{holder.pid}/stat" else read(path))
    with pytest.raises(JournalError, match="under way"), journaled.run(path):
        pass
    processes.kill(holder.pid)
    holder.wait()
    journaled.write(path, record("b"))
    assert _hows(path) == ["killed", "finished"]


def test_this_process_is_a_holder_like_others(path: Path) -> None:
    """Two runs of one process cannot have the same journal either; one after the other can."""
    with (
        journaled.run(path),
        pytest.raises(JournalError, match=f"process {os.getpid()} ") as caught,
        journaled.run(path),
    ):
        pass
    assert caught.value.pid == os.getpid()
    journaled.write(path, record("a"))


def test_a_run_that_could_not_be_ended_blocks_nobody(path: Path) -> None:
    """A run of this process that was closed without being ended counts as killed."""
    database = Database.open(str(path), write=True)
    database.begin_run("", is_encoded=False)
    database.close()
    assert _hows(path) == ["killed"]
    journaled.write(path, record("a"))
    assert _hows(path) == ["killed", "finished"]


def test_after_an_exec(path: Path, tmp_path: Path) -> None:
    """A program that has replaced itself is the same process, and yet has no run any more."""
    again = "print(__import__('journaled').write({!r}))"
    body = HOLDER.format(f"os.execv(sys.executable, [sys.executable, '-c', {again.format(str(path))!r}])")
    assert script.run(tmp_path, body, str(path)) == "READY\nNone"
    assert _hows(path) == ["killed", "finished"]


def test_a_race_has_one_winner(path: Path, tmp_path: Path) -> None:
    """Of runs that begin at the same time, with a file that is not there yet, one begins."""
    body = """
    import journaled
    from parallel_exec import JournalError
    try:
        with journaled.run(sys.argv[1]) as database:
            say("won")
            sys.stdin.read()
    except JournalError as error:
        say("lost", "under way" in str(error))
    """
    folders = [tmp_path / str(number) for number in range(4)]
    started = []
    for folder in folders:
        folder.mkdir()
        started.append(script.start(folder, body.replace("sys.stdin.read()", "time.sleep(2)"), str(path)))
    said = sorted(script.finish(each)[0].strip() for each in started)
    assert said == ["lost True"] * 3 + ["won"]


def test_the_end_comes_too_late(path: Path) -> None:
    """The end of a run that was taken over changes nothing."""
    database = Database.open(str(path), write=True)
    database.begin_run("", is_encoded=False)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE runs SET how = 'killed', ended_at = 1.0")
    connection.close()
    database.end_run("finished", resumed=0, unfinished=0)
    database.close()
    assert _hows(path) == ["killed"]


def test_closed_is_closed(path: Path) -> None:
    """Nothing opens it again by itself."""
    with journaled.run(path) as database:
        pass
    database.close()
    for call in (lambda: database.find("a"), lambda: database.write([]), database.keys):
        with pytest.raises(JournalError, match="it was closed"):
            call()


# ── kills and forks ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("statement", range(18))
def test_killed_at_each_statement(path: Path, tmp_path: Path, statement: int) -> None:
    """Killed before any statement of the making of a file, and of a run's begin, the file is empty or a whole journal."""
    body = """
    import sqlite3
    import journaled
    left = int(sys.argv[2])
    class Connection(sqlite3.Connection):
        def execute(self, *arguments):
            global left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return super().execute(*arguments)
    connect = sqlite3.connect
    sqlite3.connect = lambda *given, **named: connect(*given, **named, factory=Connection)
    with journaled.run(sys.argv[1]) as database:
        say("begun")
    """
    process = script.start(tmp_path, body.replace("global left", "nonlocal left"), str(path), str(statement))
    assert script.finish(process)[0] == ""
    assert process.returncode == -signal.SIGKILL
    journaled.write(path, record("a"))
    assert _ids(path) == ["a"]


def test_a_file_cut_short_by_the_power(path: Path) -> None:
    """A file whose first page had its room, and not yet its contents, when the power failed is made anew."""
    path.write_bytes(bytes(4096))
    header = struct.pack(
        ">8s5I", b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7", 0, 1, 0, 512, 4096
    )  # of a file that was empty before
    path.with_name("run.db-journal").write_bytes(header.ljust(512, b"\0"))
    journaled.write(path, record("a"))
    assert _ids(path) == ["a"]


FORKS = """
import journaled
from pathlib import Path
path = sys.argv[1]
with journaled.run(path) as database:
    database.write([journaled.record("a")])
    database.find("a")
    child = os.fork()
    if not child:
        {}
        sys.exit(0)
    say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    say(Path(path + "-wal").exists())
    database.write([journaled.record("b")])
with journaled.reading(path) as database:
    say(*[each.id for each in database.records()])
"""


@pytest.mark.parametrize(
    "what",
    [
        "pass",
        "database.close()",
        "del database; gc.collect()",
        "atexit.register(database.close)",
    ],
)
def test_a_forked_child_closes_nothing(path: Path, tmp_path: Path, what: str) -> None:
    """Whatever a forked child does with its copy, and however it ends, its parent's journal is as it was."""
    assert script.run(tmp_path, FORKS.format(what), str(path)) == "0\nTrue\na b"


def test_a_forked_child_writes_nothing(path: Path, tmp_path: Path) -> None:
    """It is refused, and cannot take the run over either."""
    body = """
        from parallel_exec import JournalError
        for call in (lambda: database.write([journaled.record("x")]), lambda: database.find("a"), lambda: journaled.write(path)):
            try:
                call()
            except JournalError as error:
                continue
            os._exit(1)
    """
    body = textwrap.indent(textwrap.dedent(body), "        ").strip()
    assert script.run(tmp_path, FORKS.format(body), str(path)) == "0\nTrue\na b"


def test_a_child_that_outlives_its_parent(path: Path, tmp_path: Path) -> None:
    """The end of a child deletes no log of a later run, which would be at the same path."""
    body = """
    import journaled
    path = sys.argv[1]
    with journaled.run(path) as database:
        database.write([journaled.record("a")])
        database.find("a")
        if not os.fork():
            os.close(1), os.close(2)
            while not os.path.exists(sys.argv[2]):
                time.sleep(0.01)
            sys.exit(0)
    """
    log = path.with_name("run.db-wal")
    assert script.run(tmp_path, body, str(path), str(tmp_path / "go")) == ""
    other = script.start(tmp_path, HOLDER.format("os.kill(os.getpid(), signal.SIGKILL)"), str(path))
    assert script.finish(other)[0] == "READY\n"
    kept = log.read_bytes()
    (tmp_path / "go").touch()
    processes.settled(lambda: len(_holders_of(path)), 0.3)
    assert _holders_of(path) == []
    assert log.read_bytes() == kept


def _holders_of(path: Path) -> list[str]:
    """Return the processes that have a file open, or had it deleted."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        if any(link.startswith(str(path)) for link in links):
            found.append(pid)
    return found


def test_locked_by_another_program(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that another program locks out is refused after a while, and can be tried again."""
    monkeypatch.setattr(module, "_BUSY", 0.1)
    with journaled.run(path) as database:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalError, match="another program has had it locked"):
            database.write([record("a")])
        other.close()
        database.write([record("a")])
    assert _ids(path) == ["a"]


GROWTH = """
import journaled, resource
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
with journaled.run(sys.argv[1]) as database:
    database.write([journaled.record(str(number)) for number in range(3000)])
    before = peak()
    for more in range(60):
        database.write([journaled.record(str(number)) for number in range(2900 + more)])
    say(str(peak() - before))
"""


def test_writing_takes_no_more_memory_as_it_goes_on(path: Path, tmp_path: Path) -> None:
    """Transactions of many sizes leave nothing behind, as the statements that were made for them would."""
    process = script.start(tmp_path, GROWTH, str(path))
    grown, _ = process.communicate(timeout=50)
    assert int(grown) < 20  # MB; a statement takes one
