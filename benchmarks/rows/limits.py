"""What limits cost: tasks that need nothing of them, tasks that do, and many that wait; and what they are for.

Both ends of each ratio are ours. All are on threads, with no-op tasks that are staged and run by `execute_all`; but for the
last, which asks a server.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks import _pools, _service
from benchmarks._harness import OURS, REGISTRY, Settings
from benchmarks.work import nothing

LIMITS: dict[str, Any] = {"db": 2}


def _seconds_each(
    workers: int, count: int, rounds: int, limits: dict[str, Any] | None, needs: dict[str, Any] | None
) -> float:
    """Return seconds a task from `Task(...)` to the result, in so many rounds of `count` tasks."""
    from parallel_exec import ParallelExecutor, Task  # here, so that --list works without

    settings: dict[str, Any] = {} if limits is None else {"limits": limits}
    own: dict[str, Any] = {} if needs is None else {"needs": needs}
    with ParallelExecutor(
        max_concurrency=workers, timeout=_pools.TIMEOUT, retry_count=_pools.RETRIES, **settings
    ) as pool:
        start = time.monotonic()
        for _ in range(rounds):
            for _ in range(count):
                pool.add_task(Task(nothing, **own))
            if len(pool.execute_all()) != count:
                raise RuntimeError(f"other than {count} results of {count} tasks")
        return (time.monotonic() - start) / (count * rounds)


@REGISTRY.row(
    "limits-unneeded",
    what="100,000 no-op tasks that need no limit, in an executor that has one, against one that has none",
    goals={"no limits": 1.02},
    per="a task",
)
def limits_unneeded(side: str, run: Settings) -> float:
    """Return seconds a task, with a limit that nobody needs, or without any."""
    return _seconds_each(run.workers, run.count(100_000, 1_000), 1, LIMITS if side == OURS else None, None)


@REGISTRY.row(
    "limits-count",
    what="100,000 no-op tasks that all need one count, against as many that need nothing",
    goals={"no needs": 1.3},
    per="a task",
)
def limits_count(side: str, run: Settings) -> float:
    """Return seconds a task, each with needs, or without."""
    ours = side == OURS
    return _seconds_each(
        run.workers, run.count(100_000, 1_000), 1, LIMITS if ours else None, {"db": 1} if ours else None
    )


@REGISTRY.row(
    "limits-scale",
    what="cost a no-op task with 1,000,000 that wait for one limit, against 1,000",
    goals={"1,000 waiting": 1.6},
    per="a task",
)
def limits_scale(side: str, run: Settings) -> float:
    """Return seconds a task, with many that wait (`OURS`) or 1,000 (the peer), which pass many times."""
    many = side == OURS
    count = run.count(1_000_000, 20_000) if many else 1_000
    rounds = 1 if many else run.count(100, 5)
    return _seconds_each(run.workers, count, rounds, {"db": 1}, {"db": 1})


@REGISTRY.row(
    "limits-http",
    what="2,000 requests at 50 a second to a server that answers 429 to more, in threads",
    goals={"40 s": 42.0},
    kind="absolute",
)
def limits_http(side: str, run: Settings) -> float:
    """Return the seconds until all are answered; fewer than 20 may be refused."""
    from parallel_exec import ParallelExecutor, Rate  # here, so that --list works without

    count = run.count(2_000, 50)
    with (
        _service.serve(50) as server,
        ParallelExecutor(limits={"api": Rate(50)}, max_concurrency=8, timeout=_pools.TIMEOUT, retry_count=10) as pool,
    ):
        start = time.monotonic()
        submit = pool.options(needs={"api": 1}).submit
        futures = [submit(_service.get, server.server_address[1]) for _ in range(count)]
        for future in futures:
            future.result()
        elapsed = time.monotonic() - start
    if server.refused >= 20:
        raise RuntimeError(f"{server.refused} answers of 429")
    return elapsed
