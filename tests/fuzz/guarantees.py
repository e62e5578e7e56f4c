"""What must hold of every program: functions of what a run recorded, each of which returns what it found broken, in words."""

from __future__ import annotations

from collections import Counter, defaultdict
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Callable, Iterator

from care import CARE
from fuzz_calls import Begin, End, PlannedError
from random_program import ENGINES
from spans import STOPPED, abandons, calls_of, peak_of, time_limit

from parallel_exec import (
    CapacityExhaustedError,
    DeadlineExceededError,
    ParallelExecError,
    PerKey,
    Rate,
    ResultRejectedError,
    RetryAfter,
    SoftTimeoutError,
    TaskSerializationError,
    TaskTimeoutError,
    WorkerCrashedError,
)

if TYPE_CHECKING:
    from records import Given, Record, Series

ROUNDING = 1e-6


def broken(record: Record) -> list[str]:
    """Return all that is broken."""
    if record.surprises:  # a hang, say: the rest is no wonder then
        return record.surprises
    return [what for check in CHECKS for what in check(record)]


def _futures(record: Record) -> list[Given]:
    return [each for each in record.given.values() if each.future is not None]


def one_outcome_each(record: Record) -> Iterator[str]:
    """Each task that was given has ended, and its result says what its future does."""
    for each in _futures(record):
        if not each.future.done():
            yield f"{each.name} has not ended"
        elif each.result.cancelled != each.future.cancelled():
            yield f"{each.name}: cancelled by its result {each.result.cancelled}, by its future {each.future.cancelled()}"
        elif not each.future.cancelled() and each.result.error is not each.future.exception():
            yield f"{each.name}: two errors, {each.result.error!r} and {each.future.exception()!r}"


def called_back_once(record: Record) -> Iterator[str]:
    """Each done callback was called once."""
    for each in record.given.values():
        if sorted(each.called) != list(range(each.callbacks)) and not record.program.interrupt:
            yield f"of the {each.callbacks} callbacks of {each.name} these were called: {each.called}"


def attempts_are_calls(record: Record) -> Iterator[str]:
    """The attempts of a result are the calls that began, and none began after a success.

    They differ in two cases: an attempt that was stopped, timed out or crashed in its first moment may not have come to its call;
    and the last call in somebody else's process may only have begun when its task had been stopped, as nobody can take it back.
    """
    begun: dict[str, list[int]] = defaultdict(list)
    for note in record.calls:
        if isinstance(note, Begin):
            begun[note.name].append(note.attempt)
    yield from (
        f"{name}: an attempt began twice: {each}" for name, each in begun.items() if len(set(each)) != len(each)
    )
    for each in record.given.values():
        if each.result is None:
            continue
        attempts = {attempt.number: attempt.error for attempt in each.result.attempts}
        if sorted(attempts) != list(range(1, len(attempts) + 1)):
            yield f"{each.name}: its attempts are numbered {sorted(attempts)}"
        unknown = set(begun[each.name]) - set(attempts)
        is_late = abandons(record) and isinstance(each.result.error, STOPPED)
        if unknown and not (is_late and unknown == {len(attempts) + 1}):
            yield f"{each.name}: calls began of attempts {unknown}, but the result has {attempts}"
        for number in set(attempts) - set(begun[each.name]):
            if not isinstance(attempts[number], STOPPED) and not _is_interrupted(record, attempts[number]):
                yield f"{each.name}: attempt {number} is recorded, with {attempts[number]!r}, and no call began"


def succeeds_once(record: Record) -> Iterator[str]:
    """An attempt that succeeded is the last one."""
    rejects = "rejects" in record.program.settings.get("retry", "")
    for each in record.given.values():
        if each.result is None:
            continue
        for attempt in each.result.attempts[:-1]:
            if attempt.error is None and not rejects:
                yield f"{each.name}: attempt {attempt.number} succeeded, and there are {len(each.result.attempts)}"
        last = each.result.attempts[-1:]
        if each.result.success and (not last or last[0].error is not None):
            yield f"{each.name} succeeded, and its last attempt is {last}"
    yield from _items_succeed_once(record)


def _items_succeed_once(record: Record) -> Iterator[str]:
    """Of what has no result here it is the calls that say so: one that returned while it was wanted is the last."""
    ends = {note.name: note for note in record.calls if isinstance(note, End) and note.how == "returned"}
    for note in record.calls:
        end = ends.get(note.name)
        if isinstance(note, Begin) and end is not None and note.attempt > end.attempt and not end.unwanted:
            given = record.given.get(note.name)
            if given is None or given.result is not None or given.plan.act(end.attempt).how == "unpicklable":
                continue
            is_sure = not time_limit(record, given) and not record.program.is_softened()
            if is_sure and "retry" not in record.program.settings:
                yield f"{note.name}: attempt {note.attempt} began after attempt {end.attempt} had returned"


def values_are_theirs(record: Record) -> Iterator[str]:
    """A value is that of the attempt which is said to have succeeded, and an error one that the program allows."""
    for each in record.given.values():
        result = each.result
        if result is None:
            continue
        if result.success:
            if result.result != (each.name, len(result.attempts)):
                yield f"{each.name}: its value is {result.result!r}, after {len(result.attempts)} attempts"
        elif not _is_allowed(record, each, result.error, len(result.attempts)):
            yield f"{each.name} must not end as {result.error!r}, by {each.plan}; its attempts: {result.attempts}"
        for attempt in result.attempts:
            if attempt.error is not None and not _is_allowed(record, each, attempt.error, attempt.number):
                yield f"{each.name}: attempt {attempt.number} must not end as {attempt.error!r}, by {each.plan}"


def _is_interrupted(record: Record, error: BaseException | None) -> bool:
    """Return whether Ctrl-C may have ended an attempt: one in the main thread."""
    return isinstance(error, KeyboardInterrupt) and record.program.kind == "inline" and bool(record.program.interrupt)


_HOW: dict[type[BaseException], tuple[str, ...]] = {
    PlannedError: ("raise",),
    SystemExit: ("sys.exit",),
    KeyboardInterrupt: ("interrupt",),
    RetryAfter: ("retry after",),
    WorkerCrashedError: ("os._exit", "kill"),
    TaskSerializationError: ("unpicklable",),
}


def _is_allowed(record: Record, given: Given, error: BaseException, attempt: int) -> bool:
    """Return whether a task, or an attempt of it, may end so."""
    program = record.program
    how = given.plan.act(attempt).how
    if _is_interrupted(record, error):
        return True
    for kind, hows in _HOW.items():
        if isinstance(error, kind):
            return how in hows and (not isinstance(error, PlannedError) or error.args == (given.name, attempt))
    steps, settings = program.steps(), program.settings
    allowed: dict[type[BaseException], Callable[[], bool]] = {
        CancelledError: lambda: _may_be_cancelled(record, given),
        TaskTimeoutError: lambda: bool(given.plan.timeout or settings.get("timeout")),
        SoftTimeoutError: lambda: bool(given.plan.soft_timeout or settings.get("soft_timeout")),
        DeadlineExceededError: lambda: any(step.do == "execute_all" and step.seconds for step in steps),
        CapacityExhaustedError: lambda: program.kind in ENGINES or "max_abandoned" in program.backend,
        ResultRejectedError: lambda: "rejects" in settings.get("retry", ""),
        # What its needs were is no more.
        ValueError: lambda: bool(given.plan.needs) and any(step.do == "limit" for step in steps),
    }
    return any(isinstance(error, kind) and may() for kind, may in allowed.items())


def _may_be_cancelled(record: Record, given: Given) -> bool:
    if given.via in ("add", "stream", "map") or record.program.interrupt or record.program.drops:
        return True  # what is only staged ends so at the shutdown, and what is left of a stream when that is closed
    for step in record.program.steps():
        if step.do in ("shutdown", "clear", "dequeue", "abort_all") or (step.do == "execute_all" and step.flag):
            return True
        if step.do in ("cancel", "abort") and step.target == given.name:
            return True
    return False


def retries_are_counted(record: Record) -> Iterator[str]:
    """There are no more attempts than the retries allow, and no fewer where nothing but failures ended them."""
    settings = record.program.settings
    for each in record.given.values():
        if each.result is None:
            continue
        most = settings.get("retry_count", 1) + 1
        if "retry" in settings:
            most = int(settings["retry"][5])
        if each.plan.retry_count >= 0:
            most = each.plan.retry_count + 1
        count = len(each.result.attempts)
        if count > most:
            yield f"{each.name} has {count} attempts of {most}"
        given_up = (KeyboardInterrupt, SystemExit, CancelledError, DeadlineExceededError, ParallelExecError, ValueError)
        retried = (TaskTimeoutError, WorkerCrashedError, RetryAfter, SoftTimeoutError)
        error = each.result.error
        if error is not None and count < most and (not isinstance(error, given_up) or isinstance(error, retried)):
            yield f"{each.name} was given up after {count} attempts of {most}: {error!r}"


def series_are_whole(record: Record) -> Iterator[str]:
    """Maps are in order; runs and streams have one result for each task, none twice."""
    for series in record.series:
        if series.step.do == "map":
            names = [name for name, _ in series.out]
            if names != series.names[: len(names)] or (series.whole and len(names) != len(series.names)):
                yield f"{series.step} of {series.names} yielded {series.out}"
        elif len(set(series.out)) != len(series.out):
            yield f"{series.step} has a task twice: {series.out}"
        elif series.step.do == "stream":
            is_ordered = not series.step.flag or series.out == series.names[: len(series.out)]
            if not is_ordered or (series.whole and sorted(series.out) != sorted(series.names)):
                yield f"{series.step} of {series.names} yielded {series.out}"
    yield from _runs_are_whole([series for series in record.series if series.step.do == "execute_all"])


def _runs_are_whole(runs: list[Series]) -> Iterator[str]:
    found = Counter(name for series in runs for name in series.out)
    for name, count in found.items():
        if count > 1:
            yield f"{count} runs have the result of {name}"
    if any(series.error is not None and not issubclass(series.error, RuntimeError) for series in runs):
        return
    for series in runs:
        missing = [name for name in series.names if not found[name]]
        if series.whole and missing:
            yield f"{series.step}: nothing has the results of {missing}, which were added before"


def never_too_many(record: Record) -> Iterator[str]:
    """No more attempts are live at once than `max_concurrency`, the largest that it was."""
    spans = [(begin.at, min(end, settled), 1.0) for begin, end, settled in calls_of(record)]
    peak = peak_of(spans)
    if peak > max(record.bounds):
        yield f"{peak:.0f} attempts were live at once, of {record.bounds}"


def limits_hold(record: Record) -> Iterator[str]:
    """Nothing is in use beyond its limit, the largest that it was, and no item of a list is with two at once."""
    uses: dict[Any, list[tuple[float, float, float]]] = defaultdict(list)
    kills = record.program.kind == "process"
    for begin, end, settled in calls_of(record):
        given = record.given.get(begin.name)
        if given is None:
            continue
        until = min(end, settled) if kills or end == float("inf") else end
        if set(begin.granted) != set(given.plan.needs) and not begin.unwanted:
            yield f"{begin.name} was granted {begin.granted} of {given.plan.needs}"
        for name, need in given.plan.needs.items():
            granted = begin.granted.get(name)
            if isinstance(granted, tuple):
                for item in granted:
                    uses[name, "item", item].append((begin.at, until, 1.0))
            elif isinstance(need, str):
                uses[name, "key", need].append((begin.at, until, 1.0))
            else:
                uses[name, "all", None].append((begin.at, until, need))
    for (name, what, which), spans in uses.items():
        most = 1.0 if what == "item" else max(map(_most, record.specs[name]))
        if peak_of(spans) > most + ROUNDING:
            yield f"{peak_of(spans)} of limit {name!r} was in use at once ({which}), of {record.specs[name]}"


def _most(spec: Any) -> float:
    if isinstance(spec, PerKey):
        spec = spec.limit
    if isinstance(spec, Rate):
        return float("inf")
    if spec is None:  # which is refused: a step that was shortened
        return 0.0
    if isinstance(spec, list):
        return float(len(spec))
    return float(getattr(spec, "max", spec))


def counts_add_up(record: Record) -> Iterator[str]:
    """`stats()` counts each task once, and nothing is left of them, nor in use of the limits."""
    stats = record.stats
    if stats is None:  # the executor was dropped
        return
    yield from _nothing_is_left(record)
    if record.program.interrupt or record.program.forgets:  # where Ctrl-C may have come between a task and its record
        return
    counted = stats.succeeded + stats.failed + stats.cancelled
    known = [each for each in record.given.values() if each.via in ("submit", "add") or each.result is not None]
    unsure = [name for series in record.series if series.step.do != "execute_all" for name in series.names]
    most = len({each.name for each in known} | set(unsure))
    certain = [
        name for series in record.series if series.step.do != "execute_all" and series.whole for name in series.names
    ]
    least = len({each.name for each in known} | set(certain))
    if not least <= counted <= most:
        yield f"{counted} tasks were counted, and {least} to {most} given: {stats}"
    if record.series:
        return
    results = [each.result for each in record.given.values() if each.result is not None]
    ends = Counter("cancelled" if each.cancelled else "succeeded" if each.success else "failed" for each in results)
    for name in ("succeeded", "failed", "cancelled"):
        if getattr(stats, name) != ends[name]:
            yield f"stats() has {getattr(stats, name)} {name}, the results {ends[name]}"
    timeouts = sum(isinstance(each.error, TaskTimeoutError) for one in results for each in one.attempts)
    if stats.timed_out != timeouts:
        yield f"stats() has {stats.timed_out} timeouts, the attempts {timeouts}"
    least = sum(max(0, len(each.attempts) - 1) for each in results)
    most = sum(len(each.attempts) if _was_stopped(each) else max(0, len(each.attempts) - 1) for each in results)
    if not least <= stats.retried <= most:
        yield f"stats() has {stats.retried} retries, the attempts {least} to {most}"


def _nothing_is_left(record: Record) -> Iterator[str]:
    stats = record.stats
    if stats.queued or stats.running or stats.waiting or stats.abandoned:
        yield f"something is left: {stats}"
    for name, limit in stats.limits.items():
        if limit.in_use or limit.waiting:
            yield f"limit {name!r} is not given back: {limit}"


def _was_stopped(result: Any) -> bool:
    """Return whether a task may have ended while it backed off."""
    return result.cancelled or isinstance(result.error, (DeadlineExceededError, ValueError, CapacityExhaustedError))


def events_tell_all(record: Record) -> Iterator[str]:
    """Who listens hears of each task once that it is queued, of each attempt once that it began, and of one end."""
    if not record.program.listens or record.program.interrupt:
        return
    heard = Counter(record.events)
    for event, count in heard.items():
        if event[1] and event[0] not in ("TaskWaiting", "TaskGranted") and count > 1:
            yield f"{count} events {event}"
    kinds = Counter((kind, name) for kind, name, _ in record.events)
    for each in record.given.values():
        if each.result is None:
            continue
        ends = {"cancelled": kinds["TaskCancelled", each.name], "finished": kinds["TaskFinished", each.name]}
        expected = {"cancelled": int(each.result.cancelled), "finished": int(not each.result.cancelled)}
        if ends != expected or kinds["TaskQueued", each.name] != 1:
            yield f"{each.name}: events {ends}, {kinds['TaskQueued', each.name]} of them that it was queued; {each.result}"
        if kinds["TaskStarted", each.name] != len(each.result.attempts):
            yield f"{each.name}: {kinds['TaskStarted', each.name]} events that an attempt began; {each.result.attempts}"


CHECKS: tuple[Callable[[Record], Iterator[str]], ...] = (
    one_outcome_each,
    called_back_once,
    attempts_are_calls,
    succeeds_once,
    values_are_theirs,
    retries_are_counted,
    series_are_whole,
    never_too_many,
    limits_hold,
    counts_add_up,
    events_tell_all,
    *CARE,
)
