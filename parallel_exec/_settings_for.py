"""Which settings a task has: the executor's, its own, and what it needs of the limits."""

from __future__ import annotations

from parallel_exec._checks import check_soft_timeout
from parallel_exec._core.settings import Settings
from parallel_exec.config import policy_for
from parallel_exec.task import INHERIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from parallel_exec._core.limits.limits import Limits
    from parallel_exec._core.limits.needs import Needs
    from parallel_exec._core.monitor import Monitor
    from parallel_exec._needs import Named
    from parallel_exec.config import ParallelConfig
    from parallel_exec.task import Task

_ALL_INHERITED = (INHERIT,) * 5
_OWN = ("timeout", "soft_timeout", "retry_count", "retry", "retry_on", "backoff", "needs")


class SettingsFor:
    """Makes the settings of one executor's tasks.

    Attributes:
        plain: those of a task that has none of its own.
    """

    def __init__(self, config: ParallelConfig, monitor: Monitor, *, allows_lazy: bool) -> None:
        self._config = config
        self._monitor = monitor
        self._allows_lazy = allows_lazy
        self.plain = Settings(
            config.timeout, policy_for(config), allows_lazy, soft_timeout=config.soft_timeout, timers=monitor.timers
        )
        if config.limits:
            self.limits()

    def limits(self) -> Limits:
        """Return the executor's limits, made now if there are none."""
        config = self._config
        return self._monitor.use_limits(config.limits or {}, config.priority_ageing, tells=config.on_event is not None)

    def task(self, task: Task[Any]) -> Settings:
        """Return those of a task; raises as `Limits.needs` does, and ValueError for a soft timeout that comes too late."""
        own = (task.retry_count, task.retry, task.retry_on, task.backoff, task.soft_timeout)
        if task.timeout is INHERIT and own == _ALL_INHERITED:
            return self.plain if task.needs is None else self._needing(task.needs)
        timeout = self._config.timeout if task.timeout is INHERIT else task.timeout
        needs = None if task.needs is None else self._needs(task.needs)
        kept = {name: getattr(task, name) for name in _OWN}
        policy = policy_for(self._config, *own[:4])
        soft_timeout = self._soft_timeout(task, timeout)
        return Settings(timeout, policy, self._allows_lazy, kept, needs, soft_timeout, self._monitor.timers)

    def _soft_timeout(self, task: Task[Any], timeout: float | None) -> float | None:
        """Return that of a task: the executor's means nothing to one that has a shorter timeout of its own."""
        if task.soft_timeout is not INHERIT:
            check_soft_timeout(task.soft_timeout, timeout)
            return task.soft_timeout
        soft_timeout = self._config.soft_timeout
        return None if soft_timeout is None or (timeout is not None and soft_timeout >= timeout) else soft_timeout

    def _needing(self, named: Named) -> Settings:
        """Return those of a task that has nothing of its own but needs: one object for all that need the same."""
        limits = self._monitor.ready.limits
        known = None if limits is None else limits.settings(named)
        if known is None:
            plain, needs = self.plain, self._needs(named)
            kept = {"needs": named}
            known = Settings(
                plain.timeout, plain.policy, self._allows_lazy, kept, needs, plain.soft_timeout, plain.timers
            )
            self.limits().remember(named, known)
        return known

    def _needs(self, named: Named) -> Needs:
        limits = self._monitor.ready.limits
        if limits is None:
            name = next(iter(named))
            raise ValueError(
                f"needs[{name!r}]: this executor has no limits: write ParallelExecutor(limits={{{name!r}: ...}}), or "
                f"executor.limits[{name!r}] = ..."
            )
        return limits.needs(named)
