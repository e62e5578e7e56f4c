"""Objects of which a test can tell how many are alive, tasks that have them, and what the cyclic collector would find."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
import traceback
import types
import weakref
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any, Callable, ClassVar, Iterator, NoReturn

import leaks
import work

from parallel_exec import current_task


class Tracked:
    """An argument or a result, counted while it is alive in this process."""

    alive: ClassVar[weakref.WeakSet[Tracked]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)

    def __reduce__(self) -> Any:
        return Tracked, ()


class Call:
    """A callable that has one, and returns it."""

    def __init__(self) -> None:
        self.tracked = Tracked()

    def __call__(self) -> Tracked:
        """Return it."""
        return self.tracked


class Fail(Call):
    """A callable that fails, with one in a variable of its frame."""

    def __call__(self) -> NoReturn:
        """Raise."""
        tracked = self.tracked
        raise work.CodedError(len([tracked]))


class Nap(Call):
    """A callable that takes its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def __call__(self) -> Tracked:
        """Sleep, and return it."""
        time.sleep(self.seconds)
        return self.tracked


class Interrupt(Call):
    """A callable that raises what Ctrl-C does."""

    def __call__(self) -> NoReturn:
        """Raise."""
        raise KeyboardInterrupt


class Unpicklable:
    """Cannot be pickled, and says so with an error of its own."""

    def __reduce__(self) -> NoReturn:
        tracked = Tracked()
        raise work.CodedError(len([tracked]))


class Unreadable:
    """Pickles, and cannot be unpickled."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> NoReturn:
    tracked = Tracked()
    raise work.CodedError(len([tracked]))


def echo(value: Any) -> Any:
    """Return it."""
    return value


def unreadable(_: object) -> Unreadable:
    """Return what cannot be unpickled."""
    return Unreadable()


def lock() -> Any:
    """Return what cannot be pickled."""
    return threading.Lock()


def fail_at_three(number: int) -> int:
    """Return the number, but raise for 3."""
    if number == 3:
        raise work.CodedError(number)
    return number


def look_and_fail() -> NoReturn:
    """Fail with the view of the task in a variable."""
    me = current_task()
    raise work.CodedError(me.attempt)


def look_until_told() -> NoReturn:
    """Ask whether to go on, until that raises."""
    me = current_task()
    while True:
        me.check()
        time.sleep(work.POLL)


def swallow(function: Callable[[], object]) -> None:
    """Call a function and drop what it raises; nothing of the call stays in this frame, which the error leads to."""
    try:
        function()
    except (Exception, CancelledError, KeyboardInterrupt, SystemExit):
        return
    finally:
        del function


def name_of(thing: object) -> str | None:
    """Name an object that is ours or a test's, or an error, or a frame of our code; None for any other."""
    kind = type(thing)
    code = getattr(thing, {types.FrameType: "f_code", types.FunctionType: "__code__"}.get(kind, "gi_code"), None)
    if isinstance(code, types.CodeType):
        return f"{kind.__name__} {code.co_name}" if "parallel_exec" in code.co_filename.split("/tests/")[0] else None
    module = str(kind.__module__)
    is_ours = module.partition(".")[0] in ("parallel_exec", __name__) or isinstance(thing, BaseException)
    return kind.__name__ if is_ours else None


@contextmanager
def no_collector() -> Iterator[None]:
    """Switch the cyclic collector off, after a last collection; and what is logged, as pytest keeps the records."""
    logger = logging.getLogger("parallel_exec")
    gc.collect()
    gc.freeze()  # so that a collection on purpose need not look at all that was there before
    gc.disable()
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False
        gc.enable()
        gc.unfreeze()


def wait_until(is_so: Callable[[], bool]) -> bool:
    """Wait until something is so, as threads need a moment to end; returns whether it is."""
    until = time.monotonic() + leaks.GRACE
    while not is_so() and time.monotonic() < until:
        time.sleep(work.POLL)
    return is_so()


def nothing_alive() -> bool:
    """Return whether no tracked object is alive."""
    return len(Tracked.alive) == 0


def has_ended() -> bool:
    """Return whether no thread of ours is left."""
    return not any(thread.name.startswith("parallel_exec") for thread in threading.enumerate())


def garbage() -> list[str]:
    """Return the names of what of ours only the cyclic collector could free."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return sorted(name for name in map(name_of, gc.garbage) if name is not None)
    finally:
        gc.set_debug(0)
        _clear(gc.garbage)


def _clear(found: list[Any]) -> None:
    """Let go of what was found, so that it does not count for the next test."""
    for thing in found:
        if isinstance(thing, BaseException):
            traceback.clear_frames(thing.__traceback__)
    found.clear()
    assert sys.exc_info() == (None, None, None)
