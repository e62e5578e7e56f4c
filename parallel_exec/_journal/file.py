"""The journal's file as files go: whose it is, how SQLite opens it, what may go wrong with it, and forks.

    open_for_writing ──► looked at ──► made, if there is none ──► its tables, its log ──► one connection that writes
    open_for_reading ──► looked at
    connect          ──► a connection that reads, as many as are wanted

Guarantees:
    A file that is not empty and not ours is never touched; it is looked at without locks and without its log.
    A file is made in one transaction: killed at any moment, it is empty or whole. The write-ahead log is on from then on,
    and a commit is on disk when it returns (`synchronous=FULL`).
    Reading changes nothing, and leaves no log where there was none, but where a log must be read that has no index.
    A forked child neither writes nor closes what its parent has opened: the log is the parent's.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import weakref
from functools import partial
from itertools import starmap, tee
from typing import Any, Callable, Iterator, Sequence
from urllib.parse import quote

from parallel_exec._sync.clock import time
from parallel_exec._sync.locks import CALL
from parallel_exec.errors import JournalError

APPLICATION = 0x7065786A  # "pexj": the file's first page says whose it is
FORMAT = 1

_BUSY = 10.0  # seconds to wait for another program's lock; a guess: a commit of ours takes a hundredth of that
_NAP = 0.01  # seconds between two tries where SQLite does not wait by itself

_REASONS = {
    "locked": "another program has had it locked for long",
    "readonly": "it cannot be written: the file or its folder is read-only",
    "full": "the disk is full",
    "I/O": "the disk, or its file system, failed",
    "unable to open": "it, or the log beside it, cannot be opened: may you write to its folder?",
    "locking protocol": "its file system has no locks: put it on a disk of this machine",
    "no such": "it is damaged",
    "malformed": "it is damaged",
    "not a database": "it is damaged",
    "decode": "it is damaged",
}

# What SQLite and the system raise; that of a damaged file may be no text, as SQLite's message quotes it.
FAILURES = (sqlite3.Error, OSError, UnicodeDecodeError)

_files: weakref.WeakSet[JournalFile] = weakref.WeakSet()  # those that are open in this process


class JournalFile:
    """A journal's file, and the connections to it.

    Args:
        path: as it was given.

    Attributes:
        path: that.
        real_path: without symbolic links; the log is beside it.
        is_over: whether it was closed, or belongs to the process that has forked this one.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.real_path = os.path.realpath(path)
        self._mode = "mode=rw"  # of the connections that read
        self._connections: list[sqlite3.Connection] = []
        self._kept: list[object] = []  # what they keep alive
        self._inode: tuple[int, int] | None = None  # of the file that is written to
        self.is_over = False
        _files.add(self)

    def open_for_writing(self, schema: Sequence[str]) -> sqlite3.Connection:
        """Return the connection that writes; makes the file, with these tables, if there is none.

        Raises:
            JournalError: it is not ours.
            sqlite3.Error, OSError: it cannot be opened.
        """
        if self._is_new():
            with contextlib.suppress(FileExistsError):
                how = self.real_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
                list(map(os.close, starmap(os.open, [how])))  # in C: a signal handler that raises cannot come between
        connection = self._connect("mode=rw")
        _set_up(connection, schema)
        self._inode = _inode_of(self.real_path)
        return connection

    def open_for_reading(self) -> None:
        """Have `connect` read a file that is there, and stays as it is.

        Raises:
            JournalError: it is not there, or not ours.
            sqlite3.Error, OSError: it cannot be opened.
        """
        if self._is_new():
            raise JournalError(self.path, "there is no such file, or it is empty")
        self._mode = self._mode_for_reading()
        with contextlib.closing(self._connect(self._mode)) as connection:
            if not pragma(connection, "application_id"):  # its making was cut short, which SQLite has undone
                raise JournalError(self.path, "it is empty")

    def _is_new(self) -> bool:
        """Return whether there is nothing yet; refuses what is not ours."""
        try:
            status = os.stat(self.real_path)
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
                application, form = pragma(connection, "application_id"), pragma(connection, "user_version")
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            if self._is_cut_short():
                return True
            raise JournalError(self.path, "it is not a journal, but some other file: it is left alone") from None
        if application != APPLICATION:
            raise JournalError(self.path, "it is a database, and not a journal: it is left alone")
        if form > FORMAT:
            what = f"it is of a newer version of parallel_exec (format {form}, and this one knows {FORMAT})"
            raise JournalError(self.path, f"{what}: upgrade that")
        return False

    def _is_cut_short(self) -> bool:
        """Return whether the making of it was cut short by the loss of power, before its first page was written.

        SQLite undoes that by the journal beside it. Nobody has locks on such a file, so that it can be opened as any.
        """
        if not os.path.exists(self.real_path + "-journal"):
            return False
        with open(self.real_path, "rb") as file:
            return not file.read(100).strip(b"\0")

    def _mode_for_reading(self) -> str:
        """Return how to open it so that it stays as it is.

        A log that has something in it would go into the file when the last connection that may write is closed. Without one,
        it is such a connection that leaves no log behind. One whose making was cut short has to be repaired first.
        """
        log, folder = self.real_path + "-wal", os.path.dirname(self.real_path)
        try:
            has_log = os.stat(log).st_size > 0 and not os.path.exists(self.real_path + "-journal")
        except OSError:
            has_log = False
        if not has_log:
            return "mode=rw" if _may(os.W_OK, self.real_path) and _may(os.W_OK, folder) else "immutable=1"
        if not _may(os.W_OK, folder) and not os.path.exists(self.real_path + "-shm"):
            name = os.path.basename(log)
            raise JournalError(
                self.path, f"its folder is read-only, and has its log {name!r}: copy both to another folder"
            )
        return "mode=ro"

    def connect(self) -> sqlite3.Connection:
        """Return another connection that reads; any thread may use it, one at a time.

        Raises:
            JournalError: it was closed.
            sqlite3.Error: it cannot be opened.
        """
        connection = self._connect(self._mode)
        connection.execute("PRAGMA query_only = 1")
        return connection

    def _connect(self, mode: str) -> sqlite3.Connection:
        if self.is_over:
            raise self.over()
        uri = f"file:{quote(os.fsencode(self.real_path))}?{mode}"
        opening = partial(sqlite3.connect, uri, timeout=_BUSY, isolation_level=None, check_same_thread=False, uri=True)
        made, again = tee(map(CALL, [opening]))
        self._connections.extend(made)  # in C: a signal handler that raises cannot come before it is known here
        connection: sqlite3.Connection = next(again)
        connection.create_function("keep", 0, self._kept.append)  # for `after_fork`
        return connection

    def check_in_place(self) -> None:
        """Refuse to write to a file that is not at its path any more.

        Raises:
            JournalError: it is not.
        """
        try:
            inode = _inode_of(self.real_path)
        except OSError:
            raise JournalError(self.path, "it was deleted while the run went on") from None
        if inode != self._inode:
            raise JournalError(self.path, "another file was put in its place while the run went on")

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Raise what goes wrong meanwhile as a `JournalError`."""
        try:
            yield
        except FAILURES as error:
            raise self.explain(error) from error

    def explain(self, error: Exception) -> JournalError:
        """Return what an error of SQLite or of the system means."""
        if isinstance(error, FileNotFoundError):
            return JournalError(self.path, "its folder is not there: make that first")
        if isinstance(error, OSError):
            return JournalError(self.path, error.strerror or str(error))
        if not str(error):  # as Python 3.9 does if SQLite's message is no text
            return JournalError(self.path, "it is damaged")
        reason = next((reason for part, reason in _REASONS.items() if part in str(error)), "SQLite refuses")
        if "unable to open" in str(error) and not _may(os.R_OK, self.real_path):
            reason = "you have no permission to read it"
        return JournalError(self.path, f"{reason} ({error})")

    def over(self) -> JournalError:
        """Return the error for whoever uses it once it is closed."""
        return JournalError(self.path, "it was closed, or was opened by another process")

    def close(self) -> None:
        """Close all connections. May be repeated."""
        self.is_over = True
        for connection in self._connections:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
        self._connections.clear()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it was not even made
            self.close()

    def after_fork(self) -> None:
        """Let go of it in a forked child, and leave it as it is.

        Its connections are kept from being closed, for ever, by a reference that only SQLite has: closing would delete
        whatever log is at that path by then, that of a later run, too.
        """
        self.is_over = True
        self._kept += self._connections
        self._kept, self._connections = [], []


def pragma(connection: sqlite3.Connection, name: str) -> Any:
    """Return what SQLite says to a pragma."""
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _inode_of(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _may(how: int, path: str) -> bool:
    return os.access(path, how, effective_ids=os.access in os.supports_effective_ids)


def _set_up(connection: sqlite3.Connection, schema: Sequence[str]) -> None:
    """Make the tables, if there are none, and have the log written ahead."""
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not pragma(connection, "application_id"):
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            for statement in schema:
                connection.execute(statement)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    if _patiently(lambda: pragma(connection, "journal_mode = WAL")) != "wal":
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


def _after_fork() -> None:
    for file in list(_files):
        file.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
