"""Exceptions to bytes and back, for all back ends that run calls in other processes.

    describe ──► of the exception, and of each in its chain: its pickle, or else those parts of it that pickle
    rebuild  ──► the exception from its pickle, or from its parts, or a stand-in; then its chain; then the worker's traceback

Guarantees:
    Neither raises, whatever an exception does when it is printed, pickled or rebuilt.
    An exception arrives as it was raised: its class, its attributes, its notes, its cause and its context. What is added
    is the worker's traceback, as the last of its causes. No code of the exception's class runs for that, so that one
    which cannot be changed is no exception to it.
    What cannot be rebuilt has a `RemoteTaskError` in its place, which is of the exception's class as well, if this
    process has that class: `except`, `retry_on` and tenacity's predicates agree. No module is imported to find it.

Describing imports the standard library only, as workers need it.
"""

from __future__ import annotations

import builtins
import contextlib
import copyreg
import io
import pickle
import sys

from parallel_exec._names import describe_failure, name_of, type_name
from parallel_exec.backends import _pickling, _reducers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator, NamedTuple
else:
    from parallel_exec._typing import NamedTuple

_LINKS = 64  # exceptions of a chain that travel, its first ones; a guess: the text of the traceback has them all
_NOBODY = -1
_MAINS = ("__mp_main__", "<fake __main__>")  # the main module's name in a process of `multiprocessing`, an interpreter

# How the interpreter sets them: past a class's own `__setattr__`, and past properties of the same names.
_set_cause = BaseException.__dict__["__cause__"].__set__
_set_context = BaseException.__dict__["__context__"].__set__
_set_suppress = BaseException.__dict__["__suppress_context__"].__set__
_get_cause = BaseException.__dict__["__cause__"].__get__
_get_context = BaseException.__dict__["__context__"].__get__
_get_suppress = BaseException.__dict__["__suppress_context__"].__get__
_Group: Any = getattr(builtins, "BaseExceptionGroup", None)


class WorkerTraceback(Exception):  # noqa: N818  # it is a traceback
    """The traceback in the worker, as text: the last cause of an exception that came from there."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class Described(NamedTuple):
    """One exception on its way.

    Attributes:
        whole: its pickle; b"" if there is none that can be undone.
        types: module and qualified name of its class and of all its bases.
        message: its `str()`.
        text: its formatted traceback; of the first in a chain, or where it may be needed for a stand-in.
        why: why there is no `whole`.
        parts: of one without: its `args` and its attributes, by name; each pickled by itself, those that can be.
        is_complete: whether `parts` are all there is, and pickle's own way, not the class's, is what failed.
        members: the places of a group's members; a group is rebuilt from them.
        cause, context: their places, or _NOBODY.
        suppress: `__suppress_context__`.
    """

    whole: bytes
    types: tuple[tuple[str, str], ...]
    message: str
    text: str = ""
    why: str = ""
    parts: tuple[tuple[str, bytes], ...] = ()
    is_complete: bool = False
    members: tuple[int, ...] = ()
    cause: int = _NOBODY
    context: int = _NOBODY
    suppress: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its class and of all its bases, as errors and policies know them."""
        return tuple(name_of(*kind) for kind in self.types)


# ── in the worker ─────────────────────────────────────────────────────────────────────────────────────────────────────


def describe(error: BaseException) -> bytes:
    """Return an exception and its chain, for `rebuild`."""
    found, places = [error], {id(error): 0}

    def place(other: BaseException | None, most: float = _LINKS) -> int:
        """Return the place of another one, which is described as well then."""
        if other is None or (id(other) not in places and len(found) >= most):
            return _NOBODY
        if id(other) not in places:
            places[id(other)] = len(found)
            found.append(other)
        return places[id(other)]

    described: list[Described] = []
    for each in found:  # which grows
        members = tuple(place(member, float("inf")) for member in _members_of(each))
        one = _describe_one(each, is_first=not described, is_group=bool(members))
        described.append(
            one._replace(
                members=members,
                cause=place(_get_cause(each)),
                context=place(_get_context(each)),
                suppress=_get_suppress(each),
            )
        )
    return pickle.dumps(described, 5)


def _members_of(error: BaseException) -> tuple[BaseException, ...]:
    """Return the members of a group that pickles as the interpreter's groups do; () for anything else."""
    if _Group is not None and issubclass(type(error), _Group) and _is_by_default(type(error)):
        members: tuple[BaseException, ...] = _Group.exceptions.__get__(error)
        return members
    return ()


def _describe_one(error: BaseException, *, is_first: bool, is_group: bool) -> Described:
    whole, why = (b"", "") if is_group else _pickle(error)
    described = describe_plainly(error, with_text=is_first or not whole)._replace(whole=whole)
    if whole:
        return described
    parts, is_complete = _pickle_parts(error, is_group)
    return described._replace(why=why, parts=parts, is_complete=is_complete and _is_by_default(type(error)))


def describe_plainly(error: BaseException, with_text: bool = True) -> Described:
    """Return what can be said of an exception without pickling it."""
    try:
        message = str(error)
    except BaseException:
        message = "(whose str fails)"
    types = tuple((kind.__module__, kind.__qualname__) for kind in type(error).__mro__)
    return Described(b"", types, message, _format(error) if with_text else "")


def _format(error: BaseException) -> str:
    try:
        import traceback  # not for nothing, in a worker

        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except BaseException as failed:  # the class has properties of its own for what this asks
        return f"{type_name(type(error))} (its traceback cannot be formatted: {describe_failure(failed)})\n"


def _pickle(error: BaseException) -> tuple[bytes, str]:
    """Pickle an exception itself; returns b"" and why, if what that gives cannot be rebuilt."""
    if type(error) in copyreg.dispatch_table:
        # Somebody has changed how it pickles, which is not needed if the default way goes. (tblib has, for dask: it loses what
        # C keeps, `SystemExit.code`, and its tracebacks lead to the frames in which they are rebuilt.)
        with contextlib.suppress(Exception):
            buffer = io.BytesIO()
            pickler = pickle.Pickler(buffer, protocol=5)
            pickler.dispatch_table = {}
            pickler.dump(error)
            if type(pickle.loads(buffer.getvalue())) is type(error):
                return buffer.getvalue(), ""
    doing, before = "pickled", _reducers.carried()
    try:
        whole = _reducers.dumps(error)
        if _reducers.carried() != before:
            return whole, ""  # to rebuild it here would use up what travels with it
        doing = "rebuilt from its pickle"
        rebuilt = pickle.loads(whole)
    except BaseException as failed:
        return _by_value(error), f"it cannot be {doing}: {describe_failure(failed)}"
    if type(rebuilt) is not type(error):
        return b"", f"its pickle is rebuilt as a {type_name(type(rebuilt))}"
    return whole, ""


def _by_value(error: BaseException) -> bytes:
    """Pickle an exception of a class that only lives here; b"" if there is no way."""
    kind = type(error)
    if kind.__module__ == _MAINS[1] and "<locals>" not in kind.__qualname__:
        return b""  # it lives in the program's main module, too; only its name here is not to be imported
    try:
        whole = _pickling.dumps(error, inside=True).data
        return whole if type(pickle.loads(whole)).__name__ == type(error).__name__ else b""
    except BaseException:
        return b""


def _builtin_base(kind: type) -> Any:
    """Return the first of its bases that the interpreter brings: what C keeps of an exception is this one's."""
    return next(base for base in kind.__mro__ if base.__module__ == "builtins")


def _is_by_default(kind: type) -> bool:
    """Return whether an exception class leaves to the interpreter how it pickles."""
    ways: Any = kind
    return ways.__reduce__ is _builtin_base(kind).__reduce__ and ways.__reduce_ex__ is object.__reduce_ex__


def _pickle_parts(error: BaseException, is_group: bool) -> tuple[tuple[tuple[str, bytes], ...], bool]:
    """Pickle what makes up an exception, each part by itself; and say whether all of them could be."""
    try:
        _, args, *states = _builtin_base(type(error)).__reduce__(error)
        parts: dict[str, Any] = dict(states[0]) if states and states[0] else {}
        for name in copyreg._slotnames(type(error)):  # type: ignore[attr-defined]
            with contextlib.suppress(AttributeError):
                parts[name] = object.__getattribute__(error, name)
        parts["args"] = args[:1] if is_group else args  # the members are described by themselves
    except BaseException:
        return (), False
    pickled = []
    for name, value in parts.items():
        with contextlib.suppress(BaseException):
            before = _reducers.carried()
            data = _pickling.dumps(value, inside=True).data
            if _reducers.carried() == before:
                pickle.loads(data)
            pickled.append((name, data))
    return tuple(pickled), len(pickled) == len(parts)


# ── in the parent ─────────────────────────────────────────────────────────────────────────────────────────────────────


def read(data: bytes) -> list[Described]:
    """Return what `describe` has said: the exception, and those of its chain."""
    described: list[Described] = pickle.loads(data)
    return described


def rebuild(described: list[Described]) -> BaseException:
    """Return the exception, with its chain and the worker's traceback."""
    made: dict[int, BaseException] = {}
    for place, one in enumerate(described):
        error = _make(described, place, made)
        _link(error, one, [_make(described, other, made) if other >= 0 else None for other in (one.cause, one.context)])
    add_cause(made[0], WorkerTraceback(described[0].text))
    return made[0]


def _make(described: list[Described], place: int, made: dict[int, BaseException]) -> BaseException:
    """Return the exception that has a place, rebuilt once, its members first."""
    if place not in made:
        one = described[place]
        members = [_make(described, member, made) for member in one.members]
        made[place] = _rebuild_one(one, members, described[0].text)
    return made[place]


def _link(error: BaseException, one: Described, links: list[BaseException | None]) -> None:
    """Chain an exception as it was; one that has brought its chain by itself is left alone."""
    cause, context = links
    if _get_cause(error) is None and _get_context(error) is None:
        _set_context(error, context)
        _set_cause(error, cause)
        _set_suppress(error, one.suppress)


def add_cause(error: BaseException, text: WorkerTraceback) -> None:
    """Put the worker's traceback at the end of an exception's causes."""
    seen = set()
    while id(error) not in seen:
        seen.add(id(error))
        cause = _get_cause(error)
        if cause is None or type(cause) is WorkerTraceback:  # such as of an object that came before
            _set_cause(error, text)
            return
        error = cause


def detached(error: BaseException) -> BaseException:
    """Have the traceback of an exception as text only, as if it had come from a worker, and return the exception.

    Its frames lead to those of whoever called what raised it: to the future that is to keep it.
    """
    text = _format(error)
    found = [error]
    for each in found:  # which grows
        BaseException.with_traceback(each, None)
        others = (_get_cause(each), _get_context(each), *_members_of(each))
        found += [other for other in others if other is not None and not any(other is known for known in found)]
    add_cause(error, WorkerTraceback(text))
    return error


def _rebuild_one(one: Described, members: list[BaseException], text: str) -> BaseException:
    why = one.why
    if one.whole:
        try:
            error = pickle.loads(one.whole)
        except BaseException as failed:
            why = f"it cannot be rebuilt here: {describe_failure(failed)}"
        else:
            if isinstance(error, BaseException):
                return error
            why = f"its pickle is rebuilt here as a {type_name(type(error))}"
    kinds = list(_known(one.types))
    parts = dict(_loaded(one.parts))
    is_known = bool(kinds) and (kinds[0].__module__, kinds[0].__qualname__) == _here(*one.types[0])
    if one.is_complete and is_known and len(parts) == len(one.parts):
        try:
            return _assemble(kinds[0], parts, members)
        except BaseException as failed:
            why = why or f"it cannot be rebuilt here: {describe_failure(failed)}"
    from parallel_exec.errors import stand_in  # not in a worker, which only describes

    return stand_in(one.names, one.message, one.text or text, why, kinds, parts)


def _loaded(parts: tuple[tuple[str, bytes], ...]) -> Iterator[tuple[str, Any]]:
    for name, data in parts:
        with contextlib.suppress(BaseException):
            yield name, pickle.loads(data)


def _here(module: str, name: str) -> tuple[str, str]:
    """Return where this process has what is in that module of a worker."""
    return "__main__" if module in _MAINS else module, name


def _known(types: tuple[tuple[str, str], ...]) -> Iterator[type[BaseException]]:
    """Yield those exception classes that this process has, without those of which an earlier one is a subclass."""
    known: list[type[BaseException]] = []
    for module, qualname in types:
        kind: Any = sys.modules.get(_here(module, qualname)[0])
        for name in qualname.split("."):
            kind = getattr(kind, "__dict__", {}).get(name)  # not by `getattr`, which may import what is named
        if isinstance(kind, type) and issubclass(kind, BaseException) and not any(issubclass(k, kind) for k in known):
            known.append(kind)
            yield kind


def _assemble(kind: type[BaseException], parts: dict[str, Any], members: list[BaseException]) -> BaseException:
    """Make an exception of its parts: as the interpreter would, without its `__init__`, whatever that takes."""
    base, args = _builtin_base(kind), parts.pop("args")
    if members:
        args = (args[0], members)
    error: BaseException = base.__new__(kind, *args)
    base.__init__(error, *args)  # C keeps its facts by this one: an errno, an exit code
    for name, value in parts.items():
        try:
            object.__setattr__(error, name, value)
        except AttributeError:  # there is a property of that name
            error.__dict__[name] = value
    return error
