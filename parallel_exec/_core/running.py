"""What `ParallelExecutor.running` returns. Imported by who asks for it: to make the class takes as long as to import a module."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple
else:
    from parallel_exec._typing import NamedTuple


class RunningTask(NamedTuple):
    """A task of which an attempt runs; a snapshot.

    Attributes:
        id: the task's id; of a `map` the item's.
        attempt: the number of the attempt, from 1.
        worker: the name of the thread or process that runs it.
        seconds: for how long it has run.
    """

    id: str
    attempt: int
    worker: str
    seconds: float
