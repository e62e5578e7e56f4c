"""CPython's own tests of `concurrent.futures` executors, held against ours: `wait` and `as_completed`.

Adapted from Lib/test/test_concurrent_futures (3.13; test_wait.py, test_as_completed.py), by the names they have there.
Left out is what pokes at private attributes. Where the original sleeps, ours waits for an event.
"""

from __future__ import annotations

import itertools
import sys
from concurrent import futures
from typing import TYPE_CHECKING, Any

import pytest
import work
from backend_kinds import over

if TYPE_CHECKING:
    from parallel_exec import ParallelExecutor

BOTH = over(("thread", "process"))
EVERY = over(("thread", "process", "spawn", "fork"))
PROCESSES = over(("process", "spawn"))

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def _ended(how: str) -> futures.Future[Any]:
    """Return one of the stdlib's own futures, in some state."""
    future: futures.Future[Any] = futures.Future()
    if how == "pending":
        return future
    if how == "cancelled":
        future.cancel()
        return future
    if how == "cancelled and notified":
        future.cancel()
        future.set_running_or_notify_cancel()
        return future
    future.set_running_or_notify_cancel()
    if how == "failed":
        future.set_exception(OSError())
    elif how == "succeeded":
        future.set_result(42)
    return future


@pytest.fixture
def others() -> dict[str, futures.Future[Any]]:
    """Futures of the stdlib's own kind, in every state."""
    states = ("pending", "running", "cancelled", "cancelled and notified", "failed", "succeeded")
    return {state: _ended(state) for state in states}


@pytest.fixture
def executor(lab: Any) -> ParallelExecutor:
    """An executor as the originals make it: five workers, and no retries as the stdlib has none."""
    return lab.executor(max_concurrency=5, retry_count=0, timeout=None)  # type: ignore[no-any-return]


# ── test_wait.py ────────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
def test_20369(executor: ParallelExecutor) -> None:
    """A future that is given twice is waited for once."""
    future = executor.submit(pow, 2, 2)
    assert futures.wait([future, future], return_when=futures.ALL_COMPLETED) == ({future}, set())


@BOTH
def test_first_completed(executor: ParallelExecutor, lab: Any, others: Any) -> None:
    """`FIRST_COMPLETED` returns with the first one that ends; a cancelled one that nobody was told of does not count."""
    quick, slow = executor.submit(pow, 21, 2), executor.submit(lab.latch().wait)
    done, pending = futures.wait([others["cancelled"], quick, slow], return_when=futures.FIRST_COMPLETED)
    assert (done, pending) == ({quick}, {others["cancelled"], slow})


@BOTH
def test_first_completed_some_already_completed(executor: ParallelExecutor, lab: Any, others: Any) -> None:
    """`FIRST_COMPLETED` returns at once if something had ended."""
    ended = {others["cancelled and notified"], others["succeeded"]}
    slow = executor.submit(lab.latch().wait)
    assert futures.wait([*ended, slow], return_when=futures.FIRST_COMPLETED) == (ended, {slow})


@BOTH
def test_first_exception(executor: ParallelExecutor, lab: Any) -> None:
    """`FIRST_EXCEPTION` returns when one has failed."""
    first = executor.submit(pow, 2, 21)
    futures.wait([first])
    slow, failing = executor.submit(lab.latch().wait), executor.submit(work.fail, OSError())
    done, pending = futures.wait([first, failing, slow], return_when=futures.FIRST_EXCEPTION)
    assert (done, pending) == ({first, failing}, {slow})


@BOTH
def test_first_exception_one_already_failed(executor: ParallelExecutor, lab: Any, others: Any) -> None:
    """`FIRST_EXCEPTION` returns at once if one had failed."""
    slow = executor.submit(lab.latch().wait)
    done, pending = futures.wait([others["failed"], slow], return_when=futures.FIRST_EXCEPTION)
    assert (done, pending) == ({others["failed"]}, {slow})


@BOTH
def test_all_completed(executor: ParallelExecutor, others: Any) -> None:
    """`ALL_COMPLETED` waits for all, failed or not."""
    mine = {executor.submit(divmod, 2, 0), executor.submit(pow, 2, 21)}
    ended = {others["succeeded"], others["cancelled and notified"], others["failed"]}
    assert futures.wait([*ended, *mine], return_when=futures.ALL_COMPLETED) == (ended | mine, set())


@BOTH
def test_timeout(executor: ParallelExecutor, lab: Any, others: Any) -> None:
    """`wait` with a timeout returns what has ended by then."""
    slow = executor.submit(lab.latch().wait)
    ended = {others["cancelled and notified"], others["failed"], others["succeeded"]}
    assert futures.wait([*ended, slow], timeout=0.05) == (ended, {slow})


def test_pending_calls_race(executor: ParallelExecutor, lab: Any) -> None:
    """A hundred futures that end at once while they are waited for are all seen."""
    gate = lab.event()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        pending = {executor.submit(gate.wait) for _ in range(100)}
        gate.set()
        assert futures.wait(pending, timeout=work.PATIENCE).not_done == set()
    finally:
        sys.setswitchinterval(interval)


# ── test_as_completed.py ────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
def test_no_timeout(executor: ParallelExecutor, others: Any) -> None:
    """`as_completed` yields every future, ours and others."""
    ended = {others["cancelled and notified"], others["failed"], others["succeeded"]}
    mine = {executor.submit(pow, 2, 21), executor.submit(pow, 7, 6)}
    assert set(futures.as_completed([*ended, *mine])) == ended | mine


@BOTH
@pytest.mark.parametrize("timeout", [0, 0.05])
def test_future_times_out(executor: ParallelExecutor, lab: Any, others: Any, timeout: float) -> None:
    """`as_completed` yields what has ended, then raises that the rest is unfinished."""
    ended = {others["cancelled and notified"], others["failed"], others["succeeded"]}
    slow = executor.submit(lab.latch().wait)
    completed = futures.as_completed([*ended, slow], timeout)
    assert {next(completed) for _ in ended} == ended
    with pytest.raises(futures.TimeoutError, match=r"1 \(of 4\) futures unfinished"):
        next(completed)


@BOTH
def test_duplicate_futures(executor: ParallelExecutor) -> None:
    """A future that is given three times comes once."""
    future = executor.submit(pow, 2, 2)
    assert list(futures.as_completed(itertools.repeat(future, 3))) == [future]
