"""What a task needs of which limits, in one form, whatever was written.

An amount is a plain int or float above 0; anything else is a key. Which of the two a limit takes only that limit knows
(`check` of its kind), and it may be changed while tasks wait for it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Hashable, Union

    Need = Union[int, float, Hashable]


class Needs:
    """The needs of a task; equal if they are the same of the same limits.

    Attributes:
        items: the name of each limit, and what is needed of it, by name.
        line: where tasks that need it wait, if any do: a `Line`, which may be another's that is equal, or closed.
    """

    __slots__ = ("_hash", "items", "line")

    def __init__(self, items: tuple[tuple[str, Need], ...]) -> None:
        self.items = items
        self._hash = hash(items)
        self.line: Any = None

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Needs) and self._hash == other._hash and self.items == other.items)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Needs({dict(self.items)!r})"

    def wait_in(self, line: Any) -> None:
        """Remember the line of tasks that need this."""
        self.line = line

    def get(self, name: str) -> Need | None:
        """Return what is needed of a limit; None if nothing is."""
        for each, need in self.items:  # no generator: what a signal handler raises as one closes is lost
            if each == name:
                return need
        return None
