"""Fixtures of the process engine's tests."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import processes
import pytest
import work

from parallel_exec import ParallelExecutor
from parallel_exec.backends import _pickling
from parallel_exec.backends.process import segments
from parallel_exec.backends.process.backend import ProcessBackend


class Bench:
    """Makes process pools, latches and logs, and ends them all in the right order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._executors: list[ParallelExecutor] = []
        self._latches: list[work.Latch] = []
        self._logs = 0

    def pool(self, max_concurrency: int = 1, *, backend: dict[str, Any] | None = None, **settings: Any) -> Any:
        """Return a new executor: one worker, no retries, no backoff unless told otherwise."""
        settings = {"retry_count": 0, "backoff": 0.0, "timeout": 30.0, **settings}
        executor = ParallelExecutor(
            max_concurrency=max_concurrency, backend=ProcessBackend(**(backend or {})), **settings
        )
        self._executors.append(executor)
        return executor

    def latch(self) -> work.Latch:
        """Return a new event for tasks in any process; it is set when the test ends."""
        self._latches.append(work.Latch(self.folder / f"latch-{len(self._latches)}"))
        return self._latches[-1]

    def log(self) -> work.Log:
        """Return a new log."""
        self._logs += 1
        return work.Log(self.folder / f"log-{self._logs}")

    def close(self) -> None:
        """End everything; tasks that still run lose their workers."""
        for latch in self._latches:
            latch.set()
        stuck = [executor for executor in self._executors if not _ends(executor)]
        assert not stuck, f"a pool did not end within {work.SOON} s"


def _ends(executor: ParallelExecutor) -> bool:
    """Shut a pool down, killing what does not end by itself; returns whether it has ended."""
    executor.shutdown(wait=False, cancel_futures=True)
    thread = threading.Thread(target=executor.shutdown, daemon=True)
    thread.start()
    thread.join(0.5)
    until = time.monotonic() + work.SOON
    while thread.is_alive() and time.monotonic() < until:
        for pid in processes.workers(executor, ready=False):
            processes.kill(pid)
        thread.join(0.1)
    return not thread.is_alive()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A workbench for process pools."""
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def pool(bench: Bench) -> Callable[..., Any]:
    """What makes a process pool."""
    return bench.pool


@pytest.fixture
def latch(bench: Bench) -> work.Latch:
    """An event for tasks in any process."""
    return bench.latch()


@pytest.fixture
def log(bench: Bench) -> work.Log:
    """A file to which tasks in any process write lines."""
    return bench.log()


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A system that has no shared memory to give, for large buffers."""
    create = segments.create

    def refuse(size: int, fds: list[int]) -> int:
        if size >= segments.THRESHOLD:
            raise OSError(errno.ENOSPC, "no space left, for this test")
        return create(size, fds)

    monkeypatch.setattr(segments, "create", refuse)
    _pickling._warned.clear()
    yield
    _pickling._warned.clear()
