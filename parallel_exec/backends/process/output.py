"""What a worker has written to its standard output and error, as the parent reads it: the attempts' outputs, told apart.

    worker: print, printf, subprocesses ──► one pipe ──► read ──► the last 64 KB up to each marker ──► `take`
            marker, once an attempt has ended ──┘

A marker is the worker's token, 16 random bytes, and the serial number of the call that has ended: what came before it, and
after the last one, was written meanwhile. 0 stands for no call. The worker writes it before it says that the call has ended,
so it is in the pipe when that is heard.

Guarantees:
    A worker that writes faster than it is read waits. Nothing here waits: neither for the worker, nor for this process's own
    standard error, which gets what belongs to no attempt that anybody can look at.
    It is the I/O thread's own.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

MOST: Final = 1 << 16  # bytes that are kept of an attempt's output
TOKEN = 16  # bytes; nobody guesses so many
SERIAL = struct.Struct("<Q")  # what follows it
_MARKER = TOKEN + SERIAL.size
_READ = 1 << 16  # bytes for one read: what a pipe holds


class WorkerOutput:
    """The reading end.

    Attributes:
        token: what markers begin with.
    """

    def __init__(self, fd: int) -> None:
        self.token = os.urandom(TOKEN)
        self._fd = fd
        self._unmarked = bytearray()  # what came after the last marker, as far as it is kept
        self._searched = 0  # up to where there is no marker in it
        self._ended: dict[int, bytes] = {}  # by serial number: the outputs that nobody has asked for yet

    def read(self) -> bool:
        """Read a piece of what is there; returns whether there will be no more."""
        return self._read() == b""

    def _read(self) -> bytes | None:
        """Read a piece, and return it; None: there is nothing just now."""
        try:
            data = os.read(self._fd, _READ)
        except BlockingIOError:
            return None
        self._unmarked += data
        self._find_markers()
        return data

    def _find_markers(self) -> None:
        """Take apart what was read."""
        unmarked = self._unmarked
        while (at := unmarked.find(self.token, self._searched)) >= 0 and len(unmarked) >= at + _MARKER:
            (serial,) = SERIAL.unpack_from(unmarked, at + TOKEN)
            output = bytes(unmarked[max(0, at - MOST) : at])
            del unmarked[: at + _MARKER]
            self._searched = 0
            if serial:
                self._ended[serial] = output
            else:
                pass_on(output)
        del unmarked[: max(0, len(unmarked) - MOST - _MARKER)]
        self._searched = max(0, len(unmarked) - _MARKER)  # a marker may have come in part

    def take(self, serial: int) -> bytes:
        """Return what was written by a call that was heard to have ended."""
        while serial not in self._ended and self._read():
            pass
        if serial not in self._ended:  # the task has closed the worker's end, or the worker has died meanwhile
            return self.rest()
        return self._ended.pop(serial)

    def drain(self) -> None:
        """Read all that is left of a dead worker: before the file is closed."""
        with contextlib.suppress(OSError):
            while self._read():
                pass

    def rest(self) -> bytes:
        """Return what was written since the last marker."""
        rest = bytes(self._unmarked[-MOST:])
        self._unmarked.clear()
        self._searched = 0
        return rest


def text_of(output: bytes) -> str:
    """Return output as text; what is cut off in the middle of a character begins with the next."""
    start = 0
    if len(output) == MOST:
        while start < 3 and output[start] & 0xC0 == 0x80:  # the rest of one, in UTF-8
            start += 1
    return output[start:].decode(errors="replace")


def pass_on(output: bytes) -> None:
    """Write to this process's standard error, as far as that takes it at once."""
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    rest = memoryview(output)
    with contextlib.suppress(OSError):
        while rest and poll.poll(0) == [(2, select.POLLOUT)]:
            rest = rest[os.write(2, rest[: select.PIPE_BUF]) :]
