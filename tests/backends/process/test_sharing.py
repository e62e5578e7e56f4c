"""What is shared with worker processes: where it lies, who may write it, and when it is gone."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pickle
import tempfile
import threading
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any, Iterable

import numpy
import processes
import pytest
import script
import shared_tasks
import tracked
import work
from interruptions import leaves_nothing_open

from parallel_exec import TaskSerializationError, WorkerStartError
from parallel_exec.backends import _contents, _pickling
from parallel_exec.backends.process import payload, segments

from . import array_tasks

SIZE = 1 << 18  # numbers of an array: 2 MB


def _mapped(pid: int) -> int:
    """Return how many memories are mapped in a process."""
    return sum(
        " r--s " in line and "memfd:parallel_exec" in line
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
    )


@pytest.fixture
def ones() -> Any:
    """An array."""
    return numpy.ones(SIZE)


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_an_array_lies_in_memory_once(bench: Any, ones: Any, method: str) -> None:
    """Each worker maps the same memory, once, however many calls it runs; nothing else of that size is copied."""
    pool = bench.pool(2, backend={"mp_context": method})
    shared = pool.share(ones)
    counts = {pid: count for count, pid in pool.map(shared_tasks.look, [shared] * 100)}
    assert set(counts.values()) == {1}
    assert pool.submit(array_tasks.total, shared).result() == SIZE


def test_it_cannot_be_written(bench: Any, ones: Any) -> None:
    """Neither as an array, nor by whoever opens the memory itself."""
    pool = bench.pool()
    shared = pool.share(ones)
    with pytest.raises(ValueError, match="read-only"):
        pool.submit(array_tasks.add_in_place, shared, 1).result()
    with pytest.raises(PermissionError):
        pool.submit(shared_tasks.write_at, shared.content().address()).result()
    with pytest.raises(ValueError, match="read-only"):
        shared.value[0] = 2
    assert pool.submit(array_tasks.total, shared).result() == SIZE


def test_a_worker_that_replaces_another_has_it(bench: Any, ones: Any) -> None:
    """After a crash, a kill at a timeout, and `max_tasks_per_child`."""
    pool = bench.pool(2, retry_count=3, backend={"max_tasks_per_child": 3})
    shared, log = pool.share(ones), bench.log()
    assert pool.submit(shared_tasks.die_once, shared, log).result() == SIZE
    assert pool.options(timeout=0.2).submit(shared_tasks.hang_once, shared, bench.log()).result() == SIZE
    assert [pool.submit(array_tasks.total, shared).result() for _ in range(12)] == [SIZE] * 12


def test_an_idle_worker_lets_go_of_what_is_gone(bench: Any, ones: Any) -> None:
    """It is told, and need not get another task for that; what others share stays."""
    pool = bench.pool(2)
    gone, stays = pool.share(ones), pool.share(numpy.ones(1))
    pids = [future.result() for future in [pool.submit(shared_tasks.nap, gone, stays) for _ in range(2)]]
    assert tracked.wait_until(lambda: {_mapped(pid) for pid in pids} == {2})
    del gone
    assert tracked.wait_until(lambda: {_mapped(pid) for pid in pids} == {1})
    assert pool.submit(array_tasks.total, stays).result() == 1


def test_what_was_in_it_goes_with_it(bench: Any, ones: Any) -> None:
    """A handle in what is shared keeps its object as long, here and in the worker."""
    pool = bench.pool()
    outer = pool.share([pool.share(ones)])
    assert pool.submit(shared_tasks.hand_on_value, outer).result() == SIZE
    (pid,) = processes.workers(pool)
    assert _mapped(pid) == 1
    del outer
    assert tracked.wait_until(lambda: _mapped(pid) == 0)


def test_a_worker_lets_go_in_the_middle_of_its_batches(bench: Any) -> None:
    """What is shared, used and dropped again and again leaves nothing, also while workers are busy."""
    pool = bench.pool(2)
    futures = []
    for number in range(200):
        shared = pool.share([number])
        futures += [pool.submit(shared_tasks.add, shared), pool.submit(partial(shared_tasks.add, shared), 1)]
    del shared
    assert [future.result() for future in futures] == [n for number in range(200) for n in (number, number + 1)]
    pids = processes.workers(pool)
    assert tracked.wait_until(lambda: {_mapped(pid) for pid in pids} == {0})


def test_a_task_keeps_a_handle_that_it_has_deeper(bench: Any) -> None:
    """One in a list is there until the task has ended, though it was closed meanwhile."""
    pool = bench.pool()
    gate, numbers = bench.latch(), pool.share([1, 2])
    pool.submit(gate.wait)
    waiting = pool.submit(shared_tasks.value_of, [numbers])
    numbers.close()
    gate.set()
    assert waiting.result() == ("Shared", [1, 2])


def test_calls_that_share_travel_as_small_ones_do(bench: Any, ones: Any) -> None:
    """No descriptor goes with them: they travel in batches, and by the short way of a lone call."""
    pool = bench.pool()
    shared = pool.share(ones)
    future = pool.submit(array_tasks.total, shared)
    assert not future.payload.has_descriptors()
    assert len(future.payload.data) < 300
    assert future.result() == SIZE


def test_more_than_the_memory_limit_can_be_shared(bench: Any) -> None:
    """What is mapped is not the worker's own."""
    limit = 1 << 28
    pool = bench.pool(backend={"memory_limit": limit})
    big = numpy.zeros(limit // 8 + 1000)
    assert pool.submit(array_tasks.total, pool.share(big)).result() == 0


def test_without_proc_it_is_a_file(bench: Any, ones: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where descriptors have no address the memory is a file, which goes with it."""
    monkeypatch.setattr(_contents, "_PROC", str(tmp_path / "nowhere"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pool = bench.pool()
    shared = pool.share(ones)
    assert pool.submit(array_tasks.total, shared).result() == SIZE
    (path,) = tmp_path.glob("parallel_exec-*")
    assert path.stat().st_mode & 0o077 == 0
    del shared
    assert tracked.wait_until(lambda: not list(tmp_path.glob("parallel_exec-*")))


def test_without_memfd(bench: Any, ones: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no memory that can be sealed it is mapped without being sealed, and still read-only."""
    monkeypatch.delattr(os, "memfd_create")
    pool = bench.pool()
    shared = pool.share(ones)
    assert pool.submit(array_tasks.total, shared).result() == SIZE
    with pytest.raises(ValueError, match="read-only"):
        pool.submit(array_tasks.add_in_place, shared, 1).result()


def test_no_memory(bench: Any, ones: Any, no_memory: None) -> None:
    """Without memory, `share` says so."""
    with pytest.raises(OSError, match="no space left"):
        bench.pool().share(ones)


def test_something_else_at_its_address(bench: Any) -> None:
    """An address under which there is another file by now is refused."""
    pool = bench.pool()
    one = pool.share([1])
    number, address, main = one.content().key()
    with pytest.raises(LookupError, match="not to be had"):
        _contents.load(number + 1, address, main)
    _contents.forget(number + 1)


def stored(numbers: Iterable[int]) -> list[_contents.Content]:
    """Return contents in memory that other processes can map: a list for each number, with that."""
    contents = [_contents.Content(_contents.new_number(), [number]) for number in numbers]
    for content in contents:
        content.store(has_main=True)
    return contents


def test_an_engines_process_lets_go_when_it_gets_another(bench: Any) -> None:
    """A process that nobody tells looks for itself, when it meets what it does not know."""
    contents = stored(range(2))
    pool = bench.pool()
    keys = [content.key() for content in contents]
    assert pool.submit(shared_tasks.load_and_count, keys[0]).result() == ([0], 1)
    assert pool.submit(shared_tasks.load_and_count, keys[1]).result() == ([1], 2)
    contents.clear()
    (third,) = stored([3])
    assert pool.submit(shared_tasks.load_and_count, third.key()).result() == ([3], 1)


def test_what_the_workers_cannot_unpickle(bench: Any) -> None:
    """The task fails, as with any argument of that kind."""
    pool = bench.pool()
    with pytest.raises(TaskSerializationError, match="cannot rebuild"):
        pool.submit(shared_tasks.kinds, pool.share(shared_tasks.Unreadable())).result()


def test_without_cloudpickle_a_main_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the error of `share` says what to do."""
    monkeypatch.setattr(_pickling, "find_cloudpickle", lambda: None)
    monkeypatch.setattr(payload, "why_not_importable", lambda: "which is closed")
    assert not payload.dumps_shared("main__", has_main=False).buffers  # it only says the name
    monkeypatch.setattr(shared_tasks.Counted, "__module__", "__main__")
    monkeypatch.setattr("__main__.Counted", shared_tasks.Counted, raising=False)
    with pytest.raises(WorkerStartError, match="what is shared needs the main module, which is closed"):
        payload.dumps_shared(shared_tasks.Counted, has_main=False)
    assert payload.dumps_shared(shared_tasks.Counted, has_main=None).names_main


def test_in_a_forked_child(tmp_path: Path) -> None:
    """A handle that was made before a fork is good in the child, too."""
    out = script.run(
        tmp_path,
        """
        executor = ParallelExecutor(backend="process", max_concurrency=1)
        shared = executor.share([1, 2])
        child = os.fork()
        if not child:
            say(shared.value)
            with ParallelExecutor(backend="process", max_concurrency=1) as own:
                say(own.submit(sum, shared).result())
            os._exit(0)
        os.waitpid(child, 0)
        say(executor.submit(sum, shared).result())
        executor.shutdown()
        """,
    )
    assert out.split() == ["[1,", "2]", "3", "3"]


def test_a_nested_executor_hands_it_on(bench: Any, ones: Any) -> None:
    """A task may give a handle to an executor of its own: its workers open the same memory."""
    pool = bench.pool()
    assert pool.submit(shared_tasks.hand_on, [pool.share(ones)]).result() == SIZE


def test_buffers_of_all_kinds_are_found_where_they_are(bench: Any) -> None:
    """Each piece has its place: several arrays, empty ones, odd sizes, and orders."""
    pool = bench.pool()
    arrays = [numpy.arange(n, dtype=kind) for n in (0, 1, 7, 1000) for kind in ("u1", "f8")]
    arrays.append(numpy.asfortranarray(numpy.arange(12.0).reshape(3, 4)))
    arrays.append(numpy.arange(20)[::2])
    shared = pool.share({"arrays": arrays, "text": "x" * (segments.THRESHOLD + 1)})
    sums = pool.submit(shared_tasks.sums, shared).result()
    assert sums == [float(array.sum()) for array in arrays]
    assert pickle.loads(pickle.dumps(shared.value))["arrays"][-2].flags.f_contiguous


def test_it_is_as_fast_as_no_argument_at_all(bench: Any) -> None:
    """What a call with a large shared array takes does not grow with the array."""
    pool = bench.pool()
    shared = pool.share(numpy.ones(50_000_000 // 8))
    assert pool.submit(shared_tasks.pid, shared).result()
    start = time.monotonic()
    assert len(set(pool.map(shared_tasks.pid, [shared] * 1000))) == 1
    assert time.monotonic() - start < 2.0  # copying it would take 20 s


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_the_memory_is_freed_while_workers_live(bench: Any, method: str) -> None:
    """A worker that was forked has no copy of a descriptor that would keep it, and finds it in its parent."""
    pool = bench.pool(backend={"mp_context": method})
    shared = pool.share(numpy.ones(SIZE))
    address = shared.content().address()
    inode = os.stat(address).st_ino
    assert pool.submit(array_tasks.total, shared).result() == SIZE
    (worker,) = processes.workers(pool)
    assert _inodes(worker).count(inode) == 1  # of its own mapping
    del shared
    assert tracked.wait_until(lambda: inode not in _inodes(worker))


def _inodes(pid: int) -> list[int]:
    """Return the inodes of a process's descriptors."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.stat(f"/proc/{pid}/fd/{name}").st_ino)
    return found


def test_a_finalizer_waits_for_nobody(bench: Any) -> None:
    """What is shared may go in any thread, whatever that holds: it must not wait there for what another thread holds."""
    pool = bench.pool()
    shared = pool.share([1])
    assert pool.submit(sum, shared).result() == 1
    held, gate = threading.Event(), threading.Event()

    def hold() -> None:
        with pool._scheduler.lock:
            held.set()
            gate.wait(work.SOON)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(work.SOON)
    del shared
    assert holder.is_alive()
    gate.set()
    holder.join()


def test_what_is_shared_is_not_memory_of_the_worker(bench: Any) -> None:
    """A worker is not replaced for it, as its replacement would have it, too."""
    most = 150 << 20
    pool = bench.pool(backend={"max_memory_per_child": most})
    shared = pool.share(numpy.ones(most // 8))
    for _ in range(3):
        assert pool.submit(array_tasks.total, shared).result() == most // 8
        time.sleep(0.01)  # so often it looks
    assert len({pool.submit(shared_tasks.pid, shared).result() for _ in range(3)}) == 1


def test_a_pipe_at_its_address(bench: Any) -> None:
    """It is not opened: that would wait for somebody to write."""
    readable, writable = os.pipe()
    os.close(writable)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LookupError, match="not to be had"):
        _contents.load(1, f"/proc/{os.getpid()}/fd/{readable}", "")
    _contents.forget(1)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(readable)


def test_too_many_are_shared(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor `share` says what to do."""

    def refuse(size: int, fds: list[int]) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(segments, "create", refuse)
    with pytest.raises(OSError, match=r"Too many open files: each object that is shared holds one: share many small"):
        bench.pool().share([1])


def test_what_arrives_costs_the_same_however_much_there_is(bench: Any) -> None:
    """Of what has arrived before, only a few are looked for; in turn, so that all that is gone is found."""
    contents = stored(range(50))
    pool = bench.pool()
    keys = [content.key() for content in contents]
    assert [pool.submit(shared_tasks.load_and_count, key).result() for key in keys] == [([n], n + 1) for n in range(50)]
    del contents[1:]
    more = stored(range(5))
    counts = [pool.submit(shared_tasks.load_and_count, each.key()).result()[1] for each in more]
    assert counts[0] > counts[-1] == 6


def test_nothing_is_said_where_ctrl_c_comes_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is half made goes without a word: its finalizer finds what it needs. (An error in there would fail the test.)"""

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _contents.Memory([memoryview(b"x")])
    _contents.Content.__new__(_contents.Content)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", interrupted)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(KeyboardInterrupt):
            _contents.Memory([memoryview(b"x")])
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("has_proc", [True, False])
def test_ctrl_c_as_memory_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_proc: bool) -> None:
    """Wherever it comes no descriptor stays open, although what was raised is kept; nor does a file stay, with it gone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not has_proc:
        monkeypatch.setattr(_contents, "_PROC", str(tmp_path / "nowhere"))
    kept: list[KeyboardInterrupt] = []
    assert leaves_nothing_open(lambda: _contents.Memory([memoryview(b"x")] * 2), kept) > 50
    kept.clear()
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_ctrl_c_as_memory_is_opened() -> None:
    """Wherever it comes, as an object arrives or is looked for, nothing stays open."""
    content = _contents.Content(1, value=2)
    address = content.address()
    assert leaves_nothing_open(lambda: _contents._read(1, address), deque(maxlen=0)) > 50
    assert leaves_nothing_open(lambda: _contents._is_there(1, content), deque(maxlen=0)) > 20
