"""`Shared`: a handle to an object that many calls get, and that travels once.

    executor.share(value) ──► Shared ──► submit(fn, shared) ── `bind` ──► among the call's arguments: what stands for it
                                                                            │ this process: the object
                                                                            │ elsewhere: `Argument`, which is pickled as its
                                                                            ▼ number, and arrives as the object
                                                                         fn(value)

Guarantees:
    The callee gets the object itself where the handle is an argument: by position, by name, of a `partial`, or an item of
    `map`. Inside of a list, say, the handle stays a handle, in every back end, and its `value` is the object.
    A task that was added before `close` has what it needs until it has ended. (Of a handle inside of a list nobody knows, but
    for who pickles the list as the task is added.)
"""

from __future__ import annotations

from copy import copy
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

    def __copy__(self) -> Self:
        return type(self)(self.content())

    def __deepcopy__(self, memo: object) -> Self:
        return self.__copy__()

    def __repr__(self) -> str:
        content = self._content
        if content is None:
            return "Shared(closed)"
        size = content.size()
        return f"Shared({content.type_name})" if size is None else f"Shared({content.type_name}, {size} bytes)"


def _arrived(number: int, address: str, main: str) -> Shared[Any]:
    return Shared(arrive(number, address, main))


def share(value: Any, store: Callable[[Content], object]) -> Shared[Any]:
    """Return a handle to an object, which `store` puts where an executor's workers find it; of a handle, another one."""
    if type(value) is Shared:
        return copy(value)
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
    return _replace(fn, args, kwargs, Content.value if here else Argument)


def _show(
    fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> tuple[Any, tuple[Any, ...], dict[str, Any] | None] | None:
    """Return a call as the user has given it, with handles in place of what stands for them; None if there are none."""
    return _replace(fn, args, kwargs, Shared)


def _replace(
    fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None, make: Callable[[Content], Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any] | None] | None:
    replaced = _replace_in_partial(fn, make) if isinstance(fn, partial) else fn
    new_args = _replace_all(args, make)
    new_kwargs = kwargs if kwargs is None else _replace_named(kwargs, make)
    if replaced is fn and new_args is args and new_kwargs is kwargs:
        return None
    return replaced, tuple(new_args), new_kwargs


def _replace_all(values: Any, make: Callable[[Content], Any]) -> Any:
    """Return a list or tuple of arguments likewise; itself if there is no handle in it."""
    if _HANDLES.isdisjoint(map(type, values)):
        return values
    return [make(_content_of(value)) if type(value) in _HANDLES else value for value in values]


def _replace_named(kwargs: dict[str, Any], make: Callable[[Content], Any]) -> dict[str, Any]:
    values = list(kwargs.values())
    replaced = _replace_all(values, make)
    return kwargs if replaced is values else dict(zip(kwargs, replaced))


def _replace_in_partial(fn: partial[Any], make: Callable[[Content], Any]) -> partial[Any]:
    if type(fn) is not partial:  # one of a class of the user's
        return fn
    args, keywords = _replace_all(fn.args, make), _replace_named(fn.keywords, make)
    if args is fn.args and keywords is fn.keywords:
        return fn
    made = partial(fn.func, *args, **keywords)
    made.__dict__.update(fn.__dict__)
    return made


def _find(value: Any) -> Content | None:
    if type(value) is Content:
        return value
    return _content_of(value) if type(value) in _HANDLES else holding(value)


def _content_of(handle: Any) -> Content:
    content: Content = handle.content if type(handle) is Argument else handle.content()
    return content


_HANDLES = frozenset((Shared, Argument))
_sharing.use(_bind, _find, _show)
