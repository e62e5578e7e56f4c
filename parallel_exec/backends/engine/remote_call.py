"""A call in a process that belongs to somebody else's engine: what travels there, and what comes back.

    Submission ── pickled by the engine ──► run_call ── CallResult, pickled by the engine ──► back
                                              └── "it began" (`start_signal.py`)

Guarantees:
    A call never raises in the engine: its exception comes back in the CallResult, so that one which cannot be pickled or
    rebuilt does not break the engine, and whatever an engine raises is the engine's own error.
    Without a start signal nothing hangs: a call has begun for us when the engine says so or when it ends, and runs on
    unwanted.
"""

from __future__ import annotations

import os
import pickle
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from parallel_exec._current import current
from parallel_exec._sync.clock import time
from parallel_exec.backends._outcomes import Encoder, Named, decode
from parallel_exec.backends.engine.start_signal import StartNotifier

if TYPE_CHECKING:
    from parallel_exec._current import Granted
    from parallel_exec._outcome import Outcome

_ENCODER = Encoder(None, carries=False)  # the engine pickles what a call returns


class AttemptInfo(NamedTuple):
    """What the worker is told of an attempt: the task's id, the attempt's number and timeout, and whom to tell that it began.

    Attributes:
        port: where the StartListener is; 0 if there is none.
        key: what its datagrams begin with.
        granted: what it has of the executor's limits, pickled; empty for nothing.
        seed: the executor's.
        place: the index of the worker, as it is seen from here.
        soft_timeout: seconds; None for none.
    """

    id: str
    number: int
    timeout: float | None
    port: int = 0
    key: bytes = b""
    granted: bytes = b""
    seed: int = 0
    place: int = 0
    soft_timeout: float | None = None

    def softened(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function to be called now, by this thread, in place of `fn`: with its soft timeout, if it has one."""
        if self.soft_timeout is None:
            return fn
        from parallel_exec.backends._soft_timeout import alarmed  # few need it, and `ctypes`

        return alarmed(fn, self.soft_timeout, self.id, self.number)

    def unpack_granted(self) -> Granted | None:
        """Return what unpickles `granted`; None if it is empty."""
        return partial(pickle.loads, self.granted) if self.granted else None


class CallResult(NamedTuple):
    """How a call ended.

    Attributes:
        kind, payload: the outcome, as `_outcomes.py` has it.
        duration: seconds it took, measured where it ran.
        worker: which process that was.
    """

    kind: int
    payload: Any
    duration: float
    worker: str

    def outcome(self, task: Named) -> Outcome:
        """Return what it says of the task."""
        return decode(self.kind, self.payload, task)


class EngineCall:
    """What runs in a process of an engine: a `RunningCall`.

    Args:
        info: the attempt.
        started_at: `time.monotonic()` here when it began.
        is_unwanted: says whether nobody waits for it any more.
    """

    def __init__(self, info: AttemptInfo, started_at: float, is_unwanted: Callable[[], bool] = lambda: False) -> None:
        self.id = info.id
        self.started_at = started_at
        self.timeout = info.timeout
        self.root_seed = info.seed
        self._is_unwanted = is_unwanted

    def unwanted(self, number: int) -> Callable[[], bool]:
        """Return what says so; there is one attempt only."""
        return self._is_unwanted


def worker_name() -> str:
    """Name this process, and the interpreter in it if it is not the main one."""
    name = f"process {os.getpid()}"
    interpreters: Any = sys.modules.get("concurrent.interpreters")  # which is loaded where they run calls
    if interpreters is not None and interpreters.get_current() != interpreters.get_main():
        name += f", interpreter {interpreters.get_current().id}"
    return name


def run_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], info: AttemptInfo) -> CallResult:
    """Run a call as an attempt of a task: in a worker of the engine, which gets no keyword of the user's to see."""
    name = worker_name()
    notifier = StartNotifier(info.port, info.key, name)
    start = time.monotonic()
    outer = current.saved()
    current.serve(current.borrowed(info.place, name))
    current.begin(EngineCall(info, start, notifier.is_unwanted), info.number, info.unpack_granted())
    try:
        kind, pickled = _ENCODER.run(info.softened(fn), args, kwargs)
        return CallResult(kind, pickled.data, time.monotonic() - start, name)
    finally:
        current.restore(outer)
        notifier.close()


def failed(error: BaseException, duration: float, worker: str = "") -> CallResult:
    """Return the result of a call that ended with an error of ours, in this process or another worker."""
    kind, pickled = _ENCODER.encode_error(error)
    return CallResult(kind, pickled.data, duration, worker or worker_name())


def run_shared(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], info: AttemptInfo | None) -> Any:
    """Run a call in an interpreter of its own, and return the CallResult as a plain tuple.

    Interpreters pass on a tuple item by item, each in its own way, where there is one beside pickling; but not a subclass.
    `info` is None for a call that was withdrawn before it could begin.
    """
    return None if info is None else tuple(run_call(fn, args, kwargs, info))


def run_nothing() -> None:
    """Stand in for a call that was withdrawn before the engine had sent it."""
