"""What a worker has written to its standard output and error, as the parent reads it: the attempts' outputs, told apart.

    worker: print, printf, subprocesses ──► one pipe ──► read ──► the last 64 KB up to each marker ──► `take`
            marker, once an attempt has ended ──┘

A marker is the worker's token, 16 bytes, and the serial number of the call that has ended: what came before it, and
after the last one, was written meanwhile. The worker writes it before it says that the call has ended, so it is in the pipe
when that is heard. Two numbers stand for no call: UNHEARD, with which begins what belongs to no attempt that anybody can look at,
the items of a `map` for one, and HEARD, with which that ends. A worker begins with it, too, as it is initialized.

Guarantees:
    A worker that writes faster than it is read waits. Nothing here waits: neither for the worker, nor for what else writes to its
    pipe, nor for this process's own standard error, which gets what belongs to no attempt, at once.
    It is the I/O thread's own.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct

from parallel_exec.backends.process.wire import HEARD, UNHEARD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from parallel_exec._core.job import AnyJob

MOST: Final = 1 << 16  # bytes that are kept of an attempt's output
TOKEN = 16  # bytes; nobody guesses so many
_NO_TEXT = b"\xff"  # the first of them, which is none of UTF-8: text is never taken for the beginning of a marker
SERIAL = struct.Struct("<Q")  # what follows it
_MARKER = TOKEN + SERIAL.size
_READ = 1 << 16  # bytes for one read: what a pipe holds
# Reads after which all has come that was in a pipe, also in one that was made as large as Linux allows; who floods it goes on.
_MOST_READS = 17


class WorkerOutput:
    """The reading end.

    Attributes:
        token: what markers begin with.
    """

    def __init__(self, fd: int) -> None:
        self.token = _NO_TEXT + os.urandom(TOKEN - 1)
        self._fd = fd
        self._unmarked = bytearray()  # what came after the last marker, as far as it is kept
        self._searched = 0  # up to where there is no marker in it
        self._ended: dict[int, bytes] = {}  # by serial number: the outputs that nobody has asked for yet
        self._is_unheard = True  # whether what comes is nobody's

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
            if self._is_unheard or serial in (HEARD, UNHEARD):
                pass_on(output)
                self._is_unheard = serial == UNHEARD
            else:
                self._ended[serial] = output
        if self._is_unheard:
            kept = self._begun()
            pass_on(bytes(unmarked[: len(unmarked) - kept]))
        else:
            kept = MOST + _MARKER
        del unmarked[: max(0, len(unmarked) - kept)]
        self._searched = max(0, len(unmarked) - _MARKER)  # a marker may have come in part

    def _begun(self) -> int:
        """Return how many bytes at the end may be the beginning of a marker."""
        unmarked, token = self._unmarked, self.token
        at = unmarked.find(token, self._searched)
        if at >= 0:
            return len(unmarked) - at
        return next((size for size in range(TOKEN - 1, 0, -1) if unmarked.endswith(token[:size])), 0)

    def take(self, serial: int) -> bytes:
        """Return what was written by a call that was heard to have ended."""
        self._read_all(until=serial)
        if serial not in self._ended:  # the task has closed the worker's end, or the worker has died meanwhile
            return self.rest()
        return self._ended.pop(serial)

    def drain(self) -> None:
        """Read all that is left of a dead worker: before the file is closed."""
        with contextlib.suppress(OSError):
            self._read_all()

    def _read_all(self, until: int = HEARD) -> None:
        """Read what is there by now, or up to the marker of a call."""
        for _ in range(_MOST_READS):
            if until in self._ended or not self._read():
                return

    def rest(self) -> bytes:
        """Return what was written since the last marker."""
        rest = bytes(self._unmarked[-MOST:])
        self._unmarked.clear()
        self._searched = 0
        return rest

    def note(self, job: AnyJob, serial: int) -> None:
        """Have an attempt know what it has written that was heard to have ended, and had a serial number."""
        if not _is_item(job):
            _note(job, self.take(serial))

    def note_rest(self, job: AnyJob) -> None:
        """Have the attempt that a worker ran when it died know what it has written."""
        _note(job, self.rest())

    def pass_on_rest(self) -> None:
        """Write what is left to this process's standard error."""
        pass_on(self.rest())


def _note(job: AnyJob, output: bytes) -> None:
    """Note what an attempt has written, if anybody can look at it."""
    if _is_item(job):
        pass_on(output)
    elif output:
        job.has_used(output=text_of(output))


def _is_item(job: AnyJob) -> bool:
    """Return whether it is an item of a `map`: nobody can look at its attempts, so what it writes was passed on."""
    return job.payload is not None and job.payload.item is not None


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
