"""Attempts that go to a dask cluster together: as one task of dask's, of which a tiny call's cost is a multiple.

    feeder ── add ──► AttemptGroup ── sent ──► a worker runs one after the other
                          │ AttemptFuture, one for each: what the runner sees
                          ▼
    settler ◄── finish ◄──┴── a result, "it did not begin", dask's error

Guarantees:
    A group is small: as many calls as take `AHEAD` seconds, by the latest that were seen. As long as none was seen, while
    calls run long, and after one that held up others, each goes alone.
"""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import TYPE_CHECKING, Optional

from parallel_exec.backends.engine.dask_worker import CRASHED, LONG, RemoteJob
from parallel_exec.backends.engine.grouping import CallPace, fail, finish
from parallel_exec.backends.engine.remote_call import CallResult

if TYPE_CHECKING:
    from typing import Any, Mapping

AHEAD = 0.020  # seconds of work in a group: some two round trips through dask's scheduler, in which a worker idles
OVERHEAD = 100e-6  # seconds that a worker spends on an attempt beside the call; measured on one machine
MOST_CALLS = 64  # in a group; a guess: the share of dask's own cost in each is small by then
MOST_BYTES = 1 << 20  # of pickled calls in a group


class AttemptFuture(Future[Optional[CallResult]]):
    """The engine's future of one attempt in a group: a result, or None if it did not begin and never will.

    Attributes:
        job: what travels.
        group: in which it travels.
    """

    def __init__(self, job: RemoteJob, group: AttemptGroup) -> None:
        super().__init__()
        self.job = job
        self.group = group


class AttemptGroup:
    """Attempts of one priority, in the order in which they are to begin.

    Only its futures lead to the attempts: no frame of the loop's holds one, as it would be kept by the error of dask's that
    the future is given.

    Attributes:
        name: the first call's.
        priority: of all.
        serial: the first attempt's serial number, which names the group.
        place: the index of the worker that runs it, as it is seen from here.
        futures: the attempts; the feeder adds to them until the group is sent.
    """

    def __init__(self, name: str, priority: int, serial: int, place: int = 0) -> None:
        self.name = name
        self.priority = priority
        self.serial = serial
        self.place = place
        self.futures: list[AttemptFuture] = []
        self._running: Future[Any] | None = None  # what sees it through in the client's loop; written by the feeder
        self._bytes = 0
        self._begun: set[int] = set()  # serials; the loop's own

    # ── before it is sent ───────────────────────────────────────────────────────────────────────────────────────────

    def add(self, job: RemoteJob) -> AttemptFuture:
        """Add an attempt, and return its future."""
        future = AttemptFuture(job, self)
        self.futures.append(future)
        self._bytes += len(job.payload)
        return future

    def takes(self, job: RemoteJob, priority: int) -> bool:
        """Return whether this attempt may travel with the others."""
        return priority == self.priority and self._bytes + len(job.payload) <= MOST_BYTES

    def sent(self, running: Future[Any]) -> None:
        """Note what sees it through."""
        self._running = running

    # ── in the cluster ──────────────────────────────────────────────────────────────────────────────────────────────

    def jobs(self) -> list[RemoteJob]:
        """Return what is waited for."""
        return [future.job for future in self.futures if not future.done()]

    def begin(self, serial: int) -> None:
        """Take note that an attempt has begun, somewhere and once. Called in the client's loop."""
        self._begun.add(serial)

    def unknown(self) -> list[int]:
        """Return what is waited for and is not known to have begun."""
        waited_for = [future.job.serial for future in self.futures if not future.done()]
        return [serial for serial in waited_for if serial not in self._begun]

    def is_shared(self) -> bool:
        """Return whether more than one attempt travels in it."""
        return len(self.futures) > 1

    def waiting_priority(self) -> float:
        """Return the priority, if something has yet to begin behind another attempt; -inf if nothing does."""
        return self.priority if len(self.jobs()) > 1 else -math.inf

    def is_over(self) -> bool:
        """Return whether nobody waits for any of it."""
        return all(future.done() for future in self.futures)

    def let_go(self) -> bool:
        """Cancel what sees it through; False if there is nothing yet."""
        if self._running is None:
            return False
        self._running.cancel()
        return True

    def was_let_go(self) -> bool:
        """Return whether `let_go` has cancelled what sees it through."""
        return self._running is not None and self._running.cancelled()

    # ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def finish(self, results: Mapping[int, CallResult | None]) -> list[tuple[RemoteJob, int]]:
        """Give attempts their results, by serial number: None to those that did not begin.

        Returns:
            Those that began and have no result, with the deaths of processes that they have seen. They are to run again.
        """
        again = []
        for future in self.futures:
            serial = future.job.serial
            if serial not in results:
                continue
            result = results[serial]
            if result is None and serial not in self._begun:
                finish(future, None)
            elif result is not None and result.kind != CRASHED:
                finish(future, result)
            elif not future.done():
                again.append((future.job, int(result is not None)))
        return again

    def give_up(self, error: BaseException | None) -> None:
        """Give back what is not known to have begun, as dask fails; `end` the rest with dask's error."""
        for future in self.futures:
            if future.job.serial not in self._begun:
                finish(future, None)
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """Fail what has no result, or cancel it if there is no error, and let go of all."""
        futures, self.futures = self.futures, []
        for future in futures:
            if error is not None:
                fail(future, error)
            else:
                future.cancel()


def make_pace() -> CallPace:
    """Return the pace of a cluster's calls; `observe` is told how long they ran."""
    return CallPace(ahead=AHEAD, most=MOST_CALLS, alone_from=LONG, overhead=OVERHEAD, longest=2 * LONG)
