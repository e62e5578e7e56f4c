"""What a worker has from this process is what this process has when the worker starts, whoever forks it."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest
import script

from parallel_exec.backends.process.inherited import Inherited

METHODS = ("forkserver", "spawn", "fork")
LOOSE = ("-X", "faulthandler")

HEAD = """
import resource
from parallel_exec import ProcessBackend

def server():
    from parallel_exec.backends.process.fork_server import servers
    return servers.current.pid

def ask(method, function, *args):
    with ParallelExecutor(max_concurrency=1, retry_count=0, backend=ProcessBackend(mp_context=method)) as executor:
        return executor.submit(function, *args).result(12)

method = sys.argv[1]
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_second_pool_has_what_is_now(tmp_path: Path, method: str) -> None:
    """Environment, umask, niceness, processors, limits, ignored signals, folder and output are not those of the first pool."""
    body = (
        HEAD
        + """
os.environ["OLD"] = "old"
os.umask(0o022)
threads = ParallelExecutor(max_concurrency=1, retry_count=0, backend=ProcessBackend(mp_context=method))
threads.submit(work.survey).result(12)
first = server() if method == "forkserver" else None
os.environ["NEW"] = "new"
del os.environ["OLD"]
os.umask(0o027)
os.nice(3)
cpus = {max(os.sched_getaffinity(0))}
os.sched_setaffinity(0, cpus)
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 1000))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.chdir("/usr")
os.mkdir(sys.argv[2])
output = os.open(sys.argv[2] + "/output", os.O_WRONLY | os.O_CREAT)
kept = os.dup(1)
os.dup2(output, 1)
seen = ask(method, work.survey)
ask(method, os.write, 1, b"from the worker")
threads.submit(os._exit, 3).exception(12)
replaced = threads.submit(work.survey).result(12)  # also one that the first pool starts now
threads.shutdown()
os.dup2(kept, 1)
expected = ("new", None, 0o027, os.getpriority(os.PRIO_PROCESS, 0), cpus, (300, 1000), (0, 0), True, "/usr")
say(seen == expected or (seen, expected), replaced == expected or (replaced, expected))
say(open(sys.argv[2] + "/output").read())
say(method != "forkserver" or first == server())
"""
    )
    said = script.run(tmp_path, body, method, str(tmp_path / "out"), flags=LOOSE, dead=1)
    assert said.splitlines() == ["True True", "from the worker", "True"]


def test_what_is_read_at_a_start_needs_another_server(tmp_path: Path) -> None:
    """Where the environment tells the interpreter something else, workers are made by one that has read it."""
    body = (
        HEAD
        + """
ask(method, os.getpid)
first = server()
os.environ["PYTHONOPTIMIZE"] = "1"
say(ask(method, work.optimization), server() != first)
second = server()
say(ask(method, work.optimization), server() == second)
"""
    )
    assert script.run(tmp_path, body, "forkserver", flags=LOOSE).splitlines() == ["1 True", "1 True"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_needs_another_server(tmp_path: Path) -> None:
    """A program that gives up its rights has no worker that still has them; tasks that run are left alone."""
    body = (
        HEAD
        + """
with ParallelExecutor(max_concurrency=1, retry_count=0, backend=ProcessBackend(mp_context=method)) as before:
    running = before.submit(work.wait_then_group, sys.argv[2])
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    os.setgroups([])
    os.setgid(54321)
    say(ask(method, work.group), ask(method, work.group))
    os.unlink(sys.argv[2])
    say(running.result(12))
"""
    )
    said = script.run(tmp_path, body, "forkserver", str(tmp_path / "latch"), flags=LOOSE)
    assert said.splitlines() == ["(54321, []) (54321, [])", str((os.getgid(), os.getgroups()))]


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_for_temporary_files_with_a_long_path(tmp_path: Path, method: str) -> None:
    """Its socket lies elsewhere; the program's own temporary files do not."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    body = (
        HEAD
        + """
import tempfile
os.environ["TMPDIR"] = sys.argv[2]
say(ask(method, work.double, 2), tempfile.gettempdir() == sys.argv[2], os.listdir(sys.argv[2]))
"""
    )
    assert script.run(tmp_path, body, method, str(folder)).split() == ["4", "True", "[]"]


@pytest.mark.parametrize("gone", ["removed", "missing"])
def test_a_folder_for_temporary_files_that_is_gone(tmp_path: Path, gone: str) -> None:
    """Nor does it matter if it is removed while the program runs, or was never there."""
    body = (
        HEAD
        + """
import shutil, tempfile
from multiprocessing import util
if sys.argv[2] == "removed":
    folder = util.get_temp_dir()
    shutil.rmtree(folder)
    atexit.register(os.mkdir, folder)  # multiprocessing removes it, and complains
else:
    tempfile.tempdir = "/no/such/folder"
say(ask(method, work.double, 2))
"""
    )
    assert script.run(tmp_path, body, "forkserver", gone, flags=LOOSE) == "4"


def test_what_a_worker_may_not_set_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit above the worker's own becomes the most that it may have; whatever else is refused changes nothing."""
    kind = resource.RLIMIT_CORE
    limits = {kind: (1 << 20, 1 << 30)}
    heard: list[Any] = []

    def refuse_more(number: int, wanted: tuple[int, int]) -> None:
        if wanted[1] > 1 << 25:
            raise ValueError("not allowed to raise maximum limit")
        heard.append((number, wanted))

    def refuse(*_: object) -> None:
        raise PermissionError("not allowed, for this test")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (0, 1 << 25))
    monkeypatch.setattr(resource, "setrlimit", refuse_more)
    monkeypatch.setattr(os, "setpriority", refuse)
    now = Inherited.now()
    now._replace(limits=limits, niceness=now.niceness - 1).apply()
    assert heard == [(kind, (1 << 20, 1 << 25))]


def test_how_a_server_is_found_to_be_outdated() -> None:
    """One like this process is not; one that is nicer, may have less, or has read something else is."""
    now = Inherited.now()
    me = os.getpid()
    assert not now.is_beyond(me)
    assert now._replace(niceness=now.niceness - 1).is_beyond(me)
    assert not now._replace(niceness=now.niceness + 1).is_beyond(me)
    assert now._replace(environment={**now.environment, "PYTHONNEW": "1"}).is_beyond(me)
    assert not now._replace(environment={**now.environment, "OTHER": "1"}).is_beyond(me)
    assert now._replace(identity=[b"Uid: 5"]).is_beyond(me)
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard != resource.RLIM_INFINITY:
        assert now._replace(limits={resource.RLIMIT_CORE: (0, hard + 1)}).is_beyond(me)
    assert not now._replace(limits={resource.RLIMIT_CORE: (0, 0)}).is_beyond(me)
