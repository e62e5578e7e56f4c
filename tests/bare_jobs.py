"""Jobs without an executor, for tests of what acts on them."""

from __future__ import annotations

import itertools
from typing import Any

import work

from parallel_exec._core.job import PLACES, Job
from parallel_exec._core.map_chunk import MapChunk, MapResults
from parallel_exec._core.settings import Settings


class Owner:
    """As much of a scheduler as a job asks for."""

    callers: Any = None
    seed = 0

    def __init__(self) -> None:
        self.next_sequence = itertools.count(1 << PLACES, 1 << PLACES).__next__


def new_job(number: int = 1, priority: int = 0) -> Job[Any]:
    """Return a job that was just made; it doubles the number."""
    owner: Any = Owner()
    policy: Any = None
    return Job(owner, Settings(None, policy), work.double, (number,), priority=priority)


def new_chunk(count: int) -> MapChunk:
    """Return the chunk of a map with so many items; each is doubled."""
    owner: Any = Owner()
    policy: Any = None
    results = MapResults(owner, 1 << PLACES)
    items = [list(range(count))]
    return MapChunk(
        owner, Settings(None, policy), work.double, items, range(count), results, results.reserve(count), 0, "map"
    )


def queued_job(number: int = 1, priority: int = 0) -> Job[Any]:
    """Return the job that was added as the number says, at 9."""
    job = new_job(number, priority)
    job.added(number << PLACES, 9.0, None)
    job.queued()
    return job


def live_job(number: int = 1) -> Job[Any]:
    """Return a job with an attempt that is running since 10."""
    job = queued_job(number)
    job.handed_out()
    job.begin("slot", "w1", 10.0)
    return job
