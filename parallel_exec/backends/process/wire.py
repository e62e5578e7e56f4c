"""What travels between the parent and one worker process, and how it is laid out.

    parent ── batches ──► task pipe ──► worker
    parent ◄── frames ── result pipe ◄── journal ◄── worker

Headers are little-endian and have no gaps. The journal's words and rows of numbers are as the machine has them.

    BATCH    Q   bytes after this header
             I   epoch: how often the worker has dropped what it had; it drops what is of an epoch that has ended
             I   number of tasks, which follow; 0: there will be no more; FORGET: nothing follows, and the first word is the
                 number of a shared content that is gone
    TASK     Q   serial: of the task, or of a chunk's first item
             I   number of the attempt
             d d timeout and soft timeout in seconds; 0: none
             H   ancillary: what `segments.receive` must know of the descriptors that go with it; 0: none
             ?   whether the call may name something of the main module
             I I the row of a chunk's items, as indices; 0, 0: a plain task
             Q   of a chunk: the place of its index 0 in the map; of a plain task: the number that ends its id, 0 if none
             I   bytes of the task's id, less that number, or of the map's, which follows
             I   bytes of what the attempt was granted of the executor's limits, pickled, which follows the id; 0: nothing
             Q   bytes of the pickled call, which follows that
    FRAME    Q   bytes of the payload, which follows this header
             B   kind: of an outcome (`_outcomes.py`), or one of those below
             Q   serial; 0: the frame is of no task
             d d when the call began and ended, by `time.monotonic()`; of kind USED, which goes before the frame of its task:
                 the seconds of CPU, and the most bytes that were resident, negative if that is not known
             I   ancillary, as above; of a row: its items
    row      of a frame of kind
      MANY         one pickle of a list of all values
      EACH         for each value LENGTH (I) and its pickle
      INTS, FLOATS the values themselves, 8 bytes each
    journal  eight words of 8 bytes, in this order: GENERATION, END of what is written, START of the running call (negative:
             it is being unpickled), RUNNING serial, and of the open row its place, first serial, start and kind; then frames;
             then the row, without a header
    dump     behind the journal, in the same file: what `faulthandler` writes as the worker dies; zeros until then

An OUTGROWN frame's payload is how many bytes of memory the worker has, in digits.

A frame tells of one task's end. The worker writes it into its *journal*, a piece of memory that the parent sees as well,
before the next task begins, and sends the journal's frames through the pipe when it pauses, or once a millisecond.
After a kill at any instant the parent finds in the journal what the pipe did not bring; what came both ways is known by
its serial number. So nothing that was finished is lost, and a system call a task is saved.

Items of a `map` that return share a row, the serial numbers of which have no gaps. A row of INTS or FLOATS costs half of
one of EACH; it is the first in the journal.

Guarantees:
    The journal's header is written by the worker only. A frame's bytes are in place before END covers them, and START
    before the serial number of what started: a torn write never shows what is not there. GENERATION changes before frames
    are overwritten: a reader that finds it changed has read nonsense, and knows.

Imports the standard library, and modules of ours that do the same.
"""

from __future__ import annotations

import mmap
import os
import struct
from operator import itemgetter

from parallel_exec.backends._outcomes import KINDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterator, Literal, NamedTuple
else:
    from parallel_exec._typing import NamedTuple

# Kinds of frames beside those of an outcome.
READY, START_FAILED, DROPPED, LOG, USED, OUTGROWN = range(len(KINDS), len(KINDS) + 6)
MANY, EACH, INTS, FLOATS = ROWS = range(OUTGROWN + 1, OUTGROWN + 5)

FORGET = 0xFFFFFFFF
HEARD, UNHEARD = 0, (1 << 64) - 1  # what a marker says in place of a serial number: `output.py`
BATCH = struct.Struct("<QII")
TASK = struct.Struct("<QIddH?IIQIIQ")
FRAME = struct.Struct("<QBQddI")
LENGTH = struct.Struct("<I")
_COPIED_BELOW = 1 << 12  # bytes of a payload up to which a copy costs less than a view

# The words of the journal's header. Each is written by an item assignment, which is one aligned store: `Struct.pack_into`
# would clear all of them first, and a kill at that instant would lose the whole journal.
GENERATION, END, START, RUNNING, ROW, ROW_SERIAL, ROW_START, ROW_KIND = range(8)
_HEADER_SIZE = 64
JOURNAL_SIZE = 1 << 16  # a guess: some thousand tiny frames; larger ones go through the pipe at once
# With the dump: a hundred threads, as many as are written, with fifty frames each. What is not used takes no memory.
FILE_SIZE = JOURNAL_SIZE + (1 << 19)
# Bytes of the largest payload of a frame that has a place there.
JOURNAL_FRAME = JOURNAL_SIZE - _HEADER_SIZE - FRAME.size
ROW_VALUE = 1024  # bytes of the largest pickle that has a place in a row; a guess
ROW_FULL = JOURNAL_SIZE - ROW_VALUE - LENGTH.size  # where there may not be room for another
CELL = 8  # bytes of a number in a row of INTS or FLOATS
FIRST_CELL = _HEADER_SIZE // CELL
_FORMATS: dict[int, Literal["q", "d"]] = {INTS: "q", FLOATS: "d"}


class Running(NamedTuple):
    """What a worker is at.

    Attributes:
        serial: the serial number of the call; 0: none.
        since: when it began, by `time.monotonic()`.
        loading: whether the call is still being unpickled, and its timeout does not run yet.
    """

    serial: int
    since: float
    loading: bool


IDLE = Running(0, 0.0, False)


class Frame(NamedTuple):
    """One frame; `start` and `end` are `time.monotonic()` in seconds, `payload` is pickled."""

    kind: int
    serial: int
    start: float
    end: float
    ancillary: int
    payload: bytes


serial_of: Callable[[Frame], int] = itemgetter(Frame._fields.index("serial"))  # for a hot path: it runs no Python


def encode(
    kind: int, serial: int = 0, start: float = 0.0, end: float = 0.0, ancillary: int = 0, payload: bytes = b""
) -> bytes:
    """Return a frame's bytes."""
    return FRAME.pack(len(payload), kind, serial, start, end, ancillary) + payload


def decode(data: bytearray | memoryview | bytes, upto: int) -> tuple[list[Frame], int]:
    """Return the whole frames in `data[:upto]`, and where the last of them ends."""
    size, make = FRAME.size, tuple.__new__
    frames: list[Frame] = []
    position = 0
    while upto - position >= size:
        length, kind, serial, start, end, ancillary = FRAME.unpack_from(data, position)
        stop = position + size + length
        if stop > upto:
            break
        if length < _COPIED_BELOW:
            payload = bytes(data[position + size : stop])
        else:
            with memoryview(data) as view:
                payload = bytes(view[position + size : stop])
        frames.append(make(Frame, (kind, serial, start, end, ancillary, payload)))  # half the cost of `Frame(...)`
        position = stop
    return frames, position


def pickles(row: bytes) -> Iterator[bytes]:
    """Yield the pickles of a row."""
    position = 0
    while position < len(row):
        start = position + LENGTH.size
        position = start + LENGTH.unpack_from(row, position)[0]
        yield row[start:position]


def numbers(kind: int, row: bytes) -> list[Any]:
    """Return the numbers of a row of INTS or FLOATS."""
    return memoryview(row).cast(_FORMATS[kind]).tolist()


class Journal:
    """The memory that a worker writes its frames to and its parent may read at any time.

    Attributes:
        map, words, times: all of it; its header as whole numbers; the same as seconds.
        ints, floats: all of it as numbers, for rows of them.
    """

    def __init__(self, fd: int) -> None:
        """Map the journal of file descriptor `fd`, which the caller may close then."""
        self.map = mmap.mmap(fd, FILE_SIZE)
        self.words = memoryview(self.map)[:_HEADER_SIZE].cast("Q")
        self.times = memoryview(self.map)[:_HEADER_SIZE].cast("d")
        self.ints = memoryview(self.map).cast(_FORMATS[INTS])
        self.floats = memoryview(self.map).cast(_FORMATS[FLOATS])
        self._end = _HEADER_SIZE  # the worker's own; the parent reads the header

    # ── the worker's side ───────────────────────────────────────────────────────────────────────────────────────────

    def loading(self, serial: int, now: float) -> None:
        """Note that the call of a task, or of a chunk, is being unpickled."""
        self.times[START] = -now
        self.words[RUNNING] = serial

    def started(self, serial: int, now: float) -> None:
        """Note that a call begins."""
        self.times[START] = now
        self.words[RUNNING] = serial

    def finished(self, frame: bytes) -> bool:
        """Note how the running task ended; False if there is no room, and nothing was noted."""
        end = self._end + len(frame)
        if end > JOURNAL_SIZE:
            return False
        self.map[self._end : end] = frame
        self._end = end
        self.words[END] = end
        self.words[RUNNING] = 0
        return True

    def has_room(self) -> bool:
        """Return whether there is room for one more value of a row, of the largest that goes there."""
        return self._end <= ROW_FULL

    def idle(self) -> None:
        """Note that nothing is running: the frame of what was went through the pipe."""
        self.words[RUNNING] = 0

    def unsent(self) -> bytes:
        """Return the frames since the last `sent`."""
        return self.map[_HEADER_SIZE : self._end]

    def sent(self) -> None:
        """Forget the frames and the row: they are in the pipe."""
        self.words[END] = self._end = _HEADER_SIZE  # first: with the new generation nobody must find the old end
        self.words[GENERATION] += 1
        self.words[ROW] = 0  # last: who finds the old end and no row would take the row for frames

    def open_row(self, kind: int, serial: int, start: float) -> int:
        """Begin a row of EACH, INTS or FLOATS behind the last frame; returns where."""
        self.words[ROW_KIND] = kind
        self.words[ROW_SERIAL] = serial
        self.times[ROW_START] = start
        self.words[ROW] = self._end  # last: with it the row is there
        return self._end

    def close_row(self) -> tuple[bytes, bytes]:
        """Return the frames before the row, and the row; it can still be read until `sent`."""
        row = self.words[ROW]
        self.words[RUNNING] = 0
        if row == self.words[END]:
            self.words[ROW] = 0  # it is empty, and a frame may take its place
        return self.map[_HEADER_SIZE:row], self.map[row : self.words[END]]

    # ── the parent's side ───────────────────────────────────────────────────────────────────────────────────────────

    def running(self) -> Running:
        """Return what is running."""
        while True:
            serial, start = self.words[RUNNING], self.times[START]
            if self.words[RUNNING] == serial and self.times[START] == start:  # else the one may be another task's
                return Running(serial, abs(start), start < 0)

    def frames(self) -> list[Frame]:
        """Return the frames that are there; some may have come through the pipe as well."""
        generation, end = self.words[GENERATION], self.words[END]
        row, serial, start, latest = self.words[ROW], self.words[ROW_SERIAL], self.times[ROW_START], self.times[START]
        kind = self.words[ROW_KIND]
        data = self.map[_HEADER_SIZE : max(end, _HEADER_SIZE)]
        if self.words[GENERATION] != generation:
            return []  # overwritten while we read: all that was there is in the pipe
        stop = min(row - _HEADER_SIZE, len(data)) if row else len(data)
        frames, _ = decode(data, stop)
        if stop < len(data):
            values = data[stop:]
            count = sum(1 for _ in pickles(values)) if kind == EACH else len(values) // CELL
            frames.append(Frame(kind, serial, start, latest, count, values))
        return frames

    def dump(self) -> bytes:
        """Return what the worker has written of itself as it died."""
        end = self.map.find(b"\0", JOURNAL_SIZE)
        return self.map[JOURNAL_SIZE : end if end >= 0 else FILE_SIZE]

    def close(self) -> None:
        """Unmap it."""
        for view in (self.words, self.times, self.ints, self.floats):
            view.release()
        self.map.close()


def write_all(fd: int, data: bytes) -> None:
    """Write everything; blocks."""
    written = os.write(fd, data)
    if written == len(data):
        return
    view = memoryview(data)[written:]
    while view:
        view = view[os.write(fd, view) :]
