"""Ctrl-C, in real programs: the first cancels what waits and stops, a second kills, and what was finished is kept."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Callable

import psutil
import pytest
import script
import work

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

LIMIT = 2.0  # seconds that we promise
SLACK = 1.0  # for a machine that is busy with other things
CHANCES = 2  # for one that stalls

every_backend = pytest.mark.parametrize("backend", ["thread", "process"])

# The run says READY once the tasks that never end are running, then what it has when it was interrupted.
RUN = """
    executor = ParallelExecutor(backend=backend, max_concurrency=2, timeout=None)
    started = [work.Latch(f"{folder}/started-{number}") for number in range(2)]
    never = work.Latch(f"{folder}/never")
    for number in range(5):
        executor.add_task(Task(partial(work.double, number), id=f"quick-{number}", priority=1))
    for latch in started:
        executor.add_task(Task(partial(work.stubborn, latch, never), id="stuck"))
    for number in range(5):
        executor.add_task(Task(partial(work.double, number), id="queued", priority=-1))

    def announce():
        for latch in started:
            latch.wait()
        ready()

    threading.Thread(target=announce, daemon=True).start()
    try:
        executor.execute_all()
    except KeyboardInterrupt:
        results = executor.results()
        say("INTERRUPTED", time.monotonic())
        say(sum(result.success for result in results), len(results), sorted({type(r.error).__name__ for r in results}))
"""
PROGRAM = f"""
    backend, folder = sys.argv[1], sys.argv[2]
    {RUN}"""


def _wait_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "READY\n"


def _is_in_time(run: Callable[[Path], bool], folder: Path) -> bool:
    """Return whether a program that `run` runs in a folder of its own was in time, at least in the second run."""
    folders = [folder / str(chance) for chance in range(CHANCES)]
    for each in folders:
        each.mkdir()
    return any(run(each) for each in folders)


def _interrupted(process: subprocess.Popen[str]) -> tuple[str, str, float, float]:
    """Interrupt a program once it is ready, and see that it and its children end.

    Returns:
        What it wrote, and when it was interrupted and when it had ended.
    """
    _wait_ready(process)
    children = psutil.Process(process.pid).children(recursive=True)
    pressed = _press(process)
    out, err = script.finish(process)
    ended = time.monotonic()
    assert psutil.wait_procs(children, timeout=work.PATIENCE)[1] == []
    return out, err, pressed, ended


def _press(process: subprocess.Popen[str]) -> float:
    """Send what a terminal sends for Ctrl-C: SIGINT to the whole process group; return when."""
    os.killpg(process.pid, signal.SIGINT)
    return time.monotonic()


@every_backend
def test_ctrl_c_ends_a_run_in_time_and_keeps_the_results(tmp_path: Path, backend: str) -> None:
    """`KeyboardInterrupt` comes within 2 s, finished results are kept, the rest is cancelled, and the program ends."""

    def run(folder: Path) -> bool:
        process = script.start(folder, PROGRAM, backend, str(folder))
        out, err, pressed, ended = _interrupted(process)
        (interrupted, counts) = out.splitlines()
        assert counts == "5 5 ['NoneType']"
        assert err == ""
        assert process.returncode == 0
        return float(interrupted.split()[1]) - pressed < LIMIT + SLACK and ended - pressed < LIMIT + 2 * SLACK

    assert _is_in_time(run, tmp_path)


LIMITED = (
    PROGRAM.replace("max_concurrency=2", "max_concurrency=4, limits={'db': 2}")
    .replace("never), id=", "never), needs={'db': 1}, id=")
    .replace('id="queued"', 'needs={"db": 1}, id="queued"')
)


@every_backend
def test_ctrl_c_ends_what_waits_for_a_limit(tmp_path: Path, backend: str) -> None:
    """What waits for a limit is cancelled with the rest; a killed worker gives back what it had, a thread keeps it."""
    and_then = """
        db = executor.stats().limits["db"]
        if backend == "process":
            work.until(lambda: executor.stats().limits["db"].in_use == 0)
        say(db.waiting, executor.stats().limits["db"].in_use)
    """

    def run(folder: Path) -> bool:
        process = script.start(folder, LIMITED + and_then, backend, str(folder))
        out, err, pressed, ended = _interrupted(process)
        (interrupted, counts, db) = out.splitlines()
        assert counts == "5 5 ['NoneType']"
        assert db == ("0 0" if backend == "process" else "0 2")
        assert err == ""
        assert process.returncode == 0
        return float(interrupted.split()[1]) - pressed < LIMIT + SLACK and ended - pressed < LIMIT + 2 * SLACK

    assert _is_in_time(run, tmp_path)


@every_backend
def test_a_second_ctrl_c_kills(tmp_path: Path, backend: str) -> None:
    """The second Ctrl-C does not wait for what still runs: the grace that the first one gives is longer than the test."""
    first_is_heard = """
        ready()
        work.until(lambda: executor.stats().cancelled == 5)
        time.sleep(0.1)
        say("FIRST")"""
    program = PROGRAM.replace("\n        ready()", first_is_heard)
    process = script.start(
        tmp_path,
        f"\n    from parallel_exec import _lifecycle\n    _lifecycle.INTERRUPT_GRACE = _lifecycle.INTERRUPT_LIMIT = 600{program}",
        backend,
        str(tmp_path),
    )
    _wait_ready(process)
    _press(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "FIRST\n"
    _press(process)
    out, _ = script.finish(process)
    (_, counts) = out.splitlines()
    assert counts.startswith("5 ")
    assert process.returncode == 0


def test_tasks_that_end_by_themselves_are_let_end(tmp_path: Path) -> None:
    """After the first Ctrl-C running attempts have a moment to finish, and then they count."""
    body = """
        from parallel_exec import _lifecycle

        _lifecycle.INTERRUPT_GRACE = _lifecycle.INTERRUPT_LIMIT = 10
        executor = ParallelExecutor(max_concurrency=1)
        started, gate = threading.Event(), threading.Event()

        def task():
            started.set()
            gate.wait()
            return "finished"

        executor.add_task(task)
        executor.add_task(int)

        def announce():
            started.wait()
            ready()
            work.until(lambda: executor.stats().cancelled == 1)
            gate.set()

        threading.Thread(target=announce, daemon=True).start()
        try:
            executor.execute_all()
        except KeyboardInterrupt:
            say([result.result for result in executor.results()])
    """
    process = script.start(tmp_path, body)
    _wait_ready(process)
    _press(process)
    assert script.finish(process) == ("['finished']\n", "")


def _check_that_ctrl_c_ends_it(tmp_path: Path, body: str, backend: str) -> None:
    """Start a program, interrupt it once it is ready, and check that it and its children end in time, as by Ctrl-C."""

    def run(folder: Path) -> bool:
        process = script.start(folder, body, backend, str(folder))
        _, err, pressed, ended = _interrupted(process)
        assert err.strip().endswith("KeyboardInterrupt")
        assert process.returncode == -signal.SIGINT
        return ended - pressed < LIMIT + 2 * SLACK

    assert _is_in_time(run, tmp_path)


@every_backend
def test_ctrl_c_inside_with(tmp_path: Path, backend: str) -> None:
    """In a `with` block that waits for something else, Ctrl-C ends the program in time as well."""
    body = """
        with ParallelExecutor(backend=sys.argv[1], max_concurrency=1, timeout=None) as executor:
            started, never = work.Latch(sys.argv[2] + "/started"), work.Latch(sys.argv[2] + "/never")
            executor.submit(work.stubborn, started, never)
            for _ in range(5):
                executor.submit(int)
            started.wait()
            ready()
            time.sleep(60)
    """
    _check_that_ctrl_c_ends_it(tmp_path, body, backend)


@every_backend
def test_ctrl_c_outside_of_all_our_calls(tmp_path: Path, backend: str) -> None:
    """A program that Ctrl-C ends while it does something else does not stay to finish its tasks, as the stdlib's does."""
    body = """
        executor = ParallelExecutor(backend=sys.argv[1], max_concurrency=1, timeout=None)
        started, never = work.Latch(sys.argv[2] + "/started"), work.Latch(sys.argv[2] + "/never")
        executor.submit(work.stubborn, started, never)
        for _ in range(5):
            executor.submit(time.sleep, 60)
        started.wait()
        ready()
        time.sleep(60)
    """
    _check_that_ctrl_c_ends_it(tmp_path, body, backend)


@pytest.mark.parametrize("way", ["result", "stream", "map", "wait"])
def test_ctrl_c_while_waiting(tmp_path: Path, way: str) -> None:
    """Wherever the caller waits, Ctrl-C wakes it."""
    body = """
        with ParallelExecutor(max_concurrency=1, timeout=None) as executor:
            started = threading.Event()

            def stuck(_=None):
                started.set()
                threading.Event().wait()

            def announce():
                started.wait()
                ready()

            threading.Thread(target=announce, daemon=True).start()
            if sys.argv[1] == "result":
                executor.submit(stuck).result()
            elif sys.argv[1] == "stream":
                list(executor.stream([Task(stuck)]))
            elif sys.argv[1] == "map":
                list(executor.map(stuck, range(3)))
            else:
                from concurrent.futures import wait
                wait([executor.submit(stuck)])
    """

    def run(folder: Path) -> bool:
        process = script.start(folder, body, way)
        _wait_ready(process)
        if way == "wait":
            time.sleep(0.5)  # it waits without a limit, and Python does not hear a signal that comes just before
        pressed = _press(process)
        script.finish(process)
        assert process.returncode == -signal.SIGINT
        return time.monotonic() - pressed < LIMIT + 2 * SLACK

    assert _is_in_time(run, tmp_path)


def test_ctrl_c_inline(tmp_path: Path) -> None:
    """Ctrl-C in an inline run ends the run, not just the task that it hits."""
    body = """
        executor = ParallelExecutor(backend="inline", retry_count=0)

        def hold():
            ready()
            time.sleep(60)

        executor.add_task(int)
        executor.add_task(hold)
        executor.add_task(hold)
        try:
            executor.execute_all()
        except KeyboardInterrupt:
            say([type(result.error).__name__ for result in executor.results()])
    """
    process = script.start(tmp_path, body)
    _wait_ready(process)
    _press(process)
    assert script.finish(process) == ("['NoneType', 'KeyboardInterrupt']\n", "")


def test_ctrl_c_over_a_long_queue(tmp_path: Path) -> None:
    """`KeyboardInterrupt` does not wait until all of it is cancelled; that goes on, and the program ends after it."""
    body = """
        from parallel_exec import _lifecycle

        _lifecycle.INTERRUPT_LIMIT = 0.0
        executor = ParallelExecutor(max_concurrency=1, timeout=None)
        gate = threading.Event()
        futures = [executor.add_task(task) for task in [gate.wait] + [int] * 3000]

        def announce():
            work.until(futures[0].running)
            ready()

        threading.Thread(target=announce, daemon=True).start()
        try:
            executor.execute_all()
        except KeyboardInterrupt:
            left = sum(not future.done() for future in futures)
            gate.set()
            executor.shutdown()
            say(left > 0, sum(future.cancelled() for future in futures))
    """
    process = script.start(tmp_path, body)
    _wait_ready(process)
    _press(process)
    out, err = script.finish(process)
    assert (out, err) in [("True 3000\n", ""), ("True 3001\n", "")]


@pytest.mark.parametrize("signals", [3, 6])
def test_hammering(tmp_path: Path, signals: int) -> None:
    """However often Ctrl-C is pressed, and whenever, the program ends."""
    process = script.start(tmp_path, PROGRAM, "thread", str(tmp_path))
    _wait_ready(process)
    for _ in range(signals):
        if process.poll() is None:
            _press(process)
        time.sleep(0.03)
    script.finish(process)
    assert process.returncode in (0, 1, -signal.SIGINT, 130)


ENGINES = {
    "executor": "from concurrent.futures import ThreadPoolExecutor; backend = ThreadPoolExecutor(2)",
    "dask": "import distributed; backend = distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=':0')",
}


@pytest.mark.parametrize("engine", ENGINES)
def test_ctrl_c_over_an_engine(tmp_path: Path, engine: str) -> None:
    """Over somebody else's engine it is the same; how soon the engine lets the program end is its own affair."""
    if engine == "dask":
        pytest.importorskip("distributed")
    body = f"""
    {ENGINES[engine]}
    folder = sys.argv[1]
    {RUN}
    never.set()
    """

    def run(folder: Path) -> bool:
        process = script.start(folder, body, str(folder), flags=("-W", "default"))
        _wait_ready(process)
        os.kill(process.pid, signal.SIGINT)  # the engine's own processes are not to hear of it
        pressed = time.monotonic()
        out, _ = script.finish(process)
        interrupted, counts = out.splitlines()
        assert counts == "5 5 ['NoneType']"
        assert process.returncode == 0
        return float(interrupted.split()[1]) - pressed < LIMIT + SLACK

    assert _is_in_time(run, tmp_path)


@pytest.mark.parametrize("order", ["completed", "submitted"])
@every_backend
def test_ctrl_c_in_a_stream_keeps_what_was_not_yielded(tmp_path: Path, backend: str, order: str) -> None:
    """`results()` has what had finished, but for the results that the loop has; with them nothing is lost, nothing twice."""
    body = """
        backend, order, folder = sys.argv[1:]
        executor = ParallelExecutor(backend=backend, max_concurrency=2, timeout=None)
        started, never = work.Latch(f"{folder}/started"), work.Latch(f"{folder}/never")

        def tasks():
            for number in range(3):
                yield Task(work.double, number, id=str(number))
            yield Task(work.stubborn, started, never, id="stuck")
            for number in range(4, 9):
                yield Task(work.double, number, id=str(number))

        def announce():
            started.wait()
            work.until(lambda: executor.stats().succeeded == 8)
            ready()

        threading.Thread(target=announce, daemon=True).start()
        taken = []
        try:
            for result in executor.stream(tasks(), window=9, order=order):
                taken.append(result.task.id)
        except KeyboardInterrupt:
            say(sorted([*taken, *(result.task.id for result in executor.results())]))
            say(order == "completed" or taken == ["0", "1", "2"], {result.success for result in executor.results()} <= {True})
            executor.shutdown()  # or the end may come while a worker's semaphore is let go of
            os._exit(0)
    """
    process = script.start(tmp_path, body, backend, order, str(tmp_path))
    _wait_ready(process)
    _press(process)
    expected = "['0', '1', '2', '4', '5', '6', '7', '8']\nTrue True\n"
    assert script.finish(process) == (expected, "")
