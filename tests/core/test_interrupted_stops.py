"""Ctrl-C where a running attempt is stopped: it ends once, as if it had not come, or goes on as if it had not been stopped."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import inside
import pytest
import work
from interruptions import interrupt

from parallel_exec import ParallelExecutor, PerKey, ThreadBackend

if TYPE_CHECKING:
    from pathlib import Path

    from parallel_exec import TaskFuture

# Python's own word about a call that was torn apart before it began.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine method 'asend':RuntimeWarning")

LIMITS: dict[str, Any] = {"db": 2, "gpu": ["a", "b"], "host": PerKey(1)}
NEEDS: dict[str, Any] = {"db": 1, "gpu": 1, "host": "a"}
EVERYTHING: dict[str, Any] = {"db": 2, "gpu": 2, "host": "a"}


def in_use(executor: ParallelExecutor) -> dict[str, float]:
    """Return what is held of each limit of which something is, and how many wait."""
    stats = executor.stats().limits.items()
    return {name: each.in_use + each.waiting for name, each in stats if each.in_use or each.waiting}


def ends_all(executor: ParallelExecutor, step: int, needs: dict[str, Any] | None) -> None:
    """Check that all has ended, nothing is held, and the pool goes on."""
    unsettled = inside.monitor(executor).registry.unsettled
    work.until(lambda: not unsettled, work.SOON)
    assert executor.options(needs=needs).submit(work.double, step).result(work.SOON) == 2 * step
    work.until(lambda: not unsettled and not in_use(executor), work.SOON)
    work.until(lambda: executor.stats().abandoned == 0, work.SOON)
    assert executor.stats().running == 0
    assert inside.monitor(executor).ready.limits is None or not inside.monitor(executor).ready.limits.kept


def abort_at_each_point(executor: ParallelExecutor, *, limited: bool, keeps: bool) -> tuple[TaskFuture[None], int]:
    """Abort a running call of this process, interrupted at every point, and check each time that `ends_all`.

    Args:
        executor: which.
        limited: whether the call needs something of its limits.
        keeps: whether the call is to have that until it returns.

    Returns:
        The last future, and the number of points.
    """
    for step in itertools.count(1):
        gate, started = threading.Event(), threading.Event()

        def body() -> None:
            started.set()  # noqa: B023  # it ends before the next is made
            gate.wait(work.PATIENCE)  # noqa: B023

        future = executor.options(needs=NEEDS if limited else None).submit(body)
        assert started.wait(work.SOON)
        more = interrupt(future.abort, step)
        if keeps:
            assert in_use(executor) == dict.fromkeys(NEEDS, 1)
        gate.set()
        wait([future], work.SOON)
        assert future.done(), step
        ends_all(executor, step, EVERYTHING if limited else None)
        if not more:
            return future, step
    raise AssertionError


@pytest.mark.parametrize(
    ("limited", "room"), [(False, 256), (True, 256), (False, 0)], ids=["plain", "limits", "not refilled"]
)
def test_abort_in_a_thread(limited: bool, room: int) -> None:
    """The attempt settles, what it was granted comes back once its call has returned, and its slot is used again."""
    backend = ThreadBackend(max_abandoned=room)
    with ParallelExecutor(max_concurrency=2, backend=backend, limits=LIMITS, retry_count=0) as executor:
        executor.submit(int).result(work.SOON)
        last, steps = abort_at_each_point(executor, limited=limited, keeps=limited)
        assert last.cancelled()
        assert steps > 50


@pytest.mark.parametrize("limited", [False, True], ids=["plain", "limits"])
def test_abort_in_an_engine(limited: bool) -> None:
    """Likewise, in somebody else's pool."""
    with ThreadPoolExecutor(3) as pool, ParallelExecutor(max_concurrency=2, backend=pool, limits=LIMITS) as executor:
        executor.submit(int).result(work.SOON)
        _, steps = abort_at_each_point(executor, limited=limited, keeps=False)
        assert steps > 20


@pytest.mark.parametrize("limited", [False, True], ids=["plain", "limits"])
def test_abort_in_a_process(limited: bool, tmp_path: Path) -> None:
    """Likewise: its worker is killed, or goes on."""
    limits = {"db": 2, "host": PerKey(1)}
    needs: Any = {"db": 1, "host": "a"} if limited else None
    with ParallelExecutor(max_concurrency=1, backend="process", limits=limits, retry_count=0) as executor:
        executor.submit(int).result(work.SOON)
        for step in itertools.count(1):
            started, gate = work.Latch(tmp_path / f"started{step}"), work.Latch(tmp_path / f"gate{step}")
            future = executor.options(needs=needs).submit(work.hold, started, gate)
            started.wait()
            more = interrupt(future.abort, step)
            gate.set()
            wait([future], work.SOON)
            assert future.done(), step
            ends_all(executor, step, needs)
            if not more:
                break
        assert step > 30


@pytest.mark.parametrize("limited", [False, True], ids=["plain", "limits"])
def test_abort_in_the_calling_thread(limited: bool) -> None:
    """Likewise, by the running task itself."""
    with ParallelExecutor(backend="inline", limits=LIMITS, retry_count=0) as executor:
        ended: list[Any] = []
        for step in itertools.count(1):
            more = []

            def body() -> None:
                (job,) = inside.monitor(executor).registry.unsettled
                job.add_done_callback(ended.append)
                more.append(interrupt(job.abort, step))  # noqa: B023  # it is called at once

            executor.options(needs=NEEDS if limited else None).submit(body)
            ends_all(executor, step, EVERYTHING if limited else None)
            assert len(ended) == len(set(ended))  # none was called back twice
            if not more[0]:
                break
        assert ended[-1].cancelled()
        assert len(ended) > step / 2
        assert step > 20


def test_a_task_that_is_stopped_at_a_deadline(lab: Any) -> None:
    """A waiter learns of the end though Ctrl-C came as it was aborted."""
    executor = lab.executor(max_concurrency=1, retry_count=0)
    for step in itertools.count(1):
        gate, started = threading.Event(), threading.Event()

        def body() -> None:
            started.set()  # noqa: B023  # it ends before the next is made
            gate.wait(work.PATIENCE)  # noqa: B023

        future = executor.submit(body)
        assert started.wait(work.SOON)
        told: list[Any] = []

        def waits() -> None:
            try:
                told.append(future.result(work.PATIENCE))  # noqa: B023
            except CancelledError as error:
                told.append(error)  # noqa: B023

        waiter = threading.Thread(target=waits, daemon=True)
        waiter.start()
        work.until(lambda: future._parked)  # noqa: B023
        more = interrupt(future.abort, step)
        gate.set()
        waiter.join(work.SOON)
        assert told
        if not more:
            break
