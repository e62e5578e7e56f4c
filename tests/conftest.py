"""Fixtures for all tests: the one that finds leaks, the back ends, and a laboratory that cleans up after itself."""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, Iterator

import backend_kinds
import leaks
import pytest
from work import Latch, Log

from parallel_exec import ParallelExecutor

if TYPE_CHECKING:
    from pathlib import Path


def pytest_configure() -> None:
    """Let the programs that tests start hear Ctrl-C, also where a shell started this one in the background, deaf to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Take what is there by now for good: thousands of collections of garbage, of tests that ask for one, pass it over."""
    if "hypothesis" in sys.modules:  # first, as it looks once for what refers to its random numbers
        from hypothesis import find, strategies

        find(strategies.none(), lambda _: True)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> Iterator[backend_kinds.Kind]:
    """The back end under test: threads, unless the test is marked with `backend_kinds.over`."""
    with backend_kinds.open_kind(getattr(request, "param", "thread")) as kind:
        yield kind


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread, a process or a descriptor, or that made a timer's callback raise."""
    ours_only = "kind" in request.fixturenames and request.getfixturevalue("kind").restless
    broken = _Broken()
    logger = logging.getLogger("parallel_exec")
    logger.addHandler(broken)
    before = leaks.take(ours_only=ours_only)
    yield
    logger.removeHandler(broken)
    left = leaks.wait_for_none(before, ours_only=ours_only)
    assert not left, f"left behind: {', '.join(left)}"
    assert not broken.messages, f"went wrong inside: {broken.messages}"


class _Broken(logging.Handler):
    """Notes what the library logs when its own parts fail."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note a record about a timer: their callbacks are all ours."""
        if "timer" in record.getMessage():
            self.messages.append(self.format(record))


class Lab:
    """Makes executors on the back end under test, latches, logs and threads; ends them all, in the right order."""

    def __init__(self, kind: backend_kinds.Kind, folder: Path) -> None:
        self.kind = kind
        self._folder = folder
        self._gates: list[Any] = []
        self._executors: list[ParallelExecutor] = []
        self._threads: list[threading.Thread] = []
        self._logs = 0

    def executor(self, **settings: Any) -> ParallelExecutor:
        """Return a new executor, with quick retries unless told otherwise."""
        settings.setdefault("backoff", 0.0)
        settings.setdefault("backend", self.kind.make())
        self._executors.append(ParallelExecutor(**settings))
        return self._executors[-1]

    def latch(self) -> Latch:
        """Return a new event for tasks in any process; it is set when the test ends."""
        self._gates.append(Latch(self._folder / f"latch-{len(self._gates)}"))
        return self._gates[-1]  # type: ignore[no-any-return]

    def event(self) -> threading.Event:
        """Return a new event for tasks in this process; it is set when the test ends."""
        self._gates.append(threading.Event())
        return self._gates[-1]  # type: ignore[no-any-return]

    def log(self) -> Log:
        """Return a new log."""
        self._logs += 1
        return Log(self._folder / f"log-{self._logs}")

    def thread(self, function: Callable[..., object], *args: Any) -> threading.Thread:
        """Run a function in a thread that is waited for when the test ends."""
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def close(self) -> None:
        """End everything."""
        for gate in self._gates:
            gate.set()
        for executor in self._executors:
            executor.shutdown()
        for thread in self._threads:
            thread.join(leaks.GRACE)


@pytest.fixture
def lab(kind: backend_kinds.Kind, tmp_path: Path) -> Iterator[Lab]:
    """A laboratory on the back end under test."""
    lab = Lab(kind, tmp_path)
    yield lab
    lab.close()
