"""What the logger `parallel_exec` says: one line each for what one wants to find in a log afterwards."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import pytest
import work

from parallel_exec import ParallelExecutor, ProcessBackend
from parallel_exec.backends.process import worker_process

INFO, WARNING = logging.INFO, logging.WARNING


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[int, str]]]:
    """What has been said so far: the level and the text of each line."""
    caplog.set_level(INFO, "parallel_exec")
    return lambda: [(each.levelno, each.getMessage()) for each in caplog.records if each.name == "parallel_exec"]


def executor(backend: Any = "process", **settings: Any) -> ParallelExecutor:
    """Return one with a worker, and without retries unless told otherwise."""
    return ParallelExecutor(backend=backend, max_concurrency=1, **{"retry_count": 0, "backoff": 0.01, **settings})


def fail_once(state: list[int]) -> int:
    """Fail the first time."""
    state.append(1)
    if len(state) == 1:
        raise ValueError("not\nyet")
    return len(state)


def test_a_retry(said: Any) -> None:
    """Says which attempt failed, of what, and when the next one comes."""
    with executor("thread", retry_count=1, jitter=False) as pool:
        assert pool.options(id="a").submit(fail_once, []).result() == 2
    assert said() == [(INFO, "attempt 1 of task 'a' failed (ValueError: not yet): the next one is in 0.01 s")]


class _MuteError(Exception):
    def __str__(self) -> str:
        raise LookupError


def raise_mute() -> None:
    """Raise what cannot be printed."""
    raise _MuteError


def test_a_retry_of_what_cannot_be_printed(said: Any) -> None:
    """Neither that nor a handler that fails keeps the next attempt from coming."""
    logger, handler = logging.getLogger("parallel_exec"), _BadHandler()
    logger.addHandler(handler)
    try:
        with executor("thread", retry_count=1) as pool:
            assert type(pool.submit(raise_mute).exception(work.SOON)) is _MuteError
    finally:
        logger.removeHandler(handler)
    assert handler.asked == 1


class _BadHandler(logging.Handler):
    asked = 0

    def handle(self, record: logging.LogRecord) -> bool:
        """Fail."""
        self.asked += 1
        raise OSError(28, "no space left")


def test_a_worker_that_is_replaced_for_its_memory(said: Any) -> None:
    """A handler that fails keeps it neither from being told to end, nor another from taking its place."""
    logger, handler = logging.getLogger("parallel_exec"), _BadHandler()
    logger.addHandler(handler)
    try:
        with executor(ProcessBackend(max_memory_per_child=1)) as pool:
            first = pool.submit(work.pid).result(work.SOON)
            work.until(lambda: pool.submit(work.pid).result(work.SOON) != first)
    finally:
        logger.removeHandler(handler)
    assert handler.asked


@pytest.mark.parametrize("retries", [0, 1])
def test_a_timeout_in_a_process(said: Any, retries: int) -> None:
    """One warning that the worker was killed, and where; the line of the retry does not repeat it."""
    with executor(retry_count=retries, jitter=False) as pool:
        pool.submit(work.pid).result(work.SOON)
        pool.options(id="a", timeout=0.2).submit(time.sleep, 60).exception(work.SOON)
    lines = said()
    assert [level for level, _ in lines] == [WARNING, INFO, WARNING][: 1 + 2 * retries]
    first = "Task timeout: attempt 1 of task 'a' ran longer than 0.2 s"
    assert lines[0][1].startswith(first)
    assert "; its worker process " in lines[0][1]
    assert lines[0][1].endswith(" was killed")
    if retries:
        assert lines[1][1] == "attempt 1 of task 'a' failed (TaskTimeoutError): the next one is in 0.01 s"


@pytest.mark.parametrize("where", ["thread", "engine"])
def test_a_timeout_in_a_thread(said: Any, where: str) -> None:
    """One warning that it is abandoned, and where it was."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        with executor("thread" if where == "thread" else threads, timeout=0.1) as pool:
            error: Any = pool.submit(wait_for, over).exception(work.SOON)
        over.set()
    ((level, line),) = said()
    assert level == WARNING
    assert line.startswith(f"{error}; its call cannot be stopped, and still runs in ")
    assert str(error).endswith(" in wait_for")
    assert error.stack.splitlines()[1].endswith(", in wait_for")


def test_a_call_of_c_code_in_a_thread_is_named(said: Any) -> None:
    """As it has no line of Python."""
    with executor("thread", timeout=0.1) as pool:
        error: Any = pool.submit(time.sleep, 0.3).exception(work.SOON)
    assert str(error).endswith(", at sleep (C code)")
    assert error.stack.endswith("\n  sleep (C code, without a line of Python)")
    assert len(said()) == 1
    work.until(lambda: pool.stats().abandoned == 0)


def wait_for(over: Any) -> None:
    """Wait."""
    over.wait(work.SOON)


def test_a_crash(said: Any) -> None:
    """One warning, which is the error's message."""
    with executor() as pool:
        error = pool.submit(os._exit, 3).exception(work.SOON)
    assert said() == [(WARNING, str(error))]


def crash() -> None:
    """Read memory that is not there."""
    ctypes.string_at(0)


def crash_later(seconds: float) -> None:
    """Have another thread read memory that is not there, a while after this call has ended."""
    threading.Timer(seconds, crash).start()


def test_a_crash_of_a_worker_that_runs_nothing(said: Any) -> None:
    """One warning, with the place: there is no task whose error could say it."""
    with executor() as pool:
        worker = pool.submit(work.pid).result(work.SOON)
        pool.submit(crash_later, 0.1).result(work.SOON)
        work.until(lambda: bool(said()))
    ((level, line),) = said()
    assert level == WARNING
    assert line.startswith(f"worker process {worker} died (signal SIGSEGV) while it ran no task, at ")
    assert line.endswith(" in crash")


def test_a_crash_of_a_finalizer(said: Any) -> None:
    """Likewise."""
    with executor(ProcessBackend(finalizer=crash)) as pool:
        worker = pool.submit(work.pid).result(work.SOON)
    ((level, line),) = said()
    assert level == WARNING
    assert line.startswith(f"worker process {worker} died (signal SIGSEGV) while it ran no task, at ")
    assert line.endswith(" in crash")


def test_a_worker_that_is_told_to_end_from_outside(said: Any) -> None:
    """Nobody need know: it had nothing to do."""
    gone: list[Any] = []
    with executor(on_event=gone.append) as pool:
        os.kill(pool.submit(work.pid).result(work.SOON), signal.SIGTERM)
        work.until(lambda: "WorkerDied" in [type(event).__name__ for event in gone])
    assert said() == []


def return_deaf(seconds: float) -> int:
    """Return then, having blocked all signals for good."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(seconds)
    return 1


def test_a_worker_that_ends_in_time(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody says that it took too long to end, though it was asked before where it is, and did not hear it."""
    monkeypatch.setattr(worker_process, "DUMP_GRACE", 1.0)
    with executor() as pool:
        pool.submit(work.pid).result(work.SOON)
        assert pool.options(timeout=0.2).submit(return_deaf, 0.4).result(work.SOON) == 1
    assert said() == []


def test_a_kill_on_purpose(said: Any) -> None:
    """A task that is aborted is no cause for alarm."""
    with executor() as pool:
        worker = pool.submit(work.pid).result(work.SOON)
        future = pool.options(id="a").submit(time.sleep, 60)
        work.until(future.running)
        future.abort()
    ((level, line),) = said()
    assert (level, line) == (INFO, f"worker process {worker} was killed while it ran task 'a': CancelledError")


def test_a_worker_that_could_not_start(said: Any) -> None:
    """One warning for the first of those that fail in a row."""
    with executor(ProcessBackend(initializer=os.kill, initargs=(0, signal.SIGKILL))) as pool:
        pool.submit(work.pid).exception(work.SOON)
    assert said() == [(WARNING, "a worker process could not start: it died (signal SIGKILL)")]


def test_nothing_is_said_of_what_goes_well(said: Any) -> None:
    """A log is for what does not."""
    with executor() as pool:
        assert list(pool.map(abs, range(10))) == list(range(10))
    assert said() == []
