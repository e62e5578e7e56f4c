"""Lines: the jobs that need the same of the same limits, and where each line waits.

    push ──► EMPTY ── granted now? ── yes ──► SHOWN ── take ──► granted, all or nothing; the next job of the line is looked at
                            │                   ▲  │
                            no                  │  └─ refused: somebody was first ─┐
                            ▼                   │                                  │
                         BLOCKED ◄──────────────┼──────────────────────────────────┘
                            └─ release, time, a change: the first at its `Place` that fits ─┘

A line is a heap of jobs. Of one that is SHOWN the queue of what is ready has a *token*, at its first job's place in the order:
whoever comes to it takes that job. One that is BLOCKED is in the heap of one `Place`: that of the first limit, or key of a
limit, which refuses its first job.

Guarantees:
    Strict order at one place: what is first there keeps those behind it waiting, so that a large request is not starved by
    small ones. A line that was first at one place and then refused at another, twice, *reserves*: it takes what it can, in the
    order of its limits, and keeps that until it is granted. Nothing else holds room that it does not use. Whoever reserves
    waits only for what comes later in that order than all it holds, or for what runs: so there is no deadlock.
    At each place where a line is blocked: the first cannot be granted here now, or a line of those shown comes before it, or
    `due` is the time at which it can.
    Nothing scans: a step costs O(log n) of the jobs of its line, and of the lines at its place. A release looks at the first
    line of each place that it frees, a job that was granted at the next of its line.

    What an attempt has held is handed on to its line's next job as it is, where `give_back` and `take` would come to that.

Pure: no lock, no clock (`now` is given); what is shown is put into a list.
"""

from __future__ import annotations

from heapq import heappop, heappush

from parallel_exec._core.limits.grant import Grant
from parallel_exec._core.limits.line import NEVER, Line, Place
from parallel_exec._core.phase import Phase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from typing import Any, Callable, Iterable

    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.limits.grant import Limit
    from parallel_exec._core.limits.kind import Ending, Held
    from parallel_exec._core.limits.line import Key

    Refusal = tuple[Place, float]  # where a line is refused, and from when on that place could grant it what it needs
    from parallel_exec._core.limits.needs import Needs

_BOUNCES = 2  # after which a line reserves


class Lines:
    """All lines of one executor. Guarded by its lock, which every caller holds.

    Attributes:
        limits: by name.
        by_needs: the lines; one that is empty is forgotten.
        count: how many jobs there are.
        times: when places are due, in a heap; those that are not any more are passed over.
        refused: those that can never be granted any more what they need, and why: they are in no line, and about to be ended.

    Args:
        tokens: what is shown is put there, as entries for the queue of what is ready.
        news: the jobs that begin to wait are put there, with the name of the limit; None: nobody wants to know.
        ageing: seconds after which a job counts as of one priority higher; None: never.
    """

    def __init__(
        self,
        tokens: list[tuple[float, int, Line]],
        news: deque[tuple[AnyJob, str]] | None = None,
        ageing: float | None = None,
    ) -> None:
        self.limits: dict[str, Limit] = {}
        self.count = 0
        self.refused: dict[AnyJob, ValueError] = {}
        self._tokens = tokens
        self._news = news
        self._since: dict[AnyJob, float] = {}  # when jobs began to wait, if that is to be told
        self._ageing = ageing
        self.by_needs: dict[Needs, Line] = {}
        self.times: list[tuple[float, int, Place]] = []
        self._torn: dict[AnyJob, None] = {}  # what `rebuild` puts back, until all of it is: it may be torn apart, too
        self._numbers = 0

    # ── jobs ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def push(self, job: AnyJob, now: float) -> None:
        """Put a job in, which is QUEUED: at the end of its line, or where its priority is."""
        self.count += 1
        if job.phase != Phase.QUEUED:  # a signal handler has ended it, and `discard`ed what was not in
            return
        needs = job.settings.needs
        assert needs is not None
        line = self.line_of(needs)
        if line is None:
            line = self.by_needs[needs] = Line(needs, self._parts(needs))
            needs.wait_in(line)
        jobs = line.jobs
        heappush(jobs, (*self._key(job), job))
        if jobs[0][2] is job:
            if line.at is not None:
                self._reorder(line, now)
            else:
                self._place(line, now)
        elif self._news is not None and line.at is not None:
            self._note(job, line.at, now)

    def line_of(self, needs: Needs) -> Line | None:
        """Return the line of what needs this."""
        line: Line | None = needs.line
        return line if line is not None and line.is_open else self.by_needs.get(needs)

    def _key(self, job: AnyJob) -> Key:
        """Return a job's place in the order."""
        order: float = -job.priority
        if self._ageing is not None:
            order += job.queued_at / self._ageing
        return order, job.sequence

    def discard(self, job: AnyJob, now: float) -> None:
        """Take out a job that has ended; its phase says so."""
        self.count -= 1
        self._since.pop(job, None)
        needs = job.settings.needs
        line = None if needs is None else self.line_of(needs)
        if line is None or not line.jobs:
            self.refused.pop(job, None)
            return
        was_first = line.jobs[0][2] is job
        line.lost()
        if was_first and not line.has_first():
            self._close(line, now)
        elif was_first and line.at is not None:
            self._reorder(line, now)
        elif was_first:
            origin = line.origin
            line.hide()
            self._place(line, now, origin)
            if origin is not None:
                self.look(origin, now)

    def take(self, line: Line, key: Key, now: float) -> AnyJob | None:
        """Take the job that a token was shown for, and grant what it needs; None if it is not there, or cannot have that now."""
        if line.token != key:
            return None
        origin = line.origin
        line.hide()
        if not line.has_first():
            self._close(line, now)
            job = None
        else:
            refusing = self._refusing(line, now)
            if refusing is not None and origin is not None and refusing[0] is not origin:
                refusing = self._bounce(line, refusing, now)
            if refusing is not None:
                self._block(line, *refusing, now)
                job = None
            else:
                job = self._grant(line, now)
        if origin is not None and origin.blocked:
            self.look(origin, now)
        return job

    def _grant(self, line: Line, now: float) -> AnyJob:
        """Grant its first job what it needs, which is there; returns the job."""
        held = line.release() if line.held else line.held
        parts = [
            (limit, need, held[limit] if limit in held else limit.kind.take(need, now)) for limit, need, _ in line.parts
        ]
        job = line.take()
        self.count -= 1
        job.hold(Grant(line, parts, job.attempt_number + 1, self._waited(job, now) if self._since else None))
        if line.owned:
            self._disown(line, now)
        if line.has_first():
            self._place(line, now)
        else:
            self._close(line, now)
        return job

    def _waited(self, job: AnyJob, now: float) -> float | None:
        """Return for how long a job has waited that waits no more, if anybody wants to know."""
        since = self._since.pop(job, None)
        return None if since is None else now - since

    def hand_over(self, grant: Grant, before: Key | None, now: float) -> AnyJob | None:
        """Grant what one attempt held, which has ended, to the first job of the same line as it is.

        Args:
            grant: that; it is given back then.
            before: the place in the order of what else is ready; None: nothing is.
            now: the time.

        Returns:
            The job; None if that is not what `give_back` and `take` would come to.
        """
        line: Line = grant.line
        place = line.at or line.parts[0][2]
        if len(line.parts) > 1 or place.owner is not None or not grant.parts or not line.has_first():
            return None
        if line.at is None:  # SHOWN: its token must be what is first
            if line.token is None or before != line.token or line.origin is not None or place.blocked:
                return None
        elif place.shown or place.first() is not line or (before is not None and before < self._token(line, now)):
            return None
        limit, _, held = grant.parts[0]
        kind = limit.kind
        if held.origin is not kind.identity or not kind.pass_on(now):
            return None
        job = line.take()
        self.count -= 1
        grant.pass_to(job.attempt_number + 1, self._waited(job, now) if self._since else None)
        job.hold(grant)
        if not line.has_first():
            self._close(line, now)
        elif line.at is not None:
            heappop(place.blocked)
            self._block(line, place, NEVER, now)
        else:
            opens_at = kind.available_at(held.need, now)
            if opens_at <= now:
                self._show(line, now, None)
            else:
                line.hide()
                self._block(line, place, opens_at, now)
        return job

    def jobs(self) -> list[AnyJob]:
        """Return all jobs, in no order."""
        return [job for line in list(self.by_needs.values()) for job in line.waiting()]

    def obstacle(self, job: AnyJob, grants: Iterable[Grant]) -> str:
        """Return the name of a limit that never lets a job in while these grants are held, "" if there is none; O(all lines).

        It is in the way itself, or for what stands before the job at it.
        """
        held: dict[tuple[Limit, Any], int] = {}  # units, by the limit and the key
        parts = [(limit, need, part) for grant in grants for limit, need, part in grant.parts or ()]
        for line in list(self.by_needs.values()):
            if line.held:  # it reserves this, until it can have the rest
                parts += [(limit, need, line.held[limit]) for limit, need, _ in line.parts if limit in line.held]
        for limit, need, part in parts:
            key = limit, limit.key_of(need)
            held[key] = held.get(key, 0) + part.units
        needs = job.settings.needs
        own = self._key(job)
        for name, need in () if needs is None else needs.items:
            limit = self.limits[name]
            place = limit.places.get(limit.key_of(need))
            before = [] if place is None else [entry[2] for entry in place.blocked if entry[:2] < own]
            if limit.exceeds(need, held) or any(line.is_hindered(held) for line in before if line.at is place):
                return name
        return ""

    def give_back(self, grant: Grant, now: float, seconds: float, ending: Ending) -> None:
        """Take back what an attempt was granted, which was `ending` after so many seconds; once."""
        for limit, need, held in grant.surrender():
            limit.kind.give_back(held, now, seconds, grant.ending_of(limit, ending))
            place = limit.places.get(need if limit.has_keys else None)
            if place is not None and place.blocked:
                self.look(place, now)

    # ── lines ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _parts(self, needs: Needs) -> tuple[tuple[Limit, Any, Place], ...]:
        """Return what is needed, with the places, of each of which there is one user more."""
        parts = []
        for name, need in needs.items:
            limit = self.limits[name]
            key = need if limit.has_keys else None
            place = limit.places.get(key)
            if place is None:
                place = limit.places[key] = Place(limit, key)
            place.joined()
            parts.append((limit, need, place))
        if len(parts) > 1:
            parts.sort(key=lambda part: part[0].is_by_time)  # by name otherwise, as they are
        return tuple(parts)

    def _close(self, line: Line, now: float) -> None:
        """Forget a line that is empty."""
        line.close()  # first: one that is open yet forgotten would be joined, and `rebuild` would not find who is in it
        self.by_needs.pop(line.needs, None)
        self._detach(line, now)

    def _detach(self, line: Line, now: float) -> None:
        """Have a line wait nowhere, and reserve nothing."""
        left = [place for place in (line.at, line.origin) if place is not None]
        line.unblock()
        line.hide()
        if line.held or line.owned:
            self._release(line, now)
        for limit, _, place in line.parts:
            if place.left() and limit.places.get(place.key) is place:
                del limit.places[place.key]
                place.is_due(NEVER)
        for place in left:
            self.look(place, now)

    def _place(self, line: Line, now: float, origin: Place | None = None) -> None:
        """Show a line that waits nowhere, or let it wait where it is refused."""
        refusing = self._refusing(line, now)
        if refusing is None:
            self._show(line, now, origin or line.origin)
            return
        origin = line.origin
        line.hide()
        self._block(line, *refusing, now)
        if origin is not None:
            self.look(origin, now)

    def _show(self, line: Line, now: float, origin: Place | None) -> None:
        token = self._token(line, now)
        line.show(token, origin)
        self._tokens.append((*token, line))

    def _token(self, line: Line, now: float) -> Key:
        """Return the place that a line's first job has in the order of what is ready."""
        _, sequence, job = line.jobs[0]
        priority = job.priority
        if self._ageing is not None:
            priority += int((now - job.queued_at) / self._ageing)
        return -priority, sequence

    def _block(self, line: Line, place: Place, opens_at: float, now: float) -> None:
        """Let a line wait at a place, which can grant its first job what it needs at a time."""
        line.block(place)
        if self._news is not None:
            self._note(line.jobs[0][2], place, now)
        if opens_at not in (NEVER, place.due) and place.next() is line:
            self._due(place, opens_at)

    def _reorder(self, line: Line, now: float) -> None:
        """Have a line that waits wait at its first job's place in the order."""
        place = line.at
        assert place is not None
        line.block(place)
        if self._news is not None:
            self._note(line.jobs[0][2], place, now)
        self.look(place, now)

    def _note(self, job: AnyJob, place: Place, now: float) -> None:
        """Note that a job waits, and tell whoever wants to know unless it did before."""
        assert self._news is not None
        if job not in self._since:
            self._since[job] = now
            self._news.append((job, place.limit.name))

    def _refusing(self, line: Line, now: float) -> Refusal | None:
        """Return where the first job of a line cannot be granted what it needs now; None if it can, all of it."""
        if line.bounces >= _BOUNCES:
            return self._reserve(line, now)
        for _, need, place in line.parts:
            opens_at = place.opens_at(line, need, now)
            if opens_at > now:
                return place, opens_at
        return None

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, name: str, needs: Needs | None, until: float, now: float) -> None:
        """Grant nothing of a limit, or of the key of it that is needed, until a time."""
        limit = self.limits[name]
        need = None if needs is None else needs.get(name)
        if need is None:
            limit.kind.hold_all(until)
        else:
            limit.kind.hold(need, until)
        for key in list(limit.places) if need is None else [limit.key_of(need)]:
            if key in limit.places:
                self.look(limit.places[key], now)

    def detach(self, limit: Limit, now: float) -> list[Line]:
        """Take out all lines for a limit, which is about to be changed, and return them; each must be `attach`ed then."""
        lines = [line for line in self.by_needs.values() if limit in [each for each, _, _ in line.parts]]
        for line in lines:
            self._detach(line, now)
        return lines

    def attach(self, line: Line, error: ValueError | None, now: float) -> None:
        """Put a line back; or refuse its jobs, if there is an error."""
        if error is not None:
            self.refused.update(dict.fromkeys(line.waiting(), error))
            line.close()
            del self.by_needs[line.needs]
        else:
            line.use(self._parts(line.needs))
            if line.has_first():
                self._place(line, now)
            else:
                self._close(line, now)

    def rebuild(
        self, held: dict[Limit, list[Held]], error_of: Callable[[Needs], ValueError | None], now: float
    ) -> None:
        """Count what is held anew, and let all jobs wait anew, but for those to whose needs there is an error."""
        torn = [job for job in self._torn if job.phase == Phase.QUEUED]
        self._torn = jobs = dict.fromkeys([*self.jobs(), *self.refused, *torn])  # before any is in no line
        self.refused = {}
        for line in self.by_needs.values():
            line.hide()
            line.close()
        self.by_needs = {}
        self.times = []
        self.count = 0
        for limit, parts in held.items():
            limit.places.clear()
            limit.kind.recount(parts, now)
        for job in jobs:
            if job.settings.needs is not None:
                job.settings.needs.wait_in(None)  # it may know a line that was about to be forgotten
        for job in jobs:
            needs = job.settings.needs
            error = None if needs is None or self.line_of(needs) is not None else error_of(needs)
            if error is None:
                self.push(job, now)
            elif job.phase == Phase.QUEUED:
                self.refused[job] = error
                self.count += 1
        self._torn = {}

    # ── several limits ──────────────────────────────────────────────────────────────────────────────────────────────

    def _bounce(self, line: Line, refusing: Refusal, now: float) -> Refusal | None:
        """Count that a line, first at one place, is refused at another; returns as `_refusing`, as it may reserve from now on."""
        return self._reserve(line, now) if line.bounced() == _BOUNCES else refusing

    def _reserve(self, line: Line, now: float) -> Refusal | None:
        """Take what a line can have, in order; returns as `_refusing`."""
        for limit, need, place in line.parts:
            if limit in line.held:
                continue
            opens_at = place.opens_at(line, need, now)
            if opens_at > now:
                return place, opens_at
            if not limit.is_by_time:
                line.held[limit] = limit.kind.take(need, now)
            elif place.owner is None:
                place.reserve_for(line)
                line.owned.append(place)
        return None

    def _disown(self, line: Line, now: float) -> None:
        for place in line.disown():
            place.reserve_for(None)
            self.look(place, now)

    def _release(self, line: Line, now: float) -> None:
        """Give back what a line reserves."""
        held = line.release()
        self._disown(line, now)
        for limit, _, place in line.parts:
            if limit in held:
                limit.kind.give_back(held[limit], now, 0.0, "unused")
                self.look(place, now)

    # ── places ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def look(self, place: Place, now: float) -> None:
        """Show the first line at a place if it can be granted now, or see to it that this is done when it can."""
        while (line := place.next()) is not None:
            if place.shown and line.jobs[0][:2] > min(place.shown.values()):
                return
            is_all = len(line.parts) == 1
            need = line.parts[0][1] if is_all else line.need_at(place)
            at = place.limit.kind.available_at(need, now)
            if at > now:
                if at not in (NEVER, place.due):
                    self._due(place, at)
                return
            line.unblock()
            refusing = None if is_all else self._refusing(line, now)
            if refusing is not None and refusing[0] is not place:
                refusing = self._bounce(line, refusing, now)
            if refusing is None:
                self._show(line, now, place)
            else:
                self._block(line, *refusing, now)

    def _due(self, place: Place, at: float) -> None:
        place.is_due(at)
        self._numbers += 1
        heappush(self.times, (at, self._numbers, place))

    def next_due(self) -> float:
        """Return when something can be granted by time alone."""
        times = self.times
        while times and times[0][2].due != times[0][0]:
            heappop(times)
        return times[0][0] if times else NEVER

    def pass_time(self, now: float) -> None:
        """Show what can be granted by now."""
        while self.next_due() <= now:
            place = heappop(self.times)[2]
            place.is_due(NEVER)
            self.look(place, now)
