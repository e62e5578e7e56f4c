"""What a task needs of its executor's limits, as the user said it: checked as far as that goes without the executor.

needs={"api": 1} ──► named(): the same object for all equal ones ──► Task.needs ──► `_core/limits`: against the limits there are
"""

from __future__ import annotations

import operator

from parallel_exec._checks import is_flag, to_float

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    _Dict = dict[str, Any]
else:
    _Dict = dict

_MOST = 1024  # that are remembered; a guess: who has a key for each task makes new ones all the time
_known: dict[tuple[Any, ...], Named] = {}


class Named(_Dict):
    """The names of limits, in order, and how much of each, or which key. Cannot be changed; hashable."""

    __slots__ = ("_hash",)
    _hash: int

    def __hash__(self) -> int:  # type: ignore[override]
        try:
            return self._hash
        except AttributeError:
            self._hash = hash(tuple(self.items()))
            return self._hash

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("the needs of a task cannot be changed: make another Task")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> Any:
        return named, (dict(self),)

    def __copy__(self) -> Named:
        return self

    def __deepcopy__(self, memo: object) -> Named:
        return self


def named(given: Any) -> Named | None:
    """Return what is needed, by the limits' names in order; None if that is nothing.

    Raises:
        TypeError: it is no mapping, a name is no text, or what is needed of one is neither an amount nor a key.
        ValueError: an amount is not positive, or is no number.
    """
    if type(given) is Named:
        return given or None
    if type(given) is dict:
        try:
            known = _known.get(tuple([(name, type(need), need) for name, need in given.items()]))
        except TypeError:
            known = None  # what is not hashable is refused below
        if known is not None:
            return known
    if not hasattr(given, "keys"):
        hint = f": write needs={{{given!r}: 1}}" if isinstance(given, str) else ""
        raise TypeError(
            f'needs takes a dict of limits\' names and amounts or keys, as {{"api": 1}}, not {given!r}{hint}'
        )
    given = dict(given)
    for name in given:
        if type(name) is not str and not isinstance(name, str):
            raise TypeError(f"needs takes names of limits, which are text, not {name!r}")
    made = Named({name: _need(name, given[name]) for name in sorted(given)})
    if not made:
        return None
    parts = tuple((name, type(need), need) for name, need in made.items())  # (1, 1.0 and True are equal)
    made = _known.get(parts, made)
    if len(_known) >= _MOST:
        _known.clear()
    _known[parts] = _known[tuple((name, type(need), need) for name, need in given.items())] = made
    return made


def _need(name: str, value: Any) -> Any:
    """Return an amount as a plain number, or a key as it is."""
    shown = f'needs={{"{name}": {value!r}}}'
    if value is None or is_flag(value):
        raise TypeError(
            f"{shown}: how much of a limit is a number, as 1 or 0.5, and which key is text or a tuple, as {str(value)!r}"
        )
    amount = None if isinstance(value, (str, bytes)) else to_float(value)  # NumPy's text of digits is a number, too
    if amount is None:
        try:
            hash(value)
        except TypeError:
            raise TypeError(f"{shown}: a key must be hashable, as text or a tuple, and an amount is a number") from None
        return value
    if not 0 < amount < float("inf"):
        raise ValueError(
            f"{shown}: an amount must be more than 0, and finite; a key that is a number is {str(value)!r}"
        )
    if not isinstance(value, (str, bytes)) and hasattr(type(value), "__index__"):
        return operator.index(value)
    return int(amount) if amount.is_integer() else amount
