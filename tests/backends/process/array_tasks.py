"""Tasks with large arrays."""

from __future__ import annotations

from typing import Any

import numpy
import work


def total(array: Any) -> float:
    """Return the sum."""
    return float(array.sum())


def make(number: int, size: int) -> Any:
    """Return an array of so many equal numbers."""
    return numpy.full(size, number)


def add_in_place(array: Any, number: int) -> Any:
    """Add to the argument itself."""
    array += number
    return array


def spoil_then_sum(array: Any, log: work.Log) -> float:
    """Overwrite the argument and fail, twice; then return its sum."""
    log.write(total(array))
    if len(log.lines()) <= 2:
        array[:] = 99
        raise OSError("not yet")
    return total(array)


def spoil_and_die_once(array: Any, log: work.Log) -> float:
    """Overwrite the argument and die, once; then return its sum."""
    before = total(array)
    if not log.lines():
        array[:] = 99
        work.die_once(log)
    return before


def allocate(size: int) -> int:
    """Take so many bytes for a moment."""
    return len(bytearray(size))
