"""How much is sent ahead: unit tests of `Prefetch`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from parallel_exec.backends.process import prefetch
from parallel_exec.backends.process.prefetch import AHEAD, LONG, MOST, Prefetch


def handle(assigned: int = 0, **facts: Any) -> Any:
    """Return what `Prefetch` looks at of a worker."""
    defaults = {"ready": True, "closing": False, "draining": False, "pending_kill": None, "sent": 0, "large": 0}
    return SimpleNamespace(assigned=dict.fromkeys(range(assigned)), **{**defaults, **facts})


def after(*durations: float) -> Prefetch:
    """Return a pace that has seen calls of these durations, each often enough to count."""
    pace = Prefetch()
    for duration in durations:
        for _ in range(60):
            pace.observe(duration)
    return pace


def test_nothing_is_sent_ahead_of_the_first_results() -> None:
    """As long as nobody knows how long tasks take, a worker gets one."""
    assert Prefetch().depth() == 1
    assert Prefetch().want(handle(), 100, 1, None) == 1


@pytest.mark.parametrize(("duration", "depth"), [(0.5, 1), (LONG, 1), (0.010, 2), (0.002, 2), (AHEAD / 20, 17)])
def test_as_much_as_lasts_for_two_milliseconds(duration: float, depth: int) -> None:
    """Long tasks go one by one, short ones two at a time, tiny ones in batches."""
    assert after(duration).depth() == depth


def test_there_is_a_most() -> None:
    """However short the calls."""
    pace = Prefetch()
    for _ in range(60):
        pace.observe(0.0, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefetch, "AHEAD", 1e9)
        pace.observe(1e-7, 0.0)
        assert pace.depth() == MOST


def test_one_slow_call_does_not_spoil_it_for_long() -> None:
    """A second's pause among tiny tasks is forgotten after some tens of them."""
    pace = after(0.0)
    before = pace.depth()
    pace.observe(1.0)
    assert pace.depth() < before
    for _ in range(60):
        pace.observe(0.0)
    assert pace.depth() >= before * 0.9


def test_it_adapts_when_calls_become_longer() -> None:
    """Some ten long calls after many tiny ones, nothing is sent ahead any more."""
    pace = after(0.0)
    for _ in range(10):
        pace.observe(0.5)
    assert pace.depth() == 1


@pytest.mark.parametrize(
    "fact", [{"ready": False}, {"closing": True}, {"draining": True}, {"pending_kill": (1, OSError())}]
)
def test_who_gets_nothing(fact: dict[str, Any]) -> None:
    """A worker that starts, ends, has things taken back or is to be killed is sent nothing."""
    assert after(0.0).want(handle(**fact), 100, 1, None) == 0


def test_a_worker_is_refilled_when_half_is_done() -> None:
    """Not before: a batch is worth more than a few single ones."""
    pace = after(0.0)
    depth = pace.depth()
    assert pace.want(handle(depth // 2 + 1), 10_000, 1, None) == 0
    assert pace.want(handle(depth // 2), 10_000, 1, None) == depth - depth // 2
    assert after(0.5).want(handle(1), 10_000, 1, None) == 0


def test_what_there_is_is_shared_fairly() -> None:
    """With little to do nobody takes it all."""
    pace = after(0.0)
    assert pace.want(handle(), 10, 4, None) == 3
    assert pace.want(handle(), 1, 4, None) == 1
    assert pace.want(handle(), 0, 4, None) == 1


def test_never_more_than_a_worker_may_have_in_its_life() -> None:
    """`max_tasks_per_child` counts what was sent."""
    pace = after(0.0)
    assert pace.want(handle(sent=0), 10_000, 1, 3) == 3
    assert pace.want(handle(sent=2), 10_000, 1, 3) == 1
    assert pace.want(handle(sent=3), 10_000, 1, 3) == 0
