"""What exactly of a call or a result cannot be pickled, and what to do about it; imports the standard library only.

    parts of a call ──► the first that fails ──► its children, of which the first that fails ──► ... ──► the culprit

Pickle says "cannot pickle '_thread.lock' object" and leaves its user to find out whose lock that is: of a `partial`, of an
object in a dict in a list. So what failed is taken apart as pickle would take it apart, and each piece is tried by itself.
Only a failure costs anything, and not more than `_TESTS` tries or `_SECONDS`. What a piece raises while it is taken apart
makes it the culprit. (So does `isinstance`, for one, of a proxy whose object is gone.)
"""

from __future__ import annotations

import copyreg
from collections import deque
from functools import partial
from types import FunctionType, MethodType

from parallel_exec._names import describe_failure, type_name
from parallel_exec._sync.clock import time
from parallel_exec._sync.weak import apart
from parallel_exec.backends import _pickling

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator, NamedTuple
else:
    from parallel_exec._typing import NamedTuple

_TESTS = 1000  # pieces that are tried; a guess: a culprit behind more of them is named by what it is in
_SECONDS = 1.0  # for all of them, as the pieces may be large
_DEPTH = 20  # steps from a part to its culprit that are told
WHOLE = "the call"  # what is named if no part of it is at fault
_WITHOUT_PARTS = (str, bytes, bytearray, int, float, complex, bool, type(None))

_CLOUDPICKLE = 'or install cloudpickle for lambdas and closures: pip install "parallel_exec[cloudpickle]"'
_PLAIN_REMEDY = "Use a function of a module, and arguments that pickle"
_PER_WORKER = "once in each worker, by ProcessBackend(initializer=...), or in the task"
_REMEDIES = {
    "_thread.lock": f"A lock is of one process: make it {_PER_WORKER}; one that processes share is multiprocessing's",
    "_thread._local": f"What belongs to a thread stays with it: make it {_PER_WORKER}",
    "_io._IOBase": "An open file stays with its process: pass its path, and open it in the task",
    "socket": f"A connection stays with its process: pass its address, and connect {_PER_WORKER}",
    "sqlite3.Connection": f"A connection stays with its process: pass its address, and connect {_PER_WORKER}",
    "generator": "A generator stays with its process: pass a list of what it yields",
    "coroutine": "A coroutine stays with its loop: pass the function that makes it",
    "module": "Import the module in the task",
    "memoryview": "Pass bytes(...) of it",
    "weakref.ReferenceType": "Pass what it refers to",
    "concurrent.futures._base.Future": "Pass its result()",
    "threading.Thread": "A thread stays with its process: start it in the task",
}
_SAME_REMEDY = {
    "_thread.RLock": "_thread.lock",
    "_queue.SimpleQueue": "_thread.lock",
    "_socket.socket": "socket",
    "sqlite3.Cursor": "sqlite3.Connection",
    "ssl.SSLContext": "sqlite3.Connection",
    "_ssl._SSLContext": "sqlite3.Connection",
    "async_generator": "generator",
}


class Culprit(NamedTuple):
    """What cannot be pickled.

    Attributes:
        what: the part of the call that it is in.
        why: the way to it inside of that part, and what pickle says of it.
        hint: what to do.
    """

    what: str
    why: str
    hint: str


def parts_of(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what a call is made of, named for `find_culprit`; what a `partial` binds are arguments like others."""
    while type(fn) is partial:
        fn, args, kwargs = fn.func, (*fn.args, *args), {**fn.keywords, **kwargs}
    parts = {"the function": fn, **{f"argument {n}": value for n, value in enumerate(args)}}
    parts.update({f"argument {name!r}": value for name, value in kwargs.items()})
    return parts


def find_culprit(parts: dict[str, Any]) -> Culprit:
    """Return which of several named parts cannot be pickled, and what in it is why."""
    for name, part in parts.items():
        error = _failure(part)
        if error is not None:
            way, leaf, error = _descend(part, error)
            return Culprit(f"{name} ({_describe(part)})", way + describe_failure(error), _hint(leaf, error))
    return Culprit(WHOLE, "its parts can be pickled each, but not together", _PLAIN_REMEDY)


def _describe(part: Any) -> str:
    """Return a function's qualified name; of anything else the type and the value, in short."""
    return str(part.__qualname__) if type(part) is FunctionType else f"{type(part).__name__} {_short(part)}"


def unsendable(value: Any, error: BaseException) -> tuple[str, str]:
    """Return what a result that cannot be pickled is, and why it cannot; for the error that its task ends with."""
    what = f"the result, of type {type(value).__module__}.{type(value).__qualname__},"
    if isinstance(error, MemoryError) or not isinstance(error, Exception):
        return what, describe_failure(error)  # a closer look must not raise it again
    way = ""
    if _failure(value) is not None:
        way, _, error = _descend(value, error)
    return what, f"{way}{describe_failure(error)}. Return plain data, or write the rest to a file and return its path"


def _failure(value: Any) -> BaseException | None:
    """Return what pickling a value raises; None if it can be pickled. Its frames lead to nobody who keeps it."""
    return apart(_try, value)


def _try(value: Any) -> BaseException | None:
    try:
        _pickling.dumps(value, inside=True)
    except Exception as error:
        return error
    return None


def _descend(value: Any, error: BaseException) -> tuple[str, Any, BaseException]:
    """Return the way to the innermost piece of `value` that cannot be pickled, that piece, and what it raises."""
    until = time.monotonic() + _SECONDS
    way: list[str] = []
    seen = [value]  # kept, so that no other object has one's id
    tests = 0
    while len(way) < _DEPTH and not isinstance(error, (RecursionError, MemoryError)) and not _is_inherited(error):
        for label, child in _children(value):
            if issubclass(type(child), _WITHOUT_PARTS) or any(child is other for other in seen):
                continue
            tests += 1
            if tests > _TESTS or time.monotonic() > until:
                break
            failed = _failure(child)
            if failed is not None:
                way.append(f"{label} ({type_name(type(child))})")
                value, error = child, failed
                seen.append(child)
                break
        else:
            break
        if tests > _TESTS or time.monotonic() > until:
            break
    return (" → ".join(way) + ": " if way else ""), value, error


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what pickle would pickle for the sake of a value, each with a name; it raises nothing that the value raises."""
    try:
        yield from _pieces(value)
    except Exception:  # it cannot be taken apart, so it is the culprit
        return


def _pieces(value: Any) -> Iterator[tuple[str, Any]]:
    kind = type(value)
    if kind is partial:
        parts = parts_of(value, (), {})
        yield from parts.items()
    elif kind is MethodType:
        yield "the object it is bound to", value.__self__
    elif kind is FunctionType:
        yield from _used_by(value)
    else:
        if isinstance(value, dict):
            for key, item in value.items():
                yield f"key {_short(key)}", key
                yield f"[{_short(key)}]", item
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            for number, item in enumerate(value):
                yield f"[{number}]", item
        if kind not in (dict, list, tuple, set, frozenset, deque) and not isinstance(value, type):
            yield from _reduced(value)


def _used_by(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what goes with a function that travels by value, which is cloudpickle's way."""
    if _pickling.find_cloudpickle() is None:
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            yield f"variable {name!r}, which it uses,", cell.cell_contents
        except ValueError:  # not set yet
            continue
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f"global {name!r}, which it uses,", function.__globals__[name]
    for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield "a default value", default


def _reduced(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object is reduced to, as `pickle` does it."""
    reduce = copyreg.dispatch_table.get(type(value))
    reduced: Any = value.__reduce_ex__(5) if reduce is None else reduce(value)
    if isinstance(reduced, str):  # a name
        return
    function, args, state, *items = (*reduced, None, None, None)[:5]
    if args and function is copyreg.__newobj__:  # type: ignore[attr-defined]
        yield "its class", args[0]
    for number, argument in enumerate(args or ()):
        yield f"argument {number} of its making", argument
    yield from _in_state(state)
    for kind in items:
        for number, item in enumerate(kind or ()):
            yield f"item {number}", item


def _in_state(state: Any) -> Iterator[tuple[str, Any]]:
    for attributes in state if isinstance(state, tuple) and len(state) == 2 else (state,):
        if isinstance(attributes, dict):
            for name, attribute in attributes.items():
                yield f"attribute {name!r}", attribute
        elif attributes is not None:
            yield "its state", attributes


def _is_inherited(error: BaseException) -> bool:
    """Return whether it is how `multiprocessing` refuses its locks, queues and shared memory."""
    return isinstance(error, RuntimeError) and "through inheritance" in str(error)


def _hint(leaf: Any, error: BaseException) -> str:
    """Return what to do about a culprit."""
    if _is_inherited(error):
        return "Give it to each worker as it is started: ProcessBackend(initializer=..., initargs=(it,))"
    for base in type(leaf).__mro__:
        name = type_name(base)
        if remedy := _REMEDIES.get(_SAME_REMEDY.get(name, name)):
            return remedy
    if issubclass(type(leaf), (FunctionType, type)) and _pickling.find_cloudpickle() is None:
        return f"{_PLAIN_REMEDY}; {_CLOUDPICKLE}"
    return _PLAIN_REMEDY


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:
        return "(whose repr fails)"
    return text if len(text) <= 80 else text[:77] + "..."
