"""`parallel_exec._core.limits.lines`: who is granted what when, on a fake clock."""

from __future__ import annotations

import itertools
import random
from collections import deque
from heapq import heappop, heappush
from typing import Any

import pytest

from parallel_exec import PerKey, Rate
from parallel_exec._core.limits.grant import Limit
from parallel_exec._core.limits.kinds import make_kind
from parallel_exec._core.limits.line import NEVER
from parallel_exec._core.limits.lines import Lines
from parallel_exec._core.limits.needs import Needs
from parallel_exec._core.phase import Phase


class Wants:
    """As much of a job as lines look at."""

    def __init__(self, number: int, needs: Needs, priority: int = 0, queued_at: float = 0.0) -> None:
        self.sequence = number
        self.priority = priority
        self.queued_at = queued_at
        self.settings = self
        self.needs = needs
        self.phase = Phase.QUEUED
        self.attempt_number = 0
        self.grant: Any = None

    def hold(self, grant: Any) -> None:
        """Note what it was granted."""
        self.grant = grant

    def __repr__(self) -> str:
        return f"{self.sequence}:{self.needs}"


class Bench:
    """Lines with a queue of what is ready, and a clock."""

    def __init__(self, ageing: float | None = None, **specs: Any) -> None:
        self.ready: list[Any] = []
        self.tokens: list[Any] = []
        self.news: Any = deque()
        self.lines: Any = Lines(self.tokens, self.news, ageing)
        for name, spec in specs.items():
            self.lines.limits[name] = Limit(name, spec, make_kind(name, spec))
        self.now = 100.0
        self.numbers = itertools.count(1)
        self.known: dict[Any, Needs] = {}

    def push(self, priority: int = 0, **needs: Any) -> Any:
        """Put a new job in."""
        made = Needs(tuple(sorted(needs.items())))
        job = Wants(next(self.numbers), self.known.setdefault(made, made), priority, self.now)
        self.lines.push(job, self.now)
        self.check()
        return job

    def pop(self) -> Any:
        """Take the first job that can have what it needs."""
        while self.ready:
            order, sequence, line = heappop(self.ready)
            job = self.lines.take(line, (order, sequence), self.now)
            self.check()
            if job is not None:
                job.phase = Phase.HANDED_OUT
                return job
        return None

    def pop_all(self) -> list[int]:
        """Take all jobs that can begin now; returns their numbers."""
        return [job.sequence for job in iter(self.pop, None)]

    def end(self, job: Any, ending: str = "succeeded") -> None:
        """Give back what a job holds."""
        grant, job.grant = job.grant, None
        self.lines.give_back(grant, self.now, 1.0, ending)
        self.check()

    def hand_over(self, job: Any) -> Any:
        """Have a job that has ended hand on what it holds, if it can, or else give it back; returns who has it."""
        before = self.ready[0][:2] if self.ready else None
        other = self.lines.hand_over(job.grant, before, self.now)
        if other is None:
            self.end(job)
        else:
            job.grant = None
            other.phase = Phase.HANDED_OUT
            self.check()
        return other

    def retry(self, job: Any, ending: str = "failed") -> None:
        """Put a job in again, which has ended so."""
        job.phase = Phase.QUEUED
        self.end(job, ending)
        self.lines.push(job, self.now)
        self.check()

    def cancel(self, job: Any) -> None:
        """End a job that waits."""
        job.phase = Phase.DONE
        self.lines.discard(job, self.now)
        self.check()

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.lines.pass_time(self.now)
        self.check()

    def check(self) -> None:
        """Check what is promised between two steps."""
        lines = self.lines
        while self.tokens:
            heappush(self.ready, self.tokens.pop())
        tokens = {(line, (order, sequence)) for order, sequence, line in self.ready}
        assert lines.count == len(lines.jobs())
        for line in lines.by_needs.values():
            assert len(line) > 0
            assert line.gone * 2 <= len(line.jobs)
            assert (line.token is None) != (line.at is None)
            assert line.token is None or (line, line.token) in tokens
            for place in (line.at, line.origin):
                assert place is None or place in [each for _, _, each in line.parts]
        for limit in lines.limits.values():
            for place in limit.places.values():
                first = place.next()
                if first is None:
                    continue
                if any(key < first.jobs[0][:2] for key in place.shown.values()):
                    continue
                at = limit.kind.available_at(first.need_at(place), self.now)
                assert at > self.now, f"{first.jobs[0]} waits at {limit.name} for what is there"
                assert at == NEVER or lines.next_due() <= at


def test_no_more_than_there_is_in_the_order_added() -> None:
    """A count lets in as many as fit, and the next when one ends."""
    bench = Bench(db=2)
    jobs = [bench.push(db=1) for _ in range(5)]
    assert bench.pop_all() == [1, 2]
    bench.end(jobs[1])
    assert bench.pop_all() == [3]
    bench.end(jobs[0])
    bench.end(jobs[2])
    assert bench.pop_all() == [4, 5]
    assert not bench.lines.by_needs


def test_the_highest_priority_first() -> None:
    """What comes late and is more important goes first, also where another has been shown."""
    bench = Bench(db=1)
    first = bench.push(db=1)
    assert bench.pop() is first
    bench.push(db=1)
    bench.push(2, db=1)
    bench.end(first)  # lets 3 in
    bench.push(5, db=1)
    order = []
    while (job := bench.pop()) is not None:
        order.append(job.sequence)
        bench.end(job)
    assert order == [4, 3, 2]


def test_a_large_one_is_not_starved_by_small_ones() -> None:
    """What needs more than there is just now keeps those behind it waiting."""
    bench = Bench(mem=4)
    small = [bench.push(mem=1) for _ in range(3)]
    assert bench.pop_all() == [1, 2, 3]
    large = bench.push(mem=4)
    bench.push(mem=1)
    assert bench.pop() is None
    for job in small:
        bench.end(job)
    assert bench.pop_all() == [4]
    bench.end(large)
    assert bench.pop_all() == [5]


def test_a_large_one_that_is_cancelled_lets_the_small_ones_pass() -> None:
    """Who waited behind it can begin at once."""
    bench = Bench(mem=4)
    bench.push(mem=3)
    assert bench.pop_all() == [1]
    large = bench.push(mem=4)
    bench.push(mem=1)
    assert bench.pop_all() == []
    bench.cancel(large)
    assert bench.pop_all() == [3]


def test_keys_do_not_wait_for_each_other() -> None:
    """A limit for each key is one for each."""
    bench = Bench(host=PerKey(1))
    a, b = bench.push(host="a"), bench.push(host="b")
    bench.push(host="a")
    assert bench.pop_all() == [1, 2]
    bench.end(b)
    assert bench.pop_all() == []
    bench.end(a)
    assert bench.pop_all() == [3]


def test_all_or_nothing() -> None:
    """Who waits for one limit holds nothing of another."""
    bench = Bench(a=1, b=1)
    b = bench.push(b=1)
    assert bench.pop() is b
    bench.push(a=1, b=1)
    bench.push(a=1)
    assert bench.pop_all() == [3]


def test_what_ends_hands_on_what_it_held() -> None:
    """The next of the same line has it in one step; but not if another is to be first, nor more than there is now."""
    bench = Bench(db=1, other=1)
    first, second, third = (bench.push(db=1) for _ in range(3))
    assert bench.pop() is first
    assert bench.hand_over(first) is second
    bench.push(5, other=1)
    assert bench.hand_over(second) is None
    assert [bench.pop().sequence, bench.pop()] == [4, third]
    limit = bench.lines.limits["db"]
    assert limit.kind.stats(bench.now).granted == 3
    assert bench.hand_over(third) is None
    assert limit.kind.stats(bench.now).in_use == 0


def test_what_was_let_in_already_is_handed_on_to() -> None:
    """Where there is room for all, the one that would be taken next has what has just ended."""
    bench = Bench(db=3)
    jobs = [bench.push(db=1) for _ in range(3)]
    assert bench.pop() is jobs[0]
    assert bench.hand_over(jobs[0]) is jobs[1]
    assert bench.pop() is jobs[2]
    assert bench.pop() is None


def test_a_rate_by_time_alone() -> None:
    """One is let in when its time has come."""
    bench = Bench(api=Rate(10, burst=1))
    for _ in range(3):
        bench.push(api=1)
    assert bench.pop_all() == [1]
    assert bench.lines.next_due() == pytest.approx(100.1)
    bench.wait(0.05)
    assert bench.pop_all() == []
    bench.wait(0.0501)
    assert bench.pop_all() == [2]


def test_a_hold_keeps_all_out_until_then() -> None:
    """Nothing is granted while a limit is held."""
    bench = Bench(db=2)
    first = bench.push(db=1)
    assert bench.pop() is first
    bench.lines.hold("db", first.needs, bench.now + 5, bench.now)
    bench.push(db=1)
    bench.check()
    assert bench.pop_all() == []
    bench.wait(5)
    assert bench.pop_all() == [2]


def test_ageing() -> None:
    """A task counts as one higher for each so many seconds that it has waited."""
    bench = Bench(ageing=10.0, db=1)
    first = bench.push(db=1)
    assert bench.pop() is first
    bench.push(db=1)
    bench.wait(11)
    bench.push(1, db=1)
    bench.push(3, db=1)
    bench.end(first)
    order = []
    while (job := bench.pop()) is not None:
        order.append(job.sequence)
        bench.end(job)
    assert order == [4, 2, 3]


def test_waiting_is_told_once() -> None:
    """A task that is refused again and again has begun to wait only once."""
    bench = Bench(a=1, b=1)
    a, b = bench.push(a=1), bench.push(b=1)
    assert bench.pop_all() == [1, 2]
    bench.push(a=1, b=1)
    bench.pop()
    assert [(job.sequence, name) for job, name in bench.news] == [(3, "a")]
    bench.end(a)
    bench.pop()
    assert [(job.sequence, name) for job, name in bench.news] == [(3, "a")]
    bench.end(b)
    assert bench.pop_all() == [3]


def test_two_that_take_turns_starve_none_that_needs_both() -> None:
    """Who needs two limits gets them, though each is taken again at once by others whenever it is free."""
    bench = Bench(a=1, b=1)
    running = [bench.push(a=1), bench.push(b=1)]
    assert bench.pop_all() == [1, 2]
    both = bench.push(a=1, b=1)
    turns = 0
    while both not in running:
        turns += 1
        job = running.pop(0)
        bench.push(**dict(job.needs.items))
        bench.end(job)
        while (job := bench.pop()) is not None:
            running.append(job)
    assert turns < 8


def _specs() -> dict[str, Any]:
    return {"a": 3, "b": 2, "gpu": ("x", "y"), "host": PerKey(1), "r": Rate(5, burst=2), "s": Rate(3, burst=1)}


def _some_needs(rng: random.Random) -> dict[str, Any]:
    needs: dict[str, Any] = {}
    for name in rng.sample(sorted(_specs()), rng.choice([1, 1, 2, 2, 3, 4])):
        needs[name] = rng.choice("xyz") if name == "host" else 1
        if name == "a":
            needs[name] = rng.choice([1, 1, 2, 3, 0.5])
    return needs


class Storm:
    """Events in an order that a seed says."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.bench = Bench(self.rng.choice([None, 3.0]), **_specs())
        self.waiting: dict[Any, None] = {}
        self.running: list[Any] = []

    def step(self) -> None:
        """Let something happen."""
        acts = [self.push, self.pop, self.end, self.hand_over, self.retry, self.cancel, self.hold, self.wait]
        self.rng.choices(acts, [35, 25, 10, 10, 5, 5, 3, 12])[0]()
        _check_use(self.running)

    def begun(self, job: Any) -> None:
        """Know a job that was granted what it needs."""
        self.running.append(job)
        del self.waiting[job]

    def push(self) -> None:
        """A job comes."""
        self.waiting[self.bench.push(self.rng.choice([0, 0, 0, 1, -1]), **_some_needs(self.rng))] = None

    def pop(self) -> None:
        """A worker is free."""
        job = self.bench.pop()
        if job is not None:
            self.begun(job)

    def _one(self) -> Any:
        return self.running.pop(self.rng.randrange(len(self.running)))

    def end(self) -> None:
        """An attempt ends, or goes back before it has begun."""
        if self.running:
            self.bench.end(self._one(), self.rng.choice(["succeeded", "unused"]))

    def hand_over(self) -> None:
        """An attempt ends in a worker that takes the next."""
        other = self.bench.hand_over(self._one()) if self.running else None
        if other is not None:
            self.begun(other)

    def retry(self) -> None:
        """An attempt has failed, and another follows; or it goes back before it has begun."""
        if self.running:
            job = self._one()
            self.waiting[job] = None
            self.bench.retry(job, self.rng.choice(["failed", "unused"]))

    def cancel(self) -> None:
        """A job that waits is cancelled."""
        if self.waiting:
            job = self.rng.choice(list(self.waiting))
            del self.waiting[job]
            self.bench.cancel(job)

    def hold(self) -> None:
        """A limit is held for a moment."""
        bench = self.bench
        bench.lines.hold(self.rng.choice(["a", "r"]), None, bench.now + self.rng.random(), bench.now)
        bench.check()

    def wait(self) -> None:
        """Time passes."""
        self.bench.wait(self.rng.random() * 0.3)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_all_are_granted(seed: int) -> None:
    """In any order of events what is promised between two steps holds, no limit is exceeded, and everything ends."""
    storm = Storm(seed)
    bench, running = storm.bench, storm.running
    for _ in range(400):
        storm.step()
    for _ in range(3000):
        while (job := bench.pop()) is not None:
            storm.begun(job)
            _check_use(running)
        if not storm.waiting:
            break
        bench.wait(0.1)
        storm.end()
    assert not storm.waiting
    for job in running:
        bench.end(job)
    assert not bench.lines.by_needs
    assert all(limit.kind.stats(bench.now).in_use == 0 for limit in bench.lines.limits.values())
    assert not any(limit.places for limit in bench.lines.limits.values())


def _check_use(running: list[Any]) -> None:
    used: dict[Any, float] = {}
    for job in running:
        for name, need in job.needs.items:
            key, amount = ((name, need), 1) if name == "host" else (name, need)
            used[key] = used.get(key, 0) + amount
    assert used.get("a", 0) <= 3
    assert used.get("b", 0) <= 2
    assert used.get("gpu", 0) <= 2
    assert all(amount <= 1 for key, amount in used.items() if isinstance(key, tuple))
