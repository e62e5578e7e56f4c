"""The library's own clock: nothing that a test does to `time` reaches it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import script

from parallel_exec._sync.clock import time as own

FREEZE = """\
def freeze():
    # As `freezegun` does: in `time`, and wherever in a loaded module one of its functions is found.
    for name in ("monotonic", "monotonic_ns", "time", "time_ns", "perf_counter"):
        real, now = getattr(time, name), getattr(time, name)()
        fake = lambda now=now: now
        for module in list(sys.modules.values()):
            for attribute, value in list(vars(module).items()):
                if value is real:
                    setattr(module, attribute, fake)
"""

FORGET = """\
for name in [name for name in sys.modules if name.startswith("parallel_exec")]:
    del sys.modules[name]
from parallel_exec import ParallelExecutor
"""


def test_it_is_another_instance_of_the_same_module() -> None:
    """Its functions are not those of `time`, and tell the same."""
    assert own is not time
    assert sys.modules["time"] is time
    assert own.monotonic is not time.monotonic
    assert abs(own.monotonic() - time.monotonic()) < 1.0


@pytest.mark.parametrize("backend", ["thread", "process"])
@pytest.mark.parametrize("early", [False, True])
def test_a_frozen_clock_stops_nothing(tmp_path: Path, backend: str, early: bool) -> None:
    """Timeouts, retries and batches work while the program's clock stands still, whenever it was stopped; no error is logged."""
    body = FREEZE + (
        "import logging\n"
        "logging.disable(logging.WARNING)  # which says that a call still runs\n"
        "freeze()\n"
        f"with ParallelExecutor(max_concurrency=2, timeout=0.3, retry_count=1, backoff=0.05, backend={backend!r}) as executor:\n"
        "    numbers = [executor.submit(work.double, number) for number in range(200)]\n"
        "    late = executor.submit(time.sleep, 60)\n"
        "    say(sum(number.result(9) for number in numbers), type(late.exception(9)).__name__)\n"
        "    say(len(late.task_result().attempts))\n"
    )
    if early:
        body = body.replace("freeze()\nwith", "freeze()\n" + FORGET + "with")
    assert script.run(tmp_path, body).split() == ["39800", "TaskTimeoutError", "2"]
