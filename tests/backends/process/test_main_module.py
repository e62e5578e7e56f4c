"""Programs of every kind, as real processes: what lives in their main modules reaches the workers, or one clear error comes.

A script without a `__main__` guard is never run a second time: each of these writes a line when it starts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import work

STARTS = "import os, sys\nprint('start of the program', flush=True)\n"

FUNCTIONS = """
from parallel_exec import ParallelExecutor

class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return type(other) is type(self) and other.x == self.x

class PointError(Exception):
    def __init__(self, x):
        super().__init__(x)
        self.x = x

def move(point):
    return Point(point.x + 1)

def refuse(point):
    raise PointError(point.x)
"""

# What most programs here do: a function, a class and an exception of the main module go there and back.
BODY = """
with ParallelExecutor(max_concurrency=2, backend="process", retry_count=0, timeout=20) as executor:
    moved = executor.submit(move, Point(1)).result()
    print("moved", moved == Point(2), flush=True)
    print("refused", type(executor.submit(refuse, Point(7)).exception()) is PointError, flush=True)
    print("mapped", [point.x for point in executor.map(move, map(Point, range(3)))], flush=True)
    shared = executor.share(Point(3))
    print("shared", executor.submit(getattr, shared, "x").result(), executor.submit(move, shared).result().x, flush=True)
"""
WORKED = ["moved True", "refused True", "mapped [1, 2, 3]", "shared 3 4"]

# What a program shows of an error.
ERRORS = """
with ParallelExecutor(max_concurrency=2, backend="process", timeout=20) as executor:
    error = executor.submit(move, Point(1)).exception()
    print(type(error).__name__, str(error), flush=True)
"""


def guarded(body: str) -> str:
    """Put the guard around a program's body."""
    return 'if __name__ == "__main__":\n' + "".join(f"    {line}\n" for line in body.splitlines())


class Programs:
    """Runs programs in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path: list[Path] = []

    def without_cloudpickle(self) -> None:
        """Pretend that the extra is not installed, for all programs run from now on."""
        hide = self.folder / "hide"
        hide.mkdir()
        (hide / "cloudpickle.py").write_text("raise ImportError('not installed, for this test')\n")
        self._path.append(hide)

    def write(self, text: str, name: str = "program.py") -> str:
        """Make a script."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return str(path)

    def run(self, *command: str, stdin: str | None = None) -> list[str]:
        """Run Python, and return the lines it has written; it ends within seconds and leaves nobody behind."""
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, *command],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=processes.environment(*self._path),
            timeout=45,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - start < 40
        return done.stdout.splitlines()


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    """What runs programs."""
    return Programs(tmp_path)


# ── guarded ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_a_guarded_script(programs: Programs, method: str) -> None:
    """Functions, classes and exceptions of a guarded main module make the round trip, without cloudpickle."""
    programs.without_cloudpickle()
    body = BODY.replace('backend="process"', f"backend=ProcessBackend(mp_context={method!r})")
    text = "from parallel_exec.backends.process.backend import ProcessBackend\n" + FUNCTIONS + guarded(body)
    assert programs.run("-W", "ignore", programs.write(text)) == WORKED


@pytest.mark.parametrize(
    "guard",
    [
        '__name__ == "__main__" and main()',
        'if "__main__" == __name__: main()',
        'main() if __name__ == "__main__" else 0',
    ],
)
def test_a_guard_of_another_kind(programs: Programs, guard: str) -> None:
    """A guard is one however it is written, and nobody is told to write another."""
    programs.without_cloudpickle()
    main = "def main():\n" + "".join(f"    {line}\n" for line in BODY.splitlines())
    assert programs.run(programs.write(FUNCTIONS + main + guard + "\n")) == WORKED


def test_a_module_run_by_name(programs: Programs) -> None:
    """So do those of `python -m package.module`, with its relative imports."""
    programs.without_cloudpickle()
    programs.write("", "package/__init__.py")
    programs.write("factor = 1\n", "package/other.py")
    programs.write("from .other import factor\n" + FUNCTIONS + guarded(BODY), "package/module.py")
    assert programs.run("-m", "package.module") == WORKED


def test_a_package_run_by_name(programs: Programs) -> None:
    """`python -m package` runs `package.__main__`, which multiprocessing never imports in a child: cloudpickle it is."""
    programs.write("", "package/__init__.py")
    programs.write(FUNCTIONS + guarded(BODY), "package/__main__.py")
    if processes.has_cloudpickle():
        assert programs.run("-m", "package") == WORKED
    programs.without_cloudpickle()
    programs.write(FUNCTIONS + guarded(ERRORS), "package/__main__.py")
    (line,) = programs.run("-m", "package")
    assert line.startswith("WorkerStartError")
    assert "parallel_exec[cloudpickle]" in line


def test_a_guarded_initializer(programs: Programs) -> None:
    """The initializer may be a function of the main module."""
    programs.without_cloudpickle()
    body = """
from parallel_exec.backends.process.backend import ProcessBackend
with ParallelExecutor(backend=ProcessBackend(initializer=prepare, initargs=(Point(5),)), timeout=20) as executor:
    print(executor.submit(prepared).result(), flush=True)
"""
    functions = "state = []\ndef prepare(point):\n    state.append(point.x)\ndef prepared():\n    return state\n"
    assert programs.run(programs.write(FUNCTIONS + functions + guarded(body))) == ["[5]"]


def test_only_tasks_that_need_the_main_module_import_it(programs: Programs) -> None:
    """Workers that run library functions do not run the script's top level again."""
    text = (
        STARTS + FUNCTIONS + guarded(BODY.replace("move, Point(1)", "abs, -2").replace("refuse, Point(7)", "int, 'x'"))
    )
    text = text.replace("moved == Point(2)", "moved == 2").replace("is PointError", "is ValueError")
    text = text.replace("executor.map(move, map(Point, range(3)))", "[]")
    text = text.replace("share(Point(3))", "share(3)").replace('getattr, shared, "x"', "abs, shared")
    text = text.replace("move, shared).result().x", "abs, 4).result()")
    assert programs.run(programs.write(text)) == [
        "start of the program",
        "moved True",
        "refused True",
        "mapped []",
        "shared 3 4",
    ]


# ── unguarded ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_unguarded_script_with_library_functions(programs: Programs) -> None:
    """It just works, and runs once."""
    programs.without_cloudpickle()
    body = """
from parallel_exec import ParallelExecutor
executor = ParallelExecutor(max_concurrency=2, backend="process", timeout=20)
print(list(executor.map(abs, [-1, -2])), executor.submit(len, "__main__").result(), flush=True)
executor.shutdown()
"""
    assert programs.run(programs.write(STARTS + body)) == ["start of the program", "[1, 2] 8"]


@pytest.mark.parametrize(
    "more", ["", "import logging\nlog = logging.getLogger(__name__)\n"], ids=["plain", "with a logger"]
)
def test_an_unguarded_script_with_functions_of_its_own(programs: Programs, more: str) -> None:
    """Without cloudpickle there is one error that says what to do, soon, and nothing is run a second time."""
    programs.without_cloudpickle()
    start, line = programs.run(programs.write(STARTS + more + FUNCTIONS + ERRORS))
    assert start == "start of the program"
    assert line.startswith("WorkerStartError")
    assert 'if __name__ == "__main__":' in line
    assert "parallel_exec[cloudpickle]" in line


@pytest.mark.parametrize(
    "more", ["", "import logging\nlog = logging.getLogger(__name__)\n"], ids=["plain", "with a logger"]
)
def test_an_unguarded_script_with_cloudpickle(programs: Programs, more: str) -> None:
    """With cloudpickle it works, and runs once."""
    pytest.importorskip("cloudpickle")
    assert programs.run(programs.write(STARTS + more + FUNCTIONS + BODY)) == ["start of the program", *WORKED]


def test_an_unguarded_initializer(programs: Programs) -> None:
    """An initializer of an unguarded script is refused at once, or travels by cloudpickle."""
    body = """
from parallel_exec.backends.process.backend import ProcessBackend
def prepare(): os.environ["PREPARED"] = "yes"
try:
    executor = ParallelExecutor(backend=ProcessBackend(initializer=prepare), timeout=20)
    print(executor.submit(os.getenv, "PREPARED").result(), flush=True)
except Exception as error:
    print(type(error).__name__, str(error), flush=True)
"""
    path = programs.write(STARTS + FUNCTIONS + body)
    if processes.has_cloudpickle():
        assert programs.run(path) == ["start of the program", "yes"]
    programs.without_cloudpickle()
    start, line = programs.run(path)
    assert start == "start of the program"
    assert "main module" in line
    assert "Error" in line


# ── without a file ──────────────────────────────────────────────────────────────────────────────────────────────────


WITHOUT_FILE = ("-c", "stdin", "interactive")


def _run_without_file(programs: Programs, way: str, text: str) -> list[str]:
    if way == "-c":
        return programs.run("-c", text)
    if way == "stdin":
        return programs.run("-", stdin=text)
    lines = [part for part in text.split("\n\n") if part.strip()]
    return programs.run("-i", "-q", stdin="".join(part.strip("\n") + "\n\n" for part in lines) + "exit()\n")


@pytest.mark.parametrize("way", WITHOUT_FILE)
def test_code_without_a_file_without_cloudpickle(programs: Programs, way: str) -> None:
    """Its own functions cannot travel: one error that says so, and what to do."""
    programs.without_cloudpickle()
    (line,) = _run_without_file(programs, way, FUNCTIONS + "\n" + ERRORS)
    assert line.startswith("WorkerStartError")
    assert "parallel_exec[cloudpickle]" in line


@pytest.mark.parametrize("way", WITHOUT_FILE)
def test_code_without_a_file_with_cloudpickle(programs: Programs, way: str) -> None:
    """Its functions, classes and exceptions make the round trip."""
    pytest.importorskip("cloudpickle")
    assert _run_without_file(programs, way, FUNCTIONS + "\n" + BODY) == WORKED


@pytest.mark.parametrize("way", WITHOUT_FILE)
def test_code_without_a_file_with_library_functions(programs: Programs, way: str) -> None:
    """What can be imported needs no extra."""
    programs.without_cloudpickle()
    text = """
from parallel_exec import ParallelExecutor

executor = ParallelExecutor(max_concurrency=2, backend="process", timeout=20)

print(list(executor.map(abs, [-1, -2])), flush=True)
"""
    assert _run_without_file(programs, way, text) == ["[1, 2]"]


# ── odd ones ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_main_module_that_a_worker_cannot_import(programs: Programs) -> None:
    """A guarded script that raises outside its guard, in workers only: each task says why, and nothing hangs."""
    text = (
        "import os, sys\nif 'PARENT' in os.environ:\n    raise LookupError('not in a worker')\nos.environ['PARENT'] = '1'\n"
        + FUNCTIONS
        + guarded(ERRORS)
    )
    (line,) = programs.run(programs.write(text))
    assert line.startswith("TaskSerializationError")
    assert "LookupError: not in a worker" in line


def test_a_pool_made_while_a_worker_imports_the_main_module(programs: Programs) -> None:
    """A script that is guarded for show only gets one clear error from its workers, and no fork bomb."""
    text = FUNCTIONS + 'if __name__ == "elsewhere": pass\n' + ERRORS
    programs.without_cloudpickle()
    lines = programs.run(programs.write(text))
    assert 1 <= len(lines) <= 6
    assert "WorkerStartError" in lines[-1]
    assert 'if __name__ == "__main__":' in lines[-1]


def test_a_script_that_changes_its_folder_and_path(programs: Programs, tmp_path: Path) -> None:
    """Modules that the parent finds by a `sys.path` of its own are found by its workers."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "hidden_module.py").write_text("def answer():\n    return 42\n")
    body = """
import os, sys
sys.path.insert(0, os.path.abspath("deep"))
os.chdir("/")
import hidden_module
from parallel_exec import ParallelExecutor
with ParallelExecutor(backend="process", timeout=20) as executor:
    print(executor.submit(hidden_module.answer).result(), flush=True)
"""
    assert programs.run(programs.write(guarded(body))) == ["42"]


def test_ctrl_c_leaves_no_worker(programs: Programs) -> None:
    """Ctrl-C ends a program within 2 s, with its own traceback and nobody else's; nobody is left."""
    text = """
import time
from parallel_exec import ParallelExecutor
if __name__ == "__main__":
    executor = ParallelExecutor(max_concurrency=2, backend="process", timeout=None)
    for _ in range(10):
        executor.add_task(lambda_free)
    print(executor.options(priority=1).submit(time.sleep, 0).result(), flush=True)
    executor.execute_all()
"""
    text = "import time\ndef lambda_free():\n    time.sleep(600)\n" + text
    program = programs.write(text)

    def interrupt() -> float:
        with processes.python(program, start_new_session=True) as process:
            assert process.stdout.readline() == "None\n"
            work.until(lambda: len(processes.descendants(process.pid)) >= 3)
            pids = processes.descendants(process.pid)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole foreground group
            start = time.monotonic()
            _, errors = process.communicate(timeout=20)
            took = time.monotonic() - start
            assert "KeyboardInterrupt" in errors.splitlines()
            assert errors.count("Traceback") == 1
            work.until(lambda: not any(map(processes.is_alive, pids)), work.SOON)
            return took

    assert any(interrupt() < 3 for _ in range(3))  # a machine may stall


def test_ctrl_c_passes_by_a_worker_that_is_being_born(programs: Programs, tmp_path: Path) -> None:
    """A worker that is still in the terminal's group, and not yet in our code, prints no traceback of its own."""
    (tmp_path / "sitecustomize.py").write_text(
        """
import pathlib, time
if "spawn_main" in pathlib.Path("/proc/self/cmdline").read_text():
    pathlib.Path(__file__).with_name("born").touch()
    time.sleep(0.5)
"""
    )
    text = """
import time
from parallel_exec import ParallelExecutor, ProcessBackend
if __name__ == "__main__":
    executor = ParallelExecutor(max_concurrency=2, backend=ProcessBackend("spawn"), timeout=None)
    executor.submit(time.sleep, 600)
    executor.submit(time.sleep, 600).result()
"""
    settings = {"start_new_session": True, "env": processes.environment(tmp_path)}
    with processes.python(programs.write(text), **settings) as process:
        work.until((tmp_path / "born").exists)
        pids = processes.descendants(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert "KeyboardInterrupt" in errors.splitlines()
        assert errors.count("Traceback") == 1
        work.until(lambda: not any(map(processes.is_alive, pids)))


def test_ctrl_c_before_a_worker_is_told_anything(programs: Programs) -> None:
    """The program's end waits until it is: a worker that finds nobody to tell it prints a traceback."""
    text = """
import multiprocessing.util, threading, time
from parallel_exec import ParallelExecutor, ProcessBackend
if __name__ == "__main__":
    spawn, is_born = multiprocessing.util.spawnv_passfds, threading.Event()
    def spawn_and_wait(path, words, *rest):
        pid = spawn(path, words, *rest)
        if any(b"spawn_main" in word if isinstance(word, bytes) else "spawn_main" in word for word in words):
            is_born.set()
            time.sleep(0.3)
        return pid
    multiprocessing.util.spawnv_passfds = spawn_and_wait
    executor = ParallelExecutor(max_concurrency=1, backend=ProcessBackend("spawn"), timeout=None)
    executor.submit(time.sleep, 600)
    is_born.wait(20)
    raise KeyboardInterrupt
"""
    with processes.python(programs.write(text)) as process:
        _, errors = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors.splitlines()
    assert errors.count("Traceback") == 1, errors
