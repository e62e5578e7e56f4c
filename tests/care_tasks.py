"""What the tests of workers that look after themselves run as tasks."""

from __future__ import annotations

from typing import Any

from parallel_exec import current_task


def seed(*_: Any) -> int:
    """Return the current task's seed."""
    return current_task().seed


def seed_of_a_retry(log: Any, failures: int) -> int:
    """Fail so many times, each time noting the seed; then return it."""
    log.write(str(current_task().seed))
    if len(log.lines()) <= failures:
        raise ValueError("not yet")
    return current_task().seed
