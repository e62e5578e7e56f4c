"""What the dask tests run as tasks: in a module that imports next to nothing, as a fresh process imports it in its time."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import work


class UnreadableError(Exception):
    """An exception that cannot be pickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")
        self.lock = threading.Lock()


def raise_unreadable() -> NoReturn:
    """Raise it on the worker."""
    raise UnreadableError(1, 2)


def hold_with_pids(log: work.Log, gate: work.Latch) -> int:
    """Log the attempt's process and its worker's, wait for the gate, and return how many began before."""
    before = len(log.lines())
    log.write(f"{os.getpid()} {os.getppid()}")
    gate.wait()
    return before


def die_at_first(log: work.Log, times: int) -> int:
    """End this process so many times, then return how often it was begun."""
    log.write("began")
    began = len(log.lines())
    if began <= times:
        os._exit(7)
    return began


def log_and_hold_with_parent(log: work.Log, gate: work.Latch, index: int, held: int) -> int:
    """Log the index and the worker's process, and wait for the gate if it is the one that is held."""
    log.write(f"{index} {os.getppid()}")
    if index == held:
        gate.wait()
    return index


def log_and_hold(log: work.Log, gate: work.Latch, index: int, held: int) -> int:
    """Log the index and this process's number, and wait for the gate if it is the one that is held."""
    log.write(f"{index} {os.getpid()}")
    if index == held:
        gate.wait()
    return index


def log_and_die_at_first(log: work.Log, index: int, dies: int) -> int:
    """Log the index, and end this process if it is the one that dies and does so for the first time."""
    log.write(str(index))
    if index == dies and log.lines().count(str(index)) == 1:
        os._exit(7)
    return index
