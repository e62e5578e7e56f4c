"""Records of the workers' loggers arrive in the parent's loggers of the same names."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Iterator

import pytest
import work

from parallel_exec import TaskTimeoutError

from . import logging_tasks, unpicklable


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
    worker = (
        executor.options(id="t7")
        .submit(logging_tasks.say, "chatter.sub", logging.WARNING, "one %s", "two")
        .result(work.SOON)
    )
    (record,) = heard.records
    assert (record.name, record.levelname, record.getMessage()) == ("chatter.sub", "WARNING", "one two")
    assert (record.process, record.task_id) == (worker, "t7")  # type: ignore[attr-defined]
    assert worker != os.getpid()
    assert record.processName.startswith("parallel_exec-worker")  # type: ignore[union-attr]
    assert (record.filename, record.funcName) == ("logging_tasks.py", "say")


def test_records_arrive_before_the_result(pool: Any, heard: Collector) -> None:
    """Who has the result has heard all that the task said, in its order."""
    executor = pool()
    for round in range(5):
        executor.submit(logging_tasks.count, 50).result(work.SOON)
        assert heard.messages() == [f"number {number}" for number in range(50)] * (round + 1)


def test_records_of_items_of_a_map(pool: Any, heard: Collector) -> None:
    """The items of a `map` each say which one they are."""
    executor = pool()
    list(executor.map(logging_tasks.say_number, range(30)))
    assert heard.messages() == [f"item {number}" for number in range(30)]
    assert len({record.task_id for record in heard.records}) == 30  # type: ignore[attr-defined]


def test_levels_are_filtered_in_the_worker(pool: Any, heard: Collector) -> None:
    """What the parent's levels hide is not even made: `isEnabledFor` says no there."""
    logging.getLogger("chatter.quiet").setLevel(logging.ERROR)
    try:
        enabled = pool().submit(logging_tasks.enabled, ["chatter", "chatter.quiet"]).result(work.SOON)
    finally:
        logging.getLogger("chatter.quiet").setLevel(logging.NOTSET)
    assert enabled == {"chatter": "INFO", "chatter.quiet": "ERROR"}
    assert heard.messages() == [
        "INFO of chatter",
        "WARNING of chatter",
        "ERROR of chatter",
        "ERROR of chatter.quiet",
    ]


def test_an_exception_in_a_record(pool: Any, heard: Collector) -> None:
    """It is there for handlers that look at it, and a formatter shows its traceback once."""
    pool().submit(logging_tasks.complain).result(work.SOON)
    (record,) = heard.records
    assert record.getMessage() == "it went wrong"
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    text = logging.Formatter().format(record)
    assert text.startswith("it went wrong\nTraceback")
    assert text.count("1 / 0") == text.count("ZeroDivisionError: ") == 1


def test_an_exception_that_cannot_travel_in_a_record(pool: Any, heard: Collector) -> None:
    """Its stand-in does, and the traceback is that of the worker."""
    pool().submit(logging_tasks.complain_of_locked).result(work.SOON)
    (record,) = heard.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], unpicklable.LockedError)
    assert "raise LockedError" in logging.Formatter().format(record)


def test_what_cannot_be_pickled_in_a_record(pool: Any, heard: Collector) -> None:
    """Its `repr` arrives in its place, and all else as it was: that costs neither task nor worker nor record."""
    executor = pool()
    worker = executor.submit(logging_tasks.say_with_lock).result(work.SOON)
    assert executor.submit(work.pid).result(work.SOON) == worker
    assert heard.messages() == ["locked", "after"]
    facts = vars(heard.records[0])
    assert (facts["thing"], facts["number"], facts["numbers"]) == ("<Locked thing>", 5, [1, 2])
    assert facts["silent"] == "<FailsRepr, whose repr fails>"


def test_what_cannot_be_rebuilt_here_in_a_record(pool: Any, heard: Collector) -> None:
    """Nor does what unpickles in the worker only, or does harm when it is unpickled."""
    executor = pool()
    futures = [executor.submit(logging_tasks.say_with_trap) for _ in range(3)]
    futures += [executor.submit(work.same, 5) for _ in range(20)]
    assert [future.result(work.SOON) for future in futures[3:]] == [5] * 20
    assert all(future.result(work.SOON) for future in futures[:3])
    assert heard.messages() == ["trap", "after"] * 3
    facts = vars(heard.records[0])
    assert "OnlyHere object" in facts["thing"]
    assert "ExitsWhenRebuilt object" in facts["exit"]


def test_a_record_that_cannot_be_formatted(pool: Any, heard: Collector) -> None:
    """Its message and its arguments arrive all the same."""
    pool().submit(logging_tasks.say, "chatter", logging.WARNING, "%d of %s", "one").result(work.SOON)
    (message,) = heard.messages()
    assert message.startswith("'%d of %s' with ('one',) (which is not to be formatted: TypeError: ")


def test_what_changes_after_it_was_logged(pool: Any, heard: Collector) -> None:
    """A record tells of the moment in which it was made."""
    pool().submit(logging_tasks.say_and_change).result(work.SOON)
    assert heard.messages() == ["it is [1]"]
    assert vars(heard.records[0])["thing"] == [1]


def test_a_record_within_a_record(pool: Any, heard: Collector) -> None:
    """What a record carries may log when it is pickled or shown."""
    pool().submit(logging_tasks.say_within).result(work.SOON)
    assert sorted(set(heard.messages())) == ["outer", "pickled", "shown"]


def test_an_extra_named_as_ours(pool: Any, heard: Collector) -> None:
    """A `task_id` of the task's own is kept."""
    pool().submit(logging_tasks.say_with_own_id).result(work.SOON)
    assert vars(heard.records[0])["task_id"] == "mine"


def test_a_record_factory_that_fails(pool: Any, heard: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A factory that cannot make an empty record loses none."""
    executor = pool()
    executor.submit(work.pid).result(work.SOON)
    original = logging.getLogRecordFactory()

    def make(name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        return original(name.lower(), *args, **kwargs)

    logging.setLogRecordFactory(make)
    try:
        executor.submit(logging_tasks.say_number, 5).result(work.SOON)
    finally:
        logging.setLogRecordFactory(original)
    assert heard.messages() == ["item 5"]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_handler_that_raises(pool: Any, heard: Collector, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    """A user's log handler that raises here loses no result."""

    def fail(record: logging.LogRecord) -> None:
        raise error("from a handler")

    monkeypatch.setattr(heard, "emit", fail)
    executor = pool()
    futures = [executor.submit(logging_tasks.say_number, number) for number in range(50)]
    assert [future.result(work.SOON) for future in futures] == list(range(50))


def test_a_chatty_task_is_stopped_in_time(pool: Any, heard: Collector) -> None:
    """A task that logs without end is still found to outrun its timeout."""
    executor = pool(timeout=0.5)
    executor.options(timeout=30).submit(work.pid).result(work.SOON)
    assert type(executor.submit(logging_tasks.talk_for_ever).exception(work.SOON)) is TaskTimeoutError


def test_records_of_other_threads(pool: Any, heard: Collector) -> None:
    """A thread that a task has started may log, too, at the same time as the task."""
    pool().submit(logging_tasks.say_from_threads, 4, 100).result(work.SOON)
    assert len(heard.records) == 400


@pytest.mark.parametrize("task", [logging_tasks.say_after_fork, logging_tasks.say_in_process])
def test_what_a_process_logs_that_a_task_forks(pool: Any, heard: Collector, tmp_path: Path, task: Any) -> None:
    """It has a copy of the worker's pipe, and does not write to it: nothing comes twice, or torn. It has standard error."""
    assert pool().submit(task, str(tmp_path / "stderr")).result(work.SOON)
    assert heard.messages() == ["from the worker"]
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert lines == [f"INFO:chatter:number {number}" for number in range(1000)]


def test_records_of_an_initializer(pool: Any, heard: Collector) -> None:
    """It may log; it has no task."""
    executor = pool(backend={"initializer": logging_tasks.say, "initargs": ("chatter", logging.WARNING, "starting")})
    executor.submit(work.pid).result(work.SOON)
    assert heard.messages() == ["starting"]
    assert heard.records[0].task_id is None  # type: ignore[attr-defined]


def test_a_forked_worker_logs_once(pool: Any, heard: Collector) -> None:
    """A worker that was forked has copies of our handlers, and of our loggers that do not propagate: none is used there."""
    worker = (
        pool(backend={"mp_context": "fork"})
        .submit(logging_tasks.say, "chatter", logging.WARNING, "once")
        .result(work.SOON)
    )
    assert [(record.process, record.getMessage()) for record in heard.records] == [(worker, "once")]


def test_the_last_words_of_a_worker(pool: Any, heard: Collector) -> None:
    """What a task has logged before its worker died is heard."""
    assert pool().submit(logging_tasks.say_and_die).exception(work.SOON) is not None
    assert heard.messages() == ["good bye"]


def test_a_large_record(pool: Any, heard: Collector) -> None:
    """A message of a megabyte arrives whole."""
    pool().submit(logging_tasks.say, "chatter", logging.WARNING, "x" * (1 << 20)).result(work.SOON)
    assert heard.messages() == ["x" * (1 << 20)]
