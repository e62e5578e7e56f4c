"""A task's exception arrives as it was raised, with its chain; what cannot has a stand-in that is caught like it."""

from __future__ import annotations

import copy
import copyreg
import pickle
import sys
import traceback
from functools import partial
from typing import Any

import pytest
import tenacity
import work

from parallel_exec import RemoteTaskError
from parallel_exec.backends import _exceptions

from . import unpicklable


def test_an_exceptions_own_chain_is_whole(pool: Any) -> None:
    """Its cause, its context, theirs, and its notes are as they were; the worker's traceback is the last cause."""
    error = pool().submit(unpicklable.raise_with_all).exception(work.SOON)
    assert type(error) is unpicklable.PickyError
    assert error.__notes__ == ["a note"]
    assert isinstance(error.__cause__, unpicklable.LockedError)
    assert isinstance(error.__context__, ValueError)
    assert (str(error.__context__), error.__context__.__suppress_context__) == ("the context", True)
    assert isinstance(error.__cause__.__context__, KeyError)
    assert "raise error from cause" in str(error.__cause__.__cause__)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "raise error from cause" in text


def test_another_way_that_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """tblib, which dask brings, registers one for each class, and loses what C keeps; the default way is taken if it goes."""
    monkeypatch.setitem(copyreg.dispatch_table, SystemExit, lambda error: (SystemExit, ()))
    error = _exceptions.rebuild(_exceptions.read(_exceptions.describe(SystemExit(3))))
    assert isinstance(error, SystemExit)
    assert error.code == 3


def test_an_exception_without_a_cause_of_its_own(pool: Any) -> None:
    """The worker's traceback is its cause, whether it was raised from None or while another was handled."""
    error = pool().submit(unpicklable.raise_picky).exception(work.SOON)
    assert "raise PickyError" in str(error.__cause__)
    assert error.__context__ is None
    error = pool().submit(unpicklable.raise_while_handling).exception(work.SOON)
    assert type(error.__context__) is KeyError
    assert "During handling" in str(error.__cause__)


@pytest.mark.parametrize("function", [unpicklable.raise_in_circles, partial(unpicklable.raise_long_chain, 500)])
def test_a_chain_without_end(pool: Any, function: Any) -> None:
    """Nothing loops or recurses for ever."""
    assert type(pool().submit(function).exception(work.SOON)) is ValueError


@pytest.mark.parametrize(
    ("function", "wanted", "args", "facts"),
    [
        (partial(unpicklable.raise_frozen, 5), unpicklable.FrozenError, (5,), {"code": 5}),
        (unpicklable.raise_read_only, unpicklable.ReadOnlyError, ("read-only",), {"code": 7}),
        (unpicklable.raise_picky, unpicklable.PickyError, ("file.txt:7 is wrong",), {"line": 7}),
        (unpicklable.raise_path, unpicklable.PathError, (2, "not there"), {"errno": 2, "filename": "/nowhere"}),
    ],
    ids=["frozen", "read-only", "odd constructor", "OSError"],
)
def test_an_exception_is_rebuilt_without_its_constructor(
    pool: Any, function: Any, wanted: Any, args: Any, facts: dict[str, Any]
) -> None:
    """Where pickle's own way fails, it is made of its parts; nothing tries to change what cannot be; it is retried."""
    future = pool(retry_count=1, retry_on=wanted).submit(function)
    error = future.exception(work.SOON)
    assert type(error) is wanted
    assert error.args == args
    assert {name: getattr(error, name) for name in facts} == facts
    assert len(future.task_result().attempts) == 2
    assert "raise_" in str(error.__cause__)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no exception groups")
def test_an_exception_group(pool: Any) -> None:
    """Its members come each as they can, with their causes."""
    error = pool().submit(unpicklable.raise_group).exception(work.SOON)
    assert type(error).__name__ == "ExceptionGroup"
    member, inner = error.exceptions
    assert type(member) is ValueError
    assert type(member.__cause__) is KeyError
    locked, picky = inner.exceptions
    assert isinstance(locked, unpicklable.LockedError)
    assert isinstance(locked, RemoteTaskError)
    assert type(picky) is unpicklable.PickyError
    assert "in raise_group" in str(error.__cause__)


def test_a_stand_in_is_caught_as_what_it_stands_for(pool: Any) -> None:
    """`except` finds it by its class and its bases, it has what could be sent of the attributes, and it pickles."""
    with pytest.raises(KeyError) as caught:
        pool().submit(unpicklable.raise_stubborn).result(work.SOON)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert isinstance(error, unpicklable.StubbornError)
        assert isinstance(error, RemoteTaskError)
        assert error.status == 503
        assert "raise StubbornError" in error.worker_traceback
        assert str(error).startswith("process.unpicklable.StubbornError: locked by <unlocked")
        assert "cannot be pickled" in error.reason
        assert len({error, error}) == 1


def test_a_class_that_nobody_may_derive_from(pool: Any) -> None:
    """Then a stand-in is that and no more."""
    error = pool().submit(unpicklable.raise_selective).exception(work.SOON)
    assert type(error) is RemoteTaskError
    assert (error.type_name, error.status) == ("process.unpicklable.SelectiveError", 503)  # type: ignore[attr-defined]


def test_an_exit_that_cannot_be_rebuilt(pool: Any) -> None:
    """It is an exit still, and not retried."""
    future = pool(retry_count=2, retry=tenacity.Retrying(retry=tenacity.retry_always)).submit(unpicklable.raise_exit)
    assert isinstance(future.exception(work.SOON), SystemExit)
    assert len(future.task_result().attempts) == 1


@pytest.mark.parametrize("function", [unpicklable.raise_locked, unpicklable.raise_picky, unpicklable.raise_only_here])
@pytest.mark.parametrize(
    "wanted", [unpicklable.LockedError, unpicklable.PickyError, unpicklable.OnlyHereError, Exception, OSError]
)
def test_retry_on_and_tenacity_agree(pool: Any, function: Any, wanted: type[Exception]) -> None:
    """Whether an error is worth another attempt does not depend on who is asked."""
    retry = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(wanted), stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none()
    )
    plain, asked = pool(retry_on=wanted, retry_count=1).submit(function), pool(retry=retry).submit(function)
    assert isinstance(plain.exception(work.SOON), wanted) == isinstance(asked.exception(work.SOON), wanted)
    assert (
        len(plain.task_result().attempts)
        == len(asked.task_result().attempts)
        == 1 + isinstance(plain.exception(work.SOON), wanted)
    )


def raise_picky() -> None:
    """Raise what cannot be rebuilt."""
    raise PickyError("file", line=1)


class PickyError(LookupError):
    """Takes other arguments than it passes on."""

    def __init__(self, path: str, *, line: int) -> None:
        super().__init__(f"{path}:{line}")


@pytest.mark.parametrize(("retry_on", "attempts"), [(PickyError, 2), (LookupError, 2), (OSError, 1)])
def test_retry_on_knows_what_cannot_be_rebuilt(pool: Any, retry_on: Any, attempts: int) -> None:
    """By the names of its type and its bases."""
    future = pool(retry_count=1, retry_on=retry_on).submit(raise_picky)
    assert type(future.exception(work.SOON)).__name__ == "PickyError"
    assert len(future.task_result().attempts) == attempts
