"""The signal that a call has begun elsewhere, and its way back: both ends in one process."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from typing import Any, Iterator

import pytest
import work
from interruptions import interrupt

from parallel_exec.backends import _descriptors
from parallel_exec.backends.engine.start_signal import StartListener, StartNotifier


class Heard:
    """What a listener was told.

    Attributes:
        said: serial number and worker of each call.
        address: where the last one is.
    """

    def __init__(self) -> None:
        self.said: list[tuple[int, str]] = []
        self.address: Any = None

    def began(self, serial: int, worker: str, address: Any) -> None:
        """Remember it."""
        self.address = address
        self.said.append((serial, worker))


@pytest.fixture
def heard() -> Heard:
    """What the listener is told."""
    return Heard()


@pytest.fixture
def listener(heard: Heard) -> Iterator[StartListener]:
    """A listener."""
    listener = StartListener(heard.began)
    yield listener
    listener.close()


def _notify(listener: StartListener, serial: int, worker: str = "process 1") -> StartNotifier:
    return StartNotifier(listener.port(), listener.key(serial), worker)


def test_a_call_that_begins_is_heard_of(listener: StartListener, heard: Heard) -> None:
    """The listener passes on which call it is, and where; after `catch_up`, all that was said before."""
    assert not listener.has_heard
    with (
        contextlib.closing(_notify(listener, 1, "process 7")),
        contextlib.closing(_notify(listener, 2**40, "process 8")),
    ):
        listener.catch_up()
        assert listener.has_heard
        assert heard.said == [(1, "process 7"), (2**40, "process 8")]


def test_a_call_hears_that_it_is_unwanted(listener: StartListener, heard: Heard) -> None:
    """It is told once, remembers it, and no other call is told."""
    with contextlib.closing(_notify(listener, 1)) as other, contextlib.closing(_notify(listener, 2)) as notifier:
        listener.catch_up()
        assert not notifier.is_unwanted()
        listener.tell_unwanted(heard.address)
        work.until(notifier.is_unwanted)
        assert notifier.is_unwanted()
        assert not other.is_unwanted()


def test_strangers_are_not_heard(listener: StartListener, heard: Heard) -> None:
    """A datagram without the token is dropped, also one of another listener's calls."""
    other = StartListener(heard.began)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for data in (b"", b"x", b"\0" * 16, b"\0" * 100, other.key(1) + b"process 1"):
            stranger.sendto(data, ("127.0.0.1", listener.port()))
        listener.catch_up()
    assert not heard.said
    assert not listener.has_heard


def test_a_closed_listener_has_no_port(listener: StartListener, heard: Heard) -> None:
    """After its end nothing is heard, nothing opened again, and nobody waits."""
    notifier = _notify(listener, 1)
    listener.catch_up()
    listener.close()
    listener.close()
    assert listener.port() == 0
    listener.tell_unwanted(heard.address)
    listener.catch_up()
    assert not notifier.is_unwanted()
    notifier.close()
    with contextlib.closing(_notify(listener, 2)) as late:
        assert not late.is_unwanted()
    assert heard.said == [(1, "process 1")]


def test_without_sockets(listener: StartListener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where too many files are open neither end fails: there is no port, and a call is wanted for ever."""

    def refuse(family: int) -> Any:
        raise OSError("too many open files")

    port, key = listener.port(), listener.key(1)
    monkeypatch.setattr(_descriptors, "datagram_socket", refuse)
    assert StartListener(lambda *_: None).port() == 0
    with contextlib.closing(StartNotifier(port, key, "process 1")) as deaf:
        assert not deaf.is_unwanted()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_ctrl_c_as_the_socket_is_made() -> None:
    """Wherever it comes the port is there when it is asked for again, and after the end nothing stays open, and no thread."""
    for step in itertools.count(1):
        before, threads = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
        listener = StartListener(lambda *_: None)
        has_more = interrupt(listener.port, step)
        assert listener.port() > 0, step
        listener.close()
        for thread in set(threading.enumerate()) - threads:
            thread.join(work.SOON)
            assert not thread.is_alive(), step
        assert set(os.listdir("/proc/self/fd")) == before, step
        if not has_more:
            break
    assert step > 50
