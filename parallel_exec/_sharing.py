"""Whether anything was shared in this process: until then no call is looked at for it. Imports nothing of ours.

executor.share ──► shared.py, imported now ──► `bind` is set ──► calls that come in are looked at
"""

from __future__ import annotations

from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

# Takes a call, and whether it is to have the very objects that were shared; returns it with what stands for them among its
# arguments, or None if there are none. Written once, by `shared.py`: module state, as what was shared by one executor may be
# given to another.
bind: Callable[..., Any] | None = None
# Returns the content that a value stands for, or is; None if it is neither.
find: Callable[[Any], Any] | None = None
# Takes a call that `bind` has returned, and returns it with handles in their places, or None.
show: Callable[..., Any] | None = None


def use(binder: Callable[..., Any], finder: Callable[[Any], Any], shower: Callable[..., Any]) -> None:
    """Have calls looked at from now on."""
    global bind, find, show  # the one place that does, once a process
    bind, find, show = binder, finder, shower


def shown(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Callable[[], Any]:
    """Return a call as one callable, with the handles themselves, as they were given."""
    fn, args, kwargs = (show and show(fn, args, kwargs)) or (fn, args, kwargs)
    return partial(fn, *args, **(kwargs or {})) if args or kwargs else fn
