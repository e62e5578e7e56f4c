"""Callbacks and hooks, of tasks in processes: they may raise, submit and shut down."""

from __future__ import annotations

import threading
from concurrent.futures import wait
from typing import Any

import processes
import pytest
import work

from parallel_exec import WorkerCrashedError


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_callbacks_that_raise(pool: Any, error: type[BaseException]) -> None:
    """Callbacks of a whole batch raise: every future settles, and the pool goes on."""

    def fail(_: object) -> None:
        raise error

    executor = pool()
    wait([executor.submit(work.same, number) for number in range(200)])
    executor.pause()
    futures = [executor.submit(work.same, number) for number in range(200)]
    for future in futures:
        future.add_done_callback(fail)
    executor.resume()
    assert not wait(futures, timeout=work.SOON).not_done
    assert [future.result(0) for future in futures] == list(range(200))
    assert executor.submit(work.same, 1).result(work.SOON) == 1


def test_callbacks_that_raise_when_a_worker_dies(pool: Any) -> None:
    """The same while a dead worker is reaped: another comes in its place."""

    def fail(_: object) -> None:
        raise SystemExit

    executor = pool(1)
    for _ in range(3):
        executor.pause()
        future = executor.submit(work.die, 1)
        future.add_done_callback(fail)
        executor.resume()
        assert type(future.exception(work.SOON)) is WorkerCrashedError
    assert executor.submit(work.same, 1).result(work.SOON) == 1
    assert len(processes.handles(executor)) == 1


def test_a_callback_may_submit(pool: Any) -> None:
    """From inside a callback the pool takes further tasks."""
    executor = pool()
    chain: list[Any] = []
    over = threading.Event()

    def go_on(future: Any) -> None:
        chain.append(future.result(0))
        if len(chain) == 20:
            over.set()
        else:
            executor.submit(work.same, len(chain)).add_done_callback(go_on)

    executor.submit(work.same, 0).add_done_callback(go_on)
    assert over.wait(work.SOON)
    assert chain == list(range(20))


def test_a_callback_may_shut_down(pool: Any) -> None:
    """`shutdown(wait=True)` from a callback does not wait for the thread that it runs in."""
    executor = pool()
    over = threading.Event()
    future = executor.submit(work.nap, 0.05)
    future.add_done_callback(lambda _: (executor.shutdown(), over.set()))
    assert over.wait(work.SOON)
    executor.shutdown()


def test_a_hook_that_raises(pool: Any) -> None:
    """`on_event` may raise on every event, of workers, too."""

    def fail(_: object) -> None:
        raise ValueError

    executor = pool(2, on_event=fail)
    futures = [executor.submit(work.die, 1) if number % 5 == 0 else executor.submit(work.pid) for number in range(20)]
    assert not wait(futures, timeout=work.SOON).not_done
