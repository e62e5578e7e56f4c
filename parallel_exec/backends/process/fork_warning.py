"""CPython's warning of a fork in a process with threads, kept from those who have asked for `fork`.

Since CPython 3.12 `os.fork()` warns in a process with threads, and a process with a pool of ours has some. (CPython's own
pool does not warn by itself, as it forks all its workers before it starts its thread; ours are started when there is
work for them.) Who writes `mp_context="fork"` has decided, and can do nothing about our threads. So has who brings a pool of
the standard library's that forks. And where warnings are errors, `os.fork()` raises from 3.15 on *after* it has made the
child, whose number is then unknown: nobody could wait for it, or end it.

    os.fork() ──► hook: our filter is put in ──► the child is made ──► hook: it is put in ──► the filter is taken out
                                                                ╰── CPython warns before the second hook, or after it

Guarantees:
    Only forks of the thread that is inside `no_fork_warning` pass without the warning, and those of no process that is
    forked there.
    The program's filters are as they were, whoever enters or leaves `warnings.catch_warnings` meanwhile. That replaces the
    list of filters by a copy, and puts the first one back in the end: two threads that do so in turns leave the wrong
    one behind. So the list itself is changed, from the hook on, which runs after the child is made and just before the
    warning, and the filter is taken out of the very list that it was put in, whichever that is by then.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator

_IGNORE = ("ignore", re.compile(r"This process .*is multi-threaded, use of fork"), DeprecationWarning, None, 0)

# By thread inside: the list that the filter is in, or None; each thread writes its own.
_changed: dict[int, list[Any] | None] = {}


@contextlib.contextmanager
def no_fork_warning() -> Iterator[None]:
    """Have what is forked in this thread meanwhile pass without the warning.

    (Not if filters of the current context decide otherwise, which there are since 3.14, if they are switched on: they come
    first. `Context().run` is the way to be without.)
    """
    me = threading.get_ident()
    _changed[me] = None
    try:
        yield
    finally:
        _take_out(_changed.pop(me, None))


def _put_in() -> None:
    me = threading.get_ident()
    if me in _changed:
        _take_out(_changed[me])  # of an earlier fork
        filters: Any = warnings.filters
        _changed[me] = filters
        # Not by `filterwarnings`, which also forgets what was shown once already.
        filters.insert(0, _IGNORE)


def _take_out(filters: list[Any] | None) -> None:
    if filters is not None:
        with contextlib.suppress(ValueError):  # all filters were reset meanwhile
            filters.remove(_IGNORE)


def _after_fork_in_child() -> None:
    for filters in _changed.values():
        _take_out(filters)
    _changed.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_put_in, after_in_parent=_put_in, after_in_child=_after_fork_in_child)
