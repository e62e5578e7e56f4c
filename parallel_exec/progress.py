"""A bar while a run goes on (tqdm, extra `progress`).

Guarantees:
    tqdm is imported only when a bar is asked for. A bar starts no thread, no process and no semaphore, and does not
    touch multiprocessing's default start method.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tqdm.std import tqdm


class Bar:
    """A bar on standard error; made by `progress_bar`. To be used by one thread at a time."""

    def __init__(self, drawn: tqdm[Any]) -> None:
        self._drawn = drawn
        self._failed = 0

    def update_to(self, done: int, total: int, failed: int) -> None:
        """Show how far the run is. Cheap: drawn again ten times a second at most.

        Args:
            done: tasks that have their result.
            total: all tasks so far, which may grow; 0 while unknown.
            failed: how many of `done` failed.
        """
        self._drawn.total = total or None
        if failed != self._failed:
            self._failed = failed
            self._drawn.set_postfix_str(f"{failed} failed", refresh=False)
        self._drawn.update(done - self._drawn.n)

    def hidden(self) -> AbstractContextManager[None]:
        """Take the bar off the terminal while something else is written there."""
        return self._drawn.external_write_mode()


@contextlib.contextmanager
def progress_bar(total: int) -> Iterator[Bar]:
    """Draw a bar on standard error until the block ends; its last state stays.

    Args:
        total: how many tasks there are; 0 while unknown.

    Raises:
        ModuleNotFoundError: tqdm is not installed; the message says how to get it.
    """
    with quiet_tqdm()(total=total or None, unit=" tasks", dynamic_ncols=True) as drawn:
        yield Bar(drawn)


def quiet_tqdm() -> type[tqdm[Any]]:
    """Return tqdm without the two things that it would leave behind; raises as `progress_bar` does.

    tqdm's default lock is a multiprocessing one: a semaphore, its tracker process, and a start method chosen for good.
    Its monitor is a thread that outlives the bar, there for loops that slow down; ours is told of every task.
    """
    try:
        from tqdm.std import tqdm
    except ImportError as error:
        raise ModuleNotFoundError(
            'a progress bar needs tqdm, which is not installed: pip install "parallel_exec[progress]"', name="tqdm"
        ) from error

    class Quiet(tqdm):  # type: ignore[type-arg]  # tqdm is generic for type checkers alone
        monitor_interval = 0
        _lock = threading.RLock()

    return Quiet
