"""How calls become bytes: unit tests of `_pickling.dumps_call`."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from collections import deque
from typing import TYPE_CHECKING, Any, Callable

import pytest
import work
from interruptions import leaves_nothing_open

from parallel_exec.backends import _reducers
from parallel_exec.backends._pickling import dumps_call
from parallel_exec.backends.process import segments

from . import unpicklable

if TYPE_CHECKING:
    from pathlib import Path

SHARED = ["shared"]


class Home:
    """A place for functions that are no module's."""

    @staticmethod
    def static(*args: Any) -> Any:
        """Return what is given."""
        return args

    @classmethod
    def of_class(cls, *args: Any) -> Any:
        """Return what is given."""
        return args


def there_and_back(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what a worker makes of a call."""
    return pickle.loads(dumps_call(fn, args, kwargs).data)


@pytest.mark.parametrize(
    "fn",
    [work.same, Home.static, Home.of_class, len, Home, work.nap],
    ids=["function", "static", "class method", "builtin", "class", "another"],
)
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1,), {}),
        ((SHARED, SHARED, "same", "same"), {"same": SHARED}),
        ((work.same, work.same), {"key": work.same}),
        ((b"x" * 300, "é" * 300, tuple(range(300))), {}),
    ],
    ids=["nothing", "one", "shared", "functions", "large"],
)
def test_a_call_comes_out_as_it_went_in(fn: Any, args: Any, kwargs: Any) -> None:
    """The function, and all that it is given."""
    assert there_and_back(fn, *args, **kwargs) == (fn, (args, kwargs))


def test_what_is_shared_stays_shared() -> None:
    """An object that is given twice arrives as one."""
    _, (args, kwargs) = there_and_back(work.same, SHARED, SHARED, key=SHARED)
    assert args[0] is args[1] is kwargs["key"]


def test_what_cannot_be_pickled_still_cannot() -> None:
    """The error is pickle's."""
    with pytest.raises(TypeError, match="cannot pickle"):
        dumps_call(work.same, (unpicklable.Locked(),), {})


def test_large_arguments_leave_the_bytes() -> None:
    """What belongs into a segment goes there."""
    pickled = dumps_call(work.same, (b"x" * segments.THRESHOLD,), {})
    assert pickled.segment is not None
    assert len(pickled.data) < 1000


def test_a_function_that_is_not_found_by_its_name() -> None:
    """It travels by value: cloudpickle does that."""
    impostor = eval("lambda: 1", {"__name__": work.__name__})
    impostor.__qualname__ = "same"
    with pytest.raises(pickle.PicklingError, match="not the same object"):
        pickle.dumps(impostor)
    assert pickle.loads(dumps_call(impostor, (), {}).data)[0]() == 1


def test_a_builtin_function_is_known_by_its_name() -> None:
    """A method of an object is not taken for one."""
    assert there_and_back(len, [1]) == (len, (([1],), {}))
    assert there_and_back([1].append, 2)[0].__self__ == [1]


@pytest.mark.parametrize(
    ("values", "plain"),
    [
        ((1, "a", None, b"b", True, 0.5), True),
        (([1, 2], {"a": 1}, (1,), []), True),
        (([[1]],), False),
        (({"a": []},), False),
        ((list(range(100)),), False),
        ((print,), False),
    ],
)
def test_what_is_plain(values: Any, plain: bool) -> None:
    """Values without parts, and small containers of them."""
    assert _reducers.are_plain(values) == plain


def test_the_main_module_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the function as in the arguments; a text that says its name is not it."""

    def of_main() -> None:
        """Be of the main module."""

    of_main.__module__, of_main.__qualname__ = "__main__", "of_main"
    monkeypatch.setattr(sys.modules["__main__"], "of_main", of_main, raising=False)
    assert dumps_call(of_main, (1,), {}).may_name_main()
    assert dumps_call(work.same, (of_main,), {}).may_name_main()
    assert not dumps_call(work.same, ("__main__",), {}).may_name_main()


def test_a_function_that_was_replaced_is_not_taken_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was found by its name before, and is not found there any more: it travels by value."""
    before = work.same
    assert there_and_back(before, 1) == (before, ((1,), {}))
    monkeypatch.setattr(work, "same", lambda *args: "another")
    assert there_and_back(before, 1)[0](1) == 1


def test_a_function_travels_in_the_frame_of_its_call() -> None:
    """Also pickle's own reader, which is strict about frames, makes the call of it."""
    args = (1, "text" * 20_000, (2, 3), "text" * 20_000)
    data = dumps_call(work.same, args, {"key": 1.5}).data
    assert pickle._loads(data) == (work.same, (args, {"key": 1.5}))  # type: ignore[attr-defined]


class Counted:
    """Counts how often it is pickled."""

    def __init__(self, size: int) -> None:
        self.buffer = bytearray(size)
        self.pickled = 0

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.pickled += 1
        return bytes, (pickle.PickleBuffer(self.buffer),)


@pytest.mark.parametrize(
    "sizes", [(10,), (segments.THRESHOLD,), (10, segments.THRESHOLD)], ids=["small", "large", "both"]
)
def test_an_argument_is_pickled_once(sizes: tuple[int, ...]) -> None:
    """Whether it has small buffers, which go with the rest, or large ones, which do not."""
    given = [Counted(size) for size in sizes]
    dumps_call(work.same, tuple(given), {})
    assert [each.pickled for each in given] == [1] * len(sizes)


@pytest.mark.parametrize("has_memfd", [True, False])
def test_ctrl_c_as_buffers_are_stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_memfd: bool) -> None:
    """Wherever it comes no descriptor stays open, although what was raised is kept; nor does a file stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not has_memfd:
        monkeypatch.delattr(os, "memfd_create")
    before = set(segments.Segment.alive)
    assert leaves_nothing_open(lambda: segments.store([memoryview(b"x")] * 2), []) > 40
    assert set(segments.Segment.alive) == before
    assert not list(tmp_path.iterdir())


def test_ctrl_c_as_a_large_argument_is_pickled() -> None:
    """Wherever it comes nothing stays open."""
    buffer = pickle.PickleBuffer(bytearray(segments.THRESHOLD))
    assert leaves_nothing_open(lambda: dumps_call(work.same, (buffer,), {}), deque(maxlen=0)) > 80
