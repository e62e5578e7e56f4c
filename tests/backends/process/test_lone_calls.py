"""A call that comes alone: who sends it, and what the I/O thread does not do for it."""

from __future__ import annotations

import threading
import time
from typing import Any

import inside
import processes
import pytest
import work

from parallel_exec import TaskTimeoutError
from parallel_exec.backends.process.assignments import Assignments
from parallel_exec.backends.process.pool import ProcessPool
from parallel_exec.backends.process.receiver import Receiver
from parallel_exec.backends.process.worker_handle import WorkerState


@pytest.fixture
def warm(pool: Any, bench: Any) -> Any:
    """A pool with two workers, both of which have nothing to do."""
    executor = pool(2)
    latches = [bench.latch() for _ in range(2)]
    for future in [executor.submit(work.meet, latches, mine) for mine in range(2)]:
        future.result(work.SOON)
    for future in [executor.submit(time.sleep, 0.2) for _ in range(2)]:  # it takes its calls for long ones from then on
        future.result(work.SOON)
    return executor


def senders(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Return a list to which each batch, of whichever way, adds the thread that sends it."""
    seen: list[threading.Thread] = []
    for name in ("hand_out", "hand_over"):
        send = getattr(Assignments, name)

        def note(self: Any, *rest: Any, send: Any = send) -> Any:
            sent = send(self, *rest)
            if sent is not False:
                seen.append(threading.current_thread())
            return sent

        monkeypatch.setattr(Assignments, name, note)
    return seen


def test_caller_sends_a_lone_call(warm: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for the I/O thread; nor do as many calls as there are workers."""
    seen = senders(monkeypatch)
    for number in range(3):
        assert warm.submit(work.double, number).result(work.SOON) == 2 * number
    assert seen == [threading.current_thread()] * 3
    gate = bench.latch()
    futures = [warm.submit(gate.wait) for _ in range(3)]
    gate.set()
    for future in futures:
        future.result(work.SOON)
    names = [thread.name for thread in seen[3:]]
    assert names[:2] == ["MainThread", "MainThread"]
    assert set(names[2:]) == {"parallel_exec-io"}  # once, or again when it was taken back from behind a call


def test_lone_call_after_one_whose_end_was_heard_of_twice(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker was seen to have nothing to do, by its journal, when the same came through the pipe: the race, made certain.

    The next call's start is looked for, or its timeout would never come.
    """
    receive = Receiver.receive

    def hear_twice(self: Any, handle: Any) -> bool:
        if handle.state == WorkerState.STARTING:
            return receive(self, handle)
        frames, eof = handle.read()
        self.frames(handle, frames)
        handle.poll_next(None)
        self._assignments.forget_idle(handle)
        handle.read = lambda: (frames, eof)
        try:
            return receive(self, handle)
        finally:
            del handle.read

    monkeypatch.setattr(Receiver, "receive", hear_twice)
    executor = pool()
    executor.submit(int).result(work.SOON)
    time.sleep(0.05)  # so that the I/O thread sleeps for good
    with pytest.raises(TaskTimeoutError):
        executor.options(timeout=0.2).submit(time.sleep, 60).result(work.SOON)


def test_lone_call_after_a_pause(warm: Any) -> None:
    """The I/O thread has gone to sleep for good, and hears of the call, of its timeout, and of what follows."""
    time.sleep(0.1)
    with pytest.raises(TimeoutError):
        warm.options(timeout=0.1).submit(time.sleep, 60).result(work.SOON)
    assert warm.submit(work.double, 1).result(work.SOON) == 2


def test_timeout_amid_lone_calls(warm: Any) -> None:
    """A call that hangs is found although others, one after the other, keep the I/O thread from sleeping."""
    start = time.monotonic()
    hangs = warm.options(timeout=0.2).submit(time.sleep, 60)
    while not hangs.done():
        assert warm.submit(work.double, 1).result(work.SOON) == 2
    assert isinstance(hangs.exception(), TimeoutError)
    assert time.monotonic() - start < work.SOON  # the call would have taken a minute


def test_running_is_seen(warm: Any, bench: Any) -> None:
    """A lone call that lasts is known to run before it ends."""
    gate = bench.latch()
    future = warm.submit(gate.wait)
    work.until(future.running)
    gate.set()
    assert future.result(work.SOON) is None


def test_lone_call_does_not_pass_what_waits(warm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While something is paused, queued or taken back, a call takes its turn in the queue."""
    seen = senders(monkeypatch)
    warm.pause()
    futures = [warm.submit(work.double, number) for number in range(2)]
    assert seen == []
    warm.resume()
    assert [future.result(work.SOON) for future in futures] == [0, 2]
    assert threading.current_thread() not in seen


def test_what_is_too_large_for_one_write(warm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that a pipe might take in parts is the I/O thread's."""
    seen = senders(monkeypatch)
    assert warm.submit(len, bytes(100_000)).result(work.SOON) == 100_000
    assert [thread.name for thread in seen] == ["parallel_exec-io"]


def test_pool_with_a_limit_of_tasks(pool: Any) -> None:
    """A worker that is to be replaced after some tasks gets no more than these by any way."""
    executor = pool(1, backend={"max_tasks_per_child": 2})
    pids = [executor.submit(work.pid).result(work.SOON) for _ in range(6)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 2]


def test_idle_workers_cost_nothing(warm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The I/O thread does not go through all workers for a lone call: only those are looked at that have something to do."""
    pumped: list[Any] = []
    pump = ProcessPool._pump

    def note(self: ProcessPool, port: Any) -> None:
        pumped.append(self)
        pump(self, port)

    monkeypatch.setattr(ProcessPool, "_pump", note)
    for number in range(20):
        assert warm.submit(work.double, number).result(work.SOON) == 2 * number
    assert pumped == []
    assignments = inside.runner(warm).assignments
    assert len(processes.handles(warm)) == 2
    work.until(lambda: not assignments.active, work.SOON)


def test_lone_calls_of_many_threads(warm: Any) -> None:
    """Each gets its own result, whichever way its calls go."""
    wrong: list[Any] = []

    def call(base: int) -> None:
        for number in range(base, base + 200):
            result = warm.submit(work.double, number).result(work.SOON)
            if result != 2 * number:
                wrong.append((number, result))

    threads = [threading.Thread(target=call, args=(1000 * base,)) for base in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert warm.stats().succeeded == 1204
