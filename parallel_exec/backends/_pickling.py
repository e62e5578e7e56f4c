"""Objects to bytes and back, the same in the parent and in its workers; imports the standard library only.

Guarantees:
    What cannot be pickled is named. `cloudpickle` is tried where pickle fails, if it is installed. Large buffers are kept
    out of the bytes where shared memory is to be had; where not, that is logged once.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from types import FunctionType
from typing import Any, NamedTuple

from parallel_exec.backends import _memory

_FAILURES = (pickle.PicklingError, AttributeError, TypeError)
_HEADER = 2  # bytes of a pickle that say its protocol; its last is STOP
_FRAME = 9  # bytes that say how long a pickle is
_TUPLE2_STOP = pickle.TUPLE2 + pickle.STOP
_LIGHT = 1 << 14  # bytes of a pickle; a guess: some 20 µs of work on both sides
_warned: list[str] = []  # whether the lack of shared memory was logged; a list, as module state that only grows


class Pickled(NamedTuple):
    """An object on its way: bytes, and the segment with its large buffers, or with all of it, if it is large."""

    data: bytes
    segment: _memory.Segment | None
    names_main: bool = False  # whether something of the main module may be in it

    def is_light(self) -> bool:
        """Return whether it may well be sent several times over, and unpickled each time, rather than once."""
        return self.segment is None and len(self.data) <= _LIGHT


def dumps(value: Any, by_value: bool = False, inside: bool = False) -> Pickled:
    """Pickle, by cloudpickle if pickle fails or `by_value` says so; with `inside`, without a segment, however large.

    Raises:
        Exception: neither can; the error is pickle's.
    """
    pickler = pickle.dumps
    if by_value:
        pickler = find_cloudpickle().dumps
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = pickler(value, 5, buffer_callback=buffers.append)
    except _FAILURES:
        cloudpickle = find_cloudpickle()
        if cloudpickle is None or by_value:
            raise
        pickler = cloudpickle.dumps
        buffers.clear()
        data = pickler(value, 5, buffer_callback=buffers.append)
    if not buffers and len(data) < _memory.THRESHOLD:
        return Pickled(data, None, b"__main__" in data)
    return _dumps_large(pickler, value, data, buffers, inside)


class CallPickler:
    """Pickles calls, as `(function, (args, kwargs))`. Thread-safe.

    Looking a function up by its name is most of what the pickle of a tiny call costs, and the same one is mostly called many
    times in a row: so what it comes to is kept. A pickle is a program for a stack machine (`pickletools` lists what there
    is): if one puts the function on the stack, and another one the arguments, the first, the second and TUPLE2 are the call.
    """

    def __init__(self) -> None:
        self._latest: tuple[Any, bytes] = (None, b"")  # a function, and what puts it on the stack; replaced in one step

    def dumps(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pickled:
        """Do as the function `dumps` does."""
        latest, put_function = self._latest
        if fn is not latest:
            put_function = self._learn(fn)
        if put_function:
            buffers: list[pickle.PickleBuffer] = []
            try:
                rest = pickle.dumps((args, kwargs), 5, buffer_callback=buffers.append)
            except _FAILURES:
                rest = b""  # it is done the other way, or fails there
            if rest and not buffers and len(rest) < _memory.THRESHOLD:
                data = put_function + rest[_HEADER:-1] + _TUPLE2_STOP
                return Pickled(data, None, b"__main__" in data)
        return dumps((fn, (args, kwargs)))

    def _learn(self, fn: Any) -> bytes:
        """Return what puts a function on the stack; b"" if it is not found by its name."""
        if type(fn) is not FunctionType or "<" in fn.__qualname__:
            return b""
        program = io.BytesIO()
        pickler = pickle.Pickler(program, 5)
        pickler.fast = True  # no memo, as its numbers would be in the way of the arguments'
        with contextlib.suppress(Exception):
            pickler.dump(fn)
            whole = program.getvalue()
            if pickle.loads(whole) is fn:
                body = whole[_HEADER:-1]
                put_function = whole[:_HEADER] + (body[_FRAME:] if body[:1] == pickle.FRAME else body)
                self._latest = (fn, put_function)
                return put_function
        return b""


def find_cloudpickle() -> Any:
    """Return the module, or None if it is not installed."""
    try:
        import cloudpickle
    except ImportError:
        return None
    return cloudpickle


def _dumps_large(pickler: Any, value: Any, data: bytes, buffers: list[pickle.PickleBuffer], inside: bool) -> Pickled:
    """Put what is large into a segment; pickles again, as small buffers go with the rest, only if there are any."""
    has_room = not inside and not _memory.is_full()
    large: list[memoryview] = []

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        """Say whether a buffer is to go with the rest."""
        view = buffer.raw()
        if not has_room or view.nbytes < _memory.THRESHOLD:
            return True
        large.append(view)
        return False

    if any(keep_inside(buffer) for buffer in buffers):
        large.clear()
        data = pickler(value, 5, buffer_callback=keep_inside)
    names_main = b"__main__" in data
    whole = has_room and len(data) >= _memory.THRESHOLD
    if not large and not whole:
        return Pickled(data, None, names_main)
    try:
        segment, sizes = _memory.store([memoryview(data), *large] if whole else large)
    except OSError as error:
        if not _warned:
            _warned.append(str(error))
            _memory.logger.warning("no shared memory for large buffers (%s): they go through the pipe", str(error))
        return Pickled(pickler(value, protocol=5) if large else data, None, names_main)
    return Pickled(sizes if whole else sizes + data, segment, names_main)


def loads(data: _memory.Data, fd: int | None = None) -> Any:
    """Undo `dumps`; `fd` is the descriptor of the segment, if there is one, and stays the caller's."""
    pickled, buffers = unwrap(data, fd)
    return pickle.loads(pickled, buffers=buffers)


def unwrap(data: _memory.Data, fd: int | None) -> tuple[_memory.Data, list[memoryview]]:
    """Return the pickle itself, and the buffers that `pickle.loads` needs for it."""
    if fd is None:
        return data, []
    buffers, rest = _memory.load(fd, data)
    return (rest, buffers) if rest else (buffers[0], buffers[1:])  # nothing left: it is in the segment as well


def describe_failure(error: BaseException) -> str:
    """Return an exception's type and message on one line."""
    try:
        message = " ".join(str(error).split())
    except BaseException:
        message = "(whose str fails)"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
