"""Other people's process pools: what travels, what is told on the way, and what becomes of a worker that dies."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading
import time
from concurrent.futures import BrokenExecutor, CancelledError, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Iterator, NoReturn

import pytest
import script
import work
from backend_kinds import over

from parallel_exec import RemoteTaskError, TaskSerializationError, current_task
from parallel_exec.backends.engine.executor import ExecutorEngine
from parallel_exec.events import Event, WorkerDied

LONG = 600.0


class UnreadableError(Exception):
    """An exception that cannot be pickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")
        self.lock = threading.Lock()


@dataclass(frozen=True)
class FrozenError(Exception):
    """An exception that cannot be changed."""

    code: int


def raise_frozen() -> NoReturn:
    """Raise it."""
    raise FrozenError(3)


def raise_unreadable() -> NoReturn:
    """Raise it, in whatever process."""
    raise UnreadableError(1, 2)


def raise_chained() -> NoReturn:
    """Raise an exception with a cause."""
    raise ValueError("outer") from KeyError("inner")


def wait_until_unwanted(started: work.Latch, told: work.Latch) -> None:
    """Say what `current_task()` says of a task that nobody waits for any more."""
    task = current_task()
    assert not task.cancelled
    started.set()
    work.until(lambda: task.cancelled)
    told.set()


@pytest.fixture
def processes() -> Iterator[ProcessPoolExecutor]:
    """A process pool of the stdlib's with one process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:
        pool.submit(os.getpid).result()
        yield pool


def test_the_clock_starts_where_the_attempt_runs(processes: ProcessPoolExecutor, lab: Any) -> None:
    """The time that a call waits in a pool which others keep busy does not count towards its timeout."""
    gate = lab.latch()
    theirs = processes.submit(gate.wait)
    executor = lab.executor(backend=processes, timeout=2, retry_count=0)
    future = executor.submit(work.double, 1)
    with pytest.raises(concurrent.futures.TimeoutError):  # the builtin only since 3.11
        future.result(2.5)
    gate.set()
    assert future.result() == 2
    theirs.result()


def test_an_attempts_duration_is_the_workers(processes: ProcessPoolExecutor, lab: Any) -> None:
    """The times of an attempt are those of the call, not of its way there and back."""
    gate, log = lab.latch(), lab.log()
    theirs = processes.submit(gate.wait)
    future = lab.executor(backend=processes).submit(work.span, log, 0.2)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(0.3)
    opened = time.monotonic()
    gate.set()
    future.result()
    received = time.monotonic()
    theirs.result()
    began, ended = map(float, log.lines()[0].split())
    (attempt,) = future.task_result().attempts
    assert ended - began <= attempt.duration <= received - opened
    assert attempt.worker.startswith("process ")


def test_an_abandoned_process_hears_that_it_is_unwanted(processes: ProcessPoolExecutor, lab: Any) -> None:
    """`current_task().cancelled` turns true in a process of the pool when the task was aborted."""
    started, told = lab.latch(), lab.latch()
    executor = lab.executor(backend=processes)
    future = executor.submit(wait_until_unwanted, started, told)
    started.wait()
    work.until(future.running)
    assert future.abort()
    told.wait()
    work.until(lambda: executor.stats().abandoned == 0)


def test_a_call_that_is_aborted_before_anybody_has_heard_that_it_runs(processes: ProcessPoolExecutor, lab: Any) -> None:
    """It has begun, so it counts as an attempt, as one does that is aborted later."""
    executor = lab.executor(backend=processes)
    for _ in range(8):
        begun, told = lab.latch(), lab.latch()
        future = executor.submit(wait_until_unwanted, begun, told)
        begun.wait()
        assert future.abort()
        work.until(future.done)
        (attempt,) = future.task_result().attempts
        assert type(attempt.error) is CancelledError
        told.wait()
    work.until(lambda: executor.stats().abandoned == 0)


def test_what_is_aborted_while_our_thread_is_busy(lab: Any) -> None:
    """What says that a call has begun came before the abort was acted on, so it counts."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as pool:
        executor = lab.executor(backend=pool, max_concurrency=2)
        begun, told, waiting = lab.latch(), lab.latch(), lab.latch()
        held, gate = threading.Event(), threading.Event()

        def hold(_: Any) -> None:
            held.set()
            gate.wait(work.PATIENCE)

        other = executor.submit(waiting.wait)
        other.add_done_callback(hold)
        waiting.set()
        assert held.wait(work.PATIENCE)
        future = executor.submit(wait_until_unwanted, begun, told)
        begun.wait()
        assert future.abort()
        gate.set()
        work.until(future.done)
        (attempt,) = future.task_result().attempts
        assert type(attempt.error) is CancelledError
        told.wait()


def test_an_exception_that_cannot_be_rebuilt(processes: ProcessPoolExecutor, lab: Any) -> None:
    """It is replaced by one that names it, and the pool is none the worse for it."""
    executor = lab.executor(backend=processes, retry_count=0)
    error = executor.submit(raise_unreadable).exception()
    assert isinstance(error, RemoteTaskError)
    assert isinstance(error, UnreadableError)
    assert error.type_name.endswith("UnreadableError")
    assert "raise_unreadable" in error.worker_traceback
    assert error.reason.startswith("it cannot be pickled: TypeError: ")
    assert executor.submit(work.double, 1).result() == 2


def test_the_whole_traceback_is_there(processes: ProcessPoolExecutor, lab: Any) -> None:
    """The traceback from the worker, with the exception's own cause, is the cause of the error."""
    error = lab.executor(backend=processes, retry_count=0).submit(raise_chained).exception()
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, KeyError)
    assert "KeyError: 'inner'" in str(error.__cause__.__cause__)


def test_an_exception_that_cannot_be_changed(processes: ProcessPoolExecutor, lab: Any) -> None:
    """It arrives as it was, with the traceback, and is retried."""
    future = lab.executor(backend=processes, retry_count=1).submit(raise_frozen)
    error = future.exception()
    assert type(error) is FrozenError
    assert error.code == 3
    assert "raise_frozen" in str(error.__cause__)
    assert len(future.task_result().attempts) == 2


@pytest.mark.parametrize(
    ("call", "direction"), [((lambda: 1,), "to the worker"), ((threading.Lock,), "from the worker")]
)
def test_what_cannot_be_pickled(processes: ProcessPoolExecutor, lab: Any, call: Any, direction: str) -> None:
    """A call or a result that the executor cannot pickle fails its own task, once, and says which way it went."""
    executor = lab.executor(backend=processes)
    error = executor.submit(*call).exception(LONG)
    assert isinstance(error, TaskSerializationError)
    assert error.direction == direction
    assert executor.submit(work.double, 1).result() == 2


def test_a_failure_that_overtakes_its_beginning(
    processes: ProcessPoolExecutor, lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result that cannot be sent is not taken for a call that cannot, though we hear late that the call began."""
    heard = ExecutorEngine._heard

    def hear_late(engine: ExecutorEngine, serial: int, worker: str, address: Any) -> None:
        submission: Any = engine.runner.submission(serial)
        work.until(lambda: submission.engine_future is None)
        heard(engine, serial, worker, address)

    monkeypatch.setattr(ExecutorEngine, "_heard", hear_late)
    future = lab.executor(backend=processes).submit(threading.Lock)
    error = future.exception(LONG)
    assert isinstance(error, TaskSerializationError)
    assert error.direction == "from the worker"
    assert future.task_result().attempts[0].worker.startswith("process ")


def test_a_dead_worker_is_the_engines_own_error(processes: ProcessPoolExecutor, lab: Any) -> None:
    """A worker's death breaks the stdlib's pool: attempts fail with its error, the policy has its say, it is told."""
    events: list[Event] = []
    executor = lab.executor(backend=processes, retry_count=2, on_event=events.append)
    executor.add_task(work.die)
    for number in range(5):
        executor.add_task(partial(work.double, number))
    results = executor.execute_all()
    assert all(isinstance(result.error, BrokenExecutor) for result in results)
    assert [len(result.attempts) for result in results] == [3] * 6
    assert [event.worker for event in events if isinstance(event, WorkerDied)] == ["executor"]


@over(("loky",))
def test_loky_takes_lambdas(lab: Any) -> None:
    """What an executor's own pickler takes, it takes from us, too."""
    assert lab.executor().submit(lambda: 5).result() == 5


def test_a_dead_worker_of_loky(tmp_path: Any) -> None:
    """A worker's death is loky's own error.

    In a program of its own, and with warnings ignored: loky leaves a pipe behind then, and now and then its tracker of
    resources warns that a semaphore had gone already.
    """
    pytest.importorskip("loky")
    said = script.run(
        tmp_path,
        """
        import logging
        import loky
        logging.disable()
        pool = loky.ProcessPoolExecutor(1)
        with ParallelExecutor(backend=pool, retry_count=0) as executor:
            say(type(executor.submit(work.die).exception()).__name__)
        pool.shutdown(kill_workers=True)
        """,
        flags=("-W", "ignore"),
    )
    assert said == "TerminatedWorkerError"
