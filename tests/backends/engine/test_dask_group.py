"""What travels to a dask cluster together, and how much: without a cluster."""

from __future__ import annotations

import math
from concurrent.futures import Future

import pytest

from parallel_exec.backends._outcomes import AS_IS
from parallel_exec.backends.engine.dask_group import AHEAD, MOST_BYTES, MOST_CALLS, AttemptGroup, make_pace
from parallel_exec.backends.engine.dask_worker import CRASHED, LONG, RemoteJob, _ChildPool
from parallel_exec.backends.engine.remote_call import AttemptInfo, CallResult

pytest.importorskip("distributed")


def a_job(serial: int, size: int = 1) -> RemoteJob:
    """Return an attempt."""
    return RemoteJob(serial, AttemptInfo(f"task {serial}", 1, None), bytes(size))


def a_result(value: object = b"", duration: float = 0.0) -> CallResult:
    """Return how an attempt ended."""
    return CallResult(AS_IS, value, duration, "somewhere")


def a_group(count: int = 4) -> AttemptGroup:
    """Return a group of attempts 1, 2, 3 ..."""
    group = AttemptGroup("call", 0, 1)
    for serial in range(1, count + 1):
        group.add(a_job(serial))
    return group


def test_calls_go_alone_until_they_are_known_to_be_tiny() -> None:
    """The pace of the latest calls says how many travel together, and a long one that none do."""
    pace = make_pace()
    assert pace.depth == 1
    pace.observe([1e-6])
    assert 8 < pace.depth <= MOST_CALLS
    pace.observe([0.5])
    assert pace.depth == 1
    pace.observe([1e-6] * 8)
    assert pace.depth > 8
    pace.forget()
    assert pace.depth == 1
    pace.observe([AHEAD / 5.5] * 20)
    assert pace.depth == 5
    pace.observe([LONG] * 8)
    assert pace.depth == 1


def test_one_priority_and_not_too_many_bytes() -> None:
    """A group is of one priority, and its calls of so many bytes in all."""
    group = a_group()
    assert group.takes(a_job(5), 0)
    assert not group.takes(a_job(5), 1)
    assert not group.takes(a_job(5, MOST_BYTES), 0)


def test_what_did_not_begin_is_given_back() -> None:
    """Each attempt gets its own result; what began and has none is to run again, alone."""
    group = a_group()
    futures = group.futures
    group.begin(4)
    results = {1: a_result(), 2: None, 3: CallResult(CRASHED, (1, 7), 0.0, "somewhere"), 4: None}
    assert [(job.serial, deaths) for job, deaths in group.finish(results)] == [(3, 1), (4, 0)]
    assert futures[0].result() == a_result()
    assert futures[1].result() is None
    assert not group.is_over()
    group.finish({3: a_result(), 4: a_result()})
    assert group.is_over()


def test_what_is_cancelled_is_neither_finished_nor_run_again() -> None:
    """A cancelled attempt keeps its end."""
    group = a_group(2)
    futures = group.futures
    for future in futures:
        assert future.cancel()
    assert group.jobs() == []
    assert group.finish({1: CallResult(CRASHED, (1, 7), 0.0, "somewhere"), 2: a_result()}) == []
    group.end(None)
    assert all(future.cancelled() for future in futures)


def test_what_dask_gives_up() -> None:
    """What has begun fails with dask's error; the rest did not begin."""
    group = a_group(2)
    futures = group.futures
    group.begin(1)
    assert group.unknown() == [2]
    group.give_up(OSError("lost"))
    assert isinstance(futures[0].exception(), OSError)
    assert futures[1].result() is None


def test_a_group_is_let_go_once_it_was_sent() -> None:
    """What sees a group through can be cancelled as soon as there is something."""
    group = a_group(1)
    assert not group.let_go()
    assert not group.was_let_go()
    running: Future[None] = Future()
    group.sent(running)
    assert group.let_go()
    assert running.cancelled()
    assert group.was_let_go()


def test_a_group_leads_to_nothing_once_it_has_ended() -> None:
    """The futures of a group that has ended are not kept by each other."""
    group = a_group(2)
    (first, _) = group.futures
    group.end(OSError("lost"))
    assert isinstance(first.exception(), OSError)
    assert group.futures == []


def test_what_waits_in_a_group() -> None:
    """Something does as long as two have no result: one of them may be running."""
    group = a_group(3)
    group.finish({1: a_result()})
    assert group.waiting_priority() == 0
    group.finish({3: None})
    assert group.waiting_priority() == -math.inf


# ── in the worker ───────────────────────────────────────────────────────────────────────────────────────────────────


class ScriptedPool(_ChildPool):
    """The children of a worker, none of which is a process.

    Attributes:
        began: the serial numbers of what began.
        asks: what is withdrawn while an attempt runs, by its serial number.
        answers: what the pool said.
    """

    def __init__(self, durations: dict[int, float]) -> None:
        super().__init__("topic")
        self.began: list[int] = []
        self.answers: list[dict[int, CallResult | None]] = []
        self.asks: dict[int, tuple[list[int], int]] = {}
        self._durations = durations

    def _run_one(self, job: RemoteJob, group: int) -> CallResult:
        self.began.append(job.serial)
        if job.serial in self.asks:
            self.answers.append(self.withdraw(*self.asks[job.serial]))
        return a_result(duration=self._durations.get(job.serial, 0.0))


def test_nothing_begins_after_a_long_call() -> None:
    """What is behind a call that ran long did not begin."""
    pool = ScriptedPool({2: 1.0})
    assert pool.run([a_job(serial) for serial in (1, 2, 3, 4)]) == [a_result(), a_result(duration=1.0), None, None]
    assert pool.began == [1, 2]


def test_what_is_withdrawn_never_begins() -> None:
    """A worker says of what it has how it ended or that it never begins, and nothing of what runs or is not there."""
    pool = ScriptedPool({})
    pool.asks[2] = ([1, 2, 4, 9], 1)
    assert pool.run([a_job(serial) for serial in (1, 2, 3, 4)]) == [a_result(), a_result(), a_result(), None]
    assert pool.answers == [{1: a_result(), 4: None}]
    assert pool.run([a_job(serial) for serial in (1, 2, 3, 4)])[3] is None  # dask has run the group again
    assert pool.began == [1, 2, 3, 3]
    assert pool.run([a_job(4)]) == [a_result()]  # alone, as the client has it


def test_what_dask_has_forgotten_needs_not_be_remembered() -> None:
    """What was withdrawn is forgotten once no group can have it."""
    pool = ScriptedPool({})
    assert pool.withdraw([4, 9], floor=1) == {}
    assert pool.withdraw([], floor=5) == {}
    assert pool.run([a_job(4), a_job(9)]) == [a_result(), None]


def test_much_is_not_kept_back_for_more() -> None:
    """Large results end the group."""
    pool = ScriptedPool({})
    pool._run_one = lambda job, group: a_result(bytes(MOST_BYTES))  # type: ignore[method-assign]
    assert pool.run([a_job(1), a_job(2)])[1] is None


def test_only_a_worker_that_was_greeted_takes_a_group() -> None:
    """It takes what was sent after it was greeted for the first time."""
    pool = ScriptedPool({})
    assert not pool.may_take(7)
    pool.greet(5)
    pool.greet(9)
    assert pool.may_take(5)
    assert not pool.may_take(4)
