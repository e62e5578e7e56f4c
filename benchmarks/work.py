"""What the benchmarks run: functions that a worker process can import by name, whatever pool started it.

Standard library only, numpy where a function says so: workers pay for whatever stands at the top of this file.
"""

from __future__ import annotations

import importlib
import mmap
import os
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

SLOT = struct.Struct("dd")  # (first beat, last beat) of one task, seconds of time.monotonic()


def nothing(item: Any = None) -> Any:
    """Return `item`: the no-op task."""
    return item


def tiny(item: int) -> int:
    """Return `item` plus 1: the tiny item of a `map`."""
    return item + 1


def pause(seconds: float) -> None:
    """Sleep for `seconds`: a long task that needs no core, so that the rest is measured and not the machine."""
    time.sleep(seconds)


def whoami(seconds: float) -> tuple[int, int]:
    """Hold a worker for `seconds`, then return its process id and thread id."""
    time.sleep(seconds)
    return os.getpid(), threading.get_ident()


def whoami_with_numpy(seconds: float) -> tuple[int, int]:
    """Do as `whoami`, and import numpy, which takes its time only once a worker."""
    importlib.import_module("numpy")

    return whoami(seconds)


def spin(loops: int) -> int:
    """Keep one core busy for a fixed number of loops, and return a number that depends on all of them."""
    value = 1
    for _ in range(loops):
        value = (value * 1103515245 + 12345) & 0x7FFFFFFF
    return value


def spin_share(loops: int, count: int, start: Any, elapsed: Any) -> None:
    """Run `spin(loops)` `count` times in a bare process, no pool involved, and report the seconds it took.

    Args:
        loops: of one task.
        count: tasks that this process is to run, one after another.
        start: a barrier that all processes of the measurement wait at.
        elapsed: a `SimpleQueue` that takes the seconds.
    """
    spin(loops)  # warmed, as the pools' workers are
    start.wait()
    began = time.monotonic()
    for _ in range(count):
        spin(loops)
    elapsed.put(time.monotonic() - began)


def spin_bare(context: BaseContext, loops: int, count: int, lanes: int) -> float:
    """Return the seconds that `count` times `spin(loops)` take when `lanes` bare processes share them. Blocks.

    This is "work ÷ cores" as the machine can do it: total seconds of work, measured with `lanes` cores busy, divided
    by `lanes`.
    """
    start = context.Barrier(lanes)
    elapsed = context.SimpleQueue()
    shares = [count // lanes + (lane < count % lanes) for lane in range(lanes)]
    processes = [
        context.Process(target=spin_share, args=(loops, share, start, elapsed))  # type: ignore[attr-defined]
        for share in shares
    ]
    for process in processes:
        process.start()
    total: float = sum(elapsed.get() for _ in processes)
    for process in processes:
        process.join()
    return total / lanes


def array_in(array: Any) -> float:
    """Read one element of each page of `array` (float64), so that none of it can be left behind. Needs numpy."""
    return float(array[::512].sum())


def multiply(size: int, times: int) -> None:
    """Multiply two square matrices of so many rows, again and again. Needs numpy."""
    matrix = importlib.import_module("numpy").ones((size, size))
    for _ in range(times):
        matrix @ matrix


def array_in_out(array: Any) -> Any:
    """Write one element of each page of `array` (float64) and return it whole. Needs numpy."""
    array[::512] += 1.0
    return array


def array_at(array: Any, number: int) -> float:
    """Read one element of `array` (float64). Needs numpy."""
    return float(array[number * 512 % len(array)])


def array_in_at(array: Any, number: int) -> float:
    """Read one element of each page of `array` (float64), and add a number. Needs numpy."""
    return array_in(array) + number


def beat(path: str, index: int, seconds: float) -> None:
    """Write the time into slot `index` of the file at `path`, again and again for `seconds` or until killed.

    What stands there afterwards is when the task began and when it was last seen alive, by `time.monotonic()`, which
    all processes of a machine share on Linux; nothing in it comes from the pool that is measured.
    """
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as slots:
        began = now = time.monotonic()
        while now - began < seconds:
            SLOT.pack_into(slots, index * SLOT.size, began, now)
            time.sleep(0.0005)
            now = time.monotonic()
