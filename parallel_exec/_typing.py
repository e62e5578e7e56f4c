"""What classes need of `typing` while a program runs, without its import: a tenth of a script with one call in a thread.

TYPE_CHECKING = False  # true for type checkers, by its name
if TYPE_CHECKING:
from typing import Any, Generic, TypeVar

T = TypeVar("T")
else:
from parallel_exec._typing import Generic


class Box(Generic["T"]): ...
"""

from __future__ import annotations

from collections import namedtuple
from types import GenericAlias

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Generic:
    """A base, as `Generic["T"]`, of a class that may be written with its type: `Box[int]`."""

    __slots__ = ()
    __class_getitem__: Any = classmethod(GenericAlias)


class Protocol:
    """The base of what is a type for type checkers alone."""

    __slots__ = ()


class _MadeNamed(type):
    """Makes a class with `NamedTuple` as its base what `collections.namedtuple` returns."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Any:
        if not bases:
            return super().__new__(cls, name, bases, namespace)
        fields = namespace["__annotations__"]
        defaults = [namespace.pop(field) for field in fields if field in namespace]
        made = namedtuple(name, fields, defaults=defaults, module=namespace.pop("__module__"))  # type: ignore[misc]  # noqa: PYI024
        for attribute, value in namespace.items():
            setattr(made, attribute, value)
        return made


class NamedTuple(metaclass=_MadeNamed):
    """The base of a class that is a tuple with a name for each item."""
