"""The executor's state: whether tasks may be added, and whether attempts may begin.

    STAGED ──► OPEN ──► CLOSED ──► DRAINED
      ▲         │
      └─ stage ─┘      and besides: paused, stopped (SIGTERM has come: nothing begins any more), broken (nothing can ever
                       run), forked (the copy in a forked child)

    STAGED    what is added waits: nobody has started the pool, or the last `execute_all` is over
    OPEN      what is ready begins as soon as there is a slot
    CLOSED    nothing is added any more; what was added goes on, or is cancelled if the pool was only staged
    DRAINED   all has ended: back ends let their workers go

Guarantees:
    All changes are made here, by the methods, under the executor's lock, except by `give_up`. Reading one attribute needs no
    lock.
"""

from __future__ import annotations

from parallel_exec._outcome import Failure
from parallel_exec.errors import ParallelExecError, copy_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Never

FORKED = "this executor was made before the process forked: make a new one in the child"


class Gate:
    """The state of one executor. Guarded by its lock.

    Attributes:
        may_start: whether attempts may begin now: it is open, or was when it closed, and neither paused nor stopped.
        is_open: whether what is added is started without another call; stays true when an open pool closes.
        is_kept_open: whether `stage` leaves it open.
        admits: whether tasks may be added.
        closed: whether it was shut down.
        drained: whether nothing is left to do, and nothing can be added.
        forked: whether this is the copy in a forked child.
        final_outcome: how tasks end that are not under way, once none may begin any more.
    """

    def __init__(self) -> None:
        self.may_start = False
        self.is_open = False
        self.admits = True
        self.closed = False
        self.drained = False
        self.forked = False
        self.final_outcome: Failure | None = None
        self._paused = False
        self._stopped = False
        self.is_kept_open = False
        self._at_exit = False  # whether it was the interpreter's end that closed it
        self._broken: ParallelExecError | None = None

    def open(self) -> None:
        """Let attempts begin until the next `stage`; raises as `refuse` does."""
        if not self.admits:
            self.refuse()
        self.is_open = True
        self._update()

    def enter(self, start: bool) -> None:
        """Admit a task; with `start`, let attempts begin, for good. Raises as `refuse` does."""
        if start:
            self.open()
            self.is_kept_open = True
        elif not self.admits:
            self.refuse()

    def stage(self) -> None:
        """Let what is added from now on wait for the next `open`, unless it is open for good."""
        self.is_open = self.is_kept_open
        self._update()

    def pause(self) -> None:
        """Let no attempt begin until `resume`."""
        self.check_open("pause")
        self._paused = True
        self.may_start = False

    def resume(self) -> None:
        """Undo `pause`."""
        self.check_open("resume")
        self._paused = False
        self._update()

    def stop(self) -> None:
        """Let no attempt begin any more; what waits goes on waiting, until `give_up`."""
        self._stopped = True
        self.may_start = False

    def give_up(self, cancelled: Failure) -> None:
        """Let what is added from now on, and comes back, end as `cancelled`. One assignment, so without the lock."""
        self.final_outcome = self.final_outcome or cancelled

    def _update(self) -> None:
        self.may_start = self.is_open and not self._paused and not self._stopped

    def close(self, cancelled: Failure | None, *, at_exit: bool) -> None:
        """Admit nothing more; what is not under way ends as `cancelled`, if that is given."""
        self._at_exit = self._at_exit or (at_exit and not self.closed)
        self.closed = True
        self.admits = False
        self.final_outcome = self.final_outcome or cancelled
        self._paused = False
        self._update()

    def drain(self) -> None:
        """Note that nothing is left."""
        self.drained = True

    def fail(self, error: ParallelExecError) -> None:
        """Nothing can ever run again: refuse what is added with the first such error."""
        self._broken = self._broken or error
        self.admits = False
        self.final_outcome = Failure(self._broken)

    def is_in_use(self) -> bool:
        """Return whether anything may be left to do, and by this process."""
        return not self.drained and not self.forked

    def fork(self) -> None:
        """Become the copy in a forked child, which can do nothing."""
        self.forked = True
        self.admits = False

    def refuse(self) -> Never:
        """Say why nothing can be added.

        Raises:
            RuntimeError: it was shut down.
            ParallelExecError: workers cannot start, or the process has forked.
        """
        if self.forked:
            raise ParallelExecError(FORKED)
        if self._broken is not None:
            raise copy_of(self._broken)  # the one that is kept must not lead to who met it
        raise RuntimeError(f"cannot schedule new futures after {'interpreter ' if self._at_exit else ''}shutdown")

    def check_open(self, what: str) -> None:
        """Refuse to do `what` with an executor that has ended.

        Raises:
            RuntimeError: it was shut down.
            ParallelExecError: the process has forked.
        """
        if self.forked:
            raise ParallelExecError(FORKED)
        if self.closed:
            after = "interpreter shutdown" if self._at_exit else "shutdown: make a new ParallelExecutor"
            raise RuntimeError(f"cannot {what} an executor after {after}")
