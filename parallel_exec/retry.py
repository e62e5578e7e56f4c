"""Whether a task gets another attempt, and when: tenacity decides, we wait.

    config, task ──► policy_for ──► PlainPolicy | TenacityPolicy      (`policy_for` is in config.py)
                                          │
    first attempt starts ──► begin        │   one state per task, its clock is `stop_after_delay`'s
    an attempt is to run ──► before       │   tenacity's `before`
    an attempt ended ──────► decide ──────┴─► Delay(seconds)      parked, then another attempt
                                              Success | Failure   the task's end

`Retrying.__call__` is not used, because it sleeps in the worker. `Retrying.iter` neither: it keeps part of its state
thread-local, and here each step may come from another thread. So the user's strategies and hooks are asked directly,
on one `RetryCallState` a task; `sleep`, and what a subclass makes of `iter`, has no effect.

Guarantees:
    `decide` returns for every outcome and never raises: what a user's hook or strategy raises becomes the Failure.
    `KeyboardInterrupt`, `SystemExit`, `GeneratorExit`, cancellation and those errors of ours that another attempt
    cannot help are never retried, whatever a strategy says.
    An error that says when it wants to be tried again (`RetryAfter`, or a number called `retry_after`) has the next attempt
    wait as long as that instead of the backoff; `RetryAfter` is worth one whatever a strategy says, as tenacity's `TryAgain`.
    A failure's error is the task's own exception, never tenacity's wrapper around it; where a task returned, and no retry
    is left for its result, it is a `ResultRejectedError`.
    tenacity is imported only once an attempt has failed, or for a `Retrying` that the user made with it.
    A policy holds nothing that changes: tasks may share it, and any thread may call it. Calls for one task must follow
    one another.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from concurrent.futures import CancelledError

from parallel_exec import _forks
from parallel_exec._lazy import LazyResultError
from parallel_exec._names import type_name
from parallel_exec._outcome import Failure, Success
from parallel_exec._sync.weak import apart
from parallel_exec.errors import (
    CapacityExhaustedError,
    DeadlineExceededError,
    RemoteTaskError,
    ResultRejectedError,
    RetryAfter,
    SerializationError,
    WorkerStartError,
    retry_after_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from dataclasses import dataclass
    from typing import Any, Callable, NamedTuple, Union

    from tenacity import BaseRetrying, RetryCallState

    from parallel_exec._checks import RetryOn
    from parallel_exec._outcome import Outcome
else:
    from parallel_exec._dataclasses import dataclass
    from parallel_exec._typing import NamedTuple


class Delay(NamedTuple):
    """The task is to have another attempt.

    Attributes:
        seconds: how long to wait first; 0 or more, and as large as the user's strategy says (`inf` included).
    """

    seconds: float


if TYPE_CHECKING:
    Decision = Union[Delay, Success, Failure]

# The asynchronous kind of cancellation is no Exception, this kind is.
_NEVER_RETRIED = (
    CancelledError,
    SerializationError,
    WorkerStartError,
    CapacityExhaustedError,
    DeadlineExceededError,
    LazyResultError,
)


def is_final(error: BaseException) -> bool:
    """Return whether no policy may ever retry `error`."""
    if isinstance(error, RemoteTaskError) and error.type_names and "Exception" not in error.type_names:
        return True  # it stands in for an interruption or an exit
    return not isinstance(error, Exception) or isinstance(error, _NEVER_RETRIED)


class RetryPolicy(ABC):
    """Decides after each attempt whether there is another; immutable, shared by tasks, callable from any thread.

    Attributes:
        asks_on_success: whether a first attempt that succeeds must be brought to `decide`; if not, the task has ended.
        has_before: whether `before` does anything.
    """

    asks_on_success: bool = False
    has_before: bool = False

    @abstractmethod
    def begin(self, fn: Callable[..., object], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the state of one task, to be handed to the other methods; call it when the first attempt starts."""

    @abstractmethod
    def before(self, state: Any, number: int) -> None:
        """Prepare attempt `number`, from 1; call it just before the attempt runs.

        Raises:
            BaseException: what the user's hook raised. The attempt must not run then; this is how the task failed.
        """

    @abstractmethod
    def decide(self, state: Any, number: int, outcome: Outcome) -> Decision:
        """Return what follows from the outcome of attempt `number`, from 1; never raises."""


@dataclass(frozen=True)
class PlainPolicy(RetryPolicy):
    """The plain settings of a `ParallelConfig`: so many retries, an exponential wait, some exception types.

    Costs about 1 µs for an outcome that ends the task, and does not touch tenacity for it.
    """

    retry_count: int
    backoff: float
    max_backoff: float
    jitter: bool
    retry_on: RetryOn

    def __init__(  # each executor has one: see `_dataclasses`
        self, retry_count: int, backoff: float, max_backoff: float, jitter: bool, retry_on: RetryOn
    ) -> None:
        for name, value in zip(_PLAIN, (retry_count, backoff, max_backoff, jitter, retry_on)):
            object.__setattr__(self, name, value)

    def begin(self, fn: Callable[..., object], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Return None: no state is needed."""

    def before(self, state: Any, number: int) -> None:
        """Do nothing."""

    def decide(self, state: Any, number: int, outcome: Outcome) -> Decision:
        """Return a delay for an error of `retry_on` while retries are left, else the outcome itself."""
        if isinstance(outcome, Success) or number > self.retry_count or is_final(outcome.error):
            return outcome
        try:
            if not self._is_worth_it(outcome.error):
                return outcome
            seconds = retry_after_of(outcome.error)
            return Delay(self._wait(number) if seconds is None else seconds)
        except (
            BaseException
        ) as error:  # of the user's predicate: a SystemExit must not end the thread that settles tasks
            return Failure(error)

    def _is_worth_it(self, error: BaseException) -> bool:
        retry_on = self.retry_on
        if _is_one_of(error, (RetryAfter,)):
            return True
        return _is_one_of(error, retry_on) if isinstance(retry_on, tuple) else bool(retry_on(error))

    def _wait(self, number: int) -> float:
        """Return the seconds to wait after attempt `number`."""
        if self.backoff == 0:
            return 0.0  # tenacity waits `max` where the power overflows, be it multiplied by 0
        from tenacity import RetryCallState, wait_exponential

        nobody: Any = None
        state = RetryCallState(nobody, None, (), {})
        state.attempt_number = number
        if self.jitter:
            return float(_wait_with_jitter(self.backoff, self.max_backoff)(state))
        return float(wait_exponential(multiplier=self.backoff, max=self.max_backoff)(state))


_PLAIN = tuple(PlainPolicy.__annotations__)


def _is_one_of(error: BaseException, types: tuple[type[BaseException], ...]) -> bool:
    """Return whether an error is of one of the types, or stands in for one that is."""
    if isinstance(error, types):
        return True
    return isinstance(error, RemoteTaskError) and any(type_name(kind) in error.type_names for kind in types)


def _wait_with_jitter(backoff: float, max_backoff: float) -> Callable[[RetryCallState], float]:
    """Return tenacity's `wait_exponential_jitter`; newer versions call its `initial` `multiplier`, and warn."""
    import tenacity

    make: Any = tenacity.wait_exponential_jitter
    try:
        wait: Callable[[RetryCallState], float] = make(multiplier=backoff, max=max_backoff, jitter=backoff)
    except TypeError:
        wait = make(initial=backoff, max=max_backoff, jitter=backoff)
    return wait


class TenacityPolicy(RetryPolicy):
    """A user's `tenacity.Retrying` object, its strategies and hooks asked in the order in which tenacity asks them.

    Where we differ from `Retrying.__call__`:
        The task's own exception is the error, with `reraise` and without, where tenacity may wrap it in a `RetryError`.
        That holds for `TryAgain` too, which keeps what caused it as its cause or context.
        Where an error says when it wants to be tried again, `wait` is not asked; `stop` and the hooks see that wait.
        When retries end on a *result* that was rejected, the task has no exception of its own, and tenacity raises a
        `RetryError`: here it is a `ResultRejectedError`, or a `retry_error_cls` of the user's own, if there is one.
        Errors of `is_final` end the task without asking or calling anything.
        `sleep` is never called.

    What `retry_error_callback` returns is the task's value, and the task a success.

    Args:
        retrying: the object; taken as it is, never changed.
    """

    # Rejected: a copy() of it for each task. It calls the constructor of what may be a user's subclass.

    asks_on_success = True  # `retry` may reject a result

    def __init__(self, retrying: BaseRetrying) -> None:
        from tenacity import before_nothing

        self._retrying: Any = retrying  # Any: users leave out hooks and waits with None, which the types do not allow
        self.has_before = retrying.before not in (None, before_nothing)

    def begin(self, fn: Callable[..., object], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> RetryCallState:
        """Return a new `RetryCallState`, its clock started; a partial is unfolded, so that hooks see the function."""
        from tenacity import RetryCallState

        if isinstance(fn, functools.partial):
            return RetryCallState(self._retrying, fn.func, (*fn.args, *args), {**fn.keywords, **kwargs})
        return RetryCallState(self._retrying, fn, args, dict(kwargs))

    def before(self, state: RetryCallState, number: int) -> None:
        """Call the user's `before`.

        Raises:
            BaseException: what it raised. The attempt must not run then; this is how the task failed.
        """
        if self.has_before and self._enabled():
            state.attempt_number = number
            self._show_statistics(state)
            born = _forks.generation
            try:
                self._retrying.before(state)
                _forks.end_copy(born)
            except BaseException as error:
                _forks.end_copy(born, error)
                raise

    def decide(self, state: RetryCallState, number: int, outcome: Outcome) -> Decision:
        """Ask the user's strategies, and call the hooks, in the calling thread."""
        if isinstance(outcome, Failure) and is_final(outcome.error):
            return outcome
        return apart(self._decide, state, number, outcome)

    def _decide(self, state: RetryCallState, number: int, outcome: Outcome) -> Decision:
        known = outcome.error if isinstance(outcome, Failure) else None
        traceback = None if known is None else known.__traceback__
        born = _forks.generation
        try:
            decision = self._ask(state, number, outcome) if self._enabled() else outcome
        except BaseException as error:  # a hook's SystemExit too: it must not end the thread that settles tasks
            _forks.end_copy(born, error)
            # A hook that raises the task's own error again, as `state.outcome.result()` does, is not where that came from;
            # and its frame has the state, which leads to the error.
            return Failure(BaseException.with_traceback(error, traceback) if error is known else error)
        finally:
            del state, outcome, known
        _forks.end_copy(born)
        return decision

    def _ask(self, state: RetryCallState, number: int, outcome: Outcome) -> Decision:
        """Ask `retry`, `wait`, `stop`: in this order, `stop_before_delay` looks at the wait."""
        user = self._retrying
        _record(state, number, outcome)
        self._show_statistics(state)
        if not (_asks_for_another(outcome) or user.retry(state)):
            return outcome
        if user.after is not None:
            user.after(state)
        seconds = None if isinstance(outcome, Success) else retry_after_of(outcome.error)
        if seconds is None:  # (None and 0 stand for no wait.)
            seconds = user.wait(state) if callable(user.wait) else 0.0
        state.upcoming_sleep = seconds  # pyright: ignore[reportAttributeAccessIssue]
        if user.stop(state):
            return self._give_up(state, outcome)
        return self._go_on(state)

    def _give_up(self, state: RetryCallState, outcome: Outcome) -> Outcome:
        """Return how the task ends when `stop` says so."""
        from tenacity import RetryError

        user = self._retrying
        if user.retry_error_callback:
            return Success(user.retry_error_callback(state))
        if isinstance(outcome, Failure):
            return outcome
        if user.retry_error_cls is RetryError:  # nobody asked for another class
            return Failure(ResultRejectedError(outcome.value, state.attempt_number))
        return Failure(user.retry_error_cls(state.outcome))

    def _go_on(self, state: RetryCallState) -> Delay:
        """Call `before_sleep` and make the state ready for the next attempt."""
        from tenacity import RetryAction

        state.next_action = RetryAction(state.upcoming_sleep)
        state.idle_for += state.upcoming_sleep
        self._show_statistics(state, retries=1)
        if self._retrying.before_sleep is not None:
            self._retrying.before_sleep(state)
        seconds = float(state.upcoming_sleep)  # read after the hook, which may have changed it
        state.prepare_for_next_attempt()
        return Delay(max(0.0, seconds))

    def _enabled(self) -> bool:
        """Return the object's switch, which older versions of tenacity do not have."""
        return bool(getattr(self._retrying, "enabled", True))

    def _show_statistics(self, state: RetryCallState, retries: int = 0) -> None:
        """Let hooks find this task's figures in `statistics`, which tenacity keeps apart for each thread."""
        self._retrying.statistics.update(
            start_time=state.start_time,
            attempt_number=state.attempt_number + retries,
            idle_for=state.idle_for,
            delay_since_first_attempt=state.seconds_since_start or 0,
        )


def _record(state: RetryCallState, number: int, outcome: Outcome) -> None:
    """Write the outcome of attempt `number` into the state, as of now."""
    state.attempt_number = number
    if isinstance(outcome, Success):
        state.set_result(outcome.value)
    else:
        error = outcome.error
        state.set_exception((type(error), error, error.__traceback__))


def _asks_for_another(outcome: Outcome) -> bool:
    """Return whether the task asked for another attempt by itself; `retry` is not consulted then."""
    from tenacity import TryAgain

    return isinstance(outcome, Failure) and _is_one_of(outcome.error, (TryAgain, RetryAfter))
