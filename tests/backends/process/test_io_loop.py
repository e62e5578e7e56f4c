"""The loop of a process pool's thread, alone: no worker, no job."""

from __future__ import annotations

import itertools
import os
import queue
import threading
from typing import Any, Callable, Iterator, NoReturn

import pytest
import work
from interruptions import interrupt

from parallel_exec.backends.process import io_loop
from parallel_exec.backends.process.io_loop import ENDED, IoLoop


class Turns:
    """Takes turns in the loop's thread, as a pool would, and notes how many, and how they ended."""

    def __init__(self) -> None:
        self.broken: list[BaseException] = []
        self.loop = IoLoop(threading.RLock(), self.broken.append)
        self.todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.count = 0
        self.progress = 0
        self.ends = False
        self.error: BaseException | None = None

    def start(self) -> None:
        """Start the thread."""
        self.loop.start(self._serve)

    def do(self, act: Callable[[], Any]) -> Any:
        """Have something done in a turn; returns what comes of it."""
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.todo.put(lambda: done.put(act()))
        self.loop.wakeup()
        return done.get(timeout=work.SOON)

    def end(self) -> None:
        """Have the loop end, and wait for that."""
        self.ends = True
        self.loop.wakeup()
        self.loop.join()

    def _serve(self) -> None:
        self.error = self.loop.run(self._turn, lambda: self.progress)
        self.loop.close()

    def _turn(self) -> float | None:
        self.count += 1
        while not self.todo.empty():
            self.todo.get()()
        return ENDED if self.ends else None


@pytest.fixture(params=[io_loop._Poller, io_loop._Selector])
def turns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Turns]:
    """Give a loop that has not been started; it has ended afterwards."""
    monkeypatch.setattr(io_loop, "_Poller", request.param)
    made = Turns()
    yield made
    made.end()


def test_nothing_is_open_before_the_start(turns: Turns) -> None:
    """Waking, joining and closing do nothing then."""
    before = os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else []
    turns.loop.wakeup()
    turns.loop.join()
    turns.loop.close()
    assert (os.listdir("/proc/self/fd") if before else []) == before
    assert turns.loop.thread is None


def test_each_wakeup_is_followed_by_a_turn(turns: Turns) -> None:
    """From whatever thread it comes."""
    turns.start()
    for number in range(100):
        assert turns.do(lambda number=number: number) == number


def test_a_callback_that_returns_true_is_not_called_again(turns: Turns) -> None:
    """Until then it is called whenever the file is ready."""
    turns.start()
    readable, writable = os.pipe()
    said: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def hear() -> bool:
        data = os.read(readable, 1)
        said.put(data)
        return data == b"."

    turns.do(lambda: turns.loop.watch(readable, hear))
    for data in (b"a", b"b", b"."):
        os.write(writable, data)
        assert said.get(timeout=work.SOON) == data
    os.write(writable, b"c")
    assert turns.do(lambda: 1) == turns.do(lambda: 1)
    assert said.empty()
    os.close(readable)
    os.close(writable)


def test_what_is_raised_without_progress_ends_the_loop(turns: Turns, caplog: pytest.LogCaptureFixture) -> None:
    """Twice the same; with progress in between it goes on."""
    turns.start()

    def fail() -> None:
        raise ValueError("for this test")

    for turns.progress in range(5):
        turns.todo.put(fail)
        assert turns.do(lambda: "goes on") == "goes on"
    assert len(caplog.records) == 5
    turns.todo.put(fail)
    turns.todo.put(fail)
    turns.loop.wakeup()
    turns.loop.join()
    assert isinstance(turns.error, ValueError)


def test_a_wake_up_that_ctrl_c_comes_before(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written; the flag must not say that a wake-up is under way. On 3.9 a handler runs between the two."""

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    turns.start()
    assert turns.do(lambda: 1) == 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            turns.loop.wakeup()
    assert turns.do(lambda: 2) == 2  # the next wakes it


def test_a_pipe_that_ctrl_c_has_come_in_the_way_of(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever keeps what was raised in a wake-up, with its frames, does not keep the pipe open."""
    before = set(os.listdir("/proc/self/fd"))

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    turns.start()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:
            turns.loop.wakeup()
    turns.end()
    assert set(os.listdir("/proc/self/fd")) == before
    assert kept.tb is not None


def test_ctrl_c_at_the_start() -> None:
    """Wherever it comes the next start works, and nothing stays open, although what was raised is kept."""
    kept: list[KeyboardInterrupt] = []

    def act() -> NoReturn:
        kept.append(KeyboardInterrupt())
        raise kept[-1]

    for step in itertools.count(1):
        before = set(os.listdir("/proc/self/fd"))
        made = Turns()
        has_more = interrupt(made.start, step, act=act)
        if made.loop.thread is None:
            made.start()
        assert made.do(lambda step=step: step) == step  # type: ignore[misc]
        made.end()
        assert set(os.listdir("/proc/self/fd")) == before, step
        if not has_more:
            break
    assert step > 50


def test_a_wakeup_waits_for_no_lock(turns: Turns) -> None:
    """A finalizer calls it, in any thread."""
    turns.start()
    lock = turns.loop._lock
    done: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    turns.todo.put(lambda: done.put(lambda: None))
    with lock:
        waker = threading.Thread(target=turns.loop.wakeup)
        waker.start()
        waker.join(work.SOON)
        assert not waker.is_alive()
        done.get(timeout=work.SOON)


def test_an_error_of_a_signal_handler_is_not_the_pipes(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `TimeoutError` is an `OSError`, too."""

    def interrupted(*_: object) -> int:
        raise TimeoutError("the alarm's")

    turns.start()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", interrupted)
        with pytest.raises(TimeoutError):
            turns.loop.wakeup()
    assert turns.do(lambda: 1) == 1
    assert turns.broken == []


def test_wakeups_while_it_closes() -> None:
    """They come to nothing, and are written to nobody else's file."""
    for _ in range(200):
        made = Turns()
        made.start()
        wakers = [threading.Thread(target=made.loop.wakeup) for _ in range(3)]
        made.ends = True
        for waker in wakers:
            waker.start()
        made.end()
        for waker in wakers:
            waker.join()
        assert made.broken == []
