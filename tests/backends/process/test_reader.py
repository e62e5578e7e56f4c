"""What a worker makes of the bytes in its task pipe, however they come."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Iterator

import pytest

from parallel_exec.backends.process import wire
from parallel_exec.backends.process.child import reader
from parallel_exec.backends.process.child.reader import BatchReader, WorkerTask

if TYPE_CHECKING:
    from collections.abc import Sequence

PLAIN = (
    1,
    60.0,
    0.0,
    0,
    False,
    0,
    0,
    0,
)  # attempt, timeout, soft timeout, ancillary, whether it names main, low, high, first


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def batch(calls: Sequence[bytes], serial: int = 1, epoch: int = 0) -> bytes:
    """Return a batch of plain tasks, numbered from `serial`."""
    body = b""
    for place, call in enumerate(calls):
        name = f"task-{serial + place}".encode()
        body += wire.TASK.pack(serial + place, *PLAIN, len(name), 0, len(call)) + name + call
    return wire.BATCH.pack(len(body), epoch, len(calls)) + body


def read(batches: BatchReader) -> tuple[list[tuple[int, str, Any]], int] | None:
    """Return what matters of the next batch."""
    got = batches.read()
    return None if got is None else ([(task.serial, task.name, task.payload) for task in got[0]], got[1])


def test_batches_that_come_together_are_read_one_by_one(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the pipe is read by one system call, and each batch is returned by itself."""
    out, into = pipe
    calls: list[int] = []
    readv = os.readv
    monkeypatch.setattr(os, "readv", lambda fd, rooms: calls.append(fd) or readv(fd, rooms))
    os.write(into, batch([b"one", b"two"]) + batch([b"three"], 3, epoch=1) + wire.BATCH.pack(0, 0, 0))
    batches = BatchReader(out)
    assert read(batches) == ([(1, "task-1", b"one"), (2, "task-2", b"two")], 0)
    assert read(batches) == ([(3, "task-3", b"three")], 1)
    assert read(batches) is None
    assert len(calls) == 1


def test_batch_that_comes_byte_by_byte(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A header or a call that arrives in pieces is put together, and what follows it is not lost."""
    out, into = pipe
    readv = os.readv
    monkeypatch.setattr(os, "readv", lambda fd, rooms: readv(fd, [rooms[0][:1]]))
    os.write(into, batch([b"one"]) + batch([b"two"], 2))
    batches = BatchReader(out)
    assert read(batches) == ([(1, "task-1", b"one")], 0)
    assert read(batches) == ([(2, "task-2", b"two")], 0)


def test_what_an_attempt_was_granted(pipe: tuple[int, int]) -> None:
    """It stands between the id and the call, and is empty where nothing is needed."""
    out, into = pipe
    body = b""
    for serial, granted in ((1, b"granted"), (2, b"")):
        body += wire.TASK.pack(serial, *PLAIN, 4, len(granted), 4) + b"task" + granted + b"call"
    os.write(into, wire.BATCH.pack(len(body), 0, 2) + body)
    got = BatchReader(out).read()
    assert got is not None
    assert [(task.name, task.granted, task.payload) for task in got[0]] == [
        ("task", b"granted", b"call"),
        ("task", b"", b"call"),
    ]


def test_more_than_a_pipe_holds(pipe: tuple[int, int]) -> None:
    """A large call arrives whole, and so does what comes with its end."""
    out, into = pipe
    large = os.urandom(300_000)
    data = batch([b"small"]) + batch([large, b"behind"], 2) + batch([b"last"], 4)
    writer = threading.Thread(target=wire.write_all, args=(into, data))
    writer.start()
    batches = BatchReader(out)
    assert read(batches) == ([(1, "task-1", b"small")], 0)
    assert read(batches) == ([(2, "task-2", large), (3, "task-3", b"behind")], 0)
    assert read(batches) == ([(4, "task-4", b"last")], 0)
    writer.join()


@pytest.mark.parametrize("cut", [0, 5, 40])
def test_parent_that_is_gone(cut: int) -> None:
    """The end of the pipe raises, between batches and in the middle of one."""
    out, into = os.pipe()
    os.write(into, batch([b"one"])[:cut])
    os.close(into)
    with pytest.raises(EOFError):
        BatchReader(out).read()
    os.close(out)


def test_no_room_for_a_batch(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of a batch that there is no memory for is known, without its bytes; the next batch comes whole."""
    out, into = pipe

    def refuse(count: int) -> bytearray:
        if count > 150_000:
            raise MemoryError
        return bytearray(count)

    monkeypatch.setattr(reader, "bytearray", refuse, raising=False)
    data = batch([b"small", bytes(200_000)], 7, epoch=3) + batch([b"next"], 9, epoch=3)
    writer = threading.Thread(target=wire.write_all, args=(into, data))
    writer.start()
    batches = BatchReader(out)
    got = batches.read()
    assert got is not None
    tasks: list[WorkerTask] = list(got[0])
    assert [(task.serial, task.name, task.timeout, task.payload) for task in tasks] == [
        (7, "task-7", 60.0, None),
        (8, "task-8", 60.0, None),
    ]
    assert got[1] == 3
    assert read(batches) == ([(9, "task-9", b"next")], 3)
    writer.join()
