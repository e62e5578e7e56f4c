"""What runs attempts in an engine, over an engine that does only what its test says."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import inside
import pytest
import tenacity
import work

from parallel_exec import Backend
from parallel_exec.backends._outcomes import AS_IS
from parallel_exec.backends.engine.adapter import Engine
from parallel_exec.backends.engine.remote_call import CallResult
from parallel_exec.backends.engine.runner import EngineRunner
from parallel_exec.backends.engine.submission import State, Submission

if TYPE_CHECKING:
    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.engine.adapter import EngineFuture


class ScriptedEngine(Engine):
    """An engine in which attempts run elsewhere.

    Attributes:
        submissions: what it was given.
        futures: what it returned.
        refuses: whether it refuses to cancel.
    """

    name = "scripted"

    def __init__(self) -> None:
        self.submissions: list[Submission] = []
        self.futures: list[EngineFuture] = []
        self.refuses = False

    def submit(self, submission: Submission) -> EngineFuture:
        """Take an attempt, and send it."""
        submission.send()
        future: EngineFuture = Future()
        self.futures.append(future)
        self.submissions.append(submission)
        return future

    def cancel(self, submission: Submission, engine_future: EngineFuture) -> bool:
        """Cancel it in the books."""
        return not self.refuses and engine_future.cancel()

    def recall(self, submission: Submission) -> bool:
        """Cancel what has not begun, and be slow to say so."""
        cancelled = submission.engine_future is not None and submission.engine_future.cancel()
        time.sleep(0.1)  # the settler has heard of it by then
        return cancelled and submission.withdraw_sent()

    def close(self) -> None:
        """Do nothing."""

    def begin(self, index: int, worker: str = "elsewhere") -> None:
        """Say that an attempt began."""
        self.runner.began(self.submissions[index], worker)

    def succeed(self, index: int, value: object) -> None:
        """Say that an attempt has ended."""
        self.futures[index].set_result(CallResult(AS_IS, value, 0.0, "elsewhere"))


class ScriptedBackend(Backend):
    """The engine's back end."""

    name = "scripted"
    reports_in_one_thread = True

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine

    def make_runner(self, port: SchedulerPort, limit: int) -> EngineRunner:
        """Return a new runner."""
        return EngineRunner(self._engine, port, limit)


@pytest.fixture
def engine() -> ScriptedEngine:
    """An engine."""
    return ScriptedEngine()


@pytest.fixture
def executor(engine: ScriptedEngine, lab: Any) -> Any:
    """An executor over the engine, which has one attempt in it at a time."""
    return lab.executor(backend=ScriptedBackend(engine), max_concurrency=1, retry_count=0)


def test_an_attempt_begins_and_ends_elsewhere(engine: ScriptedEngine, executor: Any) -> None:
    """It runs from when the engine says so, where it says; its slot is the next one's when it has ended."""
    first, second = executor.submit(work.double, 1), executor.submit(work.double, 2)
    work.until(lambda: len(engine.submissions) == 1)
    assert not first.running()
    engine.begin(0)
    work.until(first.running)
    engine.succeed(0, "one")
    assert first.result() == "one"
    assert first.task_result().attempts[0].worker == "elsewhere"
    work.until(lambda: len(engine.submissions) == 2)
    engine.succeed(1, "two")
    assert second.result() == "two"
    assert engine.submissions[0].state == State.SETTLED


def test_a_task_that_ends_as_its_attempt_begins(engine: ScriptedEngine, executor: Any) -> None:
    """A policy's hook may end it; the attempt is abandoned then, and its slot is the next one's at once."""

    def refuse(state: tenacity.RetryCallState) -> None:
        raise LookupError(state.attempt_number)

    engine.refuses = True
    first = executor.options(retry=tenacity.Retrying(before=refuse)).submit(work.double, 1)
    second = executor.submit(work.double, 2)
    work.until(lambda: len(engine.submissions) == 1)
    engine.begin(0)
    assert isinstance(first.exception(), LookupError)
    work.until(lambda: len(engine.submissions) == 2)
    assert executor.stats().abandoned == 1
    engine.succeed(0, "in vain")
    work.until(lambda: executor.stats().abandoned == 0)
    engine.succeed(1, "two")
    assert second.result() == "two"


def test_what_the_engine_takes_back_is_cancelled(engine: ScriptedEngine, executor: Any) -> None:
    """The engine tells that it has cancelled an attempt before `cancel` has noted that it was told to: no attempt has failed."""
    future = executor.submit(work.double, 1)
    work.until(lambda: len(engine.submissions) == 1 and engine.submissions[0].engine_future is not None)
    assert future.cancel()
    assert future.cancelled()
    assert future.task_result().attempts == ()
    work.until(lambda: executor.stats().workers == 0)


def test_an_engine_that_refuses_what_was_aborted_meanwhile(engine: ScriptedEngine, executor: Any) -> None:
    """An attempt that was abandoned while the engine's `submit` had it is over when that raises."""
    gate = threading.Event()

    def refuse(submission: Submission) -> EngineFuture:
        submission.send()
        engine.submissions.append(submission)
        gate.wait(work.SOON)
        raise ConnectionError("the cluster is gone")

    engine.submit = refuse  # type: ignore[method-assign]
    future = executor.submit(work.double, 1)
    work.until(lambda: len(engine.submissions) == 1)
    assert future.abort()
    work.until(lambda: executor.stats().abandoned == 1)
    gate.set()
    work.until(lambda: executor.stats().abandoned == 0)
    assert future.cancelled()


def test_an_attempt_that_begins_again_elsewhere(engine: ScriptedEngine, executor: Any) -> None:
    """When the engine has lost the worker, the attempt goes on as the same one, and its timeout counts anew."""
    future = executor.options(timeout=work.FOREVER).submit(work.double, 1)
    work.until(lambda: len(engine.submissions) == 1)
    engine.begin(0, "lost")
    work.until(future.running)
    again = time.monotonic()
    engine.begin(0, "found")
    engine.succeed(0, "one")
    assert future.result() == "one"
    (attempt,) = future.task_result().attempts
    assert (attempt.number, attempt.worker) == (1, "found")
    assert engine.submissions[0].started_at >= again


def test_an_abandoned_call_that_ends_after_the_executor(lab: Any) -> None:
    """What it was granted is given back then, and is not shown as held for ever."""
    gate, started = threading.Event(), threading.Event()

    def body() -> None:
        started.set()
        gate.wait(work.PATIENCE)

    with ThreadPoolExecutor(1) as pool:
        executor = lab.executor(backend=pool, limits={"db": 1})
        future = executor.options(needs={"db": 1}).submit(body)
        assert started.wait(work.SOON)
        future.abort()
        executor.shutdown()
        assert executor.stats().limits["db"].in_use == 1
        gate.set()
        work.until(lambda: executor.stats().limits["db"].in_use == 0, work.SOON)
    assert not inside.monitor(executor).ready.limits.kept
