"""What a worker reads: batches of tasks.

Guarantees:
    A batch that is larger than the memory this process may have is read all the same, and its tasks are known: each can
    fail on its own, and what comes next in the pipe is not lost.
"""

from __future__ import annotations

from typing import Iterator, NamedTuple

from parallel_exec.backends.process import segments, wire

_COPIED_BELOW = 1 << 12  # bytes of a call up to which a copy costs less than a view


class WorkerTask(NamedTuple):
    """One task of a batch: `wire.TASK`, and what follows it.

    Attributes:
        timeout: seconds; 0 for none.
        ancillary: what is known of the descriptors that go with the call; 0 if there are none.
        low, high: the row of a chunk's items; 0, 0 for a plain task.
        first: the place of a chunk's index 0 in its map.
        name: the task's id, or that of a chunk's map.
        payload: the pickled call; None if there was no room for it.
    """

    serial: int
    attempt: int
    timeout: float
    ancillary: int
    low: int
    high: int
    first: int
    name: str
    payload: segments.Data | None


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
        serial, attempt, timeout, ancillary, low, high, first, name_size, size = wire.TASK.unpack_from(batch, position)
        position += wire.TASK.size
        start = position + name_size
        stop = start + size
        payload = batch[start:stop] if size <= _COPIED_BELOW else memoryview(batch)[start:stop]
        name = _name(batch[position:start])
        yield WorkerTask(serial, attempt, timeout, ancillary, low, high, first, name, payload)
        position = stop


def _skip(fd: int) -> WorkerTask:
    """Read a task, all but its payload."""
    header = wire.read_exactly(fd, wire.TASK.size)
    serial, attempt, timeout, ancillary, low, high, first, name_size, size = wire.TASK.unpack(header)
    name = _name(wire.read_exactly(fd, name_size))
    wire.skip(fd, size)
    return WorkerTask(serial, attempt, timeout, ancillary, low, high, first, name, None)


def _name(data: bytearray) -> str:
    return data.decode(errors="surrogatepass")
