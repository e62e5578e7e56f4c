"""`parallel_exec.retry`: what tenacity would try again, we try again, after the same wait; and no task is lost."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import queue
import random
import threading
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Callable

import pytest
import tenacity

from parallel_exec._outcome import Failure, Success
from parallel_exec.errors import (
    CapacityExhaustedError,
    DeadlineExceededError,
    RemoteTaskError,
    ResultRejectedError,
    RetryAfter,
    TaskSerializationError,
    TaskTimeoutError,
    WorkerCrashedError,
    WorkerStartError,
)
from parallel_exec.retry import Delay, PlainPolicy, RetryPolicy, TenacityPolicy

if TYPE_CHECKING:
    from parallel_exec._outcome import Outcome
    from parallel_exec.retry import Decision

pytestmark = pytest.mark.filterwarnings("error")

Step = tuple[Any, ...]
LONGEST = 8  # waits after which a run is cut short: some strategies never stop
ATTEMPT = 0.25  # seconds that each attempt takes on the fake clock


class Clock:
    """Stands in for tenacity's `time` module; only `Trace` moves it on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that tenacity reads instead of the true one."""
    clock = Clock()
    monkeypatch.setattr("tenacity.time", clock)
    return clock


class CutShortError(Exception):
    """The run has waited `LONGEST` times."""


class Trace:
    """One task that behaves as its script says, and the record of what was done with it.

    The last line of the script is repeated for ever. An exception in it is raised, anything else returned.
    """

    def __init__(self, clock: Clock, script: Callable[[], list[Any]]) -> None:
        self.clock = clock
        self.script = script()
        self.steps: list[Step] = []
        self.attempts = 0
        self.waits = 0

    def task(self) -> Any:
        """Do what the script says next."""
        self.clock.now += ATTEMPT
        line = self.script[min(self.attempts, len(self.script) - 1)]
        self.attempts += 1
        self.steps.append(("attempt", self.attempts))
        if isinstance(line, BaseException):
            raise line
        return line

    def sleep(self, seconds: float) -> None:
        """Move the clock on."""
        self.steps.append(("wait", float(seconds)))
        self.clock.now += seconds
        self.waits += 1
        if self.waits == LONGEST:
            raise CutShortError

    def hook(self, name: str, returns: Any = None) -> Callable[[Any], Any]:
        """Return a hook that records all that a hook can see."""

        def called(state: Any) -> Any:
            last = state.outcome
            outcome = last and (last.attempt_number, repr(last.exception()), last.failed or last.result())
            planned = state.next_action and state.next_action.sleep
            figures = [state.retry_object.statistics[key] for key in ("attempt_number", "idle_for")]
            seen = (state.attempt_number, outcome, state.seconds_since_start, state.idle_for, planned, figures)
            self.steps.append((name, *seen, state.fn == self.task, state.args, state.kwargs))
            if isinstance(returns, BaseException):
                raise returns
            return returns

        return called

    def hooks(self, *names: str) -> dict[str, Any]:
        """Return settings in which each of these is a recording hook."""
        return {name: self.hook(name) for name in names}


Settings = Callable[[Trace], dict[str, Any]]
ALL_HOOKS = ("before", "after", "before_sleep")


def attempt(task: Callable[[], Any]) -> Outcome:
    """Do what a worker does."""
    try:
        return Success(task())
    except BaseException as error:
        return Failure(error)


def ending(outcome: Outcome) -> Step:
    """Describe how a task ended, RetryError being its own exception where it stands for one."""
    if isinstance(outcome, Success):
        return ("returned", outcome.value)
    error = outcome.error
    if isinstance(error, ResultRejectedError):
        return ("rejected", tenacity.RetryError, error.result)
    if isinstance(error, tenacity.RetryError):
        if not error.last_attempt.failed:
            return ("rejected", type(error), error.last_attempt.result())
        error = error.last_attempt.exception() or error
    return ("raised", type(error), error.args)


def tenacitys_steps(clock: Clock, script: Callable[[], list[Any]], settings: Settings) -> list[Step]:
    """Return what `Retrying.__call__` does."""
    clock.now = 1000.0
    random.seed(7)
    trace = Trace(clock, script)
    retrying = tenacity.Retrying(sleep=trace.sleep, **settings(trace))
    outcome = attempt(partial(retrying, trace.task))
    return [*trace.steps, ending(outcome)]


def here(step: Callable[[], Any]) -> Any:
    """Take a step in the calling thread."""
    return step()


def elsewhere(step: Callable[[], Any]) -> Any:
    """Take a step in a thread of its own."""
    results: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: results.put(attempt(step)))
    thread.start()
    thread.join()
    outcome = results.get()
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome.value


def follow(policy: RetryPolicy, trace: Trace, run: Callable[[Callable[[], Any]], Any] = here) -> Outcome:
    """Do with a task what the scheduler does; return how it ends."""
    state = run(lambda: policy.begin(trace.task, (), {}))
    for number in itertools.count(1):
        if policy.has_before:
            run(partial(policy.before, state, number))
        outcome = run(partial(attempt, trace.task))
        if number == 1 and isinstance(outcome, Success) and not policy.asks_on_success:
            return Success(outcome.value)
        decision: Decision = run(partial(policy.decide, state, number, outcome))
        if not isinstance(decision, Delay):
            return decision
        trace.sleep(decision.seconds)
    raise AssertionError


def our_steps(
    clock: Clock, script: Callable[[], list[Any]], settings: Settings, run: Callable[[Callable[[], Any]], Any] = here
) -> list[Step]:
    """Return what comes of following `TenacityPolicy`."""
    clock.now = 1000.0
    random.seed(7)
    trace = Trace(clock, script)
    policy = TenacityPolicy(tenacity.Retrying(sleep=_never_called, **settings(trace)))
    try:
        outcome = follow(policy, trace, run)
    except Exception as error:  # CutShortError, or what `before` raised: the task's failure
        outcome = Failure(error)
    return [*trace.steps, ending(outcome)]


def _never_called(seconds: float) -> None:
    raise AssertionError("the policy slept")


def caused(error: Exception, cause: BaseException) -> Exception:
    """Return `error` as `raise error from cause` leaves it."""
    error.__cause__ = cause
    return error


def _set_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def _if_shipped(name: str, *args: Any) -> dict[str, Any]:
    """Return a strategy that the oldest tenacity we support lacks, if the installed one has it."""
    return {name: getattr(tenacity, name)(*args)} if hasattr(tenacity, name) else {}


SCRIPTS: dict[str, Callable[[], list[Any]]] = {
    "returns": lambda: [1],
    "fails, then returns": lambda: [OSError(5, "disk"), ValueError("bad 1"), 2],
    "fails for ever": lambda: [OSError(5, "disk")],
    "fails in every way": lambda: [KeyError("k"), OSError("x"), ValueError("bad 2"), RuntimeError("boom")],
    "returns nothing at first": lambda: [None, None, 3],
    "returns nothing for ever": lambda: [None],
    "fails, and returns nothing": lambda: [None, OSError("x"), None, ValueError("bad 3"), None, 0],
    "asks for more": lambda: [tenacity.TryAgain(), tenacity.TryAgain("please"), 4],
    "asks for more for ever": lambda: [tenacity.TryAgain("please")],
    "fails for a cause": lambda: [caused(KeyError("k"), caused(ValueError("v"), OSError("o"))), ValueError("bad"), 5],
}

STOPS: dict[str, Any] = {
    "never": tenacity.stop_never,
    "attempt 1": tenacity.stop_after_attempt(1),
    "attempt 4": tenacity.stop_after_attempt(4),
    "delay": tenacity.stop_after_delay(6),
    "no delay": tenacity.stop_after_delay(0),
    "event set": tenacity.stop_when_event_set(_set_event()),
    "event not set": tenacity.stop_when_event_set(threading.Event()),
    "any": tenacity.stop_any(tenacity.stop_never, tenacity.stop_after_attempt(5), tenacity.stop_after_delay(4)),
    "or": tenacity.stop_after_delay(30) | tenacity.stop_after_attempt(3),
    "all": tenacity.stop_all(tenacity.stop_after_attempt(2), tenacity.stop_after_delay(5)),
    "and, or": tenacity.stop_after_attempt(2) & tenacity.stop_after_delay(2) | tenacity.stop_after_attempt(6),
    "a function": lambda state: state.attempt_number > 2,
    **_if_shipped("stop_before_delay", 6),
}
if hasattr(tenacity, "stop_before_delay"):
    STOPS["before delay, and"] = tenacity.stop_before_delay(3) & tenacity.stop_after_attempt(3)

WAITS: dict[str, Any] = {
    "none": tenacity.wait_none(),
    "None": None,
    "fixed": tenacity.wait_fixed(1.5),
    "random": tenacity.wait_random(1, 3),
    "incrementing": tenacity.wait_incrementing(start=1, increment=2, max=6),
    "decrementing": tenacity.wait_incrementing(start=3, increment=-2),
    "exponential": tenacity.wait_exponential(multiplier=0.5, max=7, exp_base=3, min=1),
    "random exponential": tenacity.wait_random_exponential(multiplier=0.5, max=10),
    "exponential jitter": tenacity.wait_exponential_jitter(max=9, exp_base=3, jitter=2),
    "chain": tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(2), tenacity.wait_random(3, 4)),
    "combine": tenacity.wait_combine(tenacity.wait_fixed(1), tenacity.wait_random(0, 2)),
    "plus": tenacity.wait_fixed(1) + tenacity.wait_exponential(),
    "sum": sum([tenacity.wait_fixed(1), tenacity.wait_random(0, 1), tenacity.wait_incrementing(0, 1)]),
    "a function": lambda retry_state: retry_state.attempt_number / 2,
    **_if_shipped("wait_exception", lambda error: len(error.args) / 2),
}

RETRIES: dict[str, Any] = {
    "default": tenacity.retry_if_exception_type(),
    "always": tenacity.retry_always,
    "never": tenacity.retry_never,
    "exception type": tenacity.retry_if_exception_type((OSError, KeyError)),
    "not exception type": tenacity.retry_if_not_exception_type(ValueError),
    "unless exception type": tenacity.retry_unless_exception_type(ValueError),
    "exception": tenacity.retry_if_exception(lambda error: "x" in str(error)),
    "cause": tenacity.retry_if_exception_cause_type(OSError),
    "message": tenacity.retry_if_exception_message(message="x"),
    "message match": tenacity.retry_if_exception_message(match="bad|.*disk"),
    "not message": tenacity.retry_if_not_exception_message(match="bad"),
    "result": tenacity.retry_if_result(lambda value: value is None),
    "not result": tenacity.retry_if_not_result(lambda value: isinstance(value, int)),
    "any": tenacity.retry_any(tenacity.retry_if_result(lambda x: not x), tenacity.retry_if_exception_type(OSError)),
    "all": tenacity.retry_all(tenacity.retry_if_exception_type(), tenacity.retry_if_not_exception_type(KeyError)),
    "or": tenacity.retry_if_exception_type(OSError) | tenacity.retry_if_exception_message(match="bad"),
    "and": tenacity.retry_if_exception_type(OSError) & tenacity.retry_if_exception_message(match=".*disk"),
    "a function": lambda state: state.outcome.failed and state.attempt_number < 4,
}


WITH_EVERY_WAIT = ("default", "always", "any")  # what is retried hardly meets how long is waited


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("retry", RETRIES)
def test_strategies_decide_as_in_tenacity(clock: Clock, retry: str, stop: str) -> None:
    """Each stop, wait and retry strategy, with each other: attempts, hooks, waits and end are those of `Retrying()`."""
    waits = WAITS if retry in WITH_EVERY_WAIT else ("chain", "random")
    for wait, (title, script) in itertools.product(waits, SCRIPTS.items()):
        parts = {"stop": STOPS[stop], "wait": WAITS[wait], "retry": RETRIES[retry]}
        settings: Settings = lambda trace, parts=parts: {**parts, **trace.hooks(*ALL_HOOKS)}  # type: ignore[misc] # noqa: E731
        expected = tenacitys_steps(clock, script, settings)
        assert our_steps(clock, script, settings) == expected, f"wait: {wait}, task: {title}"


CALLBACKS = {
    "no callback": None,
    "callback returns": "a substitute",
    "callback returns None": None,
    "callback raises": LookupError("from the callback"),
}
HOOKS = [names for size in range(4) for names in itertools.combinations(ALL_HOOKS, size)]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("reraise", [False, True], ids=["wrapped", "reraise"])
def test_tasks_end_as_in_tenacity(clock: Clock, script: str, callback: str, reraise: bool) -> None:
    """`reraise`, `retry_error_callback` and any set of hooks: the end and the calls are those of `Retrying()`."""
    for retry, names in itertools.product(("default", "any", "result"), HOOKS):

        def settings(trace: Trace, retry: str = retry, names: tuple[str, ...] = names) -> dict[str, Any]:
            chosen = {"stop": tenacity.stop_after_attempt(3), "wait": WAITS["random"], "retry": RETRIES[retry]}
            if callback != "no callback":
                chosen["retry_error_callback"] = trace.hook("callback", CALLBACKS[callback])
            return {**chosen, **trace.hooks(*names), "reraise": reraise}

        expected = tenacitys_steps(clock, SCRIPTS[script], settings)
        assert our_steps(clock, SCRIPTS[script], settings) == expected, f"retry: {retry}, hooks: {names}"


@pytest.mark.parametrize("hook", ["before", "after", "before_sleep", "retry_error_callback", "retry", "wait", "stop"])
def test_a_hook_that_raises_ends_the_task_as_in_tenacity(clock: Clock, hook: str) -> None:
    """What a hook or a strategy raises is how the task fails."""

    def settings(trace: Trace) -> dict[str, Any]:
        chosen: dict[str, Any] = {"stop": tenacity.stop_after_attempt(2), **trace.hooks(*ALL_HOOKS)}
        return {**chosen, hook: trace.hook(hook, LookupError("from the hook"))}

    expected = tenacitys_steps(clock, SCRIPTS["fails for ever"], settings)
    assert expected[-1] == ("raised", LookupError, ("from the hook",))
    assert our_steps(clock, SCRIPTS["fails for ever"], settings) == expected


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_step_may_come_from_another_thread(clock: Clock, script: str) -> None:
    """Hooks see the same state and statistics when no two steps of a task are taken in one thread."""

    def settings(trace: Trace) -> dict[str, Any]:
        return {"stop": tenacity.stop_after_attempt(4), "wait": WAITS["chain"], **trace.hooks(*ALL_HOOKS)}

    expected = tenacitys_steps(clock, SCRIPTS[script], settings)
    assert our_steps(clock, SCRIPTS[script], settings, elsewhere) == expected


def test_tenacitys_own_log_hooks_work_across_threads(clock: Clock) -> None:
    """`before_log`, `after_log` and `before_sleep_log` write what they write under `Retrying()`."""
    lines: list[Step] = []
    logger: Any = SimpleNamespace(log=lambda *line, **_: lines.append(line))

    def settings(_: Trace) -> dict[str, Any]:
        return {
            "stop": tenacity.stop_after_attempt(3),
            "wait": tenacity.wait_fixed(1),
            "before": tenacity.before_log(logger, 10),
            "after": tenacity.after_log(logger, 20),
            "before_sleep": tenacity.before_sleep_log(logger, 30),
        }

    tenacitys_steps(clock, SCRIPTS["fails for ever"], settings)
    expected = lines.copy()
    assert len(expected) == 8
    lines.clear()
    our_steps(clock, SCRIPTS["fails for ever"], settings, elsewhere)
    assert lines == expected


def test_tasks_that_share_a_policy_do_not_share_state(clock: Clock) -> None:
    """Attempts, time and idleness are counted for each task, also when their steps are interleaved."""
    trace = Trace(clock, SCRIPTS["fails for ever"])
    stop = tenacity.stop_after_attempt(3) | tenacity.stop_after_delay(10)
    wait = tenacity.wait_incrementing(start=1, increment=1)
    policy = TenacityPolicy(tenacity.Retrying(stop=stop, wait=wait, before_sleep=trace.hook("before_sleep")))
    failed = Failure(OSError("x"))
    first = policy.begin(trace.task, (), {})
    assert policy.decide(first, 1, failed) == Delay(1.0)
    clock.now += 9
    second = policy.begin(trace.task, (), {})
    assert policy.decide(second, 1, failed) == Delay(1.0)
    assert policy.decide(first, 2, failed) == Delay(2.0)
    clock.now += 2
    assert policy.decide(first, 3, failed) is failed
    assert policy.decide(second, 2, failed) == Delay(2.0)
    assert [(number, idle) for _, number, _, _, idle, *_ in trace.steps] == [(1, 1.0), (1, 1.0), (2, 3.0), (2, 3.0)]


def settled(retrying: tenacity.Retrying, outcome: Outcome) -> Decision:
    """Return what is decided on a task's first outcome."""
    policy = TenacityPolicy(retrying)
    return policy.decide(policy.begin(len, (), {}), 1, outcome)


def test_the_error_is_the_tasks_own_whatever_class_tenacity_would_raise() -> None:
    """A `retry_error_cls` does not replace the exception of the task."""

    class GaveUpError(tenacity.RetryError):
        pass

    failed = Failure(OSError("x"))
    retrying = tenacity.Retrying(stop=tenacity.stop_after_attempt(1), retry_error_cls=GaveUpError)
    assert settled(retrying, failed) is failed


@pytest.mark.parametrize("reraise", [False, True])
def test_a_rejected_result(reraise: bool) -> None:
    """Where retries end on a result there is no own exception; the error is ours, with the result, and nothing of tenacity's."""
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(1), retry=tenacity.retry_if_result(bool), reraise=reraise
    )
    decision = settled(retrying, Success("no good"))
    assert isinstance(decision, Failure)
    error = decision.error
    assert isinstance(error, ResultRejectedError)
    assert (error.result, error.attempts, error.__cause__, error.__context__) == ("no good", 1, None, None)
    assert str(error) == "the retry policy rejected what the task returned, 'no good', after 1 attempt"


def test_a_rejected_result_where_the_user_has_an_error_for_it() -> None:
    """A `retry_error_cls` that somebody asked for is made of the result, as tenacity makes it."""

    class GaveUpError(tenacity.RetryError):
        pass

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(1), retry=tenacity.retry_always, retry_error_cls=GaveUpError
    )
    decision = settled(retrying, Success("no good"))
    assert isinstance(decision, Failure)
    assert isinstance(decision.error, GaveUpError)
    assert decision.error.last_attempt.result() == "no good"


@pytest.mark.parametrize("reraise", [False, True])
def test_try_again_stays_the_error_and_keeps_its_cause(reraise: bool) -> None:
    """A task that gave up asking for more fails with its `TryAgain`, whatever the version of tenacity makes of it."""
    error = caused(tenacity.TryAgain(), OSError("why"))
    decision = settled(tenacity.Retrying(stop=tenacity.stop_after_attempt(1), reraise=reraise), Failure(error))
    assert isinstance(decision, Failure)
    assert decision.error is error
    assert isinstance(error.__cause__, OSError)


def test_retry_after_takes_the_place_of_the_wait() -> None:
    """The wait strategy is not asked; `before_sleep` and `stop_before_delay` see the seconds that the error says."""
    seen: list[float] = []

    def wait(state: Any) -> float:
        raise AssertionError

    retrying = tenacity.Retrying(wait=wait, before_sleep=lambda state: seen.append(state.next_action.sleep))
    assert settled(retrying, Failure(RetryAfter(7.5))) == Delay(7.5)
    assert seen == [7.5]
    busy = OSError("busy")
    busy.retry_after = 2  # type: ignore[attr-defined]  # as some libraries' errors have
    assert settled(retrying, Failure(busy)) == Delay(2)


def test_retry_after_is_worth_another_attempt_as_try_again_is() -> None:
    """`retry` is not consulted, `stop` is; an error that only says when is retried if `retry` says so."""
    nothing = tenacity.Retrying(retry=tenacity.retry_never, wait=tenacity.wait_fixed(9))
    assert settled(nothing, Failure(RetryAfter(7))) == Delay(7)
    busy = OSError("busy")
    busy.retry_after = 2  # type: ignore[attr-defined]  # as some libraries' errors have
    assert settled(nothing, Failure(busy)) == Failure(busy)
    error = RetryAfter(7)
    assert settled(tenacity.Retrying(stop=tenacity.stop_after_attempt(1)), Failure(error)) == Failure(error)


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("hook", ["after", "before_sleep", "retry", "wait", "stop", "retry_error_callback"])
def test_nothing_that_a_hook_raises_escapes(hook: str, raised: BaseException) -> None:
    """Even `SystemExit` from a hook only fails the task, or it would end the thread that settles tasks."""

    def raising(_: Any) -> Any:
        raise raised

    settings: dict[str, Any] = {hook: raising}
    if hook == "retry_error_callback":
        settings["stop"] = tenacity.stop_after_attempt(1)
    decision = settled(tenacity.Retrying(**settings), Failure(OSError("x")))
    assert isinstance(decision, Failure)
    assert decision.error is raised


def test_what_before_raises_reaches_the_caller() -> None:
    """`before` raises what the hook raised, so that the attempt is not run."""

    def raising(_: Any) -> None:
        raise LookupError("no")

    policy = TenacityPolicy(tenacity.Retrying(before=raising))
    with pytest.raises(LookupError, match="no"):
        policy.before(policy.begin(len, (), {}), 1)


def test_a_wait_that_makes_no_sense_becomes_a_failure() -> None:
    """A wait strategy that returns no number fails the task instead of breaking the scheduler."""
    decision = settled(tenacity.Retrying(wait=lambda retry_state: "soon"), Failure(OSError("x")))  # type: ignore[arg-type, return-value]
    assert isinstance(decision, Failure)
    assert isinstance(decision.error, (TypeError, ValueError))


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_wait_is_never_negative(seconds: float) -> None:
    """A wait below 0, or one that is no number, means at once."""
    decision = settled(tenacity.Retrying(wait=lambda retry_state: seconds), Failure(OSError("x")))
    assert isinstance(decision, Delay)
    assert decision.seconds == 0.0


def test_before_sleep_may_change_the_wait() -> None:
    """The wait is read after `before_sleep` ran, as newer versions of tenacity do."""

    def shorten(state: Any) -> None:
        state.upcoming_sleep = 0.5

    decision = settled(tenacity.Retrying(wait=tenacity.wait_fixed(9), before_sleep=shorten), Failure(OSError("x")))
    assert isinstance(decision, Delay)
    assert decision.seconds == 0.5


def test_a_disabled_object_retries_nothing_and_calls_no_hook(clock: Clock) -> None:
    """`enabled=False` means one plain call."""
    trace = Trace(clock, SCRIPTS["fails for ever"])
    retrying = tenacity.Retrying(before=trace.hook("before"), after=trace.hook("after"))
    vars(retrying)["enabled"] = False  # not an argument in older versions, which ignore it; we need not
    outcome = follow(TenacityPolicy(retrying), trace)
    assert ending(outcome) == ("raised", OSError, (5, "disk"))
    assert trace.steps == [("attempt", 1)]


def test_hooks_see_the_function_inside_a_partial() -> None:
    """A task's `functools.partial` is unfolded into the function and its arguments."""
    policy = TenacityPolicy(tenacity.Retrying())
    state = policy.begin(partial(sorted, [2, 1], key=abs), (), {"reverse": True})
    assert (state.fn, state.args, state.kwargs) == (sorted, ([2, 1],), {"key": abs, "reverse": True})


def test_before_is_called_only_if_the_user_set_it() -> None:
    """`has_before` tells tenacity's default, and None, from a hook."""
    nothing: Any = None
    assert not TenacityPolicy(tenacity.Retrying()).has_before
    assert not TenacityPolicy(tenacity.Retrying(before=nothing)).has_before
    assert TenacityPolicy(tenacity.Retrying(before=lambda state: None)).has_before


NEVER_RETRIED = [
    KeyboardInterrupt(),
    SystemExit(1),
    GeneratorExit(),
    asyncio.CancelledError(),
    concurrent.futures.CancelledError(),
    TaskSerializationError("a lambda", "to the worker", "it has no name"),
    WorkerStartError("the initializer failed"),
    CapacityExhaustedError(3),
    DeadlineExceededError("a", 1.0),
]
PLAIN = PlainPolicy(retry_count=3, backoff=1.0, max_backoff=30.0, jitter=False, retry_on=(Exception,))


@pytest.mark.parametrize("error", NEVER_RETRIED, ids=lambda error: f"{type(error).__module__}.{type(error).__name__}")
def test_some_errors_are_never_retried(clock: Clock, error: BaseException) -> None:
    """Interrupts, cancellation and what another attempt cannot help end the task, with no hook asked."""
    plain = PlainPolicy(3, 1.0, 30.0, jitter=False, retry_on=(BaseException,))
    assert plain.decide(None, 1, Failure(error)) == Failure(error)
    trace = Trace(clock, SCRIPTS["returns"])
    retrying = tenacity.Retrying(
        retry=tenacity.retry_always, retry_error_callback=trace.hook("callback"), **trace.hooks("after", "before_sleep")
    )
    decision = settled(retrying, Failure(error))
    assert isinstance(decision, Failure)
    assert decision.error is error
    assert trace.steps == []


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        TimeoutError(),
        TaskTimeoutError("a", 1.0, 1),
        WorkerCrashedError(7, -9, "a"),
        RemoteTaskError("m.E", "x"),
        concurrent.futures.BrokenExecutor(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_timeouts_and_crashes_are_retried_like_any_failure(error: Exception) -> None:
    """By default every other Exception is worth another attempt."""
    assert isinstance(PLAIN.decide(None, 1, Failure(error)), Delay)
    assert isinstance(settled(tenacity.Retrying(), Failure(error)), Delay)
