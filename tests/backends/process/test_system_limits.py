"""What the system refuses: calls that a sandbox forbids, too many processes, threads or files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import sys
import threading
import time
import types
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import spawn as mp_spawn
from multiprocessing.synchronize import Semaphore, SemLock
from pathlib import Path
from typing import Any, Iterator

import processes
import pytest
import script
import work

from parallel_exec import WorkerStartError
from parallel_exec.backends.process import segments, spawn, start_method, supervisor
from parallel_exec.backends.process.pool import ProcessPool

from . import stdlib_only_tasks

# ── sandboxes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EACCES])
def test_memory_that_is_refused_by_a_sandbox(pool: Any, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where `memfd_create` is there and may not be called, files without a name serve: for journals and for large buffers."""

    def refuse(*_: object) -> int:
        raise OSError(number, "refused, for this test")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert pool().submit(len, bytearray(segments.THRESHOLD * 2)).result(work.SOON) == segments.THRESHOLD * 2


def test_a_pidfd_that_is_refused_by_a_sandbox(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's death is seen all the same."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EPERM, "refused, for this test")

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    executor = pool(retry_count=1)
    assert executor.submit(work.pid).result(work.SOON)
    assert executor.submit(os._exit, 3).exception(work.SOON) is not None
    assert executor.submit(work.same, 1).result(work.SOON) == 1


def test_a_signal_for_the_lifeline_that_is_refused(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel cannot be told to kill the worker with its parent, a thread of the worker's does that."""
    real = fcntl.fcntl

    def refuse(fd: int, what: int, *args: Any) -> Any:
        if what == fcntl.F_SETSIG:
            raise OSError(errno.EINVAL, "refused, for this test")
        return real(fd, what, *args)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    executor = pool(backend={"mp_context": "fork"})
    assert executor.submit(work.thread_names).result(work.SOON) == ["parallel_exec-lifeline"]


# ── processes and threads beyond a limit ────────────────────────────────────────────────────────────────────────────


class Limited:
    """Lets so many processes be made, as the kernel does; notes how many starts were under way at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.at_once: list[int] = []
        self._lock = threading.Lock()
        self._made = 0
        self._under_way = 0
        self._start = spawn.start

    def __call__(self, *args: Any) -> Any:
        """Start a worker, or refuse."""
        with self._lock:
            self._under_way += 1
            self.at_once.append(self._under_way)
            refused = self._made >= self.most
            self._made += not refused
        try:
            time.sleep(0.01)
            if refused:
                raise BlockingIOError(errno.EAGAIN, "no more processes, for this test")
            return self._start(*args)
        finally:
            with self._lock:
                self._under_way -= 1


@pytest.mark.parametrize("most", [1, 3])
def test_fewer_processes_than_wanted(
    pool: Any, bench: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any, most: int
) -> None:
    """All tasks are done by those that there can be; the system is not asked for all at once, and there is one warning."""
    limited = Limited(most)
    monkeypatch.setattr(spawn, "start", limited)
    executor = pool(16)
    gate = bench.latch()
    futures = [executor.submit(gate.wait) for _ in range(32)]
    work.until(lambda: "goes on with fewer workers" in caplog.text)
    gate.set()
    assert [future.exception(work.SOON) for future in futures] == [None] * 32
    assert executor.stats().workers == most
    assert max(limited.at_once) <= 2
    assert len(limited.at_once) <= 4 * most + 4  # three refusals in a row, counted anew whenever one is ready
    assert caplog.text.count("goes on with fewer workers") == 1


def test_it_is_judged_when_no_start_is_pending(pool: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many starts are refused while the first worker is still starting: it may yet do the work, and does."""
    limited = Limited(1)
    monkeypatch.setattr(spawn, "start", limited)
    gate = bench.latch()
    executor = pool(4, backend={"initializer": gate.wait})
    futures = [executor.submit(work.same, number) for number in range(8)]
    work.until(lambda: len(limited.at_once) >= 4, work.SOON)
    time.sleep(0.1)
    assert not any(future.done() for future in futures)
    gate.set()
    assert [future.result(work.SOON) for future in futures] == list(range(8))


def test_no_process_at_all(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few tries, a moment apart, that is one clear error."""
    limited = Limited(0)
    monkeypatch.setattr(spawn, "start", limited)
    begun = time.monotonic()
    error = pool(16).submit(work.same, 1).exception(work.SOON)
    assert isinstance(error, WorkerStartError)
    assert "no more processes" in str(error)
    assert len(limited.at_once) == 3
    assert time.monotonic() - begun >= 0.1


def test_a_refusal_that_is_a_matter_of_moments(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool whose first start is refused once has its worker with the next."""
    limited = Limited(0)
    monkeypatch.setattr(spawn, "start", limited)
    executor = pool(1)
    future = executor.submit(work.same, 1)
    work.until(lambda: bool(limited.at_once), work.SOON)
    limited.most = 1
    assert future.result(work.SOON) == 1


def test_no_space_for_a_semaphore(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what it is that lies in a file system which is full."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Semaphore, "__init__", refuse)
    error = pool(backend={"mp_context": "spawn"}).submit(work.same, 1).exception(work.SOON)
    assert isinstance(error, BrokenProcessPool)
    assert "/dev/shm" in str(error)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else, and needs to: limits do not hold for it")
@pytest.mark.parametrize("most", [8, 12])
def test_a_real_limit_on_processes(tmp_path: Path, most: int) -> None:
    """With room for fewer processes and threads than a pool may have workers, all tasks are done.

    The program becomes somebody else, who has no other processes, yet keeps the right to read all files: what it has not
    imported yet may lie in a folder that only root may read.
    """
    body = """
        import ctypes, resource
        from parallel_exec import ProcessBackend
        most, user = map(int, sys.argv[1:])
        libc = ctypes.CDLL(None, use_errno=True)
        keep_capabilities, version, read_all_files = 8, 0x20080522, 1 << 2  # <linux/prctl.h>, <linux/capability.h>
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
        assert libc.prctl(keep_capabilities, 1, 0, 0, 0) == 0
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        sets = (ctypes.c_uint32 * 6)(read_all_files, read_all_files)
        assert libc.capset((ctypes.c_uint32 * 2)(version, 0), sets) == 0, os.strerror(ctypes.get_errno())
        with ParallelExecutor(max_concurrency=16, retry_count=0, backend=ProcessBackend(mp_context="fork")) as executor:
            futures = [executor.submit(time.sleep, 0.05) for _ in range(32)]
            errors = [repr(error) for error in (future.exception(20) for future in futures) if error is not None]
            say(executor.stats().workers < most, *errors[:1])
    """
    process = script.start(tmp_path, body, str(most), str(40000 + os.getpid() % 20000), flags=("-X", "faulthandler"))
    out, err = script.finish(process)
    assert out == "True\n", err


# ── what lasts ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("executable", [None, "", "/no/such/python"])
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_no_interpreter_to_start(
    pool: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any, method: str, executable: Any
) -> None:
    """In a program that embeds Python that is one clear error at once, which names the remedy; `fork` needs none."""
    monkeypatch.setattr(mp_spawn, "_python_exe", executable)
    executor = pool(2, backend={"mp_context": method})
    error = executor.submit(work.same, 1).exception(2)
    assert isinstance(error, BrokenProcessPool)
    assert "set_executable" in str(error)
    assert caplog.records == []
    assert pool(backend={"mp_context": "fork"}).submit(work.same, 1).result(work.SOON) == 1


@pytest.mark.parametrize("where", ["_pump", "_nap"])
def test_an_error_that_lasts(pool: Any, bench: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any, where: str) -> None:
    """What the I/O thread raises twice while nothing moves ends all tasks, and the workers; it is logged twice, not for ever."""
    executor = pool(2)
    entered, gate = bench.latch(), bench.latch()
    running = executor.submit(work.hold, entered, gate)
    entered.wait()
    workers = processes.workers(executor)
    done = executor.submit(work.same, 7)
    assert done.result(work.SOON) == 7
    executor.pause()  # the thread may turn before they are all in
    futures = [running, executor.submit(work.hold, entered, gate), executor.submit(work.pid)]  # one more than workers

    def fail(self: Any, *_: Any) -> None:
        raise ValueError("it lasts")

    monkeypatch.setattr(ProcessPool, where, fail)
    executor.resume()
    for future in futures:
        error = future.exception(work.SOON)
        assert isinstance(error, BrokenProcessPool)
        assert "ValueError: it lasts" in str(error)
    executor.shutdown()
    work.until(lambda: not any(map(processes.is_alive, workers)), work.SOON)
    assert len(caplog.records) <= 3


def test_an_error_that_passes(pool: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """What is raised now and then is logged, and the pool goes on."""
    executor = pool(2)
    assert executor.submit(work.same, 1).result(work.SOON) == 1
    nap = ProcessPool._nap
    turns: list[int] = []

    def fail_each_second_time(self: Any) -> Any:
        turns.append(1)
        if len(turns) % 2:
            raise ValueError("it passes")
        return nap(self)

    monkeypatch.setattr(ProcessPool, "_nap", fail_each_second_time)
    futures = [executor.submit(work.same, number) for number in range(20)]
    assert [future.result(work.SOON) for future in futures] == list(range(20))
    assert "it passes" in caplog.text


def test_descriptors_that_are_closed_behind_its_back(tmp_path: Path) -> None:
    """A pool in use ends with a clear error, and the program with it; none of its workers is left."""
    body = """
        executor = ParallelExecutor(max_concurrency=2, backend="process", retry_count=0)
        worker = executor.submit(os.getpid).result(9)
        running = executor.submit(time.sleep, 60)
        time.sleep(0.2)
        os.closerange(3, 512)
        errors = {type(future.exception(9)).__name__ for future in (running, executor.submit(os.getpid))}
        executor.shutdown()
        say(*errors)
        while os.path.exists(f"/proc/{worker}"):
            time.sleep(0.01)
    """
    out, err = script.finish(script.start(tmp_path, body, flags=("-X", "faulthandler")))
    assert out.split() == ["WorkerStartError"]
    assert len(err) < 20000


@pytest.mark.parametrize("spare", range(0, 36, 3))
def test_no_descriptors_for_the_first_worker(pool: Any, spare: int) -> None:
    """However few descriptors are left: the task runs, or there is one clear error; no hang, and nothing leaks."""
    pool().submit(work.pid).result(work.SOON)  # multiprocessing's own services are there
    executor = pool(2)
    with processes.few_descriptors(spare):
        error = executor.submit(work.same, 1).exception(work.SOON)
    assert error is None or isinstance(error, WorkerStartError)


@pytest.mark.parametrize("spare", range(0, 48, 3))
def test_no_descriptors_for_another_worker(pool: Any, bench: Any, spare: int) -> None:
    """A pool that has a worker goes on with what it has."""
    executor = pool(3)
    executor.submit(work.pid).result(work.SOON)
    with processes.few_descriptors(spare):
        futures = [
            executor.submit(stdlib_only_tasks.note_and_nap, bench.log().path, number, 0.005) for number in range(60)
        ]
        wait(futures, timeout=work.SOON)
        assert [future.exception(0) for future in futures] == [None] * 60


@contextlib.contextmanager
def no_starts() -> Iterator[list[str]]:
    """Let no worker start meanwhile; gives the names of those that were tried."""
    tried: list[str] = []

    def fail(context: Any, setup: Any, name: str, *_: Any) -> Any:
        tried.append(name)
        raise OSError(errno.EMFILE, "no descriptors left, for this test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spawn, "start", fail)
        yield tried


def test_a_failed_start_leaves_no_semaphore_to_the_collector(pool: Any, bench: Any) -> None:
    """That might come while the resource tracker is at work, in the same thread, and wait for it for ever."""
    gc.collect()
    before = _count(SemLock)
    gc.disable()
    try:
        executor = pool(3)
        first, gate = busy(executor, bench)
        with no_starts() as tried:
            futures = [executor.submit(work.pid) for _ in range(60)]
            work.until(lambda: len(tried) >= 2, work.SOON)
            gate.set()
            wait([first, *futures], timeout=work.SOON)
            executor.shutdown()
        assert _count(SemLock) == before
    finally:
        gc.enable()


def _count(kind: type) -> int:
    return sum(isinstance(each, kind) for each in gc.get_objects())


def busy(executor: Any, bench: Any) -> tuple[Any, Any]:
    """Occupy the only worker; returns the future, and what lets it end."""
    entered, gate = bench.latch(), bench.latch()
    future = executor.submit(work.hold, entered, gate)
    entered.wait()
    return future, gate


def test_a_pool_that_cannot_have_another_worker(pool: Any, bench: Any, caplog: Any) -> None:
    """It does not break while it has one, and does not try all the time to have more."""
    executor = pool(3)
    first, gate = busy(executor, bench)
    with no_starts() as tried:
        futures = [executor.submit(work.pid) for _ in range(60)]
        work.until(lambda: "goes on with fewer workers" in caplog.text, work.SOON)
        gate.set()
        (worker,) = {future.result(work.SOON) for future in futures}
    assert first.result(work.SOON) == "held"
    assert processes.workers(executor) == [worker]
    assert len(tried) in {3, 4}  # the fourth was under way when the third failed


def test_a_pool_whose_only_worker_ends_when_no_other_starts(pool: Any, bench: Any, caplog: Any) -> None:
    """Then it is broken: one clear error, at once."""
    executor = pool(2)
    first, _ = busy(executor, bench)
    with no_starts() as tried:
        second = executor.submit(work.pid)
        work.until(lambda: "goes on with fewer workers" in caplog.text, work.SOON)
        first.abort()
        assert isinstance(second.exception(work.SOON), WorkerStartError)
    assert len(tried) == 6


def test_a_pool_that_can_have_workers_again(
    pool: Any, bench: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """It finds out by itself, while its only worker is busy."""
    monkeypatch.setattr(supervisor, "_START_AGAIN", 0.2)
    executor = pool(2)
    first, _ = busy(executor, bench)
    with no_starts():
        second = executor.submit(work.same, 2)
        work.until(lambda: "goes on with fewer workers" in caplog.text, work.SOON)
    assert second.result(work.SOON) == 2
    assert not first.done()


def test_a_pool_that_no_longer_needs_another_worker(
    pool: Any, bench: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """When the time for the next try has come, and nothing waits for it, its thread sleeps on."""
    monkeypatch.setattr(supervisor, "_START_AGAIN", 0.1)
    turns: list[ProcessPool] = []
    turn = ProcessPool._turn
    monkeypatch.setattr(ProcessPool, "_turn", lambda self: turns.append(self) or turn(self))  # type: ignore[func-returns-value]
    executor = pool(2)
    busy(executor, bench)
    with no_starts():
        second = executor.submit(work.same, 2)
        work.until(lambda: "goes on with fewer workers" in caplog.text, work.SOON)
        assert second.cancel()
    time.sleep(0.2)
    before = len(turns)
    time.sleep(0.2)
    assert len(turns) - before < 10


def test_no_descriptor_for_a_large_result(pool: Any) -> None:
    """A result whose segment cannot be received fails its task, no other."""
    executor = pool()
    executor.submit(work.pid).result(work.SOON)
    with processes.few_descriptors(0):
        large = executor.submit(bytearray, 3 << 20)
        small = [executor.submit(work.same, number) for number in range(50)]
        assert [future.result(work.SOON) for future in small] == list(range(50))
        large.exception(work.SOON)
    assert executor.submit(bytearray, 3 << 20).result(work.SOON) == bytearray(3 << 20)


@pytest.mark.parametrize("refused", ["parallel_exec-io", "parallel_exec-clock"])
def test_no_thread_to_be_had(pool: Any, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """When the system refuses a thread that the pool needs, what waits and what comes is refused with one clear error."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == refused:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    executor = pool(2)
    future = executor.submit(work.same, 1)
    assert isinstance(future.exception(work.SOON), BrokenProcessPool)
    assert "can't start new thread" in str(future.exception())
    with pytest.raises(BrokenProcessPool):
        executor.submit(work.same, 2)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_no_thread_for_a_start(pool: Any, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """When the system refuses only the thread that starts a worker, whatever it says, the worker is started without."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "parallel_exec-start":
            raise error("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert pool(2).submit(work.same, 1).result(work.SOON) == 1


def test_while_another_thread_imports_multiprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that are only half there, with functions that fail, say nothing yet: a worker can be started."""

    def fails() -> None:
        raise NameError("the rest of the module is not there yet")

    for name, function in (("spawn", "get_executable"), ("process", "current_process")):
        half = types.ModuleType(f"multiprocessing.{name}")
        setattr(half, function, fails)
        monkeypatch.setitem(sys.modules, half.__name__, half)
    assert start_method.forbidden() is None
    assert start_method.lacking(None) is None
