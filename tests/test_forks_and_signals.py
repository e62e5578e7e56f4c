"""`parallel_exec._lifecycle`: processes that fork, and signal handlers that come at any moment."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING, Any, Callable

import pytest
import script
import work

from parallel_exec import ParallelExecutor

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

BACKENDS = ["thread", "process"]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


# ── forked ──────────────────────────────────────────────────────────────────────────────────────────────────────────

FORK = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")  # that it is multi-threaded
IN_THE_CHILD = """
    def tell(name, call):
        try:
            say(name, "returned", type(call()).__name__)
        except Exception as error:
            say(name, type(error).__name__, "made before the process forked" in str(error))

    def use(executor, future):
        tell("submit", lambda: executor.submit(int))
        tell("options", lambda: executor.options(priority=1).submit(int))
        tell("map", lambda: executor.map(int, [1]))
        tell("stream", lambda: list(executor.stream([Task(int)])))
        tell("add_task", lambda: executor.add_task(int))
        tell("execute_all", executor.execute_all)
        tell("result", future.result)
        tell("stats", executor.stats)
        tell("queue", executor.queue.size)
        tell("pause", executor.pause)
        tell("resume", executor.resume)
        tell("resize", lambda: executor.resize(2))
        tell("results", executor.results)
        tell("cancel", future.cancel)
        tell("abort", future.abort)
        tell("shutdown", executor.shutdown)
        tell("exit", lambda: executor.__exit__(None, None, None))
        with ParallelExecutor(max_concurrency=2) as fresh:
            say("fresh", list(fresh.map(work.double, range(3))))

    def fork(executor, future):
        child = os.fork()
        if child == 0:
            use(executor, future)
            del executor, future
            gc.collect()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
"""
REFUSED = ("submit", "options", "map", "stream", "add_task", "execute_all", "result")


@every_backend
def test_in_a_forked_child_every_use_says_so_or_does_no_harm(tmp_path: Path, backend: str) -> None:
    """In the child, what would need workers raises a clear error, nothing hangs, and a new executor works."""
    body = (
        IN_THE_CHILD
        + """
    executor = ParallelExecutor(backend=sys.argv[1], max_concurrency=1)
    started, gate = work.Latch(sys.argv[2] + "-started"), work.Latch(sys.argv[2])
    future = executor.submit(work.hold, started, gate)
    executor.submit(int)
    started.wait()
    fork(executor, future)
    gate.set()
    say("parent", future.result(), executor.submit(work.double, 2).result())
    """
    )
    lines = script.run(tmp_path, body, backend, str(tmp_path / "gate"), flags=FORK).splitlines()
    told = {line.split()[0]: line.split()[1:] for line in lines}
    assert {name: told[name] for name in REFUSED} == {name: ["ParallelExecError", "True"] for name in REFUSED}
    harmless = set(told) - {*REFUSED, "fresh", "parent"}
    assert {name for name in harmless if told[name][0] not in ("returned", "ParallelExecError")} == set()
    assert told["shutdown"] == told["exit"] == ["returned", "NoneType"]
    assert told["fresh"] == ["[0,", "2,", "4]"]
    assert told["parent"] == ["held", "4"]


def test_a_forked_child_holds_nothing_of_the_limits(tmp_path: Path) -> None:
    """What an abandoned thread holds is its own: it has not come along, also not for a limit that the child changes."""
    body = """
    gate = threading.Event()
    executor = ParallelExecutor(backend="thread", limits={"db": 1}, retry_count=0)
    executor.add_task(Task(gate.wait, needs={"db": 1}, timeout=0.01))
    executor.execute_all()
    say("parent", executor.stats().limits["db"].in_use)
    child = os.fork()
    if child == 0:
        executor.limits["db"] = 1
        say("child", executor.stats().limits["db"].in_use, executor.options(needs={"db": 1}).submit(int).result(9))
        executor.shutdown()
        del executor.limits["db"]
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    gate.set()
    """
    lines = script.run(tmp_path, body, flags=FORK, stuck=1).splitlines()
    assert lines == ["parent 1", "child 0 0"]


def test_a_fork_while_our_locks_are_held(tmp_path: Path) -> None:
    """The child does not hang on a lock that another thread held when the process forked."""
    body = (
        IN_THE_CHILD
        + """
    from parallel_exec._sync import lazy_condition as module
    executor = ParallelExecutor(max_concurrency=1)
    gate = threading.Event()
    future = executor.submit(gate.wait)
    held, enough = threading.Event(), threading.Event()

    def hold():
        with inside.monitor(executor).lock, module.settling_lock:
            held.set()
            enough.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    fork(executor, future)
    enough.set()
    holder.join()
    gate.set()
    say("parent", future.result())
    """
    )
    lines = script.run(tmp_path, body, flags=FORK).splitlines()
    assert lines[-1] == "parent True"
    assert "fresh [0, 2, 4]" in lines


def test_forks_in_the_middle_of_everything(tmp_path: Path) -> None:
    """Whenever a busy process forks, the child can use a new executor, and the parent's work comes out right."""
    body = """
        executor = ParallelExecutor(max_concurrency=2)
        futures = []

        def submit():
            for number in range(3000):
                futures.append(executor.submit(work.double, number))

        submitter = threading.Thread(target=submit)
        submitter.start()
        for _ in range(20):
            child = os.fork()
            if child == 0:
                with ParallelExecutor(max_concurrency=1) as fresh:
                    fresh.submit(work.double, 1).result()
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
        submitter.join()
        say([future.result() for future in futures] == [2 * number for number in range(3000)])
    """
    assert script.run(tmp_path, body, flags=FORK) == "True"


# ── signal handlers ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_signal_handler_may_submit_and_cancel(tmp_path: Path) -> None:
    """Handlers that interrupt the executor anywhere may use it; nothing hangs, nothing is lost."""
    body = """
        executor = ParallelExecutor(max_concurrency=2)
        executor.submit(int).result()
        extra = []

        def handler(*_):
            future = executor.submit(work.double, 7)
            future.cancel()
            extra.append(future)
            executor.stats()

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0005)
        futures = []
        while len(futures) < 5000 or len(extra) <= 10:
            futures.append(executor.submit(work.double, len(futures)))
        results = [future.result() for future in futures]
        signal.setitimer(signal.ITIMER_REAL, 0)
        executor.shutdown()
        say(results == [2 * number for number in range(len(futures))])
        say(all(future.cancelled() or future.result() == 14 for future in extra))
    """
    assert script.run(tmp_path, body).split() == ["True", "True"]


def test_a_signal_handler_may_use_the_limits(tmp_path: Path) -> None:
    """Handlers add tasks that wait, look at the limits and change them, wherever they interrupt the same; nothing is lost."""
    body = """
        from parallel_exec import PerKey

        executor = ParallelExecutor(max_concurrency=2, limits={"db": 2, "host": PerKey(1)})
        executor.limits["db"] = 1
        extra = []

        def handler(*_):
            extra.append(executor.options(needs={"db": 1}).submit(work.double, 7))
            executor.options(needs={"host": str(len(extra))}).submit(int).cancel()
            executor.limits["db"] = 1 + len(extra) % 3
            executor.stats()

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.002)
        futures = []
        while len(futures) < 2000 or len(extra) <= 100:
            needs = {"db": 1} if len(futures) % 2 else {"host": str(len(futures) % 7)}
            futures.append(executor.options(needs=needs).submit(work.double, len(futures)))
            executor.stats()
        signal.setitimer(signal.ITIMER_REAL, 0)
        say([future.result() for future in futures] == [2 * number for number in range(len(futures))])
        say(all(future.result() == 14 for future in extra))
        executor.shutdown()
        say([(each.in_use, each.waiting) for each in executor.stats().limits.values()])
    """
    assert script.run(tmp_path, body).split("\n")[:3] == ["True", "True", "[(0, 0), (0, 0)]"]


def _interrupted(call: Callable[[], Any], handler: Callable[[], Any], step: int) -> bool:
    """Call something, and a handler in the middle of it, before its `step`-th opcode; returns whether it has so many."""
    left = step

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        frame.f_trace_opcodes = True
        left -= event == "opcode"
        if event == "opcode" and left == 0:
            handler()
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # else 3.12 does not believe what is set in `trace`
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return left <= 0


def _survives(step: int, cancels: bool) -> bool:
    """Interrupt a `submit` and `cancel`s at one point, and check that each task ends, once; False if there is no such point."""
    futures: list[Any] = []
    with ParallelExecutor(max_concurrency=1) as executor:
        executor.pause()
        queued = [executor.submit(int) for _ in range(2)]

        def change() -> None:
            futures.append(executor.submit(work.double, 1))
            for future in queued:
                future.cancel()
            futures.append(executor.submit(work.double, 2))

        def handler() -> None:
            futures.append(executor.submit(work.double, 3))
            if cancels:
                executor.submit(int).cancel()
            executor.stats()

        if not _interrupted(change, handler, step):
            return False
        executor.resume()
        assert sorted(future.result(work.SOON) for future in futures) == [2, 4, 6]
        assert all(future.cancelled() for future in queued)
    stats = executor.stats()  # now: a task is counted just after its result is there
    assert (stats.queued, stats.succeeded, stats.failed) == (0, 3, 0)
    return True


@pytest.mark.parametrize("cancels", [False, True])
def test_a_handler_between_any_two_steps(cancels: bool) -> None:
    """A handler that adds (and cancels) a task at whatever point of a `submit` or `cancel` does no harm.

    Real signals come between fewer steps, other ones in each version of Python.
    """
    steps = next(step for step in itertools.count(1) if not _survives(step, cancels))
    assert steps > 200


@pytest.mark.parametrize(("backend", "wait"), [("thread", "True"), ("thread", "False"), ("process", "False")])
def test_a_signal_handler_may_shut_down(tmp_path: Path, backend: str, wait: str) -> None:
    """`shutdown` in a handler that interrupted the executor anywhere returns, and every future ends."""
    body = """
        for round in range(5):
            executor = ParallelExecutor(backend=sys.argv[1], max_concurrency=2)
            closed = []

            def handler(*_):
                executor.shutdown(wait=sys.argv[2] == "True")
                closed.append(1)

            signal.signal(signal.SIGALRM, handler)
            futures = []
            signal.setitimer(signal.ITIMER_REAL, 0.005 + 0.003 * round)
            try:
                while True:
                    futures.append(executor.submit(work.double, len(futures)))
            except RuntimeError:
                pass
            executor.shutdown()
            assert closed == [1]
            assert [future.result() for future in futures] == [2 * number for number in range(len(futures))]
        say("fine")
    """
    assert script.run(tmp_path, body, backend, wait) == "fine"


@pytest.mark.parametrize("lock", ["inside.monitor(executor).lock", "module.settling_lock"])
def test_shutdown_does_not_wait_for_what_its_own_frame_holds(tmp_path: Path, lock: str) -> None:
    """A handler that interrupted a section of ours, whose lock the workers need, is not made to wait for them."""
    body = f"""
        from parallel_exec._sync import lazy_condition as module
        executor = ParallelExecutor(max_concurrency=1)
        gate = threading.Event()
        future = executor.submit(gate.wait)
        with {lock}:
            gate.set()
            executor.shutdown(wait=True)
        executor.shutdown(wait=True)
        say(future.result())
    """
    assert script.run(tmp_path, body) == "True"


@every_backend
def test_an_unused_executor_is_the_childs_own(tmp_path: Path, backend: str) -> None:
    """One that a server made before it forked its workers serves each of them."""
    body = """
        executor = ParallelExecutor(backend=sys.argv[1], max_concurrency=2)
        for _ in range(2):
            child = os.fork()
            if child == 0:
                say(list(executor.map(work.double, range(3))))
                executor.shutdown()
                os._exit(0)
            os.waitpid(child, 0)
        say(list(executor.map(work.double, range(3))))
    """
    assert script.run(tmp_path, body, backend, flags=FORK).splitlines() == ["[0, 2, 4]"] * 3


@every_backend
def test_an_executor_between_two_runs_is_the_childs_own(tmp_path: Path, backend: str) -> None:
    """It has workers of its own there, and a clock."""
    body = """
        from parallel_exec import Task
        from parallel_exec.errors import TaskTimeoutError

        executor = ParallelExecutor(backend=sys.argv[1], max_concurrency=2, retry_count=0)

        def run():
            executor.add_task(Task(work.double, 2))
            executor.add_task(Task(work.nap, 0.5, timeout=0.1))
            say([type(result.error).__name__ for result in executor.execute_all()])

        run()
        child = os.fork()
        if child == 0:
            run()
            executor.shutdown()
            os._exit(0)
        os.waitpid(child, 0)
        run()
    """
    stuck, dead = (3, 0) if backend == "thread" else (0, 3)
    said = script.run(tmp_path, body, backend, flags=FORK, stuck=stuck, dead=dead)
    assert said.splitlines() == ["['NoneType', 'TaskTimeoutError']"] * 3


@pytest.mark.parametrize("moment", ["start", "result"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_fork_while_a_worker_starts_or_after_it(tmp_path: Path, method: str, moment: str) -> None:
    """The child has none of the locks that a start is under, and can start processes itself, with a fork server of its own."""
    body = """
        from parallel_exec import ProcessBackend

        executor = ParallelExecutor(backend=ProcessBackend(mp_context=sys.argv[1]), max_concurrency=2)
        futures = [executor.submit(work.double, number) for number in range(3)]
        if sys.argv[2] == "result":
            futures[0].result()
        child = os.fork()
        if child == 0:
            with ParallelExecutor(backend=ProcessBackend(mp_context=sys.argv[1]), max_concurrency=2) as own:
                say([own.submit(work.double, number).result(10) for number in range(3)])
            os._exit(0)
        os.waitpid(child, 0)
        say([future.result(10) for future in futures])
        executor.shutdown()
    """
    assert script.run(tmp_path, body, method, moment, flags=FORK).splitlines() == ["[0, 2, 4]"] * 2


@pytest.mark.parametrize("wait", ["False", "True"])
def test_a_signal_handler_that_shuts_down_amid_a_map(tmp_path: Path, wait: str) -> None:
    """Whatever the iteration was about to wait for."""
    body = """
        from parallel_exec._core import map_chunk

        class Clock:
            def monotonic(self):
                if sys._getframe(1).f_code.co_name == "_wait" and not heard:
                    heard.append(True)
                    signal.raise_signal(signal.SIGUSR1)
                return time.monotonic()

        heard = []
        executor = ParallelExecutor(backend="process", max_concurrency=1)
        waits = sys.argv[1] == "True"
        signal.signal(signal.SIGUSR1, lambda *_: executor.shutdown(wait=waits, cancel_futures=not waits))
        results = executor.map(work.double, range(3000), timeout=60)
        map_chunk.time = Clock()
        try:
            say(len(list(results)))
        except BaseException as error:
            say(type(error).__name__)
        executor.shutdown()
    """
    assert script.run(tmp_path, body, wait) in {"3000", "CancelledError"}
