"""Objects that pickle badly, each in its own way."""

from __future__ import annotations

import os
import threading
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


def exits_when_rebuilt() -> ExitsWhenRebuilt:
    """Return a trap."""
    return ExitsWhenRebuilt()


# ── exceptions ──────────────────────────────────────────────────────────────────────────────────────────────────────


class PickyError(Exception):
    """Takes other arguments than it passes on: the classic that pickles and cannot be rebuilt."""

    def __init__(self, path: str, *, line: int) -> None:
        super().__init__(f"{path}:{line} is wrong")
        self.line = line


class LockedError(Exception):
    """Carries what cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


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


def raise_chained() -> NoReturn:
    """Raise from another error."""
    try:
        {}["key"]
    except KeyError as error:
        raise ValueError("no such key") from error
