"""What abandoned attempts in an engine hold of the executor's limits: it is theirs until they have really ended.

    settler: keep ──► kept ─┬─► gone, when the engine or a thread here has done with the attempt ─┬─► settler: given back
                            └─► it is dead, where the engine says when ──────────────────────────┘

Guarantees:
    It is given back once: either `keep` sees that the attempt has ended, or `gone`, which is called after that, sees what is
    kept.
    `gone` takes no lock while the executor has work: the engine may call it from inside its own `cancel`.
    It is given back as well if the attempt ends after the executor has.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from parallel_exec._sync.weak import Upward
from parallel_exec.backends.base import SchedulerPort
from parallel_exec.backends.engine.submission import State, Submission

if TYPE_CHECKING:
    from concurrent.futures import Future

    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.limits.grant import Grant
    from parallel_exec.backends.engine.serial_thread import SerialThread


class KeptGrants:
    """The grants of one runner's abandoned attempts. Thread-safe."""

    _port = Upward[SchedulerPort]()

    def __init__(self, port: SchedulerPort, settler: SerialThread) -> None:
        self._port = port
        self._settler = settler
        self._kept: dict[Submission, Grant] = {}  # changed by single atomic calls, as the next
        self._over: dict[Submission, None] = {}  # those that are to be given back

    def keep(
        self, submission: Submission, job: AnyJob, error: BaseException, killing: Future[Any] | None = None
    ) -> None:
        """Let an attempt that is about to be settled with `error` keep what it holds, if it goes on. Called by the settler.

        `killing`: done when it is dead, though the engine has done with it before.
        """
        if submission.grant is None or (killing is None and submission.state != State.ABANDONED):
            return
        grant = self._port.keep_grant(job, error)
        if grant is not None:
            self._kept[submission] = grant
            if killing is None:
                self.gone(submission)
            else:
                killing.add_done_callback(lambda _: self._give_back_soon(submission))

    def gone(self, submission: Submission) -> None:
        """Have what an attempt has kept given back, if it has ended."""
        if submission in self._kept and submission.state != State.ABANDONED:
            self._give_back_soon(submission)

    def _give_back_soon(self, submission: Submission) -> None:
        self._over[submission] = None
        self._settler.call_soon(partial(self._give_back, submission))
        if self._settler.has_ended:  # then nothing is recalled any more, and no lock of the engine's waits for ours
            self._give_back(submission)

    def end(self) -> None:
        """Give back what the settler has come to its end before. Called by the settler, once `has_ended` is true."""
        for submission in list(self._over):
            self._give_back(submission)

    def _give_back(self, submission: Submission) -> None:
        self._over.pop(submission, None)
        grant = self._kept.pop(submission, None)
        if grant is not None:
            with contextlib.suppress(ReferenceError):  # the executor is gone
                self._port.end_kept(grant)
