"""`parallel_exec._core.limits.adaptive`: an `Adaptive` limit finds what a simulated service stands, on a clock of its own."""

from __future__ import annotations

import heapq
import random
from typing import TYPE_CHECKING, Any, Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given

from parallel_exec import Adaptive
from parallel_exec._core.limits.kinds import make_kind

if TYPE_CHECKING:
    from parallel_exec._core.limits.kind import Held


class Service:
    """A service that can do some calls at once, and a caller that always has more of them than the limit lets through.

    Attributes:
        capacity: the calls that it can do at once, each in `seconds`.
        bounds: what the limit's bound was after each call that has ended.
    """

    def __init__(
        self, spec: Adaptive, capacity: int, *, noise: float = 0.0, seed: int = 1, callers: int = 1000
    ) -> None:
        self.kind: Any = make_kind("llm", spec)
        self.capacity = capacity
        self.seconds = 1.0
        self.bounds: list[float] = []
        self.refused = 0
        self._noise = noise
        self._random = random.Random(seed)
        self._callers = callers
        self._now = 100.0
        self._ends: list[tuple[float, int, float, Held, str]] = []  # a heap
        self._number = 0

    def call(self, in_use: int) -> tuple[float, str]:
        """Return how long a call takes that finds so many, it included, and how it ends."""
        raise NotImplementedError

    def run(self, calls: int) -> list[float]:
        """Do so many calls; return the bound after each."""
        for _ in range(calls):
            while len(self._ends) < self._callers and self.kind.available_at(1, self._now) <= self._now:
                held = self.kind.take(1, self._now)
                seconds, ending = self.call(len(self._ends) + 1)
                if self._noise:
                    seconds *= max(0.05, self._random.gauss(1, self._noise))
                self._number += 1
                heapq.heappush(self._ends, (self._now + seconds, self._number, seconds, held, ending))
            self._now, _, seconds, held, ending = heapq.heappop(self._ends)
            self.kind.give_back(held, self._now, seconds, ending)
            self.refused += ending == "overloaded"
            self.bounds.append(self.kind.bound())
        return self.bounds[-calls:]

    def throughput(self, calls: int) -> float:
        """Do so many calls; return how many succeeded in the time of one."""
        began, refused = self._now, self.refused
        self.run(calls)
        return (calls - (self.refused - refused)) / (self._now - began) * self.seconds


class Slowing(Service):
    """One that takes the longer for each call the more there are above what it can do."""

    def call(self, in_use: int) -> tuple[float, str]:
        """Return how long it takes, and how it ends."""
        return self.seconds * max(1.0, in_use / self.capacity), "succeeded"


class Refusing(Service):
    """One that refuses what is more than it can do."""

    def call(self, in_use: int) -> tuple[float, str]:
        """Return how long it takes, and how it ends."""
        if in_use > self.capacity:
            return 0.1 * self.seconds, "overloaded"
        return self.seconds, "succeeded"


class TimingOut(Service):
    """One in which what is more than it can do is never answered."""

    def call(self, in_use: int) -> tuple[float, str]:
        """Return how long it takes, and how it ends."""
        return (5.0, "overloaded") if in_use > self.capacity else (self.seconds, "succeeded")


Make = Callable[..., Service]
every_service = pytest.mark.parametrize("make", [Slowing, Refusing])


def _is_near(bound: float, best: float) -> bool:
    return abs(bound - best) <= 0.2 * best


@every_service
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize(("before", "after"), [(16, 8), (8, 16), (12, 6), (20, 10), (6, 10)])
def test_a_step_is_followed(make: Make, before: int, after: int, noise: float, seed: int) -> None:
    """When the service can do fewer or more, the bound is within 20 % of that within 50 calls, and stays about there."""
    service = make(Adaptive(max=64), before, noise=noise, seed=seed)
    service.run(400 + 7 * seed)
    service.capacity = after
    assert any(_is_near(bound, after) for bound in service.run(50))
    then = service.run(200)
    assert 0.85 * after <= sum(then) / len(then) <= 1.2 * after
    assert sum(_is_near(bound, after) for bound in then) / len(then) > 0.5


@every_service
@pytest.mark.parametrize("seed", range(4))
def test_what_a_service_can_do_is_used(make: Make, seed: int) -> None:
    """Hardly less is done than could be, and hardly anything is refused."""
    service = make(Adaptive(max=64), 12, noise=0.05, seed=seed)
    service.run(300)
    assert service.throughput(1000) > 0.85 * 12
    assert service.refused < 100


@pytest.mark.parametrize("capacity", [2, 4])
def test_one_that_is_too_much_from_the_start(capacity: int) -> None:
    """What is thought to be the usual time, as it is the first to be seen, need not be."""
    service = Slowing(Adaptive(max=64, initial=16), capacity)
    service.run(400)
    assert sum(service.run(100)) / 100 <= 1.3 * capacity


@pytest.mark.parametrize("times", [0.3, 2.0, 5.0])
def test_calls_that_take_longer_by_themselves(times: float) -> None:
    """If calls take longer, however few there are, the bound does not stay low for it."""
    service = Slowing(Adaptive(max=64), 12, noise=0.05)
    service.run(300)
    service.seconds *= times
    service.run(200)
    assert service.throughput(300) > 0.75 * 12


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_calls_that_differ_much(noise: float, seed: int) -> None:
    """Calls whose times differ by themselves do not make the bound collapse, nor run away."""
    service = Slowing(Adaptive(max=100), 12, noise=noise, seed=seed)
    service.run(1000)
    bounds = service.run(2000)
    assert 0.6 * 12 < sum(bounds) / len(bounds) < 1.6 * 12


def test_a_service_that_stands_all() -> None:
    """The bound grows to the most that it may be, and never beyond."""
    service = Slowing(Adaptive(max=40), 10_000)
    bounds = service.run(500)
    assert max(bounds) == 40
    assert bounds[-1] == 40


def test_a_caller_that_has_few() -> None:
    """The bound does not grow beyond what was tried."""
    service = Slowing(Adaptive(max=1000), 10_000, callers=5)
    assert max(service.run(500)) <= 12


@pytest.mark.parametrize("make", [Refusing, TimingOut])
def test_a_service_that_stands_nothing(make: Make) -> None:
    """However much is refused, there is the least that was asked for; and when the service is well again that is noticed."""
    service = make(Adaptive(max=64, min=2), 0)
    assert service.run(200)[-1] == 2
    service.capacity = 20
    service.run(200)
    assert _is_near(sum(service.run(200)) / 200, 20)


def test_time_outs() -> None:
    """What times out is too much."""
    service = TimingOut(Adaptive(max=64), 10)
    service.run(400)
    assert sum(service.run(200)) / 200 <= 12


def test_the_same_limits_by_another_name() -> None:
    """Who changes the bounds of an adaptive limit need not begin anew."""
    service = Slowing(Adaptive(max=64), 20)
    service.run(300)
    old, found = service.kind, service.kind.bound()
    service.kind = make_kind("llm", Adaptive(max=100))
    service.kind.adopt(old, [held for *_, held, _ in service._ends], service._now)
    assert service.kind.bound() == found
    service.run(100)
    assert _is_near(sum(service.run(100)) / 100, 20)
    old, service.kind = service.kind, make_kind("llm", Adaptive(max=9))
    service.kind.adopt(old, [held for *_, held, _ in service._ends], service._now)
    assert service.kind.bound() == 9


@given(
    steps=st.lists(
        st.tuples(
            st.booleans(),
            st.sampled_from([0.25, 1, 1, 1, 3]),
            st.integers(0, 50),
            st.sampled_from([0.0, 1e-9, 0.5, 1.0, 1.1, 30.0, 1e6]),
            st.sampled_from(["succeeded", "succeeded", "succeeded", "failed", "overloaded", "unused"]),
        ),
        max_size=200,
    ),
    least=st.integers(1, 5),
    more=st.integers(0, 20),
)
def test_bounds_are_kept(steps: list[Any], least: int, more: int) -> None:
    """Whatever calls do, the bound is between its own, and no more is held than it is, but of what runs alone."""
    most = least + more
    kind: Any = make_kind("llm", Adaptive(min=least, max=most))
    held: list[Held] = []
    for is_start, amount, index, seconds, ending in steps:
        if is_start and amount <= most and kind.available_at(amount, 0.0) <= 0.0:
            held.append(kind.take(amount, 0.0))
            assert kind.stats(0.0).in_use <= kind.bound() or len(held) == 1
        elif held and not is_start:
            kind.give_back(held.pop(index % len(held)), 0.0, seconds, ending)
        assert least <= kind.bound() <= most
        assert kind.stats(0.0).in_use == sum(each.granted for each in held)
    if not held:
        assert kind.available_at(most, 0.0) <= 0.0
