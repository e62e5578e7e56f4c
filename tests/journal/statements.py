"""Kills a run at each of its SQL statements in turn, or has the statement fail: `python statements.py HOW FOLDER`.

Each run is a fork of this program, which has no threads. HOW is "kill", "once" (one statement fails, the next ones do not)
or "on" (none works from then on). Afterwards the file is read, and a run in which nothing is wrong goes on with it.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import traceback
import warnings
from itertools import count
from pathlib import Path
from typing import Any, Callable

import marathon

from parallel_exec import JournalError

TASKS = 12
FAULTS = ("disk I/O error", "database or disk is full")


class Fault:
    """Counts all statements of this process, and does to one of them what it was made for.

    Attributes:
        happened: whether that statement has come.
        is_over: whether no more are to be counted.
    """

    def __init__(self, how: str, number: int) -> None:
        self.happened = self.is_over = False
        self._how = how
        self._number = number
        self._passed = 0

    def statement(self) -> None:
        """Note that a statement is about to run."""
        if self.is_over:
            return
        self._passed += 1
        if self._passed == self._number or (self._how == "on" and self._passed > self._number):
            self.happened = True
            if self._how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise sqlite3.OperationalError(FAULTS[self._number % len(FAULTS)])


def install(fault: Fault) -> None:
    """Have every connection of this process count its statements."""

    class Cursor(sqlite3.Cursor):
        def execute(self, *args: Any) -> sqlite3.Cursor:
            fault.statement()
            return super().execute(*args)

        def executemany(self, *args: Any) -> sqlite3.Cursor:
            fault.statement()
            return super().executemany(*args)

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

        def execute(self, *args: Any) -> sqlite3.Cursor:
            cursor: sqlite3.Cursor = self.cursor().execute(*args)
            return cursor

        def commit(self) -> None:
            fault.statement()
            super().commit()

    connect: Callable[..., sqlite3.Connection] = sqlite3.connect
    sqlite3.connect = lambda *args, **kwargs: connect(*args, **{**kwargs, "factory": Connection})  # type: ignore[assignment]


def run_with(fault: Fault, folder: Path) -> int:
    """Run all tasks; returns the exit status of the process: 0 if the statement did not come, 1 if it did and all is well."""
    install(fault)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            marathon.run("thread", "execute_all", folder, TASKS)
        except JournalError:
            assert fault.happened
            assert not (folder / "work.log").exists(), "the journal ended a run that had begun"
            return 1
    fault.is_over = True
    if len(marathon.committed(folder / "run.db")) < TASKS:
        assert [each.category for each in said] == [RuntimeWarning], "the journal is not complete, and nobody says so"
    return int(fault.happened)


def in_a_fork(function: Callable[..., int], *args: Any) -> int:
    """Call a function in a fork of this process, and return its exit status as `os.waitpid` has it."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(function(*args))
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    status = os.waitpid(pid, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def finish(folder: Path) -> int:
    """Run to the end what was broken off."""
    before = marathon.committed(folder / "run.db")
    resumed = int(marathon.run("thread", "execute_all", folder, TASKS).split()[1])
    assert resumed == len(before), f"{resumed} came from the journal, which had {len(before)}"
    assert marathon.committed(folder / "run.db") == set(range(TASKS))
    return 0


def main(how: str, folder: Path) -> None:
    """Go through all statements, and say how many there were."""
    for number in count(1):
        here = folder / str(number)
        here.mkdir()
        status = in_a_fork(run_with, Fault(how, number), here)
        if status == 0:
            print(number - 1)
            return
        assert status == (-signal.SIGKILL if how == "kill" else 1), f"at statement {number}"
        assert in_a_fork(finish, here) == 0, f"after statement {number}"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
