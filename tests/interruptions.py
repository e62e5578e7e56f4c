"""Ctrl-C at any point of a call, in the thread that makes it.

CPython hears of signals where a call begins or has returned, and where a loop goes round.
"""

from __future__ import annotations

import dis
import gc
import itertools
import os
import sys
import traceback
from functools import cache
from typing import TYPE_CHECKING, Any, Callable, NoReturn

if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import MutableSequence

_HEARS = ("CALL", "RESUME", "JUMP_BACK", "JUMP_ABS", "FOR_ITER")  # the instructions after which signals are heard


@cache
def _names(code: CodeType) -> list[str]:
    return [dis.opname[opcode] for opcode in code.co_code]


def raise_interrupt() -> NoReturn:
    """Raise what Ctrl-C does."""
    raise KeyboardInterrupt


def interrupt(call: Callable[[], Any], step: int, act: Callable[[], Any] = raise_interrupt) -> bool:
    """Raise KeyboardInterrupt at the `step`-th point of a call, or do what else a signal handler may do.

    Points within an import are left out: Python's own lock for all imports may stay taken there, for good.

    Returns:
        Whether it has so many points.
    """
    left = step
    latest: dict[FrameType, str] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        frame.f_trace_opcodes = True
        if event == "opcode" and not frame.f_code.co_filename.startswith("<frozen importlib"):
            before = latest.get(frame, "RESUME")
            latest[frame] = now = _names(frame.f_code)[frame.f_lasti]
            left -= before.startswith(_HEARS) and now != "PUSH_EXC_INFO"  # a call that has raised hears nothing more
            if left == 0:
                left = -1
                act()
        return trace

    before = sys.gettrace()
    gc.disable()  # what is raised in a finalizer goes nowhere
    sys._getframe().f_trace_opcodes = True  # else 3.12 does not believe what is set in `trace`
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
        latest.clear()  # else what was raised, kept in a log record for one, keeps all that these frames had
        gc.enable()
    return left <= 0


def leaves_nothing_open(call: Callable[[], Any], kept: MutableSequence[KeyboardInterrupt]) -> int:
    """Check that a call leaves no descriptor open wherever Ctrl-C comes, once what it returns is let go of.

    Args:
        call: what is called.
        kept: has what was raised, with its frames.

    Returns:
        How many points it has.
    """

    def act() -> NoReturn:
        error = KeyboardInterrupt()
        kept.append(error)
        try:
            raise error
        finally:
            del error  # its frames have it

    for step in itertools.count(1):
        returned: list[Any] = []
        before = set(os.listdir("/proc/self/fd"))
        has_more = interrupt(lambda returned=returned: returned.append(call()), step, act=act)
        returned.clear()
        for error in kept:
            for frame, _ in traceback.walk_tb(error.__traceback__):
                # 3.9 and 3.10 keep there what was bound when it was traced, until they are asked again.
                assert frame.f_locals is not None
        if not before.issuperset(os.listdir("/proc/self/fd")):
            gc.collect()
        assert before.issuperset(os.listdir("/proc/self/fd")), step
        if not has_more:
            break
    return step
