"""Where an executor's parts are, for tests that look inside: nothing else in the tests knows."""

from __future__ import annotations

from typing import Any


def scheduler(executor: Any) -> Any:
    """Return its scheduler."""
    return executor._scheduler


def monitor(executor: Any) -> Any:
    """Return its state, and the lock that guards it."""
    return scheduler(executor).monitor


def admission(executor: Any) -> Any:
    """Return how its tasks come in."""
    return scheduler(executor).admission


def completion(executor: Any) -> Any:
    """Return how its tasks end."""
    return scheduler(executor).completion


def runner(executor: Any) -> Any:
    """Return what runs its attempts."""
    return completion(executor).runner
