"""What one attempt holds of its executor's limits.

    take ──► Grant, on the job ──► the attempt's end, or `requeue` ──► give_back

Guarantees:
    It is given back exactly once: `parts` is taken away in one step by whoever does so.
"""

from __future__ import annotations

from parallel_exec._core.limits.kind import ONE, to_units
from parallel_exec.limits import PerKey, Rate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from parallel_exec._core.limits.kind import Ending, Held, Kind


class Limit:
    """One of an executor's limits, by its name.

    Attributes:
        name: that.
        spec: what the user has set.
        kind: what counts it; another once it was changed.
        is_by_time: whether time alone brings what it grants: a rate.
        has_keys: whether it is one for each key.
        places: where lines wait for it, by the key; None is that of a limit without keys.
    """

    __slots__ = ("has_keys", "is_by_time", "kind", "name", "places", "spec")

    def __init__(self, name: str, spec: Any, kind: Kind) -> None:
        self.name = name
        self.places: dict[Any, Any] = {}
        self.use(spec, kind)

    def use(self, spec: Any, kind: Kind) -> None:
        """Be as this says from now on."""
        self.spec = spec
        self.kind = kind
        self.has_keys = isinstance(spec, PerKey)
        self.is_by_time = isinstance(spec.limit if isinstance(spec, PerKey) else spec, Rate)

    def key_of(self, need: Any) -> Any:
        """Return the key of what is needed of it; None if it has none."""
        return need if self.has_keys else None

    def exceeds(self, need: Any, held: dict[tuple[Limit, Any], int], own: int = 0) -> bool:
        """Return whether a need is more than is left while so many units are held, of which some are the asker's own."""
        units = held.get((self, self.key_of(need)), 0) - own
        if self.is_by_time or units <= 0:
            return False
        return units + (ONE if self.has_keys else to_units(need)) > to_units(self.kind.bound())


class Grant:
    """What one attempt was granted.

    Attributes:
        line: that of its job; it may be gone.
        parts: what is held, with the limit and what was needed of it; None once it was given back.
        number: that of the attempt.
        waited: seconds that its task waited for it, if that is to be told; None: it did not wait.
        culprit: the limit that `RetryAfter` has named as overloaded; None: none, or it was no such error.
        since, ending: when its attempt began, and how it was settled, of one that is kept since it goes on.
    """

    __slots__ = ("culprit", "ending", "line", "number", "parts", "since", "waited")

    def __init__(self, line: Any, parts: list[tuple[Limit, Any, Held]], number: int, waited: float | None) -> None:
        self.line = line
        self.parts: list[tuple[Limit, Any, Held]] | None = parts
        self.number = number
        self.waited = waited
        self.culprit: str | None = None
        self.since = 0.0
        self.ending: Ending = "failed"

    def keep(self, since: float, ending: Ending) -> None:
        """Be held further, by an attempt that has been settled."""
        self.since = since
        self.ending = ending

    def blame(self, name: str | None) -> None:
        """Take this limit alone for overloaded, if the attempt ends as if it were."""
        self.culprit = name

    def ending_of(self, limit: Limit, ending: Ending) -> Ending:
        """Return how the attempt has ended, as far as a limit is concerned."""
        return ending if ending != "overloaded" or self.culprit in (None, limit.name) else "failed"

    def facts(self) -> dict[str, Any]:
        """Return what the task may know of it, by the limits' names."""
        return {limit.name: held.granted for limit, _, held in self.parts or ()}

    def pass_to(self, number: int, waited: float | None) -> None:
        """Be another attempt's of the same line."""
        self.number = number
        self.waited = waited

    def surrender(self) -> list[tuple[Limit, Any, Held]]:
        """Hold nothing any more; returns what is to be given back."""
        parts, self.parts = self.parts, None
        return parts or []
