"""Files of ours: none is ever a standard stream, none is opened before it is needed, and there may be many of others'."""

from __future__ import annotations

import errno
import itertools
import os
import re
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import script
import work

from parallel_exec.backends import _descriptors
from parallel_exec.backends.process import io_loop, segments

METHODS = ("forkserver", "spawn", "fork")
CLOSED = [numbers for count in (1, 2, 3) for numbers in itertools.combinations(range(3), count)]

PROGRAM = """\
import os, subprocess, sys
from parallel_exec import ParallelExecutor, ProcessBackend

def ours():
    found = []
    for number in range(3):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            target = "closed"
        if not target.startswith(("/dev/null", sys.argv[3], "pipe:" if number == 2 else "/dev/null")):
            found.append((number, target))
    return found

def chatter(number):
    for stream in (1, 2):
        try:
            os.write(stream, b"from C" * 1000)
        except OSError:
            pass
    if number % 10 == 0:
        subprocess.run(["echo", "from a subprocess"])
    return number, ours()

def big(number):
    chatter(number)
    return bytearray(3 << 20)

def main():
    backend = ProcessBackend(mp_context=sys.argv[1])
    with ParallelExecutor(max_concurrency=2, timeout=20, retry_count=0, backend=backend) as executor:
        results = [future.result(20) for future in [executor.submit(chatter, n) for n in range(30)]]
        sizes = [len(executor.submit(big, 0).result(20)), len(executor.submit(bytearray, bytearray(3 << 20)).result(20))]
        mine = ours()
    numbers = [number for number, _ in results]
    found = [each for _, there in results for each in there] + mine
    with open(sys.argv[2], "w") as said:
        said.write(repr((numbers == list(range(30)), sizes, found)))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("closed", CLOSED, ids=lambda numbers: "".join(map(str, numbers)))
def test_standard_streams_that_are_closed(tmp_path: Path, method: str, closed: tuple[int, ...]) -> None:
    """Whichever are closed, C code and subprocesses of tasks may print: no file of ours lies there, and every result comes."""
    program, said, output = tmp_path / "program.py", tmp_path / "said", tmp_path / "output"
    program.write_text(PROGRAM)
    redirections = ["</dev/null", f">{output}", f"2>{output}"]
    for number in closed:
        redirections[number] = f"{number}{'<' if number == 0 else '>'}&-"
    command = f"exec {sys.executable} {program} {method} {said} {output} {' '.join(redirections)}"
    subprocess.run(["sh", "-c", command], timeout=60, check=True, env=_environment())
    assert said.read_text() == repr((True, [3 << 20] * 2, []))


def _environment() -> dict[str, str]:
    root = Path(segments.__file__).parents[3]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}


def _run(folder: Path, body: str) -> str:
    """Run a program in which 0, 1 and 2 are closed from the start, and which passes what it says to `say`."""
    said = folder / "said"
    say = f"def say(*words): open({str(said)!r}, 'w').write(repr(words))\n"
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", say + textwrap.dedent(body)]
    subprocess.run(command, check=True, timeout=30, env=_environment())
    return said.read_text()


def test_what_is_made_lies_above_the_standard_streams(tmp_path: Path) -> None:
    """Pipes, sockets and memory get other numbers also while those are free; nothing is left on them."""
    said = _run(
        tmp_path,
        """
        import os, socket
        from parallel_exec.backends import _descriptors
        from parallel_exec.backends.process import segments
        numbers = []
        _descriptors.put_pipe(numbers)
        pair = _descriptors.socket_pair()
        numbers.extend([*_descriptors.pipe(), *[each.fileno() for each in pair], segments.create(10, [])])
        numbers.append(_descriptors.datagram_socket(socket.AF_INET).fileno())
        segments.send(pair[0], segments.Segment(_descriptors.put_duplicate, numbers[0]), ())
        numbers.append(segments.receive(pair[1], 1).segment)
        say(min(numbers) > 2, [_descriptors.is_open(n) for n in range(3)])
    """,
    )
    assert said == "(True, [False, False, False])"


def test_a_closed_standard_stream_becomes_dev_null(tmp_path: Path) -> None:
    """It is inherited, and what is open is left alone."""
    said = _run(
        tmp_path,
        """
        import os
        from parallel_exec.backends import _descriptors
        reading, writing = os.pipe()
        _descriptors.fill_standard()
        target = os.readlink("/proc/self/fd/2")
        say(reading, writing, target, os.get_inheritable(2), os.get_inheritable(0))
    """,
    )
    assert said == "(0, 1, '/dev/null', True, False)"


def test_one_that_cannot_be_lifted_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no number left, both ends of a pipe are closed again."""
    made: list[int] = []

    def refuse(fd: int) -> int:
        made.append(fd)
        if len(made) % 2 == 0:
            os.close(fd)
            raise OSError("too many files, for this test")
        return fd

    monkeypatch.setattr(_descriptors, "lift", refuse)
    for make in (_descriptors.pipe, _descriptors.socket_pair):
        with pytest.raises(OSError, match="for this test"):
            make()
    assert not any(map(_descriptors.is_open, made))


def test_nobody_makes_descriptors_elsewhere() -> None:
    """All of the package's pipes, sockets and files without a name are made in one place."""
    root = Path(_descriptors.__file__).parent.parent
    maker = re.compile(
        r"\bos\.pipe\b|socketpair\(|os\.memfd_create\b|pidfd_open\(|socket\.socket\((?!fileno)|\.detach\(\)"
    )
    allowed = {"_descriptors.py": 8, "segments.py": 1, "_platform.py": 2, "worker_files.py": 1}
    found = {path.name: len(maker.findall(path.read_text(encoding="utf-8"))) for path in root.rglob("*.py")}
    assert {name: count for name, count in found.items() if count} == allowed


@pytest.mark.parametrize("method", METHODS)
def test_more_descriptors_than_select_takes(tmp_path: Path, method: str) -> None:
    """With more than 1024 files open, workers start, work and are replaced."""
    body = """
        import resource
        from parallel_exec import ProcessBackend
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1200)]
        backend = ProcessBackend(mp_context=sys.argv[1])
        with ParallelExecutor(max_concurrency=2, backend=backend, retry_count=0) as executor:
            say(*[future.result(9) for future in [executor.submit(work.double, number) for number in range(5)]])
            say(type(executor.submit(os._exit, 3).exception(9)).__name__, executor.submit(work.double, 1).result(9))
    """
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4096:
        pytest.skip("no more than 4096 descriptors may be had")
    assert script.run(tmp_path, body, method, flags=("-X", "faulthandler"), dead=1).split() == [
        *("0", "2", "4", "6", "8"),
        *("WorkerCrashedError", "2"),
    ]


# ── before the first use ────────────────────────────────────────────────────────────────────────────────────────────

DAEMON = """
    from concurrent.futures import ThreadPoolExecutor
    from parallel_exec import ProcessBackend
    engine, said = sys.argv[1:]
    backend = ThreadPoolExecutor(2) if engine == "executor" else ProcessBackend(mp_context=engine)
    before = set(os.listdir("/proc/self/fd"))
    executor = ParallelExecutor(backend=backend, retry_count=0)
    assert set(os.listdir("/proc/self/fd")) == before
    if os.fork():
        os._exit(os.wait()[1] and 1)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.closerange(3, 512)
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    threading.Thread(target=lambda: (time.sleep(14), os._exit(1)), daemon=True).start()
    results = [future.result(9) for future in [executor.submit(work.double, number) for number in range(20)]]
    executor.shutdown()
    with open(said + "~", "w") as file:
        file.write(repr(sum(results)))
    os.rename(said + "~", said)
"""


@pytest.mark.parametrize("engine", [*METHODS, "executor"])
def test_a_program_that_becomes_a_daemon(tmp_path: Path, engine: str) -> None:
    """An executor that is made before has opened nothing: it serves, and ends, where all files were closed meanwhile."""
    said = tmp_path / "said"
    script.run(tmp_path, DAEMON, engine, str(said), flags=("-X", "faulthandler"))
    work.until(said.exists, work.SOON)
    assert said.read_text() == "380"


def test_nothing_is_opened_before_the_first_task(pool: Any) -> None:
    """Nor after the last. (But for the fork server, which all pools share: the first call of the program starts it.)"""
    other = pool(1)
    assert other.submit(work.pid).result(work.SOON)
    other.shutdown()
    before = set(os.listdir("/proc/self/fd"))
    executor = pool(2)
    executor.add_task(work.pid)
    assert set(os.listdir("/proc/self/fd")) == before
    executor.shutdown()
    assert set(os.listdir("/proc/self/fd")) == before


def test_no_file_to_be_had_at_the_first_use(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is a clear error of the tasks, and the pool can be shut down."""

    def refuse(_: list[int]) -> None:
        raise OSError(errno.EMFILE, "too many open files, for this test")

    monkeypatch.setattr(io_loop, "put_pipe", refuse)
    executor = pool(2)
    assert "for this test" in str(executor.submit(work.pid).exception(work.SOON))
    executor.shutdown()
