"""What holds of tasks that wait for limits, whatever happens: `Lines` and real kinds, on a clock of the test's (hypothesis)."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from parallel_exec import Adaptive, PerKey, Rate
from parallel_exec._core.limits.grant import Limit
from parallel_exec._core.limits.kinds import make_kind
from parallel_exec._core.limits.lines import Lines
from parallel_exec._core.limits.needs import Needs
from parallel_exec._core.phase import Phase
from parallel_exec._needs import named
from parallel_exec.limits import check_limits

if TYPE_CHECKING:
    from parallel_exec._core.limits.grant import Grant

NEVER = float("inf")


def make_needs(given: dict[str, Any]) -> Needs:
    """Return needs as an executor makes them."""
    return Needs(tuple((named(given) or {}).items()))


class Job:
    """As much of a job as limits look at."""

    attempt_number = 0

    def __init__(self, sequence: int, needs: Needs, priority: int, queued_at: float) -> None:
        self.sequence = sequence
        self.settings = self
        self.needs = needs
        self.priority = priority
        self.queued_at = queued_at
        self.phase = Phase.QUEUED
        self.grant: Grant | None = None

    def __repr__(self) -> str:
        return f"<{self.sequence} at {self.priority}: {dict(self.needs.items)}>"

    def hold(self, grant: Grant) -> None:
        """Know what was granted."""
        self.grant = grant


class Pool:
    """A queue of what is ready, and any number of workers; a clock.

    Attributes:
        waiting: the jobs that were pushed and not granted.
        running: those that were granted and have not ended.
        starts: what was granted when: the time, the limit's name, and what was needed of it.
        most_steps: how many tokens were taken in vain for one job, at most.
    """

    def __init__(self, limits: dict[str, Any], ageing: float | None = None) -> None:
        self.now = 1000.0
        self.ready: list[tuple[float, int, int, Any]] = []
        self._shown: list[Any] = []
        self.lines = Lines(self._shown, None, ageing)
        self.specs = check_limits(limits)
        for name, spec in self.specs.items():
            self.lines.limits[name] = Limit(name, spec, make_kind(name, spec))
        self.ageing = ageing
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.starts: list[tuple[float, str, Any]] = []
        self.granted: list[Job] = []
        self._jobs = 0
        self._tokens = 0

    def is_ready(self) -> bool:
        """Return whether anything may be taken."""
        self._show()
        return bool(self.ready)

    def _show(self) -> None:
        for order, sequence, line in self._shown:
            self._tokens += 1
            heapq.heappush(self.ready, (order, sequence, self._tokens, line))
        self._shown.clear()

    def push(self, needs: dict[str, Any], priority: int = 0) -> Job:
        """Add a job."""
        self._jobs += 1
        job = Job(self._jobs, make_needs(needs), priority, self.now)
        self.requeue(job)
        return job

    def requeue(self, job: Job) -> None:
        """Put a job in, for another attempt."""
        job.phase = Phase.QUEUED
        self.waiting.append(job)
        self.lines.push(job, self.now)  # type: ignore[arg-type]

    def cancel(self, job: Job) -> None:
        """End a job that waits."""
        self.waiting.remove(job)
        job.phase = Phase.DONE
        self.lines.discard(job, self.now)  # type: ignore[arg-type]

    def take(self) -> Job | None:
        """Grant one job what it needs, if there is one that can have it."""
        self._show()
        while self.ready:
            order, sequence, _, line = heapq.heappop(self.ready)
            job: Any = self.lines.take(line, (order, sequence), self.now)
            self._show()
            if job is not None:
                self._begin(job)
                return job  # type: ignore[no-any-return]
        return None

    def _begin(self, job: Job) -> None:
        job.phase = Phase.LIVE
        self.waiting.remove(job)
        self.running.append(job)
        self.granted.append(job)
        self.starts += [(self.now, name, need) for name, need in job.needs.items]

    def take_all(self) -> None:
        """Grant what can be granted."""
        while self.take() is not None:
            pass

    def end(self, job: Job, ending: Any = "succeeded") -> None:
        """End an attempt."""
        self.running.remove(job)
        job.phase = Phase.DONE
        assert job.grant is not None
        self.lines.give_back(job.grant, self.now, 1.0, ending)

    def exchange(self, ended: Job) -> Job | None:
        """End an attempt, and grant what it held to the job that is to have it next, if that is in one step."""
        assert ended.grant is not None
        first = min(self.ready)[:2] if self.ready else None
        job: Any = self.lines.hand_over(ended.grant, first, self.now)
        if job is None:
            self.end(ended)
            return None
        self.running.remove(ended)
        ended.phase = Phase.DONE
        self._begin(job)
        return job  # type: ignore[no-any-return]

    def change(self, name: str, spec: Any) -> None:
        """Change a limit; jobs that can never be granted any more what they need are ended."""
        limit, (checked,) = self.lines.limits[name], check_limits({name: spec}).values()
        lines = self.lines.detach(limit, self.now)
        kind = make_kind(name, checked)
        held = [part for job in self.running for each, _, part in job.grant.parts if each is limit]  # type: ignore[union-attr]
        kind.adopt(limit.kind, held, self.now)
        limit.use(checked, kind)
        self.specs[name] = checked
        for line in lines:
            self.lines.attach(line, self.error_of(line.needs), self.now)
        for job in list(self.lines.refused):
            self.cancel(job)  # type: ignore[arg-type]

    def error_of(self, needs: Needs) -> ValueError | None:
        """Return why needs can never be granted; None if they can."""
        for name, need in needs.items:
            try:
                self.lines.limits[name].kind.check(need)
            except ValueError as error:
                return error
        return None

    def wait(self, seconds: float) -> None:
        """Let time pass, and what it brings happen when it is due."""
        until = self.now + seconds
        while (due := self.lines.next_due()) <= until:
            self.now = max(self.now, due)
            self.lines.pass_time(self.now)
            self.take_all()
        self.now = until

    def finish(self) -> None:
        """End all that runs, one after another, until nothing waits."""
        self.take_all()
        steps = 0
        while self.waiting or self.running:
            steps += 1
            assert steps < 10_000, "something waits for ever"
            if self.running:
                self.end(self.running[0])
            else:
                due = self.lines.next_due()
                assert due < NEVER, f"{self.waiting} wait for nothing"
                self.wait(max(0.0, due - self.now))
            self.take_all()


LIMITS: dict[str, Any] = {
    "a": 3,
    "b": 2.5,
    "gpu": ["x", "y"],
    "host": PerKey(1),
    "llm": Adaptive(max=4, initial=2),
    "rate": Rate(2, burst=2),
    "site": PerKey(Rate(1)),
}
AMOUNTS: dict[str, list[Any]] = {
    "a": [1, 2, 3],
    "b": [0.5, 1.25, 2.5],
    "gpu": [1, 2],
    "host": ["h", "i"],
    "llm": [1, 2, 4],
    "rate": [1, 2],
    "site": ["s", "t"],
}
NEEDS = st.lists(st.sampled_from(sorted(LIMITS)), min_size=1, max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: st.sampled_from(AMOUNTS[name]) for name in names})
)


class LinesMachine(RuleBasedStateMachine):
    """Jobs with any needs come, are granted them, end in any way, and are cancelled; limits are held; time passes."""

    @initialize(ageing=st.sampled_from([None, None, 5.0]))
    def make(self, ageing: float | None) -> None:
        """Make the limits."""
        self.pool = Pool(LIMITS, ageing)
        self.unused: list[int] = []

    @rule(needs=NEEDS, priority=st.integers(-1, 1), count=st.sampled_from([1, 1, 3]))
    def push(self, needs: dict[str, Any], priority: int, count: int) -> None:
        """Add some jobs."""
        for _ in range(count):
            self.pool.push(needs, priority)

    @rule()
    def take(self) -> None:
        """A worker comes."""
        self.pool.take()

    @rule()
    def take_all(self) -> None:
        """As many workers come as can have something."""
        self.pool.take_all()

    @precondition(lambda self: self.pool.running)
    @rule(index=st.integers(0, 99), ending=st.sampled_from(["succeeded", "failed", "overloaded"]), again=st.booleans())
    def end(self, index: int, ending: str, again: bool) -> None:
        """An attempt ends; maybe another follows."""
        job = self.pool.running[index % len(self.pool.running)]
        self.pool.end(job, ending)
        if again:
            self.pool.requeue(job)

    @precondition(lambda self: self.pool.running)
    @rule(index=st.integers(0, 99))
    def exchange(self, index: int) -> None:
        """An attempt ends, whose worker goes on with what is next."""
        self.pool.exchange(self.pool.running[index % len(self.pool.running)])

    @precondition(lambda self: self.pool.running and self.pool.running[-1].queued_at == self.pool.now)
    @rule()
    def requeue(self) -> None:
        """What was granted last never began, and waits again."""
        job = self.pool.running[-1]
        starts = len(job.needs.items)
        if self.pool.granted[-1] is job:
            del self.pool.starts[-starts:]
            self.pool.granted.pop()
            self.pool.end(job, "unused")
            self.pool.requeue(job)

    @precondition(lambda self: self.pool.waiting)
    @rule(index=st.integers(0, 99))
    def cancel(self, index: int) -> None:
        """A job that waits is cancelled."""
        self.pool.cancel(self.pool.waiting[index % len(self.pool.waiting)])

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.pool.wait(seconds)

    @rule(name=st.sampled_from(sorted(LIMITS)), ahead=st.sampled_from([0.3, 3.0]))
    def hold(self, name: str, ahead: float) -> None:
        """A limit is held for a while."""
        needs = make_needs({name: AMOUNTS[name][0]})
        self.pool.lines.hold(name, needs, self.pool.now + ahead, self.pool.now)

    @invariant()
    def nothing_is_exceeded(self) -> None:
        """What runs fits into each limit."""
        running = [each for job in self.pool.running for each in job.needs.items]
        assert sum(need for name, need in running if name == "a") <= 3
        assert sum(need for name, need in running if name == "b") <= 2.5
        assert sum(need for name, need in running if name == "llm") <= 4
        hosts = [need for name, need in running if name == "host"]
        assert len(set(hosts)) == len(hosts)
        items = [item for job in self.pool.running for item in job.grant.facts().get("gpu", ())]
        assert len(set(items)) == len(items)

    @invariant()
    def rates_are_kept(self) -> None:
        """No more starts than a rate lets, between any two."""
        for name, key, rate, burst in (("rate", None, 2, 2), ("site", "s", 1, 1), ("site", "t", 1, 1)):
            starts = [
                (at, need if key is None else 1)
                for at, which, need in self.pool.starts
                if which == name and key in (None, need)
            ]
            for index, (first, _) in enumerate(starts):
                total = 0
                for at, amount in starts[index:]:
                    total += amount
                    assert total <= burst + (at - first) * rate + 1e-6

    @invariant()
    def nothing_waits_that_could_run(self) -> None:
        """When no more can be granted, each job waits for something: one that is first at its limit cannot have it."""
        if self.pool.is_ready():
            return
        now = self.pool.now
        for limit in self.pool.lines.limits.values():
            for place in limit.places.values():
                line = place.first()
                if line is not None and place.owner in (None, line):
                    need = next(need for _, need, each in line.parts if each is place)
                    at = limit.kind.available_at(need, now)
                    assert at > now
                    assert at == NEVER or place.due <= at

    @invariant()
    def jobs_are_counted(self) -> None:
        """Each job that waits is known to, once."""
        assert self.pool.lines.count == len(self.pool.waiting)
        assert sorted(job.sequence for job in self.pool.lines.jobs()) == sorted(
            job.sequence for job in self.pool.waiting
        )

    def teardown(self) -> None:
        """When no more jobs come, all are granted what they need; and then nothing is left of it."""
        if not hasattr(self, "pool"):
            return
        self.pool.finish()
        for limit in self.pool.lines.limits.values():
            assert limit.kind.stats(self.pool.now).in_use == 0
            assert limit.places == {}
        assert self.pool.lines.next_due() == NEVER


TestLines = LinesMachine.TestCase
TestLines.settings = settings(max_examples=100, stateful_step_count=40)  # 5 s


class OneLimitMachine(RuleBasedStateMachine):
    """Jobs with any priorities and amounts, which all need one limit."""

    @initialize(spec=st.sampled_from([3, ["x", "y", "z"], Rate(3, burst=3)]))
    def make(self, spec: Any) -> None:
        """Make it."""
        self.pool = Pool({"a": spec})

    @rule(amount=st.integers(1, 3), priority=st.integers(-2, 2))
    def push(self, amount: int, priority: int) -> None:
        """Add a job."""
        self.pool.push({"a": amount}, priority)

    @rule()
    def take(self) -> None:
        """Who is granted something is the first of those that wait, by priority and then as they came."""
        first = min(self.pool.waiting, key=lambda job: (-job.priority, job.sequence), default=None)
        assert self.pool.take() in (None, first)

    @precondition(lambda self: self.pool.running)
    @rule(index=st.integers(0, 99))
    def end(self, index: int) -> None:
        """An attempt ends."""
        self.pool.end(self.pool.running[index % len(self.pool.running)])

    @precondition(lambda self: self.pool.running)
    @rule(index=st.integers(0, 99))
    def exchange(self, index: int) -> None:
        """An attempt ends, and what it held goes to the first that waits, if to any at once."""
        first = min(self.pool.waiting, key=lambda job: (-job.priority, job.sequence), default=None)
        assert self.pool.exchange(self.pool.running[index % len(self.pool.running)]) in (None, first)

    @rule(seconds=st.sampled_from([0.1, 0.4]))
    def wait(self, seconds: float) -> None:
        """Time passes, and nobody comes."""
        self.pool.now += seconds
        self.pool.lines.pass_time(self.pool.now)

    @precondition(lambda self: self.pool.waiting)
    @rule(index=st.integers(0, 99))
    def cancel(self, index: int) -> None:
        """A job that waits is cancelled."""
        self.pool.cancel(self.pool.waiting[index % len(self.pool.waiting)])


TestOneLimit = OneLimitMachine.TestCase


class ChangingMachine(RuleBasedStateMachine):
    """Limits are changed while jobs wait for them and hold them."""

    SPECS = st.sampled_from([1, 3, ["x"], ["x", "y", "z"], Rate(3, burst=3), Adaptive(max=3), PerKey(1)])

    @initialize(a=SPECS, b=SPECS)
    def make(self, a: Any, b: Any) -> None:
        """Make two."""
        self.pool = Pool({"a": a, "b": b})

    @rule(names=st.sampled_from(["a", "b", "ab"]), amount=st.integers(1, 3), priority=st.integers(0, 1))
    def push(self, names: str, amount: int, priority: int) -> None:
        """Add a job, if it can have what it needs."""
        needs = {name: "k" if isinstance(self.pool.specs[name], PerKey) else amount for name in names}
        if self.pool.error_of(make_needs(needs)) is None:
            self.pool.push(needs, priority)

    @rule(name=st.sampled_from("ab"), spec=SPECS)
    def change(self, name: str, spec: Any) -> None:
        """Change one."""
        self.pool.change(name, spec)

    @rule()
    def take(self) -> None:
        """A worker comes; what it is granted fits into the limits as they are."""
        job = self.pool.take()
        if job is None:
            return
        for name, need in job.needs.items:
            spec = self.pool.specs[name]
            grants = [held for each in self.pool.running for limit, _, held in each.grant.parts if limit.name == name]
            if isinstance(spec, int):
                assert (
                    sum(len(held.granted) if isinstance(held.granted, tuple) else held.granted for held in grants)
                    <= spec
                )
            elif isinstance(spec, tuple):
                items = [item for held in grants if isinstance(held.granted, tuple) for item in held.granted]
                assert len(set(items)) == len(items)
                assert len(job.grant.facts()[name]) == need

    @precondition(lambda self: self.pool.running)
    @rule(index=st.integers(0, 99))
    def end(self, index: int) -> None:
        """An attempt ends."""
        self.pool.end(self.pool.running[index % len(self.pool.running)])

    @precondition(lambda self: self.pool.running)
    @rule(index=st.integers(0, 99))
    def exchange(self, index: int) -> None:
        """An attempt ends, whose worker goes on with what is next."""
        self.pool.exchange(self.pool.running[index % len(self.pool.running)])

    @rule(seconds=st.sampled_from([0.1, 1.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.pool.wait(seconds)

    def teardown(self) -> None:
        """All that waits comes to run."""
        if hasattr(self, "pool"):
            self.pool.finish()
            for limit in self.pool.lines.limits.values():
                assert limit.kind.stats(self.pool.now).in_use == 0
                assert limit.places == {}


TestChanging = ChangingMachine.TestCase


def test_a_large_request_is_not_starved() -> None:
    """What needs all of a limit has it as soon as what ran before it has ended, however many small ones come."""
    pool = Pool({"mem": 10})
    for _ in range(10):
        pool.push({"mem": 1})
    pool.take_all()
    large = pool.push({"mem": 10})
    for _ in range(10):
        pool.push({"mem": 1})
        pool.end(pool.running[0])
        pool.take_all()
    assert pool.running == [large]


@pytest.mark.parametrize("amounts", [{"a": 1, "b": 1}, {"a": 2, "b": 2}, {"a": 2, "rate": 1}, {"b": 1, "rate": 2}])
def test_who_needs_several_is_not_starved(amounts: dict[str, Any]) -> None:
    """Where each of the limits is wanted by others all the time, what needs several has them after a while."""
    pool = Pool({"a": 2, "b": 2, "rate": Rate(10, burst=2)})
    for name in amounts:
        for _ in range(5):
            pool.push({name: 1})
    pool.take_all()
    several = pool.push(amounts)
    for step in range(60):
        if several in pool.running:
            break
        for name in amounts:
            pool.push({name: 1})
            pool.push({name: 1})
        if pool.running:
            pool.end(pool.running[step % len(pool.running)])
        pool.wait(0.05)
        pool.take_all()
    assert several in pool.running


def test_opposite_orders_do_not_lock_each_other_out() -> None:
    """Many that need two limits each, in all pairs, are all granted them."""
    pool = Pool(dict.fromkeys("abcd", 1))
    for _ in range(20):
        for first in "abcd":
            for second in "abcd":
                if first != second:
                    pool.push({first: 1, second: 1})
    pool.finish()
    assert len(pool.granted) == 240


@pytest.mark.parametrize("ageing", [None, 10.0])
def test_a_low_priority_comes_to_run_where_it_ages(ageing: float | None) -> None:
    """Among those of a higher priority that keep coming, one of a lower has its turn once it has waited for long enough."""
    pool = Pool({"a": 1}, ageing)
    pool.push({"a": 1}, 3)
    pool.take_all()
    low = pool.push({"a": 1}, 0)
    waited = 0.0
    while low in pool.waiting and waited < 100:
        pool.push({"a": 1}, 3)  # as many as can run
        pool.wait(1.0)
        waited += 1
        pool.end(pool.running[0])
        pool.take_all()
    if ageing is None:
        assert low in pool.waiting
    else:
        assert 30 <= waited <= 33
    pool.finish()
