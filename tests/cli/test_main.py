"""The command line, as real processes: what comes in, what goes out, and how it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import sysconfig
import termios
from pathlib import Path

import pytest
from program import BACKENDS, command, read, results, run, started


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_item_gets_one_line(workdir: Path, backend: str) -> None:
    """Every back end runs a callable of the current directory once for each argument, and a line says all there is."""
    process = run("work:double", "a", "b", "c", "--backend", backend, cwd=workdir)
    assert process.returncode == 0, process.stderr.decode()
    lines = read(process.stdout)
    assert sorted(line["id"] for line in lines) == ["a", "b", "c"]
    for line in lines:
        assert list(line) == ["index", "id", "success", "result", "error", "attempts", "duration"]
        assert line["index"] == 1 + ["a", "b", "c"].index(line["id"])
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
        (
            ["work:double", "--backend", "proces"],
            "--backend takes one of 'thread', 'process', 'inline', not 'proces': did you mean 'process'?",
        ),
        (["work:no_loop"], "parallel-exec map takes a plain function, and 'no_loop' is an async function"),
        (["work:lines_of"], "parallel-exec map takes a plain function, and 'lines_of' is a generator function"),
        (["work:double", "a", "--priority", "work:no_loop"], "'no_loop' is an async function"),
        (["work:double", "-j", "0"], "--max-concurrency must be at least 1, not 0"),
        (["work:double", "--timeout", "0"], "--timeout must be more than 0 seconds"),
        (["work:double", "--timeout", "soon"], "invalid seconds value: 'soon'"),
        (["work:double", "--retries", "-1"], "--retries must be at least 0, not -1"),
        (["work:double", "--backoff", "-1"], "--backoff must be 0 seconds or more, not -1.0"),
        (["work:double", "--deadline", "-2"], "--deadline must be more than 0 seconds"),
        (["work:double", "-j", "many"], """argument -j/--max-concurrency: invalid number or "auto" value: 'many'"""),
        (["work:double", "--no-such-option"], "there is no option --no-such-option; see parallel-exec --help"),
        (["work:double", "--retires=3"], "there is no option --retires; did you mean '--retries'?"),
        (["work:double", "--timeout"], "argument --timeout: expected one argument; parallel-exec --help tells more"),
        ([], "the following arguments are required: MODULE:CALLABLE; parallel-exec --help tells more"),
        (["wrok:double"], "importing 'wrok' raised ModuleNotFoundError: No module named 'wrok'; did you mean 'work'?"),
        (["work.py:double"], "did you mean 'work'? A module is named as in an import"),
        (["needy:f"], "importing 'needy' raised ModuleNotFoundError: No module named 'absent_module'\n"),
        (["leaving:f"], "importing 'leaving' raised SystemExit: 3"),
        (["work:double", "--file", "absent.txt"], "cannot open 'absent.txt': No such file or directory"),
        (["work:double", "--file", "."], "cannot open '.': Is a directory"),
        (["work:double", "x", "--file", "work.py"], "not from both"),
        (["work:double", "x", "--output", "absent/out"], "cannot open 'absent/out': No such file or directory"),
    ],
)
def test_bad_usage_is_refused_before_anything_runs(workdir: Path, arguments: list[str], message: str) -> None:
    """Wrong arguments end in exit status 2 and one message that says what to write, without a traceback."""
    (workdir / "broken.py").write_text("1 / 0\n")
    (workdir / "needy.py").write_text("import absent_module\n")
    (workdir / "leaving.py").write_text("raise SystemExit(3)\n")
    process = run(*arguments, cwd=workdir)
    told = process.stderr.decode()
    assert process.returncode == 2, told
    assert message in told
    assert "Traceback" not in told
    assert process.stdout == b""


def test_an_unknown_command_is_refused(tmp_path: Path) -> None:
    """The only command is `map`, and who forgets it is told so."""
    for words, message in (
        (["mop", "os.path:getsize"], b"there is no command 'mop'; did you mean 'map'?"),
        (["os.path:getsize", "x"], b"there is no command 'os.path:getsize': write parallel-exec map MODULE:CALLABLE"),
        ([], b"nothing to do: write parallel-exec map MODULE:CALLABLE [ITEM ...], for example\n"),
    ):
        way = [sys.executable, "-m", "parallel_exec", *words]
        process = subprocess.run(way, capture_output=True, check=False, cwd=tmp_path)
        assert (process.returncode, process.stdout) == (2, b"")
        assert message in process.stderr


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


@pytest.mark.parametrize("mode", [(), ("--deadline", "60"), ("--keep-order",)], ids=["streamed", "staged", "ordered"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_line_that_is_no_json_is_a_failed_line(workdir: Path, backend: str, mode: tuple[str, ...]) -> None:
    """It has the number of the line, and the run goes on."""
    stdin = "1\n\n2\n{bad\n3\n" + "[" * 100_000 + "]" * 100_000
    process = run("work:double", "--json", "--backend", backend, *mode, cwd=workdir, stdin=stdin)
    assert process.returncode == 1
    lines = {line["index"]: line for line in read(process.stdout)}
    bad, deep = lines.pop(4), lines.pop(6)
    assert {index: line["result"] for index, line in lines.items()} == {1: 2, 3: 4, 5: 6}
    assert (bad["id"], bad["success"], bad["result"], bad["attempts"]) == ("{bad", False, None, 0)
    assert bad["error"].startswith("ItemError: line 4 of standard input is not JSON: Expecting property name")
    assert bad["error"].endswith(" at character 2")
    assert deep["error"].startswith("ItemError: line 6 of standard input is not JSON: ")
    told = process.stderr.decode()
    assert "5 tasks in " in told and "3 succeeded, 2 failed" in told
    assert "failed:\n  {bad: ItemError: line 4 of standard input is not JSON: " in told


@pytest.mark.parametrize(
    ("rank", "error"),
    [
        ("no_rank", "ItemError: argument 2 has no priority: KeyError: 'x'"),
        ("half_rank", "ItemError: argument 2 has no priority: TypeError: priority takes an int"),
        ("leave_rank", "ItemError: argument 2 has no priority: SystemExit: 3"),
    ],
)
def test_an_item_without_priority_is_a_failed_line(workdir: Path, rank: str, error: str) -> None:
    """The callable for priorities may fail for one item, as the other may."""
    process = run("work:double", "a", "x", "--priority", f"work:{rank}", "--traceback", cwd=workdir)
    assert process.returncode == 1
    good, bad = sorted(read(process.stdout), key=lambda line: line["index"])
    assert (good["id"], good["result"]) == ("a", "aa")
    assert (bad["id"], bad["index"]) == ("x", 2)
    assert bad["error"].startswith(error)
    assert (f"in {rank}" in bad["traceback"]) == (rank != "half_rank")


def test_fail_fast_runs_nothing_if_an_item_is_bad(workdir: Path) -> None:
    """All items are read first, so the first failure comes before all calls."""
    process = run("work:touch", "--json", "1", "{", "2", "--fail-fast", cwd=workdir)
    assert process.returncode == 1
    errors = {line["index"]: line["error"].partition(":")[0] for line in read(process.stdout)}
    assert errors == {1: "CancelledError", 2: "ItemError", 3: "CancelledError"}
    assert not (workdir / "touched").exists()


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
    """`--retries` and `--backoff` reach the executor; a backoff may be longer than the executor's longest by default."""
    assert run("work:double", "1", "--backoff", "60", "--backend", backend, cwd=workdir).returncode == 0
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
    process = run("work:fail_slowly_at_00", *items, "--retries", "0", cwd=workdir)
    told = process.stderr.decode().splitlines()
    assert len(read(process.stdout)) == 30
    assert told[1] == "slowest:" and told[7] == "failed:" and told[-1] == "  ... and 20 more"
    assert "s  00 xxx" in told[2]
    assert len(told) == 19
    assert max(map(len, told)) <= 220


def test_output_goes_to_a_file(workdir: Path) -> None:
    """With `--output` the lines go there, whatever was there before, and nothing to standard output."""
    (workdir / "out.jsonl").write_text("old\n" * 100)
    process = run("work:double", "a", "--output", "out.jsonl", cwd=workdir)
    assert (process.returncode, process.stdout) == (0, b"")
    assert [line["result"] for line in read((workdir / "out.jsonl").read_text())] == ["aa"]


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
    assert text.splitlines()[-1].startswith("3 tasks in ")


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


def test_a_timeout_of_none(workdir: Path) -> None:
    """The message says how to write it."""
    process = run("builtins:len", "a", "--timeout", "0", cwd=workdir)
    assert process.returncode == 2
    assert b'"none" means no limit' in process.stderr
