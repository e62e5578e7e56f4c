"""What a worker reads: batches of tasks.

Guarantees:
    A batch that is larger than the memory this process may have is read all the same, and its tasks are known: each can
    fail on its own, and what comes next in the pipe is not lost.
"""

from __future__ import annotations

import os
import sys

from parallel_exec.backends.process import segments, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator, NamedTuple
else:
    from parallel_exec._typing import NamedTuple

_COPIED_BELOW = 1 << 12  # bytes of a call up to which a copy costs less than a view
_AHEAD = 1 << 16  # bytes that are read by one system call: what a pipe holds


class WorkerTask(NamedTuple):
    """One task of a batch: `wire.TASK`, and what follows it.

    Attributes:
        timeout, soft_timeout: seconds; 0 for none.
        ancillary: what is known of the descriptors that go with the call; 0 if there are none.
        names_main: whether the call may name something of the main module.
        low, high: the row of a chunk's items; 0, 0 for a plain task.
        first: the place of a chunk's index 0 in its map; of a plain task, the number in its id, 0 if `name` is all of it.
        name: the task's id, or that of a chunk's map, or what stands before the number.
        granted: what it has of the executor's limits, pickled; empty for nothing.
        payload: the pickled call; None if there was no room for it.
    """

    serial: int
    attempt: int
    timeout: float
    soft_timeout: float
    ancillary: int
    names_main: bool
    low: int
    high: int
    first: int
    name: str
    granted: bytes
    payload: segments.Data | None


class BatchReader:
    """Reads batches from the task pipe: what is there, by one system call."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._ahead = memoryview(bytearray(_AHEAD))  # what was read, and not used yet, is between these two
        self._start = self._stop = 0

    def read(self) -> tuple[Iterator[WorkerTask], int] | None:
        """Return the tasks of the next batch and its epoch; None if there will be no more. Blocks.

        Raises:
            EOFError: the parent is gone.
        """
        if self._stop == self._start:
            self._start, self._stop = 0, self._read_into(self._ahead)
        if self._stop - self._start < wire.BATCH.size:
            self._fill()
        length, epoch, count = wire.BATCH.unpack_from(self._ahead, self._start)
        self._start += wire.BATCH.size
        if not count:
            return None
        if count == wire.FORGET:
            _forget(length)
            return iter(()), epoch
        try:
            return _parse(self._exactly(length), count), epoch
        except MemoryError:
            return iter([self._skip_call() for _ in range(count)]), epoch

    def _fill(self) -> None:
        """Read at least a header ahead."""
        ahead, count = self._ahead, self._stop - self._start
        ahead[:count] = ahead[self._start : self._stop]
        self._start, self._stop = 0, count
        while self._stop < wire.BATCH.size:
            self._stop += self._read_into(ahead[self._stop :])

    def _exactly(self, count: int) -> bytes | bytearray:
        """Return the next `count` bytes. Blocks.

        Raises:
            EOFError: the parent is gone.
            MemoryError: there is no room for so many; none was taken.
        """
        start, there = self._start, self._stop - self._start
        if count <= there:
            data = bytes(self._ahead[start : start + count])
            self._start = start + count
            return data
        whole = bytearray(count)
        whole[:there] = self._ahead[start : self._stop]
        self._start = self._stop = 0
        rest = memoryview(whole)[there:]
        while rest:
            rest = rest[self._read_into(rest) :]
        return whole

    def _read_into(self, room: memoryview) -> int:
        """Read what fits, at least one byte; returns how many that are."""
        count = os.readv(self._fd, [room])
        if not count:
            raise EOFError
        return count

    def _skip_call(self) -> WorkerTask:
        """Read a task, all but its call, which is forgotten."""
        header = self._exactly(wire.TASK.size)
        serial, attempt, timeout, soft, ancillary, main, low, high, first, names, grants, size = wire.TASK.unpack(
            header
        )
        name = self._exactly(names).decode(errors="surrogatepass")
        granted = bytes(self._exactly(grants))
        while size:
            size -= len(self._exactly(min(size, _AHEAD)))
        return WorkerTask(serial, attempt, timeout, soft, ancillary, main, low, high, first, name, granted, None)


def _forget(number: int) -> None:
    """Let go of a shared content, if this process has ever had any."""
    contents: Any = sys.modules.get("parallel_exec.backends._contents")
    if contents is not None:
        contents.forget(number)


def _parse(batch: bytes | bytearray, count: int) -> Iterator[WorkerTask]:
    make, position = tuple.__new__, 0  # half the cost of `WorkerTask(...)`
    for _ in range(count):
        serial, attempt, timeout, soft, ancillary, main, low, high, first, names, grants, size = wire.TASK.unpack_from(
            batch, position
        )
        position += wire.TASK.size
        start = position + names + grants
        stop = start + size
        payload = batch[start:stop] if size <= _COPIED_BELOW else memoryview(batch)[start:stop]
        name = batch[position : position + names].decode(errors="surrogatepass")
        granted = bytes(batch[position + names : start]) if grants else b""
        fixed = (serial, attempt, timeout, soft, ancillary, main, low, high, first, name, granted, payload)
        yield make(WorkerTask, fixed)
        position = stop
