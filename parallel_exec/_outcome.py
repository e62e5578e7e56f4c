"""How one attempt, or a whole task, ended: `Success | Failure`, two frozen types and never a nullable pair."""

from __future__ import annotations

from typing import Any, NamedTuple, Union


class Success(NamedTuple):
    """It returned.

    Attributes:
        value: what it returned.
    """

    value: Any


class Failure(NamedTuple):
    """It raised, or was ended from outside.

    Attributes:
        error: the exception.
    """

    error: BaseException


Outcome = Union[Success, Failure]
