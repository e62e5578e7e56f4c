"""The command line, as real processes: what comes in, what goes out, and how it ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import termios
import time
from pathlib import Path
from typing import Any, Callable

import pytest

BACKENDS = ("thread", "process", "inline")
WORK = '''
import os, time
from pathlib import Path

def double(item): return item * 2
def length(item): return len(item)
def half(item): return len(item) / 2
def no_rank(item): return {"a": 1}[item]
def fail(item): raise ValueError(f"no {item}")
def fail_on_bad(item): return {"good": 1}[item]
def nan(item): return float("nan")
def big(item): return "x" * 200_000
def bytes_in_a_list(item): return [item.encode()]
def path_of(item): return os.fsencode(item).hex()

def circle(item):
    circle = []
    circle.append(circle)
    return circle

class Odd:
    def __repr__(self): raise RuntimeError("no repr")

def odd(item): return Odd()

def twice(item):
    """Fail at the first attempt, which leaves a file."""
    try:
        Path(item).touch(exist_ok=False)
    except FileExistsError:
        return item
    raise OSError("the first time")

def wait_for(item):
    """Leave word of having started; return at once, or for a "wait" item when the file "go-<item>" is there."""
    Path(f"started-{item}").write_text(str(os.getpid()))
    while item.startswith("wait") and not Path(f"go-{item}").exists():
        time.sleep(0.01)
    return item

class Holder:
    @staticmethod
    def method(item): return "held " + item

not_callable = 3
'''


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A directory with a module of callables."""
    (tmp_path / "work.py").write_text(WORK)
    return tmp_path


def command(*arguments: str) -> list[str]:
    """Return the command line of a `map`."""
    return [sys.executable, "-W", "error", "-m", "parallel_exec", "map", *arguments]


def run(*arguments: str, cwd: Path, stdin: str | bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run a `map` to its end."""
    given = stdin.encode() if isinstance(stdin, str) else stdin
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        input=given,
        capture_output=True,
        timeout=40,
        env={**os.environ, **env},
        check=False,
    )


def read(text: str | bytes) -> list[dict[str, Any]]:
    """Parse JSON lines strictly: no NaN."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def results(process: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    """Return the result of each id; all of them must have succeeded."""
    assert process.returncode == 0, process.stderr.decode()
    return {line["id"]: line["result"] for line in read(process.stdout)}


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for something to be so."""
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_item_gets_one_line(workdir: Path, backend: str) -> None:
    """Every back end runs a callable of the current directory once for each argument, and a line says all there is."""
    process = run("work:double", "a", "b", "c", "--backend", backend, cwd=workdir)
    assert process.returncode == 0, process.stderr.decode()
    lines = read(process.stdout)
    assert sorted(line["id"] for line in lines) == ["a", "b", "c"]
    for line in lines:
        assert list(line) == ["id", "success", "result", "error", "attempts", "duration"]
        assert (line["success"], line["result"], line["error"]) == (True, line["id"] * 2, None)
        assert line["attempts"] == 1 and line["duration"] >= 0


def test_the_console_script_is_the_same_program(workdir: Path) -> None:
    """`parallel-exec` and `python -m parallel_exec` print the same help."""
    script = shutil.which("parallel-exec", path=sysconfig.get_path("scripts"))
    assert script is not None
    both = ([script], [sys.executable, "-m", "parallel_exec"])
    printed = [subprocess.run([*way, "--help"], capture_output=True, check=True, cwd=workdir).stdout for way in both]
    assert printed[0] == printed[1]
    assert b"exit status: 0 all succeeded" in printed[0]


def test_callables_may_be_attributes_of_attributes(workdir: Path) -> None:
    """MODULE:CALLABLE may name a method."""
    assert results(run("work:Holder.method", "x", cwd=workdir)) == {"x": "held x"}


def test_options_may_stand_anywhere(workdir: Path) -> None:
    """Options may stand between the callable and its items, and after -- an item may look like an option."""
    assert results(run("--timeout", "5", "work:double", "-j", "2", "a", "--", "-b", cwd=workdir)) == {
        "a": "aa",
        "-b": "-b-b",
    }


@pytest.mark.parametrize("how", [(), ("-",), ("--file", "-")])
def test_items_come_from_standard_input(workdir: Path, how: tuple[str, ...]) -> None:
    """Each line that is not empty is an item, whatever ends it."""
    assert results(run("work:double", *how, cwd=workdir, stdin="a\n\nb c\r\nlast")) == {
        "a": "aa",
        "b c": "b cb c",
        "last": "lastlast",
    }


def test_items_come_from_a_file(workdir: Path) -> None:
    """`--file` names a file of items."""
    (workdir / "items.txt").write_text("a\nb\n")
    assert results(run("work:double", "--file", "items.txt", cwd=workdir)) == {"a": "aa", "b": "bb"}


def test_file_names_of_any_bytes_come_through(workdir: Path) -> None:
    """A name that is no UTF-8 reaches the callable as `os.fsencode` knows it."""
    name = b"caf\xe9-\xc3\xa9"
    assert list(results(run("work:path_of", cwd=workdir, stdin=name + b"\n")).values()) == [name.hex()]


def test_json_items_are_values(workdir: Path) -> None:
    """With `--json` an item is any JSON value, from a line or from an argument."""
    lines = '[1, 2]\n{"a": 1}\n\n"s"\n'
    assert results(run("work:length", "--json", cwd=workdir, stdin=lines)) == {"[1, 2]": 2, '{"a": 1}': 1, '"s"': 1}
    assert results(run("work:double", "--json", "21", "[0]", cwd=workdir)) == {"21": 42, "[0]": [0, 0]}


def test_no_items_are_no_error(workdir: Path) -> None:
    """Empty input ends well."""
    process = run("work:double", cwd=workdir)
    assert (process.returncode, process.stdout) == (0, b"")
    assert process.stderr.startswith(b"0 tasks in ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["work"], "write MODULE:CALLABLE, for example os.path:getsize"),
        (["work:"], "write MODULE:CALLABLE"),
        (["no_such_module:f"], "ModuleNotFoundError: No module named 'no_such_module'"),
        (["broken:f"], "importing 'broken' raised ZeroDivisionError"),
        (["work:duoble"], "there is no 'duoble' in 'work'; did you mean 'double'?"),
        (["work:not_callable"], "is not callable: it is of type int"),
        (["work:double", "--priority", "work:lenght"], "did you mean 'length'?"),
        (["work:double", "--backend", "proces"], "invalid choice: 'proces'"),
        (["work:double", "-j", "0"], "--max-concurrency must be at least 1, not 0"),
        (["work:double", "--timeout", "0"], "--timeout must be more than 0 seconds"),
        (["work:double", "--timeout", "soon"], "invalid seconds value: 'soon'"),
        (["work:double", "--retries", "-1"], "--retries must be at least 0, not -1"),
        (["work:double", "--backoff", "-1"], "--backoff must be 0 seconds or more, not -1.0"),
        (["work:double", "--deadline", "-2"], "--deadline must be more than 0 seconds"),
        (["work:double", "--no-such-option"], "unrecognized arguments: --no-such-option"),
        (["work:double", "--file", "absent.txt"], "cannot open 'absent.txt': No such file or directory"),
        (["work:double", "--file", "."], "cannot open '.': Is a directory"),
        (["work:double", "x", "--file", "work.py"], "not from both"),
        (["work:double", "x", "--output", "absent/out"], "cannot open 'absent/out': No such file or directory"),
        (["work:double", "--json", "x"], "argument 1: 'x' is not JSON"),
        (
            ["work:double", "x", "--priority", "work:half"],
            "argument 1: no priority for 'x': TypeError: priority takes an int",
        ),
        (["work:double", "a", "x", "--priority", "work:no_rank"], "argument 2: no priority for 'x': KeyError: 'x'"),
    ],
)
def test_bad_usage_is_refused_before_anything_runs(workdir: Path, arguments: list[str], message: str) -> None:
    """Wrong arguments end in exit status 2 and one message that says what to write, without a traceback."""
    (workdir / "broken.py").write_text("1 / 0\n")
    process = run(*arguments, cwd=workdir)
    told = process.stderr.decode()
    assert process.returncode == 2, told
    assert message in told
    assert "Traceback" not in told
    assert process.stdout == b""


def test_an_unknown_command_is_refused(tmp_path: Path) -> None:
    """The only command is `map`."""
    way = [sys.executable, "-m", "parallel_exec", "mop", "os.path:getsize"]
    process = subprocess.run(way, capture_output=True, check=False, cwd=tmp_path)
    assert process.returncode == 2
    assert b"invalid choice: 'mop'" in process.stderr


def test_a_terminal_is_not_waited_for(workdir: Path) -> None:
    """Without items, and with nothing piped in, the program says what is missing instead of waiting."""
    leader, terminal = pty.openpty()
    try:
        process = subprocess.run(
            command("work:double"), cwd=workdir, stdin=terminal, capture_output=True, timeout=30, check=False
        )
    finally:
        os.close(leader)
        os.close(terminal)
    assert process.returncode == 2
    assert b"no items: give them as arguments, with --file FILE, or on standard input" in process.stderr


def test_bad_input_loses_no_results(workdir: Path) -> None:
    """What came before a line that is no JSON is run and written; the message names the line."""
    process = run("work:double", "--json", cwd=workdir, stdin="1\n\n2\n{bad\n3\n")
    assert process.returncode == 2
    assert sorted(line["result"] for line in read(process.stdout)) == [2, 4]
    told = process.stderr.decode()
    assert "2 tasks in " in told
    assert told.splitlines()[-1].startswith("parallel-exec: error: standard input, line 4: '{bad' is not JSON:")


def test_the_current_directory_is_not_searched_when_python_is_told_so(workdir: Path) -> None:
    """`PYTHONSAFEPATH` holds here as it does for `python -m`."""
    expected = 2 if sys.version_info >= (3, 11) else 0
    way = [shutil.which("parallel-exec", path=sysconfig.get_path("scripts")) or "", "map", "work:double", "x"]
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    assert subprocess.run(way, cwd=workdir, capture_output=True, env=env, check=False).returncode == expected


@pytest.mark.parametrize("backend", ["thread", "inline"])
def test_the_highest_priority_runs_first(workdir: Path, backend: str) -> None:
    """`--priority` orders the items, and equals keep their order."""
    items = ["aa", "b", "cccc", "d", "ee"]
    process = run("work:double", *items, "-j1", "--priority", "work:length", "--backend", backend, cwd=workdir)
    assert list(results(process)) == ["cccc", "aa", "ee", "b", "d"]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("nan", "nan"),
        ("bytes_in_a_list", "[b'x']"),
        ("circle", "[[...]]"),
        ("odd", "<Odd object, whose repr raised RuntimeError: no repr>"),
    ],
)
def test_what_json_cannot_carry_is_written_as_its_repr(workdir: Path, function: str, expected: str) -> None:
    """The line says that it has the repr."""
    [line] = read(run(f"work:{function}", "x", cwd=workdir).stdout)
    assert (line["result"], line["repr"], line["success"]) == (expected, True, True)


def test_failures_set_the_exit_status(workdir: Path) -> None:
    """A failed item has its error in its line, and its name and error in the summary; the status is 1."""
    process = run("work:fail_on_bad", "good", "bad", "--retries", "0", cwd=workdir)
    assert process.returncode == 1
    good, bad = sorted(read(process.stdout), key=lambda line: line["id"], reverse=True)
    assert (good["success"], good["result"]) == (True, 1)
    assert (bad["success"], bad["result"], bad["error"], bad["attempts"]) == (False, None, "KeyError: 'bad'", 1)
    told = process.stderr.decode()
    assert "2 tasks in " in told and "1 succeeded, 1 failed" in told
    assert "failed:\n  bad: KeyError: 'bad'\n" in told


@pytest.mark.parametrize("backend", BACKENDS)
def test_failed_attempts_are_retried(workdir: Path, backend: str) -> None:
    """`--retries` and `--backoff` reach the executor."""
    process = run("work:twice", "one", "--retries", "1", "--backoff", "0.01", "--backend", backend, cwd=workdir)
    [line] = read(process.stdout)
    assert (line["success"], line["attempts"]) == (True, 2)
    assert "1 succeeded, 1 retried" in process.stderr.decode()


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_timeout_fails_the_item(workdir: Path, backend: str) -> None:
    """`--timeout` ends an item that takes too long, and its neighbours are well."""
    options = ("--timeout", "2", "--retries", "0", "--backend", backend)
    process = run("work:wait_for", "wait", "quick", *options, cwd=workdir)
    assert process.returncode == 1
    lines = {line["id"]: line for line in read(process.stdout)}
    assert lines["quick"]["success"]
    assert lines["wait"]["error"].startswith("TaskTimeoutError: Task timeout: ")


def test_the_summary_stays_short(workdir: Path) -> None:
    """Only the slowest five and the first ten failures are named, on short lines."""
    items = [f"{number:02} " + "x" * 300 for number in range(30)]
    process = run("work:fail", *items, "--retries", "0", cwd=workdir)
    told = process.stderr.decode().splitlines()
    assert len(read(process.stdout)) == 30
    assert told[1] == "slowest:" and told[7] == "failed:" and told[-1] == "  ... and 20 more"
    assert len(told) == 19
    assert max(map(len, told)) <= 220


def test_output_goes_to_a_file(workdir: Path) -> None:
    """With `--output` the lines go there, whatever was there before, and nothing to standard output."""
    (workdir / "out.jsonl").write_text("old\n" * 100)
    process = run("work:double", "a", "--output", "out.jsonl", cwd=workdir)
    assert (process.returncode, process.stdout) == (0, b"")
    assert [line["result"] for line in read((workdir / "out.jsonl").read_text())] == ["aa"]


@contextlib.contextmanager
def started(workdir: Path, *arguments: str, **how: Any) -> Any:
    """Start a `map` that is talked to while it runs, and see to its end."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command(*arguments), cwd=workdir, **{**pipes, **how}) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_result_is_written_while_input_is_awaited(workdir: Path) -> None:
    """A slow source of items does not hold up results."""
    with started(workdir, "work:double") as process:
        for item in (b"a", b"b"):
            process.stdin.write(item + b"\n")
            process.stdin.flush()
            assert read(process.stdout.readline())[0]["result"] == item.decode() * 2
        assert process.communicate(timeout=20)[0] == b""
        assert process.returncode == 0


@pytest.mark.parametrize("mode", [(), ("--deadline", "60")], ids=["streamed", "staged"])
def test_a_result_is_written_while_others_run(workdir: Path, mode: tuple[str, ...]) -> None:
    """Lines come in the order in which items end."""
    with started(workdir, "work:wait_for", "wait", "quick", *mode) as process:
        assert read(process.stdout.readline())[0]["id"] == "quick"
        (workdir / "go-wait").touch()
        assert read(process.stdout.readline())[0]["id"] == "wait"
        process.communicate(timeout=20)
        assert process.returncode == 0


def test_endless_input_runs(workdir: Path) -> None:
    """Input that has no end is taken in as it is worked off, and a reader that has enough ends the run."""
    with (
        subprocess.Popen(["yes"], stdout=subprocess.PIPE) as source,
        started(workdir, "work:double", stdin=source.stdout) as process,
    ):
        assert [read(process.stdout.readline())[0]["result"] for _ in range(2000)] == ["yy"] * 2000
        process.stdout.close()
        assert process.wait(20) == 1
        told = process.stderr.read().decode()
        assert told.startswith("stopped, because results cannot be written: Broken pipe\n")
        assert "Traceback" not in told
        source.kill()


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
        assert time.monotonic() - pressed < 5
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
        assert process.wait(20) == 130
    assert not (workdir / "started-wait-2").exists()


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


def test_a_terminal_gets_a_progress_bar(workdir: Path) -> None:
    """A bar is drawn on standard error if that is a terminal; the results are untouched by it."""
    pytest.importorskip("tqdm")
    leader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with open(leader, "rb", buffering=0) as screen:
        process = subprocess.run(
            command("work:double", "a", "b", "c"),
            cwd=workdir,
            stdout=subprocess.PIPE,
            stderr=terminal,
            timeout=30,
            check=False,
        )
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other side is closed
            while chunk := screen.read(65536):
                shown += chunk
    assert process.returncode == 0
    assert len(read(process.stdout)) == 3
    text = shown.decode()
    assert re.search(r"100%\|.*\| 3/3 \[", text), text
    assert text.splitlines()[-5].startswith("3 tasks in ")


@pytest.mark.parametrize("way", ["--file", "standard input"])
def test_output_over_the_input_is_refused(workdir: Path, way: str) -> None:
    """The input is still there."""
    items = workdir / "items"
    items.write_text("a\nb\n")
    source = ["--file", "items"] if way == "--file" else []
    with items.open("rb") as stdin:
        process = subprocess.run(
            command("builtins:len", *source, "--output", "./items"),
            cwd=workdir,
            stdin=stdin,
            capture_output=True,
            check=False,
        )
    assert process.returncode == 2
    assert b"is the file that the items are read from" in process.stderr
    assert items.read_text() == "a\nb\n"


def test_without_standard_error(workdir: Path) -> None:
    """Results are written all the same."""
    line = shlex.join(command("builtins:len", "abc"))
    process = subprocess.run(["sh", "-c", f"{line} 2>&-"], cwd=workdir, stdout=subprocess.PIPE, check=False)
    assert process.returncode == 0
    assert read(process.stdout)[0]["result"] == 3


def test_json_that_is_too_deep(workdir: Path) -> None:
    """It is wrong usage, not a crash."""
    process = run("builtins:len", "--json", cwd=workdir, stdin="[" * 100_000 + "]" * 100_000)
    assert process.returncode == 2
    assert b"is not JSON" in process.stderr
    assert b"Traceback" not in process.stderr


def test_a_timeout_of_none(workdir: Path) -> None:
    """The message says how to write it."""
    process = run("builtins:len", "a", "--timeout", "0", cwd=workdir)
    assert process.returncode == 2
    assert b'"none" means no limit' in process.stderr
