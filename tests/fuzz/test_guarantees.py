"""`guarantees`: each finds what breaks it, in a record that was tampered with, and in a library with a planted fault."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Callable

import pytest
from alone import check
from execution import execute
from fuzz_calls import Begin, End
from guarantees import broken
from random_program import Act, Hook, Plan, Program, Step, generate
from shortening import shorten

if TYPE_CHECKING:
    from records import Record

PROGRAM = Program(
    "thread",
    (
        (
            Step("submit", (Plan("good", (Act("raise"), Act(seconds=0.01)), on_done=((),), needs={"db": 1}),)),
            Step("submit", (Plan("bad", (Act("raise"),), retry_count=0),)),
            Step("wait", target="good", seconds=10.0),
            Step("add", (Plan("first"), Plan("second"))),
            Step("execute_all"),
            Step("map", (Plan("one"), Plan("two"))),
        ),
    ),
    settings={"max_concurrency": 1, "limits": {"db": 1}},
    listens=True,
)


def _swap(record: Record) -> None:
    record.series[-1].out.reverse()


def _lose(record: Record) -> None:
    record.series[0].out.remove("first")


def _double(record: Record) -> None:
    record.series[0].out.append("first")


def _run_again(record: Record) -> None:
    record.calls.append(Begin("good", 3, 0.0, {}, False))


def _begin_twice(record: Record) -> None:
    record.calls.append(next(each for each in record.calls if isinstance(each, Begin)))


def _forget_call(record: Record) -> None:
    record.calls = [each for each in record.calls if each.name != "first"]


def _change(name: str, **fields: Any) -> Callable[[Record], None]:
    """Return what changes a task's result."""

    def change(record: Record) -> None:
        record.given[name].result = dataclasses.replace(record.given[name].result, **fields)

    return change


def _call_back_again(record: Record) -> None:
    record.given["good"].called.append(0)


def _overlap(record: Record) -> None:
    """Have a call begin amid another that holds the limit, as an attempt nobody has stopped."""
    begin = next(each for each in record.calls if isinstance(each, Begin) and each[:2] == ("good", 2))
    record.given["other"] = dataclasses.replace(
        record.given["good"], name="other", result=None, future=None, callbacks=0
    )
    record.given["other"].called = []
    record.calls += [begin._replace(name="other"), End("other", 2, begin.at + 0.005, "returned", False)]


def _count(**counts: int) -> Callable[[Record], None]:
    """Return what changes the counts."""

    def count(record: Record) -> None:
        record.stats = dataclasses.replace(record.stats, **counts)

    return count


def _drop_event(record: Record) -> None:
    record.events.remove(next(each for each in record.events if each[0] == "TaskFinished" and each[1] == "bad"))


TAMPERED: dict[str, tuple[Callable[[Record], None], str]] = {
    "a map out of order": (_swap, "yielded"),
    "a result that is missing": (_lose, "nothing has the results of"),
    "a result that is there twice": (_double, "has a task twice"),
    "a call after a success": (_run_again, r"calls began of attempts \{3\}"),
    "an attempt that began twice": (_begin_twice, "began twice"),
    "an attempt without a call": (_forget_call, "no call began"),
    "a value of another attempt": (_change("good", result=("good", 1)), "its value is"),
    "an error of another task": (_change("bad", error=OSError()), "must not end as|two errors"),
    "a callback that is called twice": (_call_back_again, "callbacks of good"),
    "too many at once": (_overlap, "2 attempts were live at once"),
    "a limit that is exceeded": (_overlap, "2 of limit 'db'"),
    "a task that is counted twice": (_count(succeeded=9), "tasks were counted"),
    "a task that is left": (_count(queued=1), "something is left"),
    "an event that is missing": (_drop_event, "bad: events"),
}


def test_a_program_that_breaks_nothing() -> None:
    """What ran as it should is found to have."""
    assert broken(execute(PROGRAM)) == []


@pytest.mark.parametrize("name", TAMPERED)
def test_what_is_broken_is_found(name: str) -> None:
    """Whatever is wrong in a record is found."""
    tamper, words = TAMPERED[name]
    record = execute(PROGRAM)
    tamper(record)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError("\n".join(broken(record)))


NOISE = tuple(
    Step("submit", (Plan(f"quick{number}", (Act(seconds=0.001),), priority=number, timeout=20.0),))
    for number in range(4)
)
LONG = Program(
    "thread",
    (
        (
            *NOISE,
            Step("submit", (Plan("guilty", (Act("raise"), Act()), priority=1, on_done=((Step("stats"),),)),)),
            *NOISE,
        ),
        (
            Step("map", (Plan("one"), Plan("two")), spec={"chunksize": 2}),
            Step("add", (Plan("three"),)),
            Step("execute_all"),
        ),
    ),
    hooks=(Hook("TaskFinished", 1, (Step("results"),)),),
    settings={"max_concurrency": 2, "retry_count": 2},
    listens=True,
)


@pytest.fixture
def calls_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a fault: what raises is called twice."""
    from parallel_exec.backends import _thread_pool

    plain = _thread_pool.call

    def twice(settings: Any, context: Any, fn: Any, args: Any, kwargs: Any) -> Any:
        outcome = plain(settings, context, fn, args, kwargs)
        return plain(settings, context, fn, args, kwargs) if hasattr(outcome, "error") else outcome

    monkeypatch.setattr(_thread_pool, "call", twice)


def _calls_twice(program: Program) -> bool:
    return any("began twice" in what for what in check(program))


@pytest.mark.usefixtures("calls_twice")
def test_a_planted_fault_is_found() -> None:
    """A library that calls what raises twice is found out by some seed."""
    programs = (dataclasses.replace(generate("thread", seed), alone=False, interrupt=0.0) for seed in range(100))
    assert any(map(_calls_twice, programs))


@pytest.mark.timeout(150)  # some forty programs are run, which a busy machine takes its time for
@pytest.mark.usefixtures("calls_twice")
def test_a_planted_fault_is_shown_by_a_short_program() -> None:
    """Of a long program that finds out such a library a single step is left, with a single task, and what that does."""
    shortest = shorten(LONG, _calls_twice, 140.0)
    assert shortest == Program("thread", ((Step("submit", (Plan("guilty", (Act("raise"),)),)),),))


def test_a_hang_is_found() -> None:
    """A step that does not return is a hang, with the stacks of all threads."""
    program = Program("thread", ((Step("sleep", seconds=2.0),),))
    (found,) = check(program, 0.5)
    assert "hangs: a step" in found
    assert "_sleep" in found


def test_programs_of_their_own_fork_and_are_interrupted() -> None:
    """In an interpreter of its own a program may fork, and Ctrl-C may come at any moment."""
    steps = (
        Step("submit", (Plan("t1"),)),
        Step("fork", target="submit"),
        Step("fork", target="exit"),
        Step("sleep", seconds=5.0),
    )
    assert check(Program("thread", (steps,), alone=True, interrupt=0.3)) == []
