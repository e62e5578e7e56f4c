"""What `multiprocessing` adds to pickle: connections, sockets, and whatever programs register with its `ForkingPickler`.

    reducer ──► reduction.DupFd(fd) ──► a copy of the descriptor, which travels beside the bytes (`segments.py`)
    detach() ◄── what stands for it in the bytes ◄── a copy of its own for each time they are unpickled

`multiprocessing` would have the sender's process serve each descriptor once, from a thread. Our bytes may be sent again, for
a retry or to another worker, or never. So while one of its reducers runs it finds, in the place of the process that is
being started, one of ours to give the descriptor to. Only then: locks and shared memory ask at the same place whether they
may be pickled, and are refused as ever. They are inherited, or come by `initargs`.

Guarantees:
    A descriptor travels as often as the bytes do. The sender's copies are closed with the bytes, the receiver's after they
    were unpickled; what was made of them is the program's.
    What must not leave this machine is refused, where nobody says that descriptors can be carried along.

Imports the standard library only; `multiprocessing` only if it is there.
"""

from __future__ import annotations

import contextlib
import copyreg
import io
import pickle
import sys
import threading
import weakref

from parallel_exec.backends._descriptors import Owner, put_duplicate
from parallel_exec.backends.process import segments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator, Sequence

ATOMS = frozenset((int, float, bool, str, bytes, type(None)))  # what no reducer is asked about
_CONTAINERS = frozenset((tuple, list, dict))
_SMALL = 16  # elements; a guess: for more of them, the other pickler costs little more than to look at each


class Carried(list):  # type: ignore[type-arg]
    """The descriptors, of type `Segment`, that some bytes take along."""

    __slots__ = ("__weakref__",)


class _Noted(list):  # type: ignore[type-arg]
    """What `noting` has noted."""

    __slots__ = ("__weakref__",)


class _Travel(threading.local):
    """What the calling thread is pickling or unpickling.

    Attributes:
        carried: where to put the descriptors that the bytes take along; None: they can take none.
        arrived: those that came with the bytes.
        kept: what must stay as long as the bytes do, for who asks.

    Neither of the two lists is held here: where an exception tears apart who has asked for it, it is gone with that.
    """

    carried: Callable[[], Carried | None] = type(None)  # returns None
    arrived: Sequence[int] = ()
    kept: Callable[[], _Noted | None] = type(None)  # returns None


_travel = _Travel()


def are_plain(values: Iterable[Any]) -> bool:
    """Return whether the standard pickler does for these: most calls and results are of nothing else.

    Told of values without parts, and of small containers of such.
    """
    for value in values:
        kind = type(value)
        if kind in ATOMS:
            continue
        if kind not in _CONTAINERS or len(value) > _SMALL or not ATOMS.issuperset(map(type, value)):
            return False
        if kind is dict and not ATOMS.issuperset(map(type, value.values())):
            return False
    return True


@contextlib.contextmanager
def carry(along: Carried | None) -> Iterator[None]:
    """Have what this thread pickles meanwhile take descriptors along, into the list."""
    before, _travel.carried = _travel.carried, type(None) if along is None else weakref.ref(along)
    try:
        yield
    finally:
        _travel.carried = before


def carried() -> int:
    """Return how many descriptors what this thread pickles has taken along so far."""
    return len(_travel.carried() or ())


@contextlib.contextmanager
def noting() -> Iterator[list[Any]]:
    """Note what the bytes refer to that this thread makes meanwhile: it must stay as long as they do."""
    noted = _Noted()
    before, _travel.kept = _travel.kept, weakref.ref(noted)
    try:
        yield noted
    finally:
        _travel.kept = before


def keep(referred_to: Any) -> None:
    """Say that what this thread pickles refers to something, without taking it along."""
    noted = _travel.kept()
    if noted is not None and referred_to not in noted:
        noted.append(referred_to)


@contextlib.contextmanager
def deliver(arrived: Sequence[int]) -> Iterator[None]:
    """Have what this thread unpickles meanwhile find these descriptors, which stay the caller's."""
    before, _travel.arrived = _travel.arrived, arrived
    try:
        yield
    finally:
        _travel.arrived = before


def dumps(value: Any, buffer_callback: Callable[[Any], Any] | None = None, kind: Any = pickle.Pickler) -> bytes:
    """Pickle with these reducers, by a pickler of a kind: pickle's, or cloudpickle's."""
    file = io.BytesIO()
    _with_reducers(kind)(file, 5, buffer_callback=buffer_callback).dump(value)
    return file.getvalue()


def dumps_along(
    value: Any, along: Carried, buffer_callback: Callable[[Any], Any] | None, kind: Any = pickle.Pickler
) -> bytes:
    """Do as `dumps`, and `carry` descriptors along."""
    before, _travel.carried = _travel.carried, weakref.ref(along)
    try:
        return dumps(value, buffer_callback, kind)
    finally:
        _travel.carried = before


_kinds: dict[Any, tuple[list[Any], list[Any], Any]] = {}  # for each kind: of which reducers it knows, and the pickler


def _with_reducers(kind: Any) -> Any:
    """Return a pickler's class that knows the reducers which are registered by now."""
    reduction: Any = sys.modules.get("multiprocessing.reduction")
    registered = {} if reduction is None else reduction.ForkingPickler._extra_reducers
    known = _kinds.get(kind)
    if known is not None and known[0] == [*registered.values()] and known[1] == [*copyreg.dispatch_table.values()]:
        return known[2]
    own = copyreg.dispatch_table if kind is pickle.Pickler else kind.dispatch_table
    added = {each: _within(reduce) for each, reduce in list(registered.items()) if not _is_needless(reduce)}
    made = type(kind.__name__, (kind,), {"dispatch_table": {**own, **added}})
    _kinds[kind] = [*registered.values()], [*copyreg.dispatch_table.values()], made
    return made


def _is_needless(reduce: Any) -> bool:
    """Return whether it is for methods and partials, which pickle by themselves nowadays, and lose nothing by it."""
    name = getattr(reduce, "__name__", "")
    return getattr(reduce, "__module__", "") == "multiprocessing.reduction" and name != "_reduce_socket"


def _within(reduce: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a reducer that gives descriptors to us."""
    if getattr(reduce, "__module__", "") == "multiprocessing.sharedctypes":
        # It is registered for types of ctypes as well, of which only those in shared memory are its business.
        return lambda value: reduce(value) if hasattr(value, "_wrapper") else value.__reduce_ex__(5)

    def reduce_here(value: Any) -> Any:
        context: Any = sys.modules["multiprocessing.context"]
        before = context.get_spawning_popen()
        context.set_spawning_popen(_Carrier)
        try:
            return reduce(value)
        finally:
            context.set_spawning_popen(before)

    return reduce_here


class _Carrier:
    """What `reduction.DupFd` takes for a process that is being started."""

    @staticmethod
    def duplicate_for_child(fd: int) -> int:
        """Take a copy of a descriptor along, and return its place."""
        carried = _travel.carried()
        if carried is None:
            raise TypeError(f"file descriptor {fd} means something in this process only")
        carried.append(segments.Segment(put_duplicate, fd))
        return len(carried) - 1

    @staticmethod
    def DupFd(place: int) -> _Carried:  # noqa: N802  # as `multiprocessing` calls it
        """Return what stands for it in the bytes."""
        return _Carried(place)


class _Carried:
    def __init__(self, place: int) -> None:
        self._place = place

    def __reduce__(self) -> Any:
        return _Arrived, (self._place,)


class _Arrived:
    """A copy of a descriptor that came along, until somebody takes it."""

    def __init__(self, place: int) -> None:
        self._copy = Owner(put_duplicate, _travel.arrived[place])

    def detach(self) -> int:
        """Return the descriptor, which is the caller's then."""
        try:
            return self._copy.fds.pop()
        except IndexError:
            raise ValueError("this descriptor has been taken already") from None
