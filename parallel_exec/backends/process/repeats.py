"""Notices a large buffer that is sent to workers again and again, and says once what would cost less.

Two buffers count as the same if they are as large and a few pages of them, spread over the whole, have the same checksum: that
takes some 50 µs, where to copy the buffer takes milliseconds.
"""

from __future__ import annotations

import binascii
import os

from parallel_exec._dispatcher import logger
from parallel_exec.backends.process import segments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from parallel_exec.backends._pickling import Pickled

LARGE = 10 << 20  # bytes; a guess: from here on a copy takes longer than all else that is done for a call
OFTEN = 3
_PAGE = 4096
_PAGES = 64  # that are looked at
_MOST = 64  # buffers that are remembered


class Repeats:
    """What large buffers the calls of one executor had. Lock-free: who adds two calls at once may be told late."""

    def __init__(self) -> None:
        self._times: dict[tuple[int, int], int] = {}  # by size and checksum
        self._is_told = False

    def look(self, payload: Pickled, task_id: str) -> None:
        """Count the large buffers of a call; warn of one that has come often, once."""
        if payload.segment is None or self._is_told:
            return
        for position, size in segments.pieces(payload.data):
            if size <= LARGE:
                continue
            key = size, _checksum(payload.segment.fd, position, size)
            times = self._times.pop(key, 0) + 1
            self._times[key] = times
            if times >= OFTEN:
                self._is_told = True
                logger.warning(
                    "the same %.0f MB have been sent to worker processes %d times, last with task %r: "
                    "shared = executor.share(value), and shared in the value's place, sends them once",
                    size / 1e6,
                    times,
                    task_id,
                )
                return
        while len(self._times) > _MOST:
            self._times.pop(next(iter(self._times)), None)


def _checksum(fd: int, position: int, size: int) -> int:
    step, checksum = size // _PAGES, 0
    for start in range(position, position + size, step):
        checksum = binascii.crc32(os.pread(fd, min(_PAGE, position + size - start), start), checksum)
    return checksum
