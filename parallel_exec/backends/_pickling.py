"""Objects to bytes and back, the same in the parent and in its workers; imports the standard library only.

Guarantees:
    What cannot be pickled is named. `cloudpickle` is tried where pickle fails, if it is installed. Large buffers are kept
    out of the bytes where shared memory is to be had; where not, that is logged once.
"""

from __future__ import annotations

import itertools
import pickle
import sys
from functools import lru_cache, partial
from types import BuiltinFunctionType, FunctionType, ModuleType

from parallel_exec.backends import _reducers
from parallel_exec.backends.process import segments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NamedTuple, Sequence
else:
    from parallel_exec._typing import NamedTuple

_FAILURES = (pickle.PicklingError, AttributeError, TypeError)
_LIGHT = 1 << 14  # bytes of a pickle; a guess: some 20 µs of work on both sides
_warned: list[str] = []  # whether the lack of shared memory was logged; a list, as module state that only grows


class Pickled(NamedTuple):
    """An object on its way.

    Attributes:
        data: bytes.
        segment: what has its large buffers, or all of it, if it is large; or None.
        names_main: whether something of the main module may be in it; None: ask `may_name_main`, which looks.
        others: descriptors that go with it (`_reducers.py`).
        apart: whether it is a row of items each of which can be unpickled without the others.
        kept: the contents that it refers to (`_contents.py`), which must stay as long as it may be sent.
        item: where in it the one item of a `map` is that is to be called: low, high, place of the first, the map's id; or None.
    """

    data: bytes
    segment: segments.Segment | None
    names_main: bool | None = None
    others: Sequence[segments.Segment] = ()
    item: tuple[int, int, int, str] | None = None
    apart: bool = False
    kept: Sequence[Any] = ()

    def may_name_main(self) -> bool:
        """Return whether something of the main module may be in it; also of that of a worker of `multiprocessing`."""
        return b"main__" in self.data if self.names_main is None else self.names_main

    def of_item(self, index: int, first: int, map_id: str) -> Pickled:
        """Return the same for one item of a chunk."""
        return self._replace(item=(index, index + 1, first, map_id))

    def is_light(self) -> bool:
        """Return whether it may well be sent several times over, and unpickled each time, rather than once."""
        return not self.has_descriptors() and len(self.data) <= _LIGHT

    def has_descriptors(self) -> bool:
        """Return whether descriptors go with it."""
        return self.segment is not None or bool(self.others)

    def ancillary(self) -> int:
        """Return what its receiver must know of them."""
        return segments.ancillary(self.segment, self.others)


def dumps(value: Any, by_value: bool = False, inside: bool = False) -> Pickled:
    """Pickle, by cloudpickle if pickle fails or `by_value` says so.

    With `inside`, all is in the bytes, however large; for descriptors to go along somebody must `_reducers.carry` them.

    Raises:
        Exception: neither can; the error is pickle's.
    """
    if not by_value and _reducers.are_plain((value,)):
        data = pickle.dumps(value, 5)
        is_small = len(data) < segments.THRESHOLD
        return Pickled(data, None) if is_small else _dumps(value, None, inside)
    try:
        return _dumps(value, find_cloudpickle() if by_value else None, inside)
    except _FAILURES:
        cloudpickle = find_cloudpickle()
        if cloudpickle is None or by_value:
            raise
        return _dumps(value, cloudpickle, inside)


def _dumps(value: Any, cloudpickle: Any, inside: bool) -> Pickled:
    """Pickle by pickle, or by cloudpickle; once, so that a `__reduce__` is called once, unless there is no shared memory."""
    kind = pickle.Pickler if cloudpickle is None else cloudpickle.Pickler
    others = _reducers.Carried()
    large: list[memoryview] = []

    def make(buffer_callback: Callable[[pickle.PickleBuffer], object] | None) -> bytes:
        """Make the bytes."""
        if inside:
            return _reducers.dumps(value, buffer_callback, kind)
        others.clear()
        return _reducers.dumps_along(value, others, buffer_callback, kind)

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        """Say whether a buffer is to go with the rest."""
        view = buffer.raw()
        if view.nbytes < segments.THRESHOLD or segments.is_full():
            return True
        large.append(view)
        return False

    data = make(None if inside else keep_inside)
    whole = len(data) >= segments.THRESHOLD and not inside and not segments.is_full()
    if not large and not whole:
        return Pickled(data, None, None, others or ())
    names_main = b"main__" in data
    try:
        segment, sizes = segments.store([memoryview(data), *large] if whole else large)
    except OSError as error:
        if not _warned:
            _warned.append(str(error))
            import logging  # not for nothing, in a worker

            logging.getLogger("parallel_exec").warning(
                "no shared memory for large buffers (%s): they go through the pipe", str(error)
            )
        return Pickled(make(None) if large else data, None, names_main, others or ())
    return Pickled(sizes if whole else sizes + data, segment, names_main, others or ())


def dumps_apart(value: Any, by_value: bool = False) -> tuple[bytes, list[memoryview]]:
    """Pickle as `dumps` does; returns all buffers beside the bytes, however small, without a copy. No descriptors go along."""
    buffers: list[memoryview] = []

    def make(kind: Any) -> bytes:
        buffers.clear()
        return _reducers.dumps(value, lambda buffer: buffers.append(buffer.raw()), kind)

    cloudpickle = find_cloudpickle() if by_value else None
    try:
        return make(pickle.Pickler if cloudpickle is None else cloudpickle.Pickler), buffers
    except _FAILURES:
        cloudpickle = find_cloudpickle()
        if cloudpickle is None or by_value:
            raise
        return make(cloudpickle.Pickler), buffers


def dumps_call(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pickled:
    """Pickle a call, as `(function, (args, kwargs))`; else as `dumps`.

    Most calls are of a function of a module with plain arguments. Of what these are no reducer is asked, so that the
    standard pickler does, which costs a third; and a function of Python's is pickled once.
    """
    kind: type = type(fn)
    if kind is partial and not args and _reducers.are_plain(fn.args) and not fn.keywords:
        # A `Task`'s. (What it would do; no placeholder is among them, as that is not plain. A row of items is an argument.)
        fn, args = fn.func, fn.args
        kind = type(fn)
    has_name = kind is FunctionType or (kind is BuiltinFunctionType and type(fn.__self__) is ModuleType)
    if has_name and _reducers.are_plain(args) and (not kwargs or _reducers.are_plain(kwargs.values())):
        module, name = fn.__module__, fn.__qualname__
        try:
            if kind is FunctionType and getattr(sys.modules.get(module), name, None) is fn:
                rest = pickle.dumps((args, kwargs), 5)
                data = b"".join((_head(module, name), rest[_PROTO:-1], _TAIL))
            else:
                data = pickle.dumps((fn, (args, kwargs)), 5)
        except _FAILURES:  # it is not found by its name, or not there
            return dumps((fn, (args, kwargs)))
        if len(data) < segments.THRESHOLD:
            names_main = "main__" in module if type(module) is str else None  # nothing else in it can
            return _make(Pickled, (data, None, names_main, (), None, False, ()))  # type: ignore[no-any-return]
    return dumps((fn, (args, kwargs)))


_make: Any = tuple.__new__  # half the cost of `Pickled(...)`
_PROTO = 2  # bytes that a pickle begins with: its protocol
_TAIL = pickle.TUPLE2 + pickle.STOP


@lru_cache
def _head(module: str, name: str) -> bytes:
    """Return the beginning of a pickle: the function of this name. Not in the pickle's memo, so that any rest may follow."""
    return pickle.PROTO + b"\x05" + _text(module) + _text(name) + pickle.STACK_GLOBAL


def _text(text: str) -> bytes:
    data = text.encode(errors="surrogatepass")
    return pickle.BINUNICODE + len(data).to_bytes(4, "little") + data


def dumps_row(call: Pickled, columns: list[list[Any]]) -> Pickled:
    """Pickle calls of one function as `(function, ((columns,), {}))`, without running user code.

    Args:
        call: one of them without its arguments.
        columns: for each argument a list, with what has no reducers for each call.
    """
    data = pickle.dumps(_Row(_load_row, call.data, columns), 5)
    return Pickled(data, None, call.may_name_main(), kept=call.kept)


def dumps_pickled(call: Pickled, payloads: list[Pickled]) -> Pickled:
    """Do as `dumps_row`, with pickled calls of another function that have the arguments: each is unpickled when it is needed."""
    row = _Row(_load_pickled, call.data, [payload.data for payload in payloads])
    names_main = call.may_name_main() or any(payload.may_name_main() for payload in payloads)
    kept = [*call.kept, *itertools.chain.from_iterable(payload.kept for payload in payloads)]
    return Pickled(pickle.dumps(row, 5), None, names_main, apart=True, kept=kept)


class _Row:
    """What is pickled as a row: `load(*args)`."""

    def __init__(self, load: Callable[..., Any], *args: Any) -> None:
        self._reduced = load, args

    def __reduce__(self) -> Any:
        return self._reduced


def _load_row(call: bytes, columns: list[list[Any]]) -> Any:
    """Return what a row stands for."""
    fn, (args, _) = pickle.loads(call)  # of a partial: with those that `dumps_call` has found in it
    return partial(fn, *args) if args else fn, ((columns,), {})


def _load_pickled(call: bytes, payloads: list[bytes]) -> Any:
    """Return what a row of pickled items stands for: these stand in the place of the columns."""
    return _load_row(call, PickledItems(payloads))  # type: ignore[arg-type]


class PickledItems:
    """Items of a row, each of them pickled by itself."""

    def __init__(self, payloads: list[bytes]) -> None:
        self._payloads = payloads

    def columns(self, low: int, high: int) -> list[list[Any]]:
        """Return columns with items at their indices in this range; there is nothing at those before."""
        items = [pickle.loads(payload)[1][0] for payload in self._payloads[low:high]]
        return [[None] * low + list(column) for column in zip(*items)]


def find_cloudpickle() -> Any:
    """Return the module, or None if it is not installed."""
    try:
        import cloudpickle
    except ImportError:
        return None
    return cloudpickle


def loads(data: segments.Data, received: segments.Received | None = None) -> Any:
    """Undo `dumps`; `received` are the descriptors that came with the bytes, if any, and stays the caller's."""
    pickled, buffers = unwrap(data, received)
    return unpickle(pickled, buffers, received)


def unpickle(pickled: segments.Data, buffers: list[memoryview], received: segments.Received | None) -> Any:
    """Undo the pickle itself."""
    if received is None or not received.others:
        return pickle.loads(pickled, buffers=buffers)
    with _reducers.deliver(received.others):
        return pickle.loads(pickled, buffers=buffers)


def unwrap(data: segments.Data, received: segments.Received | None) -> tuple[segments.Data, list[memoryview]]:
    """Return the pickle itself, and the buffers that `pickle.loads` needs for it."""
    if received is None or received.segment is None:
        return data, []
    buffers, rest = segments.load(received.segment, data)
    return (rest, buffers) if rest else (buffers[0], buffers[1:])  # nothing left: it is in the segment as well
