"""How a run ends before its input does: by a closed pipe, a full disk, a deadline, a failure, Ctrl-C."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import pytest
from program import read, run, started, wait_until


@pytest.mark.parametrize("backend", ["thread", "process"])
@pytest.mark.parametrize("mode", [(), ("--deadline", "60")], ids=["streamed", "staged"])
def test_a_closed_pipe_stops_what_runs(workdir: Path, backend: str, mode: tuple[str, ...]) -> None:
    """When nobody reads the results, what is still running or waiting is given up at once."""
    items = ("quick", *(f"wait-{number}" for number in range(1, 6)))
    options = ("-j2", "--timeout", "none", "--backend", backend, *mode)
    with started(workdir, "work:wait_for", *items, *options) as process:
        assert process.stdout.readline()
        process.stdout.close()
        wait_until(lambda: len(list(workdir.glob("started-wait-*"))) == 2)
        for item in ("wait-1", "wait-2"):
            (workdir / f"go-{item}").touch()
        assert process.wait(20) == 1
        told = process.stderr.read()
    assert told.startswith(b"stopped, because results cannot be written: Broken pipe\n")
    assert b"Traceback" not in told


def test_a_full_disk_is_told(workdir: Path) -> None:
    """Results that cannot be written end the run with a reason."""
    process = run("work:double", "a", "--output", "/dev/full", cwd=workdir)
    assert process.returncode == 1
    assert process.stderr.startswith(b"stopped, because results cannot be written: No space left on device\n")


def test_the_deadline_ends_the_run(workdir: Path) -> None:
    """Each item that was not finished has a line that says so."""
    process = run("work:wait_for", "quick", "wait-1", "wait-2", "wait-3", "-j2", "--deadline", "5", cwd=workdir)
    assert process.returncode == 1
    lines = {line["id"]: line for line in read(process.stdout)}
    assert lines.pop("quick")["success"]
    assert sorted(lines) == ["wait-1", "wait-2", "wait-3"]
    assert all(line["error"].startswith("DeadlineExceededError: ") for line in lines.values())


def test_fail_fast_cancels_the_rest(workdir: Path) -> None:
    """Each item that was cancelled has a line that says so."""
    process = run("work:fail", "a", "b", "c", "-j1", "--fail-fast", "--retries", "0", cwd=workdir)
    assert process.returncode == 1
    errors = {line["id"]: line["error"].partition(":")[0] for line in read(process.stdout)}
    assert errors == {"a": "ValueError", "b": "CancelledError", "c": "CancelledError"}
    assert b"0 succeeded, 1 failed, 2 cancelled\n" in process.stderr


@pytest.mark.parametrize("mode", [(), ("--deadline", "60")], ids=["streamed", "staged"])
@pytest.mark.parametrize("backend", ["thread", "process"])
def test_ctrl_c_keeps_what_had_finished(workdir: Path, backend: str, mode: tuple[str, ...]) -> None:
    """The finished results are written and no others, the status is 130, and no process is left."""
    items = ("quick", "wait-1", "wait-2", "wait-3")
    options = ("-j2", "--backend", backend, *mode)
    with started(workdir, "work:wait_for", *items, *options, start_new_session=True) as process:
        assert read(process.stdout.readline())[0]["id"] == "quick"
        wait_until(lambda: len(list(workdir.glob("started-wait-*"))) == 2)
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        written, told = process.communicate(timeout=20)
        assert time.monotonic() - pressed < 10
    assert process.returncode == 130
    assert written == b""
    assert told.startswith(b"interrupted; this had ended before:\n1 task in ")
    assert b"Traceback" not in told
    words = [word.read_text() for word in workdir.glob("started-wait-*")]
    assert len(words) == 2
    if backend == "process":
        assert not any(Path(f"/proc/{pid}").exists() for pid in words)


def test_ctrl_c_during_input_ends_the_run(workdir: Path) -> None:
    """Ctrl-C is heard while a line of input is awaited."""
    with started(workdir, "work:double") as process:
        process.stdin.write(b"a\n")
        process.stdin.flush()
        assert read(process.stdout.readline())[0]["result"] == "aa"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read().startswith(b"interrupted; this had ended before:\n1 task in ")


def test_ctrl_c_ends_an_inline_run(workdir: Path) -> None:
    """Ctrl-C in the middle of an item that runs in the main thread ends the run, too."""
    with started(workdir, "work:wait_for", "wait-1", "wait-2", "--backend", "inline", "--timeout", "none") as process:
        wait_until((workdir / "started-wait-1").exists)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert told.startswith(b"interrupted; this had ended before:\n0 tasks in ") and told.count(b"\n") == 2
    assert not (workdir / "started-wait-2").exists()


def test_ctrl_c_that_a_finalizer_swallows(workdir: Path) -> None:
    """What is raised in a finalizer goes nowhere: it is raised once more, and ends the run, without a word of it."""
    process = run("work:interrupt_in_finalizer", "a", "--backend", "inline", "--timeout", "none", cwd=workdir)
    assert (process.returncode, process.stdout) == (130, b"")
    assert process.stderr.startswith(b"interrupted; this had ended before:\n0 tasks in ")
    assert b"Traceback" not in process.stderr
    assert (workdir / "over").exists()


def test_ctrl_c_while_the_program_is_loaded(workdir: Path) -> None:
    """It ends the program without a traceback."""
    (workdir / "argparse.py").write_text("raise KeyboardInterrupt\n")  # found first, as `python -m` looks here
    process = run("work:double", "a", cwd=workdir)
    assert (process.returncode, process.stdout, process.stderr) == (130, b"", b"")


def test_a_second_ctrl_c_does_not_wait_for_a_reader(workdir: Path) -> None:
    """A reader that has stopped reading cannot keep the program alive."""
    with started(workdir, "work:big", *map(str, range(20))) as process:
        select.select([process.stdout], [], [], 20)  # the pipe is full soon after, as 200 kB do not fit
        process.send_signal(signal.SIGINT)
        # The first one is answered when the executor has ended, and only the writer is left beside the main thread.
        wait_until(lambda: len(os.listdir(f"/proc/{process.pid}/task")) == 2)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
