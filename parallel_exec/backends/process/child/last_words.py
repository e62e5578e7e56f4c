"""What a worker says as it dies: where each of its threads is, by `faulthandler`, into the memory behind its journal.

    a fatal signal (SIGSEGV, SIGABRT, ...) ───► all threads ──────────────┐
    the parent's signals, as time is up: ─┬─► all threads, then the end ──┼─► dump, read by the parent after the death
                                          └─► the main thread by itself ──┘

It is written by C code in a signal handler: also while a C call hangs, and whoever holds the interpreter. Of a worker that has
more than a hundred threads, `faulthandler` leaves out the oldest, the task's; so that one is asked by itself, too.

Guarantees:
    A process that a task forks writes nothing there: it is no worker, and says what it has to say on standard error if the
    interpreter was told so.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal

from parallel_exec.backends._platform import DUMP_ALL, DUMP_MAIN, DUMP_SIGNALS


def write_to(fd: int, position: int) -> None:
    """Write to a file, from this position on. In the main thread, at the worker's start; the file stays open."""
    was_enabled = faulthandler.is_enabled()
    os.lseek(fd, position, os.SEEK_SET)
    faulthandler.enable(fd)
    if DUMP_ALL:
        for number in DUMP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        faulthandler.register(DUMP_ALL, fd, all_threads=True, chain=True)
        faulthandler.register(DUMP_MAIN, fd, all_threads=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, DUMP_SIGNALS)

    def forget() -> None:
        faulthandler.disable()
        if DUMP_ALL:
            for number in DUMP_SIGNALS:
                faulthandler.unregister(number)
        if was_enabled:
            with contextlib.suppress(Exception):  # there is no standard error
                faulthandler.enable()

    os.register_at_fork(after_in_child=forget)
