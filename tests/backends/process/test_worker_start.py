"""How workers start: on demand, with an initializer, by any start method; and how they fail to, quickly and clearly."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import time
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import processes
import pytest
import work

from parallel_exec import ParallelExecutor, TaskSerializationError, WorkerStartError
from parallel_exec.backends.process import pool as pool_module
from parallel_exec.backends.process import supervisor
from parallel_exec.backends.process.backend import ProcessBackend
from parallel_exec.backends.process.fork_warning import no_fork_warning
from parallel_exec.backends.process.receiver import Receiver
from parallel_exec.backends.process.worker_handle import WorkerState

from . import unpicklable

METHODS = ("forkserver", "spawn", "fork")

# ── on demand ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_worker_before_the_first_task(pool: Any) -> None:
    """An executor that is only made starts nothing: no process, no thread."""
    threads = threading.active_count()
    executor = pool(4)
    assert processes.handles(executor) == []
    assert threading.active_count() == threads
    executor.add_task(work.pid)
    assert processes.handles(executor) == []


def test_one_worker_for_one_task_at_a_time(pool: Any) -> None:
    """Tasks that come one after another need no second worker."""
    executor = pool(4)
    assert len({executor.submit(work.pid).result() for _ in range(20)}) == 1
    assert executor.stats().workers == 1


def test_as_many_workers_as_tasks_up_to_the_limit(pool: Any, bench: Any) -> None:
    """Tasks that run at once each have a worker."""
    executor = pool(3)
    latches = [bench.latch() for _ in range(3)]
    futures = [executor.submit(work.meet_by_pid, latches, mine) for mine in range(3)]
    assert len({future.result(work.SOON) for future in futures}) == 3
    wait([executor.submit(work.nap, 0.01) for _ in range(30)])
    assert executor.stats().workers == 3


def test_the_first_result_is_not_held_up_by_other_starts(pool: Any, bench: Any) -> None:
    """While other workers cannot get ready, the first one that is serves everybody."""
    once, gate = bench.latch(), bench.latch()
    executor = pool(3, backend={"initializer": work.wait_unless_first, "initargs": (bench.log(), gate)})
    futures = [executor.submit(work.same, number) for number in range(20)]
    assert [future.result(work.SOON) for future in futures] == list(range(20))
    assert not once.is_set()
    assert executor.stats().workers == 1


# ── initializer ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_initializer_runs_once_in_each_worker(pool: Any, bench: Any) -> None:
    """It has run before the first task of a worker, with its arguments, and not again."""
    log = bench.log()
    executor = pool(2, backend={"initializer": work.note_pid, "initargs": (log,)})
    latches = [bench.latch(), bench.latch()]
    pids = {executor.submit(work.meet_by_pid, latches, mine) for mine in range(2)}
    wait([executor.submit(work.pid) for _ in range(20)])
    assert sorted(map(int, log.lines())) == sorted(future.result() for future in pids)


def test_what_the_initializer_sets_is_there(pool: Any) -> None:
    """Tasks see the module state that the initializer has made."""
    executor = pool(backend={"initializer": work.remember, "initargs": ("this",)})
    assert executor.submit(work.remembered).result(work.SOON) == "this"


def test_a_failing_initializer_is_one_clear_error(pool: Any) -> None:
    """All that waits fails with the traceback of the worker, within seconds, and new tasks are refused with the same."""
    executor = pool(2, retry_count=2, backend={"initializer": unpicklable.raise_picky})
    futures = [executor.submit(work.same, number) for number in range(20)]
    errors = [future.exception(work.SOON) for future in futures]
    assert all(isinstance(error, WorkerStartError) and isinstance(error, BrokenProcessPool) for error in errors)
    assert "file.txt:7 is wrong" in str(errors[0])
    assert "in raise_picky" in errors[0].worker_traceback
    with pytest.raises(WorkerStartError):
        executor.submit(work.same, 1)


def test_an_initializer_that_exits(pool: Any) -> None:
    """sys.exit() or os._exit() in the initializer is no hang either."""
    for function in (unpicklable._exit, os.abort):
        executor = pool(backend={"initializer": function})
        assert isinstance(executor.submit(work.same, 1).exception(work.SOON), WorkerStartError)


def test_an_initializer_that_fails_once_is_forgiven(pool: Any, log: Any) -> None:
    """One failed start may be bad luck; the task runs in the next worker, at its first attempt."""
    executor = pool(backend={"initializer": work.fail_first, "initargs": (log, 1)})
    future = executor.submit(work.same, 5)
    assert future.result(work.SOON) == 5
    assert len(future.task_result().attempts) == 1


def test_a_worker_that_dies_while_it_starts_is_replaced_at_once(
    pool: Any, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where the system refuses a process is there a pause before the next try."""
    monkeypatch.setattr(supervisor, "_PAUSE", 60.0)
    executor = pool(backend={"initializer": work.fail_first, "initargs": (log, 1)})
    assert executor.submit(work.same, 5).result(work.SOON) == 5


def test_a_hanging_initializer_ends_at_the_startup_timeout(pool: Any) -> None:
    """The error names the setting; it comes soon after the time is up."""
    executor = pool(backend={"initializer": work.hang_in_c, "startup_timeout": 0.6})
    start = time.monotonic()
    error = executor.submit(work.same, 1).exception(work.SOON)
    assert isinstance(error, WorkerStartError)
    assert "startup_timeout=0.6" in str(error)
    assert time.monotonic() - start < work.SOON


def test_an_initializer_that_cannot_be_pickled(bench: Any) -> None:
    """It is refused at once, by name, when the back end is made."""
    with pytest.raises(TaskSerializationError, match="initargs"):
        ProcessBackend(initializer=print, initargs=(unpicklable.Locked(),))
    with pytest.raises(TaskSerializationError, match="initializer"):
        ProcessBackend(initializer=unpicklable.Locked().method)


def test_an_initializer_that_the_worker_cannot_rebuild(pool: Any) -> None:
    """What unpickles here only is a failed start, with the worker's traceback."""
    executor = pool(backend={"initializer": work.same, "initargs": (unpicklable.OnlyHere(os.getpid()),)})
    error = executor.submit(work.same, 1).exception(work.SOON)
    assert isinstance(error, WorkerStartError)
    assert "LookupError" in str(error)


def test_large_initargs(pool: Any) -> None:
    """More than a pipe holds reaches each worker, without holding up the pool."""
    executor = pool(2, backend={"initializer": work.remember, "initargs": (b"x" * (5 << 20),)})
    futures = [executor.submit(work.remembered) for _ in range(4)]
    assert {len(future.result(work.SOON)) for future in futures} == {5 << 20}


def test_a_retry_after_a_failed_start_does_not_hang(pool: Any, bench: Any) -> None:
    """Workers cannot start any more; a task whose worker is killed for its timeout then ends, too."""
    log, started = bench.log(), bench.latch()
    executor = pool(2, timeout=1.0, retry_count=2, backend={"initializer": work.fail_after_first, "initargs": (log,)})
    first = executor.submit(work.begin, started)
    started.wait()
    assert isinstance(executor.submit(work.same, 1).exception(work.SOON), WorkerStartError)
    assert first.exception(work.SOON) is not None


def test_shutdown_does_not_wait_for_a_start(pool: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing left to do, workers that are still starting are not waited for, nor given time to end."""
    monkeypatch.setattr(pool_module, "STOP_GRACE", 60.0)
    entered = bench.latch()
    executor = pool(2, backend={"initializer": work.begin, "initargs": (entered,)})
    future = executor.submit(work.same, 1)
    entered.wait()
    start = time.monotonic()
    executor.shutdown(cancel_futures=True)
    assert future.cancelled()
    assert time.monotonic() - start < work.SOON


def test_a_deadline_does_not_wait_for_a_start(pool: Any) -> None:
    """A run's deadline passes while the worker starts: the run is over."""
    executor = pool(backend={"initializer": time.sleep, "initargs": (work.FOREVER,)})
    executor.add_task(work.pid)
    start = time.monotonic()
    (result,) = executor.execute_all(deadline=0.3)
    assert not result.success
    assert time.monotonic() - start < work.SOON


# ── start methods ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", METHODS)
def test_a_start_method_by_name_or_as_a_context(pool: Any, method: str) -> None:
    """Both ways of saying it work."""
    for wanted in (method, multiprocessing.get_context(method)):
        assert pool(backend={"mp_context": wanted}).submit(work.pid).result(work.SOON) != os.getpid()


def test_the_multiprocessing_module_is_a_context(pool: Any) -> None:
    """`mp_context=multiprocessing` means its default start method."""
    assert pool(backend={"mp_context": multiprocessing}).submit(work.same, 1).result(work.SOON) == 1


@pytest.mark.parametrize(("wanted", "error"), [("forkserve", ValueError), (3, TypeError), (object(), TypeError)])
def test_a_wrong_start_method_is_refused(wanted: Any, error: Any) -> None:
    """The message says what to write instead."""
    with pytest.raises(error, match="mp_context takes"):
        ProcessBackend(mp_context=wanted)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"initializer": 5}, TypeError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": 1.5}, TypeError),
        ({"memory_limit": -1}, ValueError),
        ({"startup_timeout": 0}, ValueError),
        ({"startup_timeout": "1"}, TypeError),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], error: Any) -> None:
    """A setting of the wrong type or out of range is refused at once, by name."""
    with pytest.raises(error, match=next(iter(settings))):
        ProcessBackend(**settings)


def test_a_back_end_serves_one_executor(pool: Any) -> None:
    """A second executor is refused, before anything is started."""
    backend = ProcessBackend()
    with ParallelExecutor(backend=backend), pytest.raises(RuntimeError, match="make a new one"):
        ParallelExecutor(backend=backend)


def test_a_forked_worker_has_no_part_in_its_parents_pool(pool: Any) -> None:
    """With `fork`, a worker finds its parent's executor unusable, and does not hang on it."""
    executor = pool(backend={"mp_context": "fork"})
    work.BORROWED.append(executor)
    try:
        assert "forked" in executor.submit(work.try_borrowed).result(work.SOON)
    finally:
        work.BORROWED.clear()


def test_a_pool_inside_a_worker(pool: Any) -> None:
    """A task may have a process pool of its own."""
    assert pool().submit(work.use_pool, 3).result(work.SOON) == [0, 1, 4]


def test_a_daemonic_process_is_told_why_not() -> None:
    """Where multiprocessing forbids children, the error says so, and what to use."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(False)
    process = context.Process(target=work.report_pool, args=(sender,), daemon=True)
    process.start()
    sender.close()
    assert "WorkerStartError: a daemonic multiprocessing process may not have children" in receiver.recv()
    receiver.close()
    process.join()
    process.close()


def test_a_daemonic_process_with_its_parents_pool(pool: Any) -> None:
    """Where the executor came along by a fork, unused, as in Celery's prefork pool, the first task says why, and at once."""
    executor = pool()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(False)
    process = context.Process(target=work.report_submit, args=(executor, sender), daemon=True)
    with no_fork_warning():  # an earlier test's pool may still be ending
        process.start()
    sender.close()
    said = receiver.recv()
    assert said.startswith("WorkerStartError: a daemonic multiprocessing process may not have children: start it with ")
    assert "Celery worker with --pool=threads" in said
    receiver.close()
    process.join()
    process.close()


@pytest.mark.parametrize(
    ("initializer", "words"),
    [
        ((os._exit, (3,)), "the last by exit code 3, and left no traceback; what they said of it is on standard error"),
        ((work.kill_self, ()), "the last by signal SIGKILL, .* The system kills what takes its last memory"),
    ],
    ids=["exit", "killed"],
)
def test_a_start_that_fails_without_a_word(pool: Any, initializer: Any, words: str) -> None:
    """The error says how the workers died, and blames no main script that has nothing to do with it."""
    function, arguments = initializer
    error = pool(1, backend={"initializer": function, "initargs": arguments}).submit(work.pid).exception(20)
    assert type(error).__name__ == "WorkerStartError"
    assert re.search(words, str(error))
    assert "__main__" not in str(error)


def test_a_start_that_the_memory_limit_fails(pool: Any) -> None:
    """The setting is named where it is what keeps workers from starting."""
    backend = {"initializer": work.take_memory, "initargs": (1 << 30,), "memory_limit": 200 << 20}
    error = pool(1, backend=backend).submit(work.pid).exception(20)
    assert str(error).startswith("worker processes cannot start: the initializer failed: MemoryError")
    assert "Is memory_limit=209715200 enough to start with?" in str(error)


def test_a_process_of_multiprocessing_may_have_a_pool() -> None:
    """A process that is not daemonic may."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(False)
    process = context.Process(target=work.report_pool, args=(sender,))
    process.start()
    sender.close()
    assert receiver.recv() == "[0, 1, 4]"
    receiver.close()
    process.join()
    process.close()


def test_other_processes_of_multiprocessing_are_left_alone(pool: Any) -> None:
    """While pools start workers, a user's own `Process` still imports the main module and runs."""
    executor = pool(4)
    futures = [executor.submit(work.nap, 0.01) for _ in range(50)]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work.same, args=(1,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
        process.close()
    assert len({future.result(work.SOON) for future in futures}) >= 1


# ── replacement ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_is_replaced_after_so_many_tasks(pool: Any, log: Any, most: int, workers: int) -> None:
    """No process runs more than `max_tasks_per_child`, also when tasks are tiny and travel in batches; none is lost."""
    executor = pool(workers, backend={"max_tasks_per_child": most})
    notes = [executor.submit(work.note, log, number) for number in range(24)]
    pids = [future.result(30) for future in [executor.submit(work.pid) for _ in range(24)]]
    assert max(pids.count(pid) for pid in pids) <= most
    wait(notes, timeout=30)
    assert sorted(map(int, log.lines())) == list(range(24))


def test_retries_count_as_tasks_of_a_worker(pool: Any, log: Any) -> None:
    """Each attempt is one of the tasks that a worker has in its life."""
    executor = pool(retry_count=3, backend={"max_tasks_per_child": 1})
    future = executor.submit(work.fail_until_fourth, log)
    assert future.result(work.SOON) == 4
    assert len(set(log.lines())) == 4


def test_a_retired_worker_that_does_not_end_is_killed(pool: Any) -> None:
    """A task leaves a thread behind that never ends; its worker is replaced all the same."""
    executor = pool(backend={"max_tasks_per_child": 1})
    first = executor.submit(work.leave_thread).result(work.SOON)
    assert executor.submit(work.pid).result(work.SOON) != first
    work.until(lambda: not processes.is_alive(first), work.SOON)


def test_a_retired_worker_whose_last_words_came_by_a_peek(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same when its last frame was found by a look into the pipe, not by the selector: the race, made certain."""
    receive = Receiver.receive

    def look(self: Any, handle: Any) -> bool:
        if handle.state != WorkerState.STARTING:
            handle.poll_at = 0.0  # at once, instead of reading
            return False
        return receive(self, handle)

    monkeypatch.setattr(Receiver, "receive", look)
    executor = pool(backend={"max_tasks_per_child": 1})
    first = executor.submit(work.leave_thread).result(work.SOON)
    assert executor.submit(work.pid).result(work.SOON) != first


def test_shutdown_does_not_wait_for_what_tasks_left_behind(pool: Any) -> None:
    """Nor does the end of the pool."""
    executor = pool()
    worker = executor.submit(work.leave_thread).result(work.SOON)
    start = time.monotonic()
    executor.shutdown()
    assert time.monotonic() - start < work.SOON
    assert not processes.is_alive(worker)


shared: list[Any] = []


def share(*things: Any) -> None:
    """Keep what the initializer is given."""
    shared.extend(things)


def is_alone(log: work.Log) -> bool:
    """Hold the shared lock for a moment; returns whether nobody else did."""
    with shared[0]:
        work.span(log, 0.002)
    return shared[1].is_set()  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_locks_of_multiprocessing_as_initargs(pool: Any, log: Any, method: str) -> None:
    """They only travel while a process is started; so they do."""
    context = multiprocessing.get_context(method)
    event = context.Event()
    event.set()
    executor = pool(3, backend={"mp_context": method, "initializer": share, "initargs": (context.Lock(), event)})
    assert all(future.result(work.SOON) for future in [executor.submit(is_alone, log) for _ in range(20)])
    assert work.most_at_once(log) == 1
