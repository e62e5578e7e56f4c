"""What every back end does alike: seeds that belong to tasks."""

from __future__ import annotations

from functools import partial
from typing import Any

import care_tasks
from backend_kinds import ALL, SPAWN_AND_FORK, over

from parallel_exec import Task

EVERY = (*ALL, *SPAWN_AND_FORK)
SEED_OF_A = 1674081855184152700  # of the task "a" with seed=7: what a run has in its log must be the same next year


@over(EVERY)
def test_a_seed_is_made_of_the_executors_and_the_id(lab: Any) -> None:
    """It is the same in every back end, in any order of tasks; others have others."""
    executor = lab.executor(seed=7, max_concurrency=2)
    for name in ("b", "a", "c"):
        executor.add_task(Task(care_tasks.seed, id=name))
    seeds = {result.task.id: result.unwrap() for result in executor.execute_all()}
    assert seeds["a"] == SEED_OF_A
    assert len(set(seeds.values())) == 3
    assert all(0 <= seed < 1 << 64 for seed in seeds.values())


@over(EVERY)
def test_every_attempt_has_the_same_seed(lab: Any) -> None:
    """A retry begins as the attempt before it did."""
    log = lab.log()
    executor = lab.executor(seed=7, retry_count=2, backoff=0)
    executor.add_task(Task(partial(care_tasks.seed_of_a_retry, log, 2), id="a"))
    [result] = executor.execute_all()
    assert [*map(int, log.lines()), result.unwrap()] == [SEED_OF_A] * 4


@over(EVERY)
def test_items_of_a_map_have_seeds(lab: Any) -> None:
    """Each its own, and the same in another run."""
    first = list(lab.executor(seed=7).map(care_tasks.seed, range(5)))
    assert len(set(first)) == 5
    assert list(lab.executor(seed=7).map(care_tasks.seed, range(5))) == first


@over(EVERY)
def test_without_a_seed_each_executor_has_its_own(lab: Any) -> None:
    """What is not fixed differs from run to run."""
    assert lab.executor().submit(care_tasks.seed).result() != lab.executor().submit(care_tasks.seed).result()
