"""An attempt's states in somebody else's engine, alone: what it may become from where, and who may say so first."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import Future
from typing import Any, Callable

import pytest

from parallel_exec.backends.engine.submission import EngineSlot, State, Submission


class Record:
    """Stands for a task's record."""

    attempt_number = 4
    grant = None

    def fn(self) -> None:
        """Do nothing."""


class Timer:
    """A timer that the test lets ring.

    Attributes:
        disarmed: how often it was disarmed.
    """

    def __init__(self, ring: Callable[[], object]) -> None:
        self.ring = ring
        self.disarmed = 0

    def disarm(self) -> None:
        """Count it."""
        self.disarmed += 1


class Due:
    """Who is told that a slot's timer is due.

    Attributes:
        told: the submissions.
    """

    def __init__(self) -> None:
        self.told: list[Submission] = []

    def tell(self, slot: EngineSlot, submission: Submission) -> None:
        """Remember it."""
        assert slot.submission is submission
        self.told.append(submission)


@pytest.fixture
def due() -> Due:
    """Who is told."""
    return Due()


@pytest.fixture
def slot(due: Due) -> EngineSlot:
    """A slot that is free."""
    return EngineSlot(Timer, due.tell)


@pytest.fixture
def record() -> Any:
    """A task's record."""
    return Record()


@pytest.fixture
def submission(record: Any, slot: EngineSlot) -> Submission:
    """An attempt that was just handed over."""
    return Submission(record, slot, 7)


def _run(submission: Submission, *, here: bool = False) -> None:
    assert submission.begin("somewhere", 1.0, here=here)


def _withdraw(submission: Submission) -> None:
    assert submission.withdraw()


def _send(submission: Submission) -> None:
    assert submission.send()


def _abandon(submission: Submission) -> None:
    _run(submission)
    submission.abandon()


def _settle(submission: Submission) -> None:
    _run(submission)
    submission.release()


REACH: dict[str, Callable[[Submission], object]] = {
    State.WAITING: lambda submission: None,
    State.SENT: _send,
    State.RUNNING: _run,
    State.ABANDONED: _abandon,
    State.WITHDRAWN: _withdraw,
    State.SETTLED: _settle,
}

MOVES: dict[str, Callable[[Submission], object]] = {
    "send": Submission.send,
    "begin": lambda submission: submission.begin("elsewhere", 2.0),
    "withdraw": Submission.withdraw,
    "withdraw_sent": Submission.withdraw_sent,
    "abandon": Submission.abandon,
    "release": Submission.release,
    "leave_engine": Submission.leave_engine,
    "return_here": Submission.return_here,
}

# What is not here leaves the state as it is.
TABLE = {
    (State.WAITING, "send"): State.SENT,
    (State.WAITING, "begin"): State.RUNNING,
    (State.WAITING, "withdraw"): State.WITHDRAWN,
    (State.WAITING, "withdraw_sent"): State.WITHDRAWN,
    (State.WAITING, "release"): State.SETTLED,
    (State.SENT, "begin"): State.RUNNING,
    (State.SENT, "withdraw_sent"): State.WITHDRAWN,
    (State.SENT, "release"): State.SETTLED,
    (State.RUNNING, "abandon"): State.ABANDONED,
    (State.RUNNING, "release"): State.SETTLED,
    (State.ABANDONED, "leave_engine"): State.SETTLED,
}


@pytest.mark.parametrize("state", REACH)
@pytest.mark.parametrize("move", MOVES)
def test_every_move_in_every_state(submission: Submission, state: str, move: str) -> None:
    """Each method leads from each state where the table says."""
    REACH[state](submission)
    assert submission.state == state
    MOVES[move](submission)
    assert submission.state == TABLE.get((state, move), state)


@pytest.mark.parametrize("state", REACH)
def test_only_what_is_pending_begins(submission: Submission, state: str) -> None:
    """`begin` says whether it was the first to decide, and then alone writes where and when."""
    REACH[state](submission)
    pending, worker = submission.is_pending, submission.worker
    assert submission.begin("elsewhere", 2.0) == pending
    assert (submission.worker, submission.started_at) == (
        ("elsewhere", 2.0) if pending else (worker, float(bool(worker)))
    )


def _race(moves: list[Callable[[Submission], object]], submission: Submission) -> list[bool]:
    """Return what each of the moves returned, all made at the same time."""
    gate = threading.Barrier(len(moves))
    won: list[bool] = []

    def decide(move: Callable[[Submission], object]) -> None:
        gate.wait()
        won.append(bool(move(submission)))

    threads = [threading.Thread(target=decide, args=(move,)) for move in moves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_one_of_many_decides(record: Any, slot: EngineSlot) -> None:
    """However many threads begin and withdraw at a time, one of them may."""
    moves = [MOVES["begin"], MOVES["withdraw"], MOVES["begin"], MOVES["withdraw_sent"]]
    for serial in range(50):
        assert sorted(_race(moves, Submission(record, slot, serial))) == [False, False, False, True]


def test_what_was_withdrawn_is_not_sent(submission: Submission) -> None:
    """`send` says so, and may be called again by an engine that pickles twice."""
    assert submission.send()
    assert submission.send()
    assert submission.withdraw_sent()
    assert not submission.send()


def test_the_engines_future_comes_too_late_to_be_cancelled(submission: Submission) -> None:
    """What was withdrawn before the engine's `submit` returned is to be cancelled then; other attempts are not."""
    assert not submission.accepted(Future())
    submission.withdraw()
    assert submission.accepted(Future())


def test_an_abandoned_call_here_is_over_when_both_have_ended(submission: Submission) -> None:
    """A call that runs here and that the engine has cancelled in its books goes on until it returns, and the reverse."""
    _run(submission, here=True)
    submission.abandon()
    assert not submission.leave_engine()
    assert (submission.state, submission.runs_here) == (State.ABANDONED, True)
    assert submission.return_here()
    assert (submission.state, submission.runs_here) == (State.SETTLED, False)


def test_an_abandoned_call_here_that_returns_first(submission: Submission) -> None:
    """When the call has returned, the engine still has to say that it is done."""
    _run(submission, here=True)
    submission.abandon()
    assert not submission.return_here()
    assert submission.state == State.ABANDONED
    assert submission.leave_engine()
    assert submission.state == State.SETTLED


def test_the_slot_is_released_once(submission: Submission, slot: EngineSlot, record: Any) -> None:
    """It is free from then on, its timer at rest, and a late release does not touch who has it next."""
    timer: Any = slot.timer
    assert submission.release() is slot
    assert (slot.submission, timer.disarmed) == (None, 1)
    successor = Submission(record, slot, 8)
    assert submission.release() is None
    assert slot.submission is successor
    assert timer.disarmed == 1


def test_a_slots_timer_tells_of_who_holds_it(submission: Submission, slot: EngineSlot, due: Due) -> None:
    """A timer that rings for a free slot says nothing."""
    timer: Any = slot.timer
    timer.ring()
    submission.release()
    timer.ring()
    assert due.told == [submission]


def test_it_does_not_keep_its_record(slot: EngineSlot) -> None:
    """The engine may keep the submission; a task that has ended is gone all the same."""
    record: Any = Record()
    submission, gone = Submission(record, slot, 1), weakref.ref(record)
    assert submission.job is record
    assert (submission.number, submission.name) == (5, "fn")
    del record
    gc.collect()
    assert gone() is None
    assert submission.known_job is None
    with pytest.raises(ReferenceError, match="has ended"):
        _ = submission.job
