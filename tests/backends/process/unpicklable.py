"""Objects that pickle badly, each in its own way."""

from __future__ import annotations

import builtins
import errno
import os
import threading
import weakref
from dataclasses import dataclass
from typing import Any, NoReturn


class Locked:
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        return "<Locked thing>"

    def method(self) -> None:
        """Do nothing."""


class FailsToPickle:
    """Raises what is no pickling error."""

    def __reduce__(self) -> NoReturn:
        raise ZeroDivisionError("no pickle today")


class ReducesToNonsense:
    """Is reduced to what pickle refuses, and nobody can go through."""

    def __init__(self, nonsense: Any) -> None:
        self.nonsense = nonsense

    def __reduce__(self) -> Any:
        return self.nonsense


class FailsToIterate(list):  # type: ignore[type-arg]
    """A list that cannot be gone through, such as one of a database that is gone."""

    def __iter__(self) -> Any:
        raise ConnectionError("the database is gone")


class FailsRepr(Locked):
    """Has not even a repr."""

    def __repr__(self) -> str:
        raise ValueError("no repr")


class OnlyHere:
    """Can be rebuilt in the process that it names, and nowhere else."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed

    def __reduce__(self) -> Any:
        return _rebuild_if, (self.allowed,)


def _rebuild_if(allowed: int) -> OnlyHere:
    if os.getpid() != allowed:
        raise LookupError(f"this is not process {allowed}")
    return OnlyHere(allowed)


class ExitsWhenRebuilt:
    """Calls sys.exit() when it is unpickled."""

    def __reduce__(self) -> Any:
        return _exit, ()


def _exit() -> NoReturn:
    raise SystemExit(3)


def only_worker() -> OnlyHere:
    """Return what only this worker can rebuild."""
    return OnlyHere(os.getpid())


def locked() -> Locked:
    """Return what cannot be pickled."""
    return Locked()


def make_locked_list() -> list[Any]:
    """Return it in something else."""
    return [1, Locked()]


def make_nonsense(nonsense: Any) -> list[ReducesToNonsense]:
    """Return one in a list."""
    return [ReducesToNonsense(nonsense)]


def make_dead_proxy() -> list[Any]:
    """Return a proxy in a list, of an object that is gone."""
    return [weakref.proxy(FailsToPickle())]


def make_failing_list() -> list[FailsToIterate]:
    """Return one with something in it, in a list."""
    return [FailsToIterate([1])]


def exits_when_rebuilt() -> ExitsWhenRebuilt:
    """Return a trap."""
    return ExitsWhenRebuilt()


# ── exceptions ──────────────────────────────────────────────────────────────────────────────────────────────────────


class PickyError(Exception):
    """Takes other arguments than it passes on: the classic that pickles and cannot be rebuilt."""

    def __init__(self, path: str, *, line: int) -> None:
        super().__init__(f"{path}:{line} is wrong")
        self.line = line


@dataclass(frozen=True)
class FrozenError(Exception):
    """Cannot be changed."""

    code: int


class ReadOnlyError(Exception):
    """Cannot be changed either, and will not have another traceback."""

    __slots__ = ("code",)

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        object.__setattr__(self, "code", code)

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError(f"{name} is read-only")

    def with_traceback(self, traceback: Any) -> NoReturn:
        """Refuse."""
        raise TypeError("no traceback")


class PathError(OSError):
    """An OSError with a constructor of its own."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ENOENT, "not there", path)


class ExitError(SystemExit):
    """An exit that cannot be rebuilt."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.lock = threading.Lock()


class LockedError(Exception):
    """Carries what cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()
        self.status = 503


class StubbornError(LockedError, KeyError):
    """The same, and gets in the way where it can."""

    worker_traceback = property(lambda self: 1 / 0)  # type: ignore[assignment]

    def __new__(cls, *args: Any) -> Any:
        """Want an argument."""
        assert args
        return super().__new__(cls, *args)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("lock", "status"):
            raise TypeError(f"{name} is read-only")
        super().__setattr__(name, value)

    def __str__(self) -> str:
        return f"locked by {self.lock}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.lock.__reduce_ex__(protocol)


class SelectiveError(LockedError):
    """Does not let anybody derive from it without more ado."""

    def __init_subclass__(cls, *, number: int) -> None:
        assert number


class ForgetfulError(Exception):
    """Rebuilds as something else."""

    def __reduce__(self) -> Any:
        return str, ("not an exception",)


class SilentError(Exception):
    """Has no str."""

    def __str__(self) -> str:
        raise RuntimeError("no str")


class LoadedError(Exception):
    """Carries a payload."""

    def __init__(self, payload: Any) -> None:
        super().__init__("loaded")
        self.payload = payload


class OnlyHereError(Exception):
    """Can be rebuilt where it was raised, and nowhere else."""

    def __reduce__(self) -> Any:
        return _rebuild_error_if, (os.getpid(),)


def _rebuild_error_if(allowed: int) -> OnlyHereError:
    if os.getpid() != allowed:
        raise LookupError("elsewhere")
    return OnlyHereError("here")


def raise_picky() -> NoReturn:
    """Raise an exception that cannot be rebuilt."""
    raise PickyError("file.txt", line=7)


def raise_locked() -> NoReturn:
    """Raise an exception that cannot be pickled."""
    raise LockedError("with a lock")


def raise_forgetful() -> NoReturn:
    """Raise an exception that rebuilds as a string."""
    raise ForgetfulError("gone")


def raise_silent() -> NoReturn:
    """Raise an exception without a str."""
    raise SilentError(1)


def raise_only_here() -> NoReturn:
    """Raise an exception that cannot be rebuilt in the parent."""
    raise OnlyHereError("here")


def raise_loaded(payload: Any) -> NoReturn:
    """Raise an exception with a payload."""
    raise LoadedError(payload)


def raise_local() -> NoReturn:
    """Raise an exception of a class that nobody can import."""

    class LocalError(ValueError):
        """Known in here only."""

    raise LocalError("local", 5)


def raise_frozen(code: int) -> NoReturn:
    """Raise what cannot be changed, with an attribute, so that its pickle sets some."""
    raise FrozenError(code)


def raise_read_only() -> NoReturn:
    """Raise what cannot be changed."""
    raise ReadOnlyError(7, "read-only")


def raise_path() -> NoReturn:
    """Raise an OSError that cannot be rebuilt by pickle."""
    raise PathError("/nowhere")


def raise_exit() -> NoReturn:
    """Exit by what cannot be pickled."""
    raise ExitError(3)


def raise_stubborn() -> NoReturn:
    """Raise what gets in the way."""
    raise StubbornError("locked")


def raise_selective() -> NoReturn:
    """Raise what nobody may derive from."""
    raise SelectiveError("locked")


def raise_with_all() -> NoReturn:
    """Raise with a cause, a context and a note; the cause has a context of its own, and cannot be pickled."""
    try:
        try:
            {}["inner"]
        except KeyError:
            raise LockedError("the cause")  # noqa: B904
    except LockedError as cause:
        error = PickyError("file.txt", line=7)
        error.__notes__ = ["a note"]  # type: ignore[attr-defined]
        try:
            raise ValueError("the context") from None
        except ValueError:
            raise error from cause


def raise_while_handling() -> NoReturn:
    """Raise while another error is handled."""
    try:
        {}["key"]
    except KeyError:
        raise ValueError("no such key")  # noqa: B904


def raise_in_circles() -> NoReturn:
    """Raise one of two that are each other's causes."""
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    raise one


def raise_long_chain(length: int) -> None:
    """Raise at the end of a long chain."""
    error: Exception = ValueError(0)
    for number in range(1, length):
        following = ValueError(number)
        following.__cause__ = error
        error = following
    raise error


def raise_group() -> NoReturn:
    """Raise a group in a group, where a member has a cause, and another cannot be pickled."""
    try:
        raise ValueError("member") from KeyError("its cause")
    except ValueError as member:
        group: Any = vars(builtins)["ExceptionGroup"]
        raise group("outer", [member, group("inner", [LockedError("locked"), PickyError("f", line=1)])])  # noqa: B904


def raise_chained() -> NoReturn:
    """Raise from another error."""
    try:
        {}["key"]
    except KeyError as error:
        raise ValueError("no such key") from error
