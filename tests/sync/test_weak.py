"""`parallel_exec._sync.weak`: what leads up keeps nothing, and what a function caught does not lead to its caller."""

from __future__ import annotations

import sys
import traceback
import weakref
from typing import Any, Iterator

import pytest
import tracked
from tracked import Tracked

from parallel_exec._sync.weak import Upward, apart, weakly


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """The collector is off in every test here."""
    with tracked.no_collector():
        yield


class _Part:
    owner = Upward["_Owner"]()

    def __init__(self, owner: _Owner) -> None:
        self.owner = owner


class _Owner:
    def __init__(self) -> None:
        self.part = _Part(self)
        self.call = weakly(self.double)

    def double(self, number: int) -> int:
        """Return twice the number."""
        return 2 * number


def test_the_way_up_keeps_nothing() -> None:
    """An owner goes with its last reference, whatever its parts know of it; then they say that it is gone."""
    owner = _Owner()
    part, call, gone = owner.part, owner.call, weakref.ref(owner)
    assert part.owner is owner
    assert call(3) == 6
    assert isinstance(_Part.owner, Upward)
    del owner
    assert gone() is None
    assert call(3) is None
    with pytest.raises(ReferenceError, match="_Part"):
        part.owner  # noqa: B018


def _catch(kept: Tracked) -> BaseException:
    try:
        raise ValueError(bool(kept))
    except ValueError as error:
        del kept
        return error


def _keep_apart() -> weakref.ref[Tracked]:
    kept = Tracked()
    errors = [apart(_catch, kept)]
    assert type(errors[0]) is ValueError
    return weakref.ref(kept)


def test_an_error_that_was_caught_apart_does_not_lead_to_the_caller() -> None:
    """A caller that keeps the error in a variable makes no circle with its own frame."""
    assert _keep_apart()() is None


def test_apart_returns_and_raises_as_the_function_does() -> None:
    """Its value is passed on, and so is what it raises, with the traceback."""
    assert apart(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError) as info:
        apart(divmod, 7, 0)
    assert "_calling" in [frame.name for frame in traceback.extract_tb(info.value.__traceback__)]
    with pytest.raises(StopIteration):
        raise apart(_caught_stop)


def _caught_stop() -> StopIteration:
    return StopIteration(1)


def test_apart_leaves_the_hooks_of_asynchronous_generators_alone() -> None:
    """Neither the caller nor the function sees the hooks that it needs for a moment."""
    before: Any = sys.get_asyncgen_hooks()
    assert apart(sys.get_asyncgen_hooks) == before
    assert sys.get_asyncgen_hooks() == before
