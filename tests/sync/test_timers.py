"""`parallel_exec._sync.timers`: one thread, in time, never early, and as good as free when nothing is due."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from functools import partial
from pathlib import Path
from typing import Any, Iterator

import pytest
import work

from parallel_exec._sync.timers import NEVER, Timers


@pytest.fixture
def timers() -> Iterator[Timers]:
    """A clock, stopped when the test ends."""
    timers = Timers()
    yield timers
    timers.stop()
    timers.join()


def test_due_after_its_deadline_and_not_before(timers: Timers) -> None:
    """The callback comes after the deadline."""
    fired: queue.SimpleQueue[float] = queue.SimpleQueue()
    due = time.monotonic() + 0.05
    timers.timer(lambda: fired.put(time.monotonic())).arm(due)
    assert fired.get(timeout=work.PATIENCE) >= due


def test_several_in_the_order_of_their_deadlines(timers: Timers) -> None:
    """Timers go off by deadline, whatever the order in which they were armed."""
    fired: queue.SimpleQueue[int] = queue.SimpleQueue()
    now = time.monotonic()
    for number in (3, 1, 2):
        timers.timer(lambda number=number: fired.put(number)).arm(now + 1 + number * 0.02)  # type: ignore[misc]
    assert [fired.get(timeout=work.PATIENCE) for _ in range(3)] == [1, 2, 3]


def test_a_deadline_in_the_past_is_due_at_once(timers: Timers) -> None:
    """A timer that is armed too late goes off at once."""
    fired = threading.Event()
    timers.timer(fired.set).arm(time.monotonic() - 5)
    assert fired.wait(work.PATIENCE)


def test_a_disarmed_timer_does_not_go_off(timers: Timers) -> None:
    """After `disarm` nothing happens, also when its entry comes up."""
    fired: list[str] = []
    later = threading.Event()
    unwanted = timers.timer(lambda: fired.append("unwanted"))
    now = time.monotonic()
    unwanted.arm(now + 1)
    unwanted.disarm()
    timers.timer(later.set).arm(now + 1.03)
    assert later.wait(work.PATIENCE)
    assert fired == []


def test_put_off(timers: Timers) -> None:
    """A timer that is armed again for later goes off then, and once."""
    fired: list[float] = []
    later = threading.Event()
    timer = timers.timer(lambda: fired.append(time.monotonic()))
    now = time.monotonic()
    timer.arm(now + 1)
    due = now + 1.06
    timer.arm(due)
    timers.timer(later.set).arm(due + 0.03)
    assert later.wait(work.PATIENCE)
    assert len(fired) == 1
    assert fired[0] >= due


def test_brought_forward(timers: Timers) -> None:
    """A timer that is armed again for earlier goes off then, and once."""
    fired: list[int] = []
    later = threading.Event()
    timer = timers.timer(lambda: fired.append(1))
    now = time.monotonic()
    timer.arm(now + 1)
    timer.arm(now + 0.02)
    timers.timer(later.set).arm(now + 1.04)
    assert later.wait(work.PATIENCE)
    assert fired == [1]


def test_armed_again_by_its_own_callback(timers: Timers) -> None:
    """A callback may arm its timer anew."""
    fired: queue.SimpleQueue[int] = queue.SimpleQueue()

    def callback() -> None:
        fired.put(1)
        timer.arm(time.monotonic() + 0.01)

    timer = timers.timer(callback)
    timer.arm(time.monotonic())
    for _ in range(3):
        fired.get(timeout=work.PATIENCE)
    timer.disarm()


def test_putting_off_does_not_touch_the_heap(timers: Timers) -> None:
    """A million short attempts under one long timeout cost one entry: arming for later asks nothing of the clock."""
    asked: list[Any] = []
    timers.request = asked.append  # type: ignore[method-assign]
    timer = timers.timer(lambda: None)
    timer.arm(100.0)
    timer._entry = 100.0  # what the clock does
    for when in range(101, 200):
        timer.arm(float(when))
    assert len(asked) == 1


def test_no_thread_before_the_first_timer() -> None:
    """A clock that nobody uses costs no thread."""
    before = threading.active_count()
    timers = Timers()
    timers.timer(lambda: None)
    assert threading.active_count() == before
    timers.stop()
    timers.join()


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_callback_that_raises_does_not_stop_the_clock(
    timers: Timers, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a callback has raised, whatever it was, other timers still go off."""
    logged: list[str] = []
    monkeypatch.setattr("parallel_exec._sync.guarded._logger.exception", lambda message, *_: logged.append(message))
    fired = threading.Event()

    def callback() -> None:
        raise error

    timers.timer(callback).arm(time.monotonic())
    timers.timer(fired.set).arm(time.monotonic() + 0.02)
    assert fired.wait(work.PATIENCE)
    assert len(logged) == 1


def test_stop_lets_the_thread_end_with_timers_left() -> None:
    """What is not due when the clock is stopped never will be, and the thread ends."""
    timers = Timers("a clock")
    fired: list[int] = []
    timers.timer(lambda: fired.append(1)).arm(time.monotonic() + 600)
    timers.stop()
    timers.join()
    assert "a clock" not in {thread.name for thread in threading.enumerate()}
    assert fired == []


def test_the_clock_thread_may_join_itself(timers: Timers) -> None:
    """`join` in a callback returns at once."""
    fired: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def callback() -> None:
        timers.join()
        fired.put(timers.is_clock())

    timers.timer(callback).arm(time.monotonic())
    assert fired.get(timeout=work.PATIENCE)
    assert not timers.is_clock()


def test_an_infinite_deadline_is_never_due(timers: Timers) -> None:
    """Arming for never asks nothing of the clock."""
    timer = timers.timer(lambda: None)
    timer.arm(NEVER)
    assert timers._thread is None


def test_many_threads_arm_at_once(timers: Timers) -> None:
    """Each of many timers, armed and brought forward from several threads, goes off once and not early."""
    fired: queue.SimpleQueue[tuple[float, float]] = queue.SimpleQueue()

    def arm_some() -> None:
        for number in range(200):
            due = time.monotonic() + (number % 10) * 0.002
            timer = timers.timer(lambda due=due: fired.put((due, time.monotonic())))  # type: ignore[misc]
            timer.arm(due + 600)
            timer.arm(due)

    threads = [threading.Thread(target=arm_some) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends = [fired.get(timeout=work.PATIENCE) for _ in range(600)]
    assert fired.empty()
    assert all(when >= due for due, when in ends)


def test_a_cancelled_timer_lets_its_callback_go(timers: Timers) -> None:
    """After `cancel` nothing happens, and what the callback leads to is freed though the timer is not due for long."""
    kept = work.Latch(Path("kept"))
    gone = weakref.ref(kept)
    timer = timers.timer(partial(kept.wait, 0))
    timer.arm(time.monotonic() + 3600)
    timer.cancel()
    del kept
    assert gone() is None
    timer.fire()


def test_an_interruption_just_as_the_thread_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second start, before the thread has come to its first line, does not make a second clock, which nothing would end."""
    begun: list[int] = []
    gate = threading.Event()
    run = Timers._run

    def run_late(self: Timers) -> None:
        begun.append(threading.get_ident())
        gate.wait(work.PATIENCE)
        run(self)

    def launch_torn(thread: threading.Thread) -> None:
        thread.start()
        raise KeyboardInterrupt

    monkeypatch.setattr(Timers, "_run", run_late)
    timers = Timers()
    with monkeypatch.context() as torn:
        torn.setattr("parallel_exec._sync.timers.launch", launch_torn)
        with pytest.raises(KeyboardInterrupt):
            timers.start()
    timers.start()
    gate.set()
    timers.stop()
    timers.join()
    assert len(begun) == 1
