"""`executor.limits`: the limits by name, as the user has set them; what is set there holds from then on.

Guarantees:
    Thread-safe, and does not block. What is held of a limit that is changed stays held, and counts. A task that waits for what
    it can never be granted any more ends as failed, with the `ValueError` that says why.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from functools import partial

from parallel_exec._outcome import Failure
from parallel_exec._sync.locks import is_mine
from parallel_exec.limits import check_name, check_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterator

    from parallel_exec._core.limits.limits import Limits
    from parallel_exec._core.scheduler import Scheduler


class LiveLimits(MutableMapping):  # type: ignore[type-arg]  # which 3.9 cannot subscript with what is imported for types only
    """A view of an executor's limits."""

    def __init__(self, scheduler: Scheduler, make: Callable[[], Limits]) -> None:
        self._check = scheduler.check_limit
        self._monitor = scheduler.monitor
        self._completion = scheduler.completion
        self._make = make

    def _specs(self) -> dict[str, Any]:
        with self._monitor.lock:
            limits = self._monitor.ready.limits
            return {} if limits is None else limits.specs()

    def __getitem__(self, name: str) -> Any:
        spec = self._specs()[name]
        return list(spec) if type(spec) is tuple else spec

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs())

    def __len__(self) -> int:
        return len(self._specs())

    def __setitem__(self, name: str, spec: Any) -> None:
        checked = check_spec(f"limits[{name!r}]", spec)
        self._check(check_name(name), checked)
        was_held = is_mine(self._monitor.lock)  # by what this call has interrupted, as a handler's
        limits = self._make()
        try:
            with self._monitor.lock:
                self._monitor.ready.change(limits.put, name, checked, self._monitor.grants)
            self._end_refused(limits)
        except BaseException:  # a signal handler's
            self._completion.repair_limits(was_held=was_held)
            self._end_refused(limits)
            raise

    def _end_refused(self, limits: Limits) -> None:
        """End the tasks that wait for what can never be granted any more, and wake who can go on."""
        if limits.busy:  # what this call has interrupted makes the change: the clock's thread waits for that
            self._monitor.timers.timer(partial(self._end_late, limits)).arm(-math.inf)
            return
        while limits.refused:
            for job, error in list(limits.refused.items()):
                self._completion.cancel_waiting(job, Failure(error))
        self._monitor.idle.wake_one()

    def _end_late(self, limits: Limits) -> None:
        with self._monitor.lock:  # which who makes the change has till then
            pass
        self._end_refused(limits)

    def __delitem__(self, name: str) -> None:
        with self._monitor.lock:
            if name not in self._specs():
                raise KeyError(name)
            limits = self._make()
            users = [job for job in list(self._monitor.registry.unsettled) if self._needs(job, name)]
            if users or limits.is_held(name):
                who = f"task {users[0].id!r}" if users else "a call that nobody waits for any more"
                raise ValueError(f"limit {name!r} cannot be removed: {who} needs it")
            limits.remove(name)

    @staticmethod
    def _needs(job: Any, name: str) -> bool:
        needs = job.settings.needs
        return needs is not None and needs.get(name) is not None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._specs()!r})"
