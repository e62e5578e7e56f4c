"""`parallel_exec._core.registry`: the counts behind `stats()`."""

from __future__ import annotations

from typing import Any

from parallel_exec._core.registry import Registry


class Ended:
    """As much of a job as the registry looks at."""

    def __init__(self, how: str, weight: int = 1) -> None:
        self.how = how
        self.weight = weight

    batch = None

    def succeeded(self) -> bool:
        """Return whether it ended well."""
        return self.how == "succeeded"

    def cancelled(self) -> bool:
        """Return whether it was cancelled."""
        return self.how == "cancelled"


def test_each_end_is_counted_once_for_each_call() -> None:
    """A chunk of a `map` counts as many times as it has items."""
    registry = Registry(4)
    jobs: list[Any] = [Ended("succeeded"), Ended("succeeded", 10), Ended("cancelled", 5), Ended("failed")]
    registry.unsettled.update(jobs)
    for job in jobs:
        registry.account(job)
    stats = registry.stats(queued=3, workers=2, abandoned=1, limits=None)
    assert (stats.succeeded, stats.cancelled, stats.failed) == (11, 5, 1)
    assert (stats.queued, stats.workers, stats.abandoned) == (3, 2, 1)
    assert not registry.unsettled


def test_retries_and_timeouts_are_counted_as_they_happen() -> None:
    """A task that is tried again waits; who takes it up again takes it out."""
    registry = Registry(4)
    job: Any = Ended("failed")
    registry.live.add((job, 1))
    registry.count_timeout()
    registry.live.remove((job, 1))
    registry.back_off(job)
    stats = registry.stats(0, 0, 0, None)
    assert (stats.running, stats.waiting, stats.retried, stats.timed_out) == (0, 1, 1, 1)
