"""Starting a worker process by `multiprocessing`: by `spawn`, by `fork`, or as a context of somebody else's does.

Guarantees:
    The child does not import the parent's main module by itself: a worker that only runs library functions starts faster,
    and a script without a `__main__` guard does not start itself again.
    The lock that starts hold guards all of it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from contextvars import Context
from multiprocessing import process, spawn

from parallel_exec.backends._platform import without_sigint
from parallel_exec.backends.process.child.main import main
from parallel_exec.backends.process.child.start import Start, WorkerConfig
from parallel_exec.backends.process.fork_warning import no_fork_warning
from parallel_exec.backends.process.start_method import forks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

_MAIN_KEYS = ("init_main_from_name", "init_main_from_path")


def start(context: Any, config: WorkerConfig, name: str) -> Any:
    """Start a worker and return its `multiprocessing.Process`. Blocks for some milliseconds.

    Raises:
        OSError: there are not enough descriptors left, or no process can be made.
    """
    # Not for a fork, in which a copy of the change would stay in force.
    without_main = contextlib.nullcontext() if forks(context) else _WithoutMain()
    with without_main, without_sigint(), no_fork_warning():
        child = context.Process(target=main, args=(Start(config),), name=name)
        Context().run(child.start)  # without the filters of this one, `fork_warning.py` says why
    # Else every start of any process polls this one, in whatever thread, and takes the news of its end from us.
    getattr(process, "_children", set()).discard(child)
    return child


class _WithoutMain:
    """While entered, what `multiprocessing` tells a child that *this thread* starts leaves out the main module.

    It has no setting for that; loky copies the whole of its start-up code instead. Other threads' children are told all.
    """

    _original: ClassVar[Any] = None  # what is replaced just now; guarded by `_lock`

    def __enter__(self) -> None:
        original = spawn.get_preparation_data
        type(self)._original = original
        mine = threading.get_ident()

        def preparation_data(name: str) -> dict[str, Any]:
            data: dict[str, Any] = original(name)
            if threading.get_ident() == mine:
                data = {key: value for key, value in data.items() if key not in _MAIN_KEYS}
            return data

        spawn.get_preparation_data = preparation_data

    def __exit__(self, *_: object) -> None:
        self.undo()

    @classmethod
    def undo(cls) -> None:
        """End it; does nothing if it is not in force. Also for a child that another thread forks meanwhile."""
        original, cls._original = cls._original, None
        if original is not None:
            spawn.get_preparation_data = original


os.register_at_fork(after_in_child=_WithoutMain.undo)
