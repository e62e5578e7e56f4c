"""What a task is made of on its way to a worker, and what becomes of the frame that comes back. The parent's side.

Guarantees:
    A call is pickled once, in the caller, when it is added: what happens to the arguments afterwards changes nothing, and
    a retry sends the same bytes. Nothing here fails but with one of our errors, which names what cannot travel.
"""

from __future__ import annotations

import functools
import io
import pickle
import re
import sys

from parallel_exec._outcome import Failure, Success
from parallel_exec.backends import _exceptions, _pickling, _reducers
from parallel_exec.backends._outcomes import RETURNED, Named, decode
from parallel_exec.backends.process import wire
from parallel_exec.errors import ParallelExecError, TaskSerializationError, WorkerStartError, start_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NamedTuple, Sequence

    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends._pickling import Pickled
    from parallel_exec.backends.process.segments import Segment
else:
    from parallel_exec._typing import NamedTuple


# `if __name__ == "__main__":` at the margin, however it is written, or the like of `__name__ == "__main__" and main()`.
_GUARD = rb"^(if\b.*__name__|[^\s#\"'].*__name__\s*[=!]=|__name__\s*==)"


def by_value(job: AnyJob, pickled: Pickled) -> Pickled:
    """Return a pickled call that names the main module so that a worker can load it: by value, if it cannot import that.

    Raises:
        TaskSerializationError: a part of it cannot be pickled by value.
        WorkerStartError: it lives in a main script that workers cannot import.
    """
    reason = why_not_importable()
    if not reason:
        return pickled
    fn, args, kwargs = job.fn, job.args, job.kwargs or {}
    try:
        if _pickling.find_cloudpickle() is not None:
            return _pickling.dumps((fn, (args, kwargs)), by_value=True)
        if not _Finder.finds_main((fn, args, kwargs)):
            return pickled  # it only says the name
    except ParallelExecError:
        raise
    except Exception as error:
        raise unpicklable(job) from _exceptions.detached(error)
    raise start_error("process", f"task {job.id!r} needs the main module, {reason}")


def unpicklable(job: AnyJob) -> TaskSerializationError:
    """Return the error of a job whose call could not be pickled: it names the argument, or the function, that cannot be."""
    from parallel_exec.backends._culprit import find_culprit, parts_of  # only a failure needs it

    with _reducers.carry(_reducers.Carried()):
        what, why, hint = find_culprit(parts_of(job.fn, job.args, job.kwargs or {}))
    return TaskSerializationError(f"{what} of task {job.id!r}", "to the worker", why, hint)


class PickledContent(NamedTuple):
    """Something that is shared, pickled: the bytes, its buffers, and whether the bytes may name the main module."""

    data: bytes
    buffers: list[memoryview]
    names_main: bool


def dumps_shared(value: Any, *, has_main: bool | None, by_value: bool = False) -> PickledContent:
    """Pickle what is shared; by value, where it is of a main module that workers cannot import, or `by_value` says so.

    `has_main`: whether it is for workers that have the main module; None: that is somebody else's affair.

    Raises:
        TaskSerializationError: a part of it cannot be pickled.
        WorkerStartError: it lives in a main script that workers cannot import.
    """
    try:
        data, buffers = _pickling.dumps_apart(value)
        names_main = b"main__" in data
        if names_main and not has_main and (reason := "which goes by value" if by_value else why_not_importable()):
            if _pickling.find_cloudpickle() is not None:
                data, buffers = _pickling.dumps_apart(value, by_value=True)
                names_main = b"main__" in data
            elif has_main is not None and _Finder.finds_main(value):
                raise start_error("process", f"what is shared needs the main module, {reason}")
    except ParallelExecError:
        raise
    except Exception as error:
        from parallel_exec.backends._culprit import find_culprit  # only a failure needs it

        what, why, hint = find_culprit({"what is shared": value})
        raise TaskSerializationError(what, "to the workers", why, hint) from _exceptions.detached(error)
    return PickledContent(data, buffers, names_main)


class Initializer(NamedTuple):
    """What each worker calls first, and last.

    Attributes:
        pickled: the function (None: there is none), its arguments if `initargs` is None, and the finalizer or None.
        initargs: arguments that only travel to a process while it is started, such as locks of `multiprocessing`.
        others: descriptors that go with it.
        kept: what is shared and among it.
        finalizes: whether there is a finalizer.
    """

    pickled: bytes
    initargs: tuple[Any, ...] | None
    others: Sequence[Segment] = ()
    kept: Sequence[Any] = ()
    finalizes: bool = False


def pack_initializer(
    initializer: Callable[..., object] | None,
    initargs: Sequence[Any],
    finalizer: Callable[[], object] | None,
    *,
    has_main: bool,
) -> Initializer | None:
    """Pickle an initializer and a finalizer; returns None if there is neither.

    `has_main`: for workers that need not import the main module, as they have it.

    Raises:
        TaskSerializationError: a part of it cannot be pickled.
        WorkerStartError: it lives in a main script that workers cannot import.
    """
    if initializer is None and finalizer is None:
        return None
    inherited: tuple[Any, ...] | None = None
    whole: Any = (initializer, tuple(initargs), finalizer)
    try:
        try:
            pickled = _dumps_inside(whole)
        except RuntimeError as error:
            if "through inheritance" not in str(error):  # which is how `multiprocessing` refuses
                raise
            inherited = whole[1]
            whole = (initializer, (), finalizer)
            pickled = _dumps_inside(whole)
        if pickled.may_name_main() and not has_main and (reason := why_not_importable()):
            if _pickling.find_cloudpickle() is None:
                what = "finalizer" if initializer is None else "initializer"
                raise start_error("process", f"the {what} needs the main module, {reason}")
            pickled = _dumps_inside(whole, by_value=True)
    except WorkerStartError:
        raise
    except Exception as error:
        from parallel_exec.backends._culprit import find_culprit  # only a failure needs it

        with _reducers.carry(_reducers.Carried()):
            what, why, hint = find_culprit({"initializer": initializer, "initargs": initargs, "finalizer": finalizer})
        raise TaskSerializationError(what, "to the workers", why, hint) from error
    return Initializer(pickled.data, inherited, pickled.others, pickled.kept, finalizer is not None)


def _dumps_inside(whole: Any, by_value: bool = False) -> Pickled:
    """Pickle what goes to a worker with its start, without a segment."""
    others = _reducers.Carried()
    with _reducers.carry(others), _reducers.noting() as kept:
        return _pickling.dumps(whole, by_value, inside=True)._replace(others=others, kept=kept)


class _Finder(pickle.Unpickler):
    """Unpickles, and notes whether something of the main module was asked for."""

    found = False

    def find_class(self, module: str, name: str) -> Any:
        """Return what is asked for."""
        self.found = self.found or module == "__main__"
        return super().find_class(module, name)

    @classmethod
    def finds_main(cls, value: Any) -> bool:
        """Return whether the pickle of a value refers to the main module."""
        along = _reducers.Carried()
        finder = cls(io.BytesIO(_reducers.dumps_along(value, along, None)))
        with _reducers.deliver([segment.fd for segment in along]):
            finder.load()
        return finder.found


@functools.lru_cache(maxsize=1)
def why_not_importable() -> str:
    """Say why workers cannot import this program's main module, and what to do; "" if they can."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is None and (path is None or path.startswith("<")):
        return (
            "which workers cannot import: this is an interactive session, or code from standard input or -c. Move the "
            'function into a module, or install cloudpickle: pip install "parallel_exec[cloudpickle]"'
        )
    if str(getattr(getattr(main, "__spec__", None), "name", "")).endswith("__main__"):
        return (
            "which multiprocessing never imports in a child, as it is a package's `__main__`. Move the function into another "
            'module, or install cloudpickle: pip install "parallel_exec[cloudpickle]"'
        )
    try:
        with open(path or "", "rb") as file:
            guarded = re.search(_GUARD, file.read(), re.MULTILINE) is not None
    except OSError:
        return ""  # a zip file, or no source: a worker will find out
    if guarded:
        return ""
    return (
        f"which workers cannot import without running the whole program again: {path} has no guard. Put what starts the "
        'work under `if __name__ == "__main__":`, or install cloudpickle: pip install "parallel_exec[cloudpickle]"'
    )


def values_of(frame: wire.Frame, named: Callable[[int], Named]) -> tuple[list[Any], dict[int, Failure]]:
    """Return what items in a row returned; in the places of those that cannot be rebuilt is None, and why in the second.

    `named` says what has a place in the row.
    """
    if frame.kind == wire.MANY:  # all of it simple
        return pickle.loads(frame.payload), {}
    if frame.kind != wire.EACH:
        return wire.numbers(frame.kind, frame.payload), {}
    values: list[Any] = []
    failures: dict[int, Failure] = {}
    for place, pickled in enumerate(wire.pickles(frame.payload)):
        outcome = decode(RETURNED, pickled, named(place))
        values.append(outcome.value if type(outcome) is Success else None)
        if type(outcome) is Failure:
            failures[place] = outcome
    return values, failures
