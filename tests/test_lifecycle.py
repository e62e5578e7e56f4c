"""`parallel_exec._lifecycle`: executors that nobody shuts down, at exit, collected, and in odd places."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import script
import work

from parallel_exec import ParallelExecutor

if TYPE_CHECKING:
    from pathlib import Path

BACKENDS = ["thread", "process"]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


# ── at interpreter exit ─────────────────────────────────────────────────────────────────────────────────────────────


@every_backend
def test_pending_work_is_finished_at_exit(tmp_path: Path, backend: str) -> None:
    """A program that ends while tasks are queued ends after them, as with the stdlib's pools."""
    log = work.Log(tmp_path / "log")
    body = """
        executor = ParallelExecutor(backend=sys.argv[1], max_concurrency=2)
        for number in range(10):
            executor.submit(work.note, work.Log(sys.argv[2]), number)
    """
    assert script.run(tmp_path, body, backend, log.path) == ""
    assert sorted(map(int, log.lines())) == list(range(10))


def test_functions_of_a_script_that_has_ended(tmp_path: Path) -> None:
    """Worker processes find them, although the main module has forgotten by then which file it is."""
    body = """
        executor = ParallelExecutor(backend="process", max_concurrency=2)
        for number in range(5):
            executor.submit(say, number)
    """
    assert sorted(script.run(tmp_path, body).split()) == list("01234")


def test_an_executor_made_by_an_exit_handler_is_refused_work(tmp_path: Path) -> None:
    """Nobody would wait for it; the stdlib's pools refuse as well."""
    body = """
        def late():
            try:
                ParallelExecutor().submit(int)
            except RuntimeError as error:
                say(error)

        atexit.register(late)
        ParallelExecutor().submit(int).result()
    """
    assert script.run(tmp_path, body) == "cannot schedule new futures after interpreter shutdown"


@pytest.mark.parametrize("timeout", ["30.0", "None"])
def test_retries_are_finished_at_exit(tmp_path: Path, timeout: str) -> None:
    """A task that fails at exit has its next attempt, also if nothing needed a clock before."""
    log = work.Log(tmp_path / "log")
    body = f"""
        def task():
            exiting.wait()
            return work.flaky(work.Log(sys.argv[1]), 1)

        executor = ParallelExecutor(backoff=0.1, jitter=False, timeout={timeout})
        exiting = threading.Event()
        threading._register_atexit(exiting.set)  # the last one registered is the first one called
        executor.submit(task)
    """
    script.run(tmp_path, body, log.path)
    assert log.lines() == ["call", "call"]


def test_a_slot_lost_at_exit_harms_nobody(tmp_path: Path) -> None:
    """When the only thread gets stuck at exit, what is queued behind it ends one way or the other, and so does the program."""
    body = """
        executor = ParallelExecutor(max_concurrency=1, timeout=0.2, retry_count=0)
        executor.submit(threading.Event().wait).add_done_callback(lambda _: say("one"))
        executor.submit(int).add_done_callback(lambda _: say("two"))
    """
    process = script.start(tmp_path, body)
    out, _ = script.finish(process)
    assert out.split() == ["one", "two"]
    assert process.returncode == 0


BROKEN = [
    ('"process", retry_count=0', "WorkerCrashedError"),
    ("ProcessBackend(initializer=work.fail_after, initargs=(exiting,))", "WorkerStartError"),
    ("ThreadBackend(initializer=work.fail_after, initargs=(exiting,))", "WorkerStartError"),
]


@pytest.mark.parametrize(("backend", "error"), BROKEN, ids=["crash", "process-start", "thread-start"])
def test_what_breaks_at_exit_is_told(tmp_path: Path, backend: str, error: str) -> None:
    """It is the task's error, though the stdlib's pools, whose error that is as well, cannot be loaded any more by then."""
    body = f"""
        from concurrent.futures import BrokenExecutor
        from parallel_exec import ProcessBackend, ThreadBackend

        def tell(future):
            say(type(future.exception()).__name__, isinstance(future.exception(), BrokenExecutor))

        exiting = work.Latch(sys.argv[1])
        threading._register_atexit(exiting.set)  # the last one registered is the first one called
        executor = ParallelExecutor(backend={backend}, max_concurrency=1)
        executor.submit(exiting.wait).add_done_callback(lambda future: future.exception())
        executor.submit(work.die).add_done_callback(tell)
        assert not {{"concurrent.futures.thread", "concurrent.futures.process"}} & set(sys.modules)
    """
    dead = 0 if "Thread" in backend else 1
    assert script.run(tmp_path, body, str(tmp_path / "exiting"), dead=dead) == f"{error} True"


def test_what_was_only_staged_does_not_run_at_exit(tmp_path: Path) -> None:
    """A program that adds tasks and never runs them ends at once, and says so."""
    process = script.start(tmp_path, "ParallelExecutor().add_task(partial(say, 'ran'))")
    out, err = script.finish(process)
    assert (process.returncode, out) == (0, "")
    assert err.startswith("1 task was added and never run, 'say-1' first")
    assert err.count("\n") == 1


def test_late_submits_are_refused(tmp_path: Path) -> None:
    """In an exit handler, after the pools have ended, `submit` raises as the stdlib's does."""
    body = """
        executor = ParallelExecutor()

        @atexit.register
        def late():
            try:
                executor.submit(int)
            except RuntimeError as error:
                say(error)

        executor.submit(int).result()
    """
    assert script.run(tmp_path, body) == "cannot schedule new futures after interpreter shutdown"


@pytest.mark.parametrize(
    ("backend", "end", "words"),
    [
        ("'thread'", "", "after interpreter shutdown"),
        ("'process'", "", "after interpreter shutdown"),
        ("'inline'", "", "after interpreter shutdown"),
        ("ThreadPoolExecutor(1)", "", "after interpreter shutdown"),
        ("'thread'", "executor.shutdown()", "after shutdown"),
    ],
)
def test_what_closed_it_is_named(tmp_path: Path, backend: str, end: str, words: str) -> None:
    """A late submit tells an executor that the interpreter's end has closed from one that its user has closed."""
    body = f"""
        from concurrent.futures import ThreadPoolExecutor

        executor = ParallelExecutor(backend={backend})

        @atexit.register
        def late():
            for act in (lambda: executor.submit(int), executor.pause):
                try:
                    act()
                except RuntimeError as error:
                    say(error)

        executor.submit(int).result()
        {end}
    """
    assert script.run(tmp_path, body).splitlines() == [
        f"cannot schedule new futures {words}",
        f"cannot pause an executor {words}" + (": make a new ParallelExecutor" if end else ""),
    ]


def test_stuck_threads_do_not_keep_the_program_alive(tmp_path: Path) -> None:
    """Eight tasks blocked for ever and a hundred quick ones on two slots: the quick ones succeed, the program ends."""
    body = """
        executor = ParallelExecutor(max_concurrency=2, timeout=0.2, retry_count=0)
        for number in range(8):
            executor.add_task(threading.Event().wait)
        for number in range(100):
            executor.add_task(Task(partial(work.double, number), timeout=30))
        results = executor.execute_all()
        say(sum(type(result.error) is TaskTimeoutError for result in results[:8]))
        say([result.result for result in results[8:]] == [2 * number for number in range(100)])
        say(executor.stats().abandoned)
    """
    assert script.run(tmp_path, body, stuck=8).split() == ["8", "True", "8"]


@pytest.mark.parametrize("way", ["exit", "with", "shutdown"])
@every_backend
def test_a_stuck_task_times_out_at_the_end_too(tmp_path: Path, backend: str, way: str) -> None:
    """A task that is stuck when the executor ends is given up at its timeout, and the program ends."""
    body = """
        executor = ParallelExecutor(backend=sys.argv[1], timeout=0.3, retry_count=0)
        gate = work.Latch(sys.argv[3])
        never = gate.__class__(sys.argv[3] + '-never')
        executor.submit(work.hold, gate, never).add_done_callback(lambda ended: ended.exception())
        if sys.argv[2] == "with":
            with executor:
                pass
        elif sys.argv[2] == "shutdown":
            executor.shutdown()
    """
    stuck, dead = int(backend == "thread"), int(backend == "process")
    script.run(tmp_path, body, backend, way, str(tmp_path / "started"), flags=(), stuck=stuck, dead=dead)


def test_a_paused_executor_ends(tmp_path: Path) -> None:
    """A program that ends while its executor is paused ends, with the work done."""
    body = """
        executor = ParallelExecutor()
        executor.pause()
        executor.submit(say, "done")
    """
    assert script.run(tmp_path, body) == "done"


@every_backend
def test_leaving_by_an_exception(tmp_path: Path, backend: str) -> None:
    """A program that dies of an exception inside `with` finishes its tasks, shows the traceback and ends."""
    body = """
        with ParallelExecutor(backend=sys.argv[1]) as executor:
            executor.submit(work.double, 1)
            raise ValueError("the program's own")
    """
    process = script.start(tmp_path, body, backend)
    _, err = script.finish(process)
    assert process.returncode == 1
    assert err.strip().endswith("ValueError: the program's own")


# ── collected ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_collected_executor_finishes_its_work_and_lets_its_threads_go() -> None:
    """Without `shutdown`, dropping the executor ends its threads once the work is done (the leak fixture looks)."""
    executor = ParallelExecutor(max_concurrency=2)
    gone = weakref.ref(executor)
    gate = threading.Event()
    futures = [executor.submit(gate.wait) for _ in range(4)]
    del executor
    gc.collect()
    assert gone() is None
    gate.set()
    assert [future.result(work.PATIENCE) for future in futures] == [True] * 4


def test_futures_do_not_keep_the_executor() -> None:
    """Whoever keeps a future keeps no executor and none of its threads."""
    executor = ParallelExecutor()
    future = executor.submit(work.double, 1)
    assert future.result() == 2
    gone = weakref.ref(executor)
    del executor
    gc.collect()
    assert gone() is None
    assert future.result() == 2


def test_a_collected_executor_cancels_what_was_only_staged() -> None:
    """What was never started is cancelled when the executor is dropped."""
    executor = ParallelExecutor()
    future = executor.add_task(int)
    del executor
    gc.collect()
    assert future.cancelled()


def test_a_collected_executor_cancels_what_only_its_callers_could_run() -> None:
    """What waits as an inline executor is dropped, as it is paused, is cancelled: nobody could run it any more."""
    executor = ParallelExecutor(backend="inline")
    executor.submit(int)
    executor.pause()
    future = executor.submit(int)
    del executor
    gc.collect()
    assert future.cancelled()


# ── odd places ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_from_a_finalizer(lab: Any) -> None:
    """`shutdown` in `__del__`, in whatever thread collects it, returns."""
    executor = lab.executor()

    class Owner:
        def __init__(self, owned: ParallelExecutor) -> None:
            self.owned = owned
            self.me = self  # only the collector finds it

        def __del__(self) -> None:
            self.owned.shutdown(wait=True)

    gc.disable()  # else it may be collected before it is in a worker
    try:
        Owner(executor)
        future = executor.submit(lambda: gc.collect() >= 0)
        assert future.result(work.PATIENCE)
    finally:
        gc.enable()


@every_backend
def test_from_a_finalizer_in_a_thread_that_comes_up(lab: Any, backend: str) -> None:
    """A thread of the pool may have to run one before it has begun with its own work; `shutdown` returns there, too."""
    executor = lab.executor(max_concurrency=1, backend=backend)
    places: list[str] = []

    def finalize(*_: object) -> None:  # what a thread calls first of all, if it is to be traced
        sys.settrace(None)
        if executor.stats().queued:  # a fork server is started before the call is in, which would be refused
            executor.shutdown(wait=True)
            places.append(threading.current_thread().name)

    threading.settrace(finalize)
    try:
        future = executor.submit(work.double, 1)
    finally:
        threading.settrace(None)  # type: ignore[arg-type]
    assert future.result(work.PATIENCE) == 2
    assert len(places) >= 2


def test_from_a_thread_that_is_not_the_main_one(lab: Any) -> None:
    """An executor may be made, used and ended in any thread."""
    results: list[Any] = []

    def use() -> None:
        with ParallelExecutor() as executor:
            executor.add_task(int)
            results.extend(executor.execute_all())

    lab.thread(use).join(work.PATIENCE)
    assert [result.result for result in results] == [0]
