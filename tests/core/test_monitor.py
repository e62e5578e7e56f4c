"""What is held of the limits, as the monitor lists it."""

from __future__ import annotations

from typing import Any

from parallel_exec._core.monitor import Monitor


class _Adding:
    """Stands in for a job; to look at what it holds runs what a signal handler does: it adds another."""

    def __init__(self, unsettled: set[Any]) -> None:
        self._unsettled = unsettled

    @property
    def grant(self) -> Any:
        """What it holds."""
        self._unsettled.add(object())
        return self


def test_what_is_held_may_be_listed_while_a_job_is_added() -> None:
    """A signal handler, or a finalizer, may come while the jobs are gone through, as a limit is changed."""
    monitor = Monitor(4)
    unsettled: Any = monitor.registry.unsettled
    jobs = [_Adding(unsettled) for _ in range(3)]
    unsettled.update(jobs)
    assert set(monitor.grants()) == set(jobs)
