"""A worker that is killed or crashes says where it was; and one that does not answer is killed all the same."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import processes
import pytest
import work

from parallel_exec import TaskTimeoutError, WorkerCrashedError, WorkerStartError
from parallel_exec.backends._platform import DUMP_SIGNALS
from parallel_exec.backends.process import deaths, oom, worker_process
from parallel_exec.backends.process.oom import OomKills

from . import hanging_tasks

FILE = hanging_tasks.__file__
HANGS = ("nap", "hold_the_interpreter", "sleep_in_c", "wait_for_a_lock", "compute")
GRACE = worker_process.DUMP_GRACE
LATE = 1.0  # seconds; a machine under load


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker take its time to say where it is: this machine may be busy."""
    monkeypatch.setattr(worker_process, "DUMP_GRACE", 10.0)


@pytest.fixture
def hasty(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it take no more than it has."""
    monkeypatch.setattr(worker_process, "DUMP_GRACE", GRACE)


def stopped(executor: Any, function: Any, *args: Any, timeout: float = 0.3) -> Any:
    """Return the error of a call that outruns its timeout; the worker has loaded all that it needs."""
    executor.submit(work.pid).result(work.SOON)
    error = executor.options(timeout=timeout, id="t").submit(function, *args).exception(work.SOON)
    assert type(error) is TaskTimeoutError
    return error


def line_of(function: str) -> int:
    """Return the number of the line at which a task's body begins."""
    lines = Path(FILE).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.startswith(f"def {function}("))


# ── time is up ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", HANGS)
def test_a_hang_is_shown(pool: Any, name: str) -> None:
    """The message has the innermost line of the task's, and the stack has nothing but the task's frames."""
    error = stopped(pool(), getattr(hanging_tasks, name))
    assert f" ran longer than 0.3 s, at {os.path.relpath(FILE)}:" in str(error) or f", at {FILE}:" in str(error)
    assert str(error).endswith(f" in {name}")
    first, second, source = error.stack.splitlines()[:3]
    assert first == "The task's thread (most recent call last):"
    assert second.startswith(f'  File "{FILE}", line ')
    assert second.endswith(f", in {name}")
    number = int(second.split()[3].rstrip(","))
    assert number > line_of(name)
    assert source.strip() == Path(FILE).read_text(encoding="utf-8").splitlines()[number - 1].strip()


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_however_the_worker_was_started(pool: Any, method: str) -> None:
    """Each start method's workers say where they are."""
    error = stopped(pool(backend={"mp_context": method}), hanging_tasks.nap)
    assert str(error).endswith(" in nap")
    assert "_outcomes.py" not in error.stack


def test_an_item_of_a_map(pool: Any) -> None:
    """What ran is shown of a single item, too."""
    executor = pool(timeout=0.3)
    executor.submit(work.pid).result(work.SOON)
    with pytest.raises(TaskTimeoutError, match="in nap_beside_threads") as caught:
        list(executor.map(hanging_tasks.nap_beside_threads, [0, 0]))
    assert "map_runner" not in caught.value.stack


def test_the_task_is_shown_among_many_threads(pool: Any) -> None:
    """faulthandler writes no more than a hundred, the oldest not among them."""
    error = stopped(pool(), hanging_tasks.nap_beside_threads, 110, timeout=2.0)  # it takes a while to start them
    assert str(error).endswith(" in nap_beside_threads")
    assert error.stack.count("(most recent call last)") >= 100
    assert error.stack.splitlines()[-3] == "The task's thread (most recent call last):"


def test_a_call_of_c_code(pool: Any) -> None:
    """There is no line of Python to show, so it is named."""
    error = stopped(pool(), time.sleep, 100)
    assert str(error) == "Task timeout: attempt 1 of task 't' ran longer than 0.3 s, at sleep (C code)"
    assert "sleep (C code, without a line of Python)" in error.stack


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("nap_deaf", ()),
        ("nap_with_handlers", (DUMP_SIGNALS,)),
        ("nap_without_faulthandler", ()),
    ],
)
def test_who_does_not_answer_is_killed_all_the_same(pool: Any, hasty: None, name: str, args: Any) -> None:
    """It takes no longer than the grace."""
    executor = pool()
    executor.submit(work.pid).result(work.SOON)
    start = time.monotonic()
    error = executor.options(timeout=0.3).submit(getattr(hanging_tasks, name), *args).exception(work.SOON)
    took = time.monotonic() - start
    assert type(error) is TaskTimeoutError
    assert took < 0.3 + GRACE + LATE
    assert error.stack == ""
    assert executor.submit(work.double, 2).result(work.SOON) == 4


def test_one_that_is_stopped_is_woken_to_say_where_it_is(pool: Any) -> None:
    """As by Ctrl-Z."""
    assert str(stopped(pool(), hanging_tasks.nap_stopped)).endswith(" in nap_stopped")


def test_a_call_that_ends_as_it_is_stopped(pool: Any, hasty: None) -> None:
    """Its result counts, and the worker, which is deaf for the signals, is not given another task before it is killed."""
    executor = pool(2)
    for _ in range(3):
        executor.submit(work.pid).result(work.SOON)
        future = executor.options(timeout=0.2).submit(hanging_tasks.block_and_return, 0.22)
        error = future.exception(work.SOON)
        assert error is None or type(error) is TaskTimeoutError
        until = time.monotonic() + 3 * GRACE
        while time.monotonic() < until:
            executor.submit(work.pid).result(work.SOON)


def test_what_the_task_has_forked_dies_too(pool: Any, tmp_path: Path) -> None:
    """Also if the worker dies of the signal, and what it has forked ignores that."""
    stopped(pool(), hanging_tasks.nap_with_children, tmp_path)
    (child,) = (int(path.name) for path in tmp_path.iterdir())
    work.until(lambda: not processes.is_alive(child))


def test_an_abort_kills_at_once(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asked where a task is that is not wanted any more."""
    monkeypatch.setattr(worker_process, "ask_for_dump", lambda pid: pytest.fail("it was asked"))
    executor = pool()
    future = executor.submit(hanging_tasks.nap)
    work.until(future.running)
    assert future.abort()
    assert executor.submit(work.double, 2).result(work.SOON) == 4


def test_the_exit_code_is_that_of_a_kill(pool: Any) -> None:
    """Whoever listens is told what was done to the worker, not by which signal."""
    events: list[Any] = []
    stopped(pool(on_event=events.append), hanging_tasks.nap)
    died = [event for event in events if type(event).__name__ == "WorkerDied"]
    assert [event.reason for event in died] == ["exit code -9"]


# ── crashes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["read_nowhere", "abort"])
@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_a_crash_is_shown(pool: Any, name: str, method: str) -> None:
    """The message has the task's line, and the stack what it died of."""
    error = pool(backend={"mp_context": method}).submit(getattr(hanging_tasks, name)).exception(work.SOON)
    assert type(error) is WorkerCrashedError
    assert str(error).endswith(f" in {name}")
    assert error.stack.startswith("Fatal Python error: ")
    assert f", in {name}\n" in error.stack


def test_a_crash_in_another_thread(pool: Any) -> None:
    """The thread that crashed is the one that is named, and shown last; where the task was is there, too."""
    error = pool().submit(hanging_tasks.read_nowhere_in_a_thread).exception(work.SOON)
    assert str(error).endswith(" in read_nowhere")
    task, _, crashed = error.stack.rpartition("\n\nThread ")
    assert "in read_nowhere_in_a_thread" in task
    assert "in read_nowhere\n" in crashed


def test_what_a_child_of_the_task_dies_of_is_not_said_of_the_worker(pool: Any) -> None:
    """A forked process writes nothing for the worker."""
    error = pool().submit(hanging_tasks.read_nowhere_in_a_child).exception(work.SOON)
    assert type(error) is WorkerCrashedError
    assert (error.exitcode, error.stack) == (-signal.SIGKILL, "")


def test_a_fatal_error_of_the_interpreters_own(pool: Any) -> None:
    """It is on standard error, as the interpreter turns faulthandler off for it: the message says where to look."""
    executor = pool(backend={"capture_output": True})
    future = executor.submit(hanging_tasks.fail_fatally)
    error = future.exception(work.SOON)
    assert str(error).endswith(
        ": what it said of that is on its standard error, or with capture_output in Attempt.output"
    )
    assert error.stack == ""
    output = future.task_result().attempts[0].output
    assert "Fatal Python error: so it is" in output
    assert " in fail_fatally" in output


def test_without_last_words_there_is_no_stack(pool: Any) -> None:
    """Who ends by itself has none."""
    error = pool().submit(os._exit, 3).exception(work.SOON)
    assert (error.stack, error.__cause__) == ("", None)


# ── how it is printed ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["itself", "pickle", "copy"])
def test_the_stack_is_printed_with_the_error(pool: Any, way: str) -> None:
    """Before the error, as its cause: whoever sees it uncaught sees the line; also of a copy."""
    error = pool().submit(hanging_tasks.read_nowhere).exception(work.SOON)
    shown = {"itself": lambda e: e, "pickle": lambda e: pickle.loads(pickle.dumps(e)), "copy": copy.copy}[way](error)
    text = "".join(traceback.format_exception(type(shown), shown, None))
    assert error.stack in text
    assert "\n" not in str(shown)
    assert (str(shown), shown.stack, vars(shown)) == (str(error), error.stack, vars(error))


# ── workers that cannot start ───────────────────────────────────────────────────────────────────────────────────────


def test_an_initializer_that_hangs_is_shown(pool: Any) -> None:
    """The error of a start that takes too long has the line at which it hangs."""
    executor = pool(backend={"initializer": hanging_tasks.nap, "startup_timeout": 1.0})
    error = executor.submit(work.pid).exception(work.SOON)
    assert isinstance(error, WorkerStartError)
    assert " in nap" in str(error).splitlines()[0]
    assert "time.sleep(100)" in error.worker_traceback


def test_an_initializer_that_crashes_is_shown(pool: Any) -> None:
    """So has that of workers which die at their start."""
    error = pool(backend={"initializer": hanging_tasks.read_nowhere}).submit(work.pid).exception(work.SOON)
    assert isinstance(error, WorkerStartError)
    assert " in read_nowhere" in str(error).splitlines()[0]


def test_one_that_is_ready_while_it_is_asked_is_killed_all_the_same(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was too late, and has been asked, but does not hear that: nobody may wait for it for ever."""
    monkeypatch.setattr(worker_process, "DUMP_GRACE", 2.0)
    backend = {"initializer": hanging_tasks.block_and_return, "initargs": (0.8,), "startup_timeout": 0.5}
    executor = pool(backend=backend)
    error = executor.submit(work.pid).exception(work.SOON)
    assert isinstance(error, WorkerStartError)
    assert "startup_timeout" in str(error)


# ── killed from outside ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("grown", "words"), [(True, "memory ran out"), (False, "a process sent it that signal;"), (None, "if the machine")]
)
def test_a_kill_from_outside_says_what_is_known(
    pool: Any, monkeypatch: pytest.MonkeyPatch, grown: bool | None, words: str
) -> None:
    """The kernel's count of what it has killed for memory tells, if there is one."""
    monkeypatch.setattr(OomKills, "explain", lambda _: grown)
    error = pool().submit(work.kill_self, signal.SIGKILL).exception(work.SOON)
    assert type(error) is WorkerCrashedError
    assert words in str(error)


def test_the_count_of_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its kills explains one death: two workers that are killed together are told so both."""
    file = tmp_path / "memory.events"
    file.write_text("low 0\noom 3\noom_kill 2\n")
    monkeypatch.setattr(oom, "_files_of_group", lambda: iter([str(tmp_path / "none"), str(file)]))
    kills = OomKills()
    assert kills.explain() is False
    file.write_text("low 0\noom 5\noom_kill 4\n")
    assert [kills.explain(), kills.explain(), kills.explain()] == [True, True, False]
    file.unlink()
    assert kills.explain() is None


def test_a_kill_explains_no_death_long_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was that of another process of the group."""
    file = tmp_path / "memory.events"
    file.write_text("oom_kill 0\n")
    monkeypatch.setattr(oom, "_files_of_group", lambda: iter([str(file)]))
    monkeypatch.setattr(oom, "_SOON", 0.05)
    kills = OomKills()
    file.write_text("oom_kill 2\n")
    assert kills.explain() is True
    time.sleep(0.1)
    assert kills.explain() is False


def test_without_any_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel tells nothing, nothing is known."""
    monkeypatch.setattr(oom, "_files_of_group", lambda: iter(["/not/there"]))
    monkeypatch.setattr(oom, "_MACHINE", "/proc/self/comm")
    assert OomKills().explain() is None


PROGRAM = """
import sys
from parallel_exec import ParallelExecutor
import hanging_tasks
if __name__ == "__main__":
    with ParallelExecutor(backend="process", max_concurrency=1, retry_count=0) as executor:
        print(executor.submit(hanging_tasks.use_memory).exception(30))
"""


def test_what_the_kernel_kills_for_memory_is_said_to_be(tmp_path: Path) -> None:
    """In a group of processes with too little memory, the error of the task that takes it says what happened."""
    group = _small_group(256 << 20)
    if group is None:
        pytest.skip("no group of processes can be made here")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    joined = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    environment = processes.environment(Path(FILE).parent)
    command = ["sh", "-c", joined, "sh", sys.executable, str(program)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    finally:
        work.until(lambda: not (group / "cgroup.procs").read_text().strip())
        group.rmdir()
    assert deaths._NO_MEMORY in done.stdout, done


def _small_group(size: int) -> Path | None:
    """Make a group of processes that may have so much memory; None if that is not for us to do."""
    for root, limit in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        group = Path(root) / f"parallel_exec-test-{os.getpid()}"
        if not (group.parent / "cgroup.procs").exists():
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(size))
        except OSError:
            group.rmdir()
        else:
            return group
    return None
