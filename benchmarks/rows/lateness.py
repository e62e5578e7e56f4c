"""How late a timeout comes: p99 over many attempts that outrun theirs.

The attempt itself notes when it began, and the caller when its future settled. Where the library says that the attempt
began earlier (a new worker imports the function first), the earlier time counts, so neither clock can flatter. On
processes the attempt also notes, every half millisecond, that it is still alive, so a kill that comes later than the
result counts as late.
"""

from __future__ import annotations

import math
import mmap
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import _pools
from benchmarks._harness import OURS, REGISTRY, Settings
from benchmarks.work import SLOT, beat

if TYPE_CHECKING:
    from collections.abc import Sequence

THE_LIMIT = "the limit set"
LIMIT = 0.1  # seconds; the timeout of each attempt; long enough for a new worker to reach the function
QUICK_LIMIT = 0.5  # seconds; the same in a smoke run, which may share its machine with anything
HANG_THREADS = 0.8  # seconds; an abandoned thread has to end some time, or they pile up
QUICK_HANG = 30.0  # seconds; the same in a smoke run: few, daemons, and the machine may stall for longer than 0.3 s
HANG_PROCESSES = 60.0  # seconds; the kill ends it


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile: the smallest of the values that 99 % do not exceed."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def limit_of(run: Settings) -> float:
    """Return the timeout of each attempt, in seconds."""
    return QUICK_LIMIT if run.quick else LIMIT


def lateness(began: Sequence[float], ended: Sequence[float], futures: Sequence[Any], limit: float) -> list[float]:
    """Return how late each attempt ended, in seconds, counted from the earlier of its own start and the library's."""
    starts = [min(own, future.task_result().attempts[0].started_at) for own, future in zip(began, futures)]
    return [end - start - limit for start, end in zip(starts, ended)]


class Settled:
    """Notes when each future settled; `times[i]` is written once, by whichever thread settles future i."""

    def __init__(self, count: int) -> None:
        self.times = [math.nan] * count

    def watch(self, index: int, future: Any) -> Any:
        """Note the time at which `future` settles, and return it."""

        def note(_: Any) -> None:
            self.times[index] = time.monotonic()

        future.add_done_callback(note)
        return future


def _await_timeouts(futures: Sequence[Any]) -> None:
    """Wait until all futures settled; all must have timed out.

    Raises:
        RuntimeError: one ended otherwise.
    """
    from parallel_exec import TaskTimeoutError

    for future in futures:
        error = future.exception()
        if not isinstance(error, TaskTimeoutError):
            raise RuntimeError(f"an attempt that outran its timeout ended as {error!r}")


@REGISTRY.row(
    "lateness-threads",
    what="lateness of a timeout on threads, p99 of 200: from the limit until the future has settled",
    goals={THE_LIMIT: 0.020},
    kind="absolute",
)
def lateness_threads(side: str, run: Settings) -> float:
    """Return the p99 lateness in seconds."""
    count, limit = run.count(200, 6), limit_of(run)
    seconds = QUICK_HANG if run.quick else HANG_THREADS
    began = [math.nan] * count
    settled = Settled(count)

    def hang(index: int) -> None:
        began[index] = time.monotonic()
        time.sleep(seconds)

    with _pools.threads(OURS, run.workers) as pool:
        submit = pool.options(timeout=limit, retry_count=0).submit
        futures = [settled.watch(index, submit(hang, index)) for index in range(count)]
        _await_timeouts(futures)
    return p99(lateness(began, settled.times, futures, limit))


@REGISTRY.row(
    "lateness-processes",
    what="lateness of a timeout on processes, p99 of 200: from the limit until process dead and future settled",
    goals={THE_LIMIT: 0.050},
    kind="absolute",
)
def lateness_processes(side: str, run: Settings) -> float:
    """Return the p99 lateness in seconds."""
    count, limit = run.count(200, 6), limit_of(run)
    settled = Settled(count)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "beats")
        path.write_bytes(bytes(SLOT.size * count))
        with _pools.processes(OURS, run.workers) as pool:
            submit = pool.options(timeout=limit, retry_count=0).submit
            hang = [submit(beat, str(path), index, HANG_PROCESSES) for index in range(count)]
            futures = [settled.watch(index, future) for index, future in enumerate(hang)]
            _await_timeouts(futures)
        beats = _read_beats(path)  # after the pool's end: a straggler would still be beating before it
    ended = [max(end, last) for (_, last), end in zip(beats, settled.times)]
    return p99(lateness([first for first, _ in beats], ended, futures, limit))


def _read_beats(path: Path) -> list[tuple[float, float]]:
    """Return the first and last beat of each attempt.

    Raises:
        RuntimeError: an attempt never got as far as its function, so the library's clock cannot be checked.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as slots:
        beats = [(first, last) for first, last in SLOT.iter_unpack(slots[:])]
    never = sum(first == 0.0 for first, _ in beats)
    if never:
        raise RuntimeError(f"{never} of {len(beats)} attempts timed out before their function began")
    return beats


@REGISTRY.row(
    "replacement",
    what="one worker, killed at a timeout: from the limit until the next task on its replacement is done; median",
    goals={THE_LIMIT: 0.010},
    kind="absolute",
    pick="median",
    rounds=10,
)
def replacement(side: str, run: Settings) -> float:
    """Return the seconds from the limit of the first task, counted from its start, until the result of the second."""
    limit = limit_of(run)
    with _pools.processes(OURS, 1) as pool:
        pool.submit(pow, 2, 3).result()
        late = pool.options(timeout=limit, retry_count=0).submit(time.sleep, HANG_PROCESSES)
        pool.submit(pow, 2, 3).result()
        end = time.monotonic()
        return end - late.task_result().attempts[0].started_at - limit
