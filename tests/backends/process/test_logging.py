"""Records of the workers' loggers arrive in the parent's loggers of the same names."""

from __future__ import annotations

import logging
import os
from typing import Any, Iterator

import pytest

from parallel_exec import TaskTimeoutError

from . import chatter, work


class Collector(logging.Handler):
    """Keeps the records that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.records.append(record)

    def messages(self) -> list[str]:
        """Return what was said."""
        return [record.getMessage() for record in self.records]


@pytest.fixture
def heard() -> Iterator[Collector]:
    """What the logger "chatter" and those below it are told, from level INFO on."""
    collector = Collector()
    logger = logging.getLogger("chatter")
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield collector
    logger.removeHandler(collector)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def test_a_record_arrives_with_its_process_and_task(pool: Any, heard: Collector) -> None:
    """It tells the worker's process id and name, the task's id, the place in the code and the arguments filled in."""
    executor = pool()
    worker = executor.options(id="t7").submit(chatter.say, "chatter.sub", logging.WARNING, "one %s", "two").result(8)
    (record,) = heard.records
    assert (record.name, record.levelname, record.getMessage()) == ("chatter.sub", "WARNING", "one two")
    assert (record.process, record.task_id) == (worker, "t7")  # type: ignore[attr-defined]
    assert worker != os.getpid()
    assert record.processName.startswith("parallel_exec-worker")  # type: ignore[union-attr]
    assert (record.filename, record.funcName) == ("chatter.py", "say")


def test_records_arrive_before_the_result(pool: Any, heard: Collector) -> None:
    """Who has the result has heard all that the task said, in its order."""
    executor = pool()
    for round in range(5):
        executor.submit(chatter.count, 50).result(8)
        assert heard.messages() == [f"number {number}" for number in range(50)] * (round + 1)


def test_records_of_items_of_a_map(pool: Any, heard: Collector) -> None:
    """The items of a `map` each say which one they are."""
    executor = pool()
    list(executor.map(chatter.say_number, range(30)))
    assert heard.messages() == [f"item {number}" for number in range(30)]
    assert len({record.task_id for record in heard.records}) == 30  # type: ignore[attr-defined]


def test_levels_are_filtered_in_the_worker(pool: Any, heard: Collector) -> None:
    """What the parent's levels hide is not even made: `isEnabledFor` says no there."""
    logging.getLogger("chatter.quiet").setLevel(logging.ERROR)
    try:
        enabled = pool().submit(chatter.enabled, ["chatter", "chatter.quiet"]).result(8)
    finally:
        logging.getLogger("chatter.quiet").setLevel(logging.NOTSET)
    assert enabled == {"chatter": "INFO", "chatter.quiet": "ERROR"}
    assert heard.messages() == ["INFO of chatter", "WARNING of chatter", "ERROR of chatter", "ERROR of chatter.quiet"]


def test_an_exception_in_a_record(pool: Any, heard: Collector) -> None:
    """A traceback travels as text."""
    pool().submit(chatter.complain).result(8)
    assert "ZeroDivisionError" in logging.Formatter().format(heard.records[0])


def test_a_record_that_cannot_be_pickled(pool: Any, heard: Collector) -> None:
    """A record with an `extra` that cannot travel costs at most itself: not the task, not the worker, not other records."""
    executor = pool()
    worker = executor.submit(chatter.say_with_lock).result(8)
    assert executor.submit(work.pid).result(8) == worker
    assert "after" in heard.messages()


def test_a_record_that_cannot_be_rebuilt_here(pool: Any, heard: Collector) -> None:
    """Nor does one whose `extra` unpickles in the worker only."""
    executor = pool()
    futures = [executor.submit(chatter.say_with_trap) for _ in range(3)]
    futures += [executor.submit(work.same, 5) for _ in range(20)]
    assert [future.result(8) for future in futures[3:]] == [5] * 20
    assert all(future.result(8) for future in futures[:3])
    assert "after" in heard.messages()


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_handler_that_raises(pool: Any, heard: Collector, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    """A user's log handler that raises here loses no result."""

    def fail(record: logging.LogRecord) -> None:
        raise error("from a handler")

    monkeypatch.setattr(heard, "emit", fail)
    executor = pool()
    futures = [executor.submit(chatter.say_number, number) for number in range(50)]
    assert [future.result(8) for future in futures] == list(range(50))


def test_a_chatty_task_is_stopped_in_time(pool: Any, heard: Collector) -> None:
    """A task that logs without end is still found to outrun its timeout."""
    executor = pool(timeout=0.5)
    executor.options(timeout=30).submit(work.pid).result(8)
    assert type(executor.submit(chatter.talk_for_ever).exception(8)) is TaskTimeoutError


def test_records_of_other_threads(pool: Any, heard: Collector) -> None:
    """A thread that a task has started may log, too, at the same time as the task."""
    pool().submit(chatter.say_from_threads, 4, 100).result(8)
    assert len(heard.records) == 400


def test_a_process_that_a_task_forks_does_not_log_here(pool: Any, heard: Collector) -> None:
    """It has a copy of the worker's pipe, and must not write to it: nothing comes twice, and nothing is torn."""
    assert pool().submit(chatter.say_after_fork).result(8)
    assert heard.messages() == ["from the worker"]


def test_records_of_an_initializer(pool: Any, heard: Collector) -> None:
    """It may log; it has no task."""
    executor = pool(backend={"initializer": chatter.say, "initargs": ("chatter", logging.WARNING, "starting")})
    executor.submit(work.pid).result(8)
    assert heard.messages() == ["starting"]
    assert heard.records[0].task_id is None  # type: ignore[attr-defined]


def test_a_forked_worker_logs_once(pool: Any, heard: Collector) -> None:
    """A worker that was forked has copies of our handlers, and of our loggers that do not propagate: none is used there."""
    worker = pool(backend={"mp_context": "fork"}).submit(chatter.say, "chatter", logging.WARNING, "once").result(8)
    assert [(record.process, record.getMessage()) for record in heard.records] == [(worker, "once")]


def test_the_last_words_of_a_worker(pool: Any, heard: Collector) -> None:
    """What a task has logged before its worker died is heard."""
    assert pool().submit(chatter.say_and_die).exception(8) is not None
    assert heard.messages() == ["good bye"]


def test_a_large_record(pool: Any, heard: Collector) -> None:
    """A message of a megabyte arrives whole."""
    pool().submit(chatter.say, "chatter", logging.WARNING, "x" * (1 << 20)).result(8)
    assert heard.messages() == ["x" * (1 << 20)]
