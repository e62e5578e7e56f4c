"""One attempt in somebody else's engine: `Submission`, and `EngineSlot`, which it holds until the attempt is settled.

    WAITING ──► SENT ──┬──► RUNNING ──┬──────────────────► SETTLED
       └───────────────┤              └──► ABANDONED ─────────┘
                       └──► WITHDRAWN

Guarantees:
    Whether it begins is decided once, by the first of `begin` and `withdraw`. What was withdrawn never begins, though the
    engine may call or pickle it.
    Its slot is released once, whatever the engine still does.
    No lock but its own is taken, and nothing is called while that is held.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, Callable

from parallel_exec._names import call_name
from parallel_exec._sync.clock import time
from parallel_exec._sync.weak import weakly

if TYPE_CHECKING:
    from concurrent.futures import Future

    from parallel_exec._core.job import AnyJob
    from parallel_exec._stacks import Stacks


class State:
    """Where an attempt is."""

    WAITING = "waiting"  # handed over, and not known to have left this process
    SENT = "sent"  # pickled, so that it may begin elsewhere
    RUNNING = "running"  # begun, here or elsewhere, and not settled
    ABANDONED = "abandoned"  # nobody waits for it, and the engine or a thread here still runs it
    WITHDRAWN = "withdrawn"  # taken back before it began
    SETTLED = "settled"  # over


class EngineSlot:
    """What one submission at a time holds: there are no more than the limit, and they are used again and again.

    (Timers stay in their heap until they are due. One for each submission would keep every submission that long.)

    Attributes:
        timer: due when the attempt outruns its timeout.
        submission: which one holds it; changed by `occupy` and `vacate`, which submissions call.
    """

    def __init__(
        self,
        make_timer: Callable[[Callable[[], object]], Any],
        due: Callable[[EngineSlot, Submission], object],
    ) -> None:
        self.timer = make_timer(weakly(self._time_is_up))
        self.submission: Submission | None = None
        self._due = weakly(due)

    def occupy(self, submission: Submission) -> None:
        """Give it to a submission."""
        self.submission = submission

    def vacate(self) -> None:
        """Take it back."""
        self.submission = None
        self.timer.disarm()

    def _time_is_up(self) -> None:
        submission = self.submission
        if submission is not None:
            self._due(self, submission)


class Submission:
    """One attempt, from being handed to the engine until the engine has done with it. Thread-safe.

    It does not keep its job, as the engine, and the frames of what a call raises, may keep the submission. (The scheduler
    keeps what has not ended.)

    | state     | entered by                  | left by                                                         |
    |-----------|-----------------------------|-----------------------------------------------------------------|
    | WAITING   | being made                  | `send`, `begin`, `withdraw`, `withdraw_sent`, `release`         |
    | SENT      | `send`                      | `begin`, `withdraw_sent`, `release`                             |
    | RUNNING   | `begin`                     | `release`, `abandon`                                            |
    | ABANDONED | `abandon`                   | `leave_engine` and, if its call runs here, `return_here`        |
    | WITHDRAWN | `withdraw`, `withdraw_sent` | never                                                           |
    | SETTLED   | `release`, or ABANDONED left | never                                                           |

    Attributes (its methods alone change them):
        state: see above.
        slot: None once released.
        serial: names it.
        number: the attempt's.
        name: the call's.
        grant: what it has of the executor's limits; None for nothing.
        engine_future: the engine's future; None before the engine's `submit` has returned, and once the engine has done.
        sent_at: when it was pickled (monotonic).
        worker: where it began, in words; "" before.
        started_at: when that was (monotonic).
        address: where it runs, in the engine's own terms; None if that is not known.
    """

    def __init__(self, job: AnyJob, slot: EngineSlot, serial: int) -> None:
        self._lock = threading.RLock()  # guards the state, the slot, the future, and the next two
        self._in_engine = True  # whether the engine has not done with it
        self._runs_here = False  # whether its call runs in a thread of this process
        self._thread: threading.Thread | None = None  # that one
        self._job = weakref.ref(job)
        self.state = State.WAITING
        self.slot: EngineSlot | None = slot
        self.serial = serial
        self.number = job.attempt_number + 1
        self.name = call_name(job.fn)
        self.grant = job.grant
        self.engine_future: Future[Any] | None = None
        self.sent_at = self.started_at = 0.0
        self.worker = ""
        self.address: Any = None
        slot.occupy(self)

    @property
    def job(self) -> AnyJob:
        """The task's record, while the task has not ended.

        Raises:
            ReferenceError: it has ended, and is gone.
        """
        job = self._job()
        if job is None:
            raise ReferenceError("the task of this attempt has ended")
        return job

    @property
    def known_job(self) -> AnyJob | None:
        """The task's record; None if the task has ended, and is gone."""
        return self._job()

    def granted(self) -> dict[str, Any]:
        """Return what it has of the executor's limits, by their names."""
        return {} if self.grant is None else self.grant.facts()

    @property
    def is_pending(self) -> bool:
        """Whether it has neither begun nor been withdrawn."""
        return self.state in (State.WAITING, State.SENT)

    @property
    def is_over(self) -> bool:
        """Whether it was withdrawn, or is settled: no worker has its call, or will begin it."""
        return self.state in (State.WITHDRAWN, State.SETTLED)

    @property
    def runs_here(self) -> bool:
        """Whether its call runs in a thread of this process."""
        return self._runs_here

    def stacks(self) -> Stacks | None:
        """Return where its call is; None if that does not run in a thread of this process."""
        thread = self._thread
        if not self._runs_here or thread is None or thread.ident is None:
            return None
        from parallel_exec import _stacks  # only a timeout needs it

        return _stacks.of_thread(thread.ident, thread.name)

    # ── in the engine ───────────────────────────────────────────────────────────────────────────────────────────────

    def accepted(self, engine_future: Future[Any]) -> bool:
        """Note the engine's future; returns whether it is to be cancelled at once: until now there was none to cancel."""
        with self._lock:
            self.engine_future = engine_future
            return self.state in (State.WITHDRAWN, State.ABANDONED)

    def send(self) -> bool:
        """Note that it is pickled; False if it was withdrawn."""
        with self._lock:
            if self.is_pending:
                self.state = State.SENT
                self.sent_at = time.monotonic()
            return self.state != State.WITHDRAWN

    def leave_engine(self) -> bool:
        """Note that the engine has done with it; False if its call still runs here: only its future was cancelled."""
        with self._lock:
            self._in_engine = False
            self.engine_future = None  # whose callbacks lead here
            self._settle_abandoned()
            return not self._runs_here

    # ── decisions ───────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, worker: str, start: float, *, here: bool = False) -> bool:
        """Decide that it has begun; False if it began before or was withdrawn. `here`: the caller runs the call."""
        with self._lock:
            if not self.is_pending:
                return False
            self.state = State.RUNNING
            self._runs_here = here
            self._thread = threading.current_thread() if here else None
            self.worker, self.started_at = worker, start
            return True

    def withdraw(self) -> bool:
        """Decide that it never begins, if that is ours to say: it has not begun, and is in this process."""
        with self._lock:
            if self.state != State.WAITING:
                return False
            self.state = State.WITHDRAWN
            return True

    def withdraw_sent(self) -> bool:
        """Decide that it never begins, as the engine has said so; False if it has begun nevertheless."""
        with self._lock:
            if not self.is_pending:
                return False
            self.state = State.WITHDRAWN
            return True

    # ── an attempt that runs ────────────────────────────────────────────────────────────────────────────────────────

    def locate(self, address: Any) -> None:
        """Note where it runs. Called by the thread that hears so."""
        self.address = address

    def restart(self, worker: str, start: float) -> None:
        """Note that the engine has lost the worker, and begun the call again on another."""
        self.worker, self.started_at = worker, start

    def return_here(self) -> bool:
        """Note that its call here has ended; returns whether the engine had done with it before, and says no more."""
        with self._lock:
            self._runs_here = False
            self._settle_abandoned()
            return not self._in_engine

    def abandon(self) -> None:
        """Note that nobody waits for it any more; nothing if it is settled: its call has just ended."""
        with self._lock:
            if self.state == State.RUNNING:
                self.state = State.ABANDONED
                self._settle_abandoned()

    def release(self) -> EngineSlot | None:
        """Let its slot go, as its attempt is settled; returns the slot, or None if that was done."""
        with self._lock:
            slot, self.slot = self.slot, None
            if self.state not in (State.ABANDONED, State.WITHDRAWN):
                self.state = State.SETTLED
        if slot is not None:
            slot.vacate()
        return slot

    def _settle_abandoned(self) -> None:
        if self.state == State.ABANDONED and not self._in_engine and not self._runs_here:
            self.state = State.SETTLED


def submission_of(job: AnyJob) -> Submission | None:
    """Return the attempt that a job has in the engine, if its slot is still its own."""
    slot = job.slot
    submission = slot.submission if slot is not None else None
    return submission if submission is not None and submission.known_job is job else None
