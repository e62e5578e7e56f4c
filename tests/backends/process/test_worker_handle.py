"""A worker process as the parent sees it: its states, its permits, and the kill that waits for its moment."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
from typing import Any, Iterator

import pytest
import work

from parallel_exec import ParallelExecutor
from parallel_exec._core.phase import Phase
from parallel_exec._sync.clock import time
from parallel_exec.backends._outcomes import RETURNED
from parallel_exec.backends.process import wire, worker_handle, worker_process
from parallel_exec.backends.process.worker_handle import WorkerHandle, WorkerState


class Timer:
    """Stands for a worker's timer."""

    armed = True

    def arm(self, when: float) -> None:
        """Note it."""
        self.armed = True

    def disarm(self) -> None:
        """Note it."""
        self.armed = False


@pytest.fixture
def handle() -> Iterator[WorkerHandle]:
    """A worker of which there is everything but the process."""
    made = WorkerHandle("worker-1", multiprocessing.get_context("fork"), lambda _: Timer())
    made.journal = wire.Journal(made.files.theirs[3].fd)  # type: ignore[attr-defined]  # the child's
    yield made
    made.journal.close()  # type: ignore[attr-defined]
    if made.state != WorkerState.DEAD:
        made.close()


@pytest.fixture
def jobs() -> Iterator[list[Any]]:
    """Four jobs with their payloads, which nobody runs."""
    with ParallelExecutor(backend="process") as executor:
        executor.pause()
        yield [executor.submit(abs, number) for number in range(4)]
        executor.shutdown(cancel_futures=True)


def permits(handle: WorkerHandle) -> int:
    """Return how many calls the child may begin."""
    value: int = handle._permits.get_value()
    return value


def test_one_that_becomes_ready_as_it_is_found_late_is_killed(
    handle: WorkerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock may have asked it where it is, and armed the timer, before that is disarmed."""
    monkeypatch.setattr(worker_process, "ask_for_dump", lambda _: True)
    handle.process.pid = 1
    handle.took_too_long()
    timer: Any = handle.timer
    timer.armed = False
    handle.became_ready()
    assert timer.armed


def test_it_starts(handle: WorkerHandle) -> None:
    """It is ready once it says so, and then not too late any more."""
    assert handle.state == WorkerState.STARTING
    handle.became_ready()
    assert (handle.state, handle.timer.armed) == (WorkerState.READY, False)


def test_what_is_handed_out_has_permits(handle: WorkerHandle, jobs: list[Any]) -> None:
    """Each call has a number, a permit and a place in `assigned`; all of them go down the pipe."""
    handle.became_ready()
    assert handle.hand_out(5, jobs) == 9
    assert [handle.assigned.get(serial) for serial in range(4, 10)] == [None, *jobs, None]
    assert (permits(handle), handle.sent) == (4, 4)
    size, epoch, count = wire.BATCH.unpack(os.read(handle.files.theirs[0].fd, wire.BATCH.size))
    assert (len(os.read(handle.files.theirs[0].fd, 10_000)), epoch, count) == (size, 0, 4)
    assert not handle.outgoing


def test_what_is_handed_over(handle: WorkerHandle, jobs: list[Any]) -> None:
    """One call goes down the pipe at once, as a batch of its own, and its journal will be looked into."""
    handle.became_ready()
    assert handle.is_free
    assert handle.hand_over(5, jobs[0])
    assert (handle.assigned.get(5), jobs[0].phase, jobs[0].slot) == (jobs[0], Phase.HANDED_OUT, handle)
    assert (permits(handle), handle.sent, handle.is_free) == (1, 1, False)
    size, epoch, count = wire.BATCH.unpack(os.read(handle.files.theirs[0].fd, wire.BATCH.size))
    assert (len(os.read(handle.files.theirs[0].fd, 10_000)), epoch, count) == (size, 0, 1)
    assert handle.poll_at is not None


def test_what_is_handed_over_to_a_full_pipe(handle: WorkerHandle, jobs: list[Any]) -> None:
    """Its bytes wait in the buffer; the permit is there."""
    handle.became_ready()
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(handle.files.tasks, bytes(4096))
    assert handle.hand_over(5, jobs[0])
    assert (handle.assigned.get(5), permits(handle), len(handle.outgoing)) == (jobs[0], 1, 1)
    assert not handle.hand_over(6, jobs[1])
    assert (handle.assigned.get(6), permits(handle), len(handle.outgoing)) == (None, 1, 1)


def test_what_is_not_handed_over(handle: WorkerHandle, jobs: list[Any]) -> None:
    """A worker that is not ready, or drains, takes nothing; nor is a call sent that a pipe may take in parts."""
    assert not handle.hand_over(5, jobs[0])
    handle.became_ready()
    jobs[0].packed(jobs[0].payload._replace(data=bytes(5000)))
    assert not handle.hand_over(5, jobs[0])
    handle.hand_out(6, jobs[1:3])
    handle.take_back()
    assert handle.state == WorkerState.DRAINING
    assert not handle.hand_over(8, jobs[3])
    assert (handle.assigned.get(5), jobs[0].phase, handle.sent) == (None, Phase.QUEUED, 0)


def test_interrupted_hand_over(handle: WorkerHandle, jobs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a signal handler keeps from being sent is in nobody's hands afterwards."""

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    handle.became_ready()
    monkeypatch.setattr(type(jobs[0]), "handed_out", interrupt)
    with pytest.raises(KeyboardInterrupt):
        handle.hand_over(5, jobs[0])
    assert (handle.assigned.get(5), permits(handle), handle.is_free) == (None, 0, True)


def test_taking_back_drains(handle: WorkerHandle, jobs: list[Any]) -> None:
    """The last calls that have a permit left are taken back; until it has dropped them, it takes nothing."""
    handle.became_ready()
    handle.hand_out(1, jobs)
    assert handle._permits.acquire(False)  # the child begins the first
    assert handle.take_back(2) == 2
    assert (handle.state, permits(handle), handle.sent) == (WorkerState.DRAINING, 1, 2)
    handle.dropped()
    assert handle.state == WorkerState.READY
    handle.assigned.remove(3)
    handle.assigned.remove(4)
    assert handle.take_back() == 1


def test_nothing_to_take_back(handle: WorkerHandle, jobs: list[Any]) -> None:
    """What has begun stays, and the worker goes on taking."""
    handle.became_ready()
    handle.hand_out(1, jobs[:1])
    assert handle._permits.acquire(False)
    assert handle.take_back() == 0
    assert handle.state == WorkerState.READY


def test_one_that_was_told_to_end_stays_so(handle: WorkerHandle, jobs: list[Any]) -> None:
    """What is taken back from it, and its word that it has dropped that, do not make it ready again."""
    handle.became_ready()
    handle.hand_out(1, jobs)
    handle.tell_to_end()
    assert handle.take_back() == 4
    assert handle.state == WorkerState.CLOSING
    handle.dropped()
    assert handle.state == WorkerState.CLOSING


def test_what_has_ended_is_heard_of_once(handle: WorkerHandle, jobs: list[Any]) -> None:
    """A call is forgotten when it is first heard of."""
    handle.became_ready()
    handle.hand_out(1, jobs)
    assert handle.plain_ended([1, 2]) == jobs[:2]
    assert handle.plain_ended([2, 3]) == [None, jobs[2]]
    assert [handle.ended(4), handle.ended(4)] == [(jobs[3], 0), (None, 0)]


def test_it_is_killed_once_it_runs_what_it_is_to_be_killed_for(handle: WorkerHandle, jobs: list[Any]) -> None:
    """Neither before that begins nor without its process being there."""
    handle.became_ready()
    handle.hand_out(1, jobs)
    process = _started(handle)
    handle.kill_when_running(2, TimeoutError())
    assert not handle.process.was_killed
    assert handle.poll_at is not None
    assert handle.poll_at <= time.monotonic()
    handle.journal.started(2, 1.0)  # type: ignore[attr-defined]
    handle.check_pending_kill()
    assert handle.process.was_killed
    assert process.wait(work.SOON) < 0


def test_it_is_not_killed_for_what_has_ended(handle: WorkerHandle, jobs: list[Any]) -> None:
    """The end of a call was heard of before its worker was seen to run it."""
    handle.became_ready()
    handle.hand_out(1, jobs)
    handle.kill_when_running(2, TimeoutError())
    handle.ended(1)
    assert handle.pending_kill is not None
    handle.ended(2)
    assert handle.pending_kill is None


def test_one_that_does_not_end_is_killed(handle: WorkerHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has some time from when it has nothing left to do."""
    monkeypatch.setattr(worker_handle, "STOP_GRACE", 5.0)
    process = _started(handle)
    handle.became_ready()
    handle.check_end(100.0)
    assert handle.poll_at is None
    handle.tell_to_end()
    handle.check_end(100.0)
    assert handle.poll_at == 105.0
    handle.check_end(104.9)
    assert not handle.process.was_killed
    handle.check_end(105.0)
    assert handle.process.was_killed
    assert process.wait(work.SOON) < 0


def test_when_its_journal_is_looked_into(handle: WorkerHandle, jobs: list[Any]) -> None:
    """Not while it has nothing; soon after it was given something, and later again whenever it says how a call ended."""
    handle.became_ready()
    handle.heard([])
    assert handle.poll_at is None
    handle.hand_out(1, jobs)
    handle.poll_next(1.0)
    handle.heard([wire.Frame(wire.LOG, 0, 0.0, 0.0, 0, b"")])
    assert handle.poll_at == 1.0
    handle.heard([wire.Frame(RETURNED, 1, 0.0, 0.0, 0, b"")])
    assert handle.poll_at > time.monotonic() - 1.0


def test_a_dead_one_is_asked_in_vain(handle: WorkerHandle) -> None:
    """A timer or a cancel that comes too late finds nothing running, and kills nobody who has its number now."""
    process = _started(handle)
    process.kill()
    process.wait(work.SOON)
    handle.close()
    handle.process.kill()
    assert (handle.state, handle.running(), handle.process.was_killed) == (WorkerState.DEAD, wire.IDLE, False)


class _Process(subprocess.Popen):  # type: ignore[type-arg]
    """A process as `multiprocessing` shows one."""

    sentinel = -1
    exitcode = None


def _started(handle: WorkerHandle) -> _Process:
    theirs, handle.files.theirs = handle.files.theirs, []  # what the tests are the other side of stays open
    process = _Process(["sleep", "60"], start_new_session=True)
    handle.started(process)
    handle.files.theirs = theirs
    return process
