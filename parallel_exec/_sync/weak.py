"""Ways that keep nothing alive: up from a part to what owns it, and out of the frames of an error.

    executor ──► scheduler ──► back end ──► its parts        kept: what owns keeps what it owns
             ◄── weak ───── weak ──────── weak ──┘           and whatever leads back does not

Without a circle everything is freed when the last reference goes, not when the cyclic collector comes round, which may be
gigabytes later. A scheduler that has work is kept by the threads that do it (`current.pool`).
"""

from __future__ import annotations

import sys
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, AsyncIterator, Callable, Generic, TypeVar, overload

    T = TypeVar("T")
else:
    from parallel_exec._typing import Generic


class Upward(Generic["T"]):
    """An attribute that leads to its object's owner without keeping that.

    Raises:
        ReferenceError: when read, once the owner is gone.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __set__(self, instance: Any, value: T) -> None:
        instance.__dict__[self._name] = weakref.ref(value)

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type) -> Upward[T]: ...
        @overload
        def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: Any, owner: type) -> Upward[T] | T:
        if instance is None:
            return self
        value: T | None = instance.__dict__[self._name]()
        if value is None:
            raise ReferenceError(f"what owned this {type(instance).__name__} is gone")
        return value


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a callable that calls a bound method without keeping its object; once that is gone it does nothing."""
    # Not a WeakMethod, which has a callback: torn apart by Ctrl-C as it is made, that raises when the object goes.
    bound: Any = method
    reference, function = weakref.ref(bound.__self__), bound.__func__

    def call(*args: Any) -> Any:
        instance = reference()
        return None if instance is None else function(instance, *args)

    return call


def apart(function: Callable[..., T], *args: Any) -> T:
    """Call a function so that the frames of an error that it catches, and returns, do not lead to the caller.

    An error keeps its traceback, that its frames, and each of these the frame that called it, with all its variables: the
    future that is to keep the error, for one. The frame of a generator that has yielded has no caller. (An asynchronous
    generator, with a finalizer that does nothing: a plain one is resumed to be closed, and on Python 3.12 then keeps as its
    caller whoever let it go.) It costs about 1 µs.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, _leave_suspended)
    try:
        step = _calling(function, args).__anext__()
    finally:
        sys.set_asyncgen_hooks(*hooks)
    try:
        step.send(None)  # type: ignore[attr-defined]  # as `await` does
    except StopIteration as yielded:
        return yielded.value  # type: ignore[no-any-return]
    raise AssertionError("nothing in it waits")


async def _calling(function: Callable[..., T], args: tuple[Any, ...]) -> AsyncIterator[T]:
    yield function(*args)


def _leave_suspended(generator: Any) -> None:
    """Do nothing: it is not to be closed."""
