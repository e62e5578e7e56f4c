"""What holds of limits whatever happens: of each kind by itself, on a clock of the test's (hypothesis)."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from parallel_exec import Adaptive, PerKey, Rate
from parallel_exec._core.limits.kinds import make_kind
from parallel_exec.limits import check_spec

if TYPE_CHECKING:
    from parallel_exec._core.limits.kind import Held

ENDINGS = st.sampled_from(["succeeded", "failed", "overloaded", "unused"])
SLACK = 1e-7  # what floating point may be off by, in starts or seconds


class RateMachine(RuleBasedStateMachine):
    """Starts, ends and starts that were none, at any times."""

    held = Bundle("held")

    @initialize(
        n=st.sampled_from([0.1, 1, 3, 10, 7.3, 1000]), per=st.sampled_from([1, 60, 0.3]), burst=st.integers(1, 5)
    )
    def make(self, n: float, per: float, burst: int) -> None:
        """Make a limit; its clock does not begin at 0."""
        self.spec = Rate(n, per, burst)
        self.kind = make_kind("api", self.spec)
        self.now = 12345.678
        self.starts: list[tuple[float, int, Held]] = []
        self.any_unused = False

    @rule(share=st.sampled_from([0, 0.01, 0.5, 0.99, 1, 1.01, 2.5, 100]))
    def wait(self, share: float) -> None:
        """Let some time pass, measured by that of one start."""
        self.now += share * self.spec.per / self.spec.n

    @rule(amount=st.integers(1, 5))
    def wait_until_due(self, amount: int) -> None:
        """Let time pass until something can be granted, to the instant."""
        if amount <= self.spec.burst:
            self.now = max(self.now, self.kind.available_at(amount, self.now))

    @rule(target=held, amount=st.integers(1, 5))
    def take(self, amount: int) -> Any:
        """Take something if it is available."""
        if amount > self.spec.burst or self.kind.available_at(amount, self.now) > self.now:
            return multiple()
        held = self.kind.take(amount, self.now)
        self.starts.append((self.now, amount, held))
        return held

    @rule(held=consumes(held), ending=ENDINGS)
    def end(self, held: Held, ending: Any) -> None:
        """End something; what never began is not among the starts."""
        self.kind.give_back(held, self.now, 0.0, ending)
        if ending == "unused":
            self.any_unused = True
            self.starts = [start for start in self.starts if start[2] is not held]

    @invariant()
    def is_never_exceeded(self) -> None:
        """No more than the burst and what time brings, between any two starts."""
        for first in range(len(self.starts)):
            total = 0
            for at, amount, _ in self.starts[first:]:
                total += amount
                passed = at - self.starts[first][0]
                assert total <= self.spec.burst + passed * self.spec.n / self.spec.per + SLACK

    @precondition(lambda self: not self.any_unused)
    @invariant()
    def is_used_up(self) -> None:
        """What the burst and time allow is granted, and at once."""
        level = Fraction(0)
        last = self.now
        rate = Fraction(self.spec.n) / Fraction(self.spec.per)
        for at, amount, _ in self.starts:
            level = max(Fraction(0), level - (Fraction(at) - Fraction(last)) * rate) + amount
            last = at
        level = max(Fraction(0), level - (Fraction(self.now) - Fraction(last)) * rate)
        for amount in range(1, int(self.spec.burst) + 1):
            due = self.now + float(max(Fraction(0), level + amount - int(self.spec.burst)) / rate)
            assert self.kind.available_at(amount, self.now) <= due + SLACK * self.spec.per / self.spec.n + SLACK

    @invariant()
    def counts(self) -> None:
        """What was granted is what has started."""
        assert self.kind.granted == len(self.starts)


class CountMachine(RuleBasedStateMachine):
    """Amounts of a count, in tenths."""

    held = Bundle("held")

    @initialize(tenths=st.integers(1, 50))
    def make(self, tenths: int) -> None:
        """Make a limit."""
        self.limit = tenths
        self.kind = make_kind("mem", tenths / 10)
        self.out = 0
        self.granted = 0

    @rule(target=held, tenths=st.integers(1, 50))
    def take(self, tenths: int) -> Any:
        """Take what there is room for: no more, and no less."""
        if tenths > self.limit:
            return multiple()
        fits = self.kind.available_at(tenths / 10, 0.0) <= 0.0
        assert fits is (self.out + tenths <= self.limit)
        if not fits:
            return multiple()
        self.out += tenths
        self.granted += 1
        return self.kind.take(tenths / 10, 0.0)

    @rule(held=consumes(held), ending=ENDINGS)
    def end(self, held: Held, ending: Any) -> None:
        """Give something back."""
        self.kind.give_back(held, 0.0, 0.0, ending)
        self.out -= round(held.granted * 10)
        self.granted -= ending == "unused"

    @invariant()
    def counts(self) -> None:
        """What is in use is the sum, and nothing when nothing is."""
        stats = self.kind.stats(0.0)
        assert (stats.in_use, stats.granted) == (round(self.out / 10, 9), self.granted)


class AnyKindMachine(RuleBasedStateMachine):
    """A limit that is changed at any time, from any kind to any other."""

    held = Bundle("held")
    SPECS = st.sampled_from(
        [
            *(1, 3, 2.5, ["a"], ["a", "b", "c"], ["c", "a", "a"], Rate(5, burst=3), Rate(0.5), Adaptive(max=4)),
            *(PerKey(2), PerKey(["a", "b"]), PerKey(Rate(1)), PerKey(Adaptive(max=3))),
        ]
    )

    @initialize(spec=SPECS)
    def make(self, spec: Any) -> None:
        """Make a limit."""
        self.spec = check_spec("it", spec)
        self.kind = make_kind("it", self.spec)
        self.now = 5.0
        self.all: list[Held] = []

    @rule(spec=SPECS)
    def change(self, spec: Any) -> None:
        """Put another in its place."""
        self.spec = check_spec("it", spec)
        kind = make_kind("it", self.spec)
        kind.adopt(self.kind, self.all, self.now)
        self.kind = kind

    @rule(target=held, key=st.sampled_from("xyz"), amount=st.integers(1, 3))
    def take(self, key: str, amount: int) -> Any:
        """Take something, if it is available."""
        need: Any = key if isinstance(self.spec, PerKey) else amount
        try:
            self.kind.check(need)
        except ValueError:
            return multiple()
        if self.kind.available_at(need, self.now) > self.now:
            return multiple()
        self.all.append(self.kind.take(need, self.now))
        return self.all[-1]

    @rule(held=consumes(held), ending=ENDINGS)
    def end(self, held: Held, ending: Any) -> None:
        """Give something back, be it another kind's."""
        self.all.remove(held)
        self.kind.give_back(held, self.now, 0.5, ending)

    @rule(seconds=st.sampled_from([0.1, 1.0, 100.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    @rule(ahead=st.sampled_from([0.5, 5.0]), key=st.sampled_from("xyz"))
    def hold(self, ahead: float, key: str) -> None:
        """Hold it, or a key's, for a while."""
        self.kind.hold(key, self.now + ahead)

    @rule()
    def recount(self) -> None:
        """Count anew: that changes nothing."""
        before = self.kind.stats(self.now)
        self.kind.recount(list(self.all), self.now)
        assert self.kind.stats(self.now) == before

    @invariant()
    def no_item_is_used_by_two(self) -> None:
        """No item is held more often than the lists that were there have had it."""
        if isinstance(self.spec, PerKey):
            return
        items = [item for held in self.all if isinstance(held.granted, tuple) for item in held.granted]
        if isinstance(self.spec, tuple):
            free = self.kind.available_at(1, 1e9) <= 1e9
            in_use = self.kind.stats(self.now).in_use
            assert 0 <= in_use <= len(self.spec)
            assert free is (in_use < len(self.spec))
            assert in_use >= len([item for item in set(items) if item in self.spec])

    def teardown(self) -> None:
        """Give all back, and wait: it is as new then."""
        if not hasattr(self, "kind"):
            return
        for held in self.all:
            self.kind.give_back(held, self.now, 0.5, "succeeded")
        later = self.now + 10_000
        stats = self.kind.stats(later)
        assert stats.in_use == 0
        assert stats.keys == {}
        assert self.kind.idle_from() <= later
        if isinstance(self.spec, tuple):
            taken = self.kind.take(len(self.spec), later)
            assert sorted(taken.granted) == sorted(self.spec)


TestRate = RateMachine.TestCase
TestCount = CountMachine.TestCase
TestAnyKind = AnyKindMachine.TestCase


@given(amounts=st.lists(st.floats(1e-6, 1e6), max_size=30), data=st.data())
def test_nothing_drifts(amounts: list[float], data: st.DataObject) -> None:
    """Whatever was taken, in whatever order it comes back: nothing is in use then."""
    kind = make_kind("mem", 1e9)
    held = [kind.take(amount, 0.0) for amount in amounts]
    for each in data.draw(st.permutations(held)):
        kind.give_back(each, 0.0, 0.0, "failed")
    assert kind.stats(0.0).in_use == 0


@given(
    takes=st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]), st.integers(1, 3)), min_size=1, max_size=30),
    data=st.data(),
)
@settings(max_examples=200)
def test_what_was_given_back_unused_in_turn_is_as_if_it_had_not_been(takes: Any, data: st.DataObject) -> None:
    """A start that is taken and given back before the next one changes nothing about what is available when."""
    with_it, without = (make_kind("api", Rate(2, burst=4)) for _ in range(2))
    now = 100.0
    for pause, amount in takes:
        now += pause
        if data.draw(st.booleans()) and with_it.available_at(amount, now) <= now:
            with_it.give_back(with_it.take(amount, now), now, 0.0, "unused")
        at, same = with_it.available_at(amount, now), without.available_at(amount, now)
        assert abs(max(at, now) - max(same, now)) < SLACK
        if max(at, same) <= now:
            with_it.take(amount, now)
            without.take(amount, now)
