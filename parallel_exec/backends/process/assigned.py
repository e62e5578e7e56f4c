"""The calls that one worker was sent and that have not come back, in the order sent.

Each call has a serial number, and the numbers grow. The items of a chunk are calls of their own, numbered without a gap, and
end in their order; the chunk stands here once, and knows which of them have ended: what is done here for a million tiny items
is done a chunk or a row at a time.

Guarantees:
    The scheduler's lock guards it. `get` and the length may be asked for without it, and then may be out of date.
"""

from __future__ import annotations

from itertools import repeat

from parallel_exec._core.map_chunk import MapChunk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Sequence

    from parallel_exec._core.job import AnyJob


class AssignedCalls:
    """What one worker has; true as long as it has anything. Its length is the number of calls."""

    __slots__ = ("_chunks", "_jobs")

    def __init__(self) -> None:
        self._jobs: dict[int, AnyJob] = {}  # by serial number: a chunk by that of its first item, ended or not
        self._chunks: dict[int, MapChunk] = {}  # those of them that are chunks

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __len__(self) -> int:
        if not self._chunks:
            return len(self._jobs)
        chunks = list(self._chunks.values())
        return len(self._jobs) - len(chunks) + sum([chunk.left for chunk in chunks])

    def has_waiting(self) -> bool:
        """Return whether a call waits behind another."""
        return len(self._jobs) > 1 or (bool(self._chunks) and len(self) > 1)

    def get(self, serial: int) -> AnyJob | None:
        """Return the job of a call; of an item, its chunk."""
        job = self._jobs.get(serial)
        if type(job) is not MapChunk and (job is not None or not self._chunks):
            return job
        return next((chunk for chunk in list(self._chunks.values()) if chunk.has_unended(serial)), None)

    def serial_of(self, job: AnyJob) -> int:
        """Return the serial number of the first call of a job that has not ended; 0 if there is none."""
        if type(job) is MapChunk:
            return job.next_serial if job.left and self._chunks.get(job.serial) is job else 0
        return next((serial for serial, other in self._jobs.items() if other is job), 0)

    def jobs(self) -> list[AnyJob]:
        """Return the jobs, each once."""
        return list(self._jobs.values())

    def first(self) -> tuple[int, AnyJob] | None:
        """Return the job of the first call, and the serial number that it stands under."""
        return next(iter(self._jobs.items()), None)

    def last(self) -> tuple[int, AnyJob] | None:
        """Return the same of the last call."""
        return next(reversed(self._jobs.items()), None)

    def is_last(self, serial: int) -> bool:
        """Return whether a call is the last one, and has not ended."""
        _, job = self.last() or (0, None)
        if type(job) is MapChunk:
            return job.has_unended(serial) and job.index_of(serial) == job.high - 1
        return job is not None and self._jobs.get(serial) is job

    def second(self) -> AnyJob | None:
        """Return the job of the second call."""
        jobs = iter(self._jobs.values())
        first = next(jobs, None)
        return first if type(first) is MapChunk and first.left > 1 else next(jobs, None)

    def add(self, serial: int, job: AnyJob) -> None:
        """Note a job that is sent, its calls numbered from `serial`."""
        if type(job) is MapChunk:
            job.sent(serial)
            self._chunks[serial] = job
        self._jobs[serial] = job

    def plain_ended(self, serials: Sequence[int]) -> list[AnyJob | None]:
        """Forget jobs that are no chunks; returns each, None if it was forgotten before."""
        return list(map(self._jobs.pop, serials, repeat(None)))

    def ended(self, serial: int, count: int = 1) -> tuple[AnyJob | None, int]:
        """Forget calls of one job, numbered from `serial`; returns it, and how many of them were forgotten before.

        The job is None if all of them were.
        """
        stop = serial + count
        job = self.get(stop - 1)
        if job is None:
            return None, 0
        if type(job) is not MapChunk:
            del self._jobs[serial]
            return job, 0
        known = max(0, job.next_serial - serial)
        if job.ended(stop):
            self.remove(job.serial)
        return job, known

    def remove(self, serial: int) -> None:
        """Forget the job that stands under this number, whatever of it has ended."""
        self._chunks.pop(serial, None)
        self._jobs.pop(serial, None)
