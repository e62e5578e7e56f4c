"""What a pool hears of its workers: frames, and what their journals say when they are silent. The I/O thread's own.

    pipe ────┐
    journal ─┴──► frames ──► plain jobs that returned, in bulk ──► scheduler
                        ├──► chunks of a `map`: values in bulk, other items one by one ──► their `MapResults`
                        └──► the rest, one by one

Guarantees:
    What came both through the pipe and from the journal counts once: `assigned` forgets a call when it is first heard of.
    A chunk is reported when the last of its items has been heard of, or taken back.
    An exception of user code that a message leads to is logged, and the other messages count.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from logging import INFO

from parallel_exec._core.job import Job
from parallel_exec._core.map_chunk import MapChunk
from parallel_exec._core.phase import Phase
from parallel_exec._dispatcher import logger, say
from parallel_exec._outcome import Failure, Success
from parallel_exec._sync.clock import time
from parallel_exec._sync.timers import NEVER
from parallel_exec._sync.weak import Upward
from parallel_exec.backends._outcomes import RETURNED, UNREADABLE, Named, decode
from parallel_exec.backends.process import log_relay, wire
from parallel_exec.backends.process.payload import values_of
from parallel_exec.backends.process.prefetch import ITEM_OVERHEAD, Prefetch
from parallel_exec.backends.process.worker_handle import POLL_AFTER, WorkerHandle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, NamedTuple

    from parallel_exec._core.job import AnyJob
    from parallel_exec._outcome import Outcome
    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.process.assignments import Assignments, Interrupted
    from parallel_exec.backends.process.deaths import Deaths
    from parallel_exec.backends.process.launcher import Launcher
else:
    from parallel_exec._typing import NamedTuple

_FRAME_RAISED = "raised by what came of a message from %s"


class Receiver:
    """Hears of attempts, and tells the scheduler.

    Attributes:
        heard: how many frames, so far.
    """

    _port = Upward["SchedulerPort"]()

    def __init__(
        self,
        port: SchedulerPort,
        assignments: Assignments,
        prefetch: Prefetch,
        launcher: Launcher,
        deaths: Deaths,
        on_ready: Callable[[WorkerHandle], object],
        on_outgrown: Callable[[WorkerHandle], object],
    ) -> None:
        self._port = port
        self._assignments = assignments
        self._prefetch = prefetch
        self._launcher = launcher
        self._deaths = deaths
        self._on_ready = on_ready
        self._on_outgrown = on_outgrown
        self.heard = 0

    def receive(self, handle: WorkerHandle) -> bool:
        """Hear what has come through a worker's pipe; returns whether its other end is closed. Does not wait."""
        frames, eof = handle.read()
        self.frames(handle, frames)
        handle.heard(frames)
        self._assignments.keep_watched(handle)
        return eof

    def frames(self, handle: WorkerHandle, frames: list[wire.Frame]) -> None:
        """Hear frames."""
        self.heard += len(frames)
        plain: list[wire.Frame] = []
        for frame in frames:
            if frame.kind == RETURNED and type(handle.assigned.get(frame.serial)) is Job:
                plain.append(frame)
                continue
            if frame.kind == wire.USED:
                self._hear_used(handle, frame)
                continue
            if frame.ancillary and plain:  # descriptors are matched to frames by their order
                self._hear_successes(handle, plain)
                plain = []
            try:
                self._hear_one(handle, frame)
            except BaseException:  # from a callback, a log handler, a record that cannot be unpickled
                logger.exception(_FRAME_RAISED, handle.name)
        if plain:
            self._hear_successes(handle, plain)

    def _hear_one(self, handle: WorkerHandle, frame: wire.Frame) -> None:
        if frame.kind in wire.ROWS:
            self._hear_values(handle, frame)
        elif frame.serial:
            self._hear_outcome(handle, frame)
        elif frame.kind == wire.READY:
            self._on_ready(handle)
        elif frame.kind == wire.OUTGROWN:
            say(INFO, "worker %s is replaced: it has %s bytes of memory", handle.name, frame.payload.decode())
            self._on_outgrown(handle)
        elif frame.kind == wire.DROPPED:
            with self._port.lock:
                handle.dropped()
        elif frame.kind == wire.START_FAILED:
            handle.start_failed(traceback=frame.payload.decode())
        elif frame.kind == wire.LOG:
            log_relay.receive_record(frame.payload)

    def _hear_successes(self, handle: WorkerHandle, frames: list[wire.Frame]) -> None:
        """Hear of plain jobs that returned: all in one go, as they come by the hundred."""
        port = self._port
        with port.lock:
            jobs = handle.plain_ended(list(map(wire.serial_of, frames)))
        try:
            ran = []
            seconds, output = 0.0, handle.output
            for job, frame in zip(jobs, frames):
                if job is not None:  # else it was heard of before
                    start, end = frame.start, frame.end
                    seconds += end - start
                    if output is not None:
                        output.note(job, frame.serial)
                    outcome = decode(frame.kind, frame.payload, job, frame.ancillary, handle.receive)
                    ran.append((job, start, outcome, end))
            if ran:
                self._prefetch.observe(seconds / len(ran), count=len(ran))
                port.report_ran(handle, handle.name, ran)
        except BaseException:  # a signal handler's; callbacks are guarded one by one
            logger.exception(_FRAME_RAISED, handle.name)

    def _hear_used(self, handle: WorkerHandle, frame: wire.Frame) -> None:
        """Hear what an attempt has used, of which the end comes next."""
        job = handle.assigned.get(frame.serial)
        if type(job) is Job:
            job.has_used(cpu_time=frame.start, peak_memory=None if frame.end < 0 else int(frame.end))

    def _hear_outcome(self, handle: WorkerHandle, frame: wire.Frame) -> None:
        """Hear how one call ended."""
        with self._port.lock:
            job, _ = handle.ended(frame.serial)
        if job is None:
            return  # from the journal and through the pipe
        self._prefetch.observe(frame.end - frame.start)
        number = self._begin(handle, job, frame.start, over=True)
        if type(job) is MapChunk and frame.kind == UNREADABLE:
            self._end_item(handle, job, frame.serial, None, frame.start, frame.end)
            return
        if handle.output is not None and type(job) is not MapChunk:
            handle.output.note(job, frame.serial)
        what = _named(job, frame.serial)
        outcome = decode(frame.kind, frame.payload, what, frame.ancillary, handle.receive)
        if type(job) is MapChunk:
            self._end_item(handle, job, frame.serial, outcome, frame.start, frame.end)
        elif number:
            self._port.report(job, number, outcome, frame.end)

    # ── chunks ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _hear_values(self, handle: WorkerHandle, frame: wire.Frame) -> None:
        """Hear of items in a row that returned; the first of them may be known from the journal."""
        count = frame.ancillary
        with self._port.lock:
            chunk, known = handle.ended(frame.serial, count)
        if chunk is None:
            return
        self._prefetch.observe((frame.end - frame.start) / count, ITEM_OVERHEAD, count)
        if type(chunk) is not MapChunk:
            self._hear_retried(handle, chunk, frame)
            return
        self._begin(handle, chunk, frame.start, over=True)
        values, failures = values_of(frame, lambda place: _named(chunk, frame.serial + place))
        first = chunk.index_of(frame.serial)
        position = known
        for place in sorted(failures):
            if place >= known:
                chunk.returned(first + position, values[position:place])
                if chunk.phase == Phase.LIVE:
                    chunk.failed(first + place, failures[place].error, frame.start, frame.end, handle.name)
                position = place + 1
        chunk.returned(first + position, values[position:])
        self._close_if_over(chunk)

    def _hear_retried(self, handle: WorkerHandle, job: AnyJob, frame: wire.Frame) -> None:
        """Hear of an item that had failed, and has returned now."""
        values, failures = values_of(frame, lambda _: job)
        outcome = failures[0] if failures else Success(values[0])
        self._port.report_ran(handle, handle.name, [(job, frame.start, outcome, frame.end)])

    def _end_item(
        self, handle: WorkerHandle, chunk: MapChunk, serial: int, outcome: Outcome | None, start: float, end: float
    ) -> None:
        """Store how one item of a chunk ended; None: it could not begin, as the chunk could not be loaded."""
        index = chunk.index_of(serial)
        try:
            if type(outcome) is Success:
                chunk.returned(index, [outcome.value])
            elif chunk.phase == Phase.LIVE:
                if type(outcome) is Failure:
                    chunk.failed(index, outcome.error, start, end, handle.name)
                else:
                    chunk.isolate(index)
        finally:  # it may be a user's callback or `__reduce__` that raises
            self._close_if_over(chunk)

    def _close_if_over(self, chunk: MapChunk) -> None:
        """Close a chunk, the last item of which may have been heard of; its tail may be taken back at this moment.

        Then both sides find it over, and it is closed once.
        """
        if not chunk.left:
            self.close_chunk(chunk)

    def close_chunk(self, chunk: MapChunk) -> None:
        """Report a chunk of which every item has ended."""
        number = chunk.attempt_number if chunk.phase == Phase.LIVE else 0
        if number:
            self._port.report(chunk, number, Success(None), time.monotonic())

    # ── silence and death ───────────────────────────────────────────────────────────────────────────────────────────

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
                with self._port.lock:
                    self._prefetch.relieve(handle, running, now)
            handle.poll_next(now + POLL_AFTER)
            return
        job = handle.assigned.get(serial) if serial else None
        is_unwanted = job is not None and not self._begin(handle, job, running.since)
        if job is not None and job.settings.timeout is not None:
            handle.timer.arm(running.since + job.settings.timeout)  # of this very item, if it is one of a chunk
        with self._port.lock:
            if is_unwanted and handle.pending_kill is None:  # it was ended before we knew that it runs
                self._assignments.take_back(handle)  # first: nothing may begin behind it, and be killed in its place
                handle.kill_when_running(serial, CancelledError())
            else:
                handle.check_pending_kill()
            is_stuck = job is not None and self._prefetch.relieve(handle, running, now)
            # Still with the lock held: whoever wants it killed in between wants its journal looked into, too.
            is_done = (is_stuck and not handle.pending_kill) or not handle.assigned
            handle.poll_next(None if is_done else now + POLL_AFTER)

    def interrupted(self, handle: WorkerHandle, interrupted: Interrupted, exitcode: int | None) -> None:
        """Settle what a worker was running, or loading, when it died."""
        job, running, error = interrupted
        if job is None:
            return
        number = self._begin(handle, job, running.since, over=True)
        if handle.output is not None and type(job) is not MapChunk:
            handle.output.note_rest(job)
        error = self._deaths.error_of(handle, exitcode, job.fn, _named(job, running.serial).id, error)
        if type(job) is not MapChunk:
            if number:
                self._port.report(job, number, Failure(error), time.monotonic())
        elif not running.loading:
            self._end_item(handle, job, running.serial, Failure(error), running.since, time.monotonic())
        elif number:
            try:
                job.isolate_all()
            finally:
                self.close_chunk(job)

    def _begin(self, handle: WorkerHandle, job: AnyJob, start: float, over: bool = False) -> int:
        """Return the number of the attempt under way, having begun it if that is news; 0 if it does not count."""
        if job.phase == Phase.HANDED_OUT:
            return self._port.begin(job, handle, handle.name, start, over=over, begun=type(job) is not MapChunk)
        return job.attempt_number if job.phase == Phase.LIVE else 0


class _Item(NamedTuple):
    """An item of a chunk, as far as messages need it."""

    id: str


def _named(job: AnyJob, serial: int) -> Named:
    """Return what a worker has under a serial number: a task, or an item of a chunk."""
    return _Item(job.item_id(job.index_of(serial))) if type(job) is MapChunk else job
