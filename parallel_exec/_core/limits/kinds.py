"""The kinds of limits: what counts what is held, and says when there is room.

    kind          bounds                       a need is      what is granted
    Count         what runs at once            an amount      the amount
    RateLimit     starts in any time           an amount      the amount
    Slots         what runs at once            a number       so many items of the list
    AdaptiveLimit what runs at once            an amount      the amount        (`adaptive.py`)
    PerKeyLimit   the same, for each key       a key          what its key's limit grants for 1

    check(need) ─► available_at(need, now) ≤ now ─► take(need, now) ─► Held ─► give_back(held, now, seconds, ending)

Guarantees:
    They have no lock and no clock: all is guarded by the executor's lock, which every caller holds, and `now` is given. No
    code of a user's runs here but the `__hash__` and `__eq__` of keys.
    What is taken is counted until it is given back, once; whoever takes sees to that (`grant.py`). If a limit is changed
    meanwhile, the kind that takes the old one's place takes it back, and counts it until then, whatever kind it is.
    Amounts are kept as whole multiples of `1 / ONE`, rounded down: sums do not drift, and ten times 0.1 fit into 1.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from parallel_exec._core.limits.adaptive import AdaptiveLimit
from parallel_exec._core.limits.kind import NEVER, ONE, Held, Kind, to_amount, to_units
from parallel_exec._core.limits.rate import RateLimit
from parallel_exec.limits import Adaptive, LimitStats, PerKey, Rate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Hashable, Iterable, Mapping

    from parallel_exec._core.limits.kind import Ending
    from parallel_exec._core.limits.needs import Need

_SHARED = 100  # a guess: amounts that tasks ask for, of which no more than one record is made


class Count(Kind):
    """So much at once."""

    def __init__(self, name: str, limit: float) -> None:
        super().__init__(name)
        self._limit = limit
        self._most = to_units(limit)
        self._shared: dict[Need, Held] = {}  # few amounts are ever asked for

    def check(self, need: Need) -> None:
        """Refuse what can never be granted."""
        self._check_amount(need, self._limit, f"there is no more than {{}} of {self.name!r}")

    def bound(self) -> float:
        """Return the count."""
        return self._limit

    def available_at(self, need: Need, now: float) -> float:
        """Return from when on it can be granted."""
        units = need * ONE if type(need) is int else to_units(need)
        return self.held_until if self._used + units <= self._most else NEVER

    def take(self, need: Need, now: float) -> Held:
        """Grant what is available."""
        held = self._shared.get(need)
        if held is None:
            held = Held(self, need, need, to_units(need))
            if len(self._shared) < _SHARED:
                self._shared[need] = held
        self._used += held.units
        self.granted += 1
        return held

    def pass_on(self, now: float) -> bool:
        """Grant as much as is taken back, unless the limit was changed to less than is in use."""
        if self.held_until > now or self._used > self._most:
            return False
        self.granted += 1
        return True


class Slots(Kind):
    """The items of a list, each to one at a time: the one first that was longest not in use.

    So a device that somebody was killed on has time to free its memory, and all are worn alike.
    """

    def __init__(self, name: str, items: tuple[Any, ...]) -> None:
        super().__init__(name)
        self._items = items
        self._free = deque(range(len(items)))
        self._out: dict[Held, list[int]] = {}

    def check(self, need: Need) -> None:
        """Refuse what can never be granted."""
        self._check_amount(need, len(self._items), f"{self.name!r} has {{}} items")
        if need != int(need):  # type: ignore[arg-type]
            raise ValueError(f"needs[{self.name!r}] takes a whole number, as that limit hands out items, not {need!r}")

    def bound(self) -> float:
        """Return how many items there are."""
        return len(self._items)

    def available_at(self, need: Need, now: float) -> float:
        """Return from when on it can be granted."""
        return self.held_until if need <= len(self._free) else NEVER  # type: ignore[operator]

    def take(self, need: Need, now: float) -> Held:
        """Grant what is available."""
        indices = [self._free.popleft() for _ in range(int(need))]  # type: ignore[arg-type]
        held = Held(self, need, tuple(self._items[index] for index in indices), len(indices) * ONE)
        self._out[held] = indices
        self._used += held.units
        self.granted += 1
        return held

    def give_back(self, held: Held, now: float, seconds: float, ending: Ending) -> None:
        """Take back the items that were granted; those of another list that this one does not have are nobody's."""
        indices = self._out.pop(held, [])
        self._used -= len(indices) * ONE
        if ending == "unused":
            self.granted -= 1
            self._free.extendleft(reversed(indices))
        else:
            self._free.extend(indices)

    def recount(self, held: Iterable[Held], now: float) -> None:
        """Count this as held, and nothing else: of another list's items those that are in this one, too."""
        free = [*self._free, *sorted({*range(len(self._items))}.difference(self._free))]
        known, self._out = self._out, {}
        others = []
        for each in held:
            if each in known:
                self._out[each] = known[each]
                free = [index for index in free if index not in known[each]]
            elif isinstance(each.granted, tuple):
                others.append(each)
        for each in others:
            self._out[each] = []
            for item in each.granted:
                same = next((index for index in free if self._items[index] == item), None)
                if same is not None:
                    free.remove(same)
                    self._out[each].append(same)
        self._free = deque(free)
        self._used = sum(map(len, self._out.values())) * ONE


class PerKeyLimit(Kind):
    """One limit of a kind for each key, which is made when it is needed, and dropped when it is as good as a new one.

    Attributes:
        by_key: the keys' limits.
    """

    def __init__(self, name: str, make: Callable[[], Kind]) -> None:
        super().__init__(name)
        self._make = make
        self._new = make()  # what a key has that has none
        self.by_key: dict[Hashable, Kind] = {}
        self._drops: list[tuple[float, int, Hashable]] = []  # a heap: when to look at which
        self._listed: set[Hashable] = set()  # those that are in it
        self._numbers = 0

    def check(self, need: Need) -> None:
        """Refuse what can never be granted."""
        if isinstance(need, (int, float)):
            raise ValueError(
                f"needs[{self.name!r}] takes a key, as that limit has one for each, and a key is no number, not {need!r}: "
                f"write str({need!r})"
            )

    def bound(self) -> float:
        """Return how much each key has."""
        return self._new.bound()

    def available_at(self, need: Need, now: float) -> float:
        """Return from when on it can be granted."""
        return max(self.held_until, self.by_key.get(need, self._new).available_at(1, now))

    def take(self, need: Need, now: float) -> Held:
        """Grant what is available."""
        self._drop_some(now)
        inner = self._kind_of(need).take(1, now)
        self._used += ONE
        self.granted += 1
        return Held(self, need, inner.granted, inner.units, inner)

    def give_back(self, held: Held, now: float, seconds: float, ending: Ending) -> None:
        """Take back what was granted."""
        if not isinstance(held.mark, Held):  # of what had no keys
            return
        self._used -= ONE
        if ending == "unused":
            self.granted -= 1
        self._kind_of(held.need).give_back(held.mark, now, seconds, ending)
        self._look_at(held.need, now)
        self._drop_some(now)

    def hold(self, need: Need, until: float) -> None:
        """Grant nothing of a key until a time."""
        self._kind_of(need).hold(1, until)
        self._look_at(need, -NEVER)

    def adopt(self, old: Kind, held: Iterable[Held], now: float) -> None:
        """Take the place of another kind; what was granted without a key is not counted."""
        super().adopt(old, held, now)
        if isinstance(old, PerKeyLimit):
            by_key = _by_key(held)
            for key, kind in old.by_key.items():
                self._kind_of(key).adopt(kind, by_key.get(key, ()), now)
                self._look_at(key, now)

    def recount(self, held: Iterable[Held], now: float) -> None:
        """Count this as held, and nothing else."""
        by_key = _by_key(held)
        self._used = ONE * sum(map(len, by_key.values()))
        for key in {*by_key, *self.by_key}:
            self._kind_of(key).recount(by_key.get(key, ()), now)
            self._look_at(key, now)

    def idle_from(self) -> float:
        """Return from when on this is as good as a new one."""
        return max((kind.idle_from() for kind in self.by_key.values()), default=self.held_until)

    def stats(self, now: float, waiting: int = 0, waiting_by_key: Mapping[Hashable, int] | None = None) -> LimitStats:
        """Return what `stats()` shows."""
        by_key = waiting_by_key or {}
        self._drop_some(now, len(self._drops))
        keys = {key: self.by_key.get(key, self._new).stats(now, by_key.get(key, 0)) for key in {*self.by_key, *by_key}}
        soonest = min((each.next_grant for each in keys.values() if each.next_grant is not None), default=None)
        return LimitStats(self.name, to_amount(self._used), waiting, self.granted, self.bound(), soonest, keys)

    def _kind_of(self, key: Hashable) -> Kind:
        """Return a key's limit, made if there is none."""
        kind = self.by_key.get(key)
        if kind is None:
            kind = self.by_key[key] = self._make()
        return kind

    def _look_at(self, key: Hashable, now: float) -> None:
        """Drop a key's limit, or see to it that this is looked at later, unless something of it is held."""
        idle_from = self.by_key[key].idle_from()
        if idle_from <= now:
            del self.by_key[key]
        elif idle_from < NEVER and key not in self._listed:
            self._numbers += 1
            self._listed.add(key)
            heappush(self._drops, (idle_from, self._numbers, key))

    def _drop_some(self, now: float, most: int = 2) -> None:
        """Look at some of those that may have become as good as new ones: at more than can become so meanwhile."""
        for _ in range(most):
            if not self._drops or self._drops[0][0] > now:
                break
            _, _, key = heappop(self._drops)
            self._listed.discard(key)
            if key in self.by_key:
                self._look_at(key, now)


def _by_key(held: Iterable[Held]) -> dict[Hashable, list[Held]]:
    """Return what keys' limits have granted, by key."""
    by_key: dict[Hashable, list[Held]] = {}
    for each in held:
        if isinstance(each.mark, Held):
            by_key.setdefault(each.need, []).append(each.mark)
    return by_key


def make_kind(name: str, spec: Any) -> Kind:
    """Return what counts for a limit.

    Args:
        name: the limit's.
        spec: what `check_spec` has returned.
    """
    if isinstance(spec, PerKey):
        return PerKeyLimit(name, lambda: make_kind(name, spec.limit))
    if isinstance(spec, Rate):
        return RateLimit(name, spec)
    if isinstance(spec, Adaptive):
        return AdaptiveLimit(name, spec)
    return Slots(name, spec) if isinstance(spec, tuple) else Count(name, spec)
