"""Files that are no journal, or cannot be used: each is refused with what is wrong and what to do, and is left alone."""

from __future__ import annotations

import itertools
import os
import sqlite3
import textwrap
from collections import deque
from pathlib import Path
from typing import Any, Callable

import journaled
import processes
import pytest
from interruptions import leaves_nothing_open
from journaled import record

from parallel_exec import Journal, JournalError, ParallelExecError, ParallelExecutor, Task
from parallel_exec._journal import file as module
from parallel_exec._journal.database import Database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file goes: in a folder of its own."""
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "run.db"


def _begin(path: Path) -> None:
    with journaled.run(path) as database:
        database.keys()
        database.write([record("new")])


def _read(path: Path) -> None:
    Journal(path).results()


def _summary(path: Path) -> None:
    Journal(path).summary()


WAYS: list[Callable[[Path], Any]] = [_begin, _read, _summary]
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))


def _sql(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def _text(path: Path) -> None:
    path.write_text("id,result\na,1\n" * 1000)


def _bytes(path: Path) -> None:
    path.write_bytes(os.urandom(10_000))


def _short(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0")


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(8192))


def _others(path: Path) -> None:
    _sql(path, "PRAGMA journal_mode = WAL", "CREATE TABLE tasks (id, key)", "INSERT INTO tasks VALUES (1, 2)")


def _others_with_an_id(path: Path) -> None:
    _sql(path, "PRAGMA application_id = 252006673", "CREATE TABLE settings (encoded)")


def _others_amid_a_transaction(path: Path) -> None:
    """Make a database with a journal that SQLite would undo, were it to open the file as its own."""
    _sql(path, "CREATE TABLE tasks (id)", "INSERT INTO tasks VALUES (1)")
    path.with_name("run.db-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7".ljust(512, b"\0"))


FOREIGN = [_text, _bytes, _short, _zeros, _others, _others_with_an_id, _others_amid_a_transaction]


@each_way
@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__.strip("_"))
def test_not_ours(path: Path, way: Callable[[Path], Any], make: Callable[[Path], Any]) -> None:
    """A file of another kind is refused and left alone, byte for byte."""
    make(path)
    before, when = journaled.files(path.parent), path.stat().st_mtime_ns
    with pytest.raises(JournalError, match=r"(not a journal|no journal).*left alone") as caught:
        way(path)
    assert caught.value.path == str(path)
    assert isinstance(caught.value, ParallelExecError)
    assert journaled.files(path.parent) == before
    assert path.stat().st_mtime_ns == when


@each_way
def test_newer(path: Path, way: Callable[[Path], Any]) -> None:
    """A journal of a later version of this library is refused, and the message says what to do."""
    journaled.write(path, record("a"))
    _sql(path, "PRAGMA user_version = 2")
    before = journaled.files(path.parent)
    with pytest.raises(
        JournalError, match=r"newer version of parallel_exec \(format 2, and this one knows 1\): upgrade"
    ):
        way(path)
    assert journaled.files(path.parent) == before


def _fill(path: Path) -> None:
    """Leave a journal of several pages."""
    journaled.write(path, *[record(str(number), "x" * 1000) for number in range(200)])


def _garble(path: Path) -> None:
    """Overwrite all pages but the first."""
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))


def _truncate(path: Path) -> None:
    os.truncate(path, 3 * 4096)


def _drop(path: Path) -> None:
    _sql(path, "DROP TABLE tasks")


@pytest.mark.parametrize("damage", [_garble, _truncate, _drop], ids=lambda make: make.__name__.strip("_"))
@each_way
def test_damaged(path: Path, way: Callable[[Path], Any], damage: Callable[[Path], Any]) -> None:
    """A damaged journal is refused before anything runs, with what SQLite says of it."""
    _fill(path)
    damage(path)
    with pytest.raises(JournalError, match="it is damaged") as caught:
        way(path)
    assert isinstance(caught.value.__cause__, sqlite3.Error)


def test_damaged_in_one_place(path: Path) -> None:
    """What is before the damage is still read."""
    _fill(path)
    with path.open("r+b") as file:
        file.seek(-4 * 4096, os.SEEK_END)
        file.write(b"\xff" * 4 * 4096)
    seen: list[Any] = []
    with pytest.raises(JournalError, match="damaged"):
        seen.extend(Journal(path))
    assert len(seen) > 100


@each_way
def test_damaged_where_the_message_is_no_text(path: Path, way: Callable[[Path], Any]) -> None:
    """SQLite quotes what it does not understand, bytes that are no text, too."""
    _fill(path)
    data = path.read_bytes()
    assert data.count(b"CREATE TABLE runs") == 1
    path.write_bytes(data.replace(b"CREATE TABLE runs", b"CREATE TABL\xd5 runs"))
    with pytest.raises(JournalError, match="it is damaged"):
        way(path)


@pytest.mark.parametrize(
    "change",
    ["id = CAST(x'61ff' AS BLOB)", "id = CAST(x'61ff' AS TEXT)", "id = 7", "attempts = CAST(x'ff' AS TEXT)"],
)
def test_a_record_that_is_damaged(path: Path, change: str) -> None:
    """What SQLite takes and a record cannot have is told as damage; and its task runs again."""
    with ParallelExecutor(backend="inline") as executor:
        executor.add_task(Task(int, "5", id="a"))
        executor.execute_all(journal=path)
        _sql(path, f"UPDATE tasks SET {change}")
        with pytest.raises(JournalError, match="it is damaged"):
            Journal(path).results()
        executor.add_task(Task(int, "5", id="a"))
        [result] = executor.execute_all(journal=path)
    assert result.unwrap() == 5
    assert not result.resumed


@each_way
def test_a_folder(path: Path, way: Callable[[Path], Any]) -> None:
    """A folder is no file."""
    with pytest.raises(JournalError, match="it is not a file"):
        way(path.parent)


@each_way
def test_a_pipe(path: Path, way: Callable[[Path], Any]) -> None:
    """Neither is a pipe, which would be waited for, nor a device."""
    os.mkfifo(path)
    for special in (path, Path("/dev/null")):
        with pytest.raises(JournalError, match="it is not a file"):
            way(special)


@pytest.mark.parametrize("way", WAYS[1:], ids=lambda way: way.__name__.strip("_"))
def test_nothing_to_read(path: Path, way: Callable[[Path], Any]) -> None:
    """A file that is not there, or empty, is nothing to read, and is not made."""
    with pytest.raises(JournalError, match="there is no such file, or it is empty"):
        way(path)
    assert not path.exists()
    path.touch()
    with pytest.raises(JournalError, match="there is no such file, or it is empty"):
        way(path)
    assert path.read_bytes() == b""


def test_an_empty_file_becomes_one(path: Path) -> None:
    """An empty file, of `tempfile` say, is made a journal, with the permissions that it has."""
    path.touch(0o640)
    path.chmod(0o640)
    journaled.write(path, record("a"))
    assert path.stat().st_mode & 0o777 == 0o640
    assert len(Journal(path).results()) == 1


def test_no_folder(path: Path) -> None:
    """A journal in a folder that is not there cannot be made."""
    with pytest.raises(JournalError, match="its folder is not there: make that first"):
        _begin(path.parent / "sub" / "run.db")


AS_NOBODY = """
import sys, os
from parallel_exec import Journal, JournalError
from parallel_exec._journal.database import Database
sys.path.pop(0)
if os.getuid() == 0:  # whom no permission stops
    os.setgid(65534); os.setuid(65534)
for write in (True, False):
    try:
        database = Database.open(sys.argv[1], write=write)
        database.begin_run("", is_encoded=False) if write else database.counts()
        print("fine")
    except JournalError as error:
        print(error.reason.partition(" (")[0])
    finally:
        if "database" in dir():
            database.close()
"""
NOT_WRITTEN = "it cannot be written: the file or its folder is read-only"


@pytest.mark.parametrize(
    ("folder_mode", "file_mode", "reasons"),
    [
        (0o755, 0o444, [NOT_WRITTEN, "fine"]),
        (0o555, 0o666, [NOT_WRITTEN, "fine"]),
        (0o755, 0o000, ["you have no permission to read it"] * 2),
        (0o700, 0o666, ["Permission denied"] * 2),
        (0o755, None, ["Permission denied", "there is no such file, or it is empty"]),
    ],
    ids=["file", "folder", "no reading", "no looking", "no making"],
)
def test_permissions(
    tmp_path_factory: pytest.TempPathFactory, folder_mode: int, file_mode: int | None, reasons: list[str]
) -> None:
    """Where something is not permitted, the message says what."""
    folder = tmp_path_factory.mktemp("disk")
    for parent in [*folder.parents][:3]:
        if parent.owner() == folder.owner():
            parent.chmod(parent.stat().st_mode | 0o055)
    path = folder / "run.db"
    if file_mode is not None:
        journaled.write(path, record("a"))
        path.chmod(file_mode)
    folder.chmod(folder_mode)
    try:
        with processes.python("-c", textwrap.dedent(AS_NOBODY), str(path)) as process:
            said, wrong = process.communicate(timeout=30)
        assert (said.splitlines(), wrong) == (reasons, "")
    finally:
        folder.chmod(0o755)


def test_a_file_system_without_a_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SQLite cannot have its log, as the file system has no locks or cannot share memory, nothing is run."""
    before = module.pragma

    def refuse(connection: sqlite3.Connection, name: str) -> Any:
        return "delete" if name.startswith("journal_mode") else before(connection, name)

    monkeypatch.setattr(module, "pragma", refuse)
    with pytest.raises(JournalError, match="its file system has no locks: put it on a disk of this machine"):
        _begin(path)


def test_a_full_disk(path: Path) -> None:
    """What cannot be written for lack of room is refused as a whole, and is written once there is some."""
    with journaled.run(path) as database:
        database.write([record("a")])
        writing: Any = database._writing
        pages = writing.execute("PRAGMA page_count").fetchone()[0]
        writing.execute(f"PRAGMA max_page_count = {pages}")
        large = [record(str(number), "x" * 10_000) for number in range(10)]
        with pytest.raises(JournalError, match="the disk is full"):
            database.write(large)
        assert [each.id for each in database.records()] == ["a"]
        writing.execute("PRAGMA max_page_count = 100000")
        database.write(large)
    assert len(Journal(path).results()) == 11


def test_nothing_began(path: Path) -> None:
    """A run with a bad journal is refused before a task starts; its tasks stay, and run without it."""
    _text(path)
    with ParallelExecutor(backend="inline") as executor:
        executor.add_task(Task(int, id="a"))
        with pytest.raises(JournalError, match="left alone"):
            executor.execute_all(journal=path)
        with pytest.raises(JournalError, match="left alone"):
            executor.stream([Task(int, id="b")], journal=path)
        assert [result.result for result in executor.execute_all()] == [0]


def test_opened_for_reading_only(path: Path) -> None:
    """What was opened to be read is not written."""
    journaled.write(path, record("a"))
    with journaled.reading(path) as database, pytest.raises(JournalError):
        database.begin_run("", is_encoded=False)
    with pytest.raises(JournalError):
        Database.open(str(path.parent / "other"), write=False)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_ctrl_c_as_a_file_is_made(tmp_path: Path) -> None:
    """Wherever it comes nothing stays open."""
    numbers = itertools.count()

    def make() -> None:
        Database.open(str(tmp_path / f"{next(numbers)}"), write=True).close()

    assert leaves_nothing_open(make, deque(maxlen=0)) > 100
