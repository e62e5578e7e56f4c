"""APScheduler, unchanged, with an executor of ours as the pool that its jobs run in."""

from __future__ import annotations

import queue
import threading
from datetime import datetime, timedelta, timezone
from typing import Any, Iterator

import pytest
import work

from parallel_exec import ParallelExecutor

pool = pytest.importorskip("apscheduler.executors.pool")
events = pytest.importorskip("apscheduler.events")
background = pytest.importorskip("apscheduler.schedulers.background")

LONG = 60.0


class OurExecutor(pool.BasePoolExecutor):  # type: ignore[misc]  # it has no types
    """What its documentation says to write for a pool of one's own: a constructor."""

    def __init__(self, executor: ParallelExecutor) -> None:
        super().__init__(executor)


@pytest.fixture
def executor() -> Iterator[ParallelExecutor]:
    """An executor with two threads."""
    with ParallelExecutor(max_concurrency=2) as executor:
        yield executor


@pytest.fixture
def scheduler(executor: ParallelExecutor) -> Iterator[Any]:
    """A running scheduler whose jobs run in it, with a queue of its events as `told`."""
    made = background.BackgroundScheduler(executors={"default": OurExecutor(executor)}, timezone=timezone.utc)
    made.told = queue.SimpleQueue()
    made.add_listener(made.told.put, events.EVENT_JOB_EXECUTED | events.EVENT_JOB_ERROR)
    made.start()
    yield made
    made.shutdown()


def test_a_job_runs_in_our_threads(scheduler: Any) -> None:
    """A job that is due runs in a thread of ours, and APScheduler hears what it returned."""
    scheduler.add_job(lambda: threading.current_thread().name, id="name", misfire_grace_time=None)
    told = scheduler.told.get(timeout=LONG)
    assert (told.job_id, told.exception) == ("name", None)
    assert told.retval.startswith("parallel_exec")


def test_a_job_that_fails(scheduler: Any) -> None:
    """APScheduler hears of a job's exception, and the job is not run again by us."""
    runs: list[int] = []

    def fail() -> None:
        runs.append(1)
        raise LookupError("mine")

    scheduler.add_job(fail, id="fails", misfire_grace_time=None)
    told = scheduler.told.get(timeout=LONG)
    assert told.job_id == "fails"
    assert isinstance(told.exception, LookupError)
    assert len(runs) == 1


def test_a_job_that_repeats(scheduler: Any) -> None:
    """An interval job comes again and again."""
    now = datetime.now(timezone.utc)
    scheduler.add_job(int, "interval", seconds=0.02, id="again", next_run_time=now, misfire_grace_time=None)
    runs = sorted((scheduler.told.get(timeout=LONG) for _ in range(3)), key=lambda told: told.scheduled_run_time)
    assert [told.job_id for told in runs] == ["again"] * 3
    assert runs[1].scheduled_run_time - runs[0].scheduled_run_time >= timedelta(seconds=0.02)


def test_its_shutdown_is_ours(executor: ParallelExecutor) -> None:
    """APScheduler's shutdown waits for what runs, and shuts the pool down."""
    started, gate, ended = threading.Event(), threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        gate.wait(LONG)
        ended.set()

    scheduler = background.BackgroundScheduler(executors={"default": OurExecutor(executor)}, timezone=timezone.utc)
    scheduler.start()
    scheduler.add_job(job, misfire_grace_time=None)
    assert started.wait(LONG)
    work.until(lambda: not scheduler.get_jobs())  # removing one while it shuts down is beyond APScheduler
    gate.set()
    scheduler.shutdown(wait=True)
    assert ended.is_set()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)
