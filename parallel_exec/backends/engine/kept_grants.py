"""What abandoned attempts in an engine hold of the executor's limits: it is theirs until they have really ended.

    settler: keep ──► kept ──► gone, when the engine or a thread here has done with the attempt ──► settler: given back

Guarantees:
    It is given back once: either `keep` sees that the attempt has ended, or `gone`, which is called after that, sees what is
    kept.
    `gone` takes no lock: the engine may call it from inside its own `cancel`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from parallel_exec._sync.weak import Upward
from parallel_exec.backends.base import SchedulerPort
from parallel_exec.backends.engine.submission import State, Submission

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.limits.grant import Grant
    from parallel_exec.backends.engine.serial_thread import SerialThread


class KeptGrants:
    """The grants of one runner's abandoned attempts. Thread-safe."""

    _port = Upward[SchedulerPort]()

    def __init__(self, port: SchedulerPort, settler: SerialThread) -> None:
        self._port = port
        self._settler = settler
        self._kept: dict[Submission, Grant] = {}  # changed by single atomic calls

    def keep(self, submission: Submission, job: AnyJob, error: BaseException) -> None:
        """Let an attempt that is about to be settled with `error` keep what it holds, if it goes on. Called by the settler."""
        if submission.grant is not None and submission.state == State.ABANDONED:
            grant = self._port.keep_grant(job, error)
            if grant is not None:
                self._kept[submission] = grant
                self.gone(submission)

    def gone(self, submission: Submission) -> None:
        """Have what an attempt has kept given back, if it has ended."""
        if submission in self._kept and submission.state != State.ABANDONED:
            self._settler.call_soon(partial(self._give_back, submission))

    def _give_back(self, submission: Submission) -> None:
        grant = self._kept.pop(submission, None)
        if grant is not None:
            self._port.end_kept(grant)
