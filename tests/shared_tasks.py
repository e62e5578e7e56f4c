"""Functions for the tests of what is shared."""

from __future__ import annotations

import os
import time
from typing import Any

import work

from parallel_exec import ParallelExecutor
from parallel_exec.backends import _contents


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


class Unreadable:
    """Pickles, and cannot be unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def write_at(address: str) -> None:
    """Open a memory for writing, and write."""
    descriptor = os.open(address, os.O_RDWR)
    try:
        os.pwrite(descriptor, b"x", 100)
    finally:
        os.close(descriptor)


def die_once(array: Any, log: Any) -> float:
    """Die, the first time; then return the sum."""
    array.sum()
    work.die_once(log)
    return float(array.sum())


def hang_once(array: Any, log: Any) -> float:
    """Hang, the first time; then return the sum."""
    array.sum()
    if not log.lines():
        log.write("hangs")
        time.sleep(work.FOREVER)
    return float(array.sum())


def nap(*_: object) -> int:
    """Take a moment, so that another worker has the next; return this process's number."""
    time.sleep(0.2)
    return os.getpid()


def load_and_count(key: tuple[int, str, str]) -> tuple[Any, int]:
    """Load a content as a call does that has it; return it, and how many this process keeps."""
    value = _contents.load(*key)
    return value, len(_contents._kept)


def hand_on(handles: list[Any]) -> float:
    """Give a handle to an executor of this process's own."""
    with ParallelExecutor(backend="process", max_concurrency=1) as executor:
        return float(executor.submit(sum_of, handles[0]).result())


def sum_of(array: Any) -> float:
    """Return the sum of an array."""
    return float(array.sum())


def sums(shared: Any) -> list[float]:
    """Return the sums of arrays."""
    return [float(array.sum()) for array in shared["arrays"]]


def add_to(array: Any, number: int) -> float:
    """Return the first element, with a number added."""
    return float(array[0]) + number


class Plain:
    """Has a number."""

    x = 3


def address_of(handles: list[Any]) -> str:
    """Return where this process has found what is shared."""
    address: str = handles[0].content().address()
    return address


def hand_on_value(handles: list[Any]) -> float:
    """Return the sum of the value of a handle."""
    return sum_of(handles[0].value)


def fail_as(value: Any, first: Any = None) -> None:
    """Fail, and say what was given."""
    raise ValueError(type(value).__name__)


_kept: list[Any] = []


def keep(handle: Any) -> None:
    """Keep a handle in this process."""
    _kept.append(handle)


def sum_of_kept() -> int:
    """Return the sum of what a handle stands for that was kept."""
    return sum(_kept[0].value)
