"""What a program that had a journal goes on with: all its tasks once more, with the same journal, in another executor."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from fuzz_calls import Begin
from set_up import engine_of, settings_of

from parallel_exec import ParallelExecutor

if TYPE_CHECKING:
    from program_run import Run

LIMIT = 20.0  # seconds


def resume(run: Run) -> dict[str, tuple[Any, int]]:
    """Return what came of a second run with the same journal, by name: the result, and how many calls began for it."""
    program = run.program
    tasks = [each for each in list(run.given.values()) if each.via in ("add", "stream") and not each.plan.needs]
    if not program.journal or not tasks:
        return {}
    before = len(run.place.notes())
    engine = engine_of(program)
    settings = settings_of(program, run.place, engine, lambda event: None)
    for name in ("limits", "priority_ageing", "queue_size", "on_event", "timeout", "soft_timeout"):
        settings.pop(name, None)
    settings["retry_count"] = 0
    with ParallelExecutor(**settings) as executor:
        for each in tasks:
            with contextlib.suppress(ValueError):  # of its own settings, as before
                executor.add_task(run.task(each))
        results = executor.execute_all(journal=run.journal, deadline=LIMIT)
    if program.kind == "engine":
        engine.shutdown()
    calls = Counter(note.name for note in run.place.notes()[before:] if isinstance(note, Begin))
    return {result.task.id: (result, calls[result.task.id]) for result in results}
