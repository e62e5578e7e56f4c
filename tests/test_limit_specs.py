"""`parallel_exec.limits`: what a limit may be, and what is said of one that may not."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from decimal import Decimal
from fractions import Fraction
from typing import Any, Callable

import pytest

from parallel_exec import Adaptive, LimitStats, PerKey, Rate
from parallel_exec.limits import check_limits, check_spec


@pytest.mark.parametrize(
    "spec",
    [
        Rate(10),
        Rate(0.5, per=60, burst=2),
        PerKey(2),
        PerKey(Rate(1)),
        PerKey(["a", "b"]),
        Adaptive(max=64),
        LimitStats("api"),
    ],
)
def test_they_are_values(spec: Any) -> None:
    """They are equal if what they say is, have a repr that says it, pickle, and cannot be changed."""
    assert pickle.loads(pickle.dumps(spec)) == copy.deepcopy(spec) == spec
    if not isinstance(spec, LimitStats):
        assert eval(repr(spec)) == spec
        assert hash(spec) == hash(copy.copy(spec))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.anything = 1
    for name in (field.name for field in dataclasses.fields(spec)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(spec, name, 1)


def test_what_they_say() -> None:
    """Defaults are filled in, and numbers of any kind are plain ones."""
    assert Rate(10) == Rate(10.0, per=Fraction(1), burst=Decimal(1))
    assert (Rate(100).burst, Rate(90, per=60).burst) == (10, 1)
    assert (Adaptive(max=64).initial, Adaptive(max=4).initial, Adaptive(max=64, min=10).initial) == (8, 4, 10)
    assert PerKey(["a"]).limit == ("a",)
    assert [type(value) for value in vars(Rate(Fraction(1, 2), per=2, burst=Decimal(3))).values()] == [
        float,
        float,
        float,
    ]


def test_what_limits_are_kept_as() -> None:
    """A list that is changed later changes nothing, and each name is there."""
    items = ["a", "b"]
    checked = check_limits({"gpu": items, "db": 4, "mem": 3.5, "slot": range(2)})
    items.append("c")
    assert checked == {"gpu": ("a", "b"), "db": 4, "mem": 3.5, "slot": (0, 1)}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Rate(0), ValueError, "Rate's n must be a number above 0, and finite, not 0"),
        (lambda: Rate(-1), ValueError, "Rate's n must be"),
        (lambda: Rate(math.nan), ValueError, "Rate's n must be"),
        (lambda: Rate(math.inf), ValueError, "Rate's n must be"),
        (lambda: Rate("10"), TypeError, "Rate's n takes a number, not '10'"),
        (lambda: Rate(True), TypeError, "Rate's n takes a number, not True"),
        (lambda: Rate(1, per=0), ValueError, "Rate's per must be"),
        (lambda: Rate(1, burst=0.5), ValueError, r"Rate's burst must be at least 1, a start, not 0\.5"),
        (lambda: Rate(1, burst=0), ValueError, "Rate's burst must be"),
        (lambda: PerKey(0), ValueError, "PerKey's limit must be a number above 0"),
        (lambda: PerKey(0.5), ValueError, "PerKey takes a count of at least 1"),
        (lambda: PerKey(PerKey(2)), TypeError, "not another PerKey: let a tuple be the key"),
        (lambda: PerKey("abc"), TypeError, "PerKey's limit takes a count such as 4"),
        (lambda: Adaptive(max=0), ValueError, "Adaptive's max must be at least 1, not 0"),
        (lambda: Adaptive(max=4, min=5), ValueError, "Adaptive's max must be at least its min, 5, not 4"),
        (lambda: Adaptive(max=4, initial=5), ValueError, "Adaptive's initial must be at most its max, 4, not 5"),
        (lambda: Adaptive(max=4, min=2, initial=1), ValueError, "Adaptive's initial must be at least 2, not 1"),
        (lambda: Adaptive(max=2.5), TypeError, "Adaptive's max takes a whole number"),
    ],
)
def test_what_they_may_not_be(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    """The error says what is wrong with what, and what to write."""
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (0, ValueError, "it must be a number above 0, and finite, not 0"),
        (-1, ValueError, "it must be"),
        (math.inf, ValueError, "it must be"),
        (True, TypeError, "it takes a count such as 4, "),
        (None, TypeError, "it takes a count such as 4, "),
        ("cuda:0", TypeError, "it takes a count"),
        ({"a", "b"}, TypeError, "it takes a count"),
        ([], ValueError, "it is an empty list: there is nothing to hand out"),
        (Rate, TypeError, "not <class .*>: call it"),
    ],
)
def test_what_no_limit_is(spec: Any, error: type[Exception], message: str) -> None:
    """The same of what stands in `limits` itself."""
    with pytest.raises(error, match=message):
        check_spec("it", spec)


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        ([("db", 4)], TypeError, "limits takes a dict such as"),
        ({1: 4}, TypeError, "a limit's name is a text, not 1"),
        ({"": 4}, ValueError, "a limit's name is a text that is not empty"),
        ({"db": 0}, ValueError, r"limits\['db'\] must be a number above 0"),
    ],
)
def test_what_no_limits_are(limits: Any, error: type[Exception], message: str) -> None:
    """The same of all of them: the message names the one that is wrong."""
    with pytest.raises(error, match=message):
        check_limits(limits)
