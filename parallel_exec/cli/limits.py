"""What `--limit NAME=SPEC` and `--needs NAME[=EXPR]` say.

    --limit api=10/s ──► read_limits ──► {"api": Rate(10)}                      the executor's `limits`
    --needs api      ──► read_needs  ──► ItemNeeds ──► of(item) ──► {"api": 1}  a task's `needs`

Guarantees:
    What is wrong with an option is a `UsageError` before anything runs, that says what to write. What is wrong with an item's
    key or amount, which code of the user's computes, is an error of that item alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Callable

from parallel_exec._core.limits.kinds import make_kind
from parallel_exec._hints import did_you_mean
from parallel_exec._needs import named
from parallel_exec.cli.options import UsageError
from parallel_exec.limits import Adaptive, PerKey, Rate, check_spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from parallel_exec._core.limits.kind import Kind
    from parallel_exec.limits import LimitSpec

EXAMPLES = "api=10/s, db=4, gpu=0,1 or host=2/key"
UNITS: Mapping[str, float] = {
    "ms": 0.001,
    **dict.fromkeys(("s", "sec", "second"), 1.0),
    **dict.fromkeys(("m", "min", "minute"), 60.0),
    **dict.fromkeys(("h", "hour"), 3600.0),
    **dict.fromkeys(("d", "day"), 86400.0),
}
_PER_KEY = "/key"
_RATE = re.compile(r"([^/,]*)/([\d.]*)([A-Za-z]*)(?:,burst=([^,]*))?")
_RANGE = re.compile(r"(\d*)\.\.(\d+)")


# ── what there is ────────────────────────────────────────────────────────────────────────────────────────────────────


def read_limits(options: Sequence[str]) -> dict[str, LimitSpec]:
    """Return the limits that are given, by their names."""
    limits: dict[str, LimitSpec] = {}
    for option in options:
        name, equals, spec = option.partition("=")
        if not name or not equals:
            raise UsageError(f"--limit takes NAME=SPEC, such as {EXAMPLES}, not {option!r}")
        if name in limits:
            raise UsageError(f"--limit {option}: there is a limit {name!r} already")
        try:
            limits[name] = check_spec("the limit", _spec(spec))
        except (TypeError, ValueError) as error:
            raise UsageError(f"--limit {option}: {error}") from None
    return limits


def _spec(text: str) -> LimitSpec:
    """Return the limit that a text describes.

    Raises:
        ValueError: it describes none.
    """
    if text.endswith(_PER_KEY):
        return PerKey(_spec(text[: -len(_PER_KEY)]))
    if (rate := _RATE.fullmatch(text)) is not None:
        return _rate(*rate.groups())
    if (bounds := _RANGE.fullmatch(text)) is not None:
        return Adaptive(min=int(bounds[1] or 1), max=int(bounds[2]))
    if "," in text:
        return _slots(text)
    return _count(text)


def _rate(count: str, per: str, unit: str, burst: str | None) -> Rate:
    if unit not in UNITS:
        meant = did_you_mean(unit, [*UNITS, "key"], "; ")
        raise ValueError(f"there is no unit {unit!r}{meant or ': write N/s, N/min, N/h, N/d, N/ms, or as in N/30s'}")
    seconds = UNITS[unit] * (_number(per) if per else 1)
    return Rate(_number(count), per=seconds, burst=None if burst is None else _number(burst))


def _slots(text: str) -> list[str]:
    items = text.removesuffix(",").split(",")
    if "" in items:
        raise ValueError("an item of the list is empty: write each slot once, as in gpu=0,1; a list of one is gpu=0,")
    if (rate := _RATE.fullmatch(items[0])) is not None and rate[3] in UNITS:
        raise ValueError(f"after a rate comes burst=N: write {items[0]},burst=5")
    return items


def _count(text: str) -> float:
    try:
        count = _number(text)
    except ValueError:
        raise ValueError(
            "write a count as in db=4, a rate as in api=10/s or api=10/s,burst=1, slots as in gpu=0,1 (one: gpu=0,), "
            "a bound to be found as in llm=1..64, or one of these for each key as in host=2/key"
        ) from None
    if count == 0:
        raise ValueError(f"a count is more than 0; a list of one slot is written with a comma, {text},")
    return count


def _number(text: str) -> float:
    """Return a number, an int if it is written as one.

    Raises:
        ValueError: it is none.
    """
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None


# ── what each item needs ─────────────────────────────────────────────────────────────────────────────────────────────


class ItemNeeds:
    """Says what an item needs.

    Args:
        limits: those that there are, by their names.
        given: the amounts that are the same for all items.
        computed: what computes a key or an amount from an item.

    Attributes:
        same_for_all: whether all items need the same.
    """

    def __init__(
        self,
        limits: Mapping[str, LimitSpec],
        given: Mapping[str, float],
        computed: Mapping[str, Callable[[Any], Any]],
    ) -> None:
        self.same_for_all = not computed
        self._given = given
        self._computed = computed
        self._kinds = {name: make_kind(name, limits[name]) for name in computed}

    def of(self, item: Any) -> Mapping[str, Any]:
        """Return what an item needs, as a task's `needs`; runs code of the user's.

        Raises:
            TypeError, ValueError: it can never be granted; so may whatever the user's code raises.
        """
        if self.same_for_all:
            return self._given
        computed = {name: compute(item) for name, compute in self._computed.items()}
        _check(self._kinds, computed)
        return {**self._given, **computed}


def _check(kinds: Mapping[str, Kind], needs: Mapping[str, Any]) -> None:
    """Refuse what can never be granted.

    Raises:
        TypeError, ValueError: it cannot.
    """
    for name, need in (named(needs) or {}).items():
        kinds[name].check(need)


def read_needs(
    options: Sequence[str], limits: Mapping[str, LimitSpec], resolve: Callable[[str], Callable[[Any], Any]]
) -> ItemNeeds | None:
    """Return what each item needs; None if that is nothing.

    Args:
        options: the `--needs`.
        limits: those that there are.
        resolve: returns what MODULE:CALLABLE names.
    """
    given: dict[str, float] = {}
    computed: dict[str, Callable[[Any], Any]] = {}
    for option in options:
        name, _, expression = option.partition("=")
        _check_name(option, name, limits)
        if name in given or name in computed:
            raise UsageError(f"--needs {option}: what is needed of {name!r} is said already")
        if ":" in expression:
            computed[name] = resolve(expression)
        else:
            given[name] = _amount(option, expression, limits[name])
    for name in limits:
        if name not in given and name not in computed:
            key = "=MODULE:CALLABLE" if isinstance(limits[name], PerKey) else ""
            raise UsageError(f"--limit {name}=... limits nothing, as no item needs it: add --needs {name}{key}")
    return ItemNeeds(limits, given, computed) if options else None


def _check_name(option: str, name: str, limits: Mapping[str, LimitSpec]) -> None:
    """Refuse the name of a limit that there is not."""
    if not name:
        raise UsageError(f"--needs takes NAME or NAME=EXPR, with the NAME of a --limit, not {option!r}")
    if name not in limits:
        meant = did_you_mean(name, list(limits), "; ")
        raise UsageError(f"--needs {option}: there is no limit {name!r}{meant or f': add --limit {name}=SPEC'}")


def _amount(option: str, expression: str, limit: LimitSpec) -> float:
    """Return an amount that is the same for all items."""
    name = option.partition("=")[0]
    if isinstance(limit, PerKey):
        raise UsageError(
            f"--needs {option}: a limit for each key needs the key: write --needs {name}=MODULE:CALLABLE, which is given an "
            "item and returns its key (builtins:str: the item itself)"
        )
    try:
        amount = _number(expression) if "=" in option else 1
    except ValueError:
        raise UsageError(
            f"--needs {option}: write how much each item needs, a number, or MODULE:CALLABLE, which is given an item and "
            "returns it"
        ) from None
    try:
        _check({name: make_kind(name, limit)}, {name: amount})
    except ValueError as error:
        raise UsageError(f"--needs {option}: {error}") from None
    return amount
