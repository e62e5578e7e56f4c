"""`parallel_exec.retry`: the plain settings, and whose settings a task has."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tenacity

from parallel_exec._outcome import Failure, Success
from parallel_exec.config import ParallelConfig, policy_for
from parallel_exec.errors import RemoteTaskError, RetryAfter
from parallel_exec.retry import Delay, PlainPolicy, TenacityPolicy
from parallel_exec.task import INHERIT

pytestmark = pytest.mark.filterwarnings("error")

PLAIN = PlainPolicy(retry_count=3, backoff=1.0, max_backoff=30.0, jitter=False, retry_on=(Exception,))


def test_plain_retries_as_often_as_it_was_told() -> None:
    """`retry_count` retries follow the first attempt, with waits that double up to the limit."""
    policy = PlainPolicy(retry_count=4, backoff=1.0, max_backoff=5.0, jitter=False, retry_on=(Exception,))
    failed = Failure(OSError("x"))
    decisions = [policy.decide(None, number, failed) for number in range(1, 6)]
    assert decisions[:4] == [Delay(1.0), Delay(2.0), Delay(4.0), Delay(5.0)]
    assert decisions[4] is failed


def test_plain_takes_a_success_as_it_is() -> None:
    """Any result ends the task, None and exceptions returned as values included."""
    for outcome in (Success(None), Success(OSError("a value"))):
        assert PLAIN.decide(None, 1, outcome) is outcome


def test_plain_retries_only_the_types_of_retry_on() -> None:
    """An error of another type ends the task."""
    policy = PlainPolicy(3, 1.0, 30.0, jitter=False, retry_on=(OSError, KeyError))
    failed = Failure(ValueError("x"))
    assert policy.decide(None, 1, failed) is failed
    assert isinstance(policy.decide(None, 1, Failure(ConnectionError())), Delay)


def test_plain_jitter_is_tenacitys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait is `min(backoff * 2**n + uniform(0, backoff), max_backoff)`, and no deprecated name is used for it."""
    monkeypatch.setattr(random, "uniform", lambda low, high: low + 0.75 * (high - low))
    policy = PlainPolicy(9, 2.0, 20.0, jitter=True, retry_on=(Exception,))
    waits = [policy.decide(None, number, Failure(OSError())) for number in (1, 2, 3, 4, 5)]
    assert waits == [Delay(3.5), Delay(5.5), Delay(9.5), Delay(17.5), Delay(20.0)]


@pytest.mark.parametrize("jitter", [False, True])
@pytest.mark.parametrize("number", [1, 2, 64, 1023, 1025, 5000, 100_000])
@pytest.mark.parametrize("backoff", [0.0, 1e-9, 0.1, 1.0, 1e9])
@pytest.mark.parametrize("max_backoff", [0.0, 0.5, 30.0])
def test_no_number_of_attempts_overflows(backoff: float, max_backoff: float, number: int, jitter: bool) -> None:
    """The wait stays between 0 and `max_backoff`, and a backoff of 0 stays 0, however long it goes on."""
    policy = PlainPolicy(1_000_000, backoff, max_backoff, jitter=jitter, retry_on=(Exception,))
    decision = policy.decide(None, number, Failure(OSError()))
    assert isinstance(decision, Delay)
    assert 0.0 <= decision.seconds <= (max_backoff if backoff else 0.0)
    if backoff and number >= 1023:
        assert decision.seconds == max_backoff


class BusyError(Exception):
    """A service that says when it has time again."""

    def __init__(self, retry_after: float) -> None:
        super().__init__()
        self.retry_after = retry_after


def test_plain_waits_as_long_as_the_error_says() -> None:
    """A `retry_after` takes the place of the backoff, 0 and more than `max_backoff` included, as long as retries are left."""
    for seconds in (0.0, 0.5, 300):
        for error in (RetryAfter(seconds), RetryAfter(seconds, "api"), BusyError(seconds)):
            assert PLAIN.decide(None, 3, Failure(error)) == Delay(seconds)
            assert PLAIN.decide(None, 4, Failure(error)) == Failure(error)


def test_plain_retries_a_retry_after_whatever_retry_on_says() -> None:
    """A task that raises `RetryAfter` asks for another attempt; an error of the user's must be one of `retry_on`."""

    def never(error: BaseException) -> bool:
        return False

    for retry_on in ((KeyError,), never):
        policy = PlainPolicy(3, 1.0, 30.0, jitter=False, retry_on=retry_on)
        assert policy.decide(None, 1, Failure(RetryAfter(7))) == Delay(7)
        failed = Failure(BusyError(7))
        assert policy.decide(None, 1, failed) is failed


def test_plain_knows_a_retry_after_that_could_not_be_rebuilt() -> None:
    """What stands in for a class of the user's that derives from `RetryAfter` is worth another attempt, too."""
    error = RemoteTaskError("app.Busy", "busy", type_names=("app.Busy", "parallel_exec.errors.RetryAfter", "Exception"))
    error.retry_after = 7  # type: ignore[attr-defined]  # as one has that had it
    policy = PlainPolicy(3, 1.0, 30.0, jitter=False, retry_on=(KeyError,))
    assert policy.decide(None, 1, Failure(error)) == Delay(7)


def test_plain_policies_are_values() -> None:
    """Equal settings make equal policies that hash alike, frozen."""
    assert PlainPolicy(3, 1.0, 30.0, jitter=False, retry_on=(Exception,)) == PLAIN
    assert len({PLAIN, PlainPolicy(3, 1.0, 30.0, jitter=False, retry_on=(Exception,))}) == 1
    with pytest.raises(AttributeError):
        PLAIN.retry_count = 4  # type: ignore[misc]


def test_plain_needs_no_state_and_no_hook() -> None:
    """A plain task is spared `begin`, `before` and the question after a first success."""
    assert (PLAIN.asks_on_success, PLAIN.has_before) == (False, False)
    state: Any = PlainPolicy.begin(PLAIN, len, (), {})  # type: ignore[func-returns-value]
    assert state is None
    PLAIN.before(state, 1)


def test_tenacity_is_imported_only_for_a_wait() -> None:
    """Making a policy, a success, a last failure and a wait of 0 leave tenacity unimported."""
    code = """if True:
        import sys
        from parallel_exec.config import ParallelConfig
        from parallel_exec._outcome import Failure, Success
        from parallel_exec.config import policy_for
        policy = policy_for(ParallelConfig(retry_count=1, backoff=0))
        policy.decide(policy.begin(len, (), {}), 1, Success(1))
        policy.decide(None, 1, Failure(OSError()))
        policy.decide(None, 2, Failure(OSError()))
        assert "tenacity" not in sys.modules
        policy_for(ParallelConfig()).decide(None, 1, Failure(OSError()))
        assert "tenacity" in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_a_task_without_settings_has_the_executors() -> None:
    """The config's plain settings, or its `retry`, hold for tasks that say nothing."""
    config = ParallelConfig(retry_count=4, backoff=0.5, max_backoff=9, jitter=False, retry_on=OSError)
    assert policy_for(config, INHERIT, INHERIT) == PlainPolicy(4, 0.5, 9.0, jitter=False, retry_on=(OSError,))
    assert isinstance(policy_for(ParallelConfig(retry=tenacity.Retrying())), TenacityPolicy)


def test_a_tasks_retry_count_wins_over_the_executors_settings() -> None:
    """It replaces the config's count, and the config's `retry` with the plain settings."""
    config = ParallelConfig(retry=tenacity.Retrying(), jitter=False)
    for given in (config, ParallelConfig(jitter=False)):
        assert policy_for(given, 7, INHERIT) == PlainPolicy(7, 1.0, 30.0, jitter=False, retry_on=(Exception,))


def test_a_tasks_retry_wins_over_everything() -> None:
    """A `Retrying` of the task's own decides alone, also beside a `retry_count`."""
    retrying = tenacity.Retrying(stop=tenacity.stop_after_attempt(1))
    failed = Failure(OSError("x"))
    for count in (INHERIT, 5):
        policy = policy_for(ParallelConfig(retry=tenacity.Retrying()), count, retrying)
        assert policy.decide(policy.begin(len, (), {}), 1, failed) is failed


def test_a_tasks_retry_of_none_means_the_plain_settings() -> None:
    """`retry=None` turns the executor's `retry` off for one task."""
    config = ParallelConfig(retry=tenacity.Retrying(), retry_count=6)
    assert policy_for(config, INHERIT, None) == PlainPolicy(6, 1.0, 30.0, jitter=True, retry_on=(Exception,))
    assert policy_for(config, 0, None) == PlainPolicy(0, 1.0, 30.0, jitter=True, retry_on=(Exception,))
