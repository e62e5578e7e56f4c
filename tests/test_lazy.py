"""`_lazy`: a call that does nothing yet is refused when it is added, or is an error of the task, and nothing is left behind."""

from __future__ import annotations

import gc
import warnings
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Iterator

import pytest
from backend_kinds import ALL, over

from parallel_exec import ParallelExecutor, Task, ThreadBackend
from parallel_exec.futures import ThreadPoolExecutor

if TYPE_CHECKING:
    from conftest import Lab


async def fetch(number: int = 0) -> int:
    """Return a number, some day."""
    return number


def count(stop: int = 3) -> Iterator[int]:
    """Yield numbers."""
    yield from range(stop)


async def listen() -> AsyncIterator[int]:
    """Yield a number, some day."""
    yield 1


class Methods:
    """Has each kind of method."""

    async def bound(self) -> None:
        """Do nothing."""

    @classmethod
    async def of_class(cls) -> None:
        """Do nothing."""

    @staticmethod
    def static() -> Iterator[int]:
        """Yield nothing."""
        yield from ()

    async def __call__(self) -> None:
        """Do nothing."""


def wrapped(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a plain function that looks like `fn`."""

    @wraps(fn)
    def call(*args: Any) -> Any:
        return fn(*args)

    return call


LAZY_FUNCTIONS: list[tuple[Callable[..., Any], str]] = [
    (
        fetch,
        "'fetch' is an async function: there is no event loop here: pass a plain function that returns asyncio.run",
    ),
    (count, r"'count' is a generator function: .* returns list\(count\(...\)\)"),
    (listen, "'listen' is an async generator function"),
    (partial(partial(fetch, 1)), "'fetch' is an async function"),
    (Methods().bound, "'bound' is an async function"),
    (Methods.of_class, "'of_class' is an async function"),
    (Methods.static, "'static' is a generator function"),
    (Methods(), "'Methods' is an async function"),
    (partial(Methods()), "'Methods' is an async function"),
]


@pytest.mark.parametrize(("fn", "message"), LAZY_FUNCTIONS)
def test_a_function_that_does_nothing_yet_is_refused(fn: Callable[..., Any], message: str) -> None:
    """Wherever a call is given, and however it is wrapped."""
    with ParallelExecutor() as executor:
        view = executor.options(priority=1)
        for add in (executor.submit, executor.add_task, Task, view.submit):
            with pytest.raises(TypeError, match=message):
                add(fn)  # type: ignore[operator]  # each takes a function
        for add_all in (executor.map, view.map):
            with pytest.raises(TypeError, match=message):
                add_all(fn, [1])
        with pytest.raises(TypeError, match=message):
            list(executor.stream([fn]))  # type: ignore[list-item]  # what a newcomer might do
    assert executor.stats().failed == 0


def test_hooks_are_plain_functions() -> None:
    """Nobody would await what they return, either."""
    with pytest.raises(TypeError, match="initializer takes a plain function"):
        ThreadBackend(initializer=fetch)
    with pytest.raises(TypeError, match="on_event takes a plain function"):
        ParallelExecutor(on_event=fetch)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="retry_on takes a plain function"):
        ParallelExecutor(retry_on=fetch)  # type: ignore[arg-type]


@pytest.mark.parametrize("fn", [int, len, Methods, wrapped(fetch), [].append, lambda: 1, partial(wrapped(count), 1)])
def test_what_runs_when_it_is_called_is_taken(fn: Callable[..., Any]) -> None:
    """A class whose instances are lazy, and a plain function around a lazy one, too."""
    assert callable(Task(fn).execute)


def return_coroutine() -> Any:
    """Return what nobody will await."""
    return fetch(1)


def return_generator(*_: object) -> Any:
    """Return what has not begun."""
    return count()


def return_listener() -> Any:
    """Return what nobody will iterate over."""
    return listen()


@over(ALL)
@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (return_coroutine, "the call returned a coroutine, 'fetch', which has not run: there is no event loop here"),
        (return_generator, "the call returned a generator, 'count', which has not run"),
        (return_listener, "the call returned an async generator, 'listen'"),
    ],
)
def test_a_call_that_returns_what_has_not_run(lab: Lab, fn: Callable[[], Any], message: str) -> None:
    """It is an error of the task, which another attempt would not help; no "never awaited" is heard."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        future = lab.executor(retry_count=2).submit(fn)
        error = future.exception()
        gc.collect()
    assert isinstance(error, TypeError)
    assert message in str(error)
    assert len(future.task_result().attempts) == 1
    assert not [str(warning.message) for warning in heard if "never awaited" in str(warning.message)]


@over(ALL)
def test_items_of_a_map_that_return_what_has_not_run(lab: Lab) -> None:
    """The same for each."""
    results = lab.executor(retry_count=2).map(return_generator, range(20))
    with pytest.raises(TypeError, match="the call returned a generator"):
        list(results)


def test_a_generator_that_has_begun_is_closed() -> None:
    """Whatever it does then."""
    closed = []

    def begun() -> Any:
        def generate() -> Iterator[int]:
            try:
                yield 1
            finally:
                closed.append(True)
                raise SystemExit

        generator = generate()
        next(generator)
        return generator

    with ParallelExecutor() as executor:
        assert isinstance(executor.submit(begun).exception(), TypeError)
    assert closed == [True]


def test_the_drop_in_executor_returns_what_the_standard_librarys_does() -> None:
    """There a call may return a generator; its future shows the task all the same."""
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(count, 2)
        assert list(future.result()) == [0, 1]
        assert list(next(executor.map(count, [1]))) == [0]
    task = getattr(future, "task", None)
    assert task is not None
    assert task.id == "count-1"
