"""SIGKILL of the parent: every worker and what its task has started is gone within 2 s, and nothing is left in /dev/shm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import work

METHODS = ("forkserver", "spawn", "fork")
GONE_WITHIN = 2.0 + work.SOON  # seconds: what we promise, and a busy machine's; survivors would stay for minutes

# What is killed: a script that starts workers by the method of its first argument, and has each run the task of the second.
PROGRAM = """
import sys, time, warnings
from pathlib import Path
from parallel_exec import ParallelExecutor
from parallel_exec.backends.process.backend import ProcessBackend
import work

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of fork, that this process has threads
    method, task, count, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    executor = ParallelExecutor(max_concurrency=count, backend=ProcessBackend(mp_context=method), timeout=None)
    pids, started = work.Log(folder / "pids"), [work.Latch(folder / f"started-{n}") for n in range(count)]
    if task == "idle":
        meet = [executor.submit(work.meet_by_pid, started, n) for n in range(count)]
        for future in meet:
            pids.write(future.result())
    else:
        for latch in started:
            executor.submit(work.start_child, pids, latch, task == "hang")
            latch.wait()
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The script's file."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def _kill_parent(program: Path, *args: str) -> list[int]:
    """Run the program, SIGKILL it once all its workers are at work, and return whom it leaves 2 s later."""
    with processes.python(str(program), *args, str(program.parent)) as process:
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        pids = [int(line) for line in work.Log(program.parent / "pids").lines()]
        pids += processes.descendants(process.pid)
        process.kill()
        process.wait()
        try:
            work.until(lambda: not any(map(processes.is_alive, pids)), GONE_WITHIN)
        except AssertionError:
            return [pid for pid in pids if processes.is_alive(pid) and not processes.kill(pid)] or pids
    return []


@pytest.mark.parametrize("method", METHODS)
def test_idle_workers_die_with_the_parent(program: Path, method: str) -> None:
    """Workers that wait for work are gone, whichever way they were started."""
    assert _kill_parent(program, method, "idle", "4") == []


@pytest.mark.parametrize("method", METHODS)
def test_running_workers_and_their_subprocesses_die_with_the_parent(program: Path, method: str) -> None:
    """A worker in the middle of a task is gone, and so is the subprocess that the task has started."""
    assert _kill_parent(program, method, "run", "2") == []


@pytest.mark.parametrize("method", METHODS)
def test_workers_that_hang_in_c_die_with_the_parent(program: Path, method: str) -> None:
    """So is a worker in a C call that holds the interpreter's lock and has blocked every signal."""
    assert _kill_parent(program, method, "hang", "2") == []


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_in_its_initializer_dies_with_the_parent(tmp_path: Path, method: str) -> None:
    """A worker that is still starting is gone, too."""
    path = tmp_path / "program.py"
    path.write_text(
        PROGRAM.replace("mp_context=method", "mp_context=method, initializer=work.start_child, initargs=initargs")
        .replace(
            "    executor =",
            "    initargs = (work.Log(folder / 'pids'), work.Latch(folder / 'started-0'), True)\n    executor =",
        )
        .replace('    if task == "idle":', "    executor.submit(int)\n    initargs[1].wait()\n    if not count:")
        .replace("for latch in started", "for latch in ()")
    )
    assert _kill_parent(path, method, "run", "1") == []


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_in_shared_memory(program: Path, method: str) -> None:
    """Semaphores of a killed parent go with it. (What reaps them is multiprocessing's resource tracker, or the fork server.)"""
    before = set(os.listdir("/dev/shm"))
    assert _kill_parent(program, method, "idle", "4") == []
    work.until(lambda: not _new_names(before), work.SOON)


def _new_names(before: set[str]) -> list[str]:
    """Name what is new in /dev/shm and not of a process that is alive: other tests may be running beside this one."""
    return [
        name
        for name in set(os.listdir("/dev/shm")) - before
        if name.startswith(("sem.mp-", "sem.parallel_exec-")) and not _is_mapped(name)
    ]


def _is_mapped(name: str) -> bool:
    return subprocess.run(["grep", "-qs", name, *Path("/proc").glob("[0-9]*/maps")], check=False).returncode == 0


def test_a_parent_that_dies_while_workers_start(tmp_path: Path) -> None:
    """Wherever in its first half second the parent is killed, nobody outlives it, and no semaphore."""
    before = set(os.listdir("/dev/shm"))
    code = (
        "from parallel_exec import ParallelExecutor\n"
        "import time\n"
        "executor = ParallelExecutor(max_concurrency=3, backend='process')\n"
        "[executor.submit(time.sleep, 600) for _ in range(3)]\n"
        "print('submitted', flush=True)\n"
        "time.sleep(600)\n"
    )
    for round in range(8):
        with processes.python("-c", code) as process:
            assert process.stdout.readline() == "submitted\n"
            seen: set[int] = set()
            until = work.time.monotonic() + round * 0.06
            while work.time.monotonic() < until:
                seen.update(processes.descendants(process.pid))
            seen.update(processes.descendants(process.pid))
            process.kill()
            process.wait()
            work.until(lambda seen=seen: not any(map(processes.is_alive, seen)), GONE_WITHIN)
    work.until(lambda: not _new_names(before), work.SOON)


def test_a_parent_that_dies_while_it_makes_a_semaphore() -> None:
    """The resource tracker knows of one before it is there, not only afterwards, and removes it."""
    code = """
import os, time
from multiprocessing import resource_tracker
from parallel_exec import ParallelExecutor, ProcessBackend

register = resource_tracker.register

def register_late(name, kind):
    if kind == "semaphore" and os.path.exists("/dev/shm/sem." + name.lstrip("/")):
        print(name.lstrip("/"), flush=True)
        time.sleep(600)
    register(name, kind)

resource_tracker.register = register_late
ParallelExecutor(max_concurrency=1, backend=ProcessBackend(mp_context="spawn")).submit(int).result()
"""
    with processes.python("-c", code) as process:
        place = Path("/dev/shm", f"sem.{process.stdout.readline().strip()}")
        assert place.exists()
        process.kill()
        process.wait()
        work.until(lambda: not place.exists(), work.SOON)


def test_a_python_that_ends_without_shutdown_leaves_nobody(tmp_path: Path) -> None:
    """A script that just ends waits for its tasks, and its workers end by themselves."""
    code = (
        "from parallel_exec import ParallelExecutor\n"
        "import os\n"
        "executor = ParallelExecutor(max_concurrency=2, backend='process')\n"
        "print(executor.submit(os.getpid).result(), flush=True)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=processes.environment(),
        timeout=work.SOON,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert not processes.is_alive(int(process.stdout))


def test_os_exit_of_the_parent_leaves_nobody(tmp_path: Path) -> None:
    """`os._exit` runs no exit hook; the workers are gone all the same."""
    code = (
        "from parallel_exec import ParallelExecutor\n"
        "import os, time\n"
        "executor = ParallelExecutor(max_concurrency=2, backend='process')\n"
        "print(executor.submit(os.getpid).result(), flush=True)\n"
        "executor.submit(time.sleep, 600)\n"
        "os._exit(5)\n"
    )
    with processes.python("-c", code) as process:
        worker = int(process.stdout.readline())
        assert process.wait(work.SOON) == 5
        work.until(lambda: not processes.is_alive(worker), GONE_WITHIN)


def test_a_child_that_the_parent_forks_keeps_no_worker_alive(tmp_path: Path) -> None:
    """A process that the parent has forked by itself does not hold the workers' lifelines."""
    code = (
        "from parallel_exec import ParallelExecutor\n"
        "import os, time, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "executor = ParallelExecutor(max_concurrency=2, backend='process')\n"
        "worker = executor.submit(os.getpid).result()\n"
        "child = os.fork()\n"
        "if child:\n"
        "    print(worker, child, flush=True)\n"
        "time.sleep(600)\n"
    )
    with processes.python("-c", code) as process:
        worker, child = map(int, process.stdout.readline().split())
        try:
            process.kill()
            process.wait()
            work.until(lambda: not processes.is_alive(worker), GONE_WITHIN)
            assert processes.is_alive(child)
        finally:
            processes.kill(child)
