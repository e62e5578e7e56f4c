"""`parallel_exec._core.gate`: the executor's states, step by step, and what is refused in each."""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any, Callable

import pytest

from parallel_exec import ParallelExecError, WorkerStartError
from parallel_exec._core.gate import Gate
from parallel_exec._outcome import Failure

CANCELLED = Failure(CancelledError())


def _closed(gate: Gate) -> None:
    gate.close(None, at_exit=False)


def _at_exit(gate: Gate) -> None:
    gate.close(None, at_exit=True)


def _broken(gate: Gate) -> None:
    gate.fail(WorkerStartError("no workers"))


def test_staged_until_it_is_opened() -> None:
    """What is added waits, and so it does again after `stage`."""
    gate = Gate()
    gate.enter(start=False)
    assert (gate.is_open, gate.may_start) == (False, False)
    gate.open()
    assert (gate.is_open, gate.may_start) == (True, True)
    gate.stage()
    assert (gate.is_open, gate.may_start) == (False, False)


def test_a_task_that_starts_at_once_opens_it_for_good() -> None:
    """`stage` comes after a run, and must not stop what `submit` has started."""
    gate = Gate()
    gate.enter(start=True)
    gate.stage()
    assert (gate.is_open, gate.is_kept_open, gate.may_start) == (True, True, True)


def test_a_pause_outlasts_opening() -> None:
    """What is opened while it is paused begins when it is resumed; and a pause while staged opens nothing."""
    gate = Gate()
    gate.pause()
    gate.open()
    assert (gate.is_open, gate.may_start) == (True, False)
    gate.resume()
    assert gate.may_start
    gate.stage()
    gate.pause()
    gate.resume()
    assert not gate.may_start


def test_closing_ends_a_pause() -> None:
    """What an open pool has taken goes on after its shutdown, paused or not; what was only staged does not."""
    gate = Gate()
    gate.open()
    gate.pause()
    _closed(gate)
    assert (gate.admits, gate.closed, gate.is_open, gate.may_start) == (False, True, True, True)
    staged = Gate()
    _closed(staged)
    assert (staged.is_open, staged.may_start) == (False, False)


def test_how_the_rest_ends() -> None:
    """What `close` says first holds, until nothing can run any more at all: then it is the first such error."""
    gate = Gate()
    _closed(gate)
    assert gate.final_outcome is None
    gate.close(CANCELLED, at_exit=False)
    gate.close(Failure(CancelledError()), at_exit=False)
    assert gate.final_outcome is CANCELLED
    first = WorkerStartError("first")
    gate.fail(first)
    gate.fail(WorkerStartError("second"))
    assert gate.final_outcome == Failure(first)


@pytest.mark.parametrize("add", [Gate.open, lambda gate: gate.enter(start=True), lambda gate: gate.enter(start=False)])
@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        (_closed, RuntimeError, "cannot schedule new futures after shutdown"),
        (_at_exit, RuntimeError, "cannot schedule new futures after interpreter shutdown"),
        (_broken, WorkerStartError, "no workers"),
        (Gate.fork, ParallelExecError, "this executor was made before the process forked: make a new one in the child"),
    ],
    ids=["shutdown", "exit", "broken", "forked"],
)
def test_nothing_is_added_after_the_end(
    end: Callable[[Gate], None], error: type[Exception], message: str, add: Callable[[Gate], Any]
) -> None:
    """Whatever has ended it says so, and an attempt to add changes nothing."""
    gate = Gate()
    end(gate)
    with pytest.raises(error, match=message):
        add(gate)
    assert (gate.is_open, gate.may_start, gate.is_kept_open) == (False, False, False)


@pytest.mark.parametrize("end", [_closed, _at_exit, Gate.fork], ids=["shutdown", "exit", "forked"])
def test_no_pause_after_the_end(end: Callable[[Gate], None]) -> None:
    """There is nothing to pause or to resume, or it must not be stopped any more."""
    gate = Gate()
    gate.open()
    end(gate)
    for change in (gate.pause, gate.resume):
        with pytest.raises((RuntimeError, ParallelExecError)):
            change()
    assert gate.may_start


def test_a_broken_one_can_be_paused() -> None:
    """As long as nobody has shut it down."""
    gate = Gate()
    _broken(gate)
    gate.pause()
    gate.resume()


def test_the_error_is_a_new_one_each_time() -> None:
    """The one that is kept would lead to everybody who met it."""
    gate = Gate()
    kept = WorkerStartError("no workers")
    gate.fail(kept)
    for _ in range(2):
        with pytest.raises(WorkerStartError) as caught:
            gate.refuse()
        assert caught.value is not kept
    assert kept.__traceback__ is None


def test_an_exit_after_a_shutdown_is_still_a_shutdown() -> None:
    """The user has closed it, not the interpreter."""
    gate = Gate()
    _closed(gate)
    _at_exit(gate)
    with pytest.raises(RuntimeError, match="after shutdown"):
        gate.refuse()


def test_stopped_for_good() -> None:
    """Nothing may begin any more, whoever opens, resumes, stages or closes it; what is added waits until it is given up."""
    gate = Gate()
    gate.enter(start=True)
    gate.stop()
    assert (gate.may_start, gate.is_open, gate.admits) == (False, True, True)
    gate.pause()
    for change in (gate.open, gate.resume, gate.stage, lambda: gate.enter(start=True), lambda: _closed(gate)):
        change()
        assert (gate.may_start, gate.final_outcome) == (False, None)
    gate.give_up(CANCELLED)
    assert gate.final_outcome is CANCELLED


def test_what_broke_it_is_not_given_up() -> None:
    """The first final outcome stays."""
    gate = Gate()
    _broken(gate)
    broken = gate.final_outcome
    gate.give_up(CANCELLED)
    assert gate.final_outcome is broken
