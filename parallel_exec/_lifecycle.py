"""When executors end without being told: at interpreter exit, when they are collected, in a forked child.

Guarantees:
    At exit, pending work is finished, as with the stdlib's pools, and late submits are refused; abandoned threads are
    not waited for. A program that ends by Ctrl-C ends: its work is cancelled, and what runs is stopped, however often
    Ctrl-C is pressed meanwhile.
    An executor that is collected finishes its work and lets its workers go; what only a caller's thread could run is cancelled.
    Tasks that were added and never run are told of, unless an error ends the program.
    In a forked child the parent's executors refuse to work, and nothing waits for them; one that had not been used yet is
    the child's own.
"""

from __future__ import annotations

import _thread
import atexit
import os
import sys
import threading
import weakref

from parallel_exec._core.completion import CANCELLED
from parallel_exec._dispatcher import logger
from parallel_exec._sync.clock import time
from parallel_exec._sync.lazy_condition import settling_lock
from parallel_exec._sync.locks import release_leaked
from parallel_exec._sync.timers import NEVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Sequence

    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.scheduler import Scheduler

# Seconds that running attempts have to end by themselves after Ctrl-C; a guess, half of what we promise.
INTERRUPT_GRACE = 1.0
# Seconds until the caller has its `KeyboardInterrupt`; a guess, a little less than we promise.
INTERRUPT_LIMIT = 1.8
_POLL = 0.01  # seconds

# Alive in this process; module state, as exit is the process's.
_schedulers: weakref.WeakSet[Scheduler] = weakref.WeakSet()
# By the executor's `id`, which the next one that has it overwrites. (A subclass of the user's may have no hash.)
_scheduler_of: weakref.WeakValueDictionary[int, Scheduler] = weakref.WeakValueDictionary()
_over: list[bool] = []  # whether the interpreter has come to its end


def watch(executor: Any, scheduler: Scheduler) -> Callable[[], object]:
    """See to the end of an executor that nobody shuts down; returns what to call once it was, so that nothing keeps it."""
    if _over:  # made by an `atexit` handler: nobody would wait for its work
        scheduler.completion.shutdown(cancel=False, at_exit=True)
    _schedulers.add(scheduler)
    _scheduler_of[id(executor)] = scheduler
    # The scheduler must not lead to the executor, or the executor would never be collected; as it does by a hook that does.
    finalizer = weakref.finalize(executor, _end_unattended, scheduler)
    finalizer.atexit = False  # type: ignore[misc]  # a property, of which typeshed's slots do not know
    return finalizer.detach


def scheduler_of(executor: Any) -> Scheduler:
    """Return the scheduler of an executor."""
    return _scheduler_of[id(executor)]


def is_over() -> bool:
    """Return whether the program has come to its end, and only what was started is waited for."""
    return bool(_over)


def _end_unattended(scheduler: Scheduler, *, at_exit: bool = False) -> None:
    """Shut down for an executor that nobody shut down."""
    if getattr(sys, "last_type", None) is None:
        forgotten = scheduler.completion.forgotten()
        if forgotten:
            logger.warning("%s", forgotten)
    completion = scheduler.completion
    completion.shutdown(cancel=completion.runs_in_caller and not at_exit, at_exit=at_exit)


def _at_exit() -> None:
    _over.append(True)  # first: what is made from now on is refused
    schedulers = list(_schedulers)
    for scheduler in schedulers:
        _end_unattended(scheduler, at_exit=True)
    if _was_interrupted():
        _stop(schedulers)
        return
    try:
        for scheduler in schedulers:
            scheduler.completion.join()
    except KeyboardInterrupt:
        _stop(schedulers)
        raise


def _stop(schedulers: list[Scheduler]) -> None:
    interrupt(schedulers, lambda: [job for scheduler in schedulers for job in scheduler.completion.in_hand()], NEVER)


def interrupt(schedulers: Sequence[Scheduler], live: Callable[[], list[AnyJob]], patience: float) -> None:
    """After Ctrl-C: cancel what waits, let what runs end for a moment, then stop it; a second Ctrl-C stops it at once.

    Returns when that is done. Where it takes longer (as with a million tasks), it goes on beside the caller.

    Args:
        schedulers: whose tasks.
        live: returns those that are still to end once what waits was cancelled.
        patience: most seconds that this takes; after a second Ctrl-C, which is raised in the end, half the grace.
    """
    ending = _Ending(schedulers, live)
    raised, until = None, time.monotonic() + patience
    while not ending.over and time.monotonic() < until:
        try:
            release_leaked(settling_lock, *[scheduler.lock for scheduler in schedulers])
            ending.begin()
            time.sleep(_POLL)  # nothing with a lock in it: what is interrupted in one may leave it taken for good
        except BaseException as error:
            ending.hurry, raised, until = True, error, min(until, time.monotonic() + INTERRUPT_GRACE / 2)
    try:
        if raised is not None:
            raise raised
    finally:
        del raised  # its traceback holds this frame


class _Ending:
    """What Ctrl-C sets going, in a thread of its own: only the main thread can be interrupted by the next one.

    Attributes:
        hurry: whether nothing is to be waited for any more.
        over: whether all is done.
    """

    def __init__(self, schedulers: Sequence[Scheduler], live: Callable[[], list[AnyJob]]) -> None:
        self.hurry = False
        self.over = False
        self._begun = False
        self._schedulers = schedulers
        self._live = live

    def begin(self) -> None:
        """Start it, if it has not begun; should Ctrl-C let it begin twice, nothing is ended twice."""
        if not self._begun:
            try:
                _thread.start_new_thread(self._run, ())  # `Thread.start` waits for the thread, with a lock
            except RuntimeError:  # no more threads to be had, or the interpreter is ending
                self._run()
            self._begun = True

    def _run(self) -> None:
        try:
            while not self.over:
                try:
                    self._end()
                    self.over = True
                except Exception:
                    raise
                except BaseException:  # of a callback: the stdlib's futures let it through; the others end, too
                    logger.exception("a callback raised")
        finally:
            self.over = True

    def _end(self) -> None:
        for scheduler in self._schedulers:
            scheduler.completion.cancel_all_waiting(CANCELLED)
        jobs = self._live()
        self._wait(jobs, INTERRUPT_GRACE)
        for scheduler in self._schedulers:
            scheduler.completion.stop_all([job for job in jobs if job.owner is scheduler], lambda job: CANCELLED)
        self._wait(jobs, INTERRUPT_GRACE / 2)

    def _wait(self, jobs: list[AnyJob], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.hurry and time.monotonic() < until and not all(job.done() for job in jobs):
            time.sleep(_POLL)


def _was_interrupted() -> bool:
    """Return whether Ctrl-C is what ends the program; at a prompt it only ended a line."""
    interactive = hasattr(sys, "ps1") or sys.flags.interactive
    return not interactive and getattr(sys, "last_type", None) is KeyboardInterrupt


def _after_fork() -> None:
    for scheduler in list(_schedulers):
        if not scheduler.after_fork():
            _schedulers.discard(scheduler)


# The stdlib's pools register here, too: it is called before non-daemon threads are joined. (Since 3.12 no thread can be
# started by then: what a pool needs to come to its end it has started before.)
getattr(threading, "_register_atexit", atexit.register)(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
