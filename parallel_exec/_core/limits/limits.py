"""The limits of one executor: what tasks need beside a worker, and the tasks that wait for it.

    ReadyQueue ─► Limits ─► Lines ─► Limit ─► its kind

Guarantees:
    Guarded by the executor's lock, which every caller holds. A signal handler or a finalizer that comes in the middle of a
    change may call anything: what it changes is put off until that is done, and what it would take is not there for it.
    One timer for all that time alone brings.
"""

from __future__ import annotations

from collections import deque

from parallel_exec._core.limits.grant import Limit
from parallel_exec._core.limits.kinds import make_kind
from parallel_exec._core.limits.line import NEVER
from parallel_exec._core.limits.lines import Lines
from parallel_exec._core.limits.needs import Needs
from parallel_exec._core.phase import Phase
from parallel_exec._hints import did_you_mean
from parallel_exec._needs import Named, named
from parallel_exec._sync.clock import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Mapping

    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.limits.grant import Grant
    from parallel_exec._core.limits.kind import Ending
    from parallel_exec._core.limits.line import Key, Line
    from parallel_exec._core.settings import Settings
    from parallel_exec._sync.timers import Timer
    from parallel_exec.limits import LimitStats

_MOST = 1024  # needs whose settings are kept; a guess: who has a key for each task makes new ones all the time

_TICK = 1e-9  # seconds by which the sum of what was skipped may be too small


class Limits:
    """The limits of one executor.

    Attributes:
        tokens: what is to be put into the queue of what is ready: `ReadyQueue` does so after each call.
        news: the jobs that began to wait, with the name of the limit, if that is to be told.
        busy: whether a change is under way, which the caller has interrupted.
        kept: what was granted to attempts that go on though their tasks do not wait for them.

    Args:
        timer: calls `pass_time` when it is due.
        ageing: seconds after which a task that waits counts as of one priority higher; None: never.
        tells: whether anybody wants to know what waits.
    """

    def __init__(self, timer: Timer, ageing: float | None, *, tells: bool) -> None:
        self.tokens: list[tuple[float, int, Line]] = []
        self.news: deque[tuple[AnyJob, str]] = deque()
        self.busy = False
        self.kept: set[Grant] = set()
        self._lines = Lines(self.tokens, self.news if tells else None, ageing)
        self._limits = self._lines.limits
        self._timer = timer
        self._skipped = 0.0  # seconds that were not waited for: see `skip`
        self._later: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._settings: dict[Named, Settings] = {}

    # ── what they are ───────────────────────────────────────────────────────────────────────────────────────────────

    def specs(self) -> dict[str, Any]:
        """Return what the user has set, by name."""
        return {name: limit.spec for name, limit in list(self._limits.items())}

    def use(self, timer: Timer) -> None:
        """Be woken by this timer: in a forked child, where nothing is held, as no thread came along."""
        self._timer = timer
        self.kept.clear()
        for limit in self._limits.values():
            limit.kind.recount((), self._now())

    def put(self, name: str, spec: Any, grants: Callable[[], Iterable[Grant]]) -> None:
        """Add or change a limit.

        Args:
            name: which.
            spec: what `check_spec` has returned.
            grants: returns all that are not given back; asked when it is changed, which may be after what this has interrupted.
        """
        self._do(self._put, name, spec, grants)

    def _put(self, name: str, spec: Any, grants: Callable[[], Iterable[Grant]], now: float) -> None:
        kind = make_kind(name, spec)
        limit = self._limits.get(name)
        self._settings.clear()
        if limit is None:
            self._limits[name] = Limit(name, spec, kind)
            return
        lines = self._lines.detach(limit, now)
        held = [part for grant in grants() for each, _, part in grant.parts or () if each is limit]
        kind.adopt(limit.kind, held, now)
        limit.use(spec, kind)
        for line in lines:
            self._lines.attach(line, self.error_of(line.needs), now)

    def is_held(self, name: str) -> bool:
        """Return whether an attempt that goes on in vain holds something of a limit."""
        return name in [limit.name for grant in self.kept for limit, _, _ in grant.parts or ()]

    def remove(self, name: str) -> None:
        """Remove a limit that nobody needs."""
        self._settings.clear()
        del self._limits[name]

    @property
    def refused(self) -> dict[AnyJob, ValueError]:
        """The jobs that were waiting for what can never be granted any more, since a limit was changed; to be ended."""
        return self._lines.refused

    # ── what is needed of them ──────────────────────────────────────────────────────────────────────────────────────

    def needs(self, given: Mapping[str, Any]) -> Needs:
        """Return what a task needs, in one form.

        Raises:
            TypeError, ValueError: it has what is no need, an unknown name, a key for a limit without or the reverse, or more
                than there can ever be.
        """
        needs = Needs(tuple((named(given) or {}).items()))
        error = self.error_of(needs)
        if error is not None:
            raise error
        return needs

    def error_of(self, needs: Needs) -> ValueError | None:
        """Return why something can never be granted, as the limits are; None if it can."""
        for name, need in needs.items:
            limit = self._limits.get(name)
            if limit is None:
                known = list(self._limits)
                hint = did_you_mean(name, known) or f"there are {', '.join(map(repr, known))}"
                return ValueError(f"needs[{name!r}]: this executor has no such limit: {hint}")
            try:
                limit.kind.check(need)
            except ValueError as error:
                return error.with_traceback(None)
        return None

    def settings(self, needs: Named) -> Settings | None:
        """Return what was `remember`ed, unless a limit has changed since."""
        return self._settings.get(needs)

    def remember(self, needs: Named, settings: Settings) -> None:
        """Keep the settings of a task with these needs, and none else of its own: others may have the same."""
        if len(self._settings) >= _MOST:
            self._settings.clear()
        self._settings[needs] = settings

    def obstacle(self, job: AnyJob, grants: Iterable[Grant]) -> str:
        """Return the name of a limit that never lets a job in while these grants are held; "" if there is none."""
        return self._lines.obstacle(job, grants)

    # ── jobs ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def count(self) -> int:
        """How many jobs there are."""
        return self._lines.count

    def jobs(self) -> list[AnyJob]:
        """Return all jobs, in no order, and leave them in."""
        return [*self._lines.jobs(), *self._lines.refused]

    def is_known(self, needs: Needs) -> bool:
        """Return whether others wait that need the same, so that it was checked since the limits have last changed."""
        return self._lines.line_of(needs) is not None

    def push(self, job: AnyJob) -> None:
        """Put a job in; it is given a token at once if it can have what it needs."""
        if self.busy:
            self._later.append((self._lines.push, (job,)))
            return
        self.busy = True
        try:
            self._lines.push(job, time.monotonic() + self._skipped)
        finally:
            self.busy = False
        if self._later:
            self._do_later()
        if self._lines.times:
            self._arm()

    def discard(self, job: AnyJob) -> None:
        """Take a job out that has ended."""
        self._do(self._lines.discard, job)

    def take(self, line: Line, key: Key) -> AnyJob | None:
        """Take the job that a token stands for, with what it needs; None if it is not there, or cannot have that now."""
        if self.busy:
            self._later.append((self._reshow, (line, key)))
            return None
        self.busy = True
        try:
            job = self._lines.take(line, key, time.monotonic() + self._skipped)
        finally:
            self.busy = False
        if self._later:
            self._do_later()
        if self._lines.times:
            self._arm()
        return job

    def hand_over(self, grant: Grant, before: Key | None) -> AnyJob | None:
        """Do `give_back` and `take` in one step, if it can be: see `Lines.hand_over`."""
        if self.busy:
            return None
        self.busy = True
        try:
            job = self._lines.hand_over(grant, before, time.monotonic() + self._skipped)
        finally:
            self.busy = False
        if self._later:
            self._do_later()
        return job

    def _reshow(self, line: Line, key: Key, now: float) -> None:
        """Put a token back for which somebody came while there was a change under way."""
        if line.token == key:
            self.tokens.append((*key, line))

    def give_back(self, grant: Grant, ending: Ending, seconds: float) -> None:
        """Take back what an attempt was granted, which was `ending` after so many seconds; once."""
        if grant.parts is not None:
            self._do(self._give_back, grant, ending, seconds)

    def _give_back(self, grant: Grant, ending: Ending, seconds: float, now: float) -> None:
        self._lines.give_back(grant, now, seconds, ending)

    def hold(self, name: str, needs: Needs | None, until: float) -> bool:
        """Grant nothing of a limit until a time; of one for each key, nothing of the key that is needed. False: there is none."""
        if name not in self._limits:
            return False
        self._do(self._lines.hold, name, needs, until + self._skipped)
        return True

    # ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _now(self) -> float:
        return time.monotonic() + self._skipped

    def due(self) -> float:
        """Return when time alone brings something, as `time.monotonic()`; infinity: never."""
        return self._lines.next_due() - self._skipped

    def skip(self, seconds: float) -> None:
        """Let so much time have passed."""
        self._skipped += seconds + _TICK
        self.pass_time()

    def pass_time(self) -> None:
        """Show what time has brought."""
        self._do(self._lines.pass_time)

    def _arm(self) -> None:
        due = self._lines.next_due()
        if due != NEVER and due - self._skipped < self._timer.deadline:
            self._timer.arm(due - self._skipped)

    # ── one change at a time ────────────────────────────────────────────────────────────────────────────────────────

    def _do(self, change: Callable[..., object], *args: Any) -> None:
        if self.busy:
            self._later.append((change, args))
            return
        self.busy = True
        try:
            change(*args, self._now())
        finally:
            self.busy = False
        if self._later:
            self._do_later()
        if self._lines.times:
            self._arm()

    def _do_later(self) -> None:
        while self._later:
            change, args = self._later.popleft()
            self._do(change, *args)

    # ── what there is ───────────────────────────────────────────────────────────────────────────────────────────────

    def stats(self) -> dict[str, LimitStats]:
        """Return a snapshot, by name."""
        now = self._now()
        found = {}
        # Copied in one step: a handler may come, and change what there is.
        for name, limit in list(self._limits.items()):
            waiting = {key: place.waiting() for key, place in list(limit.places.items())}
            by_key = {key: count for key, count in waiting.items() if count} if limit.has_keys else None
            found[name] = limit.kind.stats(now, sum(waiting.values()), by_key)
        return found

    def repair(self, grants: Iterable[Grant]) -> None:
        """Count what is held anew, which is in these grants, and let all jobs wait anew: a change was torn apart."""
        self._later = deque([each for each in list(self._later) if self._is_new(*each)])
        self.tokens.clear()
        self.busy = True
        try:
            now = self._now()
            held: dict[Limit, list[Any]] = {limit: [] for limit in self._limits.values()}
            for grant in grants:
                for limit, _, part in grant.parts or ():
                    held.setdefault(limit, []).append(part)
            self._lines.rebuild(held, self.error_of, now)
        finally:
            self.busy = False
        self._do_later()
        self._arm()

    def _is_new(self, change: Callable[..., object], args: tuple[Any, ...]) -> bool:
        """Return whether a change that was put off is to be done after `rebuild` too: it does what the jobs and grants tell."""
        is_push = change == self._lines.push and args[0].phase == Phase.QUEUED
        return is_push or change in (self._lines.hold, self._put)
