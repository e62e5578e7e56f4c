"""Threads: what a task sees of its submitter's context, and what is told of the threads."""

from __future__ import annotations

import contextvars
from typing import Any

import pytest
import work

from parallel_exec import Task
from parallel_exec.events import Event, WorkerDied, WorkerStarted

# ── context ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_city: contextvars.ContextVar[str] = contextvars.ContextVar("city", default="nowhere")


@pytest.mark.parametrize("way", ["submit", "add_task", "options"])
def test_context_variables_follow_the_task(lab: Any, way: str) -> None:
    """A task sees the context variables of whoever submitted it, as they were then."""
    executor = lab.executor()

    def run() -> str:
        _city.set("Bern")
        if way == "add_task":
            future = executor.add_task(_city.get)
            executor.submit(work.double, 1)
        else:
            future = (executor if way == "submit" else executor.options(priority=1)).submit(_city.get)
        _city.set("Basel")
        return str(future.result())

    assert contextvars.copy_context().run(run) == "Bern"


def test_what_a_task_sets_stays_in_the_attempt(lab: Any) -> None:
    """A context variable that a task sets reaches neither its submitter nor its next attempt nor other tasks."""
    executor = lab.executor(max_concurrency=1, retry_count=1)
    seen: list[str] = []

    def task() -> None:
        seen.append(_city.get())
        _city.set("Genf")
        if len(seen) == 1:
            raise OSError

    executor.submit(task).result()
    assert executor.submit(_city.get).result() == "nowhere"
    assert seen == ["nowhere", "nowhere"]
    assert _city.get() == "nowhere"


# ── events ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_events_of_workers(lab: Any) -> None:
    """A thread that starts is told, and one that is abandoned, with the reason."""
    events: list[Event] = []
    executor = lab.executor(on_event=events.append, max_concurrency=1, timeout=0.1, retry_count=0)
    executor.add_task(Task(lab.event().wait, id="stuck"))
    executor.execute_all()
    executor.options(timeout=None).submit(work.double, 1).result()
    started = [event.worker for event in events if isinstance(event, WorkerStarted)]
    (died,) = (event for event in events if isinstance(event, WorkerDied))
    assert len(started) == 2
    assert died.worker == started[0]
    assert "abandoned" in died.reason
    assert "Task timeout" in died.reason
