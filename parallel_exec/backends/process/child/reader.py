"""What a worker reads: batches of tasks; imports the standard library and the modules beside it only.

Guarantees:
    A batch that is larger than the memory this process may have is read all the same, and its tasks are known: each can
    fail on its own, and what comes next in the pipe is not lost.
"""

from __future__ import annotations

from typing import Any, Iterator, NamedTuple

from parallel_exec._current import call_name, id_of
from parallel_exec.backends.process import segments, wire

_SMALL = 1 << 12  # bytes of a call up to which a copy costs less than a view


class WorkerTask(NamedTuple):
    """One task of a batch; also what `current_task()` asks.

    Attributes:
        name: its id; for a part the map's.
        payload: the pickled call; None if there was no room for it.
        low, high: a part's stretch of items; 0, 0 for a plain task.
        number: what a plain task's id is made of, with its function's name, 0 if it has one; or the place of a part's index
            0 in its map.
        start: when it began, by `time.monotonic()`.
        fn: what it calls, once that was loaded.
    """

    serial: int
    attempt: int
    timeout: float
    segments: int
    name: str
    payload: segments.Data | None
    low: int
    high: int
    number: int
    start: float = 0.0
    fn: Any = None

    @property
    def id(self) -> str:
        """The task's id."""
        return id_of(call_name(self.fn), self.number) if self.number else self.name

    def view(self, number: int) -> Any:
        """Return what `current_task()` shows."""
        from parallel_exec.task import CurrentTask

        timeout = self.timeout or None
        deadline = None if timeout is None else self.start + timeout
        return CurrentTask(self.id, self.attempt, deadline, timeout, lambda: False)  # an aborted one is killed


def read_batch(fd: int) -> tuple[Iterator[WorkerTask], int] | None:
    """Return the tasks of the next batch and its epoch; None if there will be no more. Blocks.

    Raises:
        EOFError: the parent is gone.
    """
    length, epoch, count = wire.BATCH.unpack(wire.read_exactly(fd, wire.BATCH.size))
    if not count:
        return None
    try:
        return _parse(wire.read_exactly(fd, length), count), epoch
    except MemoryError:
        return iter([_skip(fd) for _ in range(count)]), epoch


def _parse(batch: bytearray, count: int) -> Iterator[WorkerTask]:
    position = 0
    for _ in range(count):
        serial, attempt, timeout, segments, name_size, size, low, high, number = wire.TASK.unpack_from(batch, position)
        position += wire.TASK.size
        start = position + name_size
        stop = start + size
        payload = batch[start:stop] if size <= _SMALL else memoryview(batch)[start:stop]
        name = _name(batch[position:start]) if name_size else ""
        yield WorkerTask(serial, attempt, timeout, segments, name, payload, low, high, number)
        position = stop


def _skip(fd: int) -> WorkerTask:
    """Read a task, all but its payload."""
    header = wire.read_exactly(fd, wire.TASK.size)
    serial, attempt, timeout, segments, name_size, size, low, high, number = wire.TASK.unpack(header)
    name = _name(wire.read_exactly(fd, name_size))
    wire.skip(fd, size)
    return WorkerTask(serial, attempt, timeout, segments, name, None, low, high, number)


def _name(data: bytearray) -> str:
    return data.decode(errors="surrogatepass")
