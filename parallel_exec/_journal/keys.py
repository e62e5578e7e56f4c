"""The key of a call: 16 bytes that are the same wherever and whenever the same call is made under the same id.

    version, id ─────────────────────┐
    the callable: module and name ───┼──► bytes ──► blake2b ──► key
    its arguments, taken apart ──────┘

What a call is made of is taken apart as pickle would do it, but not pickled: a pickle depends on which of equal objects are one
and the same, and a set's on the seed of this process's hashes. Nothing depends on the back end.

    a function of a module   its module and qualified name: not what it does, which is for `version` to tell
    a lambda, a local one    the same, and what its closure and its defaults have
    a bound method           its function, and its object as an argument
    a partial                the call that it makes
    a callable object        as an argument
    plain values             by value and type; containers item by item: a dict in its order, a set in none
    a path                   its text
    what is shared           what it is: taken apart once, not for each call; but a short plain value as such
    any other object         what its `__reduce_ex__` says: its class by name, and its state
    what cannot be pickled   its type by name alone: a lock, a connection, and each object that has one in its state

Guarantees:
    No argument makes `key_of` raise, but what is no `Exception` and is raised by an argument's own code.
    Equal calls have equal keys in every process, on every back end, whatever objects their arguments share (but for objects
    and containers of objects that occur twice in one call, which count as two if they are).
"""

from __future__ import annotations

import copyreg
import os
from functools import partial
from hashlib import blake2b
from marshal import dumps
from pickle import PickleBuffer
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any, Callable, Mapping

from parallel_exec import _sharing
from parallel_exec._names import name_of, type_name

_SIZE = 16  # bytes of a key: of a million million calls no two have the same by chance
_FORMAT = 2  # of `marshal`, the last that writes equal values alike; the same on all Pythons
_ATOMS = frozenset((type(None), type(...), bool, int, float, complex, str, bytes))
_LONG = 1 << 12  # characters or bytes of a plain value from which on it is not looked at for each call; a guess


def key_of(version: str, id: str, fn: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    """Return the key of `fn(*args, **kwargs)`, under this id. Runs the arguments' own code, if they are not plain values.

    Args:
        version: the user's, for what cannot be seen in a call.
        id: the task's.
        fn: what is called.
        args: with these.
        kwargs: and these by name, in any order.
    """
    if type(id) is not str:
        id = str.__str__(id)  # noqa: A001  # it is the argument's name
    while type(fn) is partial:
        fn, args, kwargs = fn.func, fn.args + args, {**fn.keywords, **kwargs} if fn.keywords else kwargs
    if _sharing.find is not None:
        args, kwargs = tuple(map(_known, args)), {name: _known(value) for name, value in kwargs.items()}
    if type(fn) is FunctionType and not kwargs and _ATOMS.issuperset(map(type, args)):  # most are
        name = fn.__qualname__
        if "<" not in name:
            module = fn.__module__ if fn.__module__ != "__mp_main__" else "__main__"
            try:
                return blake2b(dumps((version, id, module, name, args), _FORMAT), digest_size=_SIZE).digest()
            except ValueError:  # a string of a class of its own among the first four
                pass
    parts = _Parts()
    parts.add_text(version)
    parts.add_text(id)
    parts.add_argument(fn)
    parts.add_count("(", len(args))
    for value in args:
        parts.add_argument(value)
    for key in sorted(kwargs):
        parts.add_text(key)
        parts.add_argument(kwargs[key])
    return parts.digest()


def _known(value: Any) -> Any:
    """Return what an argument counts as, be it an object that is shared, or what stands for that in a call that travels."""
    try:
        content = None if _sharing.find is None else _sharing.find(value)
        if content is None:
            return value
        whole = content.value()
    except Exception:  # a handle that was closed
        return value
    return whole if type(whole) in _ATOMS and not (isinstance(whole, (str, bytes)) and len(whole) >= _LONG) else content


def _digest_of(value: Any) -> bytes:
    """Return 16 bytes for what is shared, which is looked at once, and not for each call that has it."""
    parts = _Parts(value)
    parts.add_argument(value)
    return parts.digest()


class _Parts:
    """What a call is made of, as bytes that can be told apart.

    Like pickle it knows what it has met, by number, as objects may lead to each other. Only what can lead to others is noted.
    """

    def __init__(self, whole: Any = None) -> None:
        self._out: list[Any] = []  # bytes and memory views
        self._met: dict[int, int] = {}  # by id; and kept alive, as what a reducer makes has an id of its own
        self._kept: list[Any] = []
        self._depth = 0  # how many objects what is being added is in
        self._whole = whole  # what all of it is of, though it be shared

    def digest(self) -> bytes:
        """Return the key."""
        made = blake2b(digest_size=_SIZE)
        for piece in self._out:
            made.update(piece)
        return made.digest()

    def add_text(self, text: str) -> None:
        """Add a string; one of a class of its own counts as a plain one."""
        self._out.append(dumps(str.__str__(text), _FORMAT))

    def add_count(self, tag: str, count: int) -> None:
        """Add what follows, and how many of it."""
        self._out.append(f"{tag}{count};".encode())

    def add_argument(self, value: Any) -> None:
        """Add a callable or an argument, whatever it does."""
        mark = self._mark()
        try:
            self._add(value)
        except Exception:  # it is nested too deeply
            self._add_opaque(value, mark)

    # ── taking back: what was begun cannot be finished ──────────────────────────────────────────────────────────────

    def _mark(self) -> tuple[int, int]:
        return len(self._out), len(self._kept)

    def _take_back(self, mark: tuple[int, int]) -> None:
        del self._out[mark[0] :]
        self._forget(mark)

    def _forget(self, mark: tuple[int, int]) -> None:
        """Know no more what was met since."""
        while len(self._kept) > mark[1]:
            del self._met[id(self._kept.pop())]

    def _add_opaque(self, value: Any, mark: tuple[int, int]) -> None:
        """Add the type's name alone, and the value's own, if it has one, in the place of what was added since."""
        self._take_back(mark)
        self._depth = 0
        self.add_count("?", 1)
        self.add_text(type_name(type(value)))
        try:
            name = value.__qualname__
        except Exception:
            return
        if type(name) is str:
            self.add_text(name)

    # ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _add(self, value: Any) -> None:
        kind = type(value)
        if kind in _ATOMS:
            self._out.append(dumps(value, _FORMAT))
        elif _sharing.find is not None and value is not self._whole and (content := _sharing.find(value)) is not None:
            self.add_count("S", 1)
            self._out.append(content.digest(_digest_of))
        elif kind is tuple:
            self._add_items("t", value)
        elif not self._is_met(value):
            add = _WAYS.get(kind)
            if add is not None:
                add(self, value)
            elif isinstance(value, type):
                self._add_name("c", value.__module__, value.__qualname__)
            else:
                self._add_object(value)

    def _is_met(self, value: Any) -> bool:
        """Return whether it was met before, and refer to it in that case; else note it."""
        number = self._met.get(id(value))
        if number is None:
            self._met[id(value)] = len(self._kept)
            self._kept.append(value)
            return False
        self.add_count("^", number)
        return True

    def _add_items(self, tag: str, items: Any) -> None:
        self.add_count(tag, len(items))
        if _ATOMS.issuperset(map(type, items)):
            self._out.append(dumps(list(items), _FORMAT))
        else:
            for item in items:
                self._add(item)

    def _add_list(self, items: list[Any]) -> None:
        self._add_items("l", items)

    def _add_dict(self, items: Mapping[Any, Any]) -> None:
        self._add_items("d", [*items])
        self._add_items("v", [*items.values()])

    def _add_set(self, members: Any) -> None:
        """Add members in the order of their digests; each as if it were the first that is met."""
        digests = []
        for member in members:
            mark = self._mark()
            self._add(member)
            made = blake2b(digest_size=_SIZE)
            for piece in self._out[mark[0] :]:
                made.update(piece)
            digests.append(made.digest())
            self._take_back(mark)
        self.add_count("s", len(digests))
        self.add_text(type_name(type(members)))
        self._out += sorted(digests)

    def _add_bytes(self, value: Any) -> None:
        view = value.raw() if type(value) is PickleBuffer else memoryview(value).cast("B")
        self.add_count("b", view.nbytes)
        self._out.append(view)

    def _add_name(self, tag: str, module: Any, name: str) -> None:
        self.add_count(tag, 1)
        self.add_text(name_of(module if isinstance(module, str) else "", name))

    # ── callables ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _add_function(self, fn: Any) -> None:
        self._add_name("f", fn.__module__, fn.__qualname__)
        if "<" in fn.__qualname__:
            self._add(fn.__defaults__)
            self._add(fn.__kwdefaults__)
            self._add(fn.__closure__)

    def _add_cell(self, cell: Any) -> None:
        try:
            value = cell.cell_contents
        except ValueError:  # not filled yet
            self.add_count("e", 0)
        else:
            self._add(value)

    def _add_method(self, method: Any) -> None:
        self.add_count("m", 1)
        self._add(method.__func__)
        self._add(method.__self__)

    def _add_builtin(self, fn: Any) -> None:
        owner = fn.__self__
        if owner is None or type(owner) is ModuleType:
            self._add_name("f", fn.__module__, fn.__qualname__)
        else:
            self._add_name("m", "", fn.__name__)
            self._add(owner)

    def _add_partial(self, call: Any) -> None:
        self.add_count("p", 1)
        self._add(call.func)
        self._add(call.args)
        self._add_state(call.keywords)

    def _add_module(self, module: Any) -> None:
        self._add_name("M", "", module.__name__)

    # ── objects ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _add_object(self, value: Any) -> None:
        """Add what its reducer says. If that, or a part of what it says, cannot be pickled, the outermost object is opaque."""
        mark = self._mark()
        self._depth += 1
        try:
            self._add_reduced(value)
        except Exception:
            if self._depth > 1:
                raise
            self._add_opaque(value, mark)
        else:
            return
        finally:
            self._depth = max(0, self._depth - 1)

    def _add_reduced(self, value: Any) -> None:
        kind = type(value)
        if kind.__module__.partition(".")[0] == "pathlib" and isinstance(value, os.PathLike):
            self._add_name("P", "pathlib", kind.__qualname__)  # not by its parts: those depend on how it was made
            self.add_text(os.fspath(value))
            return
        if isinstance(value, (set, frozenset)):
            self._add_set(value)
            self._add_state(getattr(value, "__dict__", None))
            return
        reduce = copyreg.dispatch_table.get(kind)
        reduced: Any = reduce(value) if reduce is not None else value.__reduce_ex__(5)
        if isinstance(reduced, str):
            self._add_name("g", getattr(value, "__module__", ""), reduced)
            return
        parts = [*reduced, None, None, None, None]
        self.add_count("o", len(reduced))
        self._add(parts[0])  # what is called to make it
        self._add(parts[1])  # with these arguments
        self._add_state(parts[2])
        for items in parts[3:5]:  # of a list, and of a dict
            self._add(None if items is None else [*items])

    def _add_state(self, state: Any) -> None:
        """Add an object's attributes, in whatever order they were set; or what its class has made of its state."""
        if type(state) is tuple and len(state) == 2 and type(state[1]) is dict:  # the attributes, and the slots
            self._add_state(state[0])
            self._add_state(state[1])
        elif type(state) is dict and all(type(name) is str for name in state):
            self._add_dict({name: state[name] for name in sorted(state)})
        else:
            self._add(state)


_WAYS: dict[type, Callable[[_Parts, Any], None]] = {
    list: _Parts._add_list,
    dict: _Parts._add_dict,
    set: _Parts._add_set,
    frozenset: _Parts._add_set,
    bytearray: _Parts._add_bytes,
    memoryview: _Parts._add_bytes,
    PickleBuffer: _Parts._add_bytes,
    FunctionType: _Parts._add_function,
    BuiltinFunctionType: _Parts._add_builtin,
    MethodType: _Parts._add_method,
    CellType: _Parts._add_cell,
    partial: _Parts._add_partial,
    ModuleType: _Parts._add_module,
}
