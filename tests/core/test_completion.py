"""`parallel_exec._core.completion`: how jobs end, with a bare monitor and a runner that only notes what it is told."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import pytest
import work
from bare_jobs import live_job, new_job, queued_job

from parallel_exec import WorkerStartError
from parallel_exec._core.completion import CANCELLED, Completion
from parallel_exec._core.monitor import Monitor
from parallel_exec._core.phase import Phase
from parallel_exec._dispatcher import Dispatcher
from parallel_exec._outcome import Failure, Success

if TYPE_CHECKING:
    from parallel_exec._core.job import Job


class FakeRunner:
    """Has jobs in hand, and gives them back or does not."""

    def __init__(self) -> None:
        self.out: list[Job[Any]] = []
        self.recalls = True
        self.stopped: list[tuple[Job[Any], int, BaseException]] = []
        self.rechecked = self.recalled = 0

    def recall(self, job: Job[Any]) -> bool:
        """Give a job back, or not."""
        if self.recalls:
            self.out.remove(job)
        return self.recalls

    def recall_all(self) -> None:
        """Count it."""
        self.recalled += 1

    def handed_out(self) -> list[Job[Any]]:
        """Return what is out."""
        return list(self.out)

    def stop(self, job: Job[Any], number: int, error: BaseException) -> None:
        """Note it."""
        self.stopped.append((job, number, error))

    def recheck(self) -> None:
        """Count it."""
        self.rechecked += 1


class Bare:
    """A completion, with what it acts on; jobs are put where they would be."""

    def __init__(self) -> None:
        self.monitor = Monitor(4)
        self.runner = FakeRunner()
        self.completion = Completion(self.monitor, Dispatcher(None), runs_in_caller=False)
        self.completion.use(self.runner)  # type: ignore[arg-type]

    def queued(self, number: int = 1) -> Job[Any]:
        """Return a job in the queue."""
        job = queued_job(number)
        self.monitor.registry.unsettled.add(job)
        self.monitor.ready.push(job)
        return job

    def handed_out(self, number: int = 1) -> Job[Any]:
        """Return a job that the runner has."""
        job = queued_job(number)
        self.monitor.registry.unsettled.add(job)
        job.handed_out()
        self.runner.out.append(job)
        return job

    def live(self, number: int = 1) -> Job[Any]:
        """Return a job with an attempt that is running."""
        job = live_job(number)
        self.monitor.registry.unsettled.add(job)
        self.monitor.registry.live.add((job, 1))
        return job

    def backing_off(self, number: int = 1) -> Job[Any]:
        """Return a job between two attempts."""
        job = live_job(number)
        self.monitor.registry.unsettled.add(job)
        job.back_off(self.monitor.timers.timer(print))
        self.monitor.registry.back_off(job)
        return job

    def counts(self) -> tuple[int, int, int]:
        """Return how many jobs have not ended, were cancelled, and have failed."""
        registry = self.monitor.registry
        return len(registry.unsettled), registry.cancelled, registry.failed


@pytest.fixture
def bare() -> Bare:
    """A completion with a bare monitor."""
    return Bare()


@pytest.mark.parametrize("where", ["queued", "handed_out", "backing_off"])
def test_what_waits_can_be_cancelled(bare: Bare, where: str) -> None:
    """Wherever it waits; it is taken out of there, and counted once."""
    job = getattr(bare, where)()
    assert bare.completion.cancel(job)
    assert (job.phase, job.cancelled(), bare.counts()) == (Phase.DONE, True, (0, 1, 0))
    monitor = bare.monitor
    assert (len(monitor.ready), monitor.registry.backing_off, bare.runner.out) == (0, set(), [])
    assert bare.completion.cancel(job)
    assert bare.counts() == (0, 1, 0)


def test_what_runs_cannot_be_cancelled(bare: Bare) -> None:
    """It goes on, and nobody is told."""
    job = bare.live()
    assert not bare.completion.cancel(job)
    assert (job.phase, job.override, bare.runner.stopped, bare.counts()) == (Phase.LIVE, None, [], (1, 0, 0))


def test_what_the_runner_keeps_cannot_be_cancelled(bare: Bare) -> None:
    """It may have begun."""
    job = bare.handed_out()
    bare.runner.recalls = False
    assert not bare.completion.cancel(job)
    assert (job.phase, bare.counts()) == (Phase.HANDED_OUT, (1, 0, 0))


@pytest.mark.parametrize("where", ["live", "handed_out"])
def test_what_is_in_hand_is_stopped(bare: Bare, where: str) -> None:
    """The runner is told to stop it; how it ends is settled already, and by the first who said so."""
    job = getattr(bare, where)()
    bare.runner.recalls = False
    assert bare.completion.abort(job)
    assert bare.completion.stop(job, Failure(TimeoutError()))
    assert job.override is CANCELLED
    assert [(stopped, number) for stopped, number, _ in bare.runner.stopped] == [(job, job.attempt_number)] * 2
    assert isinstance(bare.runner.stopped[0][2], CancelledError)
    assert not job.done()


def test_what_has_ended_is_not_stopped(bare: Bare) -> None:
    """Neither told, nor changed."""
    job = bare.live()
    bare.monitor.registry.live.clear()
    job.decide(11.0)
    bare.completion.finish(job, Success(2))
    assert not bare.completion.abort(job)
    assert (job.result(0), job.override, bare.runner.stopped) == (2, None, [])


def test_an_override_ends_what_comes_back(bare: Bare) -> None:
    """Each as it was told; without a word of its own, as the executor ends what is left, and all of them whatever one raises."""
    told, untold = bare.handed_out(1), bare.handed_out(2)
    told.override_with(Failure(OSError()))
    told.add_done_callback(lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    for job in (told, untold):
        job.decide()
    with pytest.raises(KeyboardInterrupt):
        bare.completion.finish_overridden([told, untold])
    assert isinstance(told.exception(0), OSError)
    assert untold.cancelled()
    assert bare.counts() == (0, 1, 1)


def test_nothing_can_run_any_more(bare: Bare) -> None:
    """What waits ends with that error, what runs goes on, and nothing more is admitted."""
    waits, runs = bare.queued(1), bare.live(2)
    error = WorkerStartError("no workers")
    bare.completion.fail_all(error)
    assert type(waits.exception(0)) is WorkerStartError  # a copy: raised, it leads to who asks
    assert waits.exception(0) is not error
    assert str(waits.exception(0)) == "no workers"
    assert (runs.phase, bare.monitor.gate.admits) == (Phase.LIVE, False)


def test_drained_with_the_last_one(bare: Bare) -> None:
    """Once it is closed, and everything has ended: the runner is told, and whoever waits for it."""
    bare.monitor.gate.open()
    job = bare.live()
    bare.completion.shutdown(cancel=False)
    assert (bare.monitor.gate.drained, bare.runner.rechecked) == (False, 0)
    drained = threading.Event()

    def wait() -> None:
        bare.monitor.drained.wait(lambda: bare.monitor.gate.drained)
        drained.set()

    thread = threading.Thread(target=wait)
    thread.start()
    bare.monitor.registry.live.clear()
    job.decide(11.0)
    bare.completion.finish(job, Success(2))
    thread.join(work.SOON)
    assert drained.is_set()
    assert (bare.monitor.gate.drained, bare.runner.rechecked) == (True, 1)
    bare.completion.follow_up()
    assert bare.runner.rechecked == 1


@pytest.mark.parametrize("opened", [True, False])
def test_shutdown_cancels_what_was_only_staged(bare: Bare, opened: bool) -> None:
    """And leaves what an open pool has taken."""
    if opened:
        bare.monitor.gate.open()
    job = bare.queued()
    bare.completion.shutdown(cancel=False)
    assert job.cancelled() is not opened
    assert bare.monitor.gate.drained is not opened


def test_a_callback_may_cancel_the_next(bare: Bare) -> None:
    """No lock of ours is held while it runs."""
    first, second = bare.queued(1), bare.queued(2)

    def cancel(_: object) -> None:
        thread = threading.Thread(target=bare.completion.cancel, args=(second,))
        thread.start()
        thread.join(work.SOON)

    first.add_done_callback(cancel)
    bare.completion.cancel(first)
    assert second.cancelled()


# ── what an exception has torn apart ────────────────────────────────────────────────────────────────────────────────


def test_a_job_that_was_never_in_ends_as_cancelled(bare: Bare) -> None:
    """Its phase says so: NEW, or QUEUED and not in the queue."""
    new, lost = new_job(), queued_job(2)
    for job in (new, lost):
        bare.monitor.registry.unsettled.add(job)
        bare.completion.repair(job, None, was_held=False)
        assert job.cancelled()
    assert bare.counts() == (0, 2, 0)


def test_a_job_that_is_in_stays(bare: Bare) -> None:
    """Nobody was ending it; and where one is known to be ended, that is done to its end, once."""
    job = bare.queued()
    bare.completion.repair(job, None, was_held=False)
    assert (job.phase, len(bare.monitor.ready)) == (Phase.QUEUED, 1)
    for _ in range(2):
        bare.completion.repair(job, CANCELLED, was_held=False)
        assert (job.cancelled(), len(bare.monitor.ready), bare.counts()) == (True, 0, (0, 1, 0))


@pytest.mark.parametrize("step", ["decided", "settled", "counted"])
def test_an_end_that_was_begun_is_brought_to_its_end(bare: Bare, step: str) -> None:
    """Whatever of it was done already is not done again."""
    job = bare.backing_off()
    job.decide()
    if step != "decided":
        job.settle(CANCELLED, True)
    if step == "counted":
        bare.monitor.registry.account(job)
    bare.completion.repair(job, CANCELLED, was_held=False)
    assert (job.cancelled(), bare.counts(), bare.monitor.registry.backing_off) == (True, (0, 1, 0), set())


def test_a_lock_that_was_left_taken_is_released(bare: Bare) -> None:
    """Unless the thread had it before the call."""
    job = bare.queued()
    bare.monitor.lock.acquire()
    bare.completion.repair(job, None, was_held=True)
    free = []

    def probe() -> None:
        free.append(bare.monitor.lock.acquire(blocking=False))
        if free[-1]:
            bare.monitor.lock.release()

    def look() -> None:
        thread = threading.Thread(target=probe)
        thread.start()
        thread.join(work.SOON)

    look()
    bare.completion.repair(job, None, was_held=False)
    look()
    assert free == [False, True]


def test_aborting_all_ends_what_waits_first(bare: Bare) -> None:
    """The first in the queue first, so that none of it begins; then what runs is stopped, and none is charged twice."""
    live, second, first = bare.live(1), bare.queued(3), bare.queued(2)
    told: list[Any] = []
    for job in (second, first):
        job.add_done_callback(lambda job: told.append((job, len(bare.runner.stopped))))
    bare.completion.abort_all()
    assert told == [(first, 0), (second, 0)]
    [(stopped, number, error)] = bare.runner.stopped
    assert (stopped, number, type(error)) == (live, 1, CancelledError)
    assert live.override is CANCELLED
    bare.completion.abort_all()
    assert bare.counts() == (1, 2, 0)


def test_nothing_begins_after_stop_starting(bare: Bare) -> None:
    """What runs, and what has just ended, is busy; what waits is not, and stays."""
    bare.monitor.gate.enter(start=True)
    queued, live = bare.queued(1), bare.live(2)
    bare.backing_off(3)
    bare.completion.stop_starting()
    assert (bare.monitor.gate.may_start, bare.runner.recalled, bare.completion.is_busy()) == (False, 1, True)
    bare.monitor.registry.live.clear()
    live.claimed()
    assert bare.completion.is_busy()
    live.decide()
    assert bare.completion.is_busy()
    bare.completion.finish(live, Success(1))
    assert (bare.completion.is_busy(), queued.phase, bare.counts()) == (False, Phase.QUEUED, (2, 0, 0))
