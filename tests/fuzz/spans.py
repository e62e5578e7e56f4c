"""When the calls of a run lived, and how many at once."""

from __future__ import annotations

import itertools
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Iterator

from fuzz_calls import Begin, End
from random_program import SHORT

from parallel_exec import DeadlineExceededError, SoftTimeoutError, TaskTimeoutError, WorkerCrashedError

if TYPE_CHECKING:
    from records import Given, Record


# By others, while it ran; Ctrl-C does so with what runs in the main thread.
STOPPED = (TaskTimeoutError, DeadlineExceededError, CancelledError, SoftTimeoutError, WorkerCrashedError)


def calls_of(record: Record) -> Iterator[tuple[Begin, float, float]]:
    """Return each call's begin, when it ended by itself (infinity: it did not), and when the pool had done with it.

    The last is what its attempt says. Of an item of a `map` there is none; then it is no later than the true time.
    """
    ends = {(note.name, note.attempt): note for note in record.calls if isinstance(note, End)}
    for note in record.calls:
        if not isinstance(note, Begin):
            continue
        end = ends.get((note.name, note.attempt))
        until = float("inf") if end is None else end.at
        given = record.given.get(note.name)
        if given is not None and given.result is not None:
            found = [each for each in given.result.attempts if each.number == note.attempt]
            settled = found[0].started_at + found[0].duration if found else note.at
        elif end is None or end.unwanted or abandons(record) or (given is not None and time_limit(record, given)):
            settled = note.at
        else:
            settled = until
        yield note, until, settled


def abandons(record: Record) -> bool:
    """Return whether a call may have been abandoned that cannot know: in a process of somebody else's."""
    return record.program.kind == "pool"


def time_limit(record: Record, given: Given) -> float:
    """Return the limit on a task's attempts that may strike any time; 0.0 if there is none."""
    limit = given.plan.timeout or record.program.settings.get("timeout") or 0.0
    return limit if limit < SHORT else 0.0


def peak_of(spans: list[tuple[float, float, float]]) -> float:
    """Return the most of what was held at once, by spans of (from, until, how much)."""
    changes = sorted(
        itertools.chain.from_iterable([(start, 1, much), (end, 0, -much)] for start, end, much in spans if end > start)
    )
    return max(itertools.accumulate(much for _, _, much in changes), default=0.0)
