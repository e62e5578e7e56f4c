"""`Line`, the jobs that need the same, and `Place`, where lines wait for one limit. What becomes of them `lines.py` says."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from parallel_exec._core.phase import Phase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.limits.grant import Limit
    from parallel_exec._core.limits.needs import Needs

    Key = tuple[float, int]  # the place in the order: by priority, then as added

NEVER = float("inf")


class Place:
    """Where lines wait for one limit, or for one key of it.

    Attributes:
        limit: which.
        key: the key; None for a limit without.
        blocked: the lines, in a heap by their first jobs; an entry counts while it is its line's.
        shown: the lines that were shown from here and not taken yet, and their places in the order.
        owner: the line that reserves what time alone brings; nobody else is granted it.
        due: when its first line can be granted by time alone, if that is waited for.
        users: how many lines may wait here.
    """

    __slots__ = ("blocked", "due", "key", "limit", "owner", "shown", "users")

    def __init__(self, limit: Limit, key: Any) -> None:
        self.limit = limit
        self.key = key
        self.blocked: list[tuple[float, int, Line]] = []
        self.shown: dict[Line, Key] = {}
        self.owner: Line | None = None
        self.due = NEVER
        self.users = 0

    def first(self) -> Line | None:
        """Return the line that comes first of those that wait here."""
        blocked = self.blocked
        while blocked:
            entry = blocked[0]
            if entry[2].entry is entry:
                return entry[2]
            heappop(blocked)
        return None

    def next(self) -> Line | None:
        """Return the line that is the next to be granted: the first or, if one has reserved this, that one, if it waits here."""
        owner = self.owner
        if owner is None:
            return self.first()
        return owner if owner.at is self else None

    def joined(self) -> None:
        """One line more may wait here."""
        self.users += 1

    def left(self) -> bool:
        """One line less may wait here; returns whether it was the last."""
        self.users -= 1
        return not self.users

    def reserve_for(self, line: Line | None) -> None:
        """Grant nothing to others than this line; None: to all again."""
        self.owner = line

    def is_due(self, at: float) -> None:
        """Note when the first line can be granted by time alone; infinity: that is not waited for."""
        self.due = at

    def opens_at(self, line: Line, need: Any, now: float) -> float:
        """Return from when on the first job of a line can be granted this; infinity: another comes first, or must give back."""
        if self.owner is not None:
            if self.owner is not line:
                return NEVER
        elif self.blocked:
            first = self.first()
            if first is not None and first is not line and self.blocked[0][:2] < line.jobs[0][:2]:
                return NEVER
        return self.limit.kind.available_at(need, now)

    def waiting(self) -> int:
        """Return how many jobs wait here."""
        return sum(len(entry[2]) for entry in self.blocked if entry[2].entry is entry)

    def put(self, line: Line) -> tuple[float, int, Line]:
        """Have a line wait here, or at another place in the order than before; returns its entry."""
        order, sequence, _ = line.jobs[0]
        entry = (order, sequence, line)
        heappush(self.blocked, entry)
        if len(self.blocked) > 2 * self.users + 8:  # most are no line's any more
            self.blocked = [each for each in self.blocked if each[2].entry is each or each is entry]
            heapify(self.blocked)
        return entry


class Line:
    """The jobs that need the same.

    Attributes:
        weight: tells a token from a job in the queue of what is ready.
        needs: what they need.
        is_open: whether jobs may be put in; False once it was empty, and forgotten.
        parts: the same as (limit, what is needed of it, place), in the order in which it is taken: what time alone brings last.
        jobs: the jobs, in a heap; those that have ended since are passed over.
        gone: about how many of these there are.
        token: while it is SHOWN, the place in the order of the job that is.
        origin: the place that it was shown from, if it had waited there.
        at: while it is BLOCKED, the place.
        entry: its entry there.
        bounces: how often it was first at one place, and refused at another, since its last job was granted.
        held: what it reserves, by the limit.
        owned: the places that it reserves.
    """

    __slots__ = (
        *("at", "bounces", "entry", "gone", "held", "is_open", "jobs", "needs", "origin", "owned", "parts", "token"),
    )
    weight = -1

    def __init__(self, needs: Needs, parts: tuple[tuple[Limit, Any, Place], ...]) -> None:
        self.needs = needs
        self.is_open = True
        self.parts = parts
        self.jobs: list[tuple[float, int, AnyJob]] = []
        self.gone = 0
        self.token: Key | None = None
        self.origin: Place | None = None
        self.at: Place | None = None
        self.entry: tuple[float, int, Line] | None = None
        self.bounces = 0
        self.held: dict[Limit, Any] = {}
        self.owned: list[Place] = []

    def __len__(self) -> int:
        return max(0, len(self.jobs) - self.gone)

    def __lt__(self, other: Line) -> bool:
        """Return False: of entries of a heap at one place in the order only one counts.

        A job that is retried may come into a new line while a heap still has an entry of the line that it was in before.
        """
        return False

    def has_first(self) -> bool:
        """Return whether there is a job; it is `jobs[0]` then."""
        jobs = self.jobs
        while jobs:
            if jobs[0][2].phase == Phase.QUEUED:
                return True
            heappop(jobs)
            self.gone -= 1
        return False

    def is_hindered(self, held: dict[tuple[Limit, Any], int]) -> bool:
        """Return whether its first job cannot be granted what it needs while so many units are held, beside its own."""
        for limit, need, _ in self.parts:
            own = self.held[limit].units if limit in self.held else 0
            if limit.exceeds(need, held, own):
                return True
        return False

    def lost(self) -> None:
        """A job of it has ended."""
        self.gone += 1
        self._tidy()

    def _tidy(self) -> None:
        """Forget the jobs that have ended, if they are half of all."""
        if self.gone * 2 >= len(self.jobs):
            self.jobs = [entry for entry in self.jobs if entry[2].phase == Phase.QUEUED]
            heapify(self.jobs)
            self.gone = 0

    def need_at(self, place: Place) -> Any:
        """Return what is needed of a place's limit."""
        for _, need, each in self.parts:  # no generator: what a signal handler raises as one closes is lost
            if each is place:
                return need
        raise AssertionError("it waits nowhere else")

    def waiting(self) -> list[AnyJob]:
        """Return its jobs, in no order."""
        return [job for _, _, job in self.jobs if job.phase == Phase.QUEUED]

    def close(self) -> None:
        """Be forgotten."""
        self.is_open = False
        self.needs.wait_in(None)

    def use(self, parts: tuple[tuple[Limit, Any, Place], ...]) -> None:
        """Need the same in other places."""
        self.parts = parts

    def show(self, token: Key, origin: Place | None) -> None:
        """Be SHOWN, from a place if it had waited there."""
        self.token = token
        if origin is not None:
            self.origin = origin
            origin.shown[self] = self.jobs[0][:2]

    def block(self, place: Place) -> None:
        """Be BLOCKED at a place, or at another place in the order there."""
        self.at = place
        self.entry = place.put(self)

    def unblock(self) -> None:
        """Be BLOCKED no more."""
        self.at = self.entry = None

    def bounced(self) -> int:
        """Count that it was refused at another place than where it was first; returns how often, now."""
        self.bounces += 1
        return self.bounces

    def take(self) -> AnyJob:
        """Take out the first job, which is granted what it needs."""
        self.bounces = 0
        job = heappop(self.jobs)[2]
        if self.gone:
            self._tidy()
        return job

    def release(self) -> dict[Limit, Any]:
        """Reserve nothing any more but places; returns what it held."""
        held, self.held = self.held, {}
        self.bounces = 0
        return held

    def disown(self) -> list[Place]:
        """Reserve no place any more; returns those that it had reserved."""
        owned, self.owned = self.owned, []
        return owned

    def hide(self) -> None:
        """Be SHOWN no more."""
        self.token = None
        if self.origin is not None:
            self.origin.shown.pop(self, None)
            self.origin = None
