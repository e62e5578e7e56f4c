"""How a call in another process ended, as something that can be sent, and the outcome again: the same for all back ends.

    worker: Encoder.run ──► kind and payload ──► pipe, engine or cluster ──► decode ──► Success | Failure

    kind         payload
    AS_IS        what the call returned, itself: the engine pickles it
    RETURNED     what it returned, pickled
    RAISED       its exception, described (`_exceptions.py`)
    UNSENDABLE   what it returned cannot be pickled: what that is, and why
    UNREADABLE   the call could not be unpickled in the worker: the exception of that, described

Guarantees:
    Nothing that a call raises, and nothing that its result or its exception does when it is pickled or rebuilt, gets past
    here: `run` returns an outcome that can be sent, and `decode` the outcome of a task.

A thread of this process needs none of it: `thread.call` returns the outcome itself.

The worker's half imports the standard library only.
"""

from __future__ import annotations

import pickle

from parallel_exec import _forks
from parallel_exec._lazy import LAZY, lazy_result
from parallel_exec._outcome import Failure, Success
from parallel_exec.backends import _exceptions, _pickling, _reducers
from parallel_exec.backends._pickling import Pickled
from parallel_exec.backends._platform import explain_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Protocol

    from parallel_exec._outcome import Outcome
    from parallel_exec.backends.process.segments import Received
else:
    from parallel_exec._typing import Protocol

AS_IS, RETURNED, RAISED, UNSENDABLE, UNREADABLE = KINDS = range(5)

_NONE = pickle.dumps(None, 5)  # what most calls return that are made for what they do
_RETURNED_NONE = Success(None)
_MUST_FIND = (
    "A worker imports what a call is made of: it must find there what is found here, by sys.path and PYTHONPATH"
)


# ── in the worker ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Encoder:
    """Encodes outcomes for one way back.

    Args:
        dumps: pickles what a call returned; None: the engine does it.
        carries: whether descriptors can go along.
    """

    def __init__(self, dumps: Callable[[Any], Pickled] | None, *, carries: bool) -> None:
        self._dumps = dumps
        self._carries = carries

    def run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> tuple[int, Pickled]:
        """Run a call; returns the kind of its outcome, and the payload."""
        born = _forks.generation
        try:
            value = fn(*args, **kwargs)
        except BaseException as error:  # sys.exit() and KeyboardInterrupt in a task are failures of the task
            _forks.end_child(born, error)
            return self.encode_error(error)
        if _forks.generation != born:
            _forks.end()
        return self.encode_value(value)

    def encode_value(self, value: Any) -> tuple[int, Pickled]:
        """Encode what a call returned."""
        dumps = self._dumps
        try:
            if dumps is not None:
                return RETURNED, dumps(value)
            if type(value) not in LAZY:
                return AS_IS, Pickled(value, None)
        except BaseException as error:
            if type(value) not in LAZY:  # which never pickle
                return UNSENDABLE, self._explain(value, error)
        return self.encode_error(lazy_result(value))

    def _explain(self, value: Any, error: BaseException) -> Pickled:
        from parallel_exec.backends._culprit import unsendable  # only a failure needs it

        with _reducers.carry(_reducers.Carried() if self._carries else None):
            return Pickled(pickle.dumps(unsendable(value, explain_memory(error))), None)

    def encode_error(self, error: BaseException) -> tuple[int, Pickled]:
        """Encode the exception of a call."""
        others = _reducers.Carried()
        with _reducers.carry(others if self._carries else None):
            return RAISED, Pickled(_exceptions.describe(explain_memory(error)), None, others=others)


def encode_unreadable(error: BaseException) -> tuple[int, Pickled]:
    """Encode why a call could not be unpickled; without descriptors, as it may be sent for each of many items."""
    with _reducers.carry(None):
        return UNREADABLE, Pickled(_exceptions.describe(explain_memory(error)), None)


# ── in the parent ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Named(Protocol):
    """Something with an id: a task's future, or an item."""

    @property
    def id(self) -> str:
        """The id."""
        ...


def no_descriptors(ancillary: int) -> Received:
    """Refuse to receive descriptors."""
    raise EOFError("no descriptors go with it")


def decode(
    kind: int, payload: Any, task: Named, ancillary: int = 0, receive: Callable[[int], Received] = no_descriptors
) -> Outcome:
    """Return what an encoded outcome says of its task.

    Args:
        kind: what `Encoder` said.
        payload: the bytes of the payload; the value itself for AS_IS.
        task: what it is the outcome of.
        ancillary: what is known of descriptors that go with it; 0 if there are none.
        receive: called with it to get them, if there are.
    """
    received = None
    try:
        if kind == RETURNED and payload == _NONE:
            return _RETURNED_NONE
        if kind == RETURNED and not ancillary:  # most are
            return Success(pickle.loads(payload))
        if ancillary:
            received = receive(ancillary)
        if kind == RETURNED:
            return Success(_pickling.loads(payload, received))
        if kind == AS_IS:
            return Success(payload)
        with _reducers.deliver(received.others if received is not None else ()):
            return Failure(_error_of(kind, payload, task))
    except BaseException as error:
        return Failure(_not_rebuilt(error, task))
    finally:
        if received is not None:
            received.close()


def _error_of(kind: int, payload: bytes, task: Named) -> BaseException:
    """Return the error of a task that failed."""
    from parallel_exec.errors import ParallelExecError, RemoteTaskError, TaskSerializationError

    if kind == UNSENDABLE:
        what, why = pickle.loads(payload)
        return TaskSerializationError(f"{what} of task {task.id!r}", "from the worker", why)
    described = _exceptions.read(payload)
    error = _exceptions.rebuild(described)
    if kind == RAISED:
        return error
    if isinstance(error, (MemoryError, ParallelExecError)) and not isinstance(error, RemoteTaskError):
        return error
    hint = _MUST_FIND if isinstance(error, (ImportError, AttributeError)) else ""
    why = f"the worker cannot rebuild it: {described[0].names[0]}: {described[0].message}"
    failed = TaskSerializationError(f"the call of task {task.id!r}", "to the worker", why, hint)
    failed.__cause__ = _exceptions.WorkerTraceback(described[0].text)
    return failed


def _not_rebuilt(error: BaseException, task: Named) -> BaseException:
    """Return the error of a task whose outcome cannot be rebuilt here."""
    from parallel_exec.errors import TaskSerializationError

    why = f"it cannot be rebuilt here: {error!r}"
    failed = TaskSerializationError(f"the result of task {task.id!r}", "from the worker", why)
    failed.__cause__ = _exceptions.detached(error)
    return failed
