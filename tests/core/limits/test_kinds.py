"""`parallel_exec._core.limits.kinds`: what each kind grants, refuses and takes back, on a clock of the test's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from parallel_exec import Adaptive, PerKey, Rate
from parallel_exec._core.limits.kinds import make_kind
from parallel_exec.limits import LimitStats, check_spec

if TYPE_CHECKING:
    from parallel_exec._core.limits.kind import Held, Kind


def _kind(spec: Any) -> Any:
    return make_kind("api", check_spec("it", spec))


def _take_all(kind: Kind, need: Any = 1, now: float = 0.0) -> list[Held]:
    """Take as often as it can be granted."""
    taken = []
    while kind.available_at(need, now) <= now:
        taken.append(kind.take(need, now))
    return taken


def _end(kind: Kind, held: Held, now: float = 0.0) -> None:
    kind.give_back(held, now, 1.0, "succeeded")


def test_a_count() -> None:
    """As much as there is can be held, and what is given back can be had again."""
    kind = _kind(4)
    held = _take_all(kind)
    assert len(held) == 4
    assert kind.available_at(1, 0.0) == math.inf
    _end(kind, held.pop())
    assert kind.available_at(2, 0.0) == math.inf
    assert kind.available_at(1, 0.0) <= 0.0
    assert kind.stats(0.0) == LimitStats("api", in_use=3, granted=4, limit=4)


def test_fractions_of_a_count() -> None:
    """Parts that make up the whole fit into it, however they are written, and leave nothing."""
    kind = _kind(1)
    for amount, times in ((0.1, 10), (1 / 3, 3), (1 / 6, 6), (0.3, 3), (1e-3, 1000)):
        held = _take_all(kind, amount)
        assert len(held) == times
        for each in held:
            _end(kind, each)
    assert kind.stats(0.0).in_use == 0
    held = [kind.take(0.1, 0.0) for _ in range(3)]
    assert kind.stats(0.0).in_use == 0.3


def test_large_amounts() -> None:
    """Bytes of memory are whole numbers, which count to the last one; and any float will do."""
    kind = _kind(2**60)
    kind.take(2**60 - 1, 0.0)
    assert kind.available_at(1, 0.0) <= 0.0
    assert kind.available_at(2, 0.0) == math.inf
    kind = _kind(1e300)
    kind.take(9e299, 0.0)
    assert kind.available_at(2e299, 0.0) == math.inf


def test_slots() -> None:
    """Items are handed out, the one first that was longest not in use."""
    kind = _kind(["a", "b", "c"])
    first, second = kind.take(1, 0.0), kind.take(1, 0.0)
    assert (first.granted, second.granted) == (("a",), ("b",))
    _end(kind, first)
    both = kind.take(2, 0.0)
    assert both.granted == ("c", "a")
    assert kind.available_at(1, 0.0) == math.inf
    assert kind.stats(0.0) == LimitStats("api", in_use=3, granted=3, limit=3)


def test_an_item_that_is_there_twice() -> None:
    """Whoever lists an item twice lets two have it."""
    kind = _kind(["a", "a"])
    assert [held.granted for held in _take_all(kind)] == [("a",), ("a",)]


def test_an_unused_item_is_the_next_again() -> None:
    """What was given back without use is first in the line."""
    kind = _kind(["a", "b", "c"])
    kind.give_back(kind.take(2, 0.0), 0.0, 0.0, "unused")
    assert kind.take(3, 0.0).granted == ("a", "b", "c")
    assert kind.granted == 1


def test_a_rate() -> None:
    """After a burst the starts are spaced."""
    kind = _kind(Rate(10, burst=3))
    now = 1000.0
    assert len(_take_all(kind, now=now)) == 3
    assert kind.available_at(1, now) == pytest.approx(now + 0.1)
    assert kind.available_at(3, now) == pytest.approx(now + 0.3)
    assert kind.stats(now).next_grant == pytest.approx(0.1)
    assert len(_take_all(kind, now=now + 0.2000001)) == 2
    assert len(_take_all(kind, now=now + 10)) == 3


def test_the_default_burst() -> None:
    """It is what comes in a tenth of a second, so that a second's starts are never many more than were asked for."""
    assert (Rate(10).burst, Rate(50).burst, Rate(1000, per=3600).burst) == (1, 5, 1)


def test_the_end_of_an_attempt_is_nothing_to_a_rate() -> None:
    """A rate bounds starts: what ended has started."""
    kind = _kind(Rate(1))
    _end(kind, kind.take(1, 0.0), 0.1)
    assert kind.available_at(1, 0.1) == pytest.approx(1.0)
    assert kind.stats(0.1).in_use == 0


def test_a_start_that_was_none() -> None:
    """What was granted and never began is as if it had not been granted."""
    kind = _kind(Rate(1, burst=2))
    held = _take_all(kind, now=5.0)
    for each in held:
        kind.give_back(each, 5.5, 0.0, "unused")
    assert kind.granted == 0
    assert len(_take_all(kind, now=5.5)) == 2


def test_a_start_that_was_none_is_not_given_twice() -> None:
    """What another start had meanwhile, as time had passed, is not there for a third."""
    kind = _kind(Rate(1))
    none = kind.take(1, 0.0)
    kind.take(1, 1.0)
    kind.give_back(none, 1.0, 0.0, "unused")
    assert kind.available_at(1, 1.0) == pytest.approx(2.0)


def test_two_starts_that_were_none() -> None:
    """What each of them leaves to later starts is left once."""
    kind = _kind(Rate(1, burst=2))
    first, second = _take_all(kind)
    kind.take(1, 1.0)
    kind.give_back(second, 1.0, 0.0, "unused")
    kind.give_back(first, 1.0, 0.0, "unused")
    assert len(_take_all(kind, now=1.0)) == 1


def test_keys() -> None:
    """Each key has a limit of its own, which leaves nothing when all of it has been given back."""
    kind = _kind(PerKey(2))
    ours, theirs = _take_all(kind, "ours"), _take_all(kind, "theirs")
    assert (len(ours), len(theirs)) == (2, 2)
    stats = kind.stats(0.0, 5, {"ours": 2, "new": 3})
    assert stats.in_use == stats.granted == 4
    assert stats.keys["ours"] == LimitStats("api", 2, 2, 2, 2)
    assert stats.keys["new"] == LimitStats("api", 0, 3, 0, 2)
    for held in (*ours, *theirs):
        _end(kind, held)
    assert kind.by_key == {}


def test_items_for_each_key() -> None:
    """A list for each key hands out its items for each."""
    kind = _kind(PerKey(["a", "b"]))
    assert [kind.take(key, 0.0).granted for key in ("x", "y", "x")] == [("a",), ("a",), ("b",)]


def test_keys_with_a_rate_are_forgotten_in_time() -> None:
    """A key's rate is known as long as it matters; who looks later drops it."""
    kind = _kind(PerKey(Rate(1)))
    for number in range(100):
        _end(kind, kind.take(f"key {number}", 0.0), 0.5)
    assert len(kind.by_key) == 100
    assert kind.available_at("key 7", 0.5) == pytest.approx(1.0)
    for number in range(60):
        _end(kind, kind.take(f"other {number}", 2.0), 3.0)
    assert len(kind.by_key) <= 60
    assert kind.stats(9.0).keys == {}
    assert kind.by_key == {}


@pytest.mark.parametrize("spec", [4, Rate(10, burst=4), ["a", "b", "c", "d"], Adaptive(max=9)])
def test_a_hold(spec: Any) -> None:
    """While a limit is held nothing is granted, and time alone ends that."""
    kind = _kind(spec)
    kind.hold(1, 7.0)
    kind.hold(1, 3.0)
    assert kind.available_at(1, 5.0) == 7.0
    assert kind.stats(5.0).next_grant == 2.0
    assert _take_all(kind, now=7.0)


def test_after_a_hold_there_is_no_burst() -> None:
    """Who was told to wait has started too many: then starts are spaced, be it that the hold lasted long."""
    kind = _kind(Rate(10, burst=5))
    kind.hold(1, 7.0)
    assert len(_take_all(kind, now=7.0)) == 1
    assert kind.available_at(1, 7.0) == pytest.approx(7.1)
    assert len(_take_all(kind, now=8.0)) == 5
    kind.hold(1, 8.1)
    assert kind.available_at(1, 8.0) == pytest.approx(8.1)


def test_a_hold_of_a_key() -> None:
    """A key is held for itself, and as long as that lasts it is known."""
    kind = _kind(PerKey(2))
    kind.hold("ours", 7.0)
    assert kind.available_at("ours", 5.0) == 7.0
    assert kind.available_at("theirs", 5.0) <= 5.0
    assert kind.stats(5.0).next_grant == 2.0
    assert set(kind.stats(6.0).keys) == {"ours"}
    assert kind.stats(8.0).keys == {}
    assert kind.by_key == {}


@pytest.mark.parametrize(
    ("spec", "need", "message"),
    [
        (4, 5, "is 5, and there is no more than 4 of 'api'"),
        (1, 1.0001, r"is 1\.0001, and there is no more than 1"),
        (4, "key", "takes how much, a number"),
        (Rate(10, burst=3), 4, "lets 3 start at once"),
        (Rate(10), "key", "takes how much"),
        (["a", "b"], 3, "'api' has 2 items"),
        (["a", "b"], 1.5, "takes a whole number"),
        (["a", "b"], ("a",), "takes how much"),
        (Adaptive(max=9), 10, "there is never more than 9"),
        (PerKey(2), 1, r"a key is no number, not 1: write str\(1\)"),
    ],
)
def test_what_can_never_be_granted(spec: Any, need: Any, message: str) -> None:
    """More than there is, and a key where there are none or the reverse: the error says what there is."""
    with pytest.raises(ValueError, match=message):
        _kind(spec).check(need)


@pytest.mark.parametrize("spec", [4, 2.5, Rate(10, burst=3), ["a", "b"], Adaptive(max=9)])
def test_what_can_be_granted(spec: Any) -> None:
    """What there is may be asked for."""
    for need in (1, 2, 1.0):
        _kind(spec).check(need)
    _kind(PerKey(spec)).check("key")


def _changed(old: Kind, spec: Any, held: list[Held], now: float = 0.0) -> Any:
    new = _kind(spec)
    new.adopt(old, held, now)
    return new


def test_a_count_is_changed() -> None:
    """What is held is held of the new one, be it more than that has."""
    old = _kind(4)
    held = _take_all(old)
    new = _changed(old, 3, held)
    _end(new, held.pop())
    assert new.available_at(1, 0.0) == math.inf
    _end(new, held.pop())
    assert new.available_at(1, 0.0) <= 0.0
    assert new.stats(0.0) == LimitStats("api", 2, 0, 4, 3)


def test_a_list_is_changed() -> None:
    """An item that is in use is not handed out by another list that has it, nor by a third when it was not in the second."""
    old = _kind(["a", "b"])
    held = _take_all(old)
    new = _changed(old, ["b", "c"], held)
    more = _take_all(new)
    assert [each.granted for each in more] == [("c",)]
    last = _changed(new, ["a", "c", "d"], held + more)
    assert [each.granted for each in _take_all(last)] == [("d",)]
    _end(last, held[0])
    assert last.take(1, 0.0).granted == ("a",)
    _end(last, held[1])
    assert last.available_at(1, 0.0) == math.inf


def test_a_rate_is_changed() -> None:
    """What was used up of the burst is used up; what was granted by the old one gives nothing back."""
    old = _kind(Rate(10, burst=10))
    held = _take_all(old)
    new = _changed(old, Rate(1, burst=5), held)
    assert new.available_at(1, 0.0) == pytest.approx(1.0)
    new.give_back(held[0], 0.0, 0.0, "unused")
    assert new.available_at(1, 0.0) == pytest.approx(1.0)
    assert new.stats(0.0).in_use == 9


def test_a_hold_outlasts_a_change() -> None:
    """Who was told to wait until then is not asked earlier because the limit is another one."""
    old = _kind(4)
    old.hold(1, 5.0)
    assert _changed(old, Rate(10), []).available_at(1, 1.0) == 5.0


def test_keys_are_changed() -> None:
    """What each key has is held of its new limit."""
    old = _kind(PerKey(2))
    held = [*_take_all(old, "x"), old.take("y", 0.0)]
    new = _changed(old, PerKey(["a"]), held)
    assert len(_take_all(new, "x")) == 1
    newer = _changed(old, PerKey(1), held)
    assert newer.available_at("x", 0.0) == newer.available_at("y", 0.0) == math.inf
    for each in held:
        _end(newer, each)
    assert newer.by_key == {}
    assert newer.stats(0.0).in_use == 0


def test_keys_come_and_go() -> None:
    """What was held with a key counts as 1 where there are none; what was held without counts where there are keys as nothing."""
    old = _kind(PerKey(2))
    held = _take_all(old, "x")
    count = _changed(old, 3, held)
    assert count.stats(0.0).in_use == 2
    held.append(count.take(1, 0.0))
    keyed = _changed(count, PerKey(2), held)
    assert keyed.stats(0.0).in_use == 2
    assert keyed.available_at("x", 0.0) == math.inf
    for each in held:
        _end(keyed, each)
    assert keyed.stats(0.0) == LimitStats("api", 0, 0, 3, 2)
    assert len(_take_all(keyed, "x")) == 2


def test_what_is_held_is_counted_anew() -> None:
    """Whatever was forgotten or counted twice, what counts then is what is said to be held."""
    for spec, need in ((4, 1), (["a", "b"], 1), (Rate(9, burst=9), 2), (Adaptive(max=9), 1), (PerKey(3), "x")):
        kind = _kind(spec)
        held = [kind.take(need, 0.0), kind.take(need, 0.0)]
        kind.recount(held[1:], 0.0)
        before = kind.stats(0.0).in_use
        _end(kind, held[1])
        assert (before, kind.stats(0.0).in_use) == (1 if need == "x" else need, 0)


def test_an_adaptive_one_never_blocks_what_runs_alone() -> None:
    """What needs more than the bound is granted when nothing else is held."""
    kind = _kind(Adaptive(max=9, initial=1))
    held = kind.take(5, 0.0)
    assert kind.available_at(1, 0.0) == math.inf
    _end(kind, held)
    assert kind.available_at(5, 0.0) <= 0.0
