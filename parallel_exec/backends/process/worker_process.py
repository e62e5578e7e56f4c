"""The process of one worker, as its parent has it: how it is killed, how it ended, and what it said as it died.

    started ─┬─ kill ─────────────────────────────────────────────────┬─► exitcode, stacks ─► close
             └─ kill_with_dump: asked where it is, and dies of that ──┤
                                 │ has not died DUMP_GRACE later      │
                                 └──────────► kill ───────────────────┘

Guarantees:
    Nothing here waits for a process to die, but `exitcode`, for the news of it.
    A process that is closed is never sent a signal: its number may be another's by now.
"""

from __future__ import annotations

import contextlib
import os
import signal

from parallel_exec._sync.clock import time
from parallel_exec.backends._platform import DUMP_ALL, ask_for_dump, kill_group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from parallel_exec._stacks import Stacks
    from parallel_exec._sync.timers import Timer

DUMP_GRACE = 0.05  # seconds that a worker has to say where it is, and die


class WorkerProcess:
    """One process; nobody else writes its attributes.

    Attributes:
        pid: its number; 0 before it is started.
        was_killed: whether we have killed it, or asked it to say where it is and die.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.was_killed = False
        self._is_wanted = True  # False: it was to be killed before it was there
        self._process: Any = None  # the `multiprocessing.Process`, or what is like one
        self._is_closed = False
        self._kill_at: float | None = None  # when it is killed that was asked where it is
        self._dump = b""  # what it wrote as it died

    def started(self, process: Any) -> None:
        """Note the process. By the thread that starts it."""
        self._process = process
        self.pid = process.pid

    def is_wanted(self) -> bool:
        """Return whether to go on making it: nobody has tried to kill it yet. Any thread."""
        return self._is_wanted

    def kill(self) -> None:
        """Kill it and what its task started."""
        if not self.pid:
            self._is_wanted = False
        elif not self._is_closed:
            kill_group(self.pid)
            self.was_killed = True  # not before: where Ctrl-C comes in between, it may live on, and must be given work

    def kill_with_dump(self, timer: Timer) -> None:
        """Have it say where it is, and die; `timer`, whose callback asks `is_dying`, kills it if it has not died in time."""
        if not self.pid:
            self._is_wanted = False
        if self._kill_at is not None or not self.pid or self._is_closed:
            return
        self._kill_at = time.monotonic() + DUMP_GRACE
        self.was_killed = True
        if ask_for_dump(self.pid):
            timer.arm(self._kill_at)
        else:
            self.kill()

    def is_dying(self, timer: Timer) -> bool:
        """Return whether it was asked where it is; kills it if the time for that is up. Called by the timer."""
        if self._kill_at is None:
            return False
        if time.monotonic() >= self._kill_at:
            self.kill()
        else:
            timer.arm(self._kill_at)
        return True

    def terminate(self) -> None:
        """Ask it to end, by SIGTERM: what it started is left to it."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill_rest(self) -> None:
        """Kill what is left of its group once it has ended itself: its number may be another process's by now."""
        if self.pid:
            kill_group(self.pid, leader_is_gone=True)

    def exitcode(self) -> int | None:
        """Return how it ended, once it has; waits a moment for the news. None if it was never made."""
        if self._process is None:
            return None
        self._process.join(1.0)
        code: int | None = self._process.exitcode
        return -signal.SIGKILL if self.was_killed and code and -code == DUMP_ALL else code

    def stacks(self) -> Stacks | None:
        """Return where its threads were as it died; None if it has not said. Once it is closed."""
        if not self._dump:
            return None
        from parallel_exec import _stacks  # only a death needs it

        return _stacks.parse(self._dump)

    def close(self, dump: bytes) -> None:
        """Let go of it, after it has ended; `dump` is what it wrote as it died."""
        self._dump = dump
        self._is_closed = True
        if self._process is not None and self._process.exitcode is not None:
            self._process.close()
        self._process = None
