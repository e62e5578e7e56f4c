"""Functions for the tests of what is shared."""

from __future__ import annotations

import os
from typing import Any


class Counted:
    """Says in a log each time that it is made from a pickle."""

    def __init__(self, log: Any) -> None:
        self.log = log

    def __reduce__(self) -> Any:
        return _remake, (self.log,)


def _remake(log: Any) -> Counted:
    log.write(str(os.getpid()))
    return Counted(log)


def kinds(*args: Any, **kwargs: Any) -> list[str]:
    """Return the names of the arguments' types."""
    return [type(value).__name__ for value in (*args, *kwargs.values())]


def add(numbers: bytearray | list[int], more: int = 0) -> int:
    """Return a sum."""
    return sum(numbers) + more


def value_of(handles: list[Any]) -> tuple[str, Any]:
    """Return what a handle in a list is, and its value."""
    return type(handles[0]).__name__, handles[0].value


def pid(_: object) -> int:
    """Return the number of this process."""
    return os.getpid()


def same(value: object, id_there: int) -> bool:
    """Return whether it is the very object."""
    return id(value) == id_there


def mapped() -> int:
    """Return how many memories of ours are mapped in this process."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return sum("memfd:parallel_exec" in line and " r--s " in line for line in maps)


def look(value: Any) -> tuple[int, int]:
    """Return how many memories are mapped in this process, which has one in hand, and its number."""
    return mapped(), os.getpid()


def hand_back(handles: list[Any]) -> Any:
    """Return a handle."""
    return handles[0]


def fail_twice(numbers: list[int], log: Any) -> int:
    """Fail, twice; then return the sum."""
    log.write(sum(numbers))
    if len(log.lines()) <= 2:
        raise OSError("not yet")
    return sum(numbers)
