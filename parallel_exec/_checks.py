"""What settings may be: each check returns the value as a plain one of Python's, or says what to write instead.

Numbers may be of any kind, NumPy's too; `True` is none.
"""

from __future__ import annotations

import operator

from parallel_exec._lazy import refuse_lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, NoReturn, Union

    RetryOn = Union[tuple[type[BaseException], ...], Callable[[BaseException], bool]]


def is_flag(value: object) -> bool:
    """Return whether it is True or False: Python's, or NumPy's, which core must not import."""
    kind = type(value)
    return kind is bool or (kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"))


def check_flag(name: str, value: bool) -> bool:
    """Return `value` as a plain bool.

    Raises:
        TypeError: it is none.
    """
    if not is_flag(value):
        raise TypeError(f"{name} takes True or False, not {value!r}")
    return bool(value)


def to_float(value: Any) -> float | None:
    """Return a number of any kind, NumPy's too, as a plain float; None if it is none, infinity if it is too large."""
    if type(value) is float:
        return value
    if is_flag(value) or not (hasattr(type(value), "__float__") or hasattr(type(value), "__index__")):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
    except Exception:  # an array of many numbers, for one
        return None


def check_seconds(name: str, value: float | None) -> float | None:
    """Return `value` as a limit in seconds, a plain float; None means no limit.

    Raises:
        TypeError: it is no number.
        ValueError: it is not positive.
    """
    if value is None:
        return None
    seconds = to_float(value)
    if seconds is None:
        raise TypeError(f"{name} takes seconds as a number, or None for no limit, not {value!r}")
    if not seconds > 0:
        raise ValueError(f"{name} must be more than 0 seconds (None means no limit), not {value!r}")
    if seconds == float("inf") and not isinstance(value, float):
        raise ValueError(f"{name} is too large for a number of seconds; None means no limit")
    return seconds


def check_soft_timeout(value: float | None, timeout: object) -> float | None:
    """Return `value` as seconds; of the timeout only what is a number counts.

    Raises:
        TypeError, ValueError: it is none, or the timeout ends the attempt before.
    """
    seconds = check_seconds("soft_timeout", value)
    if seconds is not None and isinstance(timeout, (int, float)) and seconds >= timeout:
        raise ValueError(
            f"soft_timeout must be less than timeout, which ends the attempt: {seconds:g} s is not less than {timeout:g} s"
        )
    return seconds


def check_wait(name: str, value: float) -> float:
    """Return `value` as seconds to wait, a plain float; unlike a limit it may be 0.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative.
    """
    seconds = to_float(value)
    if seconds is None:
        raise TypeError(f"{name} takes seconds as a number, not {value!r}")
    if not seconds >= 0:
        raise ValueError(f"{name} must be 0 seconds or more, not {value!r}")
    return seconds


def check_backoff(backoff: float, max_backoff: float) -> None:
    """Refuse a first wait that is longer than the longest.

    Raises:
        ValueError: it is.
    """
    if backoff > max_backoff:
        raise ValueError(
            f"backoff={backoff:g} is more than max_backoff={max_backoff:g}, the most seconds between two attempts: "
            f"write max_backoff={backoff:g} as well, or a smaller backoff"
        )


def check_int(name: str, value: int) -> int:
    """Return `value` as a plain int if it is a whole number, NumPy's too.

    Raises:
        TypeError: it is none.
    """
    if is_flag(value) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} takes a whole number, not {value!r}")
    try:
        return operator.index(value)
    except TypeError:  # an array
        raise TypeError(f"{name} takes a whole number, not {value!r}") from None


def check_count(name: str, value: int, least: int) -> int:
    """Return `value` as a plain int if it is a whole number, NumPy's too, of at least `least`.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is too small.
    """
    count = check_int(name, value)
    if count < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")
    return count


def check_retry_on(value: Any) -> RetryOn:
    """Return `value` as a tuple of exception types, or as the predicate that it is.

    Raises:
        TypeError: it is neither.
    """
    types = value if isinstance(value, tuple) else (value,)
    if all(isinstance(item, type) and issubclass(item, BaseException) for item in types):
        return types
    if callable(value) and not isinstance(value, type):
        refuse_lazy("retry_on", value)
        return value  # type: ignore[no-any-return]
    wrong = next(item for item in types if not (isinstance(item, type) and issubclass(item, BaseException)))
    raise TypeError(
        f"retry_on takes exception types such as (OSError,), or a function of the exception that returns True or False, "
        f"not {wrong!r}"
    )


def check_initializer(initializer: object, initargs: object) -> None:
    """Refuse what cannot be called as `initializer(*initargs)`.

    Raises:
        TypeError: it cannot.
    """
    if initializer is not None and not callable(initializer):
        hint = ": how many workers is ParallelExecutor(max_concurrency=...)" if isinstance(initializer, int) else ""
        raise TypeError(f"initializer takes a callable, not {initializer!r}{hint}")
    if initializer is not None:
        refuse_lazy("initializer", initializer)
    if not isinstance(initargs, (tuple, list)):
        raise TypeError(f"initargs takes a tuple of arguments, not {initargs!r}: one argument is (argument,)")


def check_finalizer(finalizer: object) -> None:
    """Refuse what cannot be called as `finalizer()`.

    Raises:
        TypeError: it cannot.
    """
    if finalizer is not None:
        if not callable(finalizer):
            raise TypeError(f"finalizer takes a callable, not {finalizer!r}")
        refuse_lazy("finalizer", finalizer)


def check_priority(value: int) -> int:
    """Return `value` as a plain int.

    Raises:
        TypeError: it is no int. (An int only: an order that mixes types could fail inside the queue.)
    """
    if is_flag(value) or not hasattr(type(value), "__index__"):
        raise TypeError(f"priority takes an int (higher runs first), not {value!r}")
    return operator.index(value)


def check_retrying(retry: object) -> None:
    """Refuse what is not a tenacity `Retrying` object, without importing tenacity.

    Raises:
        TypeError: it lacks tenacity's parts, or it is the asynchronous kind.
    """
    if isinstance(retry, type) or not all(hasattr(retry, part) for part in ("stop", "wait", "retry", "before_sleep")):
        hint = f": retry_count={retry!r} is a number of retries" if isinstance(retry, int) else ""
        raise TypeError(f"retry takes a tenacity.Retrying(...) object, not {retry!r}{hint}")
    if any("Async" in base.__name__ for base in type(retry).__mro__):
        raise TypeError(f"retry takes a tenacity.Retrying(...), not {type(retry).__name__}: tasks are plain calls")


def not_callable(where: str, value: object) -> TypeError:
    """Return the error for something in a function's place.

    Args:
        where: the call that takes a function, by its name.
        value: what it was given.
    """
    kind = type(value).__name__
    if kind == "Task":
        hint = "a Task goes to add_task(task), or stream([task])"
    elif isinstance(value, (list, tuple, set)) or hasattr(value, "__next__"):
        hint = f"call {where} for each of them, or give them to stream(...) or map(fn, items)"
    else:
        hint = f"pass the function and its arguments, {where}(fn, argument), not what it returns, {where}(fn(argument))"
    return TypeError(f"{where} takes a callable, not {value!r}: {hint}")


def is_iterable(value: object) -> bool:
    """Return whether `iter` takes a value, without asking it for an iterator: there may be only one."""
    return hasattr(type(value), "__iter__") or hasattr(type(value), "__getitem__")


def refuse_names(where: str, misspelt: Iterable[str], function: Callable[..., object]) -> NoReturn:
    """Refuse the first of the keywords that a function does not know, and say what to write.

    Args:
        where: the function, as the message names it.
        misspelt: the keywords.
        function: is asked for those that it knows.

    Raises:
        TypeError: always.
    """
    from parallel_exec._hints import instead_of, settings_of  # only a mistake needs them

    name = next(iter(misspelt))
    raise TypeError(f"{where} has no setting {name!r}: {instead_of(name, settings_of(function))}")
