"""What of an executor's configuration, or of a call's own, applies to one task."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from parallel_exec._core.limits.needs import Needs
    from parallel_exec._sync.timers import Timers
    from parallel_exec.retry import RetryPolicy


class Settings:
    """What of the configuration applies to a task; shared by all tasks without settings of their own.

    Attributes:
        timeout: seconds for one attempt, None for no limit.
        soft_timeout: seconds after which `SoftTimeoutError` is raised in it, None for never.
        timers: the clock for that; None where there is none.
        policy: decides about retries.
        allows_lazy: whether a call may return a coroutine or a generator that has not run.
        own: those that the task has for itself, by the names of `Task`'s fields.
        needs: what an attempt takes of the executor's limits; None for nothing.
    """

    __slots__ = ("allows_lazy", "needs", "own", "policy", "soft_timeout", "timeout", "timers")

    def __init__(
        self,
        timeout: float | None,
        policy: RetryPolicy,
        allows_lazy: bool = False,
        own: dict[str, Any] | None = None,
        needs: Needs | None = None,
        soft_timeout: float | None = None,
        timers: Timers | None = None,
    ) -> None:
        self.timeout = timeout
        self.soft_timeout = soft_timeout
        self.timers = None if soft_timeout is None else timers
        self.policy = policy
        self.allows_lazy = allows_lazy
        self.own = own or {}
        self.needs = needs

    def unsoftened(self) -> Settings:
        """Return the same without a soft timeout: itself, if there is none."""
        if self.soft_timeout is None:
            return self
        return Settings(self.timeout, self.policy, self.allows_lazy, self.own, self.needs)
