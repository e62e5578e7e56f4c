"""`parallel_exec._hints`: a wrong call says what to write, whatever library its writer has in mind."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import pytest

from parallel_exec import (
    ExecutorBackend,
    InlineBackend,
    ParallelConfig,
    ParallelExecutor,
    ProcessBackend,
    Task,
    ThreadBackend,
)
from parallel_exec._hints import BACKEND_HINTS, METHODS, NOTES, SYNONYMS, WRITTEN, settings_of
from parallel_exec.config import BACKENDS

EXECUTOR = ParallelExecutor(backend="inline")

# Every public call that takes settings by keyword, as a user makes it.
CALLS: dict[str, Callable[..., Any]] = {
    "ParallelExecutor": ParallelExecutor,
    "ParallelConfig": ParallelConfig,
    "Task": lambda **settings: Task(print, **settings),
    "ThreadBackend": ThreadBackend,
    "ProcessBackend": ProcessBackend,
    "InlineBackend": InlineBackend,
    "ExecutorBackend": lambda **settings: ExecutorBackend(EXECUTOR, **settings),
    "execute_all()": EXECUTOR.execute_all,
    "options()": EXECUTOR.options,
    "stream()": lambda **settings: EXECUTOR.stream([], **settings),
    "map()": lambda **settings: EXECUTOR.map(str, [], **settings),
    "shutdown()": EXECUTOR.shutdown,
}

MISTAKES = [
    ("ParallelExecutor", "retries", "did you mean 'retry_count'?"),
    ("ParallelExecutor", "max_retries", "did you mean 'retry_count'?"),
    ("ParallelExecutor", "max_attempts", "did you mean 'retry_count'? (it counts what follows the first attempt"),
    ("ParallelExecutor", "max_workers", "did you mean 'max_concurrency'?"),
    ("ParallelExecutor", "max_worker", "did you mean 'max_concurrency'?"),
    ("ParallelExecutor", "n_jobs", "did you mean 'max_concurrency'?"),
    ("ParallelExecutor", "processes", "did you mean 'max_concurrency'? (and backend=\"process\""),
    ("ParallelExecutor", "workers", "did you mean 'max_concurrency'?"),
    ("ParallelExecutor", "threads", "did you mean 'max_concurrency'?"),
    ("ParallelExecutor", "concurrency", "did you mean 'max_concurrency'?"),
    ("ParallelExecutor", "memory_limit", "write ParallelExecutor(backend=ProcessBackend(memory_limit=...))"),
    ("ParallelExecutor", "mp_context", "write ParallelExecutor(backend=ProcessBackend(mp_context=...))"),
    ("ParallelExecutor", "max_tasks_per_child", "backend=ProcessBackend(max_tasks_per_child=...)"),
    ("ParallelExecutor", "maxtasksperchild", "backend=ProcessBackend(max_tasks_per_child=...)"),
    ("ParallelExecutor", "startup_timeout", "backend=ProcessBackend(startup_timeout=...)"),
    ("ParallelExecutor", "initializer", "backend=ThreadBackend(initializer=...)) or ProcessBackend(initializer=...)"),
    ("ParallelExecutor", "initargs", "backend=ThreadBackend(initargs=...)) or ProcessBackend(initargs=...)"),
    ("ParallelExecutor", "thread_name_prefix", "backend=ThreadBackend(thread_name_prefix=...)"),
    ("ParallelExecutor", "max_abandoned", "backend=ThreadBackend(max_abandoned=...)"),
    ("ParallelExecutor", "deadline", "write execute_all(deadline=...)"),
    ("ParallelExecutor", "priority", "write Task(..., priority=...) or executor.options(priority=...)"),
    ("execute_all()", "timeout", "did you mean 'deadline'? (timeout is ParallelExecutor(timeout=...) for all tasks"),
    ("execute_all()", "retries", "write ParallelExecutor(retry_count=...)"),
    ("execute_all()", "tasks", "write executor.add_task(task) for each of them, or executor.stream(tasks)"),
    ("Task", "retries", "did you mean 'retry_count'?"),
    ("Task", "name", "did you mean 'id'?"),
    ("Task", "max_concurrency", "write ParallelExecutor(max_concurrency=...)"),
    ("options()", "retries", "did you mean 'retry_count'?"),
    ("options()", "jitter", "write ParallelExecutor(jitter=...)"),
    ("stream()", "timeout", "write ParallelExecutor(timeout=...) for all tasks"),
    ("map()", "priority", "executor.options(priority=...)"),
    ("map()", "chunk_size", "did you mean 'chunksize'?"),
    ("shutdown()", "cancel", "did you mean 'cancel_futures'?"),
    ("ProcessBackend", "max_workers", "write ParallelExecutor(max_concurrency=...)"),
    ("ProcessBackend", "start_method", "did you mean 'mp_context'?"),
    ("ThreadBackend", "max_workers", "write ParallelExecutor(max_concurrency=...)"),
    ("ThreadBackend", "memory_limit", "write ParallelExecutor(backend=ProcessBackend(memory_limit=...))"),
    ("InlineBackend", "max_workers", "write ParallelExecutor(max_concurrency=...)"),
    ("ExecutorBackend", "max_workers", "write ParallelExecutor(max_concurrency=...)"),
]


@pytest.mark.parametrize(("call", "name", "hint"), MISTAKES, ids=lambda part: part if len(str(part)) < 20 else "")
def test_a_keyword_from_elsewhere_is_told_its_name_here(call: str, name: str, hint: str) -> None:
    """A setting that a call does not have is refused with the name that it has here, or with the place where it belongs."""
    with pytest.raises(TypeError) as caught:
        CALLS[call](**{name: 3})
    assert f" has no setting {name!r}: " in str(caught.value)
    assert hint in str(caught.value)


@pytest.mark.parametrize("call", CALLS)
def test_a_keyword_like_no_other(call: str) -> None:
    """It is refused by every call that takes settings, with all those there are."""
    with pytest.raises(TypeError, match=r"has no setting 'zzzz': (the settings are |it has none)"):
        CALLS[call](zzzz=3)


@pytest.mark.parametrize("name", ["tiemout", "priorty", "retry_cout", "memory_limt"])
def test_a_slip_of_the_pen(name: str) -> None:
    """A misspelt name is offered as it is spelt, or where it belongs."""
    meant = {"tiemout": "timeout", "priorty": "priority", "retry_cout": "retry_count", "memory_limt": "memory_limit"}
    with pytest.raises(TypeError, match=meant[name]):
        ParallelExecutor(**{name: 3})


def test_what_the_hints_tell_to_write_is_there() -> None:
    """Each setting that a hint names is one of the call that it names."""
    owners = {
        "ParallelExecutor({": ParallelConfig.__init__,
        "Task(..., {": Task.__init__,
        "ProcessBackend({": ProcessBackend.__init__,
        "ThreadBackend({": ThreadBackend.__init__,
        "execute_all({": ParallelExecutor.execute_all,
        "map(fn, items, {": ParallelExecutor.map,
        "stream(tasks, {": ParallelExecutor.stream,
        "shutdown({": ParallelExecutor.shutdown,
        "options({": ParallelExecutor.options,
        "InlineBackend({": InlineBackend.__init__,
    }
    for name, home in WRITTEN.items():
        for owner, function in owners.items():
            if owner in home:
                assert name in settings_of(function), (name, owner)


def test_no_synonym_hides_a_setting() -> None:
    """A name that some call takes is never offered another one in that call; and what is offered is known."""
    known = {
        name for call in (ParallelConfig, Task, ThreadBackend, ProcessBackend) for name in settings_of(call.__init__)
    }
    assert known <= {*WRITTEN}
    assert set(SYNONYMS) & known == {"timeout"}
    assert {ours for names in SYNONYMS.values() for ours in names} <= {*WRITTEN}
    assert set(NOTES) <= set(SYNONYMS)


@pytest.mark.parametrize("name", BACKEND_HINTS)
def test_a_backend_by_another_name(name: str) -> None:
    """The name of a back end that another library has is told what there is here."""
    assert name not in BACKENDS
    with pytest.raises(ValueError, match="backend takes one of ") as caught:
        ParallelExecutor(backend=name)
    assert str(caught.value).endswith(BACKEND_HINTS[name])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("dask", "backend=Client(...), or backend=DaskBackend(address)"),
        ("threads", "did you mean 'thread'?"),
        ("processes", "did you mean 'process'?"),
        ("multiprocessing", "did you mean 'process'?"),
        ("Serial", "did you mean 'inline'?"),
        ("asyncio", "loop.run_in_executor(executor, fn, ...)"),
        ("loky", "backend=loky.get_reusable_executor(...)"),
        ("proces", "did you mean 'process'?"),
    ],
)
def test_hints_for_backends(name: str, hint: str) -> None:
    """What is offered is what is meant."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # what it says is looked at next
        ParallelExecutor(backend=name)
    assert hint in str(caught.value)


def test_a_result_in_place_of_its_function() -> None:
    """Who calls the function is told to hand it over instead."""
    with pytest.raises(TypeError, match=r"add_task takes a callable, not None: .* add_task\(fn, argument\)"):
        EXECUTOR.add_task(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"submit takes a callable, not 3: .* submit\(fn, argument\)"):
        EXECUTOR.submit(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("submit", [EXECUTOR.submit, EXECUTOR.options(priority=1).submit])
def test_a_task_that_is_submitted(submit: Any) -> None:
    """It is told where tasks go."""
    with pytest.raises(TypeError, match=r"a Task goes to add_task\(task\)"):
        submit(Task(print))


@pytest.mark.parametrize("tasks", [[Task(print)], (Task(print),), iter([Task(print)])])
def test_many_tasks_where_one_goes(tasks: Any) -> None:
    """They are told to come one by one, or to `stream`."""
    with pytest.raises(TypeError, match="call add_task for each of them, or give them to stream"):
        EXECUTOR.add_task(tasks)
    with pytest.raises(TypeError, match="execute_all\\(\\) takes no tasks: add_task\\(task\\) each of them first"):
        EXECUTOR.execute_all(tasks)


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        ((str, 5), r"iterables of arguments after the function, not 5: .*submit\(fn, argument\)"),
        ((str, [1], None), "not None"),
        (([1, 2], str), "the function comes first"),
    ],
)
def test_a_map_over_nothing(args: Any, hint: str) -> None:
    """What is no iterable is named, before anything starts."""
    with pytest.raises(TypeError, match=hint):
        EXECUTOR.map(*args)


def test_a_stream_of_one() -> None:
    """A task where tasks go is told how to be one."""
    with pytest.raises(TypeError, match=r"stream takes an iterable of tasks, not .*: one task is stream\(\[task\]\)"):
        EXECUTOR.stream(Task(print))  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", [ThreadBackend, ProcessBackend])
def test_a_number_of_workers_for_a_backend(backend: Any) -> None:
    """The stdlib's pools take it first; here it is the executor's."""
    with pytest.raises(TypeError, match=r"how many workers is ParallelExecutor\(max_concurrency=...\)"):
        backend(4)


def test_a_number_of_retries_in_place_of_a_policy() -> None:
    """`retry` takes a policy; a number has a setting of its own."""
    with pytest.raises(TypeError, match="retry_count=3 is a number of retries"):
        ParallelExecutor(retry=3)
    with pytest.raises(TypeError, match="retry_count=3 is a number of retries"):
        Task(print, retry=3)  # type: ignore[arg-type]


def test_what_is_iterable_by_its_items() -> None:
    """A sequence without `__iter__` is as good for a `map` as for the built-in one."""

    class Old:
        def __getitem__(self, index: int) -> int:
            return [1, 2][index]

    with ThreadPoolExecutor(1) as pool, ParallelExecutor(backend=pool) as executor:
        assert list(executor.map(str, Old())) == ["1", "2"]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_other_pools(name: str) -> None:
    """Who calls one is told what is written here; and whoever asks is told that there is none."""
    with pytest.raises(AttributeError) as caught:
        getattr(EXECUTOR, name)
    assert str(caught.value) == f"'ParallelExecutor' object has no attribute {name!r}: write {METHODS[name]}"
    assert not hasattr(EXECUTOR, name)
    for written in re.findall(r"^\w+", METHODS[name]):
        assert hasattr(EXECUTOR, written) or written == "concurrent"


def test_an_attribute_that_nobody_has() -> None:
    """It is an ordinary error, of which the interpreter may say more."""
    with pytest.raises(AttributeError, match=r"^'ParallelExecutor' object has no attribute 'sumbit'$") as caught:
        EXECUTOR.sumbit(print)  # type: ignore[attr-defined]
    if sys.version_info >= (3, 10):
        assert (caught.value.name, caught.value.obj) == ("sumbit", EXECUTOR)
