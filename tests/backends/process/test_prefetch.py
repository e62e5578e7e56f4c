"""How much is sent ahead, and what is taken back: unit tests of `Prefetch`."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from bare_jobs import new_chunk, new_job

from parallel_exec.backends.process.assigned import AssignedCalls
from parallel_exec.backends.process.assignments import Assignments
from parallel_exec.backends.process.prefetch import AHEAD, LONG, MOST_CALLS, Prefetch
from parallel_exec.backends.process.wire import Running
from parallel_exec.backends.process.worker_handle import WorkerState
from parallel_exec.backends.process.worker_process import WorkerProcess


def handle(assigned: int = 0, **facts: Any) -> Any:
    """Return what `Prefetch` looks at of a worker."""
    defaults = {"state": WorkerState.READY, "pending_kill": None, "process": WorkerProcess(), "sent": 0, "large": 0}
    return SimpleNamespace(assigned=assigned_calls(*map(new_job, range(assigned))), **{**defaults, **facts})


def assigned_calls(*jobs: Any) -> AssignedCalls:
    """Return the calls of these jobs, numbered from 1."""
    assigned, serial = AssignedCalls(), 1
    for job in jobs:
        assigned.add(serial, job)
        serial += job.weight
    return assigned


def bare() -> Prefetch:
    """Return what decides for a pool without workers."""
    return Prefetch(Assignments(threading.RLock(), int), bool)


def after(*durations: float) -> Prefetch:
    """Return a pace that has seen calls of these durations, each often enough to count."""
    pace = bare()
    for duration in durations:
        for _ in range(60):
            pace.observe(duration)
    return pace


def test_nothing_is_sent_ahead_of_the_first_results() -> None:
    """As long as nobody knows how long tasks take, a worker gets one."""
    assert bare().depth == 1
    assert bare().want(handle(), 100, 1, None) == 1


@pytest.mark.parametrize(("duration", "depth"), [(0.5, 1), (LONG, 1), (0.010, 2), (0.002, 2), (AHEAD / 20, 17)])
def test_as_much_as_lasts_for_two_milliseconds(duration: float, depth: int) -> None:
    """Long tasks go one by one, short ones two at a time, tiny ones in batches."""
    assert after(duration).depth == depth


def test_there_is_a_most() -> None:
    """However short the calls."""
    pace = bare()
    for _ in range(60):
        pace.observe(1e-7, 0.0)
    assert pace.depth == MOST_CALLS


def test_one_slow_call_does_not_spoil_it_for_long() -> None:
    """A second's pause among tiny tasks is forgotten after some tens of them."""
    pace = after(0.0)
    before = pace.depth
    pace.observe(1.0)
    assert pace.depth < before
    for _ in range(60):
        pace.observe(0.0)
    assert pace.depth >= before * 0.9


def test_it_adapts_when_calls_become_longer() -> None:
    """Some ten long calls after many tiny ones, nothing is sent ahead any more."""
    pace = after(0.0)
    for _ in range(10):
        pace.observe(0.5)
    assert pace.depth == 1


@pytest.mark.parametrize(
    "fact",
    [
        {"state": WorkerState.STARTING},
        {"state": WorkerState.CLOSING},
        {"state": WorkerState.DRAINING},
        {"pending_kill": (1, OSError())},
    ],
)
def test_who_gets_nothing(fact: dict[str, Any]) -> None:
    """A worker that starts, ends, has things taken back or is to be killed is sent nothing."""
    assert after(0.0).want(handle(**fact), 100, 1, None) == 0


def test_a_worker_is_refilled_when_half_is_done() -> None:
    """Not before: a batch is worth more than a few single ones."""
    pace = after(0.0)
    depth = pace.depth
    assert pace.want(handle(depth // 2 + 1), 10_000, 1, None) == 0
    assert pace.want(handle(depth // 2), 10_000, 1, None) == depth - depth // 2
    assert after(0.5).want(handle(1), 10_000, 1, None) == 0


def test_what_there_is_is_shared_fairly() -> None:
    """With little to do nobody takes it all."""
    pace = after(0.0)
    assert pace.want(handle(), 10, 4, None) == 3
    assert pace.want(handle(), 1, 4, None) == 1
    assert pace.want(handle(), 0, 4, None) == 1


def test_never_more_than_a_worker_may_have_in_its_life() -> None:
    """`max_tasks_per_child` counts what was sent."""
    pace = after(0.0)
    assert pace.want(handle(sent=0), 10_000, 1, 3) == 3
    assert pace.want(handle(sent=2), 10_000, 1, 3) == 1
    assert pace.want(handle(sent=3), 10_000, 1, 3) == 0


class FakeAssignments:
    """Workers of which it is noted what is taken back from them."""

    def __init__(self, *handles: Any) -> None:
        self.handles = handles
        self.worst: tuple[int, int] | None = (0, 9)
        self.taken: list[tuple[int, int | None]] = []

    def take_back(self, handle: Any, most: int | None = None) -> None:
        """Note it."""
        self.taken.append((self.handles.index(handle), most))

    def take_back_all(self) -> None:
        """Note it as from a worker that is none."""
        self.taken.append((-1, None))


def busy(waiting: int, ran: float, **facts: Any) -> Any:
    """Return a worker that runs a call since `ran` seconds, and has others to begin."""
    return handle(waiting + 1, running=lambda: Running(1, time.monotonic() - ran, False), **facts)


def deciding(assignments: Any, *durations: float, grows: bool = False) -> Prefetch:
    """Return what decides for these workers."""
    made = Prefetch(assignments, lambda: grows)
    for duration in durations * 60:
        made.observe(duration)
    return made


@pytest.mark.parametrize(
    ("waiting", "ran", "nothing_else", "facts", "taken"),
    [
        (10, 0.0, True, {}, [(0, 5)]),
        (10, 0.0, False, {}, []),
        (10, 0.0, True, {"state": WorkerState.DRAINING}, []),
        (10, 0.5, False, {}, [(0, None)]),
        (10, 0.5, False, {"state": WorkerState.DRAINING}, [(0, None)]),
        (1, 0.0, True, {}, []),
        (0, 0.5, True, {}, []),
        (10, 0.5, True, {"state": WorkerState.CLOSING}, []),
    ],
)
def test_what_an_idle_worker_is_given_of_another_ones(
    waiting: int, ran: float, nothing_else: bool, facts: dict[str, Any], taken: list[Any]
) -> None:
    """Half of what waits if there is nothing else and it is worth it, and all of it if it is stuck."""
    assignments = FakeAssignments(busy(waiting, ran, **facts), handle())
    deciding(assignments, 0.0002).rebalance(nothing_else=nothing_else)
    assert assignments.taken == taken


@pytest.mark.parametrize(
    ("duration", "ran", "others", "grows", "stuck", "taken"),
    [
        (0.0001, 0.0001, [], False, False, []),
        (0.0001, 0.5, [], False, True, [(0, None)]),
        (0.005, 0.5, [], False, True, []),
        (0.005, 0.5, [], True, True, [(0, None)]),
        (0.005, 0.5, [handle()], False, True, [(0, None)]),
        (0.005, 0.5, [handle(1)], False, True, []),
    ],
)
def test_what_is_stuck_behind_a_call(
    duration: float, ran: float, others: list[Any], grows: bool, stuck: bool, taken: list[Any]
) -> None:
    """It is taken back if another worker could begin it, or if that are many."""
    assignments = FakeAssignments(busy(1, ran), *others)
    handle = assignments.handles[0]
    assert deciding(assignments, duration, grows=grows).relieve(handle, handle.running(), time.monotonic()) is stuck
    assert assignments.taken == taken


def test_what_comes_before_all_that_was_handed_out_has_that_taken_back() -> None:
    """What comes after it does not."""
    assignments = FakeAssignments()
    decides = deciding(assignments)
    decides.preempt((1, 0))
    assert assignments.taken == []
    decides.preempt((-1, 50))
    assert assignments.taken == [(-1, None)]


@pytest.mark.parametrize(("first", "second", "waits"), [(0, 5, True), (5, 5, False), (None, 5, False)])
def test_nothing_of_lower_priority_begins_first(first: int | None, second: int, waits: bool) -> None:
    """As long as a worker has yet to begin what has a higher one."""
    port: Any = SimpleNamespace(first_priority=lambda: first)
    sent = handle()
    sent.assigned = assigned_calls(new_job(priority=9), new_job(priority=second))
    assert deciding(FakeAssignments(sent)).must_wait(port) is waits


def test_what_waits_for_its_own_chunk_to_be_loaded_stays_there() -> None:
    """Whoever got the rest of a chunk would have to load it again."""
    loading = Running(1, time.monotonic() - 0.5, True)
    sent = handle(running=lambda: loading)
    assignments = FakeAssignments(sent, handle())
    decides = deciding(assignments, 0.0001)
    sent.assigned = assigned_calls(new_chunk(49))
    decides.rebalance(nothing_else=False)
    assert decides.relieve(sent, loading, time.monotonic())
    assert assignments.taken == []
    sent.assigned.add(50, new_job())
    decides.rebalance(nothing_else=False)
    assert decides.relieve(sent, loading, time.monotonic())
    assert assignments.taken == [(0, None), (0, None)]
