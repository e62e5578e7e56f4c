"""A thread that calls what it is given, alone: with a scheduler that the test drains."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import work

from parallel_exec.backends.engine.serial_thread import SerialThread


class Port:
    """Stands for the scheduler."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.drained = False


class Last:
    """What is called last."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def end(self) -> None:
        """Remember it."""
        self.called.append(threading.current_thread().name)


@pytest.fixture
def port() -> Any:
    """A scheduler that has work."""
    return Port()


def test_in_order_and_to_the_end(port: Any) -> None:
    """What was given before the start is called, too; once the scheduler is drained and nothing is left, the last."""
    last, numbers = Last(), []
    thread = SerialThread("serial", port, last.end)
    for number in range(3):
        thread.call_soon(lambda number=number: numbers.append(number))  # type: ignore[misc]
    assert thread.join()
    thread.start()
    thread.start()
    work.until(lambda: numbers == [0, 1, 2])
    assert not thread.join(0.0)
    port.drained = True
    thread.wakeup()
    assert thread.join()
    assert last.called == ["serial"]


def test_a_callback_that_raises(port: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the next one is called; also after what is no Exception."""
    last, called = Last(), threading.Event()

    def leave() -> None:
        raise SystemExit

    thread = SerialThread("serial", port, last.end)
    thread.start()
    with caplog.at_level(logging.ERROR, "parallel_exec"):
        thread.call_soon(leave)
        thread.call_soon(called.set)
        assert called.wait(work.PATIENCE)
    assert [record.getMessage() for record in caplog.records if record.name == "parallel_exec"] == ["a callback raised"]
    port.drained = True
    thread.wakeup()
    assert thread.join()


def test_a_wakeup_waits_for_the_lock(port: Any) -> None:
    """Who drains the scheduler wakes the thread while it holds the lock; the thread looks when that is released."""
    thread = SerialThread("serial", port, Last().end)
    thread.start()
    with port.lock:
        thread.wakeup()
        assert not thread.join(0.1)
        port.drained = True
    assert thread.join()


def test_what_comes_after_the_end_is_dropped(port: Any) -> None:
    """A callback that is given to a thread that has ended is neither called nor kept."""
    thread = SerialThread("serial", port, Last().end)
    port.drained = True
    thread.start()
    assert thread.join()

    class Telltale:
        gone = threading.Event()

        def __call__(self) -> None:
            raise AssertionError("it is over")

        def __del__(self) -> None:
            self.gone.set()

    thread.call_soon(Telltale())
    assert Telltale.gone.is_set()
