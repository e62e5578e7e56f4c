"""`--output` and `--append`: what becomes of the file that was there."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
from interruptions import interrupt
from program import ENVIRONMENT, command, read, run, started, wait_until

from parallel_exec.cli.options import UsageError
from parallel_exec.cli.output import NewFile, open_output

if TYPE_CHECKING:
    from pathlib import Path

OLD = "of the last run\n"


@pytest.fixture
def output(workdir: Path) -> Path:
    """A file that an earlier run has left, in a folder of its own."""
    folder = workdir / "folder"
    folder.mkdir()
    (folder / "out.jsonl").write_text(OLD)
    return folder / "out.jsonl"


def is_untouched(output: Path) -> bool:
    """Return whether it is as it was, and alone."""
    return output.read_text() == OLD and os.listdir(output.parent) == [output.name]


@pytest.mark.parametrize(
    "arguments",
    [
        ["work:duoble", "a"],
        ["work:double", "a", "--timeout", "0"],
        ["work:double", "a", "--priority", "work:lenght"],
        ["work:double", "--file", "."],
    ],
)
def test_a_run_that_is_refused_leaves_it_alone(workdir: Path, output: Path, arguments: list[str]) -> None:
    """Nothing is written before usage is known to be good."""
    assert run(*arguments, "--output", str(output), cwd=workdir).returncode == 2
    assert is_untouched(output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_without_a_result_leaves_it_alone(workdir: Path, output: Path, number: signal.Signals) -> None:
    """What ends before it has a line has nothing to put there."""
    with started(workdir, "work:wait_for", "wait", "--output", str(output)) as process:
        wait_until((workdir / "started-wait").exists)
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert is_untouched(output)


def test_a_full_disk_leaves_it_alone(workdir: Path, output: Path) -> None:
    """If not even the first lines can be written, those that were there stay."""

    def leave_no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    with started(workdir, "work:double", "a", "--output", str(output), preexec_fn=leave_no_room) as process:
        told = process.communicate(timeout=20)[1]
    assert process.returncode == 1
    assert told.startswith(b"stopped, because results cannot be written: File too large\n")
    assert is_untouched(output)


def test_the_first_lines_take_its_place(workdir: Path, output: Path) -> None:
    """From then on lines are there as soon as they are written, and Ctrl-C leaves those that are."""
    with started(workdir, "work:wait_for", "quick", "wait-1", "wait-2", "--output", str(output)) as process:
        wait_until(lambda: output.read_text() != OLD)
        assert [line["id"] for line in read(output.read_text())] == ["quick"]
        (workdir / "go-wait-1").touch()
        wait_until(lambda: len(output.read_text().splitlines()) == 2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert [line["id"] for line in read(output.read_text())] == ["quick", "wait-1"]
    assert os.listdir(output.parent) == [output.name]


def test_a_run_without_items_empties_it(workdir: Path, output: Path) -> None:
    """A run that came to its end has no lines: what reads the file next must not take the old ones for its."""
    assert run("work:double", "--output", str(output), cwd=workdir).returncode == 0
    assert output.read_text() == ""


def test_it_keeps_its_permissions(workdir: Path, output: Path) -> None:
    """The new file is as open to others as the one before, and a file where there was none as the umask says."""
    output.chmod(0o604)
    fresh = output.with_name("fresh")
    usual = output.with_name("usual")
    usual.touch()
    for path in (output, fresh):
        assert run("work:double", "a", "--output", str(path), cwd=workdir).returncode == 0
    assert stat.S_IMODE(output.stat().st_mode) == 0o604
    assert fresh.stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize("dangling", [False, True])
def test_a_symbolic_link_stays_one(workdir: Path, output: Path, dangling: bool) -> None:
    """What it leads to is replaced, or made."""
    link = workdir / "link"
    link.symlink_to("folder/out.jsonl")
    if dangling:
        output.unlink()
    assert run("work:double", "a", "--output", "link", cwd=workdir).returncode == 0
    assert link.is_symlink()
    assert read(output.read_text())[0]["result"] == "aa"


def test_a_descriptor_by_its_name_is_written_to(workdir: Path, output: Path) -> None:
    """`/dev/fd/3` is what the shell has opened there, and not a name of the file."""
    before = output.stat().st_ino
    with output.open("w") as file:
        way = command("work:double", "a", "--output", f"/dev/fd/{file.fileno()}")
        subprocess.run(
            way, cwd=workdir, pass_fds=[file.fileno()], env=ENVIRONMENT, check=True, stderr=subprocess.DEVNULL
        )
    assert read(output.read_text())[0]["result"] == "aa"
    assert output.stat().st_ino == before


def test_a_pipe_is_written_to(workdir: Path) -> None:
    """What is no file is no file afterwards."""
    pipe = workdir / "pipe"
    os.mkfifo(pipe)
    with started(workdir, "work:double", "a", "--output", "pipe") as process:
        assert read(pipe.read_text())[0]["result"] == "aa"
        assert process.wait(20) == 0
    assert pipe.is_fifo()


@pytest.mark.parametrize("left", [OLD, "", '{"index": 3, "id'])
def test_lines_are_added(workdir: Path, output: Path, left: str) -> None:
    """With `--append` the file keeps what it has, and a line that a killed run has left unfinished spoils no other."""
    output.write_text(left)
    for item in ("a", "b"):
        assert run("work:double", item, "--output", str(output), "--append", cwd=workdir).returncode == 0
    text = output.read_text()
    assert text.startswith(left)
    assert [line["result"] for line in read("\n".join(text.splitlines()[-2:]))] == ["aa", "bb"]
    assert len(text.splitlines()) == 2 + bool(left)


def test_lines_are_added_to_a_file_that_is_not_there_yet(workdir: Path) -> None:
    """The first run with `--append` makes the file."""
    assert run("work:double", "a", "--output", "new.jsonl", "--append", cwd=workdir).returncode == 0
    assert read((workdir / "new.jsonl").read_text())[0]["result"] == "aa"


def test_append_needs_a_file(workdir: Path) -> None:
    """Standard output is the shell's to append."""
    process = run("work:double", "a", "--append", cwd=workdir)
    assert process.returncode == 2
    assert b"--append needs --output FILE" in process.stderr


@pytest.mark.parametrize("path", ["", "absent/", "folder", "folder/"])
def test_what_can_be_no_file_is_refused(workdir: Path, output: Path, path: str) -> None:
    """Neither is a file made elsewhere."""
    before = sorted(os.listdir(workdir))
    process = run("work:touch", "a", "--output", path, cwd=workdir)
    assert process.returncode == 2
    assert b"cannot open" in process.stderr
    assert set(os.listdir(workdir)) - {"__pycache__"} == set(before)
    assert is_untouched(output)


def test_a_folder_that_takes_no_new_file(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told which folder that is, and what to do instead."""
    monkeypatch.setattr(os, "urandom", bytes)
    (output.parent / f".parallel-exec-{bytes(8).hex()}.part").mkdir()
    with contextlib.ExitStack() as open_files, pytest.raises(UsageError) as caught:
        open_output(str(output), False, open_files)
    assert f"cannot replace '{output}': a new file in '{output.parent}': File exists; --append" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any file")
def test_a_file_that_may_not_be_written_to_is_not_replaced(output: Path) -> None:
    """That its folder would allow it makes no difference."""
    output.chmod(0o400)
    with contextlib.ExitStack() as open_files, pytest.raises(UsageError, match="may not be written to"):
        open_output(str(output), False, open_files)
    assert is_untouched(output)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_ctrl_c_as_it_is_tried_whether_a_file_can_be_made(tmp_path: Path) -> None:
    """Wherever it comes no file is left beside the path."""
    for step in itertools.count(1):
        has_more = interrupt(lambda: NewFile(str(tmp_path / "results")), step)
        assert not list(tmp_path.iterdir()), step
        if not has_more:
            break
    assert step > 50
