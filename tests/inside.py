"""Where an executor's parts are, for tests that look inside: nothing else in the tests knows."""

from __future__ import annotations

from typing import Any


def scheduler(executor: Any) -> Any:
    """Return its scheduler."""
    return executor._scheduler


def monitor(executor: Any) -> Any:
    """Return its state, and the lock that guards it."""
    return scheduler(executor).monitor


def runner(executor: Any) -> Any:
    """Return what runs its attempts."""
    return scheduler(executor).completion.runner
