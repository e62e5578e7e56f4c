"""The long run that the torture tests kill, stop and take apart; and what its files must be like afterwards.

    Marathon.start ──► python marathon.py BACKEND WAY FOLDER COUNT ──► each task writes when it began and ended ──► work.log
        ▲                                │
        └── killed, started again        └──► run.db, run.db-wal

What counts as committed is what the journal has once its process is dead. That is held against the log of the work, which
no library has a hand in.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from parallel_exec import Journal, JournalError, ParallelExecutor, Task

ANEW = 0.5  # seconds: of the work that was finished before a kill, no more than the last so many may be lost
STANDSTILL = 1.5  # seconds that a busy machine may stand still between two turns of a thread; a guess
PAUSE = 0.002  # seconds that a task takes
WORKERS = 4
LOG = "MARATHON_LOG"  # in the environment, as an argument would be a part of what a task is known by


def work(number: int) -> int:
    """Square a number, writing down when that began and ended."""
    file = os.open(os.environ[LOG], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(file, f"began {number} {time.monotonic()}\n".encode())
        time.sleep(PAUSE)
        os.write(file, f"ended {number} {time.monotonic()}\n".encode())
    finally:
        os.close(file)
    return number * number


def run(backend: str, way: str, folder: Path, count: int) -> str:
    """Run all tasks that are not done yet, and say how many came from the journal."""
    os.environ[LOG] = str(folder / "work.log")
    tasks = [Task(work, number, id=f"item {number}") for number in range(count)]
    with ParallelExecutor(max_concurrency=WORKERS, backend=backend, timeout=None, retry_count=0) as executor:
        if way == "stream":
            results = list(executor.stream(iter(tasks), journal=folder / "run.db"))
        else:
            for task in tasks:
                executor.add_task(task)
            results = executor.execute_all(journal=folder / "run.db")
    answers = {int(result.task.id.split()[1]): result.unwrap() for result in results}
    assert answers == {number: number * number for number in range(count)}
    return f"resumed {sum(result.resumed for result in results)}"


class Worked(NamedTuple):
    """A line of the log of the work."""

    what: str
    number: int
    when: float


class Marathon:
    """A run in a folder of its own, to be killed and started again.

    Attributes:
        committed: the numbers of the tasks that the journal had after the last kill.
        lost: of the work that was finished at a kill and not committed, the greatest age in seconds.
    """

    def __init__(self, folder: Path, backend: str, way: str, count: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.committed: set[int] = set()
        self.lost = 0.0
        self._arguments = [backend, way, str(folder), str(count)]
        self._seen = 0

    @property
    def journal(self) -> Path:
        """Where the journal is."""
        return self.folder / "run.db"

    def start(self, *before: str) -> subprocess.Popen[str]:
        """Start the run, in a process group of its own; `before` is what its command line begins with."""
        command = [*before, sys.executable, "-W", "error", __file__, *self._arguments]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def finish(self) -> int:
        """Run to the end, and return how many tasks came from the journal."""
        process = self.start()
        try:
            out, err = process.communicate(timeout=55)
        finally:
            process.kill()
        assert process.returncode == 0, err
        self.check(time.monotonic())
        return int(out.split()[1])

    def new_work(self) -> list[Worked]:
        """Return what was written to the log since this was last called."""
        log = self.folder / "work.log"
        lines = log.read_text().splitlines() if log.exists() else []
        self._seen, seen = len(lines), self._seen
        return [Worked(what, int(number), float(when)) for what, number, when in map(str.split, lines[seen:])]

    def check(self, killed_at: float) -> None:
        """Hold the journal against what was done since the last check; all processes of the run are dead.

        Args:
            killed_at: when the run ended, by `time.monotonic()`.
        """
        new = self.new_work()
        again = {each.number for each in new} & self.committed
        assert not again, f"ran again, though they were committed: {sorted(again)[:5]}"
        now = committed(self.journal)
        assert self.committed <= now, f"no longer there: {sorted(self.committed - now)[:5]}"
        ages = [killed_at - each.when for each in new if each.what == "ended" and each.number not in now]
        self.lost = max([self.lost, *ages])
        assert self.lost < ANEW + STANDSTILL, f"what had ended {self.lost:.3f} s before the kill is not there"
        self.committed = now


def kill(process: subprocess.Popen[str]) -> float:
    """Kill the run's process and wait until all that it has started is gone; returns when it was killed."""
    killed_at = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()  # ends when the last of them has closed its standard error
    return killed_at


def committed(journal: Path) -> set[int]:
    """Return the numbers of the tasks that a journal has; each has one record, and it is right."""
    if not journal.exists():
        return set()
    whole(journal)
    try:
        results = Journal(journal).results()
    except JournalError as error:
        if "empty" in str(error):  # as it is until the run has begun
            return set()
        raise
    numbers = [int(result.task.id.split()[1]) for result in results]
    assert len(numbers) == len(set(numbers))
    assert [result.unwrap() for result in results] == [number * number for number in numbers]
    return set(numbers)


def whole(journal: Path) -> None:
    """Have SQLite check a copy of the file, so that the file itself stays as it was found."""
    folder = journal.parent / "copy"
    folder.mkdir(exist_ok=True)
    try:
        with closing(sqlite3.connect(copy(journal, folder))) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        shutil.rmtree(folder)


def copy(journal: Path, folder: Path) -> Path:
    """Copy a journal, and what belongs to it and is not in the file yet, as a cut of the power would leave them."""
    for end in ("", "-wal", "-journal"):
        file = Path(f"{journal}{end}")
        if file.exists():
            shutil.copyfile(file, folder / file.name)
    return folder / journal.name


if __name__ == "__main__":
    import marathon  # whose functions are the same ones, by name, wherever a run goes on

    print(marathon.run(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
