"""What the calling thread may wait for: never for something that only that thread could bring about.

Guarantees:
    A task that would wait for its own executor for ever is told so: when every slot that the back end has is taken by an
    attempt that waits for another task of the executor, nothing can ever end. (One whose awaited task has ended is about
    to go on: it only looks as if it waited, until its thread has woken up.) So it is when the task that it waits for needs
    what of a limit only it holds, or other attempts do that wait in vain. What was added, changed or ended meanwhile may make a
    wait one in vain, so whoever waits asks again now and then. An attempt that was given up, and still holds what it needed of
    the limits, waits for nothing of its executor: it would keep them from all others.
    So is a callback or a hook, in a thread of the back end's, once all of these wait, be it in a task or in a callback.
    A thread that works for the executor never blocks on it; nor does a signal handler or a finalizer that has interrupted
    its own thread while that held the executor's lock, or was about to wake a consumer.
"""

from __future__ import annotations

import threading

from parallel_exec._core.gate import FORKED
from parallel_exec._core.job import Job
from parallel_exec._core.phase import Phase
from parallel_exec._current import current
from parallel_exec._sync.lazy_condition import settling_lock
from parallel_exec._sync.locks import is_mine
from parallel_exec._sync.threads import is_coming_up
from parallel_exec.errors import ParallelExecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Mapping, Sequence

    from parallel_exec._core.gate import Gate
    from parallel_exec._core.idle import IdleConsumers
    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.ready_queue import ReadyQueue
    from parallel_exec._core.registry import Registry
    from parallel_exec._sync.timers import Timers
    from parallel_exec.backends.base import Runner

IN_ITS_HOOK = (
    "an event hook waits for the task that it is told of, which would be for ever, as that goes on when the hook returns: "
    "wait in a thread of your own"
)
IN_CALLBACK = (
    "a callback or an event hook waits for a task of the executor whose thread it runs in, which would be for ever: "
    "add another callback to that task, or wait in a thread of your own"
)


class Callers:
    """Who calls, as far as waiting goes. Thread-safe; `waiting` is guarded by the executor's lock.

    Attributes:
        waiting: the live attempts that wait for the executor they run in, and for which tasks: any of them will do, and
            none stands for room in the queue.
        calling: the same for the back end's threads that wait in a callback or a hook, by `threading.get_ident()`.
    """

    _runner: Runner

    def __init__(
        self,
        lock: Any,
        gate: Gate,
        ready: ReadyQueue,
        idle: IdleConsumers,
        registry: Registry,
        timers: Timers,
        in_one_thread: bool,
    ) -> None:
        self.waiting: dict[AnyJob, tuple[AnyJob, ...]] = {}
        self.calling: dict[int, tuple[AnyJob, ...]] = {}
        self._lock = lock
        self._gate = gate
        self._ready = ready
        self._idle = idle
        self._registry = registry
        self._timers = timers
        self._in_one_thread = in_one_thread  # all outcomes come through one thread

    def use(self, runner: Runner) -> None:
        """Ask this runner how many slots there are."""
        self._runner = runner

    def own_attempt(self) -> AnyJob | None:
        """Return what of this executor the calling thread is running."""
        running = current.running
        return running if isinstance(running, Job) and running.owner.callers is self else None

    def enter_wait(self, *jobs: AnyJob) -> bool:
        """Note that the calling task, if it is one of this executor's, waits for any of these; False if it is none.

        To be repeated while it waits.

        Raises:
            ParallelExecError: it would wait for ever.
        """
        gate = self._gate
        if gate.forked:
            raise ParallelExecError(FORKED)
        # Without the lock: who starts the pool at this very moment has not yet.
        if not gate.is_open and all(job.phase == Phase.QUEUED for job in jobs):
            raise ParallelExecError(
                f"task {jobs[0].id!r} was added, and nothing runs that would start it: call execute_all() before you wait "
                "for it, or use submit() instead of add_task(), which starts at once"
            )
        if current.telling and all(job in current.telling for job in jobs):
            raise ParallelExecError(IN_ITS_HOOK)
        if current.running is None and current.pool is None and not current.driving:
            return False
        mine = self.own_attempt()
        if mine is None:
            works = self._works_for_us()
            if self in current.driving or (works and self._in_one_thread):
                raise ParallelExecError(IN_CALLBACK)
            if not works:
                return False
        try:
            with self._lock:
                if mine is None:
                    self._start_calling(jobs)
                else:
                    self._start_waiting(mine, jobs)
        finally:
            del self, mine, jobs  # what is raised becomes the caller's error, and its traceback holds this frame
        return True

    def leave_wait(self) -> None:
        """Undo `enter_wait`."""
        mine = self.own_attempt()
        with self._lock:
            if mine is None:
                self.calling.pop(threading.get_ident(), None)
            elif mine.attempt_number == current.number:  # else it is another attempt that waits
                self.waiting.pop(mine, None)

    def waiting_in_vain(self) -> set[AnyJob]:
        """Return the live attempts that wait for what never begins, if nothing begins any more. Called with the lock held."""
        vain = self.waiting.copy()  # in one step: an attempt that ends is taken out of it without the lock
        while True:
            going = [
                job
                for job, awaited in vain.items()
                if not all(one.phase in (Phase.QUEUED, Phase.BACKING_OFF) or one in vain for one in awaited)
            ]
            if not going:
                return set(vain)
            for job in going:
                del vain[job]

    def would_deadlock(self, job: AnyJob) -> bool:
        """Return whether nothing could run any more if this live attempt waited, too. Called with the lock held."""
        live = self._registry.live
        if (job, job.attempt_number) not in live or len(live) + _stuck(self.calling) < self._runner.slots():
            return False
        return _stuck(self.waiting, job) + 1 >= len(live)

    def _is_given_up(self, job: AnyJob) -> bool:
        """Return whether the calling thread's attempt of a job that needs some limit was settled. Called with the lock held."""
        return job.settings.needs is not None and (job, current.number) not in self._registry.live

    def _start_waiting(self, job: AnyJob, awaited: Sequence[AnyJob]) -> None:
        if any(one.phase == Phase.DONE for one in awaited):
            return
        if self._is_given_up(job):
            message = (
                f"attempt {current.number} of task {job.id!r} was given up, as it was aborted or timed out, and must not wait "
                "for another task of its executor, as it keeps what it holds of the limits until it ends: end it when "
                "current_task().cancelled is true"
            )
            del self, job, awaited  # the error's traceback holds this frame
            raise ParallelExecError(message)
        if self._waits_in_circle(job, awaited):
            whom = "itself" if job in awaited else f"task {awaited[0].id!r}, which waits for it"
            message = f"task {job.id!r} would wait for ever for {whom}: return instead of waiting"
            del self, job, awaited  # the error's traceback holds this frame, and becomes the job's
            raise ParallelExecError(message)
        if self.would_deadlock(job):
            message = (
                f"task {job.id!r} would wait for ever for task {awaited[0].id!r}: both are of the same executor, and each of "
                f"its {self._runner.slots()} slots is taken by a task that waits; raise max_concurrency (and the workers of an "
                "engine of yours), use a second executor, or return instead of waiting"
            )
            del self, job, awaited  # the error's traceback holds this frame, and becomes the job's
            raise ParallelExecError(message)
        limit = self._hindering_limit(job, awaited)
        if limit:
            message = (
                f"task {job.id!r} would wait for ever for task {awaited[0].id!r}: the limit {limit!r} lets in nothing "
                "more before tasks of the same executor end that wait for others, this one among them; raise the limit, let the "
                "task that waits need less, or return instead of waiting"
            )
            del self, job, awaited  # the error's traceback holds this frame, and becomes the job's
            raise ParallelExecError(message)
        if (job, current.number) in self._registry.live:
            self.waiting[job] = tuple(awaited)

    def _start_calling(self, awaited: Sequence[AnyJob]) -> None:
        """Note that the calling thread waits in a callback, or a hook. Called with the lock held."""
        if any(one.phase == Phase.DONE for one in awaited):
            return
        me, runner = threading.get_ident(), self._runner
        if _stuck(self.calling, me) + _stuck(self.waiting) + 1 >= max(runner.slots(), runner.workers()):
            raise ParallelExecError(IN_CALLBACK)
        self.calling[me] = tuple(awaited)

    def _waits_in_circle(self, job: AnyJob, awaited: Sequence[AnyJob]) -> bool:
        """Return whether a live attempt would wait for itself, be it by way of others. Called with the lock held.

        Who waits goes on when any of those has ended, so it waits in vain if all that it leads to wait as well.
        """
        if (job, current.number) not in self._registry.live:
            return False  # it is another attempt that will end the task
        found, pending = {job}, list(awaited)
        while pending:
            one = pending.pop()
            if one not in found:
                found.add(one)
                others = self.waiting.get(one, ())
                if not others or any(other.phase == Phase.DONE for other in others):
                    return False
                pending += others
        return True

    def _hindering_limit(self, job: AnyJob, awaited: Sequence[AnyJob]) -> str:
        """Return the name of a limit for which this live attempt would wait in vain if it waited, too; "" if there is none.

        Called with the lock held. Those that wait are taken for stuck, but for one that waits for what can end: it runs, or
        can begin although all that the stuck ones hold stays held. That one gives back what it holds, and so on. With nothing
        `awaited` it is room in a full queue, which there is once something of it begins.
        """
        limits = self._ready.limits
        if limits is None:
            return ""
        queued = () if awaited else tuple(self._ready.jobs())
        stuck = {
            other: others or queued
            for other, others in self.waiting.items()
            if (others or queued) and not any(one.phase == Phase.DONE for one in others)
        }
        stuck[job] = tuple(awaited) or queued
        while job in stuck:
            name = ""
            grants = [each.grant for each in stuck if each.grant is not None]
            is_full = len(stuck) >= self._runner.slots()
            going = []
            for each, others in stuck.items():
                for one in others:
                    if one.phase not in (Phase.QUEUED, Phase.BACKING_OFF):
                        can_end = one not in stuck
                    else:
                        obstacle = limits.obstacle(one, grants)
                        name = name or obstacle
                        can_end = not obstacle and not is_full
                    if can_end:
                        going.append(each)
                        break
            if not going:
                return name
            for each in going:
                del stuck[each]
        return ""

    def enter_queue(self) -> bool:
        """Note that the caller waits for room in the queue, unless only it, or what it has interrupted, could make any.

        Called with the lock held.
        """
        mine = self.own_attempt()
        if mine is None:
            return not (self._works_for_us() or self._timers.is_clock() or self in current.adding)
        if self.would_deadlock(mine) or self._is_given_up(mine) or self._hindering_limit(mine, ()):
            return False
        self.waiting[mine] = ()
        return True

    def leave_queue(self) -> None:
        """Undo `enter_queue`. Called with the lock held."""
        if self.waiting and (mine := self.own_attempt()) is not None:
            self.waiting.pop(mine, None)

    def _works_for_us(self) -> bool:
        return getattr(current.pool, "callers", None) is self

    def is_called_from_within(self) -> bool:
        """Return whether the calling thread works for this executor just now: in a task, a callback, a hook."""
        if self._works_for_us() or self in current.ending or self in current.adding:
            return True
        return self._timers.is_clock() or self.own_attempt() is not None

    def must_not_block(self) -> bool:
        """Return whether the calling thread works for this executor, or has interrupted what holds its lock or is to wake it.

        Such a caller must not wait for the executor: it may be waiting for the caller.
        """
        if is_coming_up() or self.is_called_from_within() or self._idle.is_waking():
            return True  # (first of all if it is coming up: it must not be asked for its `current_thread` yet)
        return is_mine(self._lock) or is_mine(settling_lock)


def _stuck(waiting: Mapping[Any, Sequence[AnyJob]], but: object = None) -> int:
    """Return how many of those who wait, beside one, wait for what has not ended."""
    return sum(who != but and not any(one.phase == Phase.DONE for one in awaited) for who, awaited in waiting.items())
