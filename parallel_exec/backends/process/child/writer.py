"""What a worker writes: how its tasks ended, into the journal at once and through the result pipe when it pauses.

Guarantees:
    What was reported, or is in the row, reaches the parent, whatever happens to this process afterwards.
    Frames go through the pipe in the order in which their tasks ended.
"""

from __future__ import annotations

import pickle
import threading
from collections import deque

from parallel_exec._sync.clock import time
from parallel_exec.backends import _pickling
from parallel_exec.backends._outcomes import Encoder
from parallel_exec.backends.process import segments, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

ENCODER = Encoder(_pickling.dumps, carries=True)  # how outcomes travel from a worker
FLUSH_EVERY = 0.001  # seconds between two system calls for results, at most


class Outbox:
    """The child's journal, its result pipe and its end of the socket for segments; the main thread's, except `send`.

    Attributes:
        journal: the journal.
        channel: the socket.
        flushed: when frames were last sent.
    """

    def __init__(self, results: int, channel: socket.socket, journal: wire.Journal) -> None:
        self.journal = journal
        self.channel = channel
        self.flushed = time.monotonic()
        self._results = results
        self._write_lock = threading.RLock()
        self._waiting: deque[bytes] = deque()  # what is to be written next; guarded by the lock, as the next
        self._writing = False
        self._row_kind = wire.EACH
        self._row_serial = 0
        self._row_start = 0.0

    def send(self, *pieces: bytes) -> None:
        """Write frames to the pipe, all pieces in a row. Blocks.

        Thread-safe: records of any thread's loggers come this way, too. Re-entrant, as a finalizer or a signal handler may
        log in the middle of this: its record must wait for the end of the frame.
        """
        with self._write_lock:
            self._waiting.extend(pieces)
            while self._waiting and not self._writing:  # again, for what comes just before the flag is cleared
                self._writing = True
                try:
                    while self._waiting:
                        wire.write_all(self._results, self._waiting.popleft())
                finally:
                    self._writing = False

    def report(
        self, kind: int, serial: int, start: float, end: float, pickled: _pickling.Pickled, used: bytes = b""
    ) -> None:
        """Say how a task ended, and what it has used: a frame. There must be no open row."""
        ancillary = 0
        if pickled.has_descriptors():
            ancillary = pickled.ancillary()
            segments.send(self.channel, pickled.segment, pickled.others)
        data = pickled.data
        if len(data) > wire.JOURNAL_FRAME:
            self.flush(end)
            header = wire.FRAME.pack(len(data), kind, serial, start, end, ancillary)
            self.send(used + header, data)  # not joined: that is a copy
            self.journal.idle()
            return
        frame = used + wire.encode(kind, serial, start, end, ancillary, data)
        if not self.journal.finished(frame):
            self.flush(end)
            self.journal.finished(frame)
        if end - self.flushed > FLUSH_EVERY:
            self.flush(end)

    def flush(self, now: float = 0.0) -> None:
        """Send the frames in the journal."""
        frames = self.journal.unsent()
        if frames:
            self.send(frames)
            self.journal.sent()
        self.flushed = now or time.monotonic()

    def open_row(self, kind: int, serial: int, start: float) -> int:
        """Begin a row, the first item of which has this serial number; returns its place in the journal."""
        if kind != wire.EACH or not self.journal.has_room():
            self.flush(start)  # then it is the first in the journal, as a row of numbers must be
        self._row_kind, self._row_serial, self._row_start = kind, serial, start
        return self.journal.open_row(kind, serial, start)

    def send_row(self, stop: int, end: float, plain: list[Any] | None = None) -> None:
        """End the row before the item with serial number `stop`, and send it: as one pickle, if all values are `plain`."""
        count = stop - self._row_serial
        earlier, row = self.journal.close_row()
        if not count:
            return
        kind, payload = (wire.MANY, pickle.dumps(plain, protocol=5)) if plain else (self._row_kind, row)
        self.send(earlier + wire.encode(kind, self._row_serial, self._row_start, end, count, payload))
        self.journal.sent()
        self.flushed = end
