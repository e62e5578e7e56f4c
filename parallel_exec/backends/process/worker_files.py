"""The files between the parent and one worker process, as the parent has them.

    tasks ────► the worker       batches
    results ◄── the worker       frames
    journal ◄── the worker       the same frames, before they are in the pipe: memory that both see
    channel ◄─► the worker       descriptors that go with batches and frames
    output ◄─── the worker       what it prints, if that is captured
    lifeline ─► the worker       nothing: when it closes, this process is gone

Guarantees:
    All of them are open, or none. The child's ends are closed here as soon as the child has them.
"""

from __future__ import annotations

import os

from parallel_exec.backends._descriptors import Descriptor, pipe, socket_pair
from parallel_exec.backends._platform import death_watch
from parallel_exec.backends.process import segments, spawn, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class WorkerFiles:
    """The files that are open here for one worker; attributes are written once, if nothing else is said.

    Attributes:
        tasks, results: descriptors of the pipes' ends, which do not block.
        journal, channel: as drawn above.
        watch: a descriptor that becomes readable when the process ends; -1 until there is one.
        output: the descriptor of that pipe's end, which does not block; -1 for none.
        theirs: the child's ends (tasks, results, lifeline, journal, channel, and output if there is one), until they are closed;
            changed by the thread that starts the process, or by the I/O thread after that has failed.
    """

    def __init__(self, *, captures: bool = False) -> None:
        """Open them.

        Args:
            captures: whether what the worker prints is captured.

        Raises:
            OSError: too many are open.
        """
        opened: list[int] = []

        def keep(*fds: int) -> tuple[int, ...]:
            opened.extend(fds)
            return fds

        try:
            tasks, self.tasks = keep(*pipe())
            self.results, results = keep(*pipe())
            lifeline, self._lifeline = keep(*pipe())
            journal = segments.create(wire.FILE_SIZE, opened)
            self.journal = wire.Journal(journal)
            self.output, *output = keep(*pipe()) if captures else (-1,)
            self.channel, channel = socket_pair()
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        self.theirs = [Descriptor(fd) for fd in (tasks, results, lifeline, journal, channel.detach(), *output)]
        for fd in (self.tasks, self.results, *([self.output] if captures else ())):
            os.set_blocking(fd, False)
        self.watch = -1
        self._own_watch = False

    def watch_death(self, process: Any) -> None:
        """Open `watch` for a process that was started."""
        self.watch, self._own_watch = death_watch(process.pid, process.sentinel)

    def close_theirs(self) -> None:
        """Close the child's ends."""
        theirs, self.theirs = self.theirs, []  # first: a child that is forked meanwhile must not close their numbers
        for descriptor in theirs:
            descriptor.close()

    def close(self) -> None:
        """Close everything, once; also in a forked child, which has copies."""
        if not spawn.is_launching(self.theirs):  # a worker that was just forked keeps its own
            self.close_theirs()
        for fd in (self.tasks, self.results, self._lifeline, *([self.watch] if self._own_watch else [])):
            os.close(fd)
        if self.output >= 0:
            os.close(self.output)
        self.channel.close()
        self.journal.close()
