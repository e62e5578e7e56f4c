"""`map --journal`: what is kept and not run again; and `journal`: what there is to see of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from program import BACKENDS, ENVIRONMENT, command, read, run, started, wait_until

from parallel_exec import Journal, ParallelExecutor, Task

if TYPE_CHECKING:
    from pathlib import Path

COUNTING = '''
import os, time
from pathlib import Path

def count(item):
    """Note the call in a file, and fail for what is bad, unless that was mended."""
    with open("calls", "a") as calls:
        calls.write(f"{item}\\n")
    if "bad" in item and not Path("mended").exists():
        raise ValueError(f"no {item}")
    while "wait" in item and not Path("go").exists():
        time.sleep(0.01)
    return item * 2

class Odd:
    def __repr__(self): return "<odd>"

def remove(item):
    os.unlink("run.db")
    return item

def odd(item):
    print("odd is called")
    return Odd()

def locked(item):
    import threading
    return threading.Lock()
'''
MODES = pytest.mark.parametrize("mode", [(), ("--deadline", "60")], ids=["streamed", "staged"])
JOURNAL = ("--journal", "run.db")


@pytest.fixture
def counting(workdir: Path) -> Path:
    """A directory with a module whose callable notes its calls."""
    (workdir / "counting.py").write_text(COUNTING)
    return workdir


def calls(folder: Path) -> list[str]:
    """Return the items that the callable was called with since this was asked last, in order."""
    path = folder / "calls"
    found = sorted(path.read_text().splitlines()) if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def lines_of(process: subprocess.CompletedProcess[bytes]) -> dict[str, dict[str, Any]]:
    """Return the lines that were written, by their ids."""
    return {line["id"]: line for line in read(process.stdout)}


def show(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """Run the `journal` command."""
    way = [*command()[:-1], "journal", *arguments]
    return subprocess.run(way, cwd=cwd, capture_output=True, timeout=40, env=ENVIRONMENT, check=False)


# ── map ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@MODES
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_has_succeeded_is_not_run_again(counting: Path, backend: str, mode: tuple[str, ...]) -> None:
    """Its line is written again and says so; what has failed, and what is new, runs."""
    how = (*JOURNAL, "--retries", "0", "--backend", backend, *mode)
    first = run("counting:count", "a", "bad", "b", *how, cwd=counting)
    assert first.returncode == 1
    assert calls(counting) == ["a", "b", "bad"]
    assert not any("resumed" in line for line in read(first.stdout))

    (counting / "mended").touch()
    second = run("counting:count", "a", "bad", "b", "c", *how, cwd=counting)
    assert second.returncode == 0, second.stderr.decode()
    assert calls(counting) == ["bad", "c"]
    lines, before = lines_of(second), lines_of(first)
    assert {name for name, line in lines.items() if line.get("resumed")} == {"a", "b"}
    for name in ("a", "b"):
        assert {**before[name], "resumed": True} == lines[name]
    assert [lines[name]["index"] for name in ("a", "bad", "b", "c")] == [1, 2, 3, 4]
    assert b"4 succeeded, 2 taken from the journal\n" in second.stderr

    third = run("counting:count", "a", "bad", "b", "c", *how, cwd=counting)
    assert calls(counting) == []
    assert all(line["resumed"] and line["success"] for line in read(third.stdout))


@MODES
def test_what_has_failed_need_not_run_again(counting: Path, mode: tuple[str, ...]) -> None:
    """With `--no-retry-failed` its error comes back, and with `--retry-failed` it runs, as without either."""
    how = (*JOURNAL, "--retries", "0", *mode)
    first = run("counting:count", "a", "bad", *how, cwd=counting)
    calls(counting)
    second = run("counting:count", "a", "bad", "b", *how, "--no-retry-failed", "--traceback", cwd=counting)
    assert second.returncode == 1
    assert calls(counting) == ["b"]
    line = lines_of(second)["bad"]
    assert "in count\n" in line.pop("traceback")
    assert {**lines_of(first)["bad"], "resumed": True} == line
    assert b"2 succeeded, 1 failed, 2 taken from the journal\nfailed:\n  bad: ValueError: no bad\n" in second.stderr
    run("counting:count", "a", "bad", "b", *how, "--retry-failed", cwd=counting)
    assert calls(counting) == ["bad"]


def test_a_failure_that_comes_back_fails_fast(counting: Path) -> None:
    """It is the first failure, and cancels the rest."""
    run("counting:count", "bad", *JOURNAL, "--retries", "0", cwd=counting)
    calls(counting)
    process = run("counting:count", "bad", "b", *JOURNAL, "--no-retry-failed", "--fail-fast", cwd=counting)
    assert process.returncode == 1
    assert calls(counting) == []


@MODES
def test_an_item_that_comes_again_has_a_name_of_its_own(counting: Path, mode: tuple[str, ...]) -> None:
    """Each runs once, also one that looks like such a name; and each is known again."""
    items = ("a", "a", "a #2", "b", "a")
    first = run("counting:count", *items, *JOURNAL, "--keep-order", *mode, cwd=counting)
    assert first.returncode == 0, first.stderr.decode()
    assert calls(counting) == ["a", "a", "a", "a #2", "b"]
    assert [line["id"] for line in read(first.stdout)] == ["a", "a #2", "a #2 #2", "b", "a #3"]
    assert [line["result"] for line in read(first.stdout)] == [item * 2 for item in items]
    second = run("counting:count", *items, *JOURNAL, "--keep-order", *mode, cwd=counting)
    assert calls(counting) == []
    assert [{**line, "resumed": True} for line in read(first.stdout)] == read(second.stdout)


@MODES
@pytest.mark.parametrize("backend", ["thread", "process"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_cut_off_goes_on(
    counting: Path, backend: str, mode: tuple[str, ...], number: signal.Signals
) -> None:
    """What it has written is not run again, once that was half a second ago."""
    items = ("a", "b", "wait")
    how = (*JOURNAL, "--backend", backend, *mode)
    with started(counting, "counting:count", *items, *how) as process:
        for _ in range(2):
            assert process.stdout.readline()
        wait_until(lambda: (counting / "calls").read_text().count("wait") == 1)
        wait_until(lambda: Journal(str(counting / "run.db")).summary().succeeded == 2)
        process.send_signal(number)
        process.communicate(timeout=20)
    calls(counting)
    (counting / "go").touch()
    again = run("counting:count", *items, *how, cwd=counting)
    assert again.returncode == 0, again.stderr.decode()
    assert calls(counting) == ["wait"]
    assert sorted(lines_of(again)) == ["a", "b", "wait"]
    how_it_ended = [one.how for one in Journal(str(counting / "run.db")).summary().runs]
    assert how_it_ended == ["killed" if number == signal.SIGKILL else "interrupted", "finished"]


def test_another_callable_runs_again(counting: Path) -> None:
    """The same items are other calls then."""
    run("counting:count", "a", *JOURNAL, cwd=counting)
    process = run("work:double", "a", *JOURNAL, cwd=counting)
    assert "resumed" not in read(process.stdout)[0]


def test_any_bytes_and_json_are_known_again(workdir: Path) -> None:
    """An item is known by its text, whatever that is."""
    json_lines = b'"caf\xc3\xa9"\n"\\udc80"\n[1, {"a": null}]\n1\n'
    names = b"caf\xe9\n\xff\n"
    for _ in range(2):
        values = run("work:double", "--json", *JOURNAL, cwd=workdir, stdin=json_lines)
        texts = run("work:path_of", *JOURNAL, cwd=workdir, stdin=names)
    assert len(read(values.stdout)) == 4 and len(read(texts.stdout)) == 2
    assert all(line["resumed"] for line in read(values.stdout) + read(texts.stdout))


def test_a_result_that_json_cannot_carry_comes_back(counting: Path) -> None:
    """It was kept as what it was, and its line has its repr again."""
    first = run("counting:odd", "a", *JOURNAL, cwd=counting)
    second = run("counting:odd", "a", *JOURNAL, cwd=counting)
    [line], [again] = read(first.stdout), read(second.stdout)
    assert line["result"] == "<odd>" and line["repr"]
    assert {**line, "resumed": True} == again


def test_a_result_that_cannot_be_kept_runs_again(counting: Path) -> None:
    """That is told, and its line is written."""
    for _ in range(2):
        process = run("counting:locked", "a", *JOURNAL, cwd=counting)
        assert process.returncode == 0
        assert "lock" in read(process.stdout)[0]["result"]
        assert b"the journal has no value of task 'a', which will run again" in process.stderr


@MODES
def test_a_journal_that_is_deleted_meanwhile(counting: Path, mode: tuple[str, ...]) -> None:
    """The run goes on; at its end it is told that the journal is incomplete, and the status is 1."""
    process = run("counting:remove", "a", *JOURNAL, *mode, cwd=counting)
    assert process.returncode == 1
    assert read(process.stdout)[0]["success"]
    told = process.stderr.decode().splitlines()
    assert told[-2].endswith(": 1 succeeded")
    assert told[-1].startswith("the journal is incomplete, ")
    assert "it was deleted while the run went on" in told[-1]


def test_a_journal_in_use_is_refused(counting: Path) -> None:
    """It says who has it, and the file of the lines is as it was."""
    (counting / "out").write_text("old\n")
    with started(counting, "counting:count", "wait", *JOURNAL) as process:
        wait_until((counting / "calls").exists)
        for mode in ((), ("--deadline", "60")):
            second = run("counting:count", "b", *JOURNAL, "--output", "out", *mode, cwd=counting)
            assert second.returncode == 2
            assert f"{process.pid}" in second.stderr.decode()
            assert b"Traceback" not in second.stderr
            assert (counting / "out").read_text() == "old\n"
        (counting / "go").touch()
        process.communicate(timeout=20)
    assert calls(counting) == ["wait"]


@pytest.mark.parametrize("mode", [(), ("--deadline", "60")])
def test_a_file_that_is_no_journal_is_refused(counting: Path, mode: tuple[str, ...]) -> None:
    """Nothing runs, and the file stays as it is."""
    (counting / "run.db").write_text("something of the user's\n" * 100)
    process = run("counting:count", "a", *JOURNAL, *mode, cwd=counting)
    assert process.returncode == 2
    assert process.stderr.startswith(b"parallel-exec: error: journal 'run.db': ")
    assert b"Traceback" not in process.stderr
    assert calls(counting) == []
    assert (counting / "run.db").read_text() == "something of the user's\n" * 100


@MODES
@pytest.mark.parametrize("order", [(), ("--keep-order",)], ids=["completed", "ordered"])
def test_an_item_that_is_refused_puts_no_line_into_a_run_that_is_refused(
    counting: Path, mode: tuple[str, ...], order: tuple[str, ...]
) -> None:
    """The file of the lines is as it was; once the journal can be used, it has the item's line in its place."""
    (counting / "out").write_text("old\n")
    (counting / "run.db").write_text("something of the user's\n" * 100)
    how = ("--json", "counting:count", '"a"', "no JSON", '"b"', *JOURNAL, "--output", "out", *mode, *order)
    process = run(*how, cwd=counting)
    assert process.returncode == 2
    assert (counting / "out").read_text() == "old\n"
    (counting / "run.db").unlink()
    process = run(*how, cwd=counting)
    assert process.returncode == 1
    lines = read((counting / "out").read_bytes())
    assert {line["index"]: line["success"] for line in lines} == {1: True, 2: False, 3: True}
    if order:
        assert [line["index"] for line in lines] == [1, 2, 3]


def test_the_journal_by_another_name_is_not_written_over(counting: Path) -> None:
    """A hard link leads to the same file."""
    run("counting:count", "a", *JOURNAL, cwd=counting)
    os.link(counting / "run.db", counting / "out")
    for mode in ((), ("--append",)):
        process = run("counting:count", "b", *JOURNAL, "--output", "out", *mode, cwd=counting)
        assert process.returncode == 2
        assert b"--output 'out' is the journal" in process.stderr
    assert [result.task.id for result in Journal(counting / "run.db").results()] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--no-retry-failed",), "--no-retry-failed needs --journal FILE"),
        (("--retry-failed",), "--retry-failed needs --journal FILE"),
        (("--journal", "run.db", "--output", "./run.db"), "--output './run.db' is the journal"),
        (("--journal", "absent/run.db"), "absent/run.db"),
        (("--journal", ""), "--journal"),
    ],
)
def test_bad_usage_is_refused(counting: Path, arguments: tuple[str, ...], message: str) -> None:
    """Nothing runs."""
    process = run("counting:count", "a", *arguments, cwd=counting)
    assert process.returncode == 2
    assert message in process.stderr.decode()
    assert calls(counting) == []
    assert not (counting / "run.db").exists()


# ── journal ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def journaled(counting: Path) -> Path:
    """The same directory, with the journal of two runs."""
    run("counting:count", "a", "b", *JOURNAL, cwd=counting)
    run("counting:count", "a", "b", "bad", "worse, bad", "c", *JOURNAL, "--retries", "0", cwd=counting)
    return counting


def test_the_journal_is_shown(journaled: Path) -> None:
    """Its runs, how many have succeeded, and the failures."""
    process = show("run.db", cwd=journaled)
    assert process.returncode == 0, process.stderr.decode()
    assert process.stderr == b""
    text = process.stdout.decode()
    assert "3 succeeded, 2 failed" in text
    assert text.count("finished") == 2
    failures = text.partition("failed:\n")[2].splitlines()
    assert sorted(failures) == ["  bad: ValueError: no bad", "  worse, bad: ValueError: no worse, bad"]


def test_the_journal_as_lines(journaled: Path) -> None:
    """A line for each task, as `map` writes it but for the index."""
    process = show("run.db", "--json", cwd=journaled)
    assert process.returncode == 0, process.stderr.decode()
    lines = {line["id"]: line for line in read(process.stdout)}
    assert sorted(lines) == ["a", "b", "bad", "c", "worse, bad"]
    assert list(lines["a"]) == ["id", "success", "result", "error", "attempts", "duration"]
    assert lines["a"]["result"] == "aa"
    assert (lines["bad"]["success"], lines["bad"]["error"]) == (False, "ValueError: no bad")


def test_the_successes_alone(journaled: Path) -> None:
    """`--export` has no failures, with `--json` or without."""
    for options in (("--export",), ("--export", "--json")):
        lines = read(show("run.db", *options, cwd=journaled).stdout)
        assert sorted(line["id"] for line in lines) == ["a", "b", "c"]


def test_tracebacks_on_request(journaled: Path) -> None:
    """A failed line has where in the user's code it failed."""
    lines = {line["id"]: line for line in read(show("run.db", "--json", "--traceback", cwd=journaled).stdout)}
    assert "in count\n" in lines["bad"]["traceback"]
    assert "traceback" not in lines["a"]


def test_a_journal_is_read_during_its_run(counting: Path) -> None:
    """What was finished half a second ago is there, and the run is shown as running."""
    with started(counting, "counting:count", "a", "wait", *JOURNAL) as process:
        wait_until(lambda: b"1 succeeded" in show("run.db", cwd=counting).stdout)
        assert [line["id"] for line in read(show("run.db", "--json", cwd=counting).stdout)] == ["a"]
        assert b"running" in show("run.db", cwd=counting).stdout
        process.kill()
        process.communicate(timeout=20)


def test_only_lines_go_to_standard_output(counting: Path) -> None:
    """A module that prints as it is imported for a result prints elsewhere."""
    (counting / "loud.py").write_text("print('imported')\nclass Loud:\n    pass\ndef make(item):\n    return Loud()\n")
    run("loud:make", "a", *JOURNAL, cwd=counting)
    process = show("run.db", "--json", cwd=counting)
    assert len(read(process.stdout)) == 1
    assert process.stderr == b"imported\n"


def test_a_program_s_journal_with_its_own_codec(workdir: Path) -> None:
    """`--decode` names what makes results of what the program's `encode` has made; else that is shown."""
    journal = Journal(workdir / "run.db", encode=json.dumps, decode=json.loads)
    with ParallelExecutor() as executor:
        executor.add_task(Task(dict, [("k", 1)], id="one"))
        executor.execute_all(journal=journal)
    process = show("run.db", "--json", "--decode", "json:loads", cwd=workdir)
    assert process.returncode == 0, process.stderr.decode()
    assert [line["result"] for line in read(process.stdout)] == [{"k": 1}]
    assert b"1 succeeded" in show("run.db", cwd=workdir).stdout
    assert [line["result"] for line in read(show("run.db", "--json", cwd=workdir).stdout)] == ['{"k": 1}']


def test_decode_for_pickles_is_refused(journaled: Path) -> None:
    """It is told how the values were recorded."""
    process = show("run.db", "--json", "--decode", "json:loads", cwd=journaled)
    assert process.returncode == 2
    assert b"its values were recorded by pickle" in process.stderr


def test_a_result_that_cannot_be_read_back(counting: Path) -> None:
    """It is a failed line; among the successes it is missing, which is told."""
    (counting / "gone.py").write_text("class Gone:\n    pass\ndef make(item):\n    return Gone()\n")
    run("gone:make", "a", *JOURNAL, cwd=counting)
    run("counting:count", "b", *JOURNAL, cwd=counting)
    (counting / "gone.py").unlink()
    for option, ids in (("--json", ["a", "b"]), ("--export", ["b"])):
        process = show("run.db", option, cwd=counting)
        assert process.returncode == 1
        assert [line["id"] for line in read(process.stdout)] == ids
        assert process.stderr.startswith(b"1 result could not be read back: what the journal has of task 'a'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: FILE"),
        (("absent.db",), "absent.db"),
        (("counting.py",), "counting.py"),
        (("run.db", "--jsn"), "did you mean '--json'?"),
        (("run.db", "more"), "more"),
        (("run.db", "--json", "--decode", "jsn:loads"), "importing 'jsn' raised ModuleNotFoundError"),
    ],
)
def test_a_journal_that_cannot_be_shown(journaled: Path, arguments: tuple[str, ...], message: str) -> None:
    """It says why, without a traceback, and makes no file."""
    process = show(*arguments, cwd=journaled)
    assert process.returncode == 2
    assert message in process.stderr.decode()
    assert b"Traceback" not in process.stderr
    assert process.stdout == b""
    assert not (journaled / "absent.db").exists()


def test_the_command_comes_first(tmp_path: Path) -> None:
    """Who writes an option before it is told so."""
    way = [*command()[:-1], "--json", "journal", "run.db"]
    process = subprocess.run(way, cwd=tmp_path, capture_output=True, check=False)
    assert process.returncode == 2
    assert b"write parallel-exec journal FILE" in process.stderr


def test_a_reader_that_has_enough(journaled: Path) -> None:
    """It ends the command without a traceback."""
    way = [*command()[:-1], "journal", "run.db", "--json"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = subprocess.run(way, cwd=journaled, stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert process.returncode == 1
    assert process.stderr == b"stopped, because results cannot be written: Broken pipe\n"
