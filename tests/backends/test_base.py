"""A back end and its runner: the user's settings, and what runs the attempts of one executor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import inside
import pytest
from manual_backend import ManualBackend, ManualRunner

from parallel_exec import ParallelExecError

if TYPE_CHECKING:
    from parallel_exec.backends.base import SchedulerPort


def test_a_back_end_serves_one_executor(lab: Any) -> None:
    """Another is refused, also when the first has ended."""
    backend = ManualBackend()
    lab.executor(backend=backend).shutdown()
    with pytest.raises(
        RuntimeError, match="this ManualBackend serves another executor already: make a new one for each"
    ):
        lab.executor(backend=backend)


def test_the_same_executor_may_start_it_again(lab: Any) -> None:
    """With a new runner, as an idle one does in a forked child."""
    backend = ManualBackend()
    runner = inside.runner(lab.executor(backend=backend))
    other = backend.start(runner.port, 2)
    assert other is not runner
    assert other.port is runner.port


def test_a_back_end_that_failed_to_start_serves_nobody(lab: Any) -> None:
    """So another executor may try."""

    class Reluctant(ManualBackend):
        tries = 0

        def make_runner(self, port: SchedulerPort, limit: int) -> ManualRunner:
            self.tries += 1
            if self.tries == 1:
                raise ParallelExecError("not yet")
            return super().make_runner(port, limit)

    backend = Reluctant()
    with pytest.raises(ParallelExecError, match="not yet"):
        lab.executor(backend=backend)
    assert lab.executor(backend=backend).stats().workers == 1
