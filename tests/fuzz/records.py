"""What is known of a run of a random program: what `guarantees.py` looks at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuzz_calls import Begin, End, Service
    from random_program import Plan, Program, Step


@dataclass
class Given:
    """A task that was given, and how it ended.

    Attributes:
        name: its id.
        plan: what it does.
        via: the step that gave it.
        thread: the thread that did.
        future: its future, if one is to be had.
        result: its `TaskResult`, if one came out of a future, or a stream.
        callbacks: how many it was given.
        called: those that were called, by their numbers.
    """

    name: str
    plan: Plan
    via: str
    thread: int
    future: Any = None
    result: Any = None
    callbacks: int = 0
    called: list[int] = field(default_factory=list)


@dataclass
class Series:
    """What came out of an `execute_all`, a `map` or a `stream`.

    Attributes:
        step: the step.
        thread: who did it.
        names: the tasks that it gave; of an `execute_all`, those that its thread had added before.
        out: what came, in order: names of tasks, or of a `map` what the calls returned.
        error: of which kind what ended it was; not the error, whose traceback leads to the executor.
        whole: whether it came to its end.
    """

    step: Step
    thread: int
    names: list[str]
    out: list[Any] = field(default_factory=list)
    error: type[BaseException] | None = None
    whole: bool = False


@dataclass
class Record:
    """All that is known of a run.

    Attributes:
        program: which.
        given: the tasks, by their names.
        series: the runs, maps and streams.
        calls: begins and ends.
        services: beginnings and ends of workers.
        events: kind, task and attempt of each, if somebody listened.
        bounds: all that `max_concurrency` ever was.
        specs: all that each limit ever was.
        stats: in the end; None if nobody was there to be asked.
        resumed: what a second run with the same journal had, by name: the result, and how many calls began for it.
        began_at: when the executor was made, and what each limit let in from then on.
        surprises: what no part of the program should have done, in words.
        broken: what was found broken in all this before it was dropped.
    """

    program: Program
    given: dict[str, Given] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)
    calls: list[Begin | End] = field(default_factory=list)
    services: list[Service] = field(default_factory=list)
    events: list[tuple[str, str, int]] = field(default_factory=list)
    bounds: list[int] = field(default_factory=list)
    specs: dict[str, list[Any]] = field(default_factory=dict)
    stats: Any = None
    resumed: dict[str, tuple[Any, int]] = field(default_factory=dict)
    began_at: float = 0.0
    surprises: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def drop(self) -> None:
        """Drop what leads to the executor and to what was shared: tasks, results, and the tracebacks of errors."""
        self.given.clear()
        self.series.clear()
        self.resumed.clear()
