"""Tasks that have a soft timeout."""

from __future__ import annotations

import time
from typing import Any

from parallel_exec import SoftTimeoutError


def spin(seconds: float) -> str:
    """Compute for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return "whole"


def save_what_there_is(seconds: float = 60.0) -> tuple[int, Any]:
    """Compute, and when the time is up return how far that came, and the facts."""
    steps = 0
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            steps += 1
    except SoftTimeoutError as error:
        return steps, (error.task_id, error.soft_timeout, error.attempt, str(error), type(error).__name__)
    return steps, None


def take_about(seconds: float, rounds: int) -> int:
    """End just when the time is up, again and again."""
    until = time.monotonic() + seconds
    count = 0
    while time.monotonic() < until:
        count += 1
    return rounds


def spin_if(number: int) -> int:
    """Compute for too long if the number is 3."""
    if number == 3:
        spin(60.0)
    return number
