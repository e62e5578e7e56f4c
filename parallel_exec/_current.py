"""What the calling thread runs, as `current_task()` shows it, and for which pool.

Imports nothing of ours, as worker processes need it.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Protocol

    Granted = Callable[[], dict[str, Any]]
    Serving = tuple[int, str, dict[str, Any]]
else:
    from parallel_exec._typing import Protocol


class RunningCall(Protocol):
    """What `current_task()` asks of the call that the thread runs."""

    @property
    def id(self) -> str:
        """The task's id."""
        ...

    @property
    def started_at(self) -> float:
        """`time.monotonic()` when the attempt began."""
        ...

    @property
    def timeout(self) -> float | None:
        """Seconds for the attempt; None for no limit."""
        ...

    @property
    def root_seed(self) -> int:
        """The executor's seed, of which with the task's id the task's is made."""
        ...

    def unwanted(self, number: int) -> Callable[[], bool]:
        """Return what says whether nobody waits for attempt `number` any more; it keeps nothing alive."""
        ...


class _Current(threading.local):
    """What the calling thread does for a pool. Others read the attributes; the methods write them.

    The last four are stored from outside, next to a `try`: in a method a signal handler could raise before it has.

    Attributes:
        running: the call that it runs.
        number: the attempt's number.
        granted: returns what the attempt was granted of the executor's limits; None: nothing.
        pool: the scheduler that it works for, if it is a thread of ours.
        worker: the index, name and state of the worker that it is; None: it is none.
        ending: the schedulers of which it is just ending a task.
        adding: those of which it is just telling the hook of a task that is not in the queue yet.
        telling: the tasks whose way it has stopped to tell the hook of it.
        driving: those whose tasks it runs, though it is the user's, and theirs to wait for.
    """

    running: RunningCall | None = None
    number = 0
    granted: Granted | None = None
    pool: object = None
    worker: Serving | None = None
    _state: dict[str, Any] | None = None  # of a thread that is none of ours, and is a worker now and then
    ending: tuple[object, ...] = ()
    adding: tuple[object, ...] = ()
    telling: tuple[object, ...] = ()
    driving: tuple[object, ...] = ()

    def begin(self, call: RunningCall | None, number: int, granted: Granted | None = None) -> None:
        """Note that the thread runs attempt `number` of a call: a new one, or the one that a new one had interrupted."""
        self.running = call
        self.number = number
        self.granted = granted

    def under_way(self) -> tuple[RunningCall | None, int, Granted | None]:
        """Return what the thread runs, for `begin` once what interrupts it is over."""
        return self.running, self.number, self.granted

    def end(self) -> None:
        """Note that the call has ended."""
        self.running = None

    def work_for(self, pool: object, worker: Serving | None = None) -> None:
        """Note for whom the thread works, which keeps that, and as which worker; None: for nobody, as none."""
        self.pool = pool
        self.worker = worker

    def saved(self) -> tuple[Any, ...]:
        """Return what the thread does, for `restore` once what interrupts it is over."""
        return self.running, self.number, self.granted, self.pool, self.worker

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Go on with what a call of ours has interrupted."""
        self.running, self.number, self.granted, self.pool, self.worker = saved

    def serve(self, worker: Serving | None) -> None:
        """Note which worker the thread is from now on; None: none."""
        self.worker = worker

    def borrowed(self, index: int, name: str) -> Serving:
        """Return what the thread is as a worker for a moment, if it is somebody else's: its state is there again next time."""
        state = self._state
        if state is None:
            state = self._state = {}
        return index, name, state


current = _Current()
