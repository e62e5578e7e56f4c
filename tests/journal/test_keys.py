"""`parallel_exec._journal.keys`: what makes two calls one and the same, in this process and in any other."""

from __future__ import annotations

import functools
import math
import operator
import os
import subprocess
import sys
import threading
from collections import Counter, OrderedDict, namedtuple
from datetime import date
from enum import Enum
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePosixPath
from pickle import PickleBuffer
from types import SimpleNamespace
from typing import Any, Callable

import pytest
from source import ROOT

from parallel_exec._journal.keys import key_of


def _function(*args: Any, **kwargs: Any) -> None:
    """Do nothing: only its name counts."""


def _other(*args: Any, **kwargs: Any) -> None:
    """Do nothing under another name."""


def _key(*args: Any, **kwargs: Any) -> bytes:
    return key_of("", "id", _function, args, kwargs)


def _closing_over(*kept: Any) -> Callable[[], Any]:
    def inner() -> Any:
        return kept

    return inner


class Thing:
    """An object with whatever attributes it is given, in the order given."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def method(self) -> None:
        """Do nothing."""

    def __call__(self) -> None:
        """Do nothing."""


class Slotted:
    """An object without a dict."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Colour(Enum):
    """An enumeration."""

    RED = 1
    GREEN = 2


class Text(str):
    """A string of a class of its own."""

    __slots__ = ()


class Names(frozenset):  # type: ignore[type-arg]
    """A set of a class of its own."""


Point = namedtuple("Point", "x y")  # noqa: PYI024  # that of `collections` is what is tested

DIFFERENT: list[Any] = [
    None,
    ...,
    True,
    1,
    1.0,
    1 + 0j,
    0.0,
    -0.0,
    1 << 100,
    "1",
    b"1",
    bytearray(b"1"),
    "",
    "\udc80",
    (),
    [],
    {},
    set(),
    frozenset(),
    (1,),
    [1],
    {1},
    frozenset({1}),
    {1: 2},
    {2: 1},
    {1: 2, 3: 4},
    {3: 4, 1: 2},  # a dict's order is part of what it is
    [[], []],
    [[[]]],
    [[1], 2],
    [[1, 2]],
    Path("a"),
    Path("b"),
    PurePosixPath("a"),
    Thing(x=1),
    Thing(x=2),
    Thing(y=1),
    Thing(),
    SimpleNamespace(x=1),
    Slotted(1),
    Slotted(2),
    Colour.RED,
    Colour.GREEN,
    Text("1"),
    Names({1}),
    Names({2}),
    Point(1, 2),
    (1, 2),
    Counter("ab"),
    OrderedDict(a=1),
    date(2024, 1, 1),
    Fraction(1, 2),
    range(3),
    range(4),
    int,
    Thing,
    len,
    math,
    os,
    _function,
    _other,
    partial(_function, 1),
    partial(_function, x=1),
    operator.itemgetter(1),
    operator.itemgetter(2),
    "a".upper,
    "b".upper,
    "a".lower,
    Thing(x=1).method,
    Thing(x=2).method,
    Thing.method,
    str.upper,
    int.__add__,
    int.__sub__,
    list[int] if sys.version_info >= (3, 9) else list,
    NotImplemented,
    lambda: 0,
    lambda a=1: a,
    lambda a=2: a,
    lambda *, a=2: a,
    _closing_over(1),
    _closing_over(2),
    ValueError("a"),
    ValueError("b"),
]


def test_different_arguments_have_different_keys() -> None:
    """Values that differ, in type, in content, in what is nested how, are never taken for the same."""
    keys = {_key(value): value for value in DIFFERENT}
    assert len(keys) == len(DIFFERENT)


@pytest.mark.parametrize("place", range(len(DIFFERENT)))
def test_a_key_is_always_the_same(place: int) -> None:
    """The same call has the same key whenever it is asked for."""
    assert _key(DIFFERENT[place]) == _key(DIFFERENT[place])


def test_everything_in_a_call_counts() -> None:
    """Version, id, function, each argument, and which is which."""
    calls: list[Any] = [
        ("", "id", _function, (), {}),
        ("2", "id", _function, (), {}),
        ("", "2", _function, (), {}),
        ("", "id", _other, (), {}),
        ("", "id", _function, (1, 2), {}),
        ("", "id", _function, (2, 1), {}),
        ("", "id", _function, ((1, 2),), {}),
        ("", "id", _function, (1,), {"a": 2}),
        ("", "id", _function, (1,), {"b": 2}),
        ("", "id", _function, (), {"a": 2, "b": 1}),
        ("", "id", _function, (), {"a": 1, "b": 2}),
    ]
    keys = {key_of(*call) for call in calls}
    assert len(keys) == len(calls)
    assert {len(key) for key in keys} == {16}


def test_the_same_call_written_in_several_ways() -> None:
    """A partial is the call that it makes, whatever its nesting; names come in any order."""
    keys = {
        key_of("", "id", _function, (1, 2), {"a": 3, "b": 4}),
        key_of("", "id", _function, (1, 2), {"b": 4, "a": 3}),
        key_of("", "id", partial(_function, 1), (2,), {"b": 4, "a": 3}),
        key_of("", "id", partial(_function, 1, 2, a=3, b=4), (), {}),
        key_of("", "id", partial(partial(_function, 1, a=0, b=4), 2), (), {"a": 3}),
    }
    assert len(keys) == 1


def test_equal_values_are_the_same_value() -> None:
    """Whether equal parts are one object, and in what order attributes were set and sets filled, does not count."""
    name = str(b"name", "ascii")  # another object than the one below
    pair = (name, [name])
    assert _key(pair, name) == _key(("name", ["name"]), "name")
    assert _key(Thing(a=1, b=2)) == _key(Thing(b=2, a=1))
    assert _key(Path("a") / "b") == _key(Path("a/b"))
    assert _key({8, 0, "a"}) == _key({"a", 0, 8})
    assert _key(bytearray(b"x")) == _key(memoryview(b"x")) == _key(PickleBuffer(b"x"))


def test_a_string_of_a_class_of_its_own_as_an_id() -> None:
    """It is the string that counts."""
    assert key_of("", Text("id"), _function, (), {}) == key_of("", "id", _function, (), {})


def test_what_leads_to_itself() -> None:
    """Circles have an end."""
    circle: list[Any] = [1]
    circle.append(circle)
    thing = Thing(value=1)
    thing.me, thing.circle = thing, circle
    other = Thing(value=2)
    other.me, other.circle = other, circle
    assert _key(circle) == _key(circle)
    assert _key(thing) != _key(other)


def test_a_web_of_objects_is_walked_once() -> None:
    """Where everything leads to everything, each is looked at once."""
    things = [Thing(number=number) for number in range(300)]
    for thing in things:
        thing.others = things
    assert _key(things) == _key(things)


def test_a_recursive_closure() -> None:
    """A local function that calls itself."""

    def fib(n: int) -> int:
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    assert key_of("", "id", fib, (3,), {}) == key_of("", "id", fib, (3,), {})
    assert key_of("", "id", fib, (3,), {}) != key_of("", "id", fib, (4,), {})


def test_an_empty_cell() -> None:
    """A closure over what is not there yet."""

    def make() -> Any:
        def inner() -> Any:
            return later

        key = key_of("", "id", inner, (), {})
        later = 1
        return key, key_of("", "id", inner, (), {})

    before, after = make()
    assert before != after


# ── what cannot be pickled ──────────────────────────────────────────────────────────────────────────────────────────


class Raising:
    """Refuses to be pickled, by any exception."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ZeroDivisionError


def test_what_cannot_be_pickled_counts_by_its_type() -> None:
    """Two locks are alike, and unlike a generator; what stands beside one in a list still counts."""
    assert _key(threading.Lock()) == _key(threading.Lock())
    assert _key(threading.Lock()) != _key(iter([]).__iter__().__class__)
    assert _key(threading.Lock()) != _key(Raising())
    assert _key([threading.Lock(), 1]) == _key([threading.Lock(), 1])
    assert _key([threading.Lock(), 1]) != _key([threading.Lock(), 2])


def test_an_object_with_a_lock_counts_by_its_type() -> None:
    """It cannot be pickled, and its state may be of the moment; nothing of it is referred to by what comes after."""
    inner = [1, [2]]
    assert _key(Thing(lock=threading.Lock(), x=1)) == _key(Thing(lock=threading.Lock(), x=2))
    assert _key(Thing(thing=Thing(lock=threading.Lock()), x=1)) == _key(Thing(x=2, raising=Raising()))
    assert _key(Thing(i=inner, lock=Raising()), inner) != _key(Thing(i=inner, lock=Raising()), [1, [3]])
    assert _key(Thing(i=inner, lock=Raising()), inner) == _key(Thing(i=[], lock=Raising()), inner)


def test_a_closure_over_a_lock() -> None:
    """The rest of it counts."""
    assert key_of("", "id", _closing_over(threading.Lock(), 1), (), {}) != key_of(
        "", "id", _closing_over(threading.Lock(), 2), (), {}
    )


def test_what_is_nested_too_deeply() -> None:
    """It counts by its type, and raises nothing."""
    nested: Any = []
    for _ in range(sys.getrecursionlimit() * 2):
        nested = [nested]
    assert _key(nested, 1) == _key(nested, 1) != _key(nested, 2)
    chain: Any = None
    for _ in range(sys.getrecursionlimit() * 2):
        chain = Thing(next=chain)
    assert _key(chain, 1) == _key(Thing(raising=Raising()), 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_goes_through(error: type[BaseException]) -> None:
    """Ctrl-C while an argument is looked at is Ctrl-C."""

    class Stopping:
        """Raises what is no `Exception`."""

        def __reduce_ex__(self, protocol: Any) -> Any:
            raise error

    with pytest.raises(error):
        _key(Stopping())


# ── other processes ─────────────────────────────────────────────────────────────────────────────────────────────────

_PROGRAM = """
import sys, functools, pathlib, enum
from parallel_exec._journal.keys import key_of

class Thing:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)

def closing_over(value):
    return lambda default={"b", "a"}: value

def function(): pass

thing = Thing(names={"x", "y", "z"}, nested=[{"k": frozenset({("a", 1), ("b", frozenset("cde"))})}])
thing.self = thing
for call in (
    (function, ("a", 1, None, 2.5), {}),
    (function, ({"a", "b", "c"},), {"y": {"a": {"b"}}, "x": thing}),
    (thing.__init__, (), {}),
    (closing_over({"p", "q", "r"}), (), {}),
    (functools.partial(function, pathlib.Path("a"), Thing), (), {"z": len}),
    (function, ({Thing, str, int},), {}),
):
    print(key_of("1", "id", *call).hex())
"""


def test_another_process_has_the_same_keys() -> None:
    """Whatever the seed of its hashes, on which the order of sets depends."""
    outputs = set()
    for seed in ("0", "1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT.parent)}
        program = subprocess.run(
            [sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        outputs.add(program.stdout)
    assert len(outputs) == 1
    assert len(set(outputs.pop().split())) == 6


def test_the_main_module_of_a_worker_is_the_main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that gives tasks of its own to an executor does so in a process where it has another name."""
    monkeypatch.setattr(_function, "__module__", "__main__")
    monkeypatch.setattr(Thing, "__module__", "__main__")
    keys = {_key(1), _key(Thing)}
    monkeypatch.setattr(_function, "__module__", "__mp_main__")
    monkeypatch.setattr(Thing, "__module__", "__mp_main__")
    assert keys == {_key(1), _key(Thing)}


def test_a_decorated_function_is_known_by_its_name() -> None:
    """What `functools.wraps` and `lru_cache` make goes by the name of what they wrap."""
    cached = functools.lru_cache(maxsize=None)(_function)
    assert key_of("", "id", cached, (1,), {}) == key_of("", "id", cached, (1,), {})
    assert key_of("", "id", cached, (1,), {}) != key_of("", "id", functools.lru_cache(_other), (1,), {})


def test_arrays() -> None:
    """Content, shape and type count, however large, and whatever the layout in memory."""
    numpy = pytest.importorskip("numpy")
    square = numpy.arange(6).reshape(2, 3)
    assert _key(square) == _key(square.copy())
    different = {_key(square), _key(square.reshape(3, 2)), _key(square.T), _key(square.astype("f8")), _key(square + 1)}
    assert len(different) == 5
