"""What cannot travel fails its own task, at its first attempt, with an error that names it; neighbours do not notice."""

from __future__ import annotations

import re
import threading
import traceback
from functools import partial
from typing import Any

import pytest
import work

from parallel_exec import ParallelExecError, RemoteTaskError, Task, TaskSerializationError

from . import unpicklable


@pytest.fixture
def no_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the extra."""
    monkeypatch.setattr("parallel_exec.backends._pickling.find_cloudpickle", lambda: None)


def _fails(executor: Any, function: Any, *args: Any, **kwargs: Any) -> TaskSerializationError:
    """Run one bad call between two good ones; return its error, which was not worth another attempt."""
    before = executor.submit(work.same, "before")
    future = executor.submit(function, *args, **kwargs)
    after = executor.submit(work.same, "after")
    error = future.exception(work.SOON)
    assert (before.result(work.SOON), after.result(work.SOON)) == ("before", "after")
    assert type(error) is TaskSerializationError
    assert len(future.task_result().attempts) <= 1
    return error


# ── to the worker ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_argument_that_cannot_be_pickled_is_named(pool: Any) -> None:
    """The error tells which argument of which task, its type and value, the direction, and pickle's reason."""
    error = _fails(pool(retry_count=2).options(id="t1"), work.same, unpicklable.Locked())
    assert error.direction == "to the worker"
    assert error.what == "argument 0 (Locked <Locked thing>) of task 't1'"
    assert "lock" in str(error)
    assert isinstance(error.__cause__, TypeError)


def test_the_second_of_two_arguments_is_the_culprit(pool: Any) -> None:
    """What pickles is not blamed."""
    error = _fails(pool(), print, 1, unpicklable.Locked())
    assert error.what.startswith("argument 1 (Locked")


def test_a_keyword_argument_is_named(pool: Any) -> None:
    """Keywords are called by their names."""
    error = _fails(pool(), print, 1, sep=unpicklable.Locked())
    assert error.what.startswith("argument 'sep' (Locked")


def test_a_bound_method_is_the_function(pool: Any) -> None:
    """A method of an object that does not pickle is blamed as the function."""
    error = _fails(pool(), unpicklable.Locked().method)
    assert error.what.startswith("the function (method")


def test_an_object_whose_pickling_raises_anything(pool: Any) -> None:
    """An error of the object's own counts as its reason."""
    error = _fails(pool(), work.same, unpicklable.FailsToPickle())
    assert "ZeroDivisionError: no pickle today" in str(error)


def test_an_object_without_a_repr(pool: Any) -> None:
    """A repr that raises does not hide the error."""
    assert _fails(pool(), work.same, unpicklable.FailsRepr()).what.startswith(
        "argument 0 (FailsRepr (whose repr fails))"
    )


def test_a_task_added_for_a_run_fails_in_its_place(pool: Any) -> None:
    """`add_task` does not raise; the run has one result for the bad task, without any attempt."""
    executor = pool()
    for argument in (1, threading.Lock(), 3):
        executor.add_task(Task(partial(work.same, argument)))
    results = executor.execute_all()
    assert [result.success for result in results] == [True, False, True]
    assert type(results[1].error) is TaskSerializationError
    assert results[1].attempts == ()


def test_a_lambda_without_cloudpickle_says_what_to_install(pool: Any, no_cloudpickle: None) -> None:
    """The hint names the extra."""
    error = _fails(pool(), lambda: 1)
    assert error.what.startswith(
        "the function (test_a_lambda_without_cloudpickle_says_what_to_install.<locals>.<lambda>)"
    )
    assert 'pip install "parallel_exec[cloudpickle]"' in str(error)


def test_lambdas_and_closures_travel_by_cloudpickle(pool: Any) -> None:
    """With the extra, functions that nobody can import work, and so do local classes both ways."""
    pytest.importorskip("cloudpickle")

    class Local:
        def __init__(self, value: int) -> None:
            self.value = value

    number = 20
    executor = pool()
    assert executor.submit(lambda x: x + number, 1).result(work.SOON) == 21
    back = executor.submit(lambda local: Local(local.value + 1), Local(1)).result(work.SOON)
    assert isinstance(back, Local)
    assert back.value == 2


def test_arguments_are_a_snapshot(pool: Any, bench: Any) -> None:
    """What happens to an argument after `submit` changes nothing."""
    executor = pool()
    executor.pause()
    argument = [1]
    future = executor.submit(work.same, argument)
    argument.append(2)
    executor.resume()
    assert future.result(work.SOON) == [1]


def test_what_the_worker_cannot_rebuild_fails_alone(pool: Any) -> None:
    """An argument that unpickles in the parent only fails its task, with the worker's traceback, and is not retried."""
    import os

    error = _fails(pool(retry_count=2), work.same, unpicklable.OnlyHere(os.getpid()))
    assert error.direction == "to the worker"
    assert "LookupError: this is not process" in str(error)
    assert "_rebuild_if" in str(error.__cause__)


def test_an_argument_that_exits_when_rebuilt(pool: Any) -> None:
    """Even sys.exit() in `__reduce__` ends only its own task, not the worker."""
    executor = pool()
    worker = executor.submit(work.pid).result()
    assert "SystemExit" in str(_fails(executor, work.same, unpicklable.ExitsWhenRebuilt()))
    assert executor.submit(work.pid).result(work.SOON) == worker


# ── from the worker ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_result_that_cannot_be_pickled_is_named(pool: Any) -> None:
    """The error tells the result's type, the task and the reason; the task is not run again."""
    error = _fails(pool(retry_count=2).options(id="t1"), unpicklable.locked)
    assert error.direction == "from the worker"
    assert "process.unpicklable.Locked" in error.what
    assert "'t1'" in error.what
    assert "lock" in str(error)


def test_a_result_that_cannot_be_rebuilt_here(pool: Any) -> None:
    """A result that unpickles only in the worker fails its task; the cause is the error it raised here."""
    error = _fails(pool(retry_count=2), unpicklable.only_worker)
    assert error.direction == "from the worker"
    assert isinstance(error.__cause__, LookupError)


def test_a_result_that_exits_when_rebuilt(pool: Any) -> None:
    """A result cannot end the parent's own threads."""
    assert isinstance(_fails(pool(), unpicklable.exits_when_rebuilt).__cause__, SystemExit)


def test_the_errors_of_travel_pickle_themselves(pool: Any) -> None:
    """They keep their facts on the way to another process."""
    import pickle

    error = pool().submit(unpicklable.locked).exception(work.SOON)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.what, again.direction) == (str(error), error.what, error.direction)


# ── exceptions ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_exception_brings_the_workers_traceback(pool: Any) -> None:
    """The task's own exception is raised; a traceback printed here shows the lines of the worker."""
    error = pool().submit(unpicklable.raise_loaded, {"a": 1}).exception(work.SOON)
    assert type(error) is unpicklable.LoadedError
    assert error.payload == {"a": 1}
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "in raise_loaded" in text
    assert "raise LoadedError(payload)" in text


def test_the_workers_chain_of_errors_is_readable(pool: Any) -> None:
    """What an exception was raised from shows in the traceback from the worker."""
    error = pool().submit(unpicklable.raise_chained).exception(work.SOON)
    assert type(error) is ValueError
    assert type(error.__cause__) is KeyError
    assert error.__cause__.args == ("key",)
    assert "KeyError: 'key'" in str(error.__cause__.__cause__)
    assert "direct cause" in str(error.__cause__.__cause__)


STAND_INS = {
    "cannot be pickled": (
        unpicklable.raise_locked,
        "LockedError",
        "with a lock",
        "it cannot be pickled: TypeError: cannot pickle '_thread.lock' object",
    ),
    "rebuilds as something else": (
        unpicklable.raise_forgetful,
        "ForgetfulError",
        "gone",
        "its pickle is rebuilt as a str",
    ),
    "cannot be rebuilt here": (
        unpicklable.raise_only_here,
        "OnlyHereError",
        "here",
        "it cannot be rebuilt here: LookupError: elsewhere",
    ),
}


@pytest.mark.parametrize("way", STAND_INS)
def test_an_exception_that_cannot_travel_has_a_stand_in(pool: Any, way: str) -> None:
    """A RemoteTaskError tells the type's name, the message and the traceback of what could not be rebuilt, and why not."""
    function, name, message, reason = STAND_INS[way]
    error = pool().submit(function).exception(work.SOON)
    assert type(error).__name__ == "RemoteTaskError"
    assert isinstance(error, RemoteTaskError)
    assert isinstance(error, getattr(unpicklable, name))
    assert (error.type_name, error.message) == (f"process.unpicklable.{name}", message)
    assert f"in {function.__name__}" in error.worker_traceback
    assert re.search(reason, error.reason)
    assert str(error) == f"process.unpicklable.{name}: {message} (this stands in for it: {error.reason})"


def test_an_exception_without_a_str(pool: Any) -> None:
    """An exception may raise in its `__str__`, and is still the task's own."""
    error = pool().submit(unpicklable.raise_silent).exception(work.SOON)
    assert type(error) is unpicklable.SilentError
    assert error.args == (1,)


def test_a_stand_in_is_retried_like_the_exception(pool: Any) -> None:
    """The task failed by an exception of its own, so the policy has its say."""
    executor = pool(retry_count=1)
    executor.add_task(unpicklable.raise_locked)
    (result,) = executor.execute_all()
    assert [isinstance(attempt.error, RemoteTaskError) for attempt in result.attempts] == [True] * 2


def test_an_exception_of_a_local_class(pool: Any, no_cloudpickle: None) -> None:
    """A class that only lived in the worker arrives with its bases' meaning, or as a stand-in with its name."""
    error = pool().submit(unpicklable.raise_local).exception(work.SOON)
    assert type(error).__name__ == "LocalError" or error.type_name.endswith("LocalError")


def test_an_exception_with_a_large_array(pool: Any) -> None:
    """What an exception carries may be large."""
    numpy = pytest.importorskip("numpy")
    error = pool().submit(unpicklable.raise_loaded, numpy.ones(1 << 18)).exception(work.SOON)
    assert type(error) is unpicklable.LoadedError
    assert error.payload.sum() == 1 << 18


# ── ids ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("id", ["", "ä€\N{PILE OF POO}", "\udc80 from a file name", "x" * 100_000, "with\0null"])
def test_any_string_is_an_id(pool: Any, id: str) -> None:
    """An id travels to the worker and back as it is, whatever is in it."""
    from work import describe_current

    future = pool().options(id=id or " ").submit(describe_current)
    assert future.result(work.SOON)["id"] == (id or " ")


def test_data_that_looks_like_a_main_module(pool: Any) -> None:
    """A string that mentions `__main__` is just a string."""
    assert pool().submit(work.same, "__main__ is here").result(work.SOON) == "__main__ is here"


def test_many_kinds_of_errors_side_by_side(pool: Any) -> None:
    """A hundred bad tasks among a hundred good ones: every one has its own end."""
    executor = pool(2)
    bad = [unpicklable.locked, unpicklable.only_worker, unpicklable.raise_forgetful, unpicklable.raise_locked] * 25
    futures = [executor.submit(function) for pair in zip(bad, [work.pid] * 100) for function in pair]
    errors = [future.exception(work.SOON) for future in futures]
    assert all(isinstance(error, ParallelExecError) for error in errors[::2])
    assert errors[1::2] == [None] * 100


def test_an_empty_id(pool: Any) -> None:
    """It is an id like any other."""
    assert pool().options(id="").submit(work.own_id).result(work.SOON) == ""
