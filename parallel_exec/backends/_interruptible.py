"""Whether an exception may be raised just now in what a call is at: in the user's code, and not in ours beneath that.

    the user's code                                   may be
    the user's code ─► ours, which waits              may be: it is made for Ctrl-C to come there
    the user's code ─► ours, at work                  may not: it would be torn apart, and may have taken locks
    the user's code ─► ours ─► the user's             may not: a callback's exception is logged, another task's is that task's
    the user's code ─► an import                      may not: torn apart, importlib may keep its lock for all imports for good

Imports the standard library alone, as worker processes need it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

_PACKAGE = __name__.partition(".")[0]
_WAITS = frozenset(
    (
        (f"{_PACKAGE}.future", "_park"),
        (f"{_PACKAGE}.future", "_park_until"),
        (f"{_PACKAGE}._sync.parking", "wait"),
    )
)
_STDLIBS = "concurrent.futures._base", ("_invoke_callbacks", "add_done_callback")  # what does the same for our futures
_IMPORTS = frozenset(  # importlib's core, by its names before and after `importlib` was imported
    ("_frozen_importlib", "_frozen_importlib_external", "importlib._bootstrap", "importlib._bootstrap_external")
)


def is_interruptible(frame: FrameType | None, call: int) -> bool:
    """Return whether an exception may be raised in a thread.

    Args:
        frame: where the thread is.
        call: the `id` of the frame of ours that has called the user's function. If that is not found, it may not.
    """
    waits = frame is not None and _place(frame) in _WAITS
    has_left_ours = False
    while frame is not None and id(frame) != call:
        if not _is_ours(frame):
            has_left_ours = True
        elif has_left_ours or not waits:
            return False
        frame = frame.f_back
    return frame is not None


def _is_ours(frame: FrameType) -> bool:
    module, name = _place(frame)
    if module in _IMPORTS:
        return True
    return module.partition(".")[0] == _PACKAGE or (module == _STDLIBS[0] and name in _STDLIBS[1])


def _place(frame: FrameType) -> tuple[str, str]:
    return str(frame.f_globals.get("__name__", "")), frame.f_code.co_name
