"""How callables, types, values and exceptions are named in messages, and what the ids of tasks are made of.

Imports nothing of ours, as worker processes need it.
"""

from __future__ import annotations

from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SHOWN = frozenset((float, complex, bool, type(None), type(...)))
_COUNTED = frozenset((list, tuple, set, frozenset, dict))
_BRACKETS: dict[type, str] = {list: "[{}]", tuple: "({})"}


def type_name(kind: type) -> str:
    """Return a type's qualified name: a builtin's without its module, and one of the main module as the parent knows it."""
    return name_of(kind.__module__, kind.__qualname__)


def name_of(module: str, qualname: str) -> str:
    """Return the name of a type, as `type_name` does."""
    return {"builtins": "", "__mp_main__": "__main__."}.get(module, f"{module}.") + qualname


def call_name(fn: object) -> str:
    """Return the short name of a callable: a partial's is its function's, an object's is its type's. Runs no user code."""
    if type(fn) is FunctionType:  # most are
        return fn.__name__.strip("<>")
    while True:
        if isinstance(fn, partial):
            fn = fn.func
        elif type(fn) is MethodType:
            fn = fn.__func__
        else:
            break
    try:
        name = object.__getattribute__(fn, "__name__")  # past a `__getattr__` of the user's
    except Exception:
        name = None
    if type(name) is not str:
        name = type(fn).__name__
    return name.strip("<>")  # of a lambda


def is_of_module(fn: object) -> bool:
    """Return whether a callable is a function of C's that belongs to a module, and so keeps nothing alive."""
    return type(fn) is BuiltinFunctionType and type(fn.__self__) is ModuleType


def name_source(fn: Any) -> Any:
    """Return what `call_name` finds the name of a callable in, if that is a function that keeps nothing alive; else the name."""
    if type(fn) is str:  # it was asked before
        return fn
    while type(fn) is partial:
        fn = fn.func
    if type(fn) is MethodType:
        fn = fn.__func__
    return fn if type(fn) is FunctionType and fn.__closure__ is None else call_name(fn)


def id_of(name: str, number: object) -> str:
    """Return the id of a task to which nobody gave one: most are never looked at, and a number costs less."""
    return f"{name}-{number}"


def describe_failure(error: BaseException) -> str:
    """Return an exception's type and message on one line."""
    try:
        message = " ".join(str(error).split())
    except BaseException:
        message = "(whose str fails)"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def short_repr(value: object, most: int = 60) -> str:
    """Return a text for a value that fits into `most` characters; it never raises, and calls no `__repr__` of a user's."""
    text = _short_repr(value, most)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _short_repr(value: Any, most: int) -> str:
    kind = type(value)
    text = f"<{type_name(kind)} object>"
    if isinstance(value, BaseException):
        args: Any = BaseException.args.__get__(value)  # type: ignore[attr-defined]  # past a property of the user's
        text = f"{kind.__name__}({', '.join(short_repr(arg, most) for arg in args[:3])})"
    elif kind in (str, bytes):
        text = repr(value if len(value) <= most else value[:most])
    elif kind is int:
        text = repr(value) if value.bit_length() < 256 else f"<int of {value.bit_length()} bits>"
    elif kind in _SHOWN:
        text = repr(value)
    elif kind in _BRACKETS and len(value) <= 4 and most >= 16:  # (it may contain itself)
        comma = "," if kind is tuple and len(value) == 1 else ""
        text = _BRACKETS[kind].format(", ".join([short_repr(item, most // 2) for item in value]) + comma)
    elif kind in _COUNTED:
        text = f"<{kind.__name__} of {len(value)}>"
    return text
