"""What must hold of the care for workers, and of what they say: more of the functions that `guarantees.py` is made of."""

from __future__ import annotations

from collections import Counter, defaultdict
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Callable, Iterator

from fuzz_calls import Begin, End, PlannedError, written
from random_program import ENGINES, SHORT
from spans import STOPPED, calls_of, peak_of, time_limit

from parallel_exec import Rate, RetryAfter, TaskTimeoutError

if TYPE_CHECKING:
    from random_program import Program
    from records import Given, Record

UNHEARD = CancelledError()  # stands for how a call has ended that no attempt tells of


def indexes_are_of_one(record: Record) -> Iterator[str]:
    """No two workers have one index at the same time, and none has one that is too large."""
    spans: dict[int, list[tuple[float, float, float]]] = defaultdict(list)
    for begin, end, settled in calls_of(record):
        spans[begin.worker[0]].append((begin.at, min(end, settled), 1.0))
    yield from (f"two calls ran at once in workers {index}" for index, each in spans.items() if peak_of(each) > 1)
    if spans and max(spans) >= _most_workers(record):
        yield f"there was a worker {max(spans)}, of {_most_workers(record)}"
    lives: dict[int, list[tuple[float, float, float]]] = defaultdict(list)
    ends = {each.worker: each.at for each in record.services if each.what == "finalized"}
    stopped = _stopped(record)  # an abandoned thread has given its index away, and may call its finalizer long after
    is_sure = record.program.kind == "process" or not _most_unseen(record)
    for each in record.services:
        if each.what == "initialized" and each.worker not in stopped and is_sure:
            lives[each.worker[0]].append((each.at, ends.get(each.worker, each.at), 1.0))
    yield from (f"there were two workers {index} at once" for index, each in lives.items() if peak_of(each) > 1)


def _most_workers(record: Record) -> int:
    """Return how many workers there may have been at once, as far as their indexes say."""
    most, program = max(record.bounds), record.program
    if program.kind not in ENGINES:
        return most
    size: int = program.backend.get("size", 2)  # there an abandoned call has its place until it ends
    return size if _may_stop(program) else min(most, size)


def _may_stop(program: Program) -> bool:
    """Return whether a call may have been killed or abandoned."""
    stopping = ("abort", "abort_all")
    return (
        program.alone
        or (program.settings.get("timeout") or SHORT) < SHORT
        or any(plan.timeout and plan.timeout < SHORT for plan in program.plans())
        or any(act.how in ("os._exit", "kill") for plan in program.plans() for act in plan.acts)
        or any(step.do in stopping or (step.do == "execute_all" and step.flag) for step in program.steps())
        or any(step.seconds for step in program.steps() if step.do in ("execute_all", "map"))
        or any(
            step.number for step in program.steps() if step.do in ("map", "stream")
        )  # what is left halfway is stopped
    )


def _stopped(record: Record) -> set[tuple[int, str, int]]:
    """Return the workers that may have been killed or abandoned: by what is known of the calls in them."""
    results = [(each.name, each.result) for each in record.given.values() if each.result is not None]
    attempts = [(name, attempt) for name, result in results for attempt in result.attempts]
    errors = {(name, attempt.number): attempt.error for name, attempt in attempts}
    ends = {note[:2]: note for note in record.calls if isinstance(note, End)}
    found = set()
    for note in record.calls:
        if isinstance(note, Begin):  # of an item of a map, or what a stream has left, there is no error
            end, error = ends.get(note[:2]), errors.get(note[:2], UNHEARD)
            if end is None or end.unwanted or isinstance(error, STOPPED):
                found.add(note.worker)
    # Stopped before the first line of the call, which it then has not noted.
    early = {attempt.worker for _, attempt in attempts if isinstance(attempt.error, STOPPED)}
    return found | {each.worker for each in record.services if each.worker[1] in early}


def _most_unseen(record: Record) -> int:
    """Return how many calls may have been stopped before their first line, of tasks that no result tells of: workers unknown."""
    if not _may_stop(record.program):
        return 0
    if record.program.forgets:
        return len(record.program.plans())
    return sum(each.result is None for each in record.given.values())


def finalizers_are_called_once(record: Record) -> Iterator[str]:
    """Each worker that ends in good order calls the finalizer once, and runs nothing after that."""
    begun = Counter(each.worker for each in record.services if each.what == "initialized")
    ended = Counter(each.worker for each in record.services if each.what == "finalized")
    yield from (f"worker {worker} called its initializer {count} times" for worker, count in begun.items() if count > 1)
    yield from (f"worker {worker} called its finalizer {count} times" for worker, count in ended.items() if count > 1)
    yield from (f"worker {worker} called its finalizer, and has never begun" for worker in set(ended) - set(begun))
    # (Of what was interrupted it is not known whom it has stopped.)
    if (record.program.kind in ("thread", "process") and not record.program.alone) or not _may_stop(record.program):
        left = set(begun) - set(ended) - _stopped(record)
        if len(left) > _most_unseen(record):
            yield from (f"worker {worker} has not called its finalizer" for worker in left)
    last = {each.worker: each.at for each in record.services if each.what == "finalized"}
    for note in record.calls:
        if isinstance(note, Begin) and note.at > last.get(note.worker, note.at):
            yield f"{note.name} began in worker {note.worker} after its finalizer"


def seeds_are_the_tasks(record: Record) -> Iterator[str]:
    """All attempts of a task have one seed, and no two tasks have the same."""
    seeds: dict[str, set[int]] = defaultdict(set)
    for note in record.calls:
        if isinstance(note, Begin):
            seeds[note.name].add(note.seed)
    yield from (f"{name} had the seeds {each}" for name, each in seeds.items() if len(each) > 1)
    found = Counter(seed for each in seeds.values() for seed in each)
    yield from (f"{count} tasks had the seed {seed}" for seed, count in found.items() if count > 1)


def output_is_its_own(record: Record) -> Iterator[str]:
    """What an attempt has printed is its output, whole if it came to its end, and nothing else."""
    if not record.program.backend.get("capture_output"):
        return
    for each in record.given.values():
        for attempt in () if each.result is None else each.result.attempts:
            expected = written(each.name, attempt.number)
            output = attempt.output or ""
            is_over = attempt.error is None or isinstance(attempt.error, (PlannedError, RetryAfter))
            if output != expected and (is_over or not expected.startswith(output)):
                yield f"{each.name}: the output of attempt {attempt.number} is {output!r}; {attempt}"


def stacks_say_where(record: Record) -> Iterator[str]:
    """The stack of what timed out in its call leads to that."""
    if record.program.kind in ENGINES or record.program.kind == "inline":
        return
    ended = {note[:2] for note in record.calls if isinstance(note, End)}
    begun = {note[:2]: note.at for note in record.calls if isinstance(note, Begin)}
    for each in record.given.values():
        for attempt in () if each.result is None else each.result.attempts:
            error, call = attempt.error, (each.name, attempt.number)
            if not isinstance(error, TaskTimeoutError) or call not in begun:
                continue
            hung = (
                record.program.kind == "process" and call not in ended and each.plan.act(attempt.number).how == "hang"
            )
            late = attempt.started_at + attempt.duration - begun[call] < 0.05
            if hung and not late and error.stack and "fuzz_calls.py" not in error.stack:
                yield f"{each.name}: the stack of attempt {attempt.number} is {error.stack}"


def rates_hold(record: Record) -> Iterator[str]:
    """Nothing begins sooner than its rate lets it, from when the executor was made."""
    for name, specs in record.specs.items():
        rate = specs[0]
        if len(specs) > 1 or not isinstance(rate, Rate):
            continue
        starts = sorted(
            note.at for note in record.calls if isinstance(note, Begin) and name in _needs(record.given.get(note.name))
        )
        for count, at in enumerate(starts, 1):
            if count > rate.burst + (at - record.began_at) * rate.n / rate.per + 0.01:
                yield f"{count} tasks began within {at - record.began_at} s, at {rate}"
                break


def _needs(given: Given | None) -> dict[str, object]:
    return {} if given is None else given.plan.needs


def the_journal_knows_all(record: Record) -> Iterator[str]:
    """What had succeeded in a run or a stream, and was handed out, is not run again with the same journal; all else is."""
    if not record.resumed:
        return
    # What `submit` or a stream has had run before may have succeeded before the run began, which does not know its call.
    is_open = any(step.do in ("submit", "map", "stream") for step in record.program.steps())
    handed = {
        name
        for series in record.series
        if series.step.do == "stream" or (series.step.do == "execute_all" and series.whole and not is_open)
        for name in series.out
    }
    for name, (result, calls) in record.resumed.items():
        first = record.given[name].result
        succeeded = first is not None and first.success
        if name in handed and succeeded and not result.resumed:
            yield f"{name} had succeeded in a run with a journal, and ran again: {result}"
        differs = first is not None and (
            not succeeded or result.result != first.result
        )  # (of what a stream left none is known)
        if result.resumed and (calls or differs):
            yield f"{name} is resumed as {result}, after {calls} more calls, and had ended as {first}"
        if not result.resumed and not calls and not time_limit(record, record.given[name]) and result.success:
            yield f"{name} is neither resumed, nor was it run again: {result}"


CARE: tuple[Callable[[Record], Iterator[str]], ...] = (
    indexes_are_of_one,
    finalizers_are_called_once,
    seeds_are_the_tasks,
    output_is_its_own,
    stacks_say_where,
    rates_hold,
    the_journal_knows_all,
)
