"""Calls that do nothing yet: `async def` and generator functions, and the coroutines and generators that they return.

Such a call "succeeds" at once with an object, and its body never runs. So these functions are refused when they are added,
and where a call returns such an object all the same (through a decorator, a lambda), that is an error of the task.

`refuse_lazy` refuses the functions, `LAZY` and `lazy_result` find the objects. An executor whose `Settings` allow such
results, as the drop-in ones do, calls neither in this process; from another process none can be sent anyway.

Imports the standard library only, as worker processes need it.
"""

from __future__ import annotations

import contextlib
from functools import partial
from types import AsyncGeneratorType, CoroutineType, FunctionType, GeneratorType, MethodType

from parallel_exec._names import call_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LAZY = frozenset((CoroutineType, GeneratorType, AsyncGeneratorType))  # the types of what such a call returns

# Bits of `co_flags`; `inspect`, which has names for them, costs too much to import.
_COROUTINE, _GENERATOR, _ASYNC_GENERATOR = 0x80, 0x20, 0x200
_ANY = _COROUTINE | _GENERATOR | _ASYNC_GENERATOR

_ADVICE = {
    CoroutineType: "there is no event loop here: pass a plain function that returns asyncio.run({name}(...))",
    GeneratorType: "its body runs only when it is iterated over: pass a plain function that returns list({name}(...))",
    AsyncGeneratorType: "there is no event loop here: pass a plain function that iterates over it in asyncio.run(...)",
}


class LazyResultError(TypeError):
    """A task returned a coroutine or a generator, which has not run; another attempt would return one again."""


def refuse_lazy(taker: str, fn: Any) -> None:
    """Refuse an `async def` or generator function, also inside a partial, a method, or as an object's `__call__`.

    Args:
        taker: what it was given to, for the message.
        fn: a callable.

    Raises:
        TypeError: it is such a function.
    """
    inner = fn  # becomes the function of Python code that runs when `fn` is called
    while type(inner) is not FunctionType:
        if isinstance(inner, partial):
            inner = inner.func
        elif type(inner) is MethodType:
            inner = inner.__func__
        else:
            call = None if isinstance(inner, type) else getattr(type(inner), "__call__", None)  # noqa: B004  # as Python looks it up
            if type(call) is not FunctionType:  # a type's call makes an instance; a builtin is not lazy
                return
            inner = call
    flags = inner.__code__.co_flags & _ANY
    if flags:
        _refuse(taker, fn, flags)


def _refuse(taker: str, fn: Any, flags: int) -> None:
    kind, what = (
        (CoroutineType, "an async function")
        if flags & _COROUTINE
        else (AsyncGeneratorType, "an async generator function")
        if flags & _ASYNC_GENERATOR
        else (GeneratorType, "a generator function")
    )
    name = call_name(fn)
    raise TypeError(f"{taker} takes a plain function, and {name!r} is {what}: {_ADVICE[kind].format(name=name)}")


def lazy_result(value: Any) -> LazyResultError:
    """Close a coroutine or generator that a call has returned, and return the task's error for it."""
    kind: Any = type(value)
    # (An asynchronous generator that was not iterated over needs no closing, and nobody is there to await it.)
    if kind is not AsyncGeneratorType:
        with contextlib.suppress(BaseException):  # it may have begun, and have a `finally`
            value.close()
    name = value.__name__.strip("<>")
    what = {CoroutineType: "a coroutine", GeneratorType: "a generator"}.get(kind, "an async generator")
    return LazyResultError(f"the call returned {what}, {name!r}, which has not run: {_ADVICE[kind].format(name=name)}")
