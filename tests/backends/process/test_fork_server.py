"""The fork server, and what its workers find; in programs of their own, as it is one for a whole process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import processes
import pytest
import script
import work

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

def at_the_end():
    from parallel_exec.backends.process.fork_server import servers
    print(servers.current)
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


def without_deaths(done: subprocess.CompletedProcess[str], count: int) -> subprocess.CompletedProcess[str]:
    """Return how a program ended, without the warnings of so many workers that have died."""
    done.stderr, deaths = script.DEATH.subn("", done.stderr)
    assert deaths == count, done.stderr
    return done


def run(folder: Path, *flags: str, prepare: str = "pass", deaths: int = 3) -> subprocess.CompletedProcess[str]:
    """Run the program, which needs four workers; the current folder is another than the program's."""
    program = folder / "programs" / "program.py"
    program.parent.mkdir()
    program.write_text(PROGRAM.replace("PREPARE", prepare))
    command = [sys.executable, *flags, str(program)]
    done = subprocess.run(
        command, cwd=folder, env=processes.environment(), capture_output=True, text=True, timeout=30, check=False
    )
    return without_deaths(done, deaths)


def test_a_replacement_imports_nothing_anew(tmp_path: Path) -> None:
    """The fork server imports what runs in a worker, once for all workers."""
    done = run(tmp_path, "-X", "importtime")
    assert done.stdout == "False\n"
    for name in ("parallel_exec.backends.process.child.main", "parallel_exec.backends.process.wire"):
        assert done.stderr.count(f" {name}\n") == 1 + (
            name != "parallel_exec.backends.process.child.main"
        )  # and the program


def test_the_first_call_starts_the_fork_server(tmp_path: Path) -> None:
    """It is not there before, and there as soon as the call is on its way; an unused executor starts nothing."""
    done = run(
        tmp_path,
        prepare="""
    with ParallelExecutor(max_concurrency=1, backend="process") as executor:
        from parallel_exec.backends.process.fork_server import servers
        assert servers.current is None
        future = executor.submit(end)
        assert servers.current is not None
        future.exception()
    """,
        deaths=6,
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
    """It is what a Python that is started here would find; the workers, and the server, run the parent's nevertheless."""
    other = tmp_path / "parallel_exec"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('the wrong version')")
    done = run(tmp_path)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_module_beside_the_package_hides_none_of_python(tmp_path: Path) -> None:
    """Where the package lies there may be backports of modules of the standard library: the server imports its own."""
    (tmp_path / "programs").mkdir()
    here = Path(sys.modules["parallel_exec"].__file__ or "").parent
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "parallel_exec").symlink_to(here)
    for name in ("typing", "socket", "pickle", "struct"):
        (tmp_path / "site" / f"{name}.py").write_text("raise SystemExit('a backport')")
    program = tmp_path / "programs" / "program.py"
    program.write_text("import sys, typing\nsys.path.append(sys.argv[1])\n" + PROGRAM.replace("PREPARE", "pass"))
    environment = {name: value for name, value in processes.environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", str(program), str(tmp_path / "site")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    without_deaths(done, 3)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_modules_in_the_current_folder_hide_none_of_python(tmp_path: Path) -> None:
    """A Python that is started with -c finds those first: the server, and so the workers, import Python's nevertheless."""
    for name in ("__future__", "contextlib", "select", "signal", "socket", "struct", "traceback"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('one of the same name')")
    done = run(tmp_path)
    assert (done.stdout, done.stderr) == ("False\n", "")


IDENTITY = """
import multiprocessing, os, sys
from parallel_exec import ParallelExecutor

def loaded():
    return "multiprocessing" in sys.modules

def identity():
    import multiprocessing
    this, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    where = bytes(this.authkey), parent.pid, parent.is_alive(), this.daemon, multiprocessing.get_start_method()
    return this.name, where, loaded()

def child():
    print(multiprocessing.parent_process().name, flush=True)

def start():
    process = multiprocessing.Process(target=child)
    process.start()
    process.join()
    return process.exitcode

if __name__ == "__main__":
    with ParallelExecutor(max_concurrency=1, backend="process") as executor:
        import math
        print(executor.submit(math.sqrt, 4).result(), flush=True)
        name, where, now = executor.submit(identity).result()
        print(name, where == (multiprocessing.current_process().authkey, os.getpid(), True, False, "forkserver"), now, flush=True)
        print(executor.submit(start).result())
"""


def test_a_worker_knows_of_multiprocessing_when_it_asks(tmp_path: Path) -> None:
    """Its name, its parent and the key are those of a process that `multiprocessing` has started."""
    done = _run(tmp_path, IDENTITY)
    assert done.stdout.splitlines() == [
        "2.0",
        "parallel_exec-worker-1 True True",
        "parallel_exec-worker-1",
        "0",
    ]
    assert done.stderr == ""


def _run(folder: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program that is put into a folder."""
    program = folder / "program.py"
    program.write_text(text)
    return subprocess.run(
        [sys.executable, "-W", "error", str(program), *words],
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


UNUSED = """
import sys
from parallel_exec import ParallelExecutor
import library

if __name__ == "__main__":
    with ParallelExecutor(max_concurrency=1, backend="process") as executor:
        print(executor.submit(library.loaded).result())
"""


def test_a_worker_that_needs_no_multiprocessing_imports_none(tmp_path: Path) -> None:
    """Nor `logging`, `traceback` and `tempfile`: what a call needs is all that its worker waits for."""
    names = ("multiprocessing", "logging", "traceback", "tempfile")
    (tmp_path / "library.py").write_text(
        f"import sys\ndef loaded():\n    return [n for n in {names} if n in sys.modules]\n"
    )
    done = _run(tmp_path, UNUSED)
    assert (done.stdout, done.stderr) == ("[]\n", "")


RARE = """
import sys, time
from parallel_exec import ParallelExecutor
import library

if __name__ == "__main__":
    with ParallelExecutor(max_concurrency=1, backend="process", retry_count=0) as executor:
        print(executor.submit(library.loaded).result())
        for _ in range(100):
            time.sleep(0.5)
            executor.submit(library.end).exception()
            if executor.submit(library.loaded).result():
                break
        print(executor.submit(library.loaded).result())
"""


def test_what_is_rarely_needed_is_imported_when_nobody_waits(tmp_path: Path) -> None:
    """By the server, once: a worker that comes later has it."""
    (tmp_path / "library.py").write_text(
        "import os, sys\n"
        "def loaded():\n    return [name for name in ('logging', 'traceback') if name in sys.modules]\n"
        "def end():\n    os._exit(1)\n"
    )
    done = _run(tmp_path, RARE)
    done.stderr = script.DEATH.sub("", done.stderr)
    assert (done.stdout, done.stderr) == ("[]\n['logging', 'traceback']\n", "")


SHARED = """
import os, sys, time
from multiprocessing import shared_memory
from parallel_exec import ParallelExecutor

def make(size):
    memory = shared_memory.SharedMemory(create=True, size=size)
    memory.buf[0] = 7
    memory.close()
    return memory.name

def read(name):
    memory = shared_memory.SharedMemory(name)
    try:
        return memory.buf[0]
    finally:
        memory.close()

if __name__ == "__main__":
    with ParallelExecutor(max_concurrency=1, backend="process", retry_count=0) as executor:
        name = executor.submit(make, 100).result()
    with ParallelExecutor(max_concurrency=1, backend="process", retry_count=0) as executor:
        print(executor.submit(read, name).result())
    memory = shared_memory.SharedMemory(name)
    print(memory.buf[0])
    if sys.argv[1] == "unlinks":
        memory.unlink()
    print(name, flush=True)
    memory.close()
    if sys.argv[1] == "dies":
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("way", ["unlinks", "dies"])
def test_memory_that_workers_share_by_name(tmp_path: Path, way: str) -> None:
    """What a worker has made outlives it, also a whole pool, until the parent unlinks it, or has died."""
    done = _run(tmp_path, SHARED, way)
    first, second, name = done.stdout.split()
    assert (first, second) == ("7", "7")
    place = Path("/dev/shm", name)
    work.until(lambda: not place.exists(), work.SOON)
    assert done.stderr == ""


def test_no_space_for_a_semaphore_of_the_server(tmp_path: Path) -> None:
    """Its error comes to whoever asks: it is the reason why no worker can be started."""
    (tmp_path / "full.py").write_text(
        "import _multiprocessing, errno\n"
        "class SemLock:\n"
        "    SEM_VALUE_MAX = 9\n"
        "    def __init__(self, *_):\n"
        "        raise OSError(errno.ENOSPC, 'full')\n"
        "_multiprocessing.SemLock = SemLock\n"
    )
    done = _run(
        tmp_path,
        "import multiprocessing\n"
        "from parallel_exec import ParallelExecutor\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_forkserver_preload(['full'])\n"
        "    with ParallelExecutor(max_concurrency=1, backend='process') as executor:\n"
        "        print(executor.submit(abs, 1).exception())\n",
    )
    assert "No space left" in done.stdout
    assert "/dev/shm" in done.stdout


SOUGHT = """
import logging, multiprocessing, sys
from parallel_exec import ParallelExecutor
import library

if __name__ == "__main__":
    logging.basicConfig(format="here: %(message)s", stream=sys.stdout)
    with ParallelExecutor(max_concurrency=1, backend="process", retry_count=0) as executor:
        print(executor.submit(library.seek).result())
        print(executor.submit(library.use).result())
"""


def test_a_task_may_ask_where_a_module_is_before_it_imports_it(tmp_path: Path) -> None:
    """What is to be told to `multiprocessing` and `logging` with their import still is."""
    (tmp_path / "library.py").write_text(
        "import importlib.util, sys\n"
        "NAMES = ('logging', 'multiprocessing', 'multiprocessing.resource_tracker')\n"
        "def seek():\n"
        "    before = [name in sys.modules for name in NAMES]\n"
        "    return before, [importlib.util.find_spec(name) is not None for name in NAMES[:2]]\n"
        "def use():\n"
        "    import logging, multiprocessing\n"
        "    logging.warning('said')\n"
        "    return multiprocessing.current_process().name\n"
    )
    done = _run(tmp_path, SOUGHT)
    assert done.stdout.splitlines() == [
        "([False, False, False], [True, True])",
        "here: said",
        "parallel_exec-worker-1",
    ]
    assert done.stderr == ""


def test_a_program_may_go_elsewhere_before_its_first_call(tmp_path: Path) -> None:
    """What it has found where it was started is found there by workers, which have its current folder; also with -c."""
    (tmp_path / "library.py").write_text("import os\ndef folder():\n    return os.getcwd()\n")
    (tmp_path / "elsewhere").mkdir()
    program = (
        "import os, library\n"
        "from parallel_exec import ParallelExecutor\n"
        "executor = ParallelExecutor(max_concurrency=1, backend='process', retry_count=0)\n"
        "os.chdir('elsewhere')\n"
        "with executor:\n"
        "    print(executor.submit(library.folder).result() == os.getcwd())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


NUMBERED = """
import multiprocessing, pathlib, time
from parallel_exec import ParallelExecutor

HERE = pathlib.Path(__file__)

def identity(mine):
    HERE.with_suffix(f".{mine}").touch()
    while not all(HERE.with_suffix(f".{each}").exists() for each in range(2)):
        time.sleep(0.01)
    return multiprocessing.current_process()._identity

def child():
    pass

if __name__ == "__main__":
    with ParallelExecutor(max_concurrency=2, backend="process", retry_count=0) as executor:
        futures = [executor.submit(identity, mine) for mine in range(2)]
        print(sorted(future.result() for future in futures))
        print(multiprocessing.get_context("spawn").Process(target=child).name)
"""


def test_workers_are_numbered_as_processes_of_multiprocessing(tmp_path: Path) -> None:
    """Each has a number of its own, from which programs choose a device, or a port."""
    done = _run(tmp_path, NUMBERED)
    assert (done.stdout, done.stderr) == ("[(1,), (2,)]\nSpawnProcess-3\n", "")


CLOSED = """
import os, sys
from parallel_exec.backends.process.child import lazy_multiprocessing

os.chdir(sys.argv[1])
os.chmod(sys.argv[1], 0)
if os.getuid() == 0:
    os.setuid(65534)
try:
    os.chdir(sys.argv[1])
except PermissionError:
    lazy_multiprocessing._go_to(sys.argv[1])
    print(os.getcwd() == sys.argv[1])
"""


def test_a_worker_in_a_folder_that_its_user_may_not_enter(tmp_path: Path) -> None:
    """Who has started the program may: `sudo -u` and its like leave it there, and so is the server."""
    folder = tmp_path / "closed"
    folder.mkdir()
    done = _run(tmp_path, CLOSED, str(folder))
    assert (done.stdout, done.stderr) == ("True\n", "")


DYING = """
import multiprocessing, os
from parallel_exec import ParallelExecutor

if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["deadly"])
    for number in range(200):
        os.environ[f"LARGE_{number}"] = "x" * 1000
    with ParallelExecutor(max_concurrency=1, backend="process", retry_count=0) as executor:
        print(executor.submit(abs, 1).exception())
"""


def test_a_worker_that_dies_before_it_has_read_what_it_is_told(tmp_path: Path) -> None:
    """Nobody waits until it reads the rest, of more than a pipe holds."""
    (tmp_path / "deadly.py").write_text("import os\nos.register_at_fork(after_in_child=lambda: os._exit(9))\n")
    done = _run(tmp_path, DYING)
    assert "the last by exit code 9" in done.stdout
    assert without_deaths(done, 1).stderr == ""
