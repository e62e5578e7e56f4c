"""A back end that does nothing by itself: the test takes, begins and reports, step by step, in its own thread."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from typing import Any

from parallel_exec import Backend, TaskFuture
from parallel_exec._core.phase import Phase
from parallel_exec._outcome import Failure, Success
from parallel_exec.backends.base import Runner, SchedulerPort

AnyFuture = TaskFuture[Any]


class FakeTimer:
    """Remembers for when it was armed."""

    armed: float | None = None

    def arm(self, when: float) -> None:
        """Note it."""
        self.armed = when


class ManualBackend(Backend):
    """Makes the runner below, which a test finds by `inside.runner`."""

    name = "manual"

    def make_runner(self, port: SchedulerPort, limit: int) -> ManualRunner:
        """Return a new runner."""
        return ManualRunner(port, limit)


class ManualRunner(Runner):
    """Runs nothing.

    Attributes:
        woken: how often `wake` was called.
        stopped: what `stop` was called with.
        recalled: whether `recall` shall succeed.
        out: what was taken and has not begun.
    """

    def __init__(self, port: SchedulerPort, limit: int) -> None:
        super().__init__(port, limit)
        self.timer = FakeTimer()
        self.woken = 0
        self.stopped: list[tuple[AnyFuture, int, BaseException]] = []
        self.recalled = True
        self.out: list[AnyFuture] = []
        self.limit = 0
        port.park(self)

    def wake(self) -> None:
        """Count it."""
        self.woken += 1

    def take(self) -> AnyFuture | None:
        """Take the first ready future."""
        future = self.port.take(self)
        if future is not None:
            self.out.append(future)
        return future

    def begin(self, future: AnyFuture) -> int:
        """Begin an attempt now."""
        self.out.remove(future)
        return self.port.begin(future, self, "hand", time.monotonic())

    def start(self) -> AnyFuture:
        """Take and begin."""
        future = self.take()
        assert future is not None, "nothing is ready"
        assert self.begin(future), "it must not begin"
        return future

    def succeed(self, future: AnyFuture, value: object = None) -> bool:
        """Report a success."""
        return self.port.report(future, future.attempt_number, Success(value), time.monotonic())

    def fail(self, future: AnyFuture, error: BaseException) -> bool:
        """Report a failure."""
        return self.port.report(future, future.attempt_number, Failure(error), time.monotonic())

    def give_up(self) -> None:
        """End what is left."""
        self.port.finish_overridden(self.port.requeue([job for job in self.out if job.phase == Phase.HANDED_OUT]))
        self.out = []
        scheduler: Any = self.port
        for future, _ in list(scheduler.monitor.registry.live):
            self.fail(future, CancelledError())

    def recall(self, future: AnyFuture) -> bool:
        """Give it back if the test says so."""
        if self.recalled:
            self.out.remove(future)
        return self.recalled

    def handed_out(self) -> list[AnyFuture]:
        """Return what is out."""
        return list(self.out)

    def stop(self, future: AnyFuture, number: int, error: BaseException) -> None:
        """Note it."""
        self.stopped.append((future, number, error))

    def resize(self, limit: int) -> None:
        """Note it."""
        self.limit = limit

    def join(self) -> None:
        """Do nothing."""

    def workers(self) -> int:
        """Return one."""
        return 1
