"""What all kinds of limits have: `Kind`, their base, and `Held`, what one attempt holds."""

from __future__ import annotations

from abc import ABC, abstractmethod

from parallel_exec.limits import LimitStats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Hashable, Iterable, Literal, Mapping

    from parallel_exec._core.limits.needs import Need

    Ending = Literal["succeeded", "failed", "overloaded", "unused"]

ONE = 1 << 40  # what an amount of 1 is kept as
NEVER = float("inf")


class Held:
    """What one attempt holds of one limit; it may be shared by attempts that hold as much of the same.

    Attributes:
        origin: the `identity` of what granted it (and not that itself, which may keep this). If the limit was changed since,
            another one takes it back, which `adopt` has told of it.
        need: what was asked for.
        granted: what the task is told that it has: an amount, or a tuple of items.
        units: how much it is, where amounts are counted.
        mark: what that needs to take it back.
    """

    __slots__ = ("granted", "mark", "need", "origin", "units")

    def __init__(self, kind: Kind, need: Need, granted: Any, units: int, mark: Any = None) -> None:
        self.origin = kind.identity
        self.need = need
        self.granted = granted
        self.units = units
        self.mark = mark


def to_units(amount: Any) -> int:
    """Return an amount as it is kept."""
    if type(amount) is int:
        return amount * ONE
    return max(1, int(amount * ONE)) if amount < ONE else int(amount) * ONE


def to_amount(units: int) -> int | float:
    """Return what is kept as the amount that people see."""
    whole, rest = divmod(units, ONE)
    return whole + round(rest / ONE, 9) if rest else whole


class Kind(ABC):
    """What all kinds have.

    Attributes:
        name: the limit's, for messages.
        held_until: until then nothing is granted.
        granted: how often something was.
        identity: stands for this in what it has granted.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.identity = object()
        self.held_until = -NEVER
        self.granted = 0
        self._used = 0  # units that are held

    @abstractmethod
    def check(self, need: Need) -> None:
        """Refuse what can never be granted.

        Raises:
            ValueError: it is more than there can be, or a key for a limit that has none, or the reverse.
        """

    @abstractmethod
    def available_at(self, need: Need, now: float) -> float:
        """Return from when on a need can be granted, a time that may be past; infinity if first something must be given back."""

    @abstractmethod
    def take(self, need: Need, now: float) -> Held:
        """Grant what is available."""

    def give_back(self, held: Held, now: float, seconds: float, ending: Ending) -> None:
        """Take back what was granted.

        Args:
            held: what `take` returned, here or, before the limit was changed, elsewhere.
            now: the time.
            seconds: how long the attempt ran.
            ending: how it ended: "overloaded" if by a timeout or `RetryAfter`, "unused" if it never began.
        """
        self._used -= held.units
        if ending == "unused":
            self.granted -= 1

    def pass_on(self, now: float) -> bool:
        """Take back what an attempt has held, and grant it to another that needs the same, if that makes no difference to it.

        Returns:
            Whether it did.
        """
        return False

    def hold(self, need: Need, until: float) -> None:
        """Grant nothing until a time; of a limit with keys, nothing of the key that is needed."""
        self.hold_all(until)

    def hold_all(self, until: float) -> None:
        """Grant nothing until a time, whatever the key."""
        self.held_until = max(self.held_until, until)

    def adopt(self, old: Kind, held: Iterable[Held], now: float) -> None:
        """Take the place of another kind: count what is held of it, and go on from what it knows.

        Args:
            old: the other one, which is used no more.
            held: all that it has granted, or adopted itself, and that was not given back.
            now: the time.
        """
        self.held_until = old.held_until
        self.granted = old.granted
        self.recount(held, now)

    def recount(self, held: Iterable[Held], now: float) -> None:
        """Count this as held, and nothing else."""
        self._used = sum(each.units for each in held)

    def idle_from(self) -> float:
        """Return from when on this is as good as a new one; infinity while something is held."""
        return NEVER if self._used else self.held_until

    @abstractmethod
    def bound(self) -> float:
        """Return how much there is, as statistics show it."""

    def stats(self, now: float, waiting: int = 0, waiting_by_key: Mapping[Hashable, int] | None = None) -> LimitStats:
        """Return what `stats()` shows.

        Args:
            now: the time.
            waiting: how many tasks wait for it.
            waiting_by_key: how many wait for each key, where it has keys.
        """
        at = self.available_at(1, now)
        next_grant = at - now if now < at < NEVER else None
        return LimitStats(self.name, to_amount(self._used), waiting, self.granted, self.bound(), next_grant)

    def _check_amount(self, need: Need, most: float, how_many: str) -> None:
        if not isinstance(need, (int, float)):
            raise ValueError(
                f"needs[{self.name!r}] takes how much, a number, as that limit has no keys, not {need!r}: one with a limit "
                f'for each key is limits={{"{self.name}": PerKey(...)}}'
            )
        if to_units(need) > to_units(most):
            raise ValueError(f"needs[{self.name!r}] is {need!r}, and {how_many.format(most)}")
