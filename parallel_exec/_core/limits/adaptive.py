"""`AdaptiveLimit`, and `Gradient`: what it has found so far."""

from __future__ import annotations

from parallel_exec._core.limits.kind import NEVER, ONE, Held, Kind, to_units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable

    from parallel_exec._core.limits.kind import Ending
    from parallel_exec._core.limits.needs import Need
    from parallel_exec.limits import Adaptive


class Gradient:
    """A bound that grows while calls run as fast as before, and shrinks when they slow down, or end as too many.

    Attributes:
        bound: how much may run at once.
        stale_from: when what it knows is worth no more.
    """

    def __init__(self, least: int, most: int, initial: int) -> None:
        self._least = least
        self._most = most
        self.bound = float(initial)
        self.stale_from = -float("inf")

    def started(self, in_use: float, now: float) -> Any:
        """Return what is to be known of a call when it ends."""
        return self.bound

    def ended(self, mark: Any, in_use: float, now: float, seconds: float, ending: str) -> None:
        """Learn from the end of a call."""
        if ending == "overloaded":
            if mark <= self.bound:
                self.bound = max(self._least, self.bound * 0.7)
        elif in_use * 2 >= self.bound:
            self.bound = min(self._most, self.bound + 1 / self.bound)

    def adopt(self, old: Gradient) -> None:
        """Go on from what another one knows, whose bounds were others."""
        self.bound = min(max(old.bound, self._least), self._most)


class AdaptiveLimit(Kind):
    """As much at once as runs well.

    Attributes:
        gradient: what says how much that is.
    """

    def __init__(self, name: str, spec: Adaptive) -> None:
        super().__init__(name)
        self._spec = spec
        self.gradient = Gradient(spec.min, spec.max, spec.initial)

    def check(self, need: Need) -> None:
        """Refuse what can never be granted."""
        self._check_amount(need, self._spec.max, f"there is never more than {{}} of {self.name!r}")

    def bound(self) -> float:
        """Return what it has found so far."""
        return int(self.gradient.bound)

    def available_at(self, need: Need, now: float) -> float:
        """Return from when on it can be granted. What needs more than the bound is granted when nothing else is held."""
        if self._used and self._used + to_units(need) > self.gradient.bound * ONE:
            return NEVER
        return self.held_until

    def take(self, need: Need, now: float) -> Held:
        """Grant what is available."""
        units = to_units(need)
        self._used += units
        self.granted += 1
        return Held(self, need, need, units, self.gradient.started(self._used / ONE, now))

    def give_back(self, held: Held, now: float, seconds: float, ending: Ending) -> None:
        """Take back what was granted, and learn from how it went."""
        if ending != "unused" and held.kind is self:
            self.gradient.ended(held.mark, self._used / ONE, now, seconds, ending)
        super().give_back(held, now, seconds, ending)

    def adopt(self, old: Kind, held: Iterable[Held], now: float) -> None:
        """Take the place of another kind, and know what it has learnt."""
        super().adopt(old, held, now)
        if isinstance(old, AdaptiveLimit):
            self.gradient.adopt(old.gradient)

    def idle_from(self) -> float:
        """Return from when on this is as good as a new one: what it has learnt goes stale."""
        return max(super().idle_from(), self.gradient.stale_from)
