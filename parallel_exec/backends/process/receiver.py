"""What a pool hears of its workers: frames, and what their journals say when they are silent. The I/O thread's own.

    pipe ────┐
    journal ─┴──► frames ──► successes, in bulk ──► scheduler
                        └──► parts: values in bulk, items ──► their `Mapping`
                        └──► the rest, one by one

Guarantees:
    What came both through the pipe and from the journal counts once: `assigned` forgets a call when it is first heard of.
    A part is reported when the last of its items has been heard of, or taken back.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Callable, Collection, NamedTuple

from parallel_exec._core.job import Job, Phase
from parallel_exec._core.map_chunk import MapChunk
from parallel_exec._outcome import Failure, Outcome, Success
from parallel_exec._sync.clock import time
from parallel_exec._sync.timers import NEVER
from parallel_exec._sync.weak import Upward
from parallel_exec.backends._outcomes import RETURNED, UNREADABLE, Named, decode
from parallel_exec.backends.process import log_relay, wire
from parallel_exec.backends.process.payload import values_of
from parallel_exec.backends.process.prefetch import ITEM_OVERHEAD, Prefetch
from parallel_exec.backends.process.worker_handle import POLL_AFTER, WorkerHandle
from parallel_exec.events import logger

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.process.assignments import Assignments
    from parallel_exec.backends.process.launcher import Launcher


class Receiver:
    """Hears of attempts, and tells the scheduler.

    Attributes:
        heard: how many frames, so far.
    """

    _source = Upward["SchedulerPort"]()

    def __init__(
        self,
        source: SchedulerPort,
        assignments: Assignments,
        pace: Prefetch,
        launcher: Launcher,
        on_ready: Callable[[WorkerHandle], object],
    ) -> None:
        self._source = source
        self._crew = assignments
        self._prefetch = pace
        self._launcher = launcher
        self._on_ready = on_ready
        self.heard = 0

    def frames(self, handle: WorkerHandle, frames: list[wire.Frame]) -> None:
        """Hear frames."""
        self.heard += len(frames)
        plain = []
        for frame in frames:
            if frame.kind == RETURNED and type(handle.assigned.get(frame.serial)) is Job:
                plain.append(frame)
                continue
            if frame.segments and plain:  # descriptors are matched to frames by their order
                self._guarded(handle, self._hear_successes, plain)
                plain = []
            self._guarded(handle, self._hear_one, frame)
        if plain:
            self._guarded(handle, self._hear_successes, plain)

    def _guarded(self, handle: WorkerHandle, hear: Callable[[WorkerHandle, Any], None], what: Any) -> None:
        """Hear something, and go on whatever comes of it: what else was said counts."""
        try:
            hear(handle, what)
        except BaseException:  # from a callback, a log handler, a record that cannot be unpickled
            logger.exception("raised by what came of a message from %s", handle.name)

    def _hear_one(self, handle: WorkerHandle, frame: wire.Frame) -> None:
        if frame.kind in wire.ROWS:
            self._hear_values(handle, frame)
        elif frame.serial:
            self._hear_outcome(handle, frame)
        elif frame.kind == wire.READY:
            self._on_ready(handle)
        elif frame.kind == wire.DROPPED:
            handle.dropped()
        elif frame.kind == wire.START_FAILED:
            handle.traceback = frame.payload.decode()
        elif frame.kind == wire.LOG:
            log_relay.receive_record(frame.payload)

    def _hear_successes(self, handle: WorkerHandle, frames: list[wire.Frame]) -> None:
        """Hear of plain tasks that returned: all in one go, as they come by the hundred."""
        serials = [frame.serial for frame in frames]
        with self._source.lock:
            _spare(handle, serials)
            forget = handle.assigned.pop
            futures = [forget(serial, None) for serial in serials]
        ran = [
            (future, frame.start, decode(frame.kind, frame.payload, future, frame.segments, handle.receive), frame.end)
            for future, frame in zip(futures, frames)
            if future is not None  # else it was heard of before
        ]
        if ran:
            self._prefetch.observe(sum([end - start for _, start, _, end in ran]) / len(ran), count=len(ran))
            self._source.report_ran(handle, handle.name, ran)

    def _forget(self, handle: WorkerHandle, serial: int) -> AnyJob | None:
        """Take a call that has ended out of `assigned`; None if it was heard of before. Called with the lock held."""
        _spare(handle, (serial,))
        return handle.assigned.pop(serial, None)

    def _hear_outcome(self, handle: WorkerHandle, frame: wire.Frame) -> None:
        with self._source.lock:
            future = self._forget(handle, frame.serial)
        if future is None:
            return  # from the journal and through the pipe
        self._prefetch.observe(frame.end - frame.start)
        number = self._begin(handle, future, frame.start, over=True)
        if type(future) is MapChunk and frame.kind == UNREADABLE:
            self._end_item(handle, future, frame.serial, None, frame.start, frame.end)
            return
        what = _named(future, frame.serial)
        outcome = decode(frame.kind, frame.payload, what, frame.segments, handle.receive)
        if type(future) is MapChunk:
            self._end_item(handle, future, frame.serial, outcome, frame.start, frame.end)
        elif number:
            self._source.report(future, number, outcome, frame.end)

    def _hear_values(self, handle: WorkerHandle, frame: wire.Frame) -> None:
        """Hear of items in a row that returned; some may be known from the journal."""
        serials = range(frame.serial, frame.serial + frame.segments)
        with self._source.lock:
            assigned = handle.assigned
            known = 0 if serials[0] in assigned else sum(serial not in assigned for serial in serials)
            part: Any = assigned.get(serials[-1])
            for serial in serials[known:]:
                del assigned[serial]
            _spare(handle, serials)
        if part is None:
            return
        self._prefetch.observe((frame.end - frame.start) / len(serials), ITEM_OVERHEAD)
        if type(part) is not MapChunk:
            self._hear_retried(handle, part, frame)
            return
        self._begin(handle, part, frame.start, over=True)
        values, failures = values_of(frame, lambda place: _named(part, frame.serial + place))
        first = part.index_of(serials[0])
        position = known
        for place in sorted(failures):
            if place >= known:
                part.returned(first + position, values[position:place])
                if part.phase == Phase.LIVE:
                    part.failed(first + place, failures[place].error, frame.start, frame.end, handle.name)
                position = place + 1
        part.returned(first + position, values[position:])
        self._count_down(part, len(serials) - known)

    def _hear_retried(self, handle: WorkerHandle, future: AnyJob, frame: wire.Frame) -> None:
        """Hear of an item that had failed, and has returned now."""
        values, failures = values_of(frame, lambda _: future)
        outcome = failures[0] if failures else Success(values[0])
        self._source.report_ran(handle, handle.name, [(future, frame.start, outcome, frame.end)])

    def _end_item(
        self, handle: WorkerHandle, part: MapChunk, serial: int, outcome: Outcome | None, start: float, end: float
    ) -> None:
        """Store how one item of a part ended; None: it could not begin, as the part could not be loaded."""
        index = part.index_of(serial)
        try:
            if type(outcome) is Success:
                part.returned(index, [outcome.value])
            elif part.phase == Phase.LIVE:
                if type(outcome) is Failure:
                    part.failed(index, outcome.error, start, end, handle.name)
                else:
                    part.isolate(index)
        finally:  # it may be a user's callback or `__reduce__` that raises
            self._count_down(part, 1)

    def _count_down(self, part: MapChunk, ended: int) -> None:
        with self._source.lock:
            part.left -= ended
            over = part.left == 0
        if over:
            self.close_part(part)

    def close_part(self, part: MapChunk) -> None:
        """Report a part of which every item has ended."""
        number = part.attempt_number if part.phase == Phase.LIVE else 0
        part.weight = part.good
        if number:
            self._source.report(part, number, Success(None), time.monotonic())

    def poll_journal(self, handle: WorkerHandle, now: float) -> None:
        """Look at what a silent worker is doing, and see that nothing is stuck behind it."""
        running = handle.running()
        noted = handle.unread()  # before the pipe is read, which may bring what stands before it
        self.frames(handle, handle.read()[0])
        self.frames(handle, noted)
        has_gone_on = handle.running() != running
        serial, ran = running.serial, now - running.since
        if has_gone_on or (running.loading and ran < (self._launcher.startup_timeout or NEVER)):
            if not has_gone_on:  # it still loads what it needs, and the attempt's clock does not run yet
                with self._source.lock:
                    self._prefetch.relieve(handle, ran)
            handle.poll_at = now + POLL_AFTER
            return
        if serial and not self._begin(handle, handle.assigned[serial], running.since):
            handle.pending_kill = handle.pending_kill or (
                serial,
                CancelledError(),
            )  # it was ended before we knew that it runs
        timeout = handle.assigned[serial].settings.timeout if serial else None
        if timeout is not None:
            handle.timer.arm(running.since + timeout)  # of this very item, if it is one of a part
        with self._source.lock:
            self._crew.kill_doomed(handle)
            stuck = bool(serial) and self._prefetch.relieve(handle, ran)
        handle.poll_at = None if (stuck and not handle.pending_kill) or not handle.assigned else now + POLL_AFTER

    def interrupted(
        self, handle: WorkerHandle, running: wire.Running, interrupted: AnyJob, exitcode: int | None
    ) -> None:
        """Settle what a worker was running, or loading, when it died."""
        number = self._begin(handle, interrupted, running.since, over=True)
        if handle.pending_kill is not None and handle.pending_kill[0] == running.serial:
            error = handle.pending_kill[1]
        else:
            error = _crash_error(handle.pid, exitcode, _named(interrupted, running.serial).id)
        if type(interrupted) is not MapChunk:
            if number:
                self._source.report(interrupted, number, Failure(error), time.monotonic())
        elif not running.loading:
            self._end_item(handle, interrupted, running.serial, Failure(error), running.since, time.monotonic())
        elif number:
            try:
                interrupted.set_all_apart()
            finally:
                self.close_part(interrupted)

    def _begin(self, handle: WorkerHandle, future: AnyJob, start: float, over: bool = False) -> int:
        """Return the number of the attempt under way, having begun it if that is news; 0 if it does not count."""
        if future.phase == Phase.HANDED_OUT:
            return self._source.begin(future, handle, handle.name, start, over=over)
        return future.attempt_number if future.phase == Phase.LIVE else 0


def _crash_error(pid: int, exitcode: int | None, task_id: str) -> BaseException:
    from parallel_exec.errors import WorkerCrashedError  # loads the stdlib's process pool; only a crash needs it

    return WorkerCrashedError(pid, exitcode, task_id)


class _Item(NamedTuple):
    """An item of a part, as far as messages need it."""

    id: str


def _named(future: AnyJob, serial: int) -> Named:
    """Return what a worker has under a serial number: a task, or an item of a part."""
    return _Item(future.item_id(future.index_of(serial))) if type(future) is MapChunk else future


def _spare(handle: WorkerHandle, serials: Collection[int]) -> None:
    """Do not kill a worker for what came to its end before that. Called with the lock held."""
    if handle.pending_kill is not None and handle.pending_kill[0] in serials:
        handle.pending_kill = None
