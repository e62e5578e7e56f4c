"""Makes a program that breaks a guarantee shorter: parts are left out as long as it still breaks one.

Delta debugging, over data of any shape: of a tuple all runs of elements are left out, from its half to each single one, of a
dict each key; a field goes back to its default; and so on within each. What is broken may be a race, so a part is only taken
for needed once the program has held without it a few times.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Callable, Iterator, TypeVar

T = TypeVar("T")


def simpler(value: Any) -> Iterator[Any]:
    """Yield what is like a value, but for a part that was left out: the largest parts first."""
    if isinstance(value, tuple):
        yield from _shorter(value)
        for number, each in enumerate(value):
            for other in simpler(each):
                yield (*value[:number], other, *value[number + 1 :])
    elif isinstance(value, dict):
        for name in value:
            yield {other: found for other, found in value.items() if other != name}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            found = getattr(value, field.name)
            default = field.default_factory() if callable(field.default_factory) else field.default
            if default is not dataclasses.MISSING and found != default and not isinstance(found, (tuple, dict)):
                yield dataclasses.replace(value, **{field.name: default})
            for other in simpler(found):
                yield dataclasses.replace(value, **{field.name: other})


def _shorter(value: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    size = len(value)
    while size:
        for start in range(0, len(value), size):
            yield value[:start] + value[start + size :]
        size //= 2


def shorten(program: T, breaks: Callable[[T], bool], seconds: float, tries: int = 1) -> T:
    """Return the shortest program found that still breaks.

    Args:
        program: one that breaks.
        breaks: runs one, and returns whether it breaks.
        seconds: for all of it.
        tries: how often a program must hold until it is taken for one that does.
    """
    until = time.monotonic() + seconds
    is_shorter = True
    while is_shorter:
        is_shorter = False
        for candidate in simpler(program):
            if time.monotonic() > until:
                return program
            if any(breaks(candidate) for _ in range(tries)):
                program, is_shorter = candidate, True
                break
    return program
