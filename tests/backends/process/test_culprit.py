"""What cannot be pickled is named by the way to it, with a remedy that fits it."""

from __future__ import annotations

import collections
import contextlib
import io
import multiprocessing
import sqlite3
import sys
import threading
import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any, Iterator

import pytest
import work

from parallel_exec import ProcessBackend, TaskSerializationError
from parallel_exec._names import type_name
from parallel_exec.backends._culprit import find_culprit, parts_of, unsendable

from . import unpicklable


@dataclass
class Config:
    """Settings of a program, with something among them that does not travel."""

    lock: Any
    name: str = "a"


class Slotted:
    """Keeps it in a slot."""

    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner


class Listed(list):  # type: ignore[type-arg]
    """A list with an attribute."""


def in_attribute_of_list(inner: Any) -> Listed:
    """Return a list that is fine, with an attribute that is not."""
    listed = Listed([1])
    listed.inner = inner  # type: ignore[attr-defined]
    return listed


LOCK = threading.Lock()

WAYS = [
    (partial(work.same, LOCK), "argument 0 (lock ", ""),
    (
        partial(partial(work.same, 1), conf=Config(LOCK)),
        "argument 'conf' (Config ",
        "attribute 'lock' (_thread.lock): ",
    ),
    (
        partial(work.same, {"a": [1, (2, LOCK)]}),
        "argument 0 (dict ",
        "['a'] (list) → [1] (tuple) → [1] (_thread.lock): ",
    ),
    (partial(work.same, {1, LOCK}), "argument 0 (set ", "] (_thread.lock): "),
    (partial(work.same, {LOCK: 1}), "argument 0 (dict ", "(_thread.lock): "),
    (partial(work.same, collections.deque([LOCK])), "argument 0 (deque ", "[0] (_thread.lock): "),
    (partial(work.same, collections.defaultdict(list, a=LOCK)), "argument 0 (defaultdict", "['a'] (_thread.lock): "),
    (partial(work.same, Slotted(LOCK)), "argument 0 (Slotted ", "attribute 'inner' (_thread.lock): "),
    (partial(work.same, in_attribute_of_list(LOCK)), "argument 0 (Listed ", "attribute 'inner' (_thread.lock): "),
    (Config(LOCK).__eq__, "the function (method", "the object it is bound to "),
    (partial(work.same, threading.Event()), "argument 0 (Event ", "attribute '_cond' (threading.Condition) → "),
    (partial(work.same, partial(print, LOCK)), "argument 0 (partial ", "argument 0 (_thread.lock): "),
]


@pytest.mark.parametrize(("call", "what", "way"), WAYS, ids=range(len(WAYS)))
def test_the_way_to_a_lock(call: Any, what: str, way: str) -> None:
    """Whatever a lock is hidden in, the part of the call, the way from there and the lock are named, and what to do."""
    found = find_culprit(parts_of(call, (), {}))
    assert found.what.startswith(what)
    assert way in found.why
    assert found.why.endswith("TypeError: cannot pickle '_thread.lock' object")
    assert found.hint.startswith(
        "A lock is of one process: make it once in each worker, by ProcessBackend(initializer=...)"
    )


def test_the_error_has_it_all(pool: Any) -> None:
    """What a user sees of it: the part, the way, the reason and the remedy, in this order."""
    call = partial(work.same, conf=Config(LOCK))
    error = pool().options(id="t").submit(call).exception(work.SOON)
    assert type(error) is TaskSerializationError
    assert str(error).startswith("argument 'conf' (Config Config(lock=<unlocked _thread.lock object at ")
    assert (
        "of task 't' cannot be sent to the worker: attribute 'lock' (_thread.lock): "
        "TypeError: cannot pickle '_thread.lock' object. A lock is of one process: " in str(error)
    )


def test_what_a_lambda_uses(pool: Any) -> None:
    """With cloudpickle a lambda travels, and what it closes over may not."""
    pytest.importorskip("cloudpickle")
    conf = {"lock": threading.Lock()}
    error = str(pool().submit(lambda: conf).exception(work.SOON))
    assert "the function (test_what_a_lambda_uses.<locals>.<lambda>)" in error
    assert "variable 'conf', which it uses, (dict) → ['lock'] (_thread.lock): " in error
    assert "A lock is of one process" in error
    error = str(pool().submit(lambda: LOCK).exception(work.SOON))
    assert "global 'LOCK', which it uses, (_thread.lock): " in error


def numbers() -> Iterator[int]:
    """Yield nothing of interest."""
    yield 1


def thing(name: str) -> Any:
    """Return something that does not travel."""
    if name == "file":
        return io.TextIOWrapper(io.BufferedReader(io.FileIO(__file__)))
    makers: dict[str, Any] = {
        "local": threading.local,
        "rlock": threading.RLock,
        "database": lambda: sqlite3.connect(":memory:"),
        "generator": numbers,
        "module": lambda: sys,
        "memoryview": lambda: memoryview(b"x"),
        "mp lock": multiprocessing.get_context("fork").Lock,
    }
    return makers[name]()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("local", "make it once in each worker"),
        ("rlock", "A lock is of one process"),
        ("file", "pass its path, and open it in the task"),
        ("database", "pass its address, and connect once in each worker"),
        ("generator", "pass a list of what it yields"),
        ("mp lock", "ProcessBackend(initializer=..., initargs=(it,))"),
    ],
)
def test_a_remedy_that_fits(name: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No remedy offers what does not help, and cloudpickle least of all."""
    monkeypatch.setattr("parallel_exec.backends._pickling.find_cloudpickle", lambda: None)
    made = thing(name)
    with made if name == "file" else contextlib.closing(made) if name == "database" else contextlib.nullcontext():
        found = find_culprit({"argument 0": [made]})
    assert remedy in found.hint
    assert "cloudpickle" not in found.hint


def test_cloudpickle_is_offered_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lambda, a local function and a local class: deep inside an argument, too."""
    monkeypatch.setattr("parallel_exec.backends._pickling.find_cloudpickle", lambda: None)

    class Local:
        pass

    for value in (lambda: 1, Local, {"key": [lambda: 1]}, Local()):
        assert 'pip install "parallel_exec[cloudpickle]"' in find_culprit({"argument 0": value}).hint


def test_an_initializer_that_cannot_travel() -> None:
    """It is looked at in the same way."""
    with pytest.raises(TaskSerializationError, match=r"initargs .*\[0\] \(_thread.lock\): .* A lock is of one process"):
        ProcessBackend(initializer=print, initargs=(threading.Lock(),))


def test_a_result_that_cannot_travel(pool: Any) -> None:
    """The way to what is wrong in a result is told by the worker."""
    error = pool().submit(unpicklable.make_locked_list).exception(work.SOON)
    assert error.what.startswith("the result, of type builtins.list, of task ")
    assert (
        "cannot be sent from the worker: [1] (process.unpicklable.Locked) → attribute 'lock' (_thread.lock): "
        in str(error)
    )
    assert str(error).endswith("Return plain data, or write the rest to a file and return its path")


APART = [
    (partial(unpicklable.make_nonsense, None), "[0] (process.unpicklable.ReducesToNonsense): PicklingError: "),
    (partial(unpicklable.make_nonsense, (len, 5)), "[0] (process.unpicklable.ReducesToNonsense): PicklingError: "),
    (unpicklable.make_dead_proxy, f"[0] ({type_name(weakref.ProxyType)}): ReferenceError: weakly-referenced object "),
    (unpicklable.make_failing_list, "[0] (process.unpicklable.FailsToIterate): ConnectionError: the database is gone"),
]


@pytest.mark.parametrize(("make", "why"), APART, ids=["none", "no-tuple", "dead-proxy", "no-iteration"])
def test_what_cannot_be_taken_apart(pool: Any, make: Any, why: str) -> None:
    """It is the culprit, whatever it raises at the attempt: as an argument, and as a result, where the worker lives on."""
    executor = pool()
    worker = executor.submit(work.pid).result(work.SOON)
    for future in (executor.submit(work.same, make()), executor.submit(make)):
        error = future.exception(work.SOON)
        assert isinstance(error, TaskSerializationError)
        assert why in str(error)
    assert executor.submit(work.pid).result(work.SOON) == worker


def test_a_culprit_among_a_million(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search ends: what it has not found by then is named by what it is in."""
    found = find_culprit({"argument 0": [*range(1_000_000), threading.Lock()]})
    assert found.why.endswith("TypeError: cannot pickle '_thread.lock' object")
    pieces = [(number,) for number in range(5_000)]
    found = find_culprit({"argument 0": [*pieces, threading.Lock()]})
    assert found.why == "TypeError: cannot pickle '_thread.lock' object"


def test_a_culprit_in_a_circle() -> None:
    """What contains itself is taken apart once."""
    circle: list[Any] = []
    circle.append(circle)
    circle.append(threading.Lock())
    assert find_culprit({"argument 0": circle}).why.startswith("[1] (_thread.lock): ")


def test_what_is_nested_too_deeply() -> None:
    """The reason is told, and not twenty steps on the way to it."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    found = find_culprit({"argument 0": deep})
    assert found.why.startswith("RecursionError: ")
    while deep:
        (deep,) = deep  # or its end would be as deep


def test_only_together() -> None:
    """Parts that can be pickled each are not blamed."""
    assert find_culprit({"argument 0": 1}).what == "the call"


def test_a_result_whose_second_pickle_works() -> None:
    """What failed once and does not again is told by the first error."""
    _, why = unsendable([1], TypeError("once"))
    assert why.startswith("TypeError: once. ")
