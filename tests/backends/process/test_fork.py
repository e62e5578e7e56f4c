"""Workers that are made by `fork` are as new processes are: nothing of the thread that forked them shows."""

from __future__ import annotations

import os
import signal
from multiprocessing import spawn as mp_spawn
from pathlib import Path
from typing import Any

import processes
import pytest
import script
import work

from parallel_exec.backends.process import fork_server, mp_process, start_method

METHODS = ("forkserver", "spawn", "fork")
FORK = {"mp_context": "fork"}


@pytest.mark.parametrize("method", METHODS)
def test_the_task_runs_in_the_main_thread(pool: Any, method: str) -> None:
    """It is called so, is no daemon, has no copies of threads beside it, and may set signal handlers."""
    name, is_main, is_daemon, others = (
        pool(backend={"mp_context": method}).submit(work.describe_thread).result(work.SOON)
    )
    assert (name, is_main, is_daemon, others) == ("MainThread", True, False, [])


@pytest.mark.parametrize("method", METHODS)
def test_a_thread_that_a_task_leaves_is_waited_for(pool: Any, log: Any, method: str) -> None:
    """One that is no daemon comes to its end before the worker does, as in any process."""
    executor = pool(backend={"mp_context": method})
    assert executor.submit(work.note_later, log, 0.3).result(work.SOON) is False
    executor.shutdown()
    assert log.lines() == ["later"]


@pytest.mark.parametrize("inner", METHODS)
@pytest.mark.parametrize("outer", METHODS)
def test_a_task_that_starts_processes(tmp_path: Path, outer: str, inner: str) -> None:
    """By any start method, in a worker made by any, also of a function of the main module."""
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, sys\n"
        "from parallel_exec import ParallelExecutor, ProcessBackend\n"
        "def answer(sender):\n"
        "    sender.send(__name__)\n"
        "def ask(method):\n"
        "    context = multiprocessing.get_context(method)\n"
        "    receiver, sender = context.Pipe(False)\n"
        "    child = context.Process(target=answer, args=(sender,))\n"
        "    child.start()\n"
        "    sender.close()\n"
        "    name = receiver.recv()\n"
        "    child.join()\n"
        "    return name, child.exitcode\n"
        "if __name__ == '__main__':\n"
        "    backend = ProcessBackend(mp_context=sys.argv[1])\n"
        "    with ParallelExecutor(max_concurrency=2, backend=backend, retry_count=0, timeout=12) as executor:\n"
        "        print(*{future.result(14) for future in [executor.submit(ask, sys.argv[2]) for _ in range(3)]})\n"
    )
    with processes.python(str(program), outer, inner, env=processes.environment()) as process:
        out, _ = process.communicate(timeout=40)
    expected = "__main__" if outer == inner == "fork" else "__mp_main__"
    assert out.strip() == f"({expected!r}, 0)"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_amid_a_start(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is changed in `multiprocessing` while a worker is started is as it was in a child that is forked just then."""
    original = mp_spawn.get_preparation_data
    with mp_process._WithoutMain():
        assert mp_spawn.get_preparation_data is not original
        child = os.fork()
        if not child:
            os._exit(0 if mp_spawn.get_preparation_data is original else 3)
        assert os.waitpid(child, 0)[1] == 0
    assert mp_spawn.get_preparation_data is original


def test_signals_of_the_workers_do_not_reach_the_parents_event_loop(pool: Any) -> None:
    """The file by which it hears of them is not theirs."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.set_blocking(reading, False)
    handler = signal.signal(signal.SIGUSR1, lambda *_: None)
    before = signal.set_wakeup_fd(writing)
    try:
        assert pool(backend=FORK).submit(signal.raise_signal, signal.SIGUSR1).result(work.SOON) is None
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGUSR1, handler)
        os.close(reading)
        os.close(writing)


# ── a program that is started in place of Python ────────────────────────────────────────────────────────────────────

FROZEN = """\
import os, sys
with open(sys.argv[0] + ".starts", "a") as starts:
    starts.write("x")
if os.path.getsize(sys.argv[0] + ".starts") > 12:
    os._exit(1)  # a fuse
import multiprocessing
sys.frozen = True
multiprocessing.set_executable(sys.argv[0] + ".sh")

from parallel_exec import ParallelExecutor, ProcessBackend

def main():
    method = os.environ["METHOD"]
    with ParallelExecutor(max_concurrency=4, retry_count=0, backend=ProcessBackend(mp_context=method)) as executor:
        errors = {type(future.exception(30)).__name__ for future in [executor.submit(abs, -1) for _ in range(4)]}
    print("SAID", *errors, flush=True)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(("method", "said", "most"), [("fork", "NoneType", 1), ("spawn", "WorkerStartError", 12)])
def test_a_frozen_application_without_freeze_support(tmp_path: Path, method: str, said: str, most: int) -> None:
    """It is not started again and again: a start in place of a worker is refused, and `fork` starts nothing else at all."""
    program = tmp_path / "app.py"
    program.write_text(FROZEN)
    wrapper = tmp_path / "app.py.sh"
    wrapper.write_text(f'#!/bin/sh\nexec {script.sys.executable} {program} "$@"\n')
    wrapper.chmod(0o755)
    environment = {**processes.environment(), "METHOD": method}
    with processes.python(str(program), env=environment) as process:
        out, err = process.communicate(timeout=60)
    assert out.split() == ["SAID", said]
    assert (tmp_path / "app.py.starts").stat().st_size <= most
    assert ("freeze_support() first" in err) == (method != "fork")


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["--multiprocessing-fork", "tracker_fd=5", "pipe_handle=7"], True),
        (["-B", "-S", "-c", "from multiprocessing.resource_tracker import main;main(5)"], True),
        (["-c", "from multiprocessing.forkserver import main; main(7, 9)"], True),
        (["-B", "-c", fork_server.CODE + "more"], True),
        (["-c", "config.toml"], False),
        (["file", "--multiprocessing-fork"], False),
        ([], False),
    ],
)
def test_how_such_a_start_is_known(monkeypatch: pytest.MonkeyPatch, words: list[str], refused: bool) -> None:
    """By the command line that `multiprocessing` makes for Python."""
    monkeypatch.setattr("sys.argv", ["app", *words])
    reason = start_method.forbidden()
    assert (reason is not None and "freeze_support" in reason) == refused
