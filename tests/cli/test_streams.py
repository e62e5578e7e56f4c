"""The standard descriptors of the command line: whose they are, and what they carry."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import BACKENDS, ENVIRONMENT, command, read, results, run, started, wait_until

import parallel_exec
from parallel_exec._outcome import TWIN

CHATTER = r'''
import atexit, os, subprocess, sys, time
from pathlib import Path

print("while imported")
atexit.register(print, "at exit")

def chat(item):
    """Print in every way that there is."""
    sys.stdout.write(f"printed {item}\n")  # in one piece: other threads print, too
    sys.__stdout__.write("by hand\n")
    sys.stdout.buffer.write(b"bytes\n")
    sys.stdout.flush()
    os.write(1, b"by number\n")
    subprocess.run(["echo", "in a subprocess"], check=True)
    os.system("echo in a shell")
    return item

def chat_much(item):
    for number in range(2000):
        sys.stdout.write("x" * 60 + "\n")  # `print` writes the end of the line by itself: other threads may come between
    return item

def tell(item):
    """Say that it begins, and wait until the file "go" is there."""
    print("begins", item)
    while not Path("go").exists():
        time.sleep(0.01)
    return item

def close_number(item):
    os.close(1)
    return item

def close_object(item):
    sys.stdout.close()
    return item

def leave(item):
    sys.exit(3)

def print_odd(item):
    print("\xe9 \u2713 \udc80")
    return item

def read_all(item):
    """Read standard input, in every way that there is."""
    read = [sys.stdin.read(), os.read(0, 100).decode(), subprocess.run(["cat"], stdout=subprocess.PIPE).stdout.decode()]
    return "".join(read)

def go_on(item):
    """Leave a process that lives longer than this one."""
    return subprocess.Popen(["sleep", "60"], start_new_session=True).pid

def fork_and_terminate(item):
    import signal, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of a fork amid threads
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    time.sleep(0.1)
    os.kill(child, signal.SIGTERM)
    return os.waitpid(child, 0)[1]
'''


@pytest.fixture
def chatter(workdir: Path) -> Path:
    """A directory with a module whose callables use the standard streams."""
    (workdir / "chatter.py").write_text(CHATTER)
    return workdir


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a line of the shell's, in which `map` stands for the command."""
    line = line.replace("map ", shlex.join(command()) + " ", 1)
    way = ["sh", "-c", line]
    return subprocess.run(way, cwd=cwd, capture_output=True, timeout=40, check=False, env=ENVIRONMENT)


@pytest.mark.parametrize("mode", [(), ("--output", "out.jsonl")], ids=["standard output", "file"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_printed_goes_to_standard_error(chatter: Path, backend: str, mode: tuple[str, ...]) -> None:
    """Whatever way the callable prints, and whenever, only lines are on standard output."""
    items = [str(number) for number in range(20)]
    process = run("chatter:chat", *items, "--backend", backend, *mode, cwd=chatter)
    assert process.returncode == 0, process.stderr.decode()
    lines = read((chatter / "out.jsonl").read_bytes() if mode else process.stdout)
    assert {line["id"]: line["result"] for line in lines} == {item: item for item in items}
    assert not mode or process.stdout == b""
    told = process.stderr.decode().splitlines()
    for words in ("by hand", "bytes", "by number", "in a subprocess", "in a shell"):
        assert told.count(words) == len(items)
    assert {f"printed {item}" for item in items} <= set(told)
    assert {"while imported", "at exit"} <= set(told)


def test_standard_output_may_be_a_file(chatter: Path) -> None:
    """What lay on the descriptor before makes no difference to those that print."""
    process = shell("map chatter:chat a b --backend thread >> out", chatter)
    assert process.returncode == 0, process.stderr.decode()
    assert len(read((chatter / "out").read_bytes())) == 2
    assert process.stderr.count(b"by hand\n") == 2


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_much_that_is_printed(chatter: Path, backend: str) -> None:
    """A flood on standard error leaves the lines whole."""
    process = run("chatter:chat_much", *"abcdefgh", "--backend", backend, cwd=chatter)
    assert sorted(results(process)) == list("abcdefgh")
    assert process.stderr.count(b"x" * 60 + b"\n") == 8 * 2000


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_printed_is_seen_at_once(chatter: Path, backend: str) -> None:
    """A print is not kept back until the call or its worker ends."""
    with started(chatter, "chatter:tell", "x", "--backend", backend) as process:
        while process.stderr.readline() != b"begins x\n":
            assert process.poll() is None
        (chatter / "go").touch()
        assert read(process.communicate(timeout=20)[0])[0]["result"] == "x"


def test_what_is_printed_before_a_kill_is_seen(chatter: Path) -> None:
    """Where a call hangs can be found by printing, also in a worker that is killed for it."""
    process = run("chatter:tell", "x", "--backend", "process", "--timeout", "1", "--retries", "0", cwd=chatter)
    assert process.returncode == 1
    assert b"begins x\n" in process.stderr


@pytest.mark.parametrize("function", ["close_number", "close_object"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_callable_that_closes_standard_output(chatter: Path, backend: str, function: str) -> None:
    """It closes what it was given, and the lines arrive."""
    options = ("-j1", "--retries", "0", "--backend", backend, "--keep-order")
    process = run(f"chatter:{function}", "a", "b", *options, cwd=chatter)
    assert [line["id"] for line in read(process.stdout)] == ["a", "b"]
    assert read(process.stdout)[0]["success"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_callable_that_leaves(chatter: Path, backend: str) -> None:
    """`sys.exit` fails the item, and does not end the program."""
    process = run("chatter:leave", "a", "b", "--retries", "0", "--backend", backend, cwd=chatter)
    assert process.returncode == 1
    assert [line["error"] for line in read(process.stdout)] == ["SystemExit: 3"] * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_character_can_be_printed(chatter: Path, backend: str) -> None:
    """A locale that has no such character does not fail the call."""
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert results(run("chatter:print_odd", "a", "--backend", backend, cwd=chatter, **plain)) == {"a": "a"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_callable_takes_no_items_away(chatter: Path, backend: str) -> None:
    """Standard input is read by this program alone; for the callable and its subprocesses it is empty."""
    stdin = "".join(f"{number:06}\n" for number in range(30_000))  # more than is read at once
    options = ("--backend", backend, "-j2", "--keep-order")
    with started(chatter, "chatter:read_all", *options) as process:
        process.stdin.write(stdin[: 7 * 50].encode())
        process.stdin.flush()
        lines = [read(process.stdout.readline())[0] for _ in range(50)]
        process.stdin.write(stdin[7 * 50 : 7 * 60].encode())
        lines += read(process.communicate(timeout=30)[0])
    assert [line["id"] for line in lines] == [f"{number:06}" for number in range(60)]
    assert {line["result"] for line in lines} == {""}


def test_a_subprocess_that_lives_on_holds_no_reader_up(chatter: Path) -> None:
    """Who reads the lines comes to their end when this program ends, whatever the callable has left running."""
    with open(os.devnull, "w") as nowhere, started(chatter, "chatter:go_on", "a", stderr=nowhere) as process:
        [line] = read(process.stdout.read())
        assert process.wait(10) == 0
        os.kill(line["result"], signal.SIGKILL)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_file_never_lies_on_a_standard_descriptor(chatter: Path, backend: str, closed: str) -> None:
    """Started with some of them closed, the program writes nothing but lines to the file."""
    process = shell(f"map chatter:chat a b --backend {backend} --output out.jsonl {closed}", chatter)
    assert process.returncode == 0, process.stderr.decode()
    assert sorted(line["result"] for line in read((chatter / "out.jsonl").read_bytes())) == ["a", "b"]
    assert process.stdout == b""
    assert (b"2 tasks in " in process.stderr) == ("2>&-" not in closed)


def test_closed_standard_output_is_told_before_anything_runs(workdir: Path) -> None:
    """Lines that could go nowhere are not made."""
    process = shell("map work:touch a >&-", workdir)
    assert process.returncode == 2
    assert process.stderr == (
        b"parallel-exec: error: standard output is closed: name a file for the lines with --output FILE\n"
    )
    assert not (workdir / "touched").exists()


@pytest.mark.parametrize("items", ["", "-", "--file -"])
def test_closed_standard_input_is_told(workdir: Path, items: str) -> None:
    """It is wrong usage if items were to come from there, and nobody's business if not."""
    process = shell(f"map work:double {items} <&-", workdir)
    assert process.returncode == 2
    assert b"standard input is closed: give the items as arguments or with --file FILE" in process.stderr
    assert results(shell("map work:double x <&-", workdir)) == {"x": "xx"}


def test_a_full_disk_under_standard_output(workdir: Path) -> None:
    """It ends the run with a reason, as under a file."""
    process = shell("map work:double a > /dev/full", workdir)
    assert process.returncode == 1
    assert process.stderr.startswith(b"stopped, because results cannot be written: No space left on device\n")


def test_head_ends_the_run(workdir: Path) -> None:
    """A reader that has enough ends endless input without a traceback."""
    process = shell("yes | map work:double 2> told | head -1", workdir)
    assert read(process.stdout)[0]["result"] == "yy"
    assert "Traceback" not in (workdir / "told").read_text()
    assert (workdir / "told").read_text().startswith("stopped, because results cannot be written: Broken pipe\n")


def test_lines_are_utf_8_as_they_are(workdir: Path) -> None:
    """Characters are written as they are, but for what would end a line somewhere, and for bytes that are no text."""
    stdin = "né ✓ \u2028 𝄞\n".encode() + b"caf\xe9\n"
    process = run("work:double", "--keep-order", cwd=workdir, stdin=stdin, LC_ALL="C.UTF-8")
    first, second = process.stdout.decode().splitlines()
    assert '"né ✓ \\u2028 𝄞"' in first
    assert '"caf\\udce9"' in second
    assert json.loads(first)["id"] == "né ✓ \u2028 𝄞"
    assert os.fsencode(json.loads(second)["result"]) == b"caf\xe9" * 2


def test_json_is_utf_8_in_any_locale(workdir: Path) -> None:
    """What comes in as JSON is UTF-8, as the standard says, from a file and as an argument."""
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert results(run("work:length", "--json", cwd=workdir, stdin='"é"\n', **plain)) == {'"é"': 1}
    assert results(run("work:length", "--json", '"é"', cwd=workdir, **plain)) == {'"é"': 1}


def test_a_descriptor_above_1023_is_read(workdir: Path) -> None:
    """What the program inherits does not limit what it can read."""
    with started(workdir, "work:double", preexec_fn=_open_many) as process:
        assert read(process.communicate(b"a\n", timeout=30)[0])[0]["result"] == "aa"
        assert process.returncode == 0


def _open_many() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for number in range(3, 1100):
        os.dup2(1, number, inheritable=True)


# ── signals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", [(), ("--deadline", "60"), ("--keep-order",)], ids=["streamed", "staged", "ordered"])
@pytest.mark.parametrize("backend", ["thread", "process"])
def test_sigterm_keeps_what_had_finished(workdir: Path, backend: str, mode: tuple[str, ...]) -> None:
    """The finished results are written, also those whose turn had not come; the status is 143, and no process is left."""
    items = ("wait-1", "quick", "wait-2", "wait-3")
    with started(workdir, "work:wait_for", *items, "-j3", "--backend", backend, *mode) as process:
        wait_until(lambda: len(list(workdir.glob("started-*"))) == 4)  # the last one where the quick one has ended
        if mode != ("--keep-order",):
            assert read(process.stdout.readline())[0]["id"] == "quick"
        process.send_signal(signal.SIGTERM)
        written, told = process.communicate(timeout=20)
    assert process.returncode == 143
    assert [line["id"] for line in read(written)] == (["quick"] if mode == ("--keep-order",) else [])
    assert told.startswith(b"interrupted; this had ended before:\n1 task in ")
    assert b"Traceback" not in told
    if backend == "process":
        pids = [word.read_text() for word in workdir.glob("started-*")]
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_sigterm_that_comes_twice_is_no_second_one(workdir: Path) -> None:
    """As `timeout` sends it, to the program and to its process group: what had finished is told of."""

    def terminate() -> tuple[int, bytes]:
        with started(workdir, "work:wait_for", "quick", "wait-1") as process:
            assert read(process.stdout.readline())[0]["id"] == "quick"
            for _ in range(2):
                process.send_signal(signal.SIGTERM)
                time.sleep(0.05)
            told = process.communicate(timeout=20)[1]
        return process.returncode, told

    for _ in range(3):  # a machine may stand still between the two, so that they are two
        status, told = terminate()
        if status == 143:
            break
    assert status == 143
    assert told.startswith(b"interrupted; this had ended before:\n1 task in ")


def test_a_second_sigterm_ends_it_at_once(workdir: Path) -> None:
    """A reader that has stopped reading cannot keep the program alive."""
    with started(workdir, "work:big", *map(str, range(20))) as process:
        process.stdout.read(1)  # the pipe is full soon after, as 200 kB do not fit
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: len(os.listdir(f"/proc/{process.pid}/task")) == 2)
        time.sleep(1.5 * TWIN)  # else it would be the same request
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in {143, -signal.SIGTERM}


def test_a_process_that_the_callable_forks_is_its_own(chatter: Path) -> None:
    """SIGTERM ends it as it would anywhere."""
    [line] = read(run("chatter:fork_and_terminate", "a", cwd=chatter).stdout)
    assert line["result"] == signal.SIGTERM


# ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_version(tmp_path: Path) -> None:
    """`--version` prints the name and the version."""
    way = [sys.executable, "-m", "parallel_exec", "--version"]
    process = subprocess.run(way, cwd=tmp_path, capture_output=True, check=True)
    assert process.stdout.decode() == f"parallel-exec {parallel_exec.__version__}\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_traceback_on_request(workdir: Path, backend: str) -> None:
    """A failed line says where in the user's code it failed, and only if that was asked for."""
    options = ("good", "bad", "--retries", "0", "--backend", backend, "--keep-order")
    good, bad = read(run("work:fail_on_bad", *options, "--traceback", cwd=workdir).stdout)
    assert 'work.py", line ' in bad["traceback"] and "in fail_on_bad\n" in bad["traceback"]
    assert bad["traceback"].endswith("KeyError: 'bad'\n")
    assert "traceback" not in good
    assert all("traceback" not in line for line in read(run("work:fail_on_bad", *options, cwd=workdir).stdout))
