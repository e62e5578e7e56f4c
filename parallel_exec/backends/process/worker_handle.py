"""The parent's side of one worker process: the state it is in, its permits, and what it was handed.

    STARTING ── became_ready ──► READY ── take_back ──► DRAINING
        │                         │ ▲                     │ │
        │                         │ └────── dropped ──────┘ │
        │                         ├── tell_to_end ◄─────────┘
        │                         ▼
        │                      CLOSING
        └──────────┬──────────────┴──── (from any state) close ──► DEAD

| state    | what it means                                                                       | is sent tasks |
|----------|-------------------------------------------------------------------------------------|---------------|
| STARTING | its process is being made, or has not said yet that it is ready                      | no            |
| READY    | it takes work                                                                       | yes           |
| DRAINING | it must say that it has dropped what was taken back before anything is sent to it   | not yet       |
| CLOSING  | it was told to end, and does what it was sent before                                | no            |
| DEAD     | it has ended, all that it left was read, and everything is closed                   | no            |

Beside its state a worker may have a *pending kill*: the call for whose sake it is to be killed as soon as it runs that. If the
call outran its timeout, the worker is asked where it is, and dies of that.

Guarantees:
    `assigned` holds, in order, what was sent and has not come back. The worker acquires a permit before it begins a call;
    each permit that the parent gets instead proves that the last of `assigned` did not begin, and never will: the worker
    then finds no permit, drops the rest, and says so. If something were sent to it before (DRAINING), it could take a new
    permit for an old call.
    A worker is never killed for the sake of a call that was heard to have ended.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
from collections import deque
from functools import partial
from itertools import repeat, starmap

from parallel_exec._core.map_chunk import MapChunk
from parallel_exec._sync.clock import time
from parallel_exec._sync.locks import CALL
from parallel_exec._sync.timers import NEVER
from parallel_exec.backends._descriptors import Descriptor
from parallel_exec.backends.process import segments, semaphore, wire
from parallel_exec.backends.process.assigned import AssignedCalls
from parallel_exec.backends.process.worker_files import WorkerFiles
from parallel_exec.backends.process.worker_process import WorkerProcess
from parallel_exec.errors import TaskTimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Sequence

    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends._pickling import Pickled
    from parallel_exec.backends.process.child.start import WorkerConfig
    from parallel_exec.backends.process.output import WorkerOutput
    from parallel_exec.backends.process.payload import Initializer


POLL_AFTER = 0.003  # seconds of silence after which a journal is looked into
STOP_GRACE = 2.0  # seconds that a worker has to end by itself once it was told to
_JOINED = 1 << 18  # bytes of a batch up to which one piece is made of it, for one system call; a guess
_READ = 1 << 16  # bytes for one read: what a pipe holds; room for more would be mapped, and unmapped, each time


class WorkerState:
    """What a worker process is ready for; the table is in the module's docstring."""

    STARTING = 0
    READY = 1
    DRAINING = 2
    CLOSING = 3
    DEAD = 4


AT_WORK = (WorkerState.READY, WorkerState.DRAINING)  # what may be, or will be, sent tasks


class WorkerHandle:
    """One worker process, seen from the parent.

    The scheduler's lock guards `state`, `assigned`, `pending_kill`, `sent` and the permits. The buffers, and what has no
    note, are the I/O thread's. Others may read all of it.

    Attributes:
        name: for people.
        index: its number among those of its pool: no other that lives has it.
        timer: due when it takes too long to start, then when the running attempt outruns its timeout.
        files: the pipes.
        output: what it prints; None: that is not captured.
        state: a `WorkerState`; nobody else writes it, nor anything of the following.
        assigned: the calls that it was sent and that have not come back.
        pending_kill: the serial number of the call for whose sake the worker is to be killed, and the error to report.
        sent: how many calls it has been given, all told, less those taken back.
        large: whether descriptors went with the last batch.
        outgoing: what the pipe has not taken yet.
        poll_at: when to look into its journal next, at the latest: the I/O thread is awake by then; None: not before it is
            heard of. Moved by the I/O thread; changed from or to None with the lock held, and who changes it from None
            in another thread wakes the I/O thread.
        traceback, start_error: why it could not start: what it said, and what its launch raised. The second is written by
            the thread that starts it, as is the next.
        process: its process.
        is_late: whether it took too long to start; written by its timer.
        has_overstayed: whether it was killed as it took too long to end.
    """

    def __init__(
        self,
        name: str,
        context: Any,
        make_timer: Callable[[WorkerHandle], Any],
        index: int = 0,
        *,
        captures: bool = False,
    ) -> None:
        """Open its files.

        Raises:
            OSError: there are no descriptors left, or no space for a semaphore.
        """
        self.name = name
        self.index = index
        self.state = WorkerState.STARTING
        self.assigned = AssignedCalls()
        self.pending_kill: tuple[int, BaseException] | None = None
        self.sent = 0
        self.large = False
        self.outgoing: deque[memoryview] = deque()
        self.poll_at: float | None = None
        self.traceback = ""
        self.start_error: BaseException | None = None
        self.process = WorkerProcess()
        self.is_late = False
        self.has_overstayed = False
        self._stop_deadline: float | None = None  # when it is killed unless it has ended
        self._handing_out = False
        self._epoch = 0  # of batches: each that was dropped ends one
        self._incoming = bytearray()
        # The fork server makes it with the process.
        self._permits: Any = None if context is None else semaphore.make_semaphore(context)
        try:
            self.files = WorkerFiles(captures=captures)
        except BaseException:
            self._permits = None  # now, and not whenever the traceback goes that leads here
            raise
        self.output = _open_output(self.files.output) if captures else None
        self.timer = make_timer(self)

    @property
    def is_free(self) -> bool:
        """Whether it has nothing to do, and may be given something at once."""
        if self.state != WorkerState.READY or self.assigned or self.outgoing:
            return False
        return not self._handing_out and self.pending_kill is None and not self.process.was_killed

    # ── its start ───────────────────────────────────────────────────────────────────────────────────────────────────

    def config(
        self, initializer: Initializer | None, main: dict[str, Any], memory_limit: int | None, levels: dict[str, int]
    ) -> WorkerConfig:
        """Return what the child needs."""
        from parallel_exec.backends.process.child.start import WorkerConfig  # when the fork server is on its way

        first, initargs, others = (b"", None, ()) if initializer is None else initializer[:3]
        # The child gets copies; these are closed here, with their segments.
        along = tuple(Descriptor(segment.fd) for segment in others)
        tasks, results, lifeline, journal, channel, *output = self.files.theirs
        own = (tasks, results, lifeline, journal, channel, self._permits)
        config = WorkerConfig(*own, first, initargs, main, memory_limit, levels, along)
        if self.output is None:
            return config
        return config._replace(captured=output[0], marker=self.output.token)

    def started(self, process: Any, permits: Any = None) -> None:
        """Note the process, and the semaphore if that was made with it; the child has its ends of the pipes now."""
        if permits is not None:
            self._permits = permits
        self.files.close_theirs()
        self.files.watch_death(process)
        self.process.started(process)

    def start_failed(self, error: BaseException | None = None, traceback: str = "") -> None:
        """Note why it cannot become ready: what was raised here, or what it said."""
        if traceback:
            self.traceback = traceback
        else:
            self.start_error = error

    def took_too_long(self) -> None:
        """Kill it, as it is not ready in time; if there is no process yet, who learns of that does so."""
        self.is_late = True
        self.process.kill_with_dump(self.timer)

    def became_ready(self) -> None:
        """Note that it takes work from now on."""
        self.state = WorkerState.READY
        self.timer.disarm()
        self.process.is_dying(self.timer)  # the clock found it late at this very moment: the timer is for its end

    # ── to the worker ─────────────────────────────────────────────────────────────────────────────────────────────────

    def hand_out(self, serial: int, jobs: list[AnyJob]) -> int:
        """Send a batch, its calls numbered from `serial`; returns the next number. Called with the lock held.

        What the pipe does not take at once waits in a buffer. Each item of a chunk is a call of its own.

        Raises:
            OSError: a descriptor cannot be sent; nothing was handed out, and the worker must be sent nothing more.
        """
        batch, large = self._encode(serial, jobs)
        for payload in large:  # the last of what may raise
            segments.send(self.files.channel, payload.segment, payload.others)
        self._handing_out = True  # a finalizer that cancels something must not take back what has no permits yet
        try:
            calls = self._assign(serial, jobs)
            self.sent += calls
            self.large = bool(large)
            deque(starmap(self._permits.release, repeat((), calls)), maxlen=0)  # half the time of a loop
            self.outgoing.extend(map(memoryview, batch))
            self.flush()
        finally:
            self._handing_out = False
        if self.poll_at is None:
            self.poll_at = time.monotonic() + POLL_AFTER
        return serial + calls

    def hand_over(self, serial: int, job: AnyJob) -> bool:
        """Send one plain job at once; returns whether it is on its way. Called with the lock held, by any thread.

        A signal handler may raise in the middle. The permit and the bytes are given in one step, as far as Python can see:
        before that the job is taken out again, and after it the job is on its way. What the pipe does not take is left in
        the buffer, for the I/O thread.
        """
        batch, _ = self._encode(serial, [job])
        if len(batch) > 1 or len(batch[0]) > select.PIPE_BUF:  # a pipe takes less as a whole, or not at all
            return False
        given: list[object] = []
        steps = (self._permits.release, partial(os.write, self.files.tasks, batch[0]))
        if not self.is_free:
            return False
        self._handing_out = True
        try:
            job.placed(self)
            self.assigned.add(serial, job)
            job.handed_out()
            if self.poll_at is None:
                self.poll_at = time.monotonic() + POLL_AFTER
            given.extend(map(CALL, steps))
        except OSError:  # it is full; or the worker is dead, which is seen elsewhere
            self.outgoing.append(memoryview(batch[0]))
        finally:
            self._handing_out = False
            if not given:  # a signal handler has raised
                self.assigned.remove(serial)
                job.queued()
        self.sent += 1
        self.large = False
        return True

    def _encode(self, serial: int, jobs: list[AnyJob]) -> tuple[list[bytes], list[Pickled]]:
        """Return the bytes of a batch, in one piece unless they are many, and the payloads that descriptors go with."""
        pieces = [b""]
        large: list[Pickled] = []
        size = 0
        encoded: dict[str, bytes] = {}  # names; most are the same
        for job in jobs:
            payload: Pickled = job.payload
            ancillary = 0
            if payload.segment is not None or payload.others:
                ancillary = payload.ancillary()
                large.append(payload)
            low = high = first = 0
            if type(job) is MapChunk:
                low, high, first, name = job.low, job.high, job.first, job.id
            elif payload.item is not None:
                low, high, first, name = payload.item
            else:
                name, first = job.id_parts()
            known, data = encoded.get(name), payload.data
            if known is None:
                known = encoded[name] = name.encode(errors="surrogatepass")
            settings, attempt, main = job.settings, job.attempt_number + 1, payload.may_name_main()
            timeout, soft = settings.timeout or 0.0, settings.soft_timeout or 0.0
            granted = b""
            if job.grant is not None:
                with contextlib.suppress(
                    Exception
                ):  # an item has changed, and cannot be pickled any more: it is not told
                    granted = pickle.dumps(job.grant.facts(), 5)
                main = main or b"main__" in granted
            names, grants, length = len(known), len(granted), len(data)
            header = wire.TASK.pack(
                serial, attempt, timeout, soft, ancillary, main, low, high, first, names, grants, length
            )
            pieces += header, known, granted, data
            size += wire.TASK.size + names + grants + length
            serial += job.weight
        pieces[0] = wire.BATCH.pack(size, self._epoch, len(jobs))
        return [b"".join(pieces)] if size < _JOINED else pieces, large

    def _assign(self, serial: int, jobs: list[AnyJob]) -> int:
        """Note what it is given; returns how many calls that are."""
        first = serial
        for job in jobs:
            job.placed(self)
            self.assigned.add(serial, job)
            serial += job.weight
        return serial - first

    def flush(self) -> bool:
        """Write what waits, as far as the pipe takes it; returns whether nothing waits any more. Called with the lock held."""
        outgoing = self.outgoing
        try:
            while outgoing:
                written = os.write(self.files.tasks, outgoing[0])
                if written < len(outgoing[0]):
                    outgoing[0] = outgoing[0][written:]
                else:
                    outgoing.popleft()
        except BlockingIOError:
            pass
        except OSError:  # it is dead; that is seen elsewhere
            outgoing.clear()
        return not outgoing

    def forget(self, numbers: list[int]) -> None:
        """Have the worker forget shared contents. Called with the lock held."""
        told = [wire.BATCH.pack(number, 0, wire.FORGET) for number in numbers]
        self.outgoing.append(memoryview(b"".join(told)))
        self.flush()

    def tell_to_end(self) -> None:
        """Let the worker end once it has done what it was sent."""
        self.state = WorkerState.CLOSING
        self.outgoing.append(memoryview(wire.BATCH.pack(0, 0, 0)))
        self.flush()

    # ── taken back ────────────────────────────────────────────────────────────────────────────────────────────────────

    def take_back(self, most: int | None = None) -> int:
        """Take the permits of up to `most` calls that certainly have not begun; returns how many those are.

        They are the last of `assigned`, and the caller must take them out of it. Called with the lock held.
        """
        count = 0
        most = 0 if self._handing_out else len(self.assigned) if most is None else min(most, len(self.assigned))
        while count < most and self._permits.acquire(False):
            count += 1
        if count and self.state == WorkerState.READY:
            self.state = WorkerState.DRAINING
        self.sent -= count
        return count

    def dropped(self) -> None:
        """Note that the worker has dropped what was taken back. Called with the lock held."""
        self._epoch += 1
        if self.state == WorkerState.DRAINING:
            self.state = WorkerState.READY

    def plain_ended(self, serials: Sequence[int]) -> list[AnyJob | None]:
        """Take jobs that are no chunks out of `assigned`; None: it was heard of before. Called with the lock held."""
        if self.pending_kill is not None:
            self._spare(serials)
        return self.assigned.plain_ended(serials)

    def ended(self, serial: int, count: int = 1) -> tuple[AnyJob | None, int]:
        """Take calls of one job out of `assigned`; returns what `AssignedCalls.ended` does. Called with the lock held."""
        self._spare(range(serial, serial + count))
        return self.assigned.ended(serial, count)

    def _spare(self, serials: Sequence[int]) -> None:
        """Forget that it was to be killed for the sake of a call that is one of these."""
        if self.pending_kill is not None and self.pending_kill[0] in serials:
            self.pending_kill = None

    # ── from the worker ───────────────────────────────────────────────────────────────────────────────────────────────

    def read(self) -> tuple[list[wire.Frame], bool]:
        """Return the frames that have come through the pipe, and whether its other end is closed; does not wait."""
        eof = False
        incoming = self._incoming
        try:
            while True:
                data = os.read(self.files.results, _READ)
                incoming += data
                if len(data) < _READ:
                    eof = not data
                    break
        except BlockingIOError:
            pass
        frames, end = wire.decode(incoming, len(incoming))
        del incoming[:end]
        return frames, eof

    def unread(self) -> list[wire.Frame]:
        """Return the frames in the journal; some may have come through the pipe already."""
        return self.files.journal.frames()

    def running(self) -> wire.Running:
        """Return which of `assigned` is running."""
        try:
            running = self.files.journal.running()
        except ValueError:  # a timer that was due when the worker was reaped: the journal is closed
            return wire.IDLE
        return running if running.serial and self.assigned.get(running.serial) is not None else wire.IDLE

    def receive(self, ancillary: int) -> segments.Received:
        """Return the descriptors that belong to a frame; the caller closes them."""
        return segments.receive(self.files.channel, ancillary, socket.MSG_DONTWAIT)

    def heard(self, frames: list[wire.Frame]) -> None:
        """Note when to look at it next, as it was just heard of."""
        if not self.assigned:
            self._stop_deadline = None
            if self.state == WorkerState.CLOSING:
                self.check_end(time.monotonic())
                return
        if any(map(wire.serial_of, frames)) or (self.assigned and self.poll_at is None):
            self.poll_at = time.monotonic() + POLL_AFTER

    def poll_next(self, at: float | None) -> None:
        """Look into its journal at `at` (monotonic); None, with the lock held: not before it is heard of."""
        self.poll_at = at

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def kill_when_running(self, serial: int, error: BaseException) -> None:
        """Have it killed for the sake of a call that it runs, or is about to. Called with the lock held."""
        self.pending_kill = (serial, error)
        self.poll_at = time.monotonic()
        self.check_pending_kill()

    def check_pending_kill(self) -> None:
        """Kill it if it runs what it is to be killed for: it may be before the start of that, or after its end."""
        if self.pending_kill is not None and self.running().serial == self.pending_kill[0]:
            if type(self.pending_kill[1]) is TaskTimeoutError:
                self.process.kill_with_dump(self.timer)
            else:
                self.process.kill()

    def check_end(self, now: float) -> None:
        """Kill it if it was told to end, has nothing left to do and takes too long: a task has left behind what goes on."""
        if self.state != WorkerState.CLOSING or self.assigned:
            return
        if self._stop_deadline is None:
            self.poll_at = self._stop_deadline = now + STOP_GRACE
        elif self._stop_deadline <= now:
            self.overstayed()
            self.poll_at, self._stop_deadline = None, NEVER

    def overstayed(self) -> None:
        """Kill it, as it was told to end, and has not done so in time."""
        self.has_overstayed = True
        self.process.kill()

    def close(self) -> None:
        """Let go of everything, after the process has ended."""
        self.state = WorkerState.DEAD
        self.process.close(self.files.journal.dump())
        self.files.close()
        with semaphore.lock:
            self._permits = None  # a semaphore has a name in the system until it is collected


def _open_output(fd: int) -> WorkerOutput:
    from parallel_exec.backends.process.output import WorkerOutput  # few pools capture it

    return WorkerOutput(fd)
