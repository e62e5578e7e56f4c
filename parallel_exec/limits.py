"""What an executor's `limits` may be, beside counts and lists: `Rate`, `PerKey`, `Adaptive`; and `LimitStats`, of each.

    ParallelExecutor(limits={"db": 4, "api": Rate(10), "gpu": ["cuda:0", "cuda:1"], "host": PerKey(2), "llm": Adaptive(max=64)})

They say what is bounded and hold nothing: `_core/limits/kinds.py` has what counts. All are frozen, and valid once made.
"""

from __future__ import annotations

from parallel_exec._checks import check_count, to_float
from parallel_exec._names import short_repr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass
    from typing import Any, Callable, Hashable, Mapping, Union

    LimitSpec = Union[float, "Rate", list[Any], tuple[Any, ...], range, "PerKey", "Adaptive"]
else:
    from parallel_exec._dataclasses import dataclass

__all__ = ["Adaptive", "LimitStats", "PerKey", "Rate"]

_BURST_SECONDS = 0.1  # a guess: workers seldom come later than this, nor does a server look at shorter times
_INITIAL = 8  # a guess: what services stand that nobody knows anything of


@dataclass(frozen=True, init=False)
class Rate:
    """So many starts in so many seconds: no more than `burst + n * t / per` in any `t` seconds.

    Args:
        n: how many; a task that needs more than 1 of it counts as so many.
        per: the seconds in which.
        burst: how many may start at once after a pause. Default: as many as come in a tenth of a second, at least 1. So
            starts are spaced evenly, and none is lost where a worker comes a little late.

    Raises:
        TypeError: one of them is no number.
        ValueError: one is not more than 0 or not finite, or `burst` is less than 1.
    """

    n: float
    per: float
    burst: float

    def __init__(self, n: float, per: float = 1.0, burst: float | None = None) -> None:
        number = check_amount("Rate's n", n)
        seconds = float(check_amount("Rate's per", per))
        most = max(1, number * _BURST_SECONDS / seconds) if burst is None else check_amount("Rate's burst", burst)
        if most < 1:
            raise ValueError(f"Rate's burst must be at least 1, a start, not {burst!r}")
        vars(self).update(n=number, per=seconds, burst=most)


@dataclass(frozen=True, init=False)
class PerKey:
    """One such limit for each key: `limits={"host": PerKey(2)}` with `needs={"host": "example.com"}`.

    Args:
        limit: a count of at least 1, a `Rate`, a list, or an `Adaptive`.

    Raises:
        TypeError, ValueError: it is none of these.
    """

    limit: LimitSpec

    def __init__(self, limit: LimitSpec) -> None:
        if isinstance(limit, PerKey):
            raise TypeError(
                "PerKey takes a count, a Rate, a list or an Adaptive, not another PerKey: let a tuple be the key"
            )
        checked = check_spec("PerKey's limit", limit)
        if not isinstance(checked, (Rate, Adaptive, tuple)) and checked < 1:
            raise ValueError(f"PerKey takes a count of at least 1, as each task needs 1 of its key's, not {limit!r}")
        vars(self).update(limit=checked)


@dataclass(frozen=True, init=False)
class Adaptive:
    """A count that finds itself: it grows while the tasks that need it run as fast as before, and shrinks when they slow down.

    An attempt that timed out, or raised `RetryAfter`, tells it that there are too many.

    Args:
        max: the most that it can be.
        min: the least that it can be.
        initial: what it begins with; default: 8, if that is between them.

    Raises:
        TypeError: one of them is no whole number.
        ValueError: one is less than 1, or they are not in order.
    """

    min: int
    max: int
    initial: int

    def __init__(self, *, max: int, min: int = 1, initial: int | None = None) -> None:
        least, most = check_count("Adaptive's min", min, 1), check_count("Adaptive's max", max, 1)
        if most < least:
            raise ValueError(f"Adaptive's max must be at least its min, {least}, not {max!r}")
        first = (
            sorted((least, _INITIAL, most))[1] if initial is None else check_count("Adaptive's initial", initial, least)
        )
        if first > most:
            raise ValueError(f"Adaptive's initial must be at most its max, {most}, not {initial!r}")
        vars(self).update(min=least, max=most, initial=first)


@dataclass(frozen=True, init=False)
class LimitStats:
    """What one limit of an executor has done and is doing; a snapshot.

    Attributes:
        name: the limit's.
        in_use: how much of it is held by attempts now; of a list how many items.
        waiting: tasks that wait for it.
        granted: how many attempts were given what they need of it.
        limit: how much of it there is: a count, a list's length, a rate's `n`, what an `Adaptive` has found so far; of a
            `PerKey` how much each key has.
        next_grant: seconds until time alone lets another attempt have 1 of it; None where only the end of an attempt can, or
            where one can have it now.
        keys: of a `PerKey`, the same for each key that is in use or waited for.
    """

    name: str
    in_use: float
    waiting: int
    granted: int
    limit: float
    next_grant: float | None
    keys: Mapping[Hashable, LimitStats]

    def __init__(  # a signal handler may be the first to have one made: see `_dataclasses`
        self,
        name: str,
        in_use: float = 0,
        waiting: int = 0,
        granted: int = 0,
        limit: float = 0,
        next_grant: float | None = None,
        keys: Mapping[Hashable, LimitStats] | None = None,
    ) -> None:
        vars(self).update(
            name=name,
            in_use=in_use,
            waiting=waiting,
            granted=granted,
            limit=limit,
            next_grant=next_grant,
            keys={} if keys is None else keys,
        )


def check_amount(what: str, value: Any) -> int | float:
    """Return a number of any kind as a plain int or float, if it is finite and more than 0.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of range.
    """
    number = to_float(value)
    if number is None:
        raise TypeError(f"{what} takes a number, not {value!r}")
    if not 0 < number < float("inf"):
        raise ValueError(f"{what} must be a number above 0, and finite, not {value!r}")
    return value.__index__() if hasattr(type(value), "__index__") else number


def check_spec(what: str, spec: Any) -> Any:
    """Return a limit as it may be kept: a plain number, a `Rate`, a `PerKey`, an `Adaptive`, or a list's items as a tuple.

    Args:
        what: what it is, for messages.
        spec: the limit.

    Raises:
        TypeError, ValueError: it is none.
    """
    if isinstance(spec, (Rate, PerKey, Adaptive)):
        return spec
    if isinstance(spec, (list, tuple, range)):
        if not spec:
            raise ValueError(f"{what} is an empty list: there is nothing to hand out")
        return tuple(spec)
    if to_float(spec) is None:
        hint = ": call it" if spec in (Rate, PerKey, Adaptive) else ""
        raise TypeError(
            f"{what} takes a count such as 4, Rate(10), a list of what is handed out, PerKey(2) or Adaptive(max=64), "
            f"not {spec!r}{hint}"
        )
    return check_amount(what, spec)


def check_limits(limits: Any) -> dict[str, Any]:
    """Return an executor's limits, by their names, as `check_spec` returns each.

    Raises:
        TypeError, ValueError: one is none, or a name is no text.
    """
    if not hasattr(limits, "keys"):
        raise TypeError(f'limits takes a dict such as {{"db": 4, "api": Rate(10)}}, not {limits!r}')
    return {check_name(name): check_spec(f"limits[{name!r}]", limits[name]) for name in limits}


def check_items(name: str, spec: Any, dumps: Callable[[Any], object]) -> None:
    """Refuse a list of which an item cannot be sent to a worker process.

    Args:
        name: the limit's name.
        spec: what `check_spec` has returned; all but lists pass.
        dumps: pickles.

    Raises:
        TypeError: one cannot.
    """
    items = spec.limit if isinstance(spec, PerKey) else spec
    for item in items if isinstance(items, tuple) else ():
        try:
            dumps(item)
        except Exception as error:
            raise TypeError(
                f"limits[{name!r}] hands out {short_repr(item)}, which cannot be sent to a worker process: "
                f"{type(error).__name__}: {error}"
            ) from error


def check_name(name: Any) -> str:
    """Return the name of a limit, if it can be one.

    Raises:
        TypeError: it is no text.
        ValueError: it is empty.
    """
    if not isinstance(name, str):
        raise TypeError(f"a limit's name is a text, not {name!r}")
    if not name:
        raise ValueError("a limit's name is a text that is not empty")
    return name
