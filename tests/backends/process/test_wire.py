"""How frames are laid out, and what a parent finds in a journal whose writer was killed or went on meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import signal
import struct
import time
import warnings
from typing import Any, Callable, Iterator

import pytest

from parallel_exec.backends._outcomes import RAISED, RETURNED
from parallel_exec.backends.process import segments, wire
from parallel_exec.backends.process.payload import values_of


@pytest.fixture
def both() -> Iterator[tuple[wire.Journal, wire.Journal]]:
    """A journal as its worker has it, and as the parent has it."""
    fd = segments.create(wire.FILE_SIZE, [])
    writer, reader = wire.Journal(fd), wire.Journal(fd)
    os.close(fd)
    writer.sent()
    yield writer, reader
    writer.close()
    reader.close()


def frame(serial: int, payload: bytes = b"value") -> bytes:
    """Return a frame's bytes."""
    return wire.encode(RETURNED, serial, 1.5, 2.5, 0, payload)


def serials(frames: Any) -> list[int]:
    """Return whose frames these are."""
    return [frame.serial for frame in frames]


# ── frames ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_frame_comes_out_as_it_went_in() -> None:
    """Decoding undoes encoding."""
    data = wire.encode(RAISED, 7, 1.25, 2.5, 1, b"abc")
    assert wire.decode(data, len(data)) == ([wire.Frame(RAISED, 7, 1.25, 2.5, 1, b"abc")], len(data))


def test_a_torn_frame_is_not_there() -> None:
    """Wherever a stream of frames is cut off, exactly the whole ones are found."""
    whole = [frame(number, b"x" * number) for number in range(1, 6)]
    data = b"".join(whole)
    ends = [sum(map(len, whole[: count + 1])) for count in range(5)]
    for cut in range(len(data) + 1):
        there = [end for end in ends if end <= cut]
        found, stop = wire.decode(data, cut)
        assert (serials(found), stop) == (list(range(1, len(there) + 1)), max(there, default=0))


def test_what_lies_behind_the_end_is_not_read() -> None:
    """Only the bytes that are said to be there count."""
    data = frame(1) + frame(2)
    assert serials(wire.decode(data, len(frame(1)))[0]) == [1]


# ── journals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_untouched_journal_is_empty() -> None:
    """Before the worker has written anything, nothing runs and nothing has ended."""
    fd = segments.create(wire.FILE_SIZE, [])
    reader = wire.Journal(fd)
    os.close(fd)
    assert (reader.frames(), reader.running()) == ([], wire.IDLE)
    reader.close()


def test_what_a_worker_wrote_as_it_died_lies_behind_the_journal() -> None:
    """There is nothing until then; and what is more than there is room for is cut off."""
    fd = segments.create(wire.FILE_SIZE, [])
    reader = wire.Journal(fd)
    assert reader.dump() == b""
    os.pwrite(fd, b"words", wire.JOURNAL_SIZE)
    assert reader.dump() == b"words"
    os.pwrite(fd, b"x" * wire.FILE_SIZE, wire.JOURNAL_SIZE)
    assert reader.dump() == b"x" * (wire.FILE_SIZE - wire.JOURNAL_SIZE)
    assert reader.frames() == []
    os.close(fd)
    reader.close()


def test_the_parent_sees_what_runs(both: Any) -> None:
    """A started task is running, with its start, until it has ended."""
    writer, reader = both
    writer.started(5, 12.5)
    assert reader.running() == (5, 12.5, False)
    writer.finished(frame(5))
    assert reader.running().serial == 0


def test_the_parent_sees_that_a_call_is_still_loaded(both: Any) -> None:
    """A negative start says so: one store, which cannot be torn."""
    writer, reader = both
    writer.loading(5, 12.5)
    assert reader.running() == (5, 12.5, True)


def test_the_parent_sees_what_has_ended(both: Any) -> None:
    """Frames are there as soon as they are noted, in order, also when the next task runs already."""
    writer, reader = both
    for serial in (1, 2, 3):
        writer.started(serial, 1.0)
        writer.finished(frame(serial))
    writer.started(4, 2.0)
    assert serials(reader.frames()) == [1, 2, 3]
    assert reader.frames()[0] == wire.Frame(RETURNED, 1, 1.5, 2.5, 0, b"value")
    assert reader.running() == (4, 2.0, False)


def test_a_task_whose_frame_went_through_the_pipe_is_not_running(both: Any) -> None:
    """`idle` ends a task without a frame."""
    writer, reader = both
    writer.started(5, 12.5)
    writer.idle()
    assert reader.running().serial == 0
    assert reader.frames() == []


def test_what_is_unsent_is_what_the_parent_sees(both: Any) -> None:
    """The bytes for the pipe are the frames in the journal; once sent, they are gone from it."""
    writer, reader = both
    writer.finished(frame(1))
    writer.finished(frame(2))
    assert writer.unsent() == frame(1) + frame(2)
    writer.sent()
    assert writer.unsent() == b""
    assert reader.frames() == []
    writer.finished(frame(3))
    assert serials(reader.frames()) == [3]


def test_a_frame_that_does_not_fit_is_not_noted(both: Any) -> None:
    """A full journal says so, and stays as it was."""
    writer, reader = both
    big = frame(1, b"x" * (wire.JOURNAL_SIZE // 2))
    assert writer.finished(big)
    assert not writer.finished(big)
    assert serials(reader.frames()) == [1]
    writer.sent()
    assert writer.finished(big)
    assert not writer.finished(frame(2, b"x" * wire.JOURNAL_SIZE))


@pytest.mark.parametrize(("row", "numbers"), [(wire.INTS, [1, -2, 3]), (wire.FLOATS, [0.5, -1.5, 2.5])])
def test_the_parent_sees_the_numbers_of_a_row(both: Any, row: int, numbers: list[Any]) -> None:
    """Those that were noted, with the number of the first item; the next row begins where this one did."""
    writer, reader = both
    cells = writer.ints if row == wire.INTS else writer.floats
    for _ in range(2):
        assert writer.open_row(row, 7, 1.5) == wire.FIRST_CELL * wire.CELL
        assert reader.frames() == []
        for count, number in enumerate(numbers, 1):
            cells[wire.FIRST_CELL + count - 1] = number
            writer.words[wire.END] = (wire.FIRST_CELL + count) * wire.CELL
            [found] = reader.frames()
            assert (found.kind, found.serial, found.start, found.ancillary) == (row, 7, 1.5, count)
            assert values_of(found, NotImplemented) == (numbers[:count], {})
        assert writer.close_row() == (b"", found.payload)
        writer.sent()


def _fork() -> int:
    """Fork, though there may be threads: the child does nothing that could wait for one of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


@contextlib.contextmanager
def writing(write: Callable[[wire.Journal], None]) -> Iterator[wire.Journal]:
    """Return the parent's view of a journal that a process of its own writes to as fast as it can."""
    fd = segments.create(wire.FILE_SIZE, [])
    child = _fork()
    if not child:
        try:
            write(wire.Journal(fd))
        finally:
            os._exit(1)
    journal = wire.Journal(fd)
    os.close(fd)
    try:
        yield journal
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        journal.close()


def _start_and_end(journal: wire.Journal) -> None:
    """Start and end tasks; each start is the number of its task."""
    for serial in itertools.count(1):
        journal.started(serial, float(serial))
        if not journal.finished(b"x" * 40):
            journal.idle()
            journal.sent()


def test_a_reader_never_sees_a_torn_header() -> None:
    """The parent never pairs one task's number with another's start, however fast the worker goes on."""
    pairs = set()
    with writing(_start_and_end) as journal:
        until = time.monotonic() + 1.5
        while time.monotonic() < until or len(pairs) < 100:
            pairs.update(journal.running() for _ in range(500))
    assert [pair for pair in pairs if pair.serial and pair.since != pair.serial] == []


def _fill_and_send(journal: wire.Journal) -> None:
    """Note frames that say their own number, and forget them after every few."""
    for serial in itertools.count(1):
        journal.finished(wire.encode(RETURNED, serial, float(serial), 0.0, 0, serial.to_bytes(8, "little") * 5))
        if not serial % 7:
            journal.sent()


def test_frames_that_change_while_they_are_read_are_not_read() -> None:
    """The generation tells the parent that the worker has sent the frames on, and written others over them."""
    found = 0
    with writing(_fill_and_send) as journal:
        until = time.monotonic() + 1.5
        while time.monotonic() < until or found < 100:
            frames = journal.frames()
            found += len(frames)
            for frame in frames:
                assert (frame.start, frame.payload) == (frame.serial, frame.serial.to_bytes(8, "little") * 5)
            assert serials(frames) == list(range(frames[0].serial, frames[-1].serial + 1) if frames else ())


def test_no_frame_is_lost_whenever_its_writer_is_killed() -> None:
    """After SIGKILL at any instant the parent finds every frame that was noted and not sent."""
    for round in range(150):
        fd = segments.create(wire.FILE_SIZE, [])
        noted = mmap.mmap(-1, 16)  # what the writer knows to have noted, and to have sent
        child = _fork()
        if not child:
            _write_until_killed(fd, noted)
        while not struct.unpack_from("=Q", noted, 8)[0]:
            time.sleep(0)
        time.sleep(round % 10 * 1e-4)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        journal = wire.Journal(fd)
        found = serials(journal.frames())
        sent, last = struct.unpack_from("=QQ", noted)
        journal.close()
        os.close(fd)
        noted.close()
        if found:
            assert found == list(range(found[0], found[-1] + 1))
            assert found[0] <= sent + 1
        assert last <= max([*found, sent]), "a frame was noted and is not there"


def _write_until_killed(fd: int, noted: mmap.mmap) -> None:
    """Note frames for ever. (Words are written by memcpy, at once: struct's pack_into zeroes the place first.)"""
    try:
        words = memoryview(noted).cast("Q")
        journal = wire.Journal(fd)
        journal.sent()
        for serial in itertools.count(1):
            journal.started(serial, 1.0)
            if not journal.finished(frame(serial)):
                words[0] = serial - 1
                journal.sent()
                journal.finished(frame(serial))
            words[1] = serial
    finally:
        os._exit(1)
