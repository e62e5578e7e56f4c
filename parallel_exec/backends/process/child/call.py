"""Running a call in a worker, and saying how it ended; imports the standard library only.

Guarantees:
    Nothing that a call raises, and nothing that its result or its exception does when it is pickled, gets past here: the
    outcome is a kind of frame and a payload that can be sent.
"""

from __future__ import annotations

import pickle
from typing import Any

from parallel_exec import _forks
from parallel_exec._lazy import LAZY, lazy_result
from parallel_exec.backends import _exceptions, _pickling, _reducers
from parallel_exec.backends._platform import explain_memory
from parallel_exec.backends.process import segments, wire


def call(fn: Any, args: Any, kwargs: Any) -> tuple[int, _pickling.Pickled]:
    """Run the call; returns the kind of frame and its payload."""
    born = _forks.generation
    try:
        value = fn(*args, **kwargs)
    except BaseException as error:  # sys.exit() and KeyboardInterrupt in a task are failures of the task
        _forks.end_child(born, error)
        return wire.ERROR, describe(error)
    _forks.end_child(born)
    return pickle_value(value)


def pickle_value(value: Any) -> tuple[int, _pickling.Pickled]:
    """Pickle what a call returned; returns the kind of frame and its payload."""
    try:
        return wire.OK, _pickling.dumps(value)
    except BaseException as error:
        if type(value) in LAZY:  # which never pickle
            return wire.ERROR, describe(lazy_result(value))
        return wire.UNSENDABLE, _unsendable(value, error)


class Unreadable:
    """Stands in for the function of a part that could not be unpickled."""

    def __init__(self, pickled: _pickling.Pickled) -> None:
        self.pickled = pickled


def _unsendable(value: Any, error: BaseException) -> _pickling.Pickled:
    from parallel_exec.backends._culprit import unsendable  # only a failure needs it

    with _reducers.carry([]):
        return _pickling.Pickled(pickle.dumps(unsendable(value, explain_memory(error))), None)


def describe(error: BaseException, bare: bool = False) -> _pickling.Pickled:
    """Pickle an exception, and what is needed if it cannot be rebuilt over there; `bare`: without descriptors."""
    others: list[segments.Segment] = []
    with _reducers.carry(None if bare else others):
        return _pickling.Pickled(_exceptions.describe(explain_memory(error)), None, False, others)
