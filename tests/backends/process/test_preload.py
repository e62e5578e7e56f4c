"""What the fork server has imported when it forks a worker; in programs of their own, as it is one for a whole process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import processes

from parallel_exec.backends.process import preload

if TYPE_CHECKING:
    import pytest

PROGRAM = """
import os, sys
from parallel_exec import ParallelExecutor

def end():
    os._exit(1)

def loaded(name):
    return name in sys.modules

if __name__ == "__main__":
    PREPARE
    with ParallelExecutor(max_concurrency=1, backend="process", retry_count=0, timeout=20) as executor:
        for _ in range(3):
            executor.submit(os._exit, 1).exception()
        print(executor.submit(loaded, "colorsys").result())
"""


LAST_WORDS = """
import atexit, multiprocessing
from multiprocessing import forkserver

def at_the_end():
    print(forkserver._forkserver._forkserver_pid)
    process = multiprocessing.get_context("forkserver").Process(target=int)
    process.start()
    process.join()
    print(process.exitcode)

if __name__ == "__main__":
    atexit.register(at_the_end)
    from parallel_exec import ParallelExecutor

    with ParallelExecutor(max_concurrency=1, backend="process") as executor:
        print(executor.submit(pow, 2, 3).result(), flush=True)
"""


def run(folder: Path, *flags: str, prepare: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run the program, which needs four workers; the current folder is another than the program's."""
    program = folder / "programs" / "program.py"
    program.parent.mkdir()
    program.write_text(PROGRAM.replace("PREPARE", prepare))
    command = [sys.executable, *flags, str(program)]
    return subprocess.run(
        command, cwd=folder, env=processes.environment(), capture_output=True, text=True, timeout=30, check=False
    )


def test_a_replacement_imports_nothing_anew(tmp_path: Path) -> None:
    """The fork server imports what runs in a worker, once for all workers."""
    done = run(tmp_path, "-X", "importtime")
    assert done.stdout == "False\n"
    for name in ("parallel_exec.backends.process.child.main", "multiprocessing.popen_forkserver"):
        assert done.stderr.count(f" {name}\n") == 2  # the program itself, and the fork server


def test_the_first_call_starts_the_fork_server(tmp_path: Path) -> None:
    """It is not there before, and there as soon as the call is on its way; an unused executor starts nothing."""
    done = run(
        tmp_path,
        prepare="""
    from multiprocessing import forkserver
    with ParallelExecutor(max_concurrency=1, backend="process") as executor:
        assert forkserver._forkserver._forkserver_pid is None
        future = executor.submit(end)
        assert forkserver._forkserver._forkserver_pid is not None
        future.exception()
    """,
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_the_fork_server_is_left_at_exit(tmp_path: Path) -> None:
    """What was registered before, and so is called after that, finds none, and may start another one."""
    program = tmp_path / "program.py"
    program.write_text(LAST_WORDS)
    done = subprocess.run(
        [sys.executable, str(program)],
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("8\nNone\n0\n", "")


def test_what_the_fork_server_imports_is_never_collected(tmp_path: Path) -> None:
    """Workers share it with the server, and need not look through it for garbage; the collector is on in them."""
    done = run(
        tmp_path,
        prepare="""
    import gc
    with ParallelExecutor(max_concurrency=1, backend="process") as executor:
        print(executor.submit(gc.get_freeze_count).result() > 1000, executor.submit(gc.isenabled).result())
    """,
    )
    assert (done.stdout, done.stderr) == ("True True\nFalse\n", "")


def test_the_users_own_list_counts(tmp_path: Path) -> None:
    """What a program has the fork server import is imported, too."""
    done = run(tmp_path, prepare="import multiprocessing; multiprocessing.set_forkserver_preload(['colorsys'])")
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_another_version_in_the_current_folder(tmp_path: Path) -> None:
    """It is what the fork server would find; the workers run the parent's nevertheless."""
    other = tmp_path / "parallel_exec"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('the wrong version')")
    done = run(tmp_path, prepare="from parallel_exec.backends.process import preload; print(preload.is_found_anew())")
    assert (done.stdout, done.stderr) == ("False\nFalse\n", "")


def test_where_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the current folder or on PYTHONPATH, if nothing else of the name comes before; and not if there is none at all."""
    home = Path(preload.__file__).parents[3]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(home))
    assert preload.is_found_anew()
    (tmp_path / "other" / "parallel_exec").mkdir(parents=True)
    (tmp_path / "other" / "parallel_exec" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "other"), str(home)]))
    assert not preload.is_found_anew()
    monkeypatch.chdir(home)
    assert preload.is_found_anew()


def test_a_current_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is certain, and nothing raised."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert not preload.is_found_anew()
