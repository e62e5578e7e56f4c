"""Ctrl-C in the middle of our own calls: what it tears apart is mended before `KeyboardInterrupt` goes on.

CPython hears of signals where a call begins or has returned, and where a loop goes round. These tests raise at each such
point of a call in turn; what they interrupt is a pool that is used again and again.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Callable

import inside
import journaled
import psutil
import pytest
import script
import work
from interruptions import interrupt, raise_interrupt

from parallel_exec import ParallelExecError, ParallelExecutor, PerKey, Rate, Task, _lifecycle
from parallel_exec._core.limits.lines import Lines
from parallel_exec._current import current
from parallel_exec._journal.recorder import Recorder
from parallel_exec._journal.records import Codec
from parallel_exec._journal.run import JournaledRun
from parallel_exec._outcome import Success
from parallel_exec._sync.locks import is_mine

if TYPE_CHECKING:
    from pathlib import Path

every_backend = pytest.mark.parametrize("backend", ["thread", "process"])


def interrupt_everywhere(executor: ParallelExecutor, call: Callable[[], Any]) -> int:
    """Interrupt a call at every point; after each, the pool must work and end all it has. Returns the number of points."""
    unsettled = inside.monitor(executor).registry.unsettled
    for step in itertools.count(1):
        if not interrupt(call, step):
            return step
        executor.resume()
        assert executor.submit(work.double, step).result(work.PATIENCE) == 2 * step
        work.until(lambda: not unsettled)
    raise AssertionError


@every_backend
@pytest.mark.parametrize("settings", [{}, {"on_event": id}, {"queue_size": 100}], ids=["plain", "events", "bounded"])
def test_submit(backend: str, settings: dict[str, Any]) -> None:
    """A task whose `submit` is interrupted is in, or has never been; no other is lost, and no worker forgotten."""
    with ParallelExecutor(max_concurrency=2, backend=backend, **settings) as executor:
        executor.submit(int).result(work.PATIENCE)
        futures: list[Any] = []

        def submit() -> None:
            futures.append(executor.submit(work.double, 1))
            futures.append(executor.options(priority=1).submit(work.double, 1))

        assert interrupt_everywhere(executor, submit) > 50
        assert {future.result(work.PATIENCE) for future in futures} == {2}
        thread = threading.Thread(target=executor.shutdown, daemon=True)
        thread.start()
        thread.join(work.PATIENCE)
        assert not thread.is_alive()


def test_submit_of_what_cannot_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that ends instead of being queued ends also if its `submit` is interrupted."""

    def refuse(_: Any) -> None:
        raise ParallelExecError("no")

    with ParallelExecutor(max_concurrency=1) as executor:
        executor.submit(int).result(work.PATIENCE)
        monkeypatch.setattr(inside.admission(executor), "_prepare", refuse)
        unsettled = inside.monitor(executor).registry.unsettled
        for step in itertools.count(1):
            if not interrupt(lambda: executor.submit(int, 1), step):
                break
            work.until(lambda: not unsettled)
        assert step > 50
    assert sys.exc_info() == (None, None, None)


def test_map_over_an_iterator() -> None:
    """What was read is run, or is not, and nothing waits for more of it."""
    with ParallelExecutor(max_concurrency=1, backend="process") as executor:
        # What it needs is imported first: an import that is torn apart is Python's, and not ours to mend.
        assert list(executor.map(work.same, iter([1]))) == [1]
        rows = itertools.cycle([[1, 2, 3], [1, [2], 3]])

        def read() -> None:
            executor.pause()
            executor.map(work.same, iter(next(rows)))

        assert interrupt_everywhere(executor, read) > 100


@every_backend
def test_cancel_and_abort(backend: str) -> None:
    """A task whose `cancel` or `abort` is interrupted ends all the same."""
    with ParallelExecutor(max_concurrency=1, backend=backend) as executor:
        futures: list[Any] = []

        def cancel() -> None:
            executor.pause()
            futures[:] = [executor.submit(int) for _ in range(4)]
            futures[0].cancel()
            futures[1].abort()
            futures[2].cancel()

        assert interrupt_everywhere(executor, cancel) > 100


def test_a_waiter_of_what_is_cancelled() -> None:
    """Who waits for a task whose `cancel` is interrupted learns of its end."""
    with ParallelExecutor(max_concurrency=1) as executor:
        executor.submit(int).result(work.PATIENCE)
        for step in itertools.count(1):
            executor.pause()
            future = executor.submit(int)
            waiter = threading.Thread(target=wait_for, args=(future,), daemon=True)
            waiter.start()
            work.until(lambda future=future: future._parked)  # type: ignore[misc]
            has_point = interrupt(future.cancel, step)
            future.cancel()
            waiter.join(work.PATIENCE)
            assert not waiter.is_alive()
            executor.resume()
            executor.submit(int).result(work.PATIENCE)
            if not has_point:
                break
        assert step > 20


def wait_for(future: Any) -> None:
    """Wait for a future's end, however long."""
    with contextlib.suppress(CancelledError):
        future.result()


def test_a_handler_that_empties_the_queue(lab: Any) -> None:
    """A signal handler may take all tasks out at any point of a `cancel`: each is cancelled, once, and the pool goes on."""
    executor = lab.executor(max_concurrency=1)
    executor.submit(int).result(work.PATIENCE)
    cancelled = 0
    for step in itertools.count(1):
        executor.pause()
        ended: list[Any] = []
        futures = [executor.submit(int) for _ in range(4)]
        for future in futures:
            future.add_done_callback(ended.append)
        has_more = interrupt(futures[0].cancel, step, act=executor.queue.clear)
        assert all(future.cancelled() for future in futures) or not has_more
        cancelled += len(ended)
        assert executor.stats().cancelled == cancelled
        executor.resume()
        assert executor.submit(work.double, 1).result(work.PATIENCE) == 2
        ready = inside.monitor(executor).ready
        assert (ready.heap, ready._discarded, inside.monitor(executor).registry.unsettled) == ([], set(), set())
        if not has_more:
            break
    assert step > 50


@every_backend
def test_add_task(backend: str) -> None:
    """A run has the task whose `add_task` was interrupted, or has it not, and is over when the others are."""
    with ParallelExecutor(max_concurrency=1, backend=backend) as executor:
        executor.add_task(int)
        executor.execute_all()
        for step in itertools.count(1):
            executor.add_task(Task(int, id="before"))
            if not interrupt(lambda: executor.add_task(Task(int, id="torn")), step):
                break
            executor.add_task(Task(int, id="after"))
            ids = [result.task.id for result in executor.execute_all(deadline=work.PATIENCE)]
            assert ids in (["before", "after"], ["before", "torn", "after"])
        executor.execute_all()


@every_backend
def test_execute_all(backend: str) -> None:
    """A run that is interrupted is over, and the next one goes as always."""
    with ParallelExecutor(max_concurrency=1, backend=backend) as executor:
        executor.add_task(int)
        executor.execute_all()
        for step in itertools.count(1):
            executor.add_task(Task(int, id="torn"))
            if not interrupt(executor.execute_all, step):
                break
            executor.add_task(Task(int, id="next"))
            assert "next" in [result.task.id for result in executor.execute_all(deadline=work.PATIENCE)]


@every_backend
@pytest.mark.parametrize("limit", [None, work.PATIENCE])
def test_result(backend: str, limit: float | None) -> None:
    """What is waited for ends, however the wait does, and its worker goes on."""
    with ParallelExecutor(max_concurrency=1, backend=backend) as executor:

        def wait_for_one() -> None:
            executor.submit(time.sleep, 0.005).result(limit)

        assert interrupt_everywhere(executor, wait_for_one) > 30


@every_backend
def test_shutdown(backend: str) -> None:
    """Interrupted where it waits, or before: what was started ends, and the next one waits for that."""
    for step in itertools.count(1):
        executor = ParallelExecutor(max_concurrency=1, backend=backend)
        future = executor.submit(time.sleep, 0.02)
        has_more = interrupt(executor.shutdown, step)
        thread = threading.Thread(target=executor.shutdown, daemon=True)
        thread.start()
        thread.join(work.PATIENCE)
        assert not thread.is_alive()
        assert future.result(0) is None
        if not has_more:
            break
    assert step > 30


@pytest.mark.parametrize(("backend", "every"), [("thread", 1), ("process", 9)])
def test_a_second_ctrl_c(backend: str, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever point of what the first one started it comes, nothing goes on running that was to be stopped."""
    monkeypatch.setattr(_lifecycle, "INTERRUPT_GRACE", 0.1)
    gate = work.Latch(tmp_path / "gate")
    for step in itertools.count(20, every):  # in the first few points nothing has begun yet
        executor = ParallelExecutor(max_concurrency=2, backend=backend, timeout=None)
        futures = [executor.submit(gate.wait) for _ in range(4)]
        work.until(lambda futures=futures: sum(future.running() for future in futures) == 2)  # type: ignore[misc]
        scheduler = inside.scheduler(executor)
        more = interrupt(
            lambda scheduler=scheduler: _lifecycle.interrupt([scheduler], scheduler.completion.in_hand, 10), step
        )  # type: ignore[misc]
        work.until(lambda futures=futures: all(future.cancelled() for future in futures))  # type: ignore[misc]
        executor.shutdown()
        if not more:
            break
    gate.set()


def test_the_first_submit() -> None:
    """Interrupted where it starts the threads: they come, or are started by the next."""
    for step in itertools.count(1):
        executor = ParallelExecutor(max_concurrency=1)
        if not interrupt(lambda executor=executor: executor.submit(int), step):  # type: ignore[misc]
            break
        assert executor.submit(work.double, step).result(work.PATIENCE) == 2 * step
        thread = threading.Thread(target=executor.shutdown, daemon=True)
        thread.start()
        thread.join(work.PATIENCE)
        assert not thread.is_alive()


@every_backend
@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.03])
def test_a_program_that_submits_all_the_time(tmp_path: Path, backend: str, delay: float) -> None:
    """With real signals: the program ends by Ctrl-C, and its workers with it."""
    body = f"""
        with ParallelExecutor(backend={backend!r}, max_concurrency=2) as executor:
            executor.submit(int).result()
            say("READY")
            while True:
                futures = [executor.submit(int) for _ in range(2000)]
                for future in futures:
                    future.result()
    """
    process = script.start(tmp_path, body)
    assert process.stdout is not None
    process.stdout.readline()
    children = psutil.Process(process.pid).children(recursive=True)
    threading.Event().wait(delay)
    process.send_signal(signal.SIGINT)
    _, err = script.finish(process)
    assert process.returncode == -signal.SIGINT, err
    assert psutil.wait_procs(children, timeout=work.PATIENCE)[1] == []


# ── limits ──────────────────────────────────────────────────────────────────────────────────────────────────────────

LIMITS: dict[str, Any] = {"db": 2, "gpu": ["a", "b"], "host": PerKey(1), "api": Rate(1e6, burst=100)}


def in_use(executor: ParallelExecutor) -> dict[str, float]:
    """Return what is held of each limit of which something is, and how many wait."""
    stats = executor.stats().limits.items()
    return {name: each.in_use + each.waiting for name, each in stats if each.in_use or each.waiting}


def interrupt_with_limits(executor: ParallelExecutor, call: Callable[[], Any], release: Callable[[], Any] = int) -> int:
    """Interrupt a call at every point, then release what it has started, and tasks that need all there is can run.

    Returns:
        The number of points.
    """
    everything = executor.options(needs={"db": 2, "gpu": 2, "host": "a", "api": 1})
    unsettled = inside.monitor(executor).registry.unsettled
    for step in itertools.count(1):
        more = interrupt(call, step)
        release()
        if not more:
            return step
        executor.resume()
        assert everything.submit(work.double, step).result(work.PATIENCE) == 2 * step
        work.until(lambda: not unsettled)
        assert in_use(executor) == {}
        assert len(inside.monitor(executor).ready) == 0
    raise AssertionError


@pytest.mark.parametrize("settings", [{}, {"on_event": id}], ids=["plain", "events"])
def test_submit_of_what_needs_a_limit(settings: dict[str, Any]) -> None:
    """It is in, or has never been, and nothing that it needs is lost."""
    with ParallelExecutor(max_concurrency=2, limits=LIMITS, **settings) as executor:
        executor.options(needs={"db": 1}).submit(int).result(work.PATIENCE)
        ones, twos = executor.options(needs={"db": 1, "gpu": 1}), executor.options(needs={"host": "a", "db": 2})
        futures: list[Any] = []

        def submit() -> None:
            executor.pause()
            futures.append(ones.submit(work.double, 1))
            futures.append(twos.submit(work.double, 1))
            futures.append(ones.submit(work.double, 1))
            executor.resume()

        assert interrupt_with_limits(executor, submit) > 100
        assert {future.result(work.PATIENCE) for future in futures} == {2}


def test_cancel_of_what_waits_for_a_limit() -> None:
    """It ends, and what was behind it goes on."""
    with ParallelExecutor(max_concurrency=2, limits=LIMITS) as executor:
        executor.options(needs={"db": 1}).submit(int).result(work.PATIENCE)
        all_of_it, one = executor.options(needs={"db": 2, "host": "a"}), executor.options(needs={"db": 1})
        gate = threading.Event()

        def cancel() -> None:
            one.submit(lambda: gate.wait(work.PATIENCE))
            futures = [all_of_it.submit(int), one.submit(int), all_of_it.submit(int)]
            for future in futures:
                future.cancel()

        def release() -> None:
            gate.set()
            work.until(lambda: not (executor.stats().running or executor.stats().queued))
            gate.clear()

        assert interrupt_with_limits(executor, cancel, release) > 100


def test_what_is_added_after_an_interrupted_cancel() -> None:
    """It does not join a line that is forgotten: a later repair would not find it."""
    with ParallelExecutor(limits=LIMITS) as executor:
        executor.pause()
        needing = executor.options(needs={"db": 1, "host": "a"})
        ready = inside.monitor(executor).ready
        for step in itertools.count(1):
            future = needing.submit(int)
            more = interrupt(future.cancel, step)
            future.cancel()
            added = needing.submit(int)
            assert ready.jobs() == [added]
            assert added.cancel()
            if not more:
                break
        assert step > 100


def test_a_handler_that_submits_what_needs_a_limit_and_raises() -> None:
    """What it has submitted runs, although it came in the middle of a change that is torn apart then."""
    with ParallelExecutor(max_concurrency=2, limits=LIMITS) as executor:
        one = executor.options(needs={"db": 1})
        one.submit(int).result(work.PATIENCE)
        futures: list[Any] = []

        def cancel() -> None:
            future = one.submit(int)
            one.submit(int)
            future.cancel()

        def act() -> None:
            futures.append(one.submit(int))
            raise KeyboardInterrupt

        for step in itertools.count(1):
            executor.pause()
            more = interrupt(cancel, step, act=act)
            executor.resume()
            if not more:
                break
            assert futures[-1].result(work.PATIENCE) == 0
            work.until(lambda: not (executor.stats().queued or in_use(executor)))
        assert step > 100


def test_a_change_of_a_limit() -> None:
    """It is as it was or as it is to be, and what waits goes on, or ends as failed."""
    with ParallelExecutor(max_concurrency=2, limits=LIMITS) as executor:
        executor.limits["other"] = 3
        futures: list[Any] = []

        def change() -> None:
            executor.limits["other"] = 3
            executor.pause()
            futures.append(executor.options(needs={"other": 3}).submit(int))
            futures.append(executor.options(needs={"other": 1}).submit(int))
            executor.limits["other"] = 2
            executor.limits["other"] = Rate(1e6, burst=2)
            executor.resume()

        assert interrupt_with_limits(executor, change) > 100
        assert {type(future.exception(work.PATIENCE)) for future in futures} <= {ValueError, type(None), CancelledError}


def test_a_handler_in_the_middle_of_a_change_of_limits(lab: Any) -> None:
    """It may add, cancel, look and change at any point: what it does is done after that, and nothing is lost or held twice."""
    executor = lab.executor(max_concurrency=2, limits=LIMITS)
    all_of_it, one = executor.options(needs={"db": 2, "host": "a"}), executor.options(needs={"db": 1})
    pair = executor.options(needs={"db": 1, "gpu": 1})
    one.submit(int).result(work.PATIENCE)
    gate = threading.Event()
    for step in itertools.count(1, 7):
        futures: list[Any] = []
        made: list[Any] = []

        def call() -> None:
            futures.append(one.submit(lambda: gate.wait(work.PATIENCE)))  # noqa: B023  # it is called at once
            futures.extend([all_of_it.submit(int), one.submit(int), all_of_it.submit(int), pair.submit(int)])  # noqa: B023
            futures[1].cancel()  # noqa: B023
            futures[3].cancel()  # noqa: B023
            executor.limits["db"] = 2

        def act() -> None:
            made.extend([one.submit(int), all_of_it.submit(int), pair.submit(int)])  # noqa: B023
            made[1].cancel()  # noqa: B023
            for future in futures[2:3]:  # noqa: B023
                future.cancel()
            executor.limits["db"] = 4
            executor.limits["db"] = 2
            executor.stats()
            executor.queue.peek()

        has_more = interrupt(call, step, act=act)
        gate.set()
        for future in [*futures, *made]:
            wait_for(future)
        work.until(lambda: not inside.monitor(executor).registry.unsettled)
        assert in_use(executor) == {}
        assert len(inside.monitor(executor).ready) == 0
        gate.clear()
        if not has_more:
            break
    assert step > 50


def test_a_handler_that_makes_a_limit_too_small(lab: Any) -> None:
    """What waits for more ends at once, also if the change was put off until what the handler has interrupted was done."""
    executor = lab.executor(max_concurrency=1, limits={"db": 2})
    executor.submit(int).result(work.PATIENCE)
    all_of_it, one = executor.options(needs={"db": 2}), executor.options(needs={"db": 1})

    def act() -> None:
        executor.limits["db"] = 1

    for step in itertools.count(1, 3):
        executor.limits["db"] = 2
        executor.pause()
        future = all_of_it.submit(int)
        has_more = interrupt(lambda: one.submit(int), step, act=act)
        if has_more:
            assert isinstance(future.exception(work.SOON), ValueError), step
        executor.resume()
        work.until(lambda: not inside.monitor(executor).registry.unsettled)
        if not has_more:
            break
    assert step > 50


def test_a_repair_that_is_torn_apart(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second Ctrl-C loses none of the jobs that were being put back: the next repair finds them."""
    executor = lab.executor(max_concurrency=1, limits={"db": 1, "gpu": 1})
    executor.pause()
    needs: list[Any] = [{"db": 1}, {"gpu": 1}, {"db": 1, "gpu": 1}]
    futures = [executor.options(needs=each).submit(work.double, 1) for each in needs * 2]
    completion = inside.completion(executor)
    for count in range(1, len(futures)):
        with monkeypatch.context() as patch:
            patch.setattr(Lines, "push", _raising_after(count, Lines.push))
            with pytest.raises(KeyboardInterrupt):
                completion.repair_limits(was_held=False)
    completion.repair_limits(was_held=False)
    assert executor.stats().queued == len(futures)
    executor.resume()
    assert {future.result(work.SOON) for future in futures} == {2}
    assert len(inside.monitor(executor).ready) == 0


def _raising_after(count: int, function: Callable[..., None]) -> Callable[..., None]:
    calls = itertools.count(1)

    def call(*args: Any) -> None:
        function(*args)
        if next(calls) == count:
            raise KeyboardInterrupt

    return call


# ── locks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _tear(scheduler: Any) -> Any:
    """Return what leaves the scheduler's lock taken and raises, as Ctrl-C does in a `with` on CPython 3.14."""

    def torn(*_: object) -> None:
        scheduler.lock.acquire()
        raise KeyboardInterrupt

    return torn


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_lock_that_was_left_taken_in_a_submit(lab: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is released, and the pool goes on."""
    executor = lab.executor(backend=backend)
    scheduler = inside.scheduler(executor)
    with monkeypatch.context() as patch:
        patch.setattr(scheduler.admission, "enqueue", _tear(scheduler))
        with pytest.raises(KeyboardInterrupt):
            executor.submit(int)
    assert executor.submit(int).result(work.SOON) == 0


def test_a_lock_that_was_left_taken_in_a_cancel(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise."""
    executor = lab.executor()
    executor.pause()
    future = executor.submit(int)
    with monkeypatch.context() as patch:
        patch.setattr(inside.completion(executor), "_withdraw", _tear(inside.scheduler(executor)))
        with pytest.raises(KeyboardInterrupt):
            future.cancel()
    executor.resume()
    assert executor.submit(int).result(work.SOON) == 0


def test_a_lock_that_was_left_taken_anywhere(lab: Any) -> None:
    """The end of the `with` block releases it, so that the pool can end."""
    executor = lab.executor()
    future = executor.submit(int)
    with pytest.raises(KeyboardInterrupt), executor:
        _tear(inside.scheduler(executor))()
    assert future.done()
    assert executor.stats().workers == 0


def test_a_result_that_is_sealed_for_a_journal() -> None:
    """Wherever Ctrl-C comes the recorder's thread goes on, and has the result."""
    for step in itertools.count(1):
        written: list[str] = []
        disk: Any = SimpleNamespace(close=int, end_run=lambda how, resumed, unfinished: None)
        disk.write = lambda records, resumed: written.extend(record.id for record in records)  # noqa: B023
        job = journaled.ended_job(Success(1), id="a")
        recorder = Recorder(disk, Codec(), {job: b"key"}, (), bounded=True)
        recorder.start()
        has_more = interrupt(lambda: recorder.seal(job), step)  # noqa: B023  # it is called at once
        recorder.note(job)
        assert recorder.finish("finished", time.monotonic() + work.PATIENCE), step
        assert set(written) == {"a"}
        if not has_more:
            break
    assert step > 10


def test_the_end_of_a_run_with_a_journal(tmp_path: Path) -> None:
    """Wherever Ctrl-C comes the run ends, and another can have the file."""
    for step in itertools.count(1):
        run = JournaledRun(tmp_path / "run.db", bounded=True)
        run.begin()
        has_more = interrupt(run.close, step)
        del run
        gc.collect()  # what `interrupt` leaves
        work.until(lambda: not any(thread.name == "parallel_exec-journal" for thread in threading.enumerate()))
        if not has_more:
            break
    assert step > 10


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # Python closes it all the same
def test_the_begin_of_a_run_with_a_journal(tmp_path: Path) -> None:
    """Wherever Ctrl-C comes the run that has begun ends, and another can have the file."""

    def begin() -> None:
        with JournaledRun(tmp_path / "run.db", bounded=True) as run:
            run.begin()

    def is_recorder(thread: threading.Thread) -> bool:
        return thread.name == "parallel_exec-journal"

    begin()  # what it needs is imported
    for step in itertools.count(1):
        has_more = interrupt(begin, step)  # of which each but the first finds that the one before has ended
        if any(map(is_recorder, threading.enumerate())):
            gc.collect()  # what `interrupt` leaves
            work.until(lambda: not any(map(is_recorder, threading.enumerate())))
        if not has_more:
            break
    assert step > 100


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer that interrupts")
def test_the_lock_of_a_result_that_is_sealed() -> None:
    """It is free again, also where what a signal handler raises comes between the lock and its `with`."""
    disk: Any = SimpleNamespace()
    recorder = Recorder(disk, Codec(), {}, (), bounded=True)
    job = journaled.ended_job(Success(1))
    before = signal.signal(signal.SIGALRM, lambda *_: raise_interrupt())
    try:
        for _ in range(1000):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 1e-4)
                while True:
                    recorder.seal(job)
            assert not is_mine(recorder._encoding)
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore:coroutine method 'asend':RuntimeWarning")  # of a call torn apart before it began
@pytest.mark.parametrize("backend", ["inline", "thread"])
def test_what_the_thread_was_doing_is_over(backend: str) -> None:
    """Wherever a call was torn apart, the thread is not taken for one that still drives, adds, ends or tells of a task."""
    with ParallelExecutor(backend=backend, on_event=id) as executor:

        def run() -> None:
            executor.submit(int)
            executor.add_task(int).cancel()

        for step in itertools.count(1, 2):
            more = interrupt(run, step)
            assert (current.adding, current.telling, current.driving, current.ending) == ((), (), (), ()), step
            if not more:
                break
        assert step > 100  # of points in a call; some are there only if a thread was quick
