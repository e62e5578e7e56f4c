"""`AdaptiveLimit`: as much at once as a service stands; and `Gradient`, which finds out how much that is.

A service that can do `n` calls at once takes its usual time for each as long as there are no more. Of more, each takes longer in
proportion (Little's law: `n` is what runs, divided by how many times the usual time it takes), or is refused, or times out.

                 ┌──────── some more ran as fast ────────┐
                 ▼                                       │
    CLIMBING  half as much again          slower     PROBING  a little more than is known to be right
        └────────────────┬──────────────────────────────┘▲
                         ▼                               │ as fast as usual: that was it
                    DESCENDING  to a little less than it should be
                         ├─ still slower, but faster than with more: again
                         └─ no faster than with more: it is not because of us; that is the usual time now ─► CLIMBING

What is judged is a *cohort*: calls that started one after another, when all of them have ended. So the slow ones count as well as
the fast ones. It is the larger the more the times of calls differ by themselves.
"""

from __future__ import annotations

from math import ceil, floor, log, sqrt

from parallel_exec._core.limits.kind import NEVER, ONE, Held, Kind, to_units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable

    from parallel_exec._core.limits.kind import Ending
    from parallel_exec._core.limits.needs import Need
    from parallel_exec.limits import Adaptive

# All of these are guesses, tried on simulated services (`tests/core/limits/test_adaptive.py`): other services may want others.
_CLIMB = 1.5  # times what is known to run well
_PROBE = 1.15  # times what is known to be right
_DRAINS = (0.92, 0.8, 0.6)  # of what is thought to be right, so that queues empty; of how often that was still too much
_LESS = (0.9, 0.7)  # of what was refused: when others were not, and when no other has succeeded since
_CREEP = 0.05  # more for each call, where the next step may be refused
_TOLERANCE = 0.1  # of the usual time, by which calls may be slower
_DEVIATIONS = 1.5  # standard errors, by which they may be slower on top
_PRECISION = 0.035  # to which a cohort's mean time is wanted, relative to it
_SIZES = (5, 40)  # of cohorts
_FORGET = 60.0  # seconds without a call, after which what is known is worth nothing


class _Cohort:
    """Calls that were started one after another.

    Attributes:
        number: theirs, from 1.
        size: how many they are to be.
        started: how many have started.
        busy: how many of them while most of the bound was used.
        ended: how many have ended, however.
        succeeded: how many of these have returned a value; the rest is about them.
        in_use: the sum of what was in use when they started, they included.
        seconds: the sum of what they took.
        squares: the sum of its squares.
    """

    __slots__ = ("busy", "ended", "in_use", "number", "seconds", "size", "squares", "started", "succeeded")

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.started = self.busy = self.ended = self.succeeded = 0
        self.in_use = self.seconds = self.squares = 0.0

    def start(self, is_busy: bool) -> bool:
        """Count a call; return whether the cohort is complete."""
        self.started += 1
        self.busy += is_busy
        return self.started == self.size

    def end(self, in_use: float, seconds: float, has_succeeded: bool) -> bool:
        """Count the end of a call; return whether the cohort can be judged now."""
        self.ended += 1
        if has_succeeded:
            self.succeeded += 1
            self.in_use += in_use
            self.seconds += seconds
            self.squares += seconds * seconds
        return self.ended == self.size and self.succeeded * 2 > self.size


class _Point:
    """How a cohort fared.

    Attributes:
        in_use: what was in use, in the mean.
        seconds: what a call took, in the mean.
        noise: the squared coefficient of variation of that.
        count: how many calls there were.
    """

    __slots__ = ("count", "in_use", "noise", "seconds")

    def __init__(self, cohort: _Cohort) -> None:
        self.count = count = cohort.succeeded
        self.in_use = cohort.in_use / count
        self.seconds = mean = max(1e-9, cohort.seconds / count)
        self.noise = max(0.0, (cohort.squares / mean - count * mean) / ((count - 1) * mean))


class Gradient:
    """A bound that grows while calls run as fast as usual, and shrinks when they are slower, or refused.

    Attributes:
        bound: how much may run at once.
        stale_from: when what is known is worth nothing.
    """

    def __init__(self, least: int, most: int, initial: int) -> None:
        self._least = least
        self._most = most
        self.bound = float(initial)
        self.stale_from = -NEVER
        self._known = float(initial)  # climbing: what ran well; else what is thought to be right
        self._is_climbing = True
        self._is_refused = False  # whether more than is known was refused, rather than slower
        self._usual = 0.0  # seconds that a call takes when there are few; 0: not known
        self._noise = 0.01  # the squared coefficient of variation of that
        self._slow: _Point | None = None  # what was too much; not None: descending from there
        self._drains = 0  # how often it was still as bad in proportion
        self._last_cut = 0  # what was started in this cohort or an earlier one was started before the bound was lowered
        self._has_succeeded = True  # since then
        self._cohort = _Cohort(1, _SIZES[0])

    def started(self, in_use: float) -> tuple[_Cohort, float]:
        """Return what is to be known of a call when it ends.

        Args:
            in_use: how much is in use, the call included.
        """
        cohort = self._cohort
        if cohort.start(in_use >= 0.8 * floor(self.bound)):
            self._begin_cohort()
        return cohort, in_use

    def ended(self, mark: tuple[_Cohort, float], now: float, seconds: float, ending: Ending) -> None:
        """Learn from the end of a call.

        Args:
            mark: what `started` has returned.
            now: the time.
            seconds: how long it took.
            ending: how it ended.
        """
        cohort, in_use = mark
        self.stale_from = now + _FORGET
        is_recent = cohort.number > self._last_cut
        if ending == "succeeded" and is_recent:
            self._has_succeeded = True
            if self._is_refused and in_use > self._known:
                self._climb_from(in_use)
        can_judge = cohort.end(in_use, seconds, ending == "succeeded")
        if ending == "overloaded":
            if is_recent or in_use < self._known:
                self._refused(in_use)
        elif can_judge:
            point = _Point(cohort)
            if self._usual == 0.0:
                self._usual = point.seconds
            if is_recent:
                self._judge(point, cohort.busy * 2 > cohort.size)
            else:
                self._judge_earlier(point)

    def adopt(self, old: Gradient) -> None:
        """Go on from what another one knows, whose bounds were others."""
        least, most = self._least, self._most
        vars(self).update(vars(old))
        self._least, self._most = least, most
        self._set(self.bound)
        self._begin_cohort()

    def _begin_cohort(self) -> None:
        size = sorted((_SIZES[0], ceil(self._noise / _PRECISION**2), _SIZES[1]))[1]
        self._cohort = _Cohort(self._cohort.number + 1, size)

    def _set(self, bound: float) -> None:
        self.bound = min(self._most, max(self._least, bound))

    def _cut(self, bound: float) -> None:
        """Lower the bound, and tell what starts from now on from what has started."""
        self._is_climbing = False
        self._last_cut = self._cohort.number
        self._begin_cohort()
        self._set(min(self.bound, bound))

    def _refused(self, in_use: float) -> None:
        """Less than this must run: a call was refused."""
        self._slow = None
        self._is_refused = True
        self._known = 0.98 * in_use
        self._cut(in_use * _LESS[not self._has_succeeded])
        self._has_succeeded = False

    def _slower(self, point: _Point, times: float) -> None:
        """Descend: calls took so many times the usual time."""
        self._slow = point
        self._is_refused = False
        self._known = point.in_use / times
        self._cut(self._known * _DRAINS[min(self._drains, len(_DRAINS) - 1)])

    def _climb_from(self, known: float) -> None:
        self._known = known
        self._is_climbing = True
        self._is_refused = False

    def _judge_earlier(self, point: _Point) -> None:
        """Look at calls that started before the bound was lowered: maybe that was not enough."""
        times = point.seconds / self._usual
        if self._slow is not None and times > 1 + self._tolerance(point):
            self._slow = point
            if _DRAINS[0] * point.in_use / times < self.bound:
                self._slower(point, times)

    def _judge(self, point: _Point, is_busy: bool) -> None:
        """Decide by calls that started since the bound was lowered last."""
        times = point.seconds / self._usual
        if self._slow is not None:
            is_slow = self._is_still_slow(point, times, self._slow)
        elif point.in_use > 1.02 * self._known:
            slower = (point.in_use / self._known - 1) / 2  # half of what it is if more is too much
            is_slow = not self._is_refused and times > 1 + max(min(_TOLERANCE, slower), self._error(point))
            if is_slow:
                self._slower(point, times)
            elif times < 1 + slower:
                self._climb_from(point.in_use)
        else:
            is_slow = times > 1 + self._tolerance(point)
            if is_slow:
                self._slower(point, times)
            else:
                self._usual += 0.1 * (point.seconds - self._usual)
        if not is_slow:
            self._noise += 0.2 * (point.noise - self._noise)
            if is_busy:
                self._grow(point.in_use / max(1.0, point.seconds / self._usual), point.count)

    def _is_still_slow(self, point: _Point, times: float, slow: _Point) -> bool:
        """Return whether the bound was lowered once more, by what calls take now that there are fewer."""
        tolerance = self._tolerance(point)
        share = 1.0  # of the time by which calls would be faster if all of it was for the others
        if point.in_use < 0.97 * slow.in_use:
            share = log(slow.seconds / point.seconds) / log(slow.in_use / point.in_use)
        if times <= 1 + tolerance:
            if share > 0.8:  # what was thought usual was too much already
                self._usual = point.seconds
                self._drains += 1
                self._slower(point, 1.0)
                return True
            self._usual += (1.0 if times < 1 - tolerance else 0.3) * (point.seconds - self._usual)
            if self._drains:
                self._known = max(point.in_use, slow.in_use * point.seconds / slow.seconds)
        elif share > 0.5 or point.seconds > slow.seconds * (1.05 + tolerance - _TOLERANCE):
            self._slower(point, times)
            return True
        else:
            self._usual = point.seconds
            self._climb_from(point.in_use)
            self._set(max(self.bound, slow.in_use))
        self._slow = None
        self._drains = 0
        return False

    def _grow(self, room: float, count: int) -> None:
        """Raise the bound, if there may be more room.

        Args:
            room: how much there is at least.
            count: the calls by which that is known.
        """
        if self._is_climbing:
            bound = min(self.bound + count, max(_CLIMB * room, room + 1))
        elif not self._is_refused:
            bound = max(_PROBE * self._known, floor(1.02 * self._known) + 1)
        else:
            bound = max(min(self.bound + count, 0.95 * self._known), self.bound + _CREEP * count)
        self._set(max(self.bound, bound))

    def _error(self, point: _Point) -> float:
        """Return by how much the mean time of a cohort may be off, as a part of it."""
        return _DEVIATIONS * sqrt(max(self._noise, point.noise) / point.count)

    def _tolerance(self, point: _Point) -> float:
        return _TOLERANCE + self._error(point)


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
        return Held(self, need, need, units, self.gradient.started(self._used / ONE))

    def give_back(self, held: Held, now: float, seconds: float, ending: Ending) -> None:
        """Take back what was granted, and learn from how it went."""
        if held.origin is self.identity:
            self.gradient.ended(held.mark, now, seconds, ending)
        super().give_back(held, now, seconds, ending)

    def adopt(self, old: Kind, held: Iterable[Held], now: float) -> None:
        """Take the place of another kind, and know what it has learnt."""
        super().adopt(old, held, now)
        if isinstance(old, AdaptiveLimit):
            self.gradient.adopt(old.gradient)

    def idle_from(self) -> float:
        """Return from when on this is as good as a new one: what it has learnt goes stale."""
        return max(super().idle_from(), self.gradient.stale_from)
