"""A worker's process: it is asked where it is, and killed once the time for that is up."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any, Iterator

import pytest
import work

from parallel_exec.backends._platform import DUMP_SIGNALS
from parallel_exec.backends.process.worker_process import DUMP_GRACE, WorkerProcess


class Timer:
    """Notes when it is due."""

    when = 0.0

    def arm(self, when: float) -> None:
        """Note it."""
        self.when = when


class _Process(subprocess.Popen):  # type: ignore[type-arg]
    """A process as `multiprocessing` shows one."""

    @property
    def exitcode(self) -> int | None:
        """How it ended."""
        return self.returncode

    def join(self, timeout: float) -> None:
        """Wait for it."""
        self.wait(timeout)

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def deaf() -> Iterator[Any]:
    """A process that ignores the signals by which it is asked."""
    numbers = " ".join(map(str, DUMP_SIGNALS))
    process = _Process(["sh", "-c", f"trap '' {numbers}; echo; exec sleep 60"], stdout=-1, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_who_is_deaf_is_killed_when_the_grace_is_over(deaf: Any) -> None:
    """Not before that, and no later than the timer comes, which is 50 ms later."""
    process, timer = WorkerProcess(), Timer()
    process.started(deaf)
    before = time.monotonic()
    process.kill_with_dump(timer)  # type: ignore[arg-type]
    assert before + DUMP_GRACE <= timer.when <= time.monotonic() + DUMP_GRACE <= before + 0.06 + work.SOON
    assert process.was_killed
    assert process.is_dying(timer)  # type: ignore[arg-type]  # too early, as a timer may be
    if time.monotonic() < timer.when:
        assert deaf.poll() is None
    while time.monotonic() < timer.when:
        time.sleep(0.001)
    assert process.is_dying(timer)  # type: ignore[arg-type]
    assert deaf.wait(work.SOON) == -9
    process.close(b"")


def test_it_is_asked_once(deaf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wants it killed for its lateness again changes nothing; who wants it killed for something else kills it."""
    process, timer = WorkerProcess(), Timer()
    process.started(deaf)
    process.kill_with_dump(timer)  # type: ignore[arg-type]
    first = timer.when
    process.kill_with_dump(timer)  # type: ignore[arg-type]
    assert timer.when == first
    process.kill()
    assert deaf.wait(work.SOON) == -9
    process.close(b"")


def test_one_that_is_gone_is_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that was never there: the number may be another's."""
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("a signal was sent"))
    process, timer = WorkerProcess(), Timer()
    process.kill()
    process.kill_with_dump(timer)  # type: ignore[arg-type]
    process.pid = 1
    process.close(b"")
    process.kill()
    process.kill_with_dump(timer)  # type: ignore[arg-type]
    assert (timer.when, process.was_killed, process.is_dying(timer)) == (0.0, False, False)  # type: ignore[arg-type]
