"""`RateLimit`: starts in a time."""

from __future__ import annotations

from parallel_exec._core.limits.kind import NEVER, ONE, Held, Kind, to_units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable

    from parallel_exec._core.limits.kind import Ending
    from parallel_exec._core.limits.needs import Need
    from parallel_exec.limits import Rate

_LOWS = 16  # a guess: takes between that of a start and its return, beyond which a return may be a little too small


class RateLimit(Kind):
    """So many starts in a time, by the generic cell rate algorithm (https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm).

    Each start keeps the limit busy for `per / n` seconds more. A start is granted if the limit is then busy for no more than
    `burst` times that. What it is busy for is kept in starts since a time, not in seconds, so that nothing drifts.
    """

    def __init__(self, name: str, spec: Rate) -> None:
        super().__init__(name)
        self._spec = spec
        self._burst = to_units(spec.burst)
        self._unit = spec.per / spec.n / ONE  # seconds
        self._since = -NEVER
        self._busy = 0  # units, from then on
        self._takes = 0
        self._lows: list[tuple[int, int]] = []  # see `_return_start`

    def check(self, need: Need) -> None:
        """Refuse what can never be granted."""
        self._check_amount(
            need, self._spec.burst, f"{self.name!r} lets {{}} start at once: a Rate's burst may be larger"
        )

    def bound(self) -> float:
        """Return how many may start in its time."""
        return self._spec.n

    def available_at(self, need: Need, now: float) -> float:
        """Return from when on it can be granted."""
        return max(self.held_until, self._since + (self._busy + to_units(need) - self._burst) * self._unit)

    def take(self, need: Need, now: float) -> Held:
        """Grant what is available."""
        units = to_units(need)
        backlog = self.backlog(now)
        if not backlog:
            self._since, self._busy = now, 0
        self._busy += units
        self._used += units
        self.granted += 1
        self._takes += 1
        self._note_low(self._takes, backlog)
        return Held(self, need, need, units, self._takes)

    def give_back(self, held: Held, now: float, seconds: float, ending: Ending) -> None:
        """Count an attempt no more; if it never began, another may start instead."""
        super().give_back(held, now, seconds, ending)
        if ending == "unused" and held.origin is self.identity:
            self._return_start(held.mark, held.units)

    def hold_all(self, until: float) -> None:
        """Grant nothing until a time, and then one start after another, as after a burst: whoever says so has had too many."""
        super().hold_all(until)
        if self._since + (self._busy + ONE - self._burst) * self._unit < until:
            self._since, self._busy = until, self._burst - ONE

    def adopt(self, old: Kind, held: Iterable[Held], now: float) -> None:
        """Take the place of another kind; what was used up of another rate's burst is used up."""
        super().adopt(old, held, now)
        if isinstance(old, RateLimit):
            self._since = now
            self._busy = min(old.backlog(now), self._burst)

    def idle_from(self) -> float:
        """Return from when on this is as good as a new one."""
        return max(super().idle_from(), self._since + self._busy * self._unit)

    def backlog(self, now: float) -> int:
        """Return for how many units it is still busy."""
        return max(0, self._busy - int((now - self._since) / self._unit)) if self._busy else 0

    def _note_low(self, take: int, backlog: int) -> None:
        """Note for how much the limit was busy when it granted a start."""
        lows = self._lows
        while lows and lows[-1][1] >= backlog:
            lows.pop()
        lows.append((take, backlog))
        if len(lows) > _LOWS:
            lows[:2] = [(lows[1][0], lows[0][1])]

    def _return_start(self, take: int, units: int) -> None:
        """Be as if a start had not been granted, as far as that can be without granting too much.

        Without it the limit would have been idle earlier, and such time is lost: it would now be busy for less by what the
        start took, or by as much as it was busy for at a later start, if that was less. `_lows` has, by the number of the start,
        the least that it was busy for then or later, in growing order. (Where it was cut short, it has less than that.)
        """
        later = [low for low in self._lows if low[0] > take]
        self._busy -= min(units, later[0][1]) if later else units
        self._lows = [low for low in self._lows if low[0] <= take]
        for number, backlog in later:
            self._note_low(number, max(0, backlog - units))
