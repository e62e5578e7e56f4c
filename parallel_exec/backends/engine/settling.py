"""How attempts in somebody else's engine begin and end: the half of `runner.py` that is not about handing them over.

    in the engine's thread:  ticket called ──► begin ──► call ──► report
    in the settler:          "it began", from elsewhere ──► begin          done ──► report, or the engine's own error
                             stop ──► cancel, or else abandon ──► settle   recall ──► cancel

Guarantees:
    What the engine calls us with takes none of the scheduler's locks: it may call from inside its own `cancel`.
    A place is released once, when its attempt is settled, whatever the engine still does.
    An attempt that the engine does not let go of is abandoned: settled at once, its place given to the next, what it
    returns dropped. It is counted until the engine says that it has ended.
"""

from __future__ import annotations

import abc
import threading
from concurrent.futures import BrokenExecutor, CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING, Any, Optional

from parallel_exec._current import current
from parallel_exec._outcome import Failure, Outcome
from parallel_exec._sync.clock import time
from parallel_exec.backends.base import Backend, log_abandoned
from parallel_exec.backends.engine.submission import BEGUN, WITHDRAWN, Place, Ticket
from parallel_exec.events import WorkerDied, logger

if TYPE_CHECKING:
    from parallel_exec.backends.engine.remote_call import Reply
    from parallel_exec.backends.engine.serial_thread import Clerk
    from parallel_exec.future import TaskFuture

    AnyFuture = TaskFuture[Any]
    Inner = Future[Optional[Reply]]


class Settling(Backend):
    """The state of the attempts in an engine. What has no note is changed by any thread, in single atomic calls."""

    _feeder: Clerk  # both written once, by the first `wake`
    _settler: Clerk

    def __init__(self) -> None:
        self.fates = threading.RLock()  # guards what tickets say it guards
        self._active: set[Ticket] = set()  # hold a place: handed over, or live
        self._inside: set[Ticket] = set()  # the engine has not done with them
        self._stuck: set[Ticket] = set()  # abandoned, and still running
        self._tickets: dict[int, Ticket] = {}  # by serial, those inside that have set out
        self._free: list[Place] = []
        self._sick = False  # whether the engine's failure was told; the settler's own

    @abc.abstractmethod
    def _cancel(self, ticket: Ticket, inner: Inner) -> None:
        """Have the engine stop a ticket, as far as it can. Called by the settler."""

    def _stops(self, ticket: Ticket) -> bool:
        """Return whether the engine ends a call that it is told to cancel, or says itself that it does not."""
        return self.can_kill

    def _recall_travelled(self, ticket: Ticket) -> bool:
        """Take back what was sent and has not begun, if that is certain. Called with the scheduler's lock held."""
        return False

    def _await_news(self, ticket: Ticket) -> bool:
        """Wait a moment for "it began", which the engine's "it failed" may have overtaken; return whether it came.

        Only so is a call that cannot be sent told from a result that cannot. Called by the settler.
        """
        return False

    def _overdue(self, ticket: Ticket) -> None:
        """Act on a ticket whose place's timer is due, and which is not known to have begun. Called by the settler."""

    # ── in the engine's threads ─────────────────────────────────────────────────────────────────────────────────────

    def run_here(self, ticket: Ticket) -> None:
        """Run an attempt in the calling thread."""
        before = current.running, current.number, current.pool
        current.pool = self.source
        future = ticket.future
        try:
            self._begin(ticket, threading.current_thread().name, time.monotonic())
            if ticket.number and (outcome := ticket.call()) is not None:
                self._report(ticket, outcome, time.monotonic())
        except BaseException:  # from a callback or a hook: not the engine's business
            logger.exception("a callback of task %r raised", future.id)
        finally:
            current.running, current.number, current.pool = before
            ticket.is_here = False
            self._stuck.discard(ticket)
            if ticket.is_orphan:
                self._feeder.do(self._feed)

    def _done(self, ticket: Ticket, inner: Inner) -> None:
        """Hear that the engine has done with a ticket; its callback, maybe with the scheduler's lock held."""
        self._inside.discard(ticket)
        ticket.inner = None  # whose callbacks lead to the ticket
        if ticket.is_here:
            ticket.is_orphan = True  # cancelled in the engine's books only
        else:
            self._stuck.discard(ticket)
        if ticket.place is None:
            self._tickets.pop(ticket.serial, None)
            self._feeder.do(self._feed)
        else:
            self._settler.do(partial(self._ended, ticket, inner))

    def _feed(self) -> None:
        """Hand over what there is room for. Called by the feeder."""
        raise NotImplementedError

    # ── beginning and ending ────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, ticket: Ticket, worker: str, start: float) -> None:
        """Begin an attempt that the caller has claimed."""
        assert ticket.place is not None, "it holds its place until it is settled"
        ticket.worker, ticket.start = worker, start
        ticket.number = self.source.begin(ticket.future, ticket.place, worker, start)
        if not ticket.number:  # it has ended already, by a verdict or by a hook of the policy's
            self._release(ticket)

    def _report(self, ticket: Ticket, outcome: Outcome, end: float) -> None:
        """Settle an attempt, unless it is settled."""
        future = ticket.known_future
        try:
            if future is not None:
                self.source.report(future, ticket.number, outcome, end)
        finally:
            self._release(ticket)

    def _release(self, ticket: Ticket, *, reusable: bool = True) -> None:
        """Let a ticket's place go; harmless when repeated."""
        with self.fates:
            place, ticket.place = ticket.place, None
        if place is None:
            return
        place.ticket = None
        place.timer.disarm()
        self._active.discard(ticket)
        if reusable:
            self._free.append(place)

    def _began(self, ticket: Ticket, worker: str, start: float) -> None:
        """Take note that an attempt began elsewhere. The settler."""
        if ticket.claim(BEGUN):
            self._begin(ticket, worker, start)
            if not ticket.number:
                self._give_up(ticket)
        elif ticket.unwanted:
            self._let_go(ticket)
        elif worker != ticket.worker:
            self._restart_clock(ticket, worker, start)

    def _restart_clock(self, ticket: Ticket, worker: str, start: float) -> None:
        """Let the timeout count anew: the engine has lost the worker, and begun the attempt again on another."""
        future = ticket.known_future
        with self.source.lock:
            place = ticket.place
            if place is None or future is None or future._slot is not place or future._number != ticket.number:
                return
            ticket.start = future._start = start
            ticket.worker = future._worker = worker
            if future._settings.timeout is not None:
                place.timer.arm(start + future._settings.timeout)

    def _ended(self, ticket: Ticket, inner: Inner) -> None:
        """Settle what the engine has done with, if it is not settled. The settler."""
        failed = inner.cancelled() or inner.exception() is not None
        if failed and ticket.fate is None and self._await_news(ticket):
            self._settler.do(partial(self._ended, ticket, inner))  # behind the news
            return
        self._tickets.pop(ticket.serial, None)
        if ticket.is_here:
            return
        try:
            error = CancelledError("the engine cancelled the attempt") if inner.cancelled() else inner.exception()
            reply = None if error is not None else inner.result()
            if ticket.fate != WITHDRAWN and error is not None:
                self._end_badly(ticket, error)
            elif ticket.fate != WITHDRAWN and reply is not None:
                self._end_well(ticket, reply)
        finally:  # also when a callback raises what is no Exception
            self._release(ticket)
            self._feeder.do(self._feed)

    def _end_well(self, ticket: Ticket, reply: Reply) -> None:
        """Settle what the engine has run."""
        self._sick = False
        if ticket.claim(BEGUN):
            self._begin(ticket, reply.worker, time.monotonic() - reply.duration)
        future = ticket.known_future
        if ticket.number and future is not None:
            self._report(ticket, reply.outcome(future.id), ticket.start + reply.duration)

    def _end_badly(self, ticket: Ticket, error: BaseException) -> None:
        """Settle what the engine failed."""
        now = time.monotonic()
        new = ticket.claim(BEGUN)
        if new:
            self._begin(ticket, self.name, now)
        if isinstance(error, BrokenExecutor):
            self._tell_sick(error)
        future = ticket.known_future
        if ticket.number and future is not None:
            self._report(ticket, Failure(ticket.explain(error, had_begun=not new)), now)

    def _tell_sick(self, error: BaseException) -> None:
        if not self._sick:
            self._sick = True
            logger.warning("%s: the engine failed: %s: %s", self.name, type(error).__name__, error)
            self.source.events.emit(WorkerDied, self.name, f"{type(error).__name__}: {error}")

    def _due(self, place: Place) -> None:
        """Act on a place's timer. The clock thread."""
        ticket = place.ticket
        if ticket is not None and ticket.fate is None:
            self._settler.do(partial(self._overdue, ticket))
        elif ticket is not None:
            self.source.expire(place, ticket.known_future)

    # ── ends from outside ───────────────────────────────────────────────────────────────────────────────────────────

    def recall(self, future: AnyFuture) -> bool:
        """Take a future back if it certainly has not begun. Called with the lock held."""
        ticket = self._ticket_of(future)
        if ticket is None or ticket.fate is not None:
            return False
        if ticket.withdraw() or self._recall_travelled(ticket):
            self._settler.do(partial(self._let_withdrawn_go, ticket))
            return True
        return False

    def recall_all(self) -> None:
        """Take back what has not begun. Called with the lock held."""
        futures = self.handed_out()
        self.source.give_back([future for future in futures if future._verdict is None and self.recall(future)])

    def handed_out(self) -> list[AnyFuture]:
        """Return what has not begun. Called with the lock held."""
        futures = [ticket.known_future for ticket in list(self._active) if ticket.fate is None]
        return [future for future in futures if future is not None]

    def stop(self, future: AnyFuture, number: int, error: BaseException) -> None:
        """Have the settler cancel the attempt in the engine, or else abandon it."""
        with self.source.lock:
            ticket = self._ticket_of(future)
            if ticket is None:
                return
            claimed = self.source.claim(future, number)
        if claimed:
            self._settler.do(partial(self._abandon, ticket, error, time.monotonic()))
        else:
            self._settler.do(partial(self._carry_out_verdict, ticket))

    def _ticket_of(self, future: AnyFuture) -> Ticket | None:
        place = future._slot
        ticket = place.ticket if place is not None else None
        return ticket if ticket is not None and ticket.known_future is future else None

    def _abandon(self, ticket: Ticket, error: BaseException, end: float) -> None:
        self._give_up(ticket)
        if ticket in self._stuck:
            if not self._stops(ticket):
                log_abandoned(error, ticket.future.id, ticket.number, f"{ticket.worker} of the executor")
            self.source.events.emit(WorkerDied, ticket.worker, f"abandoned: {error}")
        self._release(ticket, reusable=False)  # whoever began it may still be arming its timer
        self._feeder.do(self._feed)
        self.source.settle(ticket.future, Failure(error), end)

    def _carry_out_verdict(self, ticket: Ticket) -> None:
        """End what was aborted while the engine had it and it was not known to have begun: `begin` does so."""
        future = ticket.known_future
        if future is not None and future._verdict is not None and ticket.claim(BEGUN):
            self._begin(ticket, self.name, time.monotonic())
            self._give_up(ticket)
            self._feeder.do(self._feed)

    def _give_up(self, ticket: Ticket) -> None:
        """Have the engine let go of a ticket; if it does not, the ticket is stuck."""
        ticket.unwanted = True
        self._stuck.add(ticket)
        self._let_go(ticket)
        if ticket not in self._inside and not ticket.is_here:
            self._stuck.discard(ticket)

    def _let_withdrawn_go(self, ticket: Ticket) -> None:
        """Free the place of what certainly never begins, whatever the engine makes of it."""
        self._let_go(ticket)
        self._release(ticket)
        self._feeder.do(self._feed)

    def _let_go(self, ticket: Ticket) -> None:
        inner = ticket.inner
        if inner is not None:
            self._cancel(ticket, inner)
