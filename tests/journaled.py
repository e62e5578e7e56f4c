"""Journals for tests: jobs that have ended, records, and files in the state that a run leaves behind."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator

import bare_jobs

from parallel_exec._journal.database import Database
from parallel_exec._journal.records import FAILED, SUCCEEDED, VALUELESS, Record
from parallel_exec._outcome import Failure, Success
from parallel_exec._sync.clock import time

if TYPE_CHECKING:
    from parallel_exec._core.job import Job

KEY = b"k" * 16


def ended_job(outcome: Success | Failure, earlier: tuple[BaseException, ...] = (), id: str = "parse") -> Job[Any]:
    """Return a job that has ended; it failed with the earlier exceptions before, each in an attempt of its own."""
    job = bare_jobs.new_job()
    job._id = id
    job.added(1 << 32, time.monotonic() - 1.0, None)
    for error in earlier:
        job.begin(None, "w0", time.monotonic())
        job.end_attempt(error, time.monotonic())
    job.begin(None, "w1", time.monotonic())
    if isinstance(outcome, Failure):
        job.end_attempt(outcome.error, time.monotonic())
        job.settle(outcome, False)
    else:
        job.conclude(outcome, False, time.monotonic())
    job.mark_retrieved()
    return job


def record(id: str, value: Any = 1, state: int = SUCCEEDED) -> Record:
    """Return the record of a task that returned a value; or that has failed, or has no value."""
    error = None
    if state == FAILED:
        error = pickle.dumps([[(b"", (("builtins", "ValueError"),), "no", "Traceback ...")]])
    result = pickle.dumps(value, 5) if state == SUCCEEDED else None
    return Record(id, KEY, state, result, error, '"w1"', time.time(), 0.5, 0.25)


@contextlib.contextmanager
def run(path: Path | str, how: str = "finished", is_encoded: bool = False) -> Iterator[Database]:
    """Have a run under way."""
    database = Database.open(str(path), write=True)
    try:
        database.begin_run("", is_encoded=is_encoded)
        yield database
        database.end_run(how, resumed=0, unfinished=0)
    finally:
        database.close()


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[Database]:
    """Have a journal open for reading."""
    database = Database.open(str(path), write=False)
    try:
        yield database
    finally:
        database.close()


def write(path: Path | str, *records: Record) -> None:
    """Leave a journal of one run that has finished."""
    with run(path) as database:
        database.write(records)


def files(folder: Path) -> dict[str, bytes]:
    """Return what is in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


__all__ = ["FAILED", "SUCCEEDED", "VALUELESS"]
