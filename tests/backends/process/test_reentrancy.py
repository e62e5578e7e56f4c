"""Code that comes in the middle of something else: finalizers, callbacks and timers, at the worst moment."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from concurrent.futures import wait
from typing import Any

import inside
import processes
import pytest
import tenacity
import work
from manual_backend import ManualBackend

from parallel_exec import TaskTimeoutError
from parallel_exec._core.completion import Completion
from parallel_exec.backends.process import segments, wire, worker_handle
from parallel_exec.backends.process.child.writer import Outbox

from . import stdlib_only_tasks

# ── in the worker ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_record_amid_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finalizer that logs while a frame is being written does not wait for itself, and does not tear the frame."""
    fd = segments.create(wire.FILE_SIZE, [])
    out, into = os.pipe()
    channel: Any = None
    journal = wire.Journal(fd)
    outbox = Outbox(into, channel, journal)
    write_all = wire.write_all

    def interrupted(descriptor: int, data: bytes) -> None:
        write_all(descriptor, data[:3])
        if data == b"frame":
            outbox.send(b"record")
        write_all(descriptor, data[3:])

    monkeypatch.setattr(wire, "write_all", interrupted)
    outbox.send(b"frame")
    outbox.send(b"next")
    os.close(into)
    assert os.read(out, 100) == b"framerecordnext"
    for descriptor in (out, fd):
        os.close(descriptor)
    journal.close()


class Noisy:
    """A cycle whose end is logged, whenever the collector finds it."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        logging.getLogger("noisy").warning("was not closed")


def leave_noise(number: int) -> int:
    """Leave a cycle behind."""
    Noisy()
    return number


def collect_often() -> None:
    """Have the collector come at almost every allocation."""
    gc.set_threshold(3, 2, 2)


def test_finalizers_that_log_all_the_time(pool: Any) -> None:
    """The worker goes on, and all of it arrives."""
    logging.getLogger("noisy").addFilter(lambda _: False)
    executor = pool(backend={"initializer": collect_often})
    futures = [executor.submit(leave_noise, number) for number in range(300)]
    assert not wait(futures, timeout=20).not_done
    assert [future.result() for future in futures] == list(range(300))


def size_of(size: int) -> str:
    """Return so much text."""
    return "x" * size


def test_texts_that_fill_the_journal(pool: Any) -> None:
    """A large value and a small one, again and again: wherever one ends, there is room for the next, or it is made."""
    executor = pool(1)
    sizes = [65_380, 600] * 60 + [number * 487 % 60_000 for number in range(300)]
    assert list(map(len, executor.map(size_of, sizes))) == sizes
    assert executor.stats().retried == 0


def test_a_text_that_is_too_large_for_the_worker(pool: Any) -> None:
    """An item whose result takes more memory than there is fails alone."""
    executor = pool(1, backend={"memory_limit": 200 << 20})
    results = executor.map(size_of, [5, 120 << 20, 5])
    assert len(next(results)) == 5
    with pytest.raises(Exception, match="MemoryError"):
        next(results)
    assert len(executor.submit(size_of, 7).result(work.SOON)) == 7


def stopped_by_the_terminal() -> list[bool]:
    """Return which of a terminal's signals would stop this process."""
    return [signal.getsignal(number) != signal.SIG_IGN for number in (signal.SIGTTIN, signal.SIGTTOU)]


def test_a_worker_is_not_stopped_for_using_the_terminal(pool: Any) -> None:
    """It is in a background group, and there is nobody who would bring it to the foreground."""
    assert pool().submit(stopped_by_the_terminal).result(work.SOON) == [False, False]


# ── in the parent ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "how", [{"on_event": lambda _: None}, {"retry": tenacity.Retrying(stop=tenacity.stop_after_attempt(1))}]
)
def test_a_callback_that_exits_amid_a_batch(pool: Any, how: Any) -> None:
    """The others of the batch are heard of, also where each is told of by itself."""
    executor = pool(1, **how)
    wait([executor.submit(work.same, number) for number in range(300)], timeout=work.SOON)
    executor.pause()
    futures = [executor.submit(work.same, number) for number in range(200)]

    def leave(_: object) -> None:
        raise SystemExit

    futures[5].add_done_callback(leave)
    executor.resume()
    assert not wait(futures, timeout=work.SOON).not_done


def test_a_callback_that_exits_amid_what_is_put_back(lab: Any) -> None:
    """Of several tasks that were cancelled while a back end had them, each ends, whatever the callback of one does."""
    executor = lab.executor(backend=ManualBackend())
    hand = inside.runner(executor)
    hand.recalled = False
    futures = [executor.submit(int) for _ in range(3)]
    taken = [hand.take() for _ in futures]

    def leave(_: object) -> None:
        raise SystemExit

    futures[0].add_done_callback(leave)
    for future in futures:
        assert future.abort()
    with pytest.raises(SystemExit):
        hand.port.finish_overridden(hand.port.requeue(taken))
    assert all(future.cancelled() for future in futures)


@pytest.mark.parametrize("way", ["submit", "map"])
def test_what_cannot_be_loaded_in_time(pool: Any, bench: Any, way: str) -> None:
    """It times out, and an item of a map does so alone."""
    executor = pool(2, timeout=4.0)
    executor.submit(work.same, 1).result(30)
    inside.runner(executor)._launcher.startup_timeout = 1.5  # which is the limit for loading as well
    stuck = work.SlowToRebuild(bench.latch(), bench.latch())
    if way == "submit":
        with pytest.raises(TaskTimeoutError):
            executor.submit(work.same, stuck).result(work.SOON)
    else:
        results = executor.map(work.same, [1, 2, stuck])
        assert [next(results), next(results)] == [1, 2]
        with pytest.raises(TaskTimeoutError):
            next(results)


def test_a_clock_that_comes_too_late_for_an_item(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one has begun when the overdue one is to be stopped: it is left alone."""
    executor = pool(1, timeout=0.3)
    for _ in range(20):
        executor.options(timeout=30).submit(work.nap, 0.004).result(work.SOON)
    assignments = inside.runner(executor).assignments
    stop_item = assignments.stop_item

    def late(handle: Any, serial: int, error: BaseException) -> None:
        work.until(lambda: handle.files.journal.running().serial != serial, work.SOON)
        stop_item(handle, serial, error)

    monkeypatch.setattr(assignments, "stop_item", late)
    naps = [0.33, 0.1, 0.1, 0.1]
    assert len(list(executor.map(work.nap, naps, chunksize=4))) == 4


def test_a_finalizer_amid_a_hand_out(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map that is collected while a batch is being made up takes back nothing of it."""
    executor = pool(1)
    list(executor.map(work.nap, [0.0003] * 60))
    assignments = inside.runner(executor).assignments
    dropped: Any = executor.map(work.nap, [0.0003] * 2000)
    kept = executor.map(stdlib_only_tasks.note_and_nap, ["/dev/null"] * 1000, range(1000), [0.0003] * 1000)
    next(dropped)
    held = [dropped]
    del dropped
    assign = worker_handle.WorkerHandle._assign

    def interrupted(handle: Any, serial: int, jobs: Any) -> Any:
        before = len(handle.assigned)
        calls = assign(handle, serial, jobs)
        if held and before >= 2:
            held.clear()  # and with it goes the iterator, whose end cancels its items
            time.sleep(0.02)
        return calls

    monkeypatch.setattr(worker_handle.WorkerHandle, "_assign", interrupted)
    assert list(kept) == list(range(1000))
    assert not held
    work.until(lambda: not any(handle.assigned for handle in assignments.handles), work.SOON)


def test_no_callback_runs_under_the_lock(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that was taken, does not fit, and was cancelled meanwhile is ended once the lock is free."""
    executor = pool(1)
    wait([executor.submit(work.same, number) for number in range(50)], timeout=work.SOON)
    scheduler = inside.scheduler(executor)
    executor.pause()
    futures = [executor.submit(len, b"x" * 50_000) for _ in range(6)]
    owned: list[bool] = []
    for future in futures:
        future.add_done_callback(lambda _: owned.append(scheduler.lock._is_owned()))
    end_waiting = Completion.cancel_all_waiting

    def slowly(self: Any, outcome: Any) -> None:
        scheduler.completion.runner.recheck()
        scheduler.monitor.idle.wake_one()
        time.sleep(0.2)
        end_waiting(self, outcome)

    monkeypatch.setattr(Completion, "cancel_all_waiting", slowly)
    executor.shutdown(wait=False, cancel_futures=True)
    wait(futures, timeout=work.SOON)
    work.until(lambda: len(owned) == 6, work.SOON)
    assert not any(owned)


def test_a_journal_that_is_read_amid_being_emptied() -> None:
    """A row is never taken for frames: with the old end its place is still known, or the generation has changed."""
    fd = segments.create(wire.FILE_SIZE, [])
    writer, reader = wire.Journal(fd), wire.Journal(fd)
    os.close(fd)
    for stores in range(4):
        writer.sent()
        writer.open_row(wire.INTS, 7, 1.0)
        writer.words[wire.END] = (wire.FIRST_CELL + 40) * wire.CELL  # forty zeros, which are eight frames of zeros
        writer.close_row()
        reader.words, real = _Interrupted(reader.words, writer, stores), reader.words
        assert {frame.kind for frame in reader.frames()} <= {wire.INTS}
        reader.words = real
    writer.close()
    reader.close()


class _Interrupted:
    """The words as a reader has them who, once he has the end, is held up for so many stores of the writer's `sent`."""

    def __init__(self, words: Any, writer: wire.Journal, stores: int) -> None:
        self._words, self._writer, self._stores = words, writer, stores

    def __getitem__(self, word: int) -> Any:
        value = self._words[word]
        if word == wire.END and self._stores >= 0:
            mine, self._writer.words = self._writer.words, _Counted(self._writer.words, self._stores)  # type: ignore[assignment]
            self._stores = -1
            self._writer.sent()
            self._writer.words = mine
        return value


class _Counted:
    """The words as a writer has them who is halted after some stores."""

    def __init__(self, words: Any, stores: int) -> None:
        self._words, self._left = words, stores

    def __getitem__(self, word: int) -> Any:
        return self._words[word]

    def __setitem__(self, word: int, value: int) -> None:
        if self._left > 0:
            self._words[word] = value
        self._left -= 1


def test_a_chunk_that_is_under_way_is_not_taken_for_poison(pool: Any, bench: Any) -> None:
    """A worker that dies between two items of a chunk was not killed by loading it, whatever happened to those before."""
    executor = pool(1, retry_count=3)
    assert list(executor.map(work.same, range(3000))) == list(range(3000))
    handle = processes.handles(executor)[0]
    gate = bench.latch()
    results = executor.map(stdlib_only_tasks.wait_unless_first, [gate.path] * 400, range(400), chunksize=400)
    assert next(results) == 0
    chunk = handle.assigned.first()[1]
    bad_starts = inside.runner(executor).assignments._bad_starts
    bad_starts[chunk] = 2
    handle.running = lambda: wire.IDLE  # between two items
    os.kill(handle.process.pid, signal.SIGKILL)
    gate.set()
    assert list(results) == list(range(1, 400))
    assert bad_starts[chunk] == 2
    executor.shutdown()  # the last are counted just after their results are there
    assert executor.stats().succeeded == 3400
