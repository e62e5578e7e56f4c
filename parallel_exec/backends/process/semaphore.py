"""The semaphore of a worker's permits, where `multiprocessing` starts that: one that nobody leaves behind in the system.

A semaphore that travels to another program has a name there, which stays if whoever made it is killed. `multiprocessing`'s
resource tracker removes it then, if it was told of the name.

Guarantees:
    The tracker knows of a name before there is a semaphore of that name.
    What is forked while another thread makes or lets go of one can do so itself.
"""

from __future__ import annotations

import threading

from parallel_exec._sync.locks import hold_during_forks
from parallel_exec.backends.process.start_method import forks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Held while a semaphore is made or let go of, as the tracker is told then, which has a lock of its own. Not the one that is
# held for starts: the I/O thread must not wait for those.
lock = hold_during_forks(threading.RLock())


def make_semaphore(context: Any) -> Any:
    """Return a semaphore of value 0. Called with `lock` held.

    `multiprocessing` tells the tracker of it afterwards. (What makes the name is private there; where it is called otherwise,
    the tracker is told afterwards by us, too.)

    Raises:
        OSError: there is no space for it.
    """
    if forks(context):
        return context.Semaphore(0)  # it is inherited, without a name
    from multiprocessing import resource_tracker
    from multiprocessing.context import BaseContext
    from multiprocessing.synchronize import Semaphore, SemLock

    resource_tracker.ensure_running()  # first: it removes the semaphore if this process is killed
    if not isinstance(context, BaseContext):
        return context.Semaphore(0)
    names: list[str] = []

    def make_name() -> str:
        names.append(SemLock._make_name())  # type: ignore[attr-defined]
        resource_tracker.register(names[-1], "semaphore")
        return names[-1]

    semaphore: Any = Semaphore.__new__(Semaphore)
    semaphore._make_name = make_name
    try:
        semaphore.__init__(0, ctx=context.get_context())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (for a semaphore: they lie in /dev/shm)") from error
    finally:
        name = getattr(getattr(semaphore, "_semlock", None), "name", None)
        for vain in set(names) - {name}:
            resource_tracker.unregister(vain, "semaphore")
    del semaphore._make_name
    return semaphore
