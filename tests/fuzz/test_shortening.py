"""`shortening`: what is not needed to break something is left out."""

from __future__ import annotations

from random_program import Act, Plan, Program, Step, generate
from shortening import shorten, simpler


def test_only_what_is_needed_is_left() -> None:
    """Of a long program two steps are left, which together break something, without their settings."""
    noise = tuple(Step("submit", (Plan(f"t{number}", (Act("raise", 0.1),), priority=number),)) for number in range(20))
    guilty = Step("submit", (Plan("guilty", (Act("hang", 0.5), Act()), timeout=1.0, needs={"db": 1}),))
    threads = ((*noise, guilty, *noise), (*noise, Step("shutdown", flag=True)))
    program = Program("thread", threads, settings={"timeout": 3.0, "retry_count": 2}, hurries=True)

    def breaks(candidate: Program) -> bool:
        steps = candidate.steps()
        hangs = any(act.how == "hang" for step in steps for plan in step.plans for act in plan.acts)
        return hangs and any(step.do == "shutdown" for step in steps)

    assert shorten(program, breaks, 20.0) == Program(
        "thread", ((Step("submit", (Plan("guilty", (Act("hang"),)),)),), (Step("shutdown"),))
    )


def test_a_race_is_tried_more_than_once() -> None:
    """What breaks every third time only is shortened all the same."""
    calls = iter(range(10_000))
    found = shorten((1, 2, 3, 4), lambda each: 3 in each and next(calls) % 3 == 2, 20.0, tries=3)
    assert found == (3,)


def test_everything_gets_simpler() -> None:
    """What is yielded differs from what was given, and in the end nothing is left but the kind."""
    for seed in range(20):
        program = generate("thread", seed)
        assert program not in list(simpler(program))
        assert shorten(program, lambda each: True, 20.0) == Program("thread")


def test_a_seed_is_a_program() -> None:
    """The same seed is the same program, and prints as lines that name its steps."""
    assert generate("process", 7) == generate("process", 7) != generate("process", 8)
    program = generate("thread", 3)
    assert all(step.do in str(program) for step in program.steps())
