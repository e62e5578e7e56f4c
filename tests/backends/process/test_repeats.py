"""The hint for those who send the same large buffer again and again."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import numpy
import pytest
import shared_tasks

from parallel_exec.backends.process import repeats


@pytest.fixture
def hints(caplog: pytest.LogCaptureFixture) -> Any:
    """The hints that were logged."""
    caplog.set_level(logging.WARNING, "parallel_exec")
    return lambda: [record.getMessage() for record in caplog.records if "executor.share" in record.getMessage()]


def test_the_third_time_is_told_once(bench: Any, hints: Any) -> None:
    """It names the size, the task, and what to write instead; and not again."""
    pool, array = bench.pool(), numpy.ones(repeats.LARGE // 8 + 1)
    for times in range(5):
        pool.options(id=f"sum-{times}").submit(shared_tasks.sum_of, array).result()
        assert len(hints()) == (times >= 2)
    assert hints()[0].startswith(
        "the same 10 MB have been sent to worker processes 3 times, last with task 'sum-2': shared = "
    )


def test_rows_of_a_map_count(bench: Any, hints: Any) -> None:
    """A partial that has it is sent with each of them."""
    array = numpy.ones(repeats.LARGE // 8 + 1)
    assert sum(bench.pool().map(partial(shared_tasks.add_to, array), range(20))) == 20 + sum(range(20))
    assert len(hints()) == 1


def test_what_is_not_the_same_is_not_told_of(bench: Any, hints: Any) -> None:
    """Neither other arrays of that size, nor smaller ones; nor what is shared."""
    pool = bench.pool()
    for number in range(4):
        pool.submit(shared_tasks.sum_of, numpy.full(repeats.LARGE // 8 + 1, number)).result()
    small, shared = numpy.ones(repeats.LARGE // 8), pool.share(numpy.ones(repeats.LARGE // 8 + 1))
    for _ in range(4):
        pool.submit(shared_tasks.sum_of, small).result()
        pool.submit(shared_tasks.sum_of, shared).result()
    assert hints() == []


def test_only_so_many_are_remembered(bench: Any, hints: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes again after many others is new."""
    monkeypatch.setattr(repeats, "_MOST", 2)
    pool = bench.pool()
    for number in (1, 2, 3, 1, 2, 3, 1):
        pool.submit(shared_tasks.sum_of, numpy.full(repeats.LARGE // 8 + 1, number)).result()
    assert hints() == []
