"""What is in a journal: the SQL of its tables, and who has it.

    Database.open(path, write=True) ─► begin_run ─► keys, find ... write, write, write ─► end_run ─► close
    Database.open(path, write=False) ─► runs, counts, records ─► close

    settings    one row: whether values are encoded by the user's `encode`
    runs        one row for each run: when, where, how it ended; the one that is "running" holds the file
    tasks       one row for each task, in the order in which they ended last

Guarantees (and those of file.py):
    What `write` was given is there when it returns, on disk, or nothing of it is there.
    A run holds the file until `end_run`, or until its process is gone: then the next run takes over, and the dead one counts
    as killed at its last sign of life. A run that was taken for dead, and is not, writes no more.
    Reading goes on while a run writes, and sees one moment of it.

`begin_run`, `write`, `end_run` and `close` are for one thread at a time; the rest is for any thread.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections import deque
from typing import Any, Iterator, Sequence

from parallel_exec._journal.file import FAILURES, JournalFile
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

# In one statement, if SQLite takes so many: after each the interpreter must be had again, 5 ms later if others compute.
_VARIABLES = 32_766

_SCHEMA = (
    "CREATE TABLE settings (encoded INTEGER NOT NULL)",
    """CREATE TABLE runs (number INTEGER PRIMARY KEY, how TEXT NOT NULL, started_at REAL NOT NULL, ended_at REAL,
        host TEXT NOT NULL, pid INTEGER NOT NULL, python TEXT NOT NULL, library TEXT NOT NULL, version TEXT NOT NULL,
        succeeded INTEGER NOT NULL, failed INTEGER NOT NULL, resumed INTEGER NOT NULL, unfinished INTEGER,
        place TEXT NOT NULL, birth TEXT NOT NULL, seen_at REAL NOT NULL)""",
    """CREATE TABLE tasks (number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, key BLOB NOT NULL, state INTEGER NOT NULL,
        result, error, attempts TEXT, started_at REAL, queued_for REAL NOT NULL, duration REAL NOT NULL)""",
)
_COLUMNS = ", ".join(Record._fields)
_RUN = ", ".join(JournalRun._fields)


class Database:
    """A journal that is open; made by `open`.

    Attributes:
        path: as it was given.
        is_encoded: whether its values are encoded by the user's `encode`; None: it is new.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_encoded: bool | None = None
        self._file = JournalFile(path)
        self._writing: sqlite3.Connection | None = None
        self._idle: deque[sqlite3.Connection] = deque()  # for reading, each used by one thread at a time
        self._run = 0  # its number, while one is under way

    @classmethod
    def open(cls, path: str, *, write: bool) -> Database:
        """Open a journal; one that is to be written is made if there is none.

        Raises:
            JournalError: it is not there, not a journal, damaged, of a newer version, or cannot be read or written.
        """
        database = cls(path)
        try:
            database._open(write)
        except BaseException:
            database.close()
            raise
        return database

    def _open(self, write: bool) -> None:
        with self._file.explained():
            if write:
                self._writing = self._file.open_for_writing(_SCHEMA)
            else:
                self._file.open_for_reading()
        with self._reading() as connection:
            row = connection.execute("SELECT encoded FROM settings").fetchone()
            self.is_encoded = None if row is None else bool(row[0])

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection to the calling thread; what goes wrong is explained."""
        with self._file.explained():
            connection = self._borrow()
            try:
                yield connection
            finally:
                self._idle.append(connection)

    def _borrow(self) -> sqlite3.Connection:
        """Take a connection that no other thread is reading with."""
        if self._file.is_over:
            raise self._file.over()
        try:
            return self._idle.pop()
        except IndexError:
            return self._file.connect()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Lend the writing connection for one transaction; what goes wrong is explained, and undone."""
        connection = self._writing
        if connection is None or self._file.is_over:
            raise self._file.over()
        with self._file.explained():
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
            hold(self._file.real_path, number)  # before it is there for others to see
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
        self._file.check_in_place()
        failed = sum(record.state == FAILED for record in records)
        with self._transaction() as connection:
            first, size = 0, _most_rows(connection)
            while first < len(records):
                while size > len(records) - first:
                    size //= 2
                connection.execute(_insert(size), _values(records[first : first + size]))
                first += size
            changed = connection.execute(
                "UPDATE runs SET seen_at = ?, succeeded = succeeded + ?, failed = failed + ?, resumed = ?"
                " WHERE number = ? AND how = ?",
                (time.time(), len(records) - failed, failed, resumed, self._run, RUNNING),
            )
            if not changed.rowcount:
                raise JournalError(
                    self.path, "another run has taken it over, as this one gave no sign of life for long"
                )

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
        let_go(self._file.real_path, number)
        now = time.time()
        self._file.check_in_place()
        with self._transaction() as connection:
            connection.execute(
                "UPDATE runs SET how = ?, ended_at = ?, seen_at = ?, resumed = ?, unfinished = ? WHERE number = ? AND how = ?",
                (how, now, now, resumed, unfinished, number, RUNNING),
            )

    def close(self) -> None:
        """Close it; the file stands alone then, unless somebody else has it open. May be repeated."""
        let_go(self._file.real_path, self._run)
        with contextlib.suppress(sqlite3.Error):
            if self._writing is not None and not self._file.is_over:
                self._writing.execute("PRAGMA wal_checkpoint(PASSIVE)")  # for the case that somebody has
        self._idle.clear()
        self._file.close()

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
                return None if row is None else _record(row)
            finally:
                self._idle.append(connection)
        except FAILURES as error:
            raise self._file.explain(error) from error

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
            is_running = run.how == RUNNING and is_alive(self._file.real_path, run.number, process, seen_at)
            if run.how == RUNNING and not is_running:
                run = run._replace(how=KILLED, ended_at=seen_at)
            found.append((run, is_running))
        return found


_FIND = f"SELECT {_COLUMNS} FROM tasks WHERE id = ?"
_SELECT_RUNS = f"SELECT {_RUN}, place, birth, seen_at FROM runs"


def _in(states: Sequence[int]) -> str:
    return f"state IN ({', '.join(str(int(state)) for state in states)})"


def _most_rows(connection: sqlite3.Connection) -> int:
    """Return how many rows a statement may have: a power of two, and so have all.

    Each statement is kept for the next time, some 300 bytes a row: of all the sizes that there are, they would fill the memory.
    """
    if sys.version_info >= (3, 11):
        limit = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
    else:
        limit = _VARIABLES if sqlite3.sqlite_version_info >= (3, 32) else 999
    return 1 << (min(limit, _VARIABLES) // len(Record._fields)).bit_length() - 1


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
    """Return a record.

    Raises:
        sqlite3.DatabaseError: its id is none.
    """
    column = row[0]
    if type(column) is str:
        return Record(*row)
    try:
        return Record(str(column, "utf-8", "surrogatepass"), *row[1:])
    except (TypeError, UnicodeDecodeError):
        raise sqlite3.DatabaseError("malformed id") from None
