"""The journal's file: a SQLite database; all the SQL is here.

    Database.open(path, write=True) ─► begin_run ─► keys, find ... write, write, write ─► end_run ─► close
    Database.open(path, write=False) ─► runs, counts, records ─► close

    settings    one row: whether values are encoded by the user's `encode`
    runs        one row for each run: when, where, how it ended; the one that is "running" holds the file
    tasks       one row for each task, in the order in which they ended last

Guarantees:
    A file that is not empty and not ours is never touched; it is looked at without locks and without its log.
    A file is made in one transaction: killed at any moment, it is empty or whole. The write-ahead log is on from then on,
    and each commit is on disk when `write` returns (`synchronous=FULL`).
    A run holds the file until `end_run`, or until its process is gone: then the next run takes over, and the dead one counts
    as killed at its last sign of life.
    Reading changes nothing. It goes on while a run writes, and sees one moment of it.
    A forked child neither writes nor closes what its parent has opened: the files' locks are the parent's.

`begin_run`, `write`, `end_run` and `close` are for one thread at a time; the rest is for any thread.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import weakref
from collections import deque
from typing import Any, Callable, Iterator, Sequence
from urllib.parse import quote

from parallel_exec._journal.records import FAILED, STATES, Record
from parallel_exec._journal.runs import (
    KILLED,
    RUNNING,
    JournalRun,
    Process,
    hold,
    is_alive,
    let_go,
    library_version,
    python_version,
    this_process,
)
from parallel_exec._sync.clock import time
from parallel_exec.errors import JournalError

APPLICATION = 0x7065786A  # "pexj": the file's first page says whose it is
FORMAT = 1

_BUSY = 10.0  # seconds to wait for another program's lock; a guess: a commit of ours takes a hundredth of that
_NAP = 0.01  # seconds between two tries where SQLite does not wait by itself
_VARIABLES = 999  # in one statement: what any SQLite takes

_SCHEMA = (
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {FORMAT}",
    "CREATE TABLE settings (encoded INTEGER NOT NULL)",
    """CREATE TABLE runs (number INTEGER PRIMARY KEY, how TEXT NOT NULL, started_at REAL NOT NULL, ended_at REAL,
        host TEXT NOT NULL, pid INTEGER NOT NULL, python TEXT NOT NULL, library TEXT NOT NULL, version TEXT NOT NULL,
        succeeded INTEGER NOT NULL, failed INTEGER NOT NULL, resumed INTEGER NOT NULL, unfinished INTEGER,
        place TEXT NOT NULL, birth TEXT NOT NULL, seen_at REAL NOT NULL)""",
    """CREATE TABLE tasks (number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, key BLOB NOT NULL, state INTEGER NOT NULL,
        result, error, attempts TEXT, started_at REAL, queued_for REAL NOT NULL, duration REAL NOT NULL)""",
)
_COLUMNS = ", ".join(Record._fields)
_ROWS = _VARIABLES // len(Record._fields)
_RUN = ", ".join(JournalRun._fields)

_databases: weakref.WeakSet[Database] = weakref.WeakSet()  # that are open in this process


class Database:
    """A journal that is open; made by `open`.

    Attributes:
        path: as it was given.
        is_encoded: whether its values are encoded by the user's `encode`; None: it is new.
    """

    def __init__(self, path: str, write: bool) -> None:
        self.path = path
        self.is_encoded: bool | None = None
        self._real = os.path.realpath(path)  # the log's files are beside this one
        self._mode = "mode=rw" if write else _mode_for_reading(self._real)
        self._writing: sqlite3.Connection | None = None
        self._idle: deque[sqlite3.Connection] = deque()  # for reading, each used by one thread at a time
        self._all: list[tuple[sqlite3.Connection, list[object]]] = []  # each with what it keeps alive
        self._inode: tuple[int, int] = (0, 0)
        self._run = 0  # its number, while one is under way
        self._is_over = False  # whether it was closed, or belongs to the process that has forked this one
        _databases.add(self)

    @classmethod
    def open(cls, path: str, *, write: bool) -> Database:
        """Open a journal; one that is to be written is made if there is none.

        Raises:
            JournalError: it is not there, not a journal, damaged, of a newer version, or cannot be read or written.
        """
        database = cls(path, write)
        try:
            with database._explained():
                database._open(write)
        except BaseException:
            database.close()
            raise
        return database

    def _open(self, write: bool) -> None:
        is_new = self._is_new()
        if write:
            if is_new:
                _make_file(self._real)
            self._writing = self._connect("mode=rw")
            _set_up(self._writing)
            status = os.stat(self._real)
            self._inode = status.st_dev, status.st_ino
        elif is_new:
            raise JournalError(self.path, "there is no such file, or it is empty")
        if self._mode == "mode=ro" and not _may(os.W_OK, os.path.dirname(self._real)):
            self._check_log()
        with self._reading() as connection:
            if not _pragma(connection, "application_id"):
                raise JournalError(self.path, "it is empty")
            row = connection.execute("SELECT encoded FROM settings").fetchone()
            self.is_encoded = None if row is None else bool(row[0])

    def _check_log(self) -> None:
        """Refuse a file with a log, but without the index of that, which cannot be made."""
        if not os.path.exists(self._real + "-shm"):
            log = os.path.basename(self._real) + "-wal"
            raise JournalError(
                self.path, f"its folder is read-only, and has its log {log!r}: copy both to another folder"
            )

    def _is_new(self) -> bool:
        """Return whether there is nothing yet; refuses what is not ours."""
        try:
            status = os.stat(self._real)
        except FileNotFoundError:
            return True
        if not stat.S_ISREG(status.st_mode):
            raise JournalError(self.path, "it is not a file")
        if not status.st_size:
            return True
        try:
            # Not by `open`: to close that would drop this process's locks on the file.
            with contextlib.closing(self._connect("immutable=1")) as connection:
                # What was killed amid a checkpoint may be shorter than it says, and takes the rest from its log.
                connection.execute("PRAGMA writable_schema = 1")
                application, form = _pragma(connection, "application_id"), _pragma(connection, "user_version")
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            if _is_cut_short(self._real):
                return True
            raise JournalError(self.path, "it is not a journal, but some other file: it is left alone") from None
        if application != APPLICATION:
            raise JournalError(self.path, "it is a database, and not a journal: it is left alone")
        if form > FORMAT:
            newer = (
                f"it is of a newer version of parallel_exec (format {form}, and this one knows {FORMAT}): upgrade that"
            )
            raise JournalError(self.path, newer)
        return False

    def _connect(self, mode: str) -> sqlite3.Connection:
        if self._is_over:
            raise JournalError(self.path, "it was closed, or was opened by another process")
        uri = f"file:{quote(os.fsencode(self._real))}?{mode}"
        connection = sqlite3.connect(uri, timeout=_BUSY, isolation_level=None, check_same_thread=False, uri=True)
        kept: list[object] = []
        connection.create_function("keep", 0, kept.append)
        self._all.append((connection, kept))
        return connection

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise what goes wrong meanwhile as a `JournalError`."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> JournalError:
        if isinstance(error, FileNotFoundError):
            return JournalError(self.path, "its folder is not there: make that first")
        if isinstance(error, OSError):
            return JournalError(self.path, error.strerror or str(error))
        reason = next((reason for part, reason in _REASONS.items() if part in str(error)), "SQLite refuses")
        if "unable to open" in str(error) and not _may(os.R_OK, self._real):
            reason = "you have no permission to read it"
        return JournalError(self.path, f"{reason} ({error})")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection to the calling thread; what goes wrong is explained."""
        with self._explained():
            connection = self._borrow()
            try:
                yield connection
            finally:
                self._idle.append(connection)

    def _borrow(self) -> sqlite3.Connection:
        """Take a connection that no other thread is reading with."""
        try:
            return self._idle.pop()
        except IndexError:
            connection = self._connect(self._mode)
            connection.execute("PRAGMA query_only = 1")
            return connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Lend the writing connection for one transaction; what goes wrong is explained, and undone."""
        connection = self._writing
        if connection is None:
            raise JournalError(self.path, "it was closed, or was opened by another process")
        with self._explained():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # it may be undone already
                    connection.execute("ROLLBACK")
                raise

    # ── a run ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin_run(self, version: str, *, is_encoded: bool) -> int:
        """Begin a run, which holds the file from now on; returns its number.

        Args:
            version: what the user calls this version of the tasks.
            is_encoded: whether its values are encoded by the user's `encode`.

        Raises:
            JournalError: another run holds it; or its values were encoded in the other way.
        """
        now, here = time.time(), this_process()
        with self._transaction() as connection:
            self._choose_encoding(connection, is_encoded)
            self._take_over(connection)
            row = JournalRun(
                *(0, RUNNING, now, None, here.host, here.pid, python_version(), library_version(), version),
                *(0, 0, 0, None),
            )
            values = (*row[1:], here.place, here.birth, now)
            marks = ", ".join("?" * len(values))
            insert = f"INSERT INTO runs ({', '.join(JournalRun._fields[1:])}, place, birth, seen_at) VALUES ({marks})"
            number = connection.execute(insert, values).lastrowid or 0
            self._run = number
            hold(self._real, number)  # before it is there for others to see
        return number

    def _choose_encoding(self, connection: sqlite3.Connection, is_encoded: bool) -> None:
        row = connection.execute("SELECT encoded FROM settings").fetchone()
        if row is None:
            connection.execute("INSERT INTO settings VALUES (?)", (is_encoded,))
        elif bool(row[0]) is not is_encoded:
            how = "with encode= and decode=" if row[0] else "by pickle, without encode="
            raise JournalError(
                self.path, f"its values were recorded {how}: open it in the same way, or take another file"
            )
        self.is_encoded = is_encoded

    def _take_over(self, connection: sqlite3.Connection) -> None:
        """Refuse, if another run is under way; mark those that were killed."""
        for run, is_running in self._marked(connection.execute(_SELECT_RUNS + " WHERE how = ?", (RUNNING,))):
            if is_running:
                since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.started_at))
                why = f"process {run.pid} on {run.host} has a run with it under way since {since}: wait for that, or end it"
                raise JournalError(self.path, why, run.pid, run.host)
            connection.execute(
                "UPDATE runs SET how = ?, ended_at = seen_at WHERE number = ?",
                (KILLED, run.number),
            )

    def write(self, records: Sequence[Record], resumed: int = 0) -> None:
        """Record tasks that have ended, all of them or none; also a sign of life, without any. Returns when they are on disk.

        Args:
            records: each replaces what there is of the same id.
            resumed: how many results the run has had from the journal so far.

        Raises:
            JournalError: nothing of it was recorded; another try may succeed.
        """
        self._check_file()
        failed = sum(record.state == FAILED for record in records)
        with self._transaction() as connection:
            for first in range(0, len(records), _ROWS):
                rows = records[first : first + _ROWS]
                connection.execute(_insert(len(rows)), _values(rows))
            changed = connection.execute(
                "UPDATE runs SET seen_at = ?, succeeded = succeeded + ?, failed = failed + ?, resumed = ?"
                " WHERE number = ? AND how = ?",
                (time.time(), len(records) - failed, failed, resumed, self._run, RUNNING),
            )
            if not changed.rowcount:
                raise JournalError(
                    self.path, "another run has taken it over, as this one gave no sign of life for long"
                )

    def _check_file(self) -> None:
        """Refuse to write to a file that is not at its path any more."""
        try:
            status = os.stat(self._real)
        except OSError:
            raise JournalError(self.path, "it was deleted while the run went on") from None
        if (status.st_dev, status.st_ino) != self._inode:
            raise JournalError(self.path, "another file was put in its place while the run went on")

    def end_run(self, how: str, *, resumed: int, unfinished: int) -> None:
        """End the run, which holds the file no more, whatever is raised.

        Args:
            how: "finished", "interrupted" or "failed".
            resumed: how many results it has had from the journal.
            unfinished: how many tasks have come to no end.

        Raises:
            JournalError: it could not be recorded: the run will count as killed.
        """
        number, self._run = self._run, 0
        let_go(self._real, number)
        now = time.time()
        self._check_file()
        with self._transaction() as connection:
            connection.execute(
                "UPDATE runs SET how = ?, ended_at = ?, seen_at = ?, resumed = ?, unfinished = ? WHERE number = ? AND how = ?",
                (how, now, now, resumed, unfinished, number, RUNNING),
            )

    def close(self) -> None:
        """Close it; the file stands alone then, unless somebody else has it open. May be repeated."""
        if self._is_over:
            return
        self._is_over = True
        let_go(self._real, self._run)
        with contextlib.suppress(sqlite3.Error):
            if self._writing is not None:
                self._writing.execute("PRAGMA wal_checkpoint(PASSIVE)")  # for the case that somebody has
        self._writing = None
        self._idle.clear()
        for connection, _ in self._all:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
        self._all.clear()

    def after_fork(self) -> None:
        """Let go of it in a forked child, and leave it as it is.

        Its connections are kept from being closed, for ever, by a reference that only SQLite has: it would close the log, and
        delete whatever is at its path by then.
        """
        self._is_over = True
        self._writing = None
        self._idle.clear()
        for connection, kept in self._all:
            kept.append(connection)
        self._all.clear()

    # ── what is in it ───────────────────────────────────────────────────────────────────────────────────────────────

    def keys(self, states: Sequence[int] = STATES) -> set[bytes]:
        """Return the keys of all tasks that are in one of these states. Some 150 bytes each, 1 µs each.

        Raises:
            JournalError: it is damaged, or cannot be read.
        """
        with self._reading() as connection:
            return {key for (key,) in connection.execute(f"SELECT key FROM tasks WHERE {_in(states)}")}

    def find(self, id: str) -> Record | None:
        """Return the record of a task; None if there is none.

        Raises:
            JournalError: it is damaged, or cannot be read.
        """
        try:  # not by `_reading`, as it may be done for a million tasks
            connection = self._borrow()
            try:
                row = connection.execute(_FIND, (_column(id),)).fetchone()
            finally:
                self._idle.append(connection)
        except (sqlite3.Error, OSError) as error:
            raise self._explain(error) from error
        return None if row is None else _record(row)

    def records(self, states: Sequence[int] = STATES) -> Iterator[Record]:
        """Yield the records of tasks that are in one of these states, in the order in which they ended; in flat memory.

        Raises:
            JournalError: it is damaged, or cannot be read.
        """
        with self._reading() as connection:
            select = f"SELECT {_COLUMNS} FROM tasks WHERE {_in(states)} ORDER BY number"
            yield from map(_record, connection.execute(select))

    def counts(self) -> dict[int, int]:
        """Return how many tasks are in each state.

        Raises:
            JournalError: it is damaged, or cannot be read.
        """
        with self._reading() as connection:
            return dict(connection.execute("SELECT state, count(*) FROM tasks GROUP BY state").fetchall())

    def runs(self) -> list[JournalRun]:
        """Return all runs; one that has not ended, and whose process is gone, as killed.

        Raises:
            JournalError: it is damaged, or cannot be read.
        """
        with self._reading() as connection:
            return [run for run, _ in self._marked(connection.execute(_SELECT_RUNS + " ORDER BY number"))]

    def _marked(self, rows: sqlite3.Cursor) -> list[tuple[JournalRun, bool]]:
        """Return runs, those that were killed marked as such, each with whether it is running."""
        found = []
        for *row, place, birth, seen_at in rows.fetchall():
            run = JournalRun(*row)
            process = Process(run.host, place, run.pid, birth)
            is_running = run.how == RUNNING and is_alive(self._real, run.number, process, seen_at)
            if run.how == RUNNING and not is_running:
                run = run._replace(how=KILLED, ended_at=seen_at)
            found.append((run, is_running))
        return found


_FIND = f"SELECT {_COLUMNS} FROM tasks WHERE id = ?"
_SELECT_RUNS = f"SELECT {_RUN}, place, birth, seen_at FROM runs"


def _in(states: Sequence[int]) -> str:
    return f"state IN ({', '.join(str(int(state)) for state in states)})"


def _insert(rows: int) -> str:
    """Return the statement for some rows: one, as each lets other threads have the interpreter, and waits to have it again."""
    marks = f"({', '.join('?' * len(Record._fields))})"
    return f"INSERT OR REPLACE INTO tasks ({_COLUMNS}) VALUES {', '.join([marks] * rows)}"


def _values(records: Sequence[Record]) -> list[Any]:
    """Return the columns of records, one after the other."""
    values: list[Any] = []
    for record in records:
        values += record if record.id.isascii() else (_column(record.id), *record[1:])
    return values


def _column(id: str) -> str | bytes:
    """Return what stands for an id in the file: itself or, as not every string is text (a path's may not), bytes."""
    try:
        if not id.isascii():
            id.encode()
    except UnicodeEncodeError:
        return id.encode("utf-8", "surrogatepass")
    return id


def _record(row: Sequence[Any]) -> Record:
    column = row[0]
    return Record(*row) if type(column) is str else Record(column.decode("utf-8", "surrogatepass"), *row[1:])


def _after_fork() -> None:
    for database in list(_databases):
        database.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _mode_for_reading(path: str) -> str:
    """Return how to open a file so that it stays as it is.

    A log that has something in it would go into the file when the last connection that may write is closed. Without one, it
    is such a connection that leaves no log behind.
    """
    with contextlib.suppress(OSError):
        if os.stat(path + "-wal").st_size:
            return "mode=ro"
    return "mode=rw" if _may(os.W_OK, path) and _may(os.W_OK, os.path.dirname(path)) else "immutable=1"


def _may(how: int, path: str) -> bool:
    return os.access(path, how, effective_ids=os.access in os.supports_effective_ids)


def _make_file(path: str) -> None:
    """Make an empty file for this user alone; one that is there already stays as it is."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600))


def _is_cut_short(path: str) -> bool:
    """Return whether the making of a file was cut short by the loss of power, before its first page was written.

    SQLite undoes that by the journal beside it. Nobody has locks on such a file, so that it can be opened as any.
    """
    if not os.path.exists(path + "-journal"):
        return False
    with open(path, "rb") as file:
        return not file.read(100).strip(b"\0")


def _set_up(connection: sqlite3.Connection) -> None:
    """Make the tables, if there are none, and have the log written ahead."""
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not _pragma(connection, "application_id"):
            for statement in _SCHEMA:
                connection.execute(statement)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    mode = _patiently(lambda: _pragma(connection, "journal_mode = WAL"))
    if mode != "wal":
        raise sqlite3.OperationalError("locking protocol")


def _patiently(call: Callable[[], Any]) -> Any:
    """Return what a call returns, once the file is not locked: for what SQLite does not wait by itself."""
    until = time.monotonic() + _BUSY
    while True:
        try:
            return call()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(_NAP)


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


_REASONS = {
    "locked": f"another program has had it locked for {_BUSY:g} s",
    "readonly": "it cannot be written: the file or its folder is read-only",
    "full": "the disk is full",
    "I/O": "the disk, or its file system, failed",
    "unable to open": "it, or the log beside it, cannot be opened: may you write to its folder?",
    "locking protocol": "its file system has no locks: put it on a disk of this machine",
    "no such": "it is damaged",
    "malformed": "it is damaged",
    "not a database": "it is damaged",
}
