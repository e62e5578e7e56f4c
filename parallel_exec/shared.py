"""`Shared`: a handle to an object that many calls get, and that travels once.

    executor.share(value) ──► Shared ──► submit(fn, shared) ── `bind` ──► among the call's arguments: what stands for it
                                                                            │ this process: the object
                                                                            │ elsewhere: `Argument`, which is pickled as its
                                                                            ▼ number, and arrives as the object
                                                                         fn(value)

Guarantees:
    The callee gets the object itself where the handle is an argument: by position, by name, of a `partial`, or an item of
    `map`. Inside of a list, say, the handle stays a handle, in every back end, and its `value` is the object.
    A task that was added before `close` has what it needs until it has ended.
"""

from __future__ import annotations

from functools import partial

from parallel_exec import _sharing
from parallel_exec.backends._contents import Argument, Content, arrive, holding, new_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Generic, TypeVar

    from typing_extensions import Self

    T = TypeVar("T")
    T_co = TypeVar("T_co", covariant=True)
else:
    from parallel_exec._typing import Generic


class Shared(Generic["T_co"]):
    """A handle to a shared object, as `executor.share` returns it. Thread-safe, and picklable in the executor's calls.

    What it stands for is gone when the handle, its copies among them, and the tasks that use it are; or, with `close`, the
    tasks.
    """

    __slots__ = ("__weakref__", "_content")

    def __init__(self, content: Content) -> None:
        self._content: Content | None = content

    @property
    def value(self) -> T_co:
        """The object: the very one in threads and inline; else one with its large buffers in memory that cannot be written.

        Raises:
            ValueError: after `close`.
        """
        value: T_co = self.content().value()
        return value

    def content(self) -> Content:
        """Return what it stands for: for the executor.

        Raises:
            ValueError: after `close`.
        """
        content = self._content
        if content is None:
            raise ValueError(
                "this Shared was closed: share the object again, and close it once no more tasks are added"
            )
        return content

    def close(self) -> None:
        """Let go of the object; tasks that were added before have it until they have ended. May be repeated."""
        self._content = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        return _arrived, self.content().key()

    def __repr__(self) -> str:
        content = self._content
        if content is None:
            return "Shared(closed)"
        size = content.size()
        return f"Shared({content.type_name})" if size is None else f"Shared({content.type_name}, {size} bytes)"


def _arrived(number: int, address: str, main: str) -> Shared[Any]:
    return Shared(arrive(number, address, main))


def share(value: T, store: Callable[[Content], object]) -> Shared[T]:
    """Return a handle to an object, which `store` puts where an executor's workers find it."""
    content = Content(new_number(), value)
    store(content)
    return Shared(content)


# ── calls ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _bind(
    fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None, here: bool
) -> tuple[Any, tuple[Any, ...], dict[str, Any] | None] | None:
    """Return a call with what stands for the handles among its arguments; None if there are none.

    `here`: the call runs in this process, and is to have the objects.

    Raises:
        ValueError: a handle was closed.
    """
    bound = _bind_partial(fn, here) if isinstance(fn, partial) else fn
    bound_args = bind_all(args, here)
    bound_kwargs = kwargs if kwargs is None else _bind_names(kwargs, here)
    if bound is fn and bound_args is args and bound_kwargs is kwargs:
        return None
    return bound, tuple(bound_args), bound_kwargs


def bind_all(values: Any, here: bool) -> Any:
    """Return a list or tuple of arguments likewise; itself if there is no handle in it."""
    if _HANDLES.isdisjoint(map(type, values)):
        return values
    return [_bind_one(value, here) if type(value) in _HANDLES else value for value in values]


def _bind_names(kwargs: dict[str, Any], here: bool) -> dict[str, Any]:
    values = bind_all(list(kwargs.values()), here)
    return kwargs if _HANDLES.isdisjoint(map(type, kwargs.values())) else dict(zip(kwargs, values))


def _bind_partial(fn: partial[Any], here: bool) -> partial[Any]:
    if type(fn) is not partial:  # one of a class of the user's
        return fn
    args, keywords = bind_all(fn.args, here), _bind_names(fn.keywords, here)
    if args is fn.args and keywords is fn.keywords:
        return fn
    bound = partial(fn.func, *args, **keywords)
    bound.__dict__.update(fn.__dict__)
    return bound


def _bind_one(handle: Any, here: bool) -> Any:
    content = _content_of(handle)
    return content.value() if here else Argument(content)


def _find(value: Any) -> Content | None:
    return _content_of(value) if type(value) in _HANDLES else holding(value)


def _content_of(handle: Any) -> Content:
    content: Content = handle.content if type(handle) is Argument else handle.content()
    return content


_HANDLES = frozenset((Shared, Argument))
_sharing.use(_bind, _find)
