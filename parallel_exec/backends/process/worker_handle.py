"""The parent's side of one worker process: its pipes, its permits, and what it was handed.

Guarantees:
    `assigned` holds, in order, what was sent and has not come back. The worker acquires a permit before it begins a task;
    each permit that the parent gets instead proves that the last of `assigned` did not begin, and never will: the worker
    then finds no permit, drops the rest, and says so. Until it has said so (`draining`) nothing is sent to it, or it
    could take a new permit for an old task.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

from parallel_exec._core.map_chunk import MapChunk
from parallel_exec._sync.clock import time
from parallel_exec.backends._descriptors import Descriptor, pipe, socket_pair
from parallel_exec.backends._platform import death_watch, kill_group
from parallel_exec.backends.process import segments, spawn, wire
from parallel_exec.backends.process.child.main import WorkerConfig
from parallel_exec.backends.process.spawn import make_semaphore

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends.process.payload import Initializer

POLL_AFTER = 0.003  # seconds of silence after which a journal is looked into
_JOINED = 1 << 18  # bytes of a batch up to which one piece is made of it, for one system call; a guess
_READ = 1 << 18  # bytes for one read; a guess


class WorkerHandle:
    """One worker process, seen from the parent; guarded by the scheduler's lock, its buffers by being the I/O thread's.

    Attributes:
        name: for people.
        timer: due when the running attempt outruns its timeout.
        ready: whether it has said that it is.
        closing: whether it was told to end.
        draining: whether it must say that it dropped what was taken back, before anything is sent to it.
        assigned: serial number → future, in the order sent; a part stands here once for each item.
        doomed: the serial of a task for whose sake the worker is to be killed, and the error to report; or None.
        sent: how many tasks it has been given, all told, less those taken back.
        peek_at: when to look into its journal next; None for not before it is heard of.
        traceback, start_error: why it could not start: what it said, what we met.
        killed: whether we killed it.
        large: whether descriptors went with the last batch.
        leave_by: when it is killed if it has not ended, once it was told to and has nothing left to do.
        late: whether it took too long to start.
        watch: a descriptor that becomes readable when the process ends.
    """

    def __init__(self, name: str, context: Any) -> None:
        self.name = name
        self.timer: Any = None
        self.process: Any = None
        self.pid = 0
        self.ready = self.closing = self.draining = False
        self.assigned: dict[int, AnyJob] = {}
        self.pending_kill: tuple[int, BaseException] | None = None
        self.sent = 0
        self.poll_at: float | None = None
        self.traceback = ""
        self.start_error: BaseException | None = None
        self.late = False
        self.killed = False
        self.large = False
        self.leave_by: float | None = None
        self.watch = -1
        self._own_watch = False
        self._handing_out = False
        self._epoch = 0
        self._outgoing: deque[memoryview] = deque()
        self._incoming = bytearray()
        self._permits: Any = make_semaphore(context)
        try:
            self._open_pipes()
        except BaseException:
            self._permits = None  # now, and not whenever the traceback goes that leads here
            raise

    def _open_pipes(self) -> None:
        opened: list[int] = []

        def keep(*fds: int) -> tuple[int, ...]:
            opened.extend(fds)
            return fds

        try:
            tasks, self.tasks = keep(*pipe())
            self.results, results = keep(*pipe())
            lifeline, self._lifeline = keep(*pipe())
            journal = keep(segments.create(wire.JOURNAL_SIZE))[0]
            self._journal = wire.Journal(journal)
            self._channel, channel = socket_pair()
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        self._theirs = [Descriptor(fd) for fd in (tasks, results, lifeline, journal, channel.detach())]
        os.set_blocking(self.tasks, False)
        os.set_blocking(self.results, False)

    def setup(
        self, initializer: Initializer | None, main: dict[str, Any], memory_limit: int | None, levels: dict[str, int]
    ) -> WorkerConfig:
        """Return what the child needs."""
        tasks, results, lifeline, journal, channel = self._theirs
        first, initargs, others = initializer or (b"", None, ())
        own = (tasks, results, lifeline, journal, channel, self._permits)
        along = tuple(Descriptor(segment.fd) for segment in others)  # theirs to copy, ours to close
        return WorkerConfig(*own, first, initargs, main, memory_limit, levels, along)

    def started(self, process: Any) -> None:
        """Note the process; the child has its ends of the pipes now."""
        self.close_theirs()
        self.process = process
        self.watch, self._own_watch = death_watch(process.pid, process.sentinel)
        self.pid = process.pid

    def close_theirs(self) -> None:
        """Close the child's ends of the pipes."""
        theirs, self._theirs = self._theirs, []  # first: a child that is forked meanwhile must not close their numbers
        for descriptor in theirs:
            descriptor.close()

    # ── down ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def hand_out(self, serial: int, futures: list[AnyJob]) -> int:
        """Send a batch, its calls numbered from `serial`; returns the next number.

        What the pipe does not take at once waits in a buffer. Each item of a part is a call of its own.

        Raises:
            OSError: a descriptor cannot be sent; nothing was handed out, and the worker must not be used any more.
        """
        pieces: list[bytes] = [b""]
        stop = serial
        for future in futures:
            pieces += self._encode(stop, future)
            stop += future.weight
        size = sum(map(len, pieces))
        pieces[0] = wire.BATCH.pack(size, self._epoch, len(futures))
        batch = [b"".join(pieces)] if size < _JOINED else pieces
        for future in futures:  # the last of what may raise
            if future.payload.has_descriptors():
                segments.send(self._channel, future.payload.segment, future.payload.others)
        self._handing_out = True  # a finalizer that cancels something must not take back what has no permits yet
        try:
            self._assign(serial, futures)
            self.sent += stop - serial
            self.large = any(future.payload.has_descriptors() for future in futures)
            release = self._permits.release
            for _ in range(stop - serial):
                release()
            self._send(*batch)
        finally:
            self._handing_out = False
        if self.poll_at is None:
            self.poll_at = time.monotonic() + POLL_AFTER
        return stop

    def _assign(self, serial: int, futures: list[AnyJob]) -> None:
        for future in futures:
            future.placed(self)
            if type(future) is MapChunk:
                future.left = future.weight
                self.assigned.update(dict.fromkeys(range(serial, serial + future.weight), future))
                future.serial = serial
            else:
                self.assigned[serial] = future
            serial += future.weight

    def _encode(self, serial: int, future: AnyJob) -> tuple[bytes, bytes, bytes]:
        payload = future.payload
        known: Any = future.name()
        low = high = number = 0
        if type(future) is MapChunk:
            low, high, number = future.low, future.high, future.first
        elif future.stretch is not None:
            low, high, number, known = future.stretch
        elif type(known) is int:
            number, known = known, ""
        name = known.encode(errors="surrogatepass")
        timeout = future.settings.timeout or 0.0
        attempt = future.attempt_number + 1
        luggage = payload.luggage()
        task = wire.TASK.pack(serial, attempt, timeout, luggage, len(name), len(payload.data), low, high, number)
        return task, name, payload.data

    def tell_to_end(self) -> None:
        """Let the worker end once it has done what it was sent."""
        self.closing = True
        self._send(wire.BATCH.pack(0, 0, 0))

    def _send(self, *pieces: bytes) -> None:
        self._outgoing.extend(map(memoryview, pieces))
        self.flush()

    def flush(self) -> None:
        """Write what waits, as far as the pipe takes it."""
        try:
            while self._outgoing:
                data = self._outgoing[0]
                written = os.write(self.tasks, data)
                if written < len(data):
                    self._outgoing[0] = data[written:]
                else:
                    self._outgoing.popleft()
        except BlockingIOError:
            pass
        except (BrokenPipeError, OSError):  # it is dead; that is seen elsewhere
            self._outgoing.clear()

    def has_more(self) -> bool:
        """Return whether something waits for the pipe to take it."""
        return bool(self._outgoing)

    def take_back(self, most: int | None = None) -> list[int]:
        """Take back up to `most` calls that certainly have not begun, the last ones first; returns their serials in order."""
        count = 0
        most = 0 if self._handing_out else len(self.assigned) if most is None else min(most, len(self.assigned))
        while count < most and self._permits.acquire(False):
            count += 1
        if not count:
            return []
        self.draining = True
        self.sent -= count
        return list(self.assigned)[-count:]

    def forget(self, part: MapChunk) -> None:
        """Take all items of a part out of `assigned`."""
        for serial in [serial for serial, future in self.assigned.items() if future is part]:
            del self.assigned[serial]

    def dropped(self) -> None:
        """Note that the worker has dropped what was taken back."""
        self.draining = False
        self._epoch += 1

    # ── up ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self) -> tuple[list[wire.Frame], bool]:
        """Return the frames that have come through the pipe, and whether its other end is closed; does not wait."""
        eof = False
        try:
            while True:
                data = os.read(self.results, _READ)
                self._incoming += data
                if len(data) < _READ:
                    eof = not data
                    break
        except BlockingIOError:
            pass
        found = list(wire.decode(self._incoming, len(self._incoming)))
        if found:
            del self._incoming[: found[-1][1]]
        return [frame for frame, _ in found], eof

    def unread(self) -> list[wire.Frame]:
        """Return the frames in the journal; some may have come through the pipe already."""
        return self._journal.frames()

    def running(self) -> wire.Running:
        """Return which of `assigned` is running."""
        try:
            running = self._journal.running()
        except ValueError:  # a timer that was due when the worker was reaped: the journal is closed
            return wire.IDLE
        return running if running.serial in self.assigned else wire.IDLE

    def receive(self, luggage: int) -> segments.Received:
        """Return the descriptors that belong to a frame; the caller closes them."""
        return segments.receive(self._channel, luggage, socket.MSG_DONTWAIT)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def kill(self) -> None:
        """Kill the worker and what its task started."""
        if self.pid:
            self.killed = True
            kill_group(self.pid)

    def terminate(self) -> None:
        """Ask the worker to end, by SIGTERM: what it started is left to it."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill_rest(self) -> None:
        """Kill what is left of its group once it has ended itself: its number may be another process's by now."""
        if self.pid:
            kill_group(self.pid, leader_is_gone=True)

    def exitcode(self) -> int | None:
        """Return how the process ended, once it has; waits a moment for the news."""
        if self.process is None:
            return None
        self.process.join(1.0)
        code: int | None = self.process.exitcode
        return code

    def close_files(self) -> None:
        """Close what is open here; also in a forked child, which has copies."""
        if not spawn.is_launching(self._theirs):  # a worker that was just forked keeps its own
            self.close_theirs()
        for fd in (self.tasks, self.results, self._lifeline, *([self.watch] if self._own_watch else [])):
            os.close(fd)
        self._own_watch = False
        self._channel.close()
        self._journal.close()

    def close(self) -> None:
        """Let go of everything, after the process has ended."""
        self.close_files()
        if self.process is not None and self.process.exitcode is not None:
            self.process.close()
        self.process = None
        with spawn.semaphores:
            self._permits = None  # a semaphore has a name in the system until it is collected
