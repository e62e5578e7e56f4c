"""`parallel_exec._core.admission`: how jobs come in, with a bare monitor and a runner that only notes what it is told."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import work
from bare_jobs import new_job

from parallel_exec import QueueFullError, TaskSerializationError
from parallel_exec._core.admission import Admission
from parallel_exec._core.completion import CANCELLED, Completion
from parallel_exec._core.monitor import Monitor
from parallel_exec._core.phase import Phase
from parallel_exec._dispatcher import Dispatcher

if TYPE_CHECKING:
    from parallel_exec._core.job import Job


class Consumer:
    """Counts its wake-ups."""

    woken = 0

    def wake(self) -> None:
        """Count."""
        self.woken += 1


class Bare:
    """An admission, with what it acts on and an idle consumer."""

    def __init__(self, queue_size: int = 0, **kind: Any) -> None:
        names = ("pickles_calls", "prefetches", "runs_chunks", "runs_in_caller", "runs_here", "store")
        traits = {**dict.fromkeys(names, False), **kind}
        self.told: list[Any] = []
        runner = SimpleNamespace(
            preempt=self.told.append, drive=lambda: self.told.append("drive"), handed_out=list, recheck=bool
        )
        self.monitor = Monitor(4)
        completion = Completion(self.monitor, Dispatcher(None), runs_in_caller=traits["runs_in_caller"])
        completion.use(runner)  # type: ignore[arg-type]
        backend: Any = SimpleNamespace(prepare=self._prepare, **traits)
        self.completion = completion
        self.admission = Admission(self.monitor, completion, backend, queue_size, Dispatcher(None))
        self.consumer = Consumer()
        self.monitor.idle.park(self.consumer)

    def _prepare(self, job: Job[Any]) -> bytes:
        if job.args == (13,):
            raise TaskSerializationError(job.id, "the call", ValueError(13))
        return b"packed"

    def add(self, number: int = 1, priority: int = 0, *, start: bool = False) -> Job[Any]:
        """Add a job and return it."""
        job = new_job(number, priority)
        self.admission.add(job, None, start=start)
        return job

    def take(self) -> Job[Any] | None:
        """Take the first job, as a back end would."""
        with self.monitor.lock:
            job = self.monitor.ready.pop()
            self.monitor.room.notify()
        return job


def test_what_is_added_waits() -> None:
    """In the order of priority, then in the order added; nobody is woken before the gate is open."""
    bare = Bare()
    first, second, urgent = bare.add(), bare.add(), bare.add(priority=1)
    assert {job.phase for job in (first, second, urgent)} == {Phase.QUEUED}
    assert bare.monitor.registry.unsettled == {first, second, urgent}
    assert bare.consumer.woken == 0
    bare.admission.start()
    assert bare.consumer.woken == 1
    assert [bare.take() for _ in range(4)] == [urgent, first, second, None]


def test_what_starts_at_once_wakes_somebody() -> None:
    """And leaves the pool open."""
    bare = Bare()
    bare.add(start=True)
    assert (bare.consumer.woken, bare.monitor.gate.is_kept_open) == (1, True)


def test_what_is_refused_leaves_nothing() -> None:
    """Neither in the queue nor in the books."""
    bare = Bare()
    bare.completion.shutdown(cancel=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        bare.add()
    assert (len(bare.monitor.ready), bare.monitor.registry.unsettled) == (0, set())


def test_what_cannot_travel_ends_its_own_task() -> None:
    """It was added, and its future has the error; what can has its bytes before it is queued."""
    bare = Bare(pickles_calls=True)
    good, bad = bare.add(1), bare.add(13)
    assert (good.phase, good.payload) == (Phase.QUEUED, b"packed")
    assert isinstance(bad.exception(0), TaskSerializationError)
    assert (bare.monitor.registry.unsettled, bare.monitor.registry.failed) == ({good}, 1)


def test_a_runner_that_prefetches_hears_of_what_comes_before() -> None:
    """Of each place in the order: it knows what it has sent ahead."""
    bare = Bare(prefetches=True)
    job = bare.add(priority=3)
    assert bare.told == [(-3, job.sequence)]


def test_a_runner_in_the_callers_thread_is_lent_that() -> None:
    """Once there is something that may start."""
    bare = Bare(runs_in_caller=True)
    bare.add()
    assert bare.told == []
    bare.add(start=True)
    assert bare.told == ["drive"]


# ── a queue with an end ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_queue_that_nobody_empties() -> None:
    """Nothing runs that would make room, so waiting would be for ever."""
    bare = Bare(queue_size=1)
    bare.add()
    with pytest.raises(QueueFullError):
        bare.add()
    assert len(bare.monitor.registry.unsettled) == 1


def waiting(bare: Bare, added: list[Any]) -> threading.Thread:
    """Return a thread that waits for room."""

    def add() -> None:
        try:
            added.append(bare.add())
        except RuntimeError as error:
            added.append(error)

    thread = threading.Thread(target=add)
    thread.start()
    work.until(lambda: bare.monitor.room._waiters)  # type: ignore[attr-defined]
    return thread


def test_a_full_queue_is_waited_for() -> None:
    """Who takes something makes room."""
    bare = Bare(queue_size=1)
    first = bare.add(start=True)
    added: list[Any] = []
    thread = waiting(bare, added)
    assert bare.take() is first
    thread.join(work.SOON)
    assert [bare.take()] == added


def test_who_waits_for_room_is_refused_at_the_end() -> None:
    """It has not been added."""
    bare = Bare(queue_size=1)
    bare.add(start=True)
    added: list[Any] = []
    thread = waiting(bare, added)
    bare.completion.shutdown(cancel=False)
    thread.join(work.SOON)
    assert str(added[0]) == "cannot schedule new futures after shutdown"
    assert (len(bare.monitor.ready), bare.monitor.registry.reserved) == (1, set())


# ── at its place, whatever has happened meanwhile ───────────────────────────────────────────────────────────────────


def test_what_was_told_to_end_meanwhile_ends_on_arrival() -> None:
    """By its own override, or as the executor ends what is left."""
    bare = Bare()
    told, left = new_job(), new_job()
    told.override_with(CANCELLED)
    for job in (told, left):
        bare.admission.add_item(job)
        bare.monitor.gate.close(CANCELLED, at_exit=False)
    assert (told.cancelled(), left.cancelled(), len(bare.monitor.ready)) == (True, True, 0)


def test_an_item_comes_in_after_shutdown() -> None:
    """The chunk that it is of was added before."""
    bare = Bare()
    bare.monitor.gate.open()
    bare.monitor.gate.close(None, at_exit=False)
    item = new_job()
    bare.admission.add_item(item)
    assert (item.phase, bare.consumer.woken) == (Phase.QUEUED, 1)


def test_no_room_is_made_for_what_was_reserved_and_refused() -> None:
    """A place in a full queue is free again after an exception."""
    bare = Bare(queue_size=1)
    job = new_job()
    job.added = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        bare.admission.add(job, None, start=False)
    assert (bare.monitor.registry.reserved, bare.monitor.registry.unsettled, job.cancelled()) == (set(), set(), True)
    assert bare.add().phase == Phase.QUEUED
