"""A run that is killed at any moment, again and again: nothing that was committed is lost, or runs again.

Few rounds are the rule; so many, by a seed of one's own, are asked for by the environment:

    TORTURE_ROUNDS=30 TORTURE_SEED=7 python -m pytest -s tests/journal/test_torture.py
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

import disk
import marathon
import pytest
import statements
from marathon import Marathon, committed

ROUNDS = int(os.environ.get("TORTURE_ROUNDS", "4"))
SEED = int(os.environ.get("TORTURE_SEED", "11"))
COUNT = 2000  # tasks
FEW = 250  # tasks that take a moment, one after the other: a few transactions
LONGEST = 1.5  # seconds that a run may last before it is killed: about what it takes

pytestmark = [
    pytest.mark.timeout(90 + 10 * ROUNDS),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it reads /proc"),
]


@pytest.mark.parametrize("way", ["execute_all", "stream"])
@pytest.mark.parametrize("backend", ["thread", "process"])
def test_killed_again_and_again(backend: str, way: str, tmp_path: Path) -> None:
    """After each kill all is there but the last half second, and in the end each task has exactly one record."""
    moments = random.Random(SEED)
    run, lost = Marathon(tmp_path / "0", backend, way, COUNT), 0.0
    for number in range(1, ROUNDS + 1):
        process = run.start()
        time.sleep(moments.uniform(0, LONGEST))
        run.check(marathon.kill(process))
        print(f"\nkill {number}: {len(run.committed)} of {COUNT} committed, {run.lost:.3f} s of work lost", end="")
        lost = max(lost, run.lost)
        if len(run.committed) == COUNT and moments.random() < 0.8:  # the others are killed while they resume
            run = Marathon(tmp_path / str(number), backend, way, COUNT)
    before = len(run.committed)
    assert run.finish() == before
    assert run.committed == set(range(COUNT))
    print(f"\nseed {SEED}, {ROUNDS} kills, {backend}, {way}: at most {lost:.3f} s of work lost")


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a child that may have ended, but was not waited for yet, and let it go on at the end."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    yield
    os.kill(pid, signal.SIGCONT)


def test_stopped_and_copied(tmp_path: Path) -> None:
    """Whenever the files are copied, the copy can be read, has what an earlier one had, and can be gone on with."""
    moments = random.Random(SEED)
    run = Marathon(tmp_path / "run", "thread", "execute_all", COUNT)
    process = run.start()
    copies: list[Path] = []
    before: set[int] = set()
    while process.poll() is None:
        time.sleep(moments.uniform(0, 0.03))
        with stopped(process.pid):
            copies.append(tmp_path / str(len(copies)))
            copies[-1].mkdir()
            marathon.copy(run.journal, copies[-1])
        now = committed(copies[-1] / run.journal.name)
        assert before <= now
        before = now
    assert process.communicate() == ("resumed 0\n", "")
    assert before <= committed(run.journal) == set(range(COUNT))
    for folder in moments.sample(copies, 3):
        resumed = len(committed(folder / run.journal.name))
        assert marathon.run("thread", "execute_all", folder, COUNT) == f"resumed {resumed}"


@pytest.mark.parametrize("how", ["kill", "once", "on"])
def test_at_each_statement(how: str, tmp_path: Path) -> None:
    """Killed at any statement, or when it fails: the file is whole, and no result is lost in silence."""
    done = subprocess.run(
        [sys.executable, statements.__file__, how, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5


@pytest.mark.skipif(not disk.has_strace(), reason="it needs strace, and to be allowed to trace")
def test_the_power_is_cut(tmp_path: Path) -> None:
    """Whatever of what was not synced a cut of the power leaves: all is there that an earlier sync has brought to the disk."""
    moments = random.Random(SEED)
    run, calls = Marathon(tmp_path / "run", "inline", "execute_all", FEW), tmp_path / "calls"
    process = run.start(*disk.strace(calls))
    assert process.communicate()[0] == "resumed 0\n"
    machine, promised = disk.Disk(), set[int]()
    for number, call in enumerate(disk.read(calls, run.journal)):
        machine.apply(call)
        if call.name != "sync" and moments.random() > ROUNDS / 16:
            continue
        for kind, files in enumerate(machine.cuts(moments)):
            folder = tmp_path / f"{number}-{kind}"
            folder.mkdir()
            disk.lay_out(files, folder)
            now = committed(folder / run.journal.name)
            assert promised <= now, f"lost after call {number}, {call.name} of {call.file}"
            if kind == 0 and call.name == "sync":
                promised = now
            if moments.random() < 0.1 or not now:
                assert marathon.run("inline", "execute_all", folder, 1) == f"resumed {len(now & {0})}"
    assert promised == set(range(FEW))
