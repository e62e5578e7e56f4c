"""`care`: each of its functions finds what breaks it, in a record that is made up."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace as Made
from typing import Any, Callable

import pytest
from care import CARE
from fuzz_calls import Begin, End, Service, written
from random_program import Act, Plan, Program, Step
from records import Given, Record, Series

from parallel_exec import Rate, TaskTimeoutError

FIRST, SECOND = (0, "w0", 7), (1, "w1", 8)


def _record() -> Record:
    """Return the record of two calls, one after the other, in a worker each, of which nothing is broken."""
    plans = (Plan("a", (Act(),), needs={"api": 1}), Plan("b", (Act("hang"),), timeout=0.1, needs={"api": 1}))
    program = Program("process", ((Step("stream", plans),),), backend={"capture_output": True}, journal=True)
    record = Record(program, bounds=[2], specs={"api": [Rate(1, burst=1)]})
    late = TaskTimeoutError("b", 0.1, 1)
    late.stack = 'File "fuzz_calls.py", line 1'
    for plan, at, error in zip(plans, (0.0, 2.0), (None, late)):
        output = written(plan.name, 1)
        attempt = Made(number=1, error=error, output=output, started_at=at, duration=0.1, worker="w")
        result = Made(success=error is None, error=error, attempts=(attempt,), result=(plan.name, 1), resumed=False)
        record.given[plan.name] = Given(plan.name, plan, "stream", 0, result=result)
    record.calls = [
        Begin("a", 1, 0.01, {}, False, 11, FIRST),
        End("a", 1, 0.05, "returned", False),
        Begin("b", 1, 2.01, {}, False, 12, SECOND),
    ]
    record.services = [
        Service("initialized", FIRST, 0.0),
        Service("initialized", SECOND, 1.9),
        Service("finalized", FIRST, 3.0),
    ]
    record.series = [Series(program.threads[0][0], 0, ["a", "b"], ["a", "b"], whole=True)]
    record.resumed = {"a": (Made(resumed=True, success=True, result=("a", 1)), 0)}
    return record


def _change(name: str, **fields: Any) -> Callable[[Record], None]:
    """Return what changes an attempt."""

    def change(record: Record) -> None:
        vars(record.given[name].result.attempts[0]).update(fields)

    return change


def _replace_call(number: int, **fields: Any) -> Callable[[Record], None]:
    def replace(record: Record) -> None:
        record.calls[number] = record.calls[number]._replace(**fields)

    return replace


def _call_again(**fields: Any) -> Callable[[Record], None]:
    def call_again(record: Record) -> None:
        begin: Any = record.calls[0]
        record.calls.append(begin._replace(**fields))

    return call_again


def _serve(what: str, worker: Any) -> Callable[[Record], None]:
    return lambda record: record.services.append(Service(what, worker, 4.0))


def _cut_stack(record: Record) -> None:
    record.given["b"].result.attempts[0].error.stack = 'File "elsewhere.py", line 1'


def _resume(count: int, **fields: Any) -> Callable[[Record], None]:
    def resume(record: Record) -> None:
        record.resumed["a"] = Made(**{**vars(record.resumed["a"][0]), **fields}), count

    return resume


def _leave_unfinished(record: Record) -> None:
    record.program = replace(record.program, kind="thread")
    record.services.remove(Service("finalized", FIRST, 3.0))


def _share_index(record: Record) -> None:
    other = (0, "w9", 9)
    record.services += [Service("initialized", other, 2.0), Service("finalized", other, 4.0)]


TAMPERED: dict[str, tuple[Callable[[Record], None], str]] = {
    "an index of two": (_replace_call(2, worker=FIRST, at=0.02), "two calls ran at once in workers 0"),
    "an index that is too large": (_replace_call(2, worker=(2, "w2", 9)), "there was a worker 2"),
    "a finalizer that is called twice": (_serve("finalized", FIRST), "finalizer 2 times"),
    "a finalizer that is not called": (_leave_unfinished, "worker .*'w0'.* has not called its finalizer"),
    "an index of two that live": (_share_index, "there were two workers 0 at once"),
    "a finalizer of nobody": (_serve("finalized", (1, "w9", 9)), "has never begun"),
    "an initializer that is called twice": (_serve("initialized", FIRST), "initializer 2 times"),
    "a call after the finalizer": (_call_again(name="c", at=5.0), "c began in worker .* after its finalizer"),
    "a seed of one attempt": (_call_again(attempt=2, seed=13), "a had the seeds"),
    "a seed of two tasks": (_replace_call(2, seed=11), "2 tasks had the seed 11"),
    "output of another": (_change("a", output=written("b", 1)), "a: the output of attempt 1 is"),
    "output that is cut off": (_change("a", output=written("a", 1)[:-3]), "a: the output of attempt 1 is"),
    "a stack of another place": (_cut_stack, "b: the stack of attempt 1"),
    "a rate that is exceeded": (_replace_call(2, at=0.2), "2 tasks began within 0.2 s"),
    "a success that runs again": (_resume(1, resumed=False), "a had succeeded in a run with a journal, and ran again"),
    "what is resumed and runs": (_resume(1), "a is resumed as .* after 1 more calls"),
    "another's value that is resumed": (_resume(0, result=("b", 1)), "a is resumed as"),
}


def _broken(record: Record) -> str:
    return "\n".join(what for check in CARE for what in check(record))


def test_a_record_that_breaks_nothing() -> None:
    """What is as it should be is found to be."""
    assert _broken(_record()) == ""


@pytest.mark.parametrize("name", TAMPERED)
def test_what_is_broken_is_found(name: str) -> None:
    """Whatever is wrong in a record is found."""
    tamper, words = TAMPERED[name]
    record = _record()
    tamper(record)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(_broken(record))
