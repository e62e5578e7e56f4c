"""Objects that go wrong when they are pickled or unpickled, or tell when they go (after CPython's test_deadlock.py)."""

from __future__ import annotations

import faulthandler
import sys
from pickle import PicklingError, UnpicklingError
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import work


def crash(data: object = None) -> None:
    """End this process by a segmentation fault."""
    faulthandler.disable()
    faulthandler._sigsegv()  # type: ignore[attr-defined]


def _leave() -> NoReturn:
    sys.exit(1)


def _raise() -> NoReturn:
    raise UnpicklingError("Error in unpickle")


class CrashAtPickle:
    """Ends the process that pickles it."""

    def __reduce__(self) -> Any:
        crash()


class CrashAtUnpickle:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return crash, ()


class ExitAtPickle:
    """Leaves when it is pickled."""

    def __reduce__(self) -> Any:
        _leave()


class ExitAtUnpickle:
    """Leaves when it is unpickled."""

    def __reduce__(self) -> Any:
        return _leave, ()


class ErrorAtPickle:
    """Raises when it is pickled."""

    def __reduce__(self) -> Any:
        raise PicklingError("Error in pickle")


class ErrorAtUnpickle:
    """Raises when it is unpickled."""

    def __reduce__(self) -> Any:
        return _raise, ()


class Thing:
    """Can be watched by a weak reference."""

    def my_method(self) -> None:
        """Do nothing."""


def make_thing(_: object) -> Thing:
    """Return a new one."""
    return Thing()


class SaysGoodbye:
    """Sets a latch when its last copy in a worker is collected; the copy here does not."""

    def __init__(self, latch: work.Latch) -> None:
        self.latch = latch
        self.travelled = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, travelled=True)

    def __del__(self) -> None:
        if self.travelled:
            self.latch.set()
