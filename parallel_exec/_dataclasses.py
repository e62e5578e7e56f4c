"""`dataclass` and `field` as the standard library has them, put off: `dataclasses` is imported once somebody needs it.

    class made ─► placeholders ─► first use of one ─► the real decorator makes what they stand for

To import `dataclasses`, with `inspect`, and to let it compile the methods of a dozen classes took a third of the time of a
script with one call in a thread; and such a script makes instances only of classes that have an `__init__` of their own.

Guarantees:
    Whoever looks, `dataclasses.fields` and `inspect` included, finds a frozen dataclass.
    Any thread may be the first to use a placeholder, and others meanwhile, as may a forked child: each is replaced in one
    step, without a lock; what two threads make is alike. But a signal handler must not be the first, as it may have
    interrupted an import of `dataclasses`: what executors make instances of has an `__init__` of its own, or was given to
    `make_real`.
"""

from __future__ import annotations

import contextlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

_NAMES = (
    *("__init__", "__repr__", "__eq__", "__hash__", "__replace__"),
    *("__match_args__", "__dataclass_fields__", "__dataclass_params__"),
    "__signature__",  # never made: `inspect` asks for it first, and then for `__init__`, statically
)


class field:  # noqa: N801  # as the standard library's
    """What `dataclasses.field` is to be told."""

    def __init__(self, **options: Any) -> None:
        self.options = options


class _Placeholder:
    """Stands for an attribute that the real decorator makes.

    Args:
        replace: replaces all the placeholders of the class.
        name: the attribute's.
    """

    def __init__(self, replace: Callable[[], None], name: str) -> None:
        self._replace = replace
        self._name = name

    def __get__(self, instance: object, owner: type) -> Any:
        self._replace()
        for each in owner.__mro__:
            if self._name in vars(each):
                real = vars(each)[self._name]
                return real.__get__(instance, owner) if hasattr(type(real), "__get__") else real
        raise AttributeError(f"type object {owner.__name__!r} has no attribute {self._name!r}")


def dataclass(*, frozen: bool, init: bool = True, repr: bool = True) -> Callable[[type], type]:
    """Make a class a dataclass, which must be frozen; the arguments are those of `dataclasses.dataclass`."""
    assert frozen, "what is not frozen needs the real one"

    def decorate(cls: type) -> type:
        annotations = vars(cls).get("__annotations__", {})
        defaults = {
            name: value
            for name, value in vars(cls).items()
            if name in annotations and type(value).__name__ != "member_descriptor"  # of a slot
        }
        left_out = {"__init__": not init, "__repr__": not repr}
        names = [name for name in _NAMES if not left_out.get(name) and name not in vars(cls)]

        def replace() -> None:
            made = vars(_real(cls, annotations, defaults, init=init, repr=repr))
            for name in names:
                if name in made:
                    setattr(cls, name, made[name])
                else:  # which this version of Python does not make
                    with contextlib.suppress(AttributeError):
                        delattr(cls, name)

        for name in names:
            setattr(cls, name, _Placeholder(replace, name))
        for name, value in defaults.items():
            if type(value) is field:
                delattr(cls, name)
        _freeze(cls)
        return cls

    return decorate


def make_real(*classes: Any) -> None:
    """Have the standard library make dataclasses of these now."""
    for cls in classes:
        cls.__dataclass_fields__  # noqa: B018  # the first look


def _real(cls: type, annotations: dict[str, Any], defaults: dict[str, Any], *, init: bool, repr: bool) -> type:
    """Return a class with the fields of `cls` that the standard library has made a dataclass of."""
    import dataclasses  # costly

    namespace = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    namespace["__annotations__"] = annotations
    for name, value in defaults.items():
        namespace[name] = dataclasses.field(**value.options) if type(value) is field else value
    bases = tuple(base for base in cls.__bases__ if "__dataclass_fields__" in vars(base))
    return dataclasses.dataclass(frozen=True, init=init, repr=repr)(type(cls.__name__, bases, namespace))


def _freeze(cls: Any) -> None:
    """Let no attribute of an instance be set or deleted, as a frozen dataclass does."""
    fields = {name for each in cls.__mro__ for name in vars(each).get("__annotations__", ())}

    def refuse(self: object, verb: str, name: str) -> None:
        if type(self) is cls or name in fields:
            from dataclasses import FrozenInstanceError

            raise FrozenInstanceError(f"cannot {verb} field {name!r}")

    def set_attribute(self: object, name: str, value: object) -> None:
        refuse(self, "assign to", name)
        super(cls, self).__setattr__(name, value)

    def delete_attribute(self: object, name: str) -> None:
        refuse(self, "delete", name)
        super(cls, self).__delattr__(name)

    for name, method in (("__setattr__", set_attribute), ("__delattr__", delete_attribute)):
        method.__name__, method.__qualname__ = name, f"{cls.__qualname__}.{name}"
        setattr(cls, name, method)
