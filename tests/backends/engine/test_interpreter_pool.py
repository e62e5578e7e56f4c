"""The standard library's pool of interpreters (since 3.14): what crosses to one, and what the contract suite does not say."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial
from typing import Any, Iterator, NoReturn

import backend_kinds
import pytest
import script
import work

from parallel_exec import RemoteTaskError, TaskSerializationError, TaskTimeoutError, current_task

LONG = 600.0

pytestmark = pytest.mark.skipif(sys.version_info < (3, 14), reason="interpreters have a pool since 3.14")


class PairError(Exception):
    """An exception that pickles, and cannot be rebuilt from what it pickles to."""

    def __init__(self, one: int, two: object) -> None:
        super().__init__(f"{one} and {two}")
        self.two = two


def raise_with_a_lock() -> NoReturn:
    """Raise what cannot cross."""
    raise PairError(1, threading.Lock())


def watch(started: work.Latch, told: work.Latch) -> None:
    """Go on until nobody wants the result."""
    task = current_task()
    started.set()
    work.until(lambda: task.cancelled)
    told.set()


@pytest.fixture
def interpreters() -> Iterator[Any]:
    """A pool of one interpreter."""
    with backend_kinds.interpreter_pool(1) as pool:
        yield pool


def test_an_attempt_knows_its_interpreter(interpreters: Any, lab: Any) -> None:
    """A call runs in another interpreter of this process, and its attempt bears the name of both."""
    future = lab.executor(backend=interpreters).submit(os.getpid)
    assert future.result() == os.getpid()
    (attempt,) = future.task_result().attempts
    assert attempt.worker.startswith(f"process {os.getpid()}, interpreter ")


def test_keywords_are_the_functions(interpreters: Any, lab: Any) -> None:
    """No keyword of the call is taken for one of the pool's, or of ours."""
    executor = lab.executor(backend=interpreters)
    keywords = {"fn": 1, "note": 2, "timeout": 3, "self": 4}
    assert executor.submit(work.capture, 0, **keywords).result() == ((0,), keywords)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (partial(lambda: 5), 5),
        (partial(len, memoryview(b"four")), 4),
        (partial(bytes, b"x" * 2_000_000), b"x" * 2_000_000),
    ],
)
def test_what_the_pool_takes_it_takes_from_us(interpreters: Any, lab: Any, call: Any, expected: object) -> None:
    """Also what crosses to an interpreter in a way of its own, and cannot be pickled."""
    executor = lab.executor(backend=interpreters)
    assert executor.submit(call.func, *call.args).result() == expected


def test_what_the_pool_returns_we_return(interpreters: Any, lab: Any) -> None:
    """Also a result that crosses in a way of its own, and cannot be pickled."""
    view = lab.executor(backend=interpreters).submit(memoryview, b"four").result()
    assert (type(view), bytes(view)) == (memoryview, b"four")


@pytest.mark.parametrize("_", range(5))
@pytest.mark.parametrize(
    ("call", "direction"), [((abs, threading.Lock()), "to the worker"), ((threading.Lock,), "from the worker")]
)
def test_what_cannot_cross(interpreters: Any, lab: Any, call: Any, direction: str, _: int) -> None:
    """Such a call or result fails its own task, once, and says which way it went."""
    executor = lab.executor(backend=interpreters)
    error = executor.submit(*call).exception(LONG)
    assert isinstance(error, TaskSerializationError)
    assert error.direction == direction
    assert "Submission" not in str(error)
    assert executor.submit(work.double, 1).result() == 2


def test_an_exception_that_cannot_cross(interpreters: Any, lab: Any) -> None:
    """It comes as a stand-in, and is retried; the pool prints nothing of it, and goes on."""
    executor = lab.executor(backend=interpreters, retry_count=1)
    future = executor.submit(raise_with_a_lock)
    error = future.exception(LONG)
    assert isinstance(error, (RemoteTaskError, PairError))
    assert "raise_with_a_lock" in str(error.__cause__)
    assert len(future.task_result().attempts) == 2
    assert executor.submit(work.double, 1).result() == 2


def test_leaving_is_a_failure_of_the_task(interpreters: Any, lab: Any) -> None:
    """`sys.exit()` ends neither the interpreter nor its thread."""
    executor = lab.executor(backend=interpreters, retry_count=0)
    error = executor.submit(sys.exit, 3).exception(LONG)
    assert isinstance(error, SystemExit)
    assert error.code == 3
    assert executor.submit(work.double, 1).result() == 2


def test_a_timeout_abandons_the_attempt(interpreters: Any, lab: Any) -> None:
    """It settles at once; the call is told, and its interpreter serves the next one when it has come back."""
    started, told = lab.latch(), lab.latch()
    executor = lab.executor(backend=interpreters, retry_count=0)
    slow = executor.options(timeout=0.2).submit(watch, started, told)
    next_one = executor.submit(work.double, 1)
    assert isinstance(slow.exception(LONG), TaskTimeoutError)
    told.wait()
    assert next_one.result(LONG) == 2
    work.until(lambda: executor.stats().abandoned == 0)


def test_abort_tells_the_call(interpreters: Any, lab: Any) -> None:
    """`abort` of a running call settles it, and `current_task().cancelled` turns true in its interpreter."""
    started, told = lab.latch(), lab.latch()
    executor = lab.executor(backend=interpreters)
    future = executor.submit(watch, started, told)
    started.wait()
    work.until(lambda: executor.stats().running == 1)
    assert future.abort()
    told.wait()
    assert future.cancelled()


def test_a_cancelled_call_never_crosses(interpreters: Any, lab: Any) -> None:
    """What waits behind others' work in the pool can be taken back, and does nothing when its turn comes."""
    gate, log = lab.latch(), lab.log()
    theirs = interpreters.submit(gate.wait)
    executor = lab.executor(backend=interpreters)
    future = executor.submit(work.note, log, "ran")
    work.until(lambda: interpreters._work_queue.qsize() == 1)
    assert future.cancel()
    gate.set()
    theirs.result()
    assert executor.submit(work.double, 1).result() == 2
    assert log.lines() == []


def test_a_failing_initializer_is_the_engines_own_error(lab: Any) -> None:
    """A pool whose interpreters cannot start is broken: its own error comes, at once for all that waits."""
    from concurrent.futures import InterpreterPoolExecutor
    from concurrent.futures.interpreter import BrokenInterpreterPool

    with InterpreterPoolExecutor(1, initializer=exec, initargs=("1 / 0",)) as pool:
        executor = lab.executor(backend=pool, retry_count=0)
        futures = [executor.submit(work.double, number) for number in range(3)]
        assert {type(future.exception(LONG)) for future in futures} == {BrokenInterpreterPool}


def test_shutdown_leaves_the_pool_open(interpreters: Any, lab: Any) -> None:
    """Its maker closes it."""
    executor = lab.executor(backend=interpreters)
    futures = [executor.submit(work.double, number) for number in range(5)]
    executor.shutdown()
    assert [future.result(0) for future in futures] == [0, 2, 4, 6, 8]
    assert interpreters.submit(work.double, 1).result() == 2


def test_functions_of_a_script_and_its_end(tmp_path: Any) -> None:
    """With warnings as errors a script's own functions cross, and what is pending at its end is finished."""
    said = script.run(
        tmp_path,
        """
        from concurrent.futures import InterpreterPoolExecutor
        executor = ParallelExecutor(backend=InterpreterPoolExecutor(2))
        assert executor.submit(ready).result() is None
        for number in range(5):
            executor.submit(work.double, number).add_done_callback(lambda future: say(future.result()))
        """,
    )
    assert sorted(said.split()) == ["0", "2", "4", "6", "8", "READY"]


def test_an_exception_of_a_script(tmp_path: Any) -> None:
    """`except` and `retry_on` find an exception of the main module's by its class, though it cannot be pickled there."""
    program = tmp_path / "program.py"
    program.write_text(
        """
from concurrent.futures import InterpreterPoolExecutor
from parallel_exec import ParallelExecutor

class Mine(Exception):
    pass

def fail():
    raise Mine("of the script")

if __name__ == "__main__":
    with InterpreterPoolExecutor(1) as pool:
        with ParallelExecutor(backend=pool, retry_on=(Mine,), retry_count=1, backoff=0.0) as executor:
            future = executor.submit(fail)
            try:
                future.result()
            except Mine as error:
                print("of the script" in str(error), len(future.task_result().attempts))
"""
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("True 2\n", "")
