"""How one attempt, or a whole task, ended: `Success | Failure`, two frozen types and never a nullable pair; and the program."""

from __future__ import annotations

from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NamedTuple, Union
else:
    from parallel_exec._typing import NamedTuple


TERMINATED = 143  # the exit status of a program that SIGTERM has ended, as a shell tells it
TWIN = 0.5  # seconds; a SIGTERM that comes so soon after another is no second one: `timeout` sends two; a guess


class Terminated(SystemExit):  # it is no error
    """SIGTERM, as the main thread meets it once an executor was drained for it.

    Attributes:
        hurries: whether nothing is to be waited for: it has come a second time.
    """

    def __init__(self, *, hurries: bool) -> None:
        super().__init__(TERMINATED)
        self.hurries = hurries


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


succeeded: Callable[[tuple[Any]], Success] = partial(tuple.__new__, Success)  # for a hot path: it runs no Python
if TYPE_CHECKING:
    Outcome = Union[Success, Failure]
